"""Files in every LoRA format for a tiny base, with the changes they make, computed by hand.

The formulas are those of the papers and trainers, in numpy and in float64. They use neither our
code nor PEFT. docs/lora_formats.py writes the table in docs/loras.md from these formats.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

RANK = 4

ATTENTION = "transformer_blocks.0.attn."
LAYERS = (
    f"{ATTENTION}to_q",
    f"{ATTENTION}to_out.0",
    "transformer_blocks.1.attn.add_v_proj",
    "transformer_blocks.1.img_mlp.net.0.proj",
    "transformer_blocks.0.txt_mlp.net.2",
    "transformer_blocks.0.img_mod.1",
    "norm_out.linear",
)
"""Layers that the files change: square, wider and narrower."""

NORMS = (f"{ATTENTION}norm_q", "transformer_blocks.1.attn.norm_added_k", "txt_norm")

FUSED = {
    "transformer_blocks.1.attn.to_qkv": ("to_q", "to_k", "to_v"),
    "transformer_blocks.0.attn.to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}
"""Fused layers, and the layers whose rows they stack."""

Array = np.ndarray[Any, np.dtype[np.float64]]
Weights = dict[str, Array]
"""Weights of the base by the parameter's name."""


@dataclass
class LoraFile:
    """A file, and what it does.

    Attributes
    ----------
    tensors, metadata : content of the file
    deltas : changes of the base at strength 1, by the parameter's name
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    deltas: Weights = field(default_factory=dict)

    def save(self, path: Path) -> Path:
        """Write the file; return its path."""
        save_file(self.tensors, path, self.metadata or None)
        return path

    def add(self, key: str, value: Array | float) -> None:
        self.tensors[key] = torch.tensor(np.asarray(value), dtype=torch.float32)


class Draw:
    """Random matrices that float32 holds exactly."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)

    def __call__(self, *shape: int) -> Array:
        values = self.random.normal(0, 0.3, shape).astype(np.float32)
        return np.asarray(values, dtype=np.float64)


Make = Callable[[Weights, Draw], LoraFile]


def lora(
    name: Callable[[str], str],
    down: str = "lora_A.weight",
    up: str = "lora_B.weight",
    alpha: float | None = None,
) -> Make:
    """Return a function that makes a LoRA: delta = alpha / rank * up @ down.

    Parameters
    ----------
    name : the layer's name in the file
    alpha : None: the file has none, and the scale is 1
    """

    def make(weights: Weights, draw: Draw) -> LoraFile:
        file = LoraFile()
        for layer in LAYERS:
            rows, columns = weights[f"{layer}.weight"].shape
            matrix_up, matrix_down = draw(rows, RANK), draw(RANK, columns)
            file.add(f"{name(layer)}.{down}", matrix_down)
            file.add(f"{name(layer)}.{up}", matrix_up)
            scale = 1.0
            if alpha is not None:
                file.add(f"{name(layer)}.alpha", alpha)
                scale = alpha / RANK
            file.deltas[f"{layer}.weight"] = scale * matrix_up @ matrix_down
        return file

    return make


def prefixed(prefix: str) -> Callable[[str], str]:
    return lambda layer: prefix + layer


def underscored(prefix: str) -> Callable[[str], str]:
    return lambda layer: prefix + layer.replace(".", "_")


def peft_settings(weights: Weights, draw: Draw) -> LoraFile:
    """Make a LoRA whose alphas are in the metadata, rank-stabilized (Kalajdzievski 2023)."""
    file = lora(prefixed("transformer."))(weights, draw)
    settings = {
        "r": RANK,
        "lora_alpha": 16,
        "alpha_pattern": {"to_out.0": 2},
        "rank_pattern": {},
        "use_rslora": True,
        "target_modules": list(LAYERS),
    }
    file.metadata["lora_adapter_metadata"] = json.dumps(
        {f"transformer.{key}": value for key, value in settings.items()}
    )
    for name in file.deltas:
        file.deltas[name] *= (2 if "to_out.0" in name else 16) / RANK**0.5
    return file


def lora_bias(weights: Weights, draw: Draw) -> LoraFile:
    """Make a LoRA with PEFT's biases, which the alpha scales too."""
    file = lora(prefixed("transformer."))(weights, draw)
    settings = {"transformer.r": RANK, "transformer.lora_alpha": 6, "transformer.lora_bias": True}
    file.metadata["lora_adapter_metadata"] = json.dumps(settings)
    for layer in LAYERS:
        bias = draw(len(weights[f"{layer}.bias"]))
        file.add(f"transformer.{layer}.lora_B.bias", bias)
        file.deltas[f"{layer}.weight"] *= 6 / RANK
        file.deltas[f"{layer}.bias"] = bias * 6 / RANK
    return file


def factor_of(size: int, factor: int) -> int:
    """Return the first factor of a size in a LoKr: `factor` where it divides the size, else 1."""
    return factor if size % factor == 0 else 1


def lokr(
    name: Callable[[str], str],
    decomposed: tuple[bool, bool],
    alpha: float | None,
    factor: int = 4,
    settings: dict[str, Any] | None = None,
) -> Make:
    """Return a function that makes a LoKr: delta = scale * kron(w1, w2).

    Parameters
    ----------
    decomposed : whether w1, and w2, is a product of rank RANK
    alpha : scale = alpha / RANK where a factor is decomposed, else 1 (LyCORIS)
    factor : size of w1
    settings : PEFT's settings in the metadata, which scale by their alpha / r
    """

    def make(weights: Weights, draw: Draw) -> LoraFile:
        file = LoraFile()
        for layer in LAYERS:
            rows, columns = weights[f"{layer}.weight"].shape
            first = factor_of(rows, factor), factor_of(columns, factor)
            second = rows // first[0], columns // first[1]
            factors = []
            for index, (size, is_product) in enumerate(
                zip((first, second), decomposed, strict=True), start=1
            ):
                key = f"{name(layer)}.lokr_w{index}"
                if is_product:
                    a, b = draw(size[0], RANK), draw(RANK, size[1])
                    file.add(f"{key}_a", a)
                    file.add(f"{key}_b", b)
                    factors.append(a @ b)
                else:
                    factors.append(draw(*size))
                    file.add(key, factors[-1])
            scale = 1.0
            if alpha is not None:
                file.add(f"{name(layer)}.alpha", alpha)
                scale = alpha / RANK if any(decomposed) else 1.0
            if settings:
                scale *= settings["alpha"] / settings["r"]
            file.deltas[f"{layer}.weight"] = scale * np.kron(*factors)
        if settings:
            file.metadata["lora_adapter_metadata"] = json.dumps(settings)
        return file

    return make


def loha(name: Callable[[str], str], alpha: float | None) -> Make:
    """Return a function that makes a LoHa: delta = alpha / rank * (a1 @ b1) * (a2 @ b2)."""

    def make(weights: Weights, draw: Draw) -> LoraFile:
        file = LoraFile()
        for layer in LAYERS:
            rows, columns = weights[f"{layer}.weight"].shape
            a1, b1 = draw(rows, RANK), draw(RANK, columns)
            a2, b2 = draw(rows, RANK), draw(RANK, columns)
            for key, value in (("w1_a", a1), ("w1_b", b1), ("w2_a", a2), ("w2_b", b2)):
                file.add(f"{name(layer)}.hada_{key}", value)
            scale = 1.0
            if alpha is not None:
                file.add(f"{name(layer)}.alpha", alpha)
                scale = alpha / RANK
            file.deltas[f"{layer}.weight"] = scale * (a1 @ b1) * (a2 @ b2)
        return file

    return make


def decomposed_weight(weight: Array, delta: Array, magnitude: Array) -> Array:
    """Return the change of DoRA: each row of W + delta is scaled to its magnitude."""
    changed = weight + delta
    norms = np.sqrt((changed**2).sum(axis=1, keepdims=True))
    return magnitude[:, None] * changed / norms - weight


def magnitudes(weight: Array, draw: Draw) -> Array:
    """Return magnitudes near the norms of the weight's rows, as training leaves them."""
    values = np.linalg.norm(weight, axis=1) * (1 + draw(len(weight)))
    return values.astype(np.float32).astype(np.float64)


def dora(make_lora: Make, name: Callable[[str], str], key: str, is_column: bool) -> Make:
    """Return a function that makes a DoRA from a LoRA (Liu et al. 2024).

    Parameters
    ----------
    key : the name of the magnitudes
    is_column : whether they have the shape [out, 1], not [out]
    """

    def make(weights: Weights, draw: Draw) -> LoraFile:
        file = make_lora(weights, draw)
        for layer in LAYERS:
            weight = weights[f"{layer}.weight"]
            magnitude = magnitudes(weight, draw)
            file.add(f"{name(layer)}.{key}", magnitude[:, None] if is_column else magnitude)
            delta = file.deltas[f"{layer}.weight"]
            file.deltas[f"{layer}.weight"] = decomposed_weight(weight, delta, magnitude)
        return file

    return make


def differences(weights: Weights, draw: Draw) -> LoraFile:
    """Make a file of whole differences of weights, biases and norms."""
    file = LoraFile()
    for layer in LAYERS:
        for key, parameter in (("diff", "weight"), ("diff_b", "bias")):
            delta = draw(*weights[f"{layer}.{parameter}"].shape)
            file.add(f"diffusion_model.{layer}.{key}", delta)
            file.deltas[f"{layer}.{parameter}"] = delta
    return add_norms(file, weights, draw, "diff")


def add_norms(file: LoraFile, weights: Weights, draw: Draw, key: str) -> LoraFile:
    for norm in NORMS:
        delta = draw(*weights[f"{norm}.weight"].shape)
        file.add(f"diffusion_model.{norm}.{key}", delta)
        file.deltas[f"{norm}.weight"] = delta
    return file


def extracted(weights: Weights, draw: Draw) -> LoraFile:
    """Make a LoRA as ComfyUI's LoraSave extracts it with bias_diff: differences of biases and
    norms beside the LoRAs.
    """
    file = lora(prefixed("diffusion_model."), "lora_down.weight", "lora_up.weight")(weights, draw)
    # One bias beside a LoRA, and one alone.
    for layer in (LAYERS[0], "proj_out"):
        file.deltas[f"{layer}.bias"] = draw(len(weights[f"{layer}.bias"]))
        file.add(f"diffusion_model.{layer}.diff_b", file.deltas[f"{layer}.bias"])
    return add_norms(file, weights, draw, "diff")


def lycoris_norms(weights: Weights, draw: Draw) -> LoraFile:
    """Make a LoHa with the differences of norms that LyCORIS writes."""
    return add_norms(
        loha(prefixed("diffusion_model."), 2.0)(weights, draw), weights, draw, "w_norm"
    )


def dora_with_bias(weights: Weights, draw: Draw) -> LoraFile:
    """Make a DoRA with differences of biases."""
    name = prefixed("transformer.")
    file = dora(lora(name), name, "dora_scale", True)(weights, draw)
    for layer in LAYERS:
        file.deltas[f"{layer}.bias"] = draw(len(weights[f"{layer}.bias"]))
        file.add(f"{name(layer)}.diff_b", file.deltas[f"{layer}.bias"])
    return file


def fused(kind: str) -> Make:
    """Return a function that makes a file for the fused layers to_qkv and to_added_qkv: the rows of
    its change are those of q, k and v, one after the other.
    """

    def make(weights: Weights, draw: Draw) -> LoraFile:
        file = LoraFile()
        for layer, parts in FUSED.items():
            attention = layer.rpartition(".")[0]
            names = [f"{attention}.{part}.weight" for part in parts]
            weight = np.concatenate([weights[name] for name in names])
            rows, columns = weight.shape
            key = f"diffusion_model.{layer}"
            if kind == "LoKr":
                first, second = draw(6, 4), draw(rows // 6, columns // 4)
                file.add(f"{key}.lokr_w1", first)
                file.add(f"{key}.lokr_w2", second)
                delta = np.kron(first, second)
            elif kind == "LoHa":
                pairs = [(draw(rows, RANK), draw(RANK, columns)) for _ in range(2)]
                for index, (a, b) in enumerate(pairs, start=1):
                    file.add(f"{key}.hada_w{index}_a", a)
                    file.add(f"{key}.hada_w{index}_b", b)
                delta = (pairs[0][0] @ pairs[0][1]) * (pairs[1][0] @ pairs[1][1])
            else:
                up, down = draw(rows, RANK), draw(RANK, columns)
                file.add(f"{key}.lora_up.weight", up)
                file.add(f"{key}.lora_down.weight", down)
                file.add(f"{key}.alpha", 3.0)
                delta = 3.0 / RANK * up @ down
            if kind == "DoRA":
                magnitude = magnitudes(weight, draw)
                file.add(f"{key}.dora_scale", magnitude[:, None])
                delta = decomposed_weight(weight, delta, magnitude)
            file.deltas |= dict(zip(names, np.split(delta, 3), strict=True))
        return file

    return make


def with_text_encoder(weights: Weights, draw: Draw) -> LoraFile:
    """Make a LoRA that has tensors for the text encoder too."""
    file = lora(underscored("lora_unet_"), "lora_down.weight", "lora_up.weight", 2.0)(weights, draw)
    for side in ("down", "up"):
        file.add(f"lora_te_model_layers_0_mlp_up_proj.lora_{side}.weight", draw(4, 4))
    return file


_PLAIN = prefixed("transformer.")
_COMFY = prefixed("diffusion_model.")
_LYCORIS = underscored("lycoris_")
_PEFT = prefixed("base_model.model.")

FORMATS: dict[str, tuple[str, Make]] = {
    "LoRA, diffusers": ("transformer.LAYER.lora_A.weight", lora(_PLAIN)),
    "LoRA, diffusers, alpha in the metadata, rank-stabilized": (
        "transformer.LAYER.lora_A.weight",
        peft_settings,
    ),
    "LoRA, PEFT with biases": ("transformer.LAYER.lora_B.bias", lora_bias),
    "LoRA, ai-toolkit": ("diffusion_model.LAYER.lora_A.weight", lora(_COMFY)),
    "LoRA, no prefix": ("LAYER.lora_A.weight", lora(prefixed(""))),
    "LoRA, PEFT with the adapter's name": (
        "base_model.model.LAYER.lora_A.NAME.weight",
        lora(_PEFT, "lora_A.sunset.weight", "lora_B.sunset.weight"),
    ),
    "LoRA, DiffSynth": (
        "LAYER.lora_A.default.weight",
        lora(prefixed(""), "lora_A.default.weight", "lora_B.default.weight"),
    ),
    "LoRA, DiffSynth's pipeline": ("pipe.dit.LAYER.lora_A.weight", lora(prefixed("pipe.dit."))),
    "LoRA, dit.": ("dit.LAYER.lora_A.weight", lora(prefixed("dit."))),
    "LoRA, unet.": ("unet.LAYER.lora_A.weight", lora(prefixed("unet."))),
    "LoRA, model.diffusion_model.": (
        "model.diffusion_model.LAYER.lora_A.weight",
        lora(prefixed("model.diffusion_model.")),
    ),
    "LoRA, Lightning": (
        "LAYER.lora_down.weight, LAYER.alpha",
        lora(prefixed(""), "lora_down.weight", "lora_up.weight", 8.0),
    ),
    "LoRA, kohya and musubi-tuner": (
        "lora_unet_LAYER.lora_down.weight, .alpha",
        lora(underscored("lora_unet_"), "lora_down.weight", "lora_up.weight", 1.0),
    ),
    "LoRA, OneTrainer": (
        "lora_transformer_LAYER.lora_down.weight, .alpha",
        lora(underscored("lora_transformer_"), "lora_down.weight", "lora_up.weight", 2.0),
    ),
    "LoRA, LyCORIS": (
        "lycoris_LAYER.lora_down.weight, .alpha",
        lora(_LYCORIS, "lora_down.weight", "lora_up.weight", 3.0),
    ),
    "LoRA, older diffusers": (
        "transformer.LAYER.lora.down.weight",
        lora(_PLAIN, "lora.down.weight", "lora.up.weight"),
    ),
    "LoRA with tensors for the text encoder": (
        "lora_te_*: skipped, with a note in the report",
        with_text_encoder,
    ),
    "LoRA, extracted by ComfyUI": (
        "diffusion_model.LAYER.lora_up.weight, .diff, .diff_b",
        extracted,
    ),
    "DoRA, kohya and LyCORIS": (
        "lycoris_LAYER.dora_scale",
        dora(
            lora(_LYCORIS, "lora_down.weight", "lora_up.weight", 2.0), _LYCORIS, "dora_scale", True
        ),
    ),
    "DoRA, PEFT": (
        "base_model.model.LAYER.lora_magnitude_vector.weight",
        dora(lora(_PEFT), _PEFT, "lora_magnitude_vector.weight", False),
    ),
    "DoRA, diffusers": (
        "transformer.LAYER.lora_magnitude_vector",
        dora(lora(_PLAIN), _PLAIN, "lora_magnitude_vector", False),
    ),
    "DoRA with biases": ("transformer.LAYER.dora_scale, .diff_b", dora_with_bias),
    "LoKr, both factors whole": (
        "diffusion_model.LAYER.lokr_w1, .lokr_w2",
        lokr(_COMFY, (False, False), 1e10),
    ),
    "LoKr, second factor decomposed": (
        "lycoris_LAYER.lokr_w1, .lokr_w2_a",
        lokr(_LYCORIS, (False, True), 2.0, factor=2),
    ),
    "LoKr, both factors decomposed": (
        "lycoris_LAYER.lokr_w1_a, .lokr_w2_a",
        lokr(_LYCORIS, (True, True), 1.0, factor=8),
    ),
    "LoKr, first factor decomposed": (
        "LAYER.lokr_w1_a, .lokr_w2",
        lokr(prefixed(""), (True, False), 3.0),
    ),
    "LoKr, PEFT, alpha in the metadata": (
        "LAYER.lokr_w1, .lokr_w2_a",
        lokr(prefixed(""), (False, True), None, settings={"r": RANK, "alpha": 10}),
    ),
    "LoHa": ("lycoris_LAYER.hada_w1_a", loha(_LYCORIS, 2.0)),
    "LoHa, PEFT": ("base_model.model.LAYER.hada_w1_a", loha(_PEFT, None)),
    "LoHa with norms": ("diffusion_model.LAYER.hada_w1_a, .w_norm", lycoris_norms),
    "differences": ("diffusion_model.LAYER.diff, .diff_b", differences),
    "fused to_qkv, to_added_qkv: LoRA": ("*.to_qkv.lora_up.weight", fused("LoRA")),
    "fused to_qkv, to_added_qkv: DoRA": ("*.to_qkv.dora_scale", fused("DoRA")),
    "fused to_qkv, to_added_qkv: LoHa": ("*.to_qkv.hada_w1_a", fused("LoHa")),
    "fused to_qkv, to_added_qkv: LoKr": (
        "*.to_qkv.lokr_w1, with a number of rows that 3 divides",
        fused("LoKr"),
    ),
}
"""Formats that load exactly: how their keys look, and a function that makes a file."""

_LAYER = LAYERS[0]


def only(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Return tensors of one layer, in ai-toolkit's names; an underscore stands for a dot."""
    return {
        f"diffusion_model.{_LAYER}.{name.replace('__', '.')}": torch.linspace(
            0.1, 0.2, math.prod(shape)
        ).reshape(shape)
        for name, shape in shapes.items()
    }


def _half(layer: str) -> dict[str, Tensor]:
    return {f"{layer}.lora_A.weight": torch.ones(RANK, 64)}


def _pair(layer: str, width: int = 64) -> dict[str, Tensor]:
    return {
        f"{layer}.lora_A.weight": torch.ones(RANK, width),
        f"{layer}.lora_B.weight": torch.ones(width, RANK),
    }


REFUSED: dict[str, dict[str, Tensor]] = {
    "LoKr with DoRA": only(lokr_w1=(4, 4), lokr_w2=(16, 16), dora_scale=(64, 1)),
    "LoHa with DoRA": only(
        hada_w1_a=(64, 4),
        hada_w1_b=(4, 64),
        hada_w2_a=(64, 4),
        hada_w2_b=(4, 64),
        dora_scale=(64, 1),
    ),
    "DoRA of the inputs": only(
        lora_down__weight=(4, 64), lora_up__weight=(64, 4), dora_scale=(1, 64)
    ),
    "OFT, BOFT": only(oft_blocks=(4, 16, 16)),
    "GLoRA": only(a1__weight=(4, 64), a2__weight=(64, 4), b1__weight=(4, 64), b2__weight=(64, 4)),
    "weights that replace": only(set_weight=(64, 64)),
    "a format that is not known": only(new_w1=(4, 4)),
    "OFT, PEFT": only(oft_R__weight=(4, 120)),
    "(IA)3": only(ia3_l=(64, 1)),
    "fused LoKr that 3 does not divide": {
        "transformer_blocks.0.attn.to_qkv.lokr_w1": torch.ones(8, 8),
        "transformer_blocks.0.attn.to_qkv.lokr_w2": torch.ones(24, 8),
    },
    "a whole model": {f"{_LAYER}.weight": torch.ones(64, 64), f"{_LAYER}.bias": torch.ones(64)},
    "text encoder alone": {
        key.replace("transformer.", ""): value
        for key, value in _pair("text_encoder.layers.0.mlp").items()
    },
    "not whole": _half(_LAYER),
    "FLUX": {**_pair(_LAYER), **_pair("single_transformer_blocks.0.attn.to_q")},
    "Wan": _pair("diffusion_model.blocks.0.self_attn.q"),
    "another width": _pair(_LAYER, 96),
}
"""Files that are refused, by their format."""

COMFYUI_TAKES = (
    "LoKr with DoRA",
    "LoHa with DoRA",
    "DoRA of the inputs",
    "OFT, BOFT",
    "GLoRA",
    "weights that replace",
)
"""Refused formats that ComfyUI's own LoraLoader takes."""


def table(messages: dict[str, str]) -> str:
    """Return the tables of formats in Markdown.

    Parameters
    ----------
    messages : the message that refuses each format of REFUSED
    """
    lines = ["| loads exactly | keys |", "| --- | --- |"]
    lines += [f"| {name} | `{keys}` |" for name, (keys, _) in FORMATS.items()]
    lines += ["", "| refused | message |", "| --- | --- |"]
    lines += [f"| {name} | {messages[name]} |" for name in REFUSED]
    return "\n".join(lines) + "\n"
