"""LoRA adapters: each is attached to the base's transformer once, then switched on and off."""

import json
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ArtMancerError
from .checkpoints import missing
from .pipeline import Adapter, Base

_KEY = re.compile(
    r"(?:(?:base_model\.model|diffusion_model|transformer)\.)*(?:lora_unet_)?(.+?)"
    r"\.(lora_A|lora_down|lora_B|lora_up|alpha)(?:\.default)?(?:\.weight)?"
)
"""Key of a tensor of a LoRA, as diffusers, PEFT, ai-toolkit, Lightning and kohya write it. Groups:
the layer's name, and a key of _TENSORS.
"""

_TENSORS = {
    "lora_A": "lora_A",
    "lora_down": "lora_A",
    "lora_B": "lora_B",
    "lora_up": "lora_B",
    "alpha": "alpha",
}
"""PEFT's names of a layer's tensors, by the names in files."""

_TEXT_ENCODER_PREFIXES = ("text_encoder.", "lora_te")
"""Prefixes of keys for the text encoder, which are ignored: no variant changes it."""

_STRENGTH_SETTINGS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")
"""The PEFT settings in a file's metadata that scale the LoRA."""

_EXPECTED = (
    "expected keys such as transformer_blocks.0.attn.to_q.lora_A.weight. "
    "Choose a LoRA for Qwen-Image-Edit."
)
"""End of the messages about keys that do not match."""


def activate(base: Base, strengths: dict[Path, float]) -> None:
    """Switch these checkpoints on with these strengths, and all others off.

    A file is read only at its first use, and when it has changed since.

    Parameters
    ----------
    strengths : strength of each checkpoint by path, 1 = as trained; empty = the base alone

    Raises
    ------
    ArtMancerError : checkpoint_missing; generation_failed where a file is damaged or is not a LoRA
        for the base
    """
    # The model's own methods read PEFT's version from a file at each call.
    from diffusers.utils.peft_utils import set_adapter_layers, set_weights_and_activate_adapters

    transformer = base.pipeline.transformer
    changed = [_ensure_attached(base, path) for path in strengths]
    if not any(changed) and strengths == base.active:
        return
    base.active = None
    if strengths:
        set_adapter_layers(transformer, enabled=True)
        set_weights_and_activate_adapters(
            transformer, [base.adapters[path].name for path in strengths], list(strengths.values())
        )
    elif base.adapters:
        set_adapter_layers(transformer, enabled=False)
    base.memory.adapters_changed()
    base.active = dict(strengths)


def _ensure_attached(base: Base, path: Path) -> bool:
    """Attach a checkpoint, unless it is attached and its file has not changed; return True if it
    was attached now.
    """
    attached = base.adapters.get(path)
    stamp = _stamp(path)
    # A checkpoint whose file was deleted stays usable.
    if attached and stamp in (attached.stamp, None):
        return False
    base.active = None
    if attached:
        del base.adapters[path]
        base.pipeline.transformer.delete_adapters(attached.name)
    if stamp is None:
        raise missing(path)
    base.attached_count += 1
    name = f"artmancer_{base.attached_count}"
    try:
        _attach(base.pipeline.transformer, path, name)
    # A cancel in ComfyUI may be a BaseException; a half-attached adapter would change the result.
    except BaseException:
        if name in getattr(base.pipeline.transformer, "peft_config", {}):
            base.pipeline.transformer.delete_adapters(name)
        raise
    base.adapters[path] = Adapter(name, stamp)
    return True


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return a file's modification time and size, see Adapter.stamp; None: there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _attach(transformer: Any, path: Path, name: str) -> None:
    """Read a checkpoint and attach it to the transformer under this name."""
    tensors, metadata = _read(path)
    weights = _peft_weights(path, tensors, transformer)
    try:
        with warnings.catch_warnings():
            # Several adapters at once are intended.
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            transformer.load_lora_adapter(
                weights, prefix=None, adapter_name=name, metadata=_peft_settings(metadata, weights)
            )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ArtMancerError(
            "generation_failed",
            f"'{path.name}' is a LoRA of another model: {str(error).splitlines()[-1].strip()}. "
            "Choose a LoRA for Qwen-Image-Edit.",
        ) from error
    for key, value in weights.items():
        layer, _, side = key.removesuffix(".weight").rpartition(".lora_")
        weight = transformer.get_submodule(f"{layer}.lora_{side}.{name}").weight
        # PEFT rounds to the dtype of the layer's own weight, which may be stored in 8 bits. A copy:
        # weights that are mapped from a file change when the file is overwritten.
        weight.data = value.to(weight.device, transformer.dtype, copy=True)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a safetensors file's tensors and metadata."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise missing(path)
    try:
        with safe_open(path, framework="pt") as file:
            keys = file.keys()
            return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}
    except SafetensorError as error:
        raise ArtMancerError(
            "generation_failed",
            f"'{path.name}' is not a whole safetensors file ({error}). Download it again.",
        ) from error


def _peft_weights(path: Path, tensors: dict[str, Tensor], transformer: Any) -> dict[str, Tensor]:
    """Return a file's tensors under PEFT's names, with their alphas multiplied in."""
    weights = {}
    for layer, keys in _keys_by_layer(path, tensors, transformer).items():
        if not keys.keys() >= {"lora_A", "lora_B"}:
            raise ArtMancerError(
                "generation_failed",
                f"'{path.name}' is not a whole LoRA: of {layer} it has "
                f"{' and '.join(keys.values())}; expected lora_A and lora_B of each layer. "
                "Download it again.",
            )
        down = tensors[keys["lora_A"]]
        if "alpha" in keys:
            rank = len(down)
            down = down.float() * (tensors[keys["alpha"]].item() / rank)
        weights[f"{layer}.lora_A.weight"] = down
        weights[f"{layer}.lora_B.weight"] = tensors[keys["lora_B"]]
    return weights


def _keys_by_layer(path: Path, keys: Iterable[str], transformer: Any) -> dict[str, dict[str, str]]:
    """Map each layer of the transformer that a LoRA changes to its keys in the file, by PEFT's
    name: lora_A, lora_B, alpha.

    Raises
    ------
    ArtMancerError : generation_failed where a key fits no layer, or no key fits one
    """
    keys = list(keys)
    layers = {
        name.removesuffix(".base_layer")
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and ".lora_" not in name
    }
    # kohya's trainer writes the dots of a layer's name as underscores. No two layers have the same
    # name then.
    by_name = {layer.replace(".", "_"): layer for layer in layers}
    matches: dict[str, dict[str, str]] = {}
    misfits = []
    for key in keys:
        match = _KEY.fullmatch(key)
        layer = by_name.get(match[1].replace(".", "_")) if match else None
        if match and layer:
            matches.setdefault(layer, {})[_TENSORS[match[2]]] = key
        elif not key.startswith(_TEXT_ENCODER_PREFIXES):
            misfits.append(key)
    if misfits:
        raise ArtMancerError(
            "generation_failed",
            f"{len(misfits)} of {len(keys)} keys of '{path.name}' fit no layer of the base, "
            f"such as {', '.join(misfits[:3])}; {_EXPECTED}",
        )
    if not matches:
        others = f", only such as {', '.join(keys[:3])}" if keys else ""
        raise ArtMancerError(
            "generation_failed",
            f"'{path.name}' has no keys for the base's transformer{others}; {_EXPECTED}",
        )
    return matches


def _peft_settings(metadata: dict[str, str], weights: dict[str, Tensor]) -> dict[str, Any] | None:
    """Return the PEFT settings that diffusers wrote into a file's metadata; None: each layer's
    alpha is its rank.
    """
    entries = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    settings = {name.removeprefix("transformer."): value for name, value in entries.items()}
    strength = {name: settings[name] for name in _STRENGTH_SETTINGS if name in settings}
    if not strength:
        return None
    return {**strength, "target_modules": [key.rpartition(".lora_")[0] for key in weights]}
