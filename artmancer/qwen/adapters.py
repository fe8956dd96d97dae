"""LoRA adapters: attached to the base's transformer once, then switched."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ArtMancerError
from .checkpoints import missing
from .pipeline import Adapter, Base

KEY = re.compile(
    r"(?:(?:base_model\.model|diffusion_model|transformer)\.)*(?:lora_unet_)?(.+?)"
    r"\.(lora_A|lora_down|lora_B|lora_up|alpha)(?:\.default)?(?:\.weight)?"
)
"""A tensor of a LoRA as diffusers, PEFT, ai-toolkit, Lightning and kohya name it:
the layer, and which it is.
"""
SIDES = {
    "lora_A": "lora_A",
    "lora_down": "lora_A",
    "lora_B": "lora_B",
    "lora_up": "lora_B",
    "alpha": "alpha",
}
OTHERS = ("text_encoder.", "lora_te")
"""Keys of a LoRA that are for the text encoder, which no variant changes."""
STRENGTH = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")
"""What of PEFT's settings in a file's metadata says how strongly it acts."""
EXPECTED = (
    "expected transformer_blocks.0.attn.to_q.lora_A.weight and the like. "
    "Choose a LoRA for Qwen-Image-Edit."
)


def activate(base: Base, strengths: dict[Path, float]) -> None:
    """Let these checkpoints act on the base with these strengths, and no other; a file is read at
    its first use only.

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
    base.memory.adapters_changed()
    base.acting = dict(strengths)


def _read_once(base: Base, path: Path) -> bool:
    """Attach a checkpoint, if it is not, or if its file is another one by now;
    whether it had to be.
    """
    known = base.adapters.get(path)
    stamp = _stamp(path)
    if known and stamp in (known.stamp, None):
        return False
    base.acting = None
    if known:
        del base.adapters[path]
        base.pipeline.transformer.delete_adapters(known.name)
    if stamp is None:
        raise missing(path)
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
    tensors, metadata = _open(path, _content)
    weights = _weights(path, tensors, transformer)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Already found a `peft_config`"
            )  # Several adapters are what is wanted.
            transformer.load_lora_adapter(
                weights, prefix=None, adapter_name=name, metadata=_strength(metadata, weights)
            )
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
        # PEFT rounds to the dtype of the layer's own weight, which may be stored in 8 bits. A copy:
        # what is mapped from a file goes when the file is written over.
        weight.data = value.to(weight.device, transformer.dtype, copy=True)


def _content(file: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    names = file.keys()
    return {name: file.get_tensor(name) for name in names}, file.metadata() or {}


def _weights(path: Path, tensors: dict[str, Tensor], transformer: Any) -> dict[str, Tensor]:
    """A file's tensors under the names that PEFT has for them, with their alphas multiplied in."""
    layers = {
        name.removesuffix(".base_layer")
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and ".lora_" not in name
    }
    # Kohya's trainer writes the dots of a name as underscores;
    # written so, no two layers' names are equal.
    by_name = {layer.replace(".", "_"): layer for layer in layers}
    found: dict[str, dict[str, str]] = {}
    misfits = []
    for key in tensors:
        match = KEY.fullmatch(key)
        layer = by_name.get(match[1].replace(".", "_")) if match else None
        if match and layer:
            found.setdefault(layer, {})[SIDES[match[2]]] = key
        elif not key.startswith(OTHERS):
            misfits.append(key)
    if misfits:
        raise ArtMancerError(
            "generation_failed",
            f"{len(misfits)} of {len(tensors)} keys of '{path.name}' fit no layer of the base, "
            f"such as {', '.join(misfits[:3])}; {EXPECTED}",
        )
    if not found:
        others = f", only such as {', '.join(list(tensors)[:3])}" if tensors else ""
        raise ArtMancerError(
            "generation_failed",
            f"'{path.name}' has no keys for the base's transformer{others}; {EXPECTED}",
        )
    weights = {}
    for layer, keys in found.items():
        if not keys.keys() >= {"lora_A", "lora_B"}:
            raise ArtMancerError(
                "generation_failed",
                f"'{path.name}' is not a whole LoRA: of {layer} it has "
                f"{' and '.join(keys.values())}; expected lora_A and lora_B of each layer. "
                "Download it again.",
            )
        down = tensors[keys["lora_A"]]
        if "alpha" in keys:
            down = down.float() * (tensors[keys["alpha"]].item() / len(down))
        weights[f"{layer}.lora_A.weight"] = down
        weights[f"{layer}.lora_B.weight"] = tensors[keys["lora_B"]]
    return weights


def _strength(metadata: dict[str, str], weights: dict[str, Tensor]) -> dict[str, Any] | None:
    """PEFT's settings as diffusers wrote them into the file's metadata;
    None: each layer's alpha is its rank.
    """
    written = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    settings = {name.removeprefix("transformer."): value for name, value in written.items()}
    said = {name: settings[name] for name in STRENGTH if name in settings}
    return (
        {**said, "target_modules": [key.rpartition(".lora_")[0] for key in weights]}
        if said
        else None
    )


def _open(path: Path, look: Any) -> Any:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise missing(path)
    try:
        with safe_open(path, framework="pt") as file:
            return look(file)
    except SafetensorError as error:
        raise ArtMancerError(
            "generation_failed",
            f"'{path.name}' is not a whole safetensors file ({error}). Download it again.",
        ) from error
