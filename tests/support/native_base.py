"""A tiny Qwen-Image-Edit base that both diffusers and ComfyUI read, with the same weights."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from artmancer.folders import comfyui_folder

from . import published_qwen, tiny_qwen
from .comfyui import ComfyUI

ATTENTION_GAIN = 2.0
"""Factor on the norms of queries and keys: the picture then depends on single tokens of the
prompt, and on their positions.
"""


def save(comfyui: ComfyUI, name: str, folder: Path, **transformer: Any) -> Path:
    """Write a base of the published form, with random weights and the published schedule, into a
    ComfyUI's folder of bases; return its folder.

    Parameters
    ----------
    folder : an empty folder for files on the way
    transformer : changes of the transformer's configuration
    """
    base = comfyui.base / "models" / "diffusers" / name
    tiny_qwen.save_base(base, joint_attention_dim=published_qwen.WIDTH, **transformer)
    published_qwen.save(base, comfyui_folder() / "comfy" / "text_encoders" / "qwen25_tokenizer")
    schedule = base / "scheduler" / "scheduler_config.json"
    schedule.write_text(json.dumps({**json.loads(schedule.read_text()), "max_image_seq_len": 8192}))
    sharpen_attention(base / "transformer")
    save_vae(comfyui, base, folder)
    return base


def call(
    comfyui: ComfyUI, function: str, result: Path, request: dict[str, Any]
) -> dict[str, Tensor]:
    """Call a function of support/custom_nodes/native_reference.py; return its tensors."""
    request = {"function": function, "result": str(result), **request}
    graph = {"1": {"class_type": "NativeReference", "inputs": {"request": json.dumps(request)}}}
    run = comfyui.run(graph)
    assert run.outcome == "execution_success", run.events[-1]
    tensors: dict[str, Tensor] = load_file(result)
    return tensors


def save_vae(comfyui: ComfyUI, base: Path, folder: Path) -> None:
    """Put a VAE with random weights into a base, in diffusers' form and in ComfyUI's."""
    from diffusers import AutoencoderKLQwenImage
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    inputs = {"pixels": torch.zeros(1, 3, 1, 16, 16), "latents": torch.zeros(1, 16, 1, 2, 2)}
    save_file(inputs, folder / "inputs.safetensors")
    request = {"inputs": str(folder / "inputs.safetensors")}
    tensors = call(comfyui, "encode_and_decode", folder / "vae.safetensors", request)
    weights = {
        name.removeprefix("weight "): values
        for name, values in tensors.items()
        if name.startswith("weight ")
    }
    save_file(weights, base / "wan.safetensors")
    width = weights["encoder.conv1.weight"].shape[0]
    vae = AutoencoderKLQwenImage(base_dim=width, dim_mult=[1, 2, 4, 4], num_res_blocks=2)
    vae.load_state_dict(convert_wan_vae_to_diffusers(weights), strict=True)
    vae.save_pretrained(base / "vae")


def sharpen_attention(transformer: Path) -> None:
    """Multiply the norms of queries and keys in a transformer's folder by ATTENTION_GAIN."""
    (path,) = transformer.glob("*.safetensors")
    weights = load_file(path)
    for name in weights:
        if ".norm_" in name:
            weights[name] = weights[name] * ATTENTION_GAIN
    save_file(weights, path, {"format": "pt"})
