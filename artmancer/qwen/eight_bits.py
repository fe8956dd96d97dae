"""Linear layers whose weights are stored in 8 bits.

Half the bytes of bfloat16 hold a weight with 4 significant bits instead of 8. A scale for each
layer brings its weights into the range that 8 bits hold best: without one, weights below 0.016 are
rounded to steps of 0.002. Users report a grid in the images of a LoRA for few steps then.

The layer casts its weight in its forward, and keeps nothing afterwards: no hook, so that a compiled
block is one graph.
"""

from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..progress import Progress

FLOAT8 = torch.float8_e4m3fn
"""The type that weights are rounded to: 4 exponent bits, 3 fraction bits, at most 448."""

SCALE_KEYS = ("scale_weight", "weight_scale")
"""Names of a layer's scale in a file, beside its "weight": the stored weight times the scale is the
weight.
"""

UNUSED_KEYS = ("scale_input", "input_scale", "scaled_fp8")
"""Names in such files that only matter where activations are in 8 bits too."""

_FILE_TYPES = ("F8_E4M3", "F8_E5M2")
"""Names of 8-bit floats in a safetensors header."""


Entries = dict[str, dict[str, Any]]
"""Entries of a file's header by the tensor's name, see safetensors_header.Header.tensors."""


class EightBitLinear(nn.Linear):
    """A linear layer with its weight in 8 bits.

    Parameters
    ----------
    weight : 8-bit float [out, in]
    scale : a number that the weight is multiplied by
    bias : [out], in the type to compute in; None: no bias
    dtype : type to compute in

    Attributes
    ----------
    scale : [] in the type to compute in
    """

    scale: Tensor

    def __init__(
        self, weight: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            self.bias = nn.Parameter(bias, requires_grad=False)
        self.register_buffer("scale", scale.to(dtype))

    def dequantized(self) -> Tensor:
        """Return the weight in the type to compute in, [out, in]."""
        return self.weight.to(self.scale.dtype) * self.scale

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.dequantized(), self.bias)


def weight_of(layer: nn.Linear) -> Tensor:
    """Return the weight that a linear layer computes with."""
    return layer.dequantized() if isinstance(layer, EightBitLinear) else layer.weight


def rounded(layer: nn.Linear, dtype: torch.dtype) -> EightBitLinear:
    """Return a linear layer with its weight rounded to 8 bits.

    Its scale is a power of two, which multiplies without rounding.
    """
    largest = layer.weight.detach().abs().amax().float()
    exponent = torch.ceil(torch.log2(largest / torch.finfo(FLOAT8).max))
    # A layer of zeros has no logarithm.
    scale = torch.where(largest > 0, torch.exp2(exponent), 1.0)
    weight = (layer.weight.detach() / scale.to(layer.weight.dtype)).to(FLOAT8)
    return EightBitLinear(weight, scale, layer.bias, dtype)


def round_blocks(transformer: Any, dtype: torch.dtype, progress: Progress) -> None:
    """Store the weights of all linear layers of a transformer's blocks in 8 bits.

    Parameters
    ----------
    dtype : type to compute in
    progress : called before each layer, as 40 GB are read and rounded; raising in it cancels
    """
    names = [
        name
        for name, module in transformer.named_modules()
        if type(module) is nn.Linear and name.startswith("transformer_blocks.")
    ]
    for done, name in enumerate(names):
        progress(done, len(names), "rounding the transformer to 8 bits")
        layer = transformer.get_submodule(name)
        transformer.set_submodule(name, rounded(layer, dtype))


def restore(transformer: Any, dtype: torch.dtype) -> None:
    """Turn layers in 8 bits into plain linear layers of this type."""
    for name, layer in [*transformer.named_modules()]:
        if isinstance(layer, EightBitLinear):
            plain = nn.Linear(layer.in_features, layer.out_features, False, "meta")
            weight = layer.weight.to(dtype) * layer.scale.to(dtype)
            plain.weight = nn.Parameter(weight, requires_grad=False)
            plain.bias = layer.bias
            transformer.set_submodule(name, plain)


def is_stored(tensors: Entries) -> bool:
    """Tell whether a file of weights has linear layers in 8 bits, by its header."""
    return any(entry["dtype"] in _FILE_TYPES for entry in tensors.values())


def extra_keys(tensors: Entries) -> list[str]:
    """Return the names in a file that belong to weights in 8 bits, and that the model does not
    have.
    """
    names = (*SCALE_KEYS, *UNUSED_KEYS)
    return [name for name in tensors if name.rpartition(".")[2] in names]


def bfloat16_bytes(tensors: Entries) -> int:
    """Return the bytes of a file's weights in bfloat16, by its header."""
    return sum(2 * prod(entry["shape"]) for entry in tensors.values())


def load(
    model_class: Any, folder: Path, files: Iterable[Path], dtype: torch.dtype
) -> tuple[Any, list[str], list[str]]:
    """Load a transformer whose files have linear layers in 8 bits, with their scales; diffusers
    casts such weights and drops the scales.

    The weights stay mapped from their files.

    Parameters
    ----------
    model_class : a class of diffusers
    folder : folder of the model's config.json
    files : the files of weights
    dtype : type to compute in

    Returns
    -------
    model, missing, unexpected : names of weights that the files lack, and that the model lacks
    """
    from accelerate import init_empty_weights
    from safetensors.torch import load_file

    with init_empty_weights():
        model = model_class.from_config(model_class.load_config(folder, local_files_only=True))
    weights: dict[str, Tensor] = {}
    for path in files:
        weights.update(load_file(path))
    stored = set()
    for name, module in [*model.named_modules()]:
        weight = weights.get(f"{name}.weight")
        if not isinstance(module, nn.Linear) or weight is None or weight.element_size() > 1:
            continue
        scales = [weights.pop(f"{name}.{key}") for key in SCALE_KEYS if f"{name}.{key}" in weights]
        scale = scales[0].float().reshape(()) if scales else torch.ones(())
        model.set_submodule(name, EightBitLinear(weight.to("meta"), scale, module.bias, dtype))
        weights[f"{name}.scale"] = scale
        stored.add(f"{name}.weight")
    weights = {
        name: weight if name in stored else weight.to(dtype)
        for name, weight in weights.items()
        if name.rpartition(".")[2] not in UNUSED_KEYS
    }
    missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    return model.eval(), missing, unexpected
