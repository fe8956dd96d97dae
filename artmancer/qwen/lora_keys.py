"""The keys of LoRA files: which layer and which tensor of it a key names. Imports no torch."""

import re

from .checkpoints import TEXT_ENCODER_PREFIXES

PREFIX = (
    r"(?:(?:base_model\.model|model\.diffusion_model|diffusion_model|transformer|unet|dit|pipe"
    r"|model)\.)*(?:lora_unet_|lora_transformer_|lycoris_)?"
)
"""Beginnings of keys that trainers put before a layer's name."""

_ADAPTER_NAME = r"(?:\.(?!bias)[^.]+)?"
"""PEFT's name of the adapter, as in lora_A.default.weight; also the end ".weight"."""

_TENSORS = {
    "lora_A": rf"(?:lora_A|lora_down|lora\.down|lora_linear_layer\.down){_ADAPTER_NAME}",
    "lora_B": rf"(?:lora_B|lora_up|lora\.up|lora_linear_layer\.up){_ADAPTER_NAME}",
    "lora_bias": r"lora_B(?:\.[^.]+)?\.bias",
    "alpha": r"alpha",
    "magnitude": rf"(?:lora_magnitude_vector{_ADAPTER_NAME}|dora_scale)",
    "factor": r"lokr_w[12](?:_[ab])?|hada_w[12]_[ab]",
    "diff": r"diff|w_norm",
    "diff_b": r"diff_b|b_norm",
}
"""Patterns of the tensors' names in files. "factor": one of PEFT's names for LoKr and LoHa."""

KEY = re.compile(
    rf"{PREFIX}(?P<layer>.+?)\.(?:"
    + "|".join(rf"(?P<{name}>{pattern})" for name, pattern in _TENSORS.items())
    + r")(?:\.weight)?"
)


def changes_layer(key: str) -> bool:
    """Tell whether a key names a tensor that changes a layer of the transformer, in a format that
    is loaded.
    """
    match = None if key.startswith(TEXT_ENCODER_PREFIXES) else KEY.fullmatch(key)
    return match is not None and match.lastgroup != "alpha"
