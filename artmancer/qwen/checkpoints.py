"""The variants: LoRA files, attached to the base's transformer once and switched from then on."""

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..conditions import RECIPES
from ..edit import RESOLUTIONS
from ..errors import ArtMancerError
from .pipeline import Adapter, Base

SIDES = (".lora_A.weight", ".lora_B.weight")
OTHERS = ("text_encoder.", "lora_te")
"""Keys of a LoRA that are for the text encoder, which no variant changes."""
PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.")


@dataclass(frozen=True)
class Checkpoint:
    """A LoRA file and what it says of itself.

    path : None: no file, the base alone
    recipe : which conditioning images it was trained on; None: it does not say
    resolution : the crop's size it was trained at, a key of RESOLUTIONS; None: it does not say
    """

    path: Path | None
    recipe: str | None = None
    resolution: str | None = None


NONE = Checkpoint(None)
"""The base alone."""

FILES = {
    "insertion": ("insertion_cp.safetensors", "qwen_2509_object_insertion_512_000002750.safetensors"),
    "removal": ("removal_cp.safetensors",),
    "white_balance": ("wb_cp.safetensors",),
}
"""The names each variant's checkpoint goes by."""

ENVIRONMENT = {"insertion": "MODEL_FILE", "removal": "MODEL_FILE_REMOVAL", "white_balance": "MODEL_FILE_WHITE_BALANCE"}
"""The environment variables that name the file of each variant; they come first."""


def find(variant: str, files: Iterable[Path]) -> Path | None:
    """The variant's checkpoint: what the environment names, or else the one of these files that goes by its name."""
    if named := os.environ.get(ENVIRONMENT[variant]):
        return Path(named)
    by_name = {path.name: path for path in files}
    return next((by_name[name] for name in FILES[variant] if name in by_name), None)


def read(path: Path) -> Checkpoint:
    """Read a checkpoint's metadata, not its weights.

    Raises
    ------
    ArtMancerError : checkpoint_missing, generation_failed
    """
    metadata = _open(path, lambda file: file.metadata() or {})
    recipe = _said(path, metadata, "recipe", RECIPES)
    resolution = _said(path, metadata, "resolution", RESOLUTIONS)
    return Checkpoint(path, recipe, resolution)


def _said(path: Path, metadata: dict[str, str], name: str, known: Iterable[str]) -> str | None:
    value = metadata.get(f"artmancer.{name}")
    if value is not None and value not in known:
        raise ArtMancerError(
            "generation_failed",
            f"'{path.name}' asks for the {name} '{value}'; known are {', '.join(known)}. Update ArtMancer.",
        )
    return value


def use(base: Base, strengths: dict[Path, float]) -> None:
    """Let these checkpoints act on the base with these strengths, and no other; a file is read at its first use only.

    Raises
    ------
    ArtMancerError : checkpoint_missing; generation_failed where a file is of another model
    """
    # The model's own methods ask for PEFT's version each time, in a file.
    from diffusers.utils.peft_utils import set_adapter_layers, set_weights_and_activate_adapters

    transformer = base.pipeline.transformer
    changed = [_read_once(base, path) for path in strengths]
    if not any(changed) and strengths == base.acting:
        return
    base.acting = None
    if strengths:
        set_adapter_layers(transformer, enabled=True)
        set_weights_and_activate_adapters(
            transformer, [base.adapters[path].name for path in strengths], list(strengths.values())
        )
    elif base.adapters:
        set_adapter_layers(transformer, enabled=False)
    base.memory.adapted()
    base.acting = dict(strengths)


def _read_once(base: Base, path: Path) -> bool:
    """Attach a checkpoint, if it is not, or if its file is another one by now; whether it had to be."""
    known = base.adapters.get(path)
    stamp = _stamp(path)
    if known and stamp in (known.stamp, None):
        return False
    base.acting = None
    if known:
        del base.adapters[path]
        base.pipeline.transformer.delete_adapters(known.name)
    if stamp is None:
        raise _missing(path)
    base.attached += 1
    name = f"artmancer_{base.attached}"
    try:
        _attach(base.pipeline.transformer, path, name)
    except BaseException:  # A cancel in ComfyUI is one too; the half-attached adapter would act.
        if name in getattr(base.pipeline.transformer, "peft_config", {}):
            base.pipeline.transformer.delete_adapters(name)
        raise
    base.adapters[path] = Adapter(name, stamp)
    return True


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _attach(transformer: Any, path: Path, name: str) -> None:
    weights = _weights(path)
    modules = {module for module, _ in transformer.named_modules()}
    misfits = [key for key in weights if not key.endswith(SIDES) or key.rpartition(".lora_")[0] not in modules]
    if misfits or not weights:
        what = f"{len(misfits)} of {len(weights)} keys of '{path.name}' fit no layer of the base, such as "
        raise ArtMancerError(
            "generation_failed",
            (what + ", ".join(misfits[:3]) if weights else f"'{path.name}' has no keys for the base's transformer")
            + "; expected transformer_blocks.0.attn.to_q.lora_A.weight and the like. Choose a LoRA for "
            "Qwen-Image-Edit.",
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # Several adapters are what is wanted.
            transformer.load_lora_adapter(weights, prefix=None, adapter_name=name)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ArtMancerError(
            "generation_failed",
            f"'{path.name}' is a LoRA of another model: {str(error).splitlines()[-1].strip()}. "
            "Choose one for Qwen-Image-Edit.",
        ) from error
    for key, value in weights.items():
        module, _, side = key.removesuffix(".weight").rpartition(".lora_")
        weight = transformer.get_submodule(f"{module}.lora_{side}.{name}").weight
        # PEFT rounds to the dtype of the layer's own weight, which may be stored in 8 bits.
        weight.data = value.to(weight.device, transformer.dtype)


def _weights(path: Path) -> dict[str, Tensor]:
    """The file's tensors under the names of diffusers' layers."""
    from diffusers import QwenImageEditPlusPipeline

    def tensors(file: Any) -> dict[str, Tensor]:
        names = file.keys()
        return {name: file.get_tensor(name) for name in names}

    converted: dict[str, Tensor] = QwenImageEditPlusPipeline.lora_state_dict(_open(path, tensors))
    for prefix in PREFIXES:
        converted = {key.removeprefix(prefix): value for key, value in converted.items()}
    return {key: value for key, value in converted.items() if not key.startswith(OTHERS)}


def _open(path: Path, look: Any) -> Any:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise _missing(path)
    try:
        with safe_open(path, framework="pt") as file:
            return look(file)
    except SafetensorError as error:
        raise ArtMancerError(
            "generation_failed", f"'{path.name}' is not a whole safetensors file ({error}). Download it again."
        ) from error


def _missing(path: Path) -> ArtMancerError:
    return ArtMancerError("checkpoint_missing", f"There is no checkpoint '{path}'. Put it there, or name another.")
