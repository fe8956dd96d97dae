"""LoRA files: which layers of the base a file changes, and by what.

Trainers write the same changes under many names and in several decompositions. Here all of them
become PEFT's names, with every alpha multiplied in. docs/loras.md lists the formats.
"""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ArtMancerError
from .checkpoints import TEXT_ENCODER_PREFIXES, missing
from .lora_keys import KEY, PREFIX

Change = dict[str, Tensor]
"""A change of one layer, W + delta. Its tensors by name:

lora_A, lora_B : delta = lora_B @ lora_A (LoRA)
magnitude : with lora_A and lora_B, the norm that each row of W + delta is scaled to (DoRA) [out]
lokr_w1, lokr_w2 : delta = kron(w1, w2); each may be a product instead, as in w1 = w1_a @ w1_b
    (LoKr)
hada_w1_a, hada_w1_b, hada_w2_a, hada_w2_b : delta = (w1_a @ w1_b) * (w2_a @ w2_b) (LoHa)
bias : added to the layer's bias [out]
weight : added to the weight of a norm
"""

_COMFYUI = "Load it with ComfyUI's own LoraLoader, in template 9 (ComfyUI's KSampler)."

_NOBODY = "ComfyUI does not load it either: train a LoRA, LoKr, LoHa or DoRA instead."

_UNSUPPORTED = {
    r"oft_blocks": ("an OFT or a BOFT", _COMFYUI),
    r"(a1|a2|b1|b2)\.weight": ("a GLoRA", _COMFYUI),
    r"set_weight": ("a file of weights that replace the base's", _COMFYUI),
    r"oft_R(\..+)?|oft_diag": ("an OFT", _NOBODY),
    r"ia3_l(\..+)?|on_input": ("an (IA)3", _NOBODY),
    r"weight|bias": (
        "a whole model and not a LoRA",
        "Put it into models/diffusion_models, and load it in template 9 (ComfyUI's KSampler).",
    ),
    r".*": (
        "a LoRA in a format that ArtMancer does not know",
        "Try ComfyUI's own LoraLoader, in template 9 (ComfyUI's KSampler).",
    ),
}
"""Formats that are not supported, by a pattern of a tensor's name: what the file is, and what to do
with it. The first that matches a tensor of the file counts.
"""

_FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}
"""Layers that some trainers fuse, and the layers of the base, whose rows they stack."""

_ROWS = ("lora_B", "lora_bias", "magnitude", "diff", "diff_b", "hada_w1_a", "hada_w2_a")
"""Tensors with a row for each output of a layer. Of a LoKr, see `_split`, w1 has some of them."""

_DECOMPOSITIONS = (
    {"lora_A", "lora_B"},
    {"lora_A", "lora_B", "magnitude"},
    *(
        {*first, *second}
        for first in ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
        for second in ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"})
    ),
    {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},
    {"diff"},
    set(),
)
"""Tensors that make one change of a layer's weight; with its bias, or the bias alone."""

_STRENGTH_SETTINGS = ("r", "lora_alpha", "alpha", "rank_pattern", "alpha_pattern", "use_rslora")
"""The PEFT settings in a file's metadata that scale the change."""

_BIASES = ("diff_b", "lora_bias")
"""Tensors that are added to a layer's bias."""

_CHOOSE = "Choose a LoRA for Qwen-Image-Edit."


def read(path: Path, transformer: Any) -> dict[str, Change]:
    """Return the changes that a file makes, by the name of the layer.

    Raises
    ------
    ArtMancerError : checkpoint_missing; generation_failed where the file is damaged, is for another
        model, or has a format that cannot be loaded exactly
    """
    tensors, metadata = _load(path)
    modules = _modules(transformer)
    settings = _settings(path, metadata)
    changes: dict[str, Change] = {}
    for name, keys in _keys_by_layer(path, tensors, modules).items():
        values = {tensor: tensors[key] for tensor, key in keys.items()}
        _check_decomposition(path, name, values, keys)
        for layer, part in _split(path, name, values, keys).items():
            module = modules[layer]
            _check_shapes(path, layer, part, keys, module)
            changes[layer] = _change(part, _scale(layer, part, settings), module)
    return changes


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
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


def _modules(transformer: Any) -> dict[str, Any]:
    """Return the transformer's linear layers and norms by their names without adapters."""
    return {
        name.replace(".base_layer", ""): module
        for name, module in transformer.named_modules()
        if ".lora_" not in name and (isinstance(module, torch.nn.Linear) or _is_norm(module))
    }


def _is_norm(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 1


def _keys_by_layer(
    path: Path, keys: Iterable[str], modules: dict[str, Any]
) -> dict[str, dict[str, str]]:
    """Map each layer that a file changes to the file's keys, by the tensor's name. A fused layer
    has its fused name.

    Raises
    ------
    ArtMancerError : generation_failed where a key fits no layer or has an unknown name, or no key
        fits a layer
    """
    keys = list(keys)
    names = _layer_names(modules)
    matches: dict[str, dict[str, str]] = {}
    misfits = []
    for key in keys:
        match = KEY.fullmatch(key)
        layer = names.get(match["layer"].replace(".", "_")) if match else None
        if match and layer:
            tensor = match.lastgroup or ""
            matches.setdefault(layer, {})[match["factor"] or tensor] = key
        elif not key.startswith(TEXT_ENCODER_PREFIXES):
            misfits.append(key)
    if misfits:
        raise _misfit_error(path, keys, misfits, names)
    if not matches:
        raise _empty_error(path, keys)
    return matches


def _layer_names(modules: dict[str, Any]) -> dict[str, str]:
    """Map the names in files, with underscores for dots, to the names of layers, fused layers
    included. No two layers have the same name then.
    """
    layers = list(modules)
    for fused, parts in _FUSED.items():
        layers += [
            layer.removesuffix(parts[0]) + fused
            for layer in modules
            if layer.endswith(f".{parts[0]}")
        ]
    return {layer.replace(".", "_"): layer for layer in layers}


def _misfit_error(
    path: Path, keys: list[str], misfits: list[str], names: dict[str, str]
) -> ArtMancerError:
    """Make the error for keys that are not understood: of another model, or in another format."""
    endings = [_ending(key, names) for key in misfits]
    if None in endings:
        strange = [key for key, ending in zip(misfits, endings, strict=True) if ending is None]
        return ArtMancerError(
            "generation_failed",
            f"'{path.name}' is for another model: {len(strange)} of its {len(keys)} keys fit no "
            f"layer of the base, such as {', '.join(strange[:3])}; expected keys such as "
            f"transformer_blocks.0.attn.to_q.lora_A.weight. {_CHOOSE}",
        )
    key, kind, advice = next(
        (key, *text)
        for pattern, text in _UNSUPPORTED.items()
        for key, ending in zip(misfits, endings, strict=True)
        if re.fullmatch(pattern, ending or "")
    )
    return _unsupported(path, kind, key, advice)


def _ending(key: str, names: dict[str, str]) -> str | None:
    """Return what follows the layer's name in a key; None: the key names no layer of the base."""
    name = re.sub(rf"^{PREFIX}", "", key)
    dots = [match.start() for match in re.finditer(r"\.", name)]
    for dot in reversed(dots):
        if name[:dot].replace(".", "_") in names:
            return name[dot + 1 :]
    return None


def _unsupported(path: Path, kind: str, key: str, advice: str) -> ArtMancerError:
    """Make the error for a file that is for the base, but in a format that cannot be loaded.

    Parameters
    ----------
    kind : what the file is
    key : a key that shows it
    """
    return ArtMancerError(
        "generation_failed",
        f"'{path.name}' is {kind}, by its key {key}, and cannot be loaded here. {advice}",
    )


def _empty_error(path: Path, keys: list[str]) -> ArtMancerError:
    if keys:
        return ArtMancerError(
            "generation_failed",
            f"'{path.name}' changes only the text encoder, with keys such as "
            f"{', '.join(keys[:3])}; expected keys for the transformer. No variant changes the "
            "text encoder: choose a LoRA that was trained on the transformer.",
        )
    return ArtMancerError(
        "generation_failed", f"'{path.name}' has no tensors; expected a LoRA. Download it again."
    )


def _check_decomposition(
    path: Path, layer: str, values: dict[str, Tensor], keys: dict[str, str]
) -> None:
    """Refuse a layer's tensors that are no whole change, or two changes at once."""
    tensors = values.keys() - {"alpha", *_BIASES}
    if tensors in _DECOMPOSITIONS and values.keys() != {"alpha"}:
        return
    if "magnitude" in tensors and tensors - {"magnitude"} in _DECOMPOSITIONS[2:]:
        kind = "a LoHa" if "hada_w1_a" in tensors else "a LoKr"
        raise _unsupported(path, f"{kind} with DoRA's magnitudes", keys["magnitude"], _COMFYUI)
    raise ArtMancerError(
        "generation_failed",
        f"'{path.name}' is not whole: of {layer} it has {' and '.join(keys.values())}; expected "
        "all tensors of one LoRA, LoKr, LoHa, DoRA or difference. Download it again.",
    )


def _split(
    path: Path, name: str, values: dict[str, Tensor], keys: dict[str, str]
) -> dict[str, dict[str, Tensor]]:
    """Split the tensors of a fused layer into those of its layers; another layer stays as it is."""
    prefix, _, last = name.rpartition(".")
    parts = _FUSED.get(last)
    if parts is None:
        return {name: values}
    stacked = {tensor for tensor in values if tensor in _ROWS}
    # The rows of a Kronecker product are stacked as the rows of its first factor.
    stacked |= values.keys() & {"lokr_w1", "lokr_w1_a"}
    for tensor in stacked:
        if len(values[tensor]) % len(parts):
            raise _unsupported(
                path,
                f"a file for the fused layer {last} with {len(values[tensor])} rows, which cannot "
                f"be divided among {', '.join(parts)}",
                keys[tensor],
                "ComfyUI does not load it either: train those layers apart.",
            )
    chunks = {tensor: values[tensor].chunk(len(parts)) for tensor in stacked}
    return {
        f"{prefix}.{part}": values | {tensor: chunks[tensor][index] for tensor in stacked}
        for index, part in enumerate(parts)
    }


def _check_shapes(
    path: Path, layer: str, values: dict[str, Tensor], keys: dict[str, str], module: Any
) -> None:
    """Refuse tensors that do not fit the layer."""
    weight = tuple(module.weight.shape)
    if "magnitude" in values and tuple(values["magnitude"].shape) == (1, weight[-1]):
        raise _unsupported(
            path, "a DoRA with a magnitude for each input", keys["magnitude"], _COMFYUI
        )
    shapes = [(_delta_shape(values), weight)] if values.keys() - {*_BIASES, "alpha"} else []
    for name in (*_BIASES, "magnitude"):
        if name in values:
            is_linear = isinstance(module, torch.nn.Linear)
            shapes.append(((values[name].numel(),), weight[:1] if is_linear else ()))
    for shape, expected in shapes:
        if shape != expected:
            raise ArtMancerError(
                "generation_failed",
                f"'{path.name}' is a LoRA of another model: its change of {layer} has the shape "
                f"{list(shape)}; expected {list(expected)}. {_CHOOSE}",
            )


def _delta_shape(values: dict[str, Tensor]) -> tuple[int, ...]:
    """Return the shape of the change of a layer's weight; (): the tensors do not fit together."""
    try:
        # On the meta device products have shapes and cost nothing.
        return tuple(_delta({name: tensor.to("meta") for name, tensor in values.items()}).shape)
    except RuntimeError:
        return ()


def _delta(values: dict[str, Tensor]) -> Tensor:
    """Return the change of a layer's weight, without its alpha."""
    if "diff" in values:
        return values["diff"]
    if "lora_A" in values:
        return values["lora_B"] @ values["lora_A"]
    kind = "lokr_w" if any(name.startswith("lokr_") for name in values) else "hada_w"
    first, second = (
        values[f"{kind}{index}"]
        if f"{kind}{index}" in values
        else values[f"{kind}{index}_a"] @ values[f"{kind}{index}_b"]
        for index in (1, 2)
    )
    return torch.kron(first, second) if kind == "lokr_w" else first * second


def _settings(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """Return the PEFT settings that scale the change: those that diffusers wrote into the file's
    metadata, or that PEFT wrote into the file beside its own.
    """
    entries = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    config = path.with_name("adapter_config.json")
    if path.name == "adapter_model.safetensors" and config.is_file():
        entries = json.loads(config.read_text("utf-8"))
    settings = {name.removeprefix("transformer."): value for name, value in entries.items()}
    return {name: settings[name] for name in _STRENGTH_SETTINGS if name in settings}


def _scale(layer: str, values: dict[str, Tensor], settings: dict[str, Any]) -> float:
    """Return the factor of a layer's change: alpha / rank, by the file's tensors or by PEFT's
    settings.
    """
    from peft.utils.other import get_pattern_key

    # A LoKr of two whole matrices has no rank, and no scale in LyCORIS.
    ranked = [
        values[name] for name in ("lora_A", "hada_w1_b", "lokr_w2_b", "lokr_w1_b") if name in values
    ]
    scale = values["alpha"].item() / len(ranked[0]) if ranked and "alpha" in values else 1.0
    if not settings:
        return scale

    def setting(pattern: str, default: Any) -> Any:
        patterns = settings.get(pattern) or {}
        return patterns.get(get_pattern_key(list(patterns), layer), default)

    rank = setting("rank_pattern", settings.get("r", 8))
    alpha = setting("alpha_pattern", settings.get("lora_alpha", settings.get("alpha", 8)))
    return float(scale * alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank))


def _change(values: dict[str, Tensor], scale: float, module: Any) -> Change:
    """Return a layer's change under the names of `Change`, with its scale multiplied in."""
    change = {name: values[name].float() for name in values.keys() - {"alpha", "diff", *_BIASES}}
    scaled = ("lora_A", "lokr_w1", "lokr_w1_a", "hada_w1_a")
    for name in scaled:
        if name in change:
            change[name] = change[name] * scale
    if "magnitude" in change:
        change["magnitude"] = change["magnitude"].flatten()
    if "diff" in values and isinstance(module, torch.nn.Linear):
        # A Kronecker product with 1 is the other factor.
        change["lokr_w1"] = torch.ones(1, 1)
        change["lokr_w2"] = values["diff"].float()
    elif "diff" in values:
        change["weight"] = values["diff"].float()
    biases = {"diff_b": 1.0, "lora_bias": scale}
    if found := [
        values[name].float() * factor for name, factor in biases.items() if name in values
    ]:
        change["bias"] = torch.stack(found).sum(0).flatten()
    return change
