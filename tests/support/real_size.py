"""A folder with a Qwen-Image-Edit base at the real size, whose weights are zeros and take no room
on the disk.
"""

import json
import math
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import _TYPES
from torch import Tensor, nn

from . import tiny_qwen

TEXT = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
"""Configuration of the real text encoder, Qwen2.5-VL with 7 billion weights."""

VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
"""Configuration of the real text encoder's vision part."""

FEW_LAYERS: tuple[dict[str, Any], dict[str, Any]] = (
    {"num_hidden_layers": 4},
    {"depth": 4, "fullatt_block_indexes": [3]},
)
"""Changes of TEXT and VISION for tests of the other models: an eighth of the layers, which are
alike and take most of the time.
"""

TRANSFORMER = {
    "num_layers": 60,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "joint_attention_dim": 3584,
    "axes_dims_rope": (16, 56, 56),
}
"""Configuration of the real transformer, for both releases."""

VAE = {"base_dim": 96, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2}
"""Configuration of the real VAE."""

SHARD_BYTES = 4 * 2**30
"""Size of a file of weights. A system refuses to map a file larger than its memory."""

RELEASES: dict[str, dict[str, Any]] = {"2509": {}, "2511": {"zero_cond_t": True}}
"""Changes of the transformer's configuration by release of Qwen-Image-Edit."""


def save_base(
    folder: Path,
    release: str = "2509",
    *,
    blocks: int = 60,
    few_layers: bool = False,
    eight_bits: bool = False,
) -> Path:
    """Write the base into a folder; return the folder.

    Parameters
    ----------
    release : a key of RELEASES
    blocks : blocks of the transformer
    few_layers : change the text encoder by FEW_LAYERS
    eight_bits : store the weights of the transformer's linear layers as float8, with a scale for
        each, as ComfyUI's scaled files do
    """
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel

    tiny_qwen.save_base(folder)
    text, vision = FEW_LAYERS if few_layers else ({}, {})
    with torch.device("meta"):
        models: dict[str, Any] = {
            "transformer": QwenImageTransformer2DModel(
                **{**TRANSFORMER, **RELEASES[release], "num_layers": blocks}
            ),
            "vae": AutoencoderKLQwenImage(**VAE),
            "text_encoder": tiny_qwen.text_encoder(
                tiny_qwen.tokenizer(), {**TEXT, **text}, {**VISION, **vision}
            ),
        }
    for name, model in models.items():
        for file in (folder / name).iterdir():
            file.unlink()
        model.config.save_pretrained(folder / name) if name == "text_encoder" else (
            model.save_config(folder / name)
        )
        tensors = {key: value.to(torch.bfloat16) for key, value in model.state_dict().items()}
        if eight_bits and name == "transformer":
            tensors |= _in_eight_bits(model)
        file = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        _save_shards(folder / name / file, tensors)
    return folder


def _save_shards(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write files of at most about SHARD_BYTES, and their index."""
    shards: list[dict[str, Tensor]] = [{}]
    for name, tensor in tensors.items():
        if sum(map(_bytes, shards[-1].values())) > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = tensor
    places = {}
    for number, shard in enumerate(shards, 1):
        file = path.with_name(f"{path.name}-{number:05}-of-{len(shards):05}.safetensors")
        save_zeros(file, shard)
        places.update(dict.fromkeys(shard, file.name))
    index = {"metadata": {"total_size": sum(map(_bytes, tensors.values()))}, "weight_map": places}
    path.with_name(f"{path.name}.safetensors.index.json").write_text(json.dumps(index))


def _bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.element_size()


def _in_eight_bits(model: nn.Module) -> dict[str, Tensor]:
    tensors = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.startswith("transformer_blocks."):
            tensors[f"{name}.weight"] = module.weight.to(torch.float8_e4m3fn)
            tensors[f"{name}.scale_weight"] = torch.empty((), device="meta")
    return tensors


def lora(transformer: nn.Module, rank: int = 16) -> dict[str, Tensor]:
    """Return tensors without data for a LoRA on the attention of every block."""
    tensors = {}
    for name, module in transformer.named_modules():
        if name.endswith(("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")):
            down = torch.empty(rank, module.in_features, dtype=torch.bfloat16, device="meta")
            up = torch.empty(module.out_features, rank, dtype=torch.bfloat16, device="meta")
            tensors[f"transformer.{name}.lora_A.weight"] = down
            tensors[f"transformer.{name}.lora_B.weight"] = up
    return tensors


def save_zeros(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file of zeros for tensors of these types and shapes: a sparse file."""
    dtypes = {dtype: name for name, dtype in _TYPES.items()}
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + _bytes(tensor)
        header[name] = {
            "dtype": dtypes[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    data = json.dumps(header).encode()
    data += b" " * (-len(data) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(data)) + data)
        file.truncate(8 + len(data) + end)
