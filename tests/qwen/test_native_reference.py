"""The Qwen editor's parts compared with ComfyUI's own implementation of Qwen-Image, on the same
weights, in a real ComfyUI.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support import published_qwen, tiny_qwen
from support.comfyui import ComfyUI
from support.paths import EXAMPLES
from torch import Tensor

from artmancer.folders import comfyui_folder
from artmancer.qwen import pipeline, prompt, sampler

pytestmark = pytest.mark.comfyui

CPU = torch.device("cpu")

TOLERANCE = 1e-4
"""Largest difference in 32 bits; all compared tensors have a deviation of about 1."""

FIXED_SIZES = [(672, 224), (224, 672)]
"""Sizes (width, height) that neither the sampler nor the vision part's preparation changes: of
384 * 384 pixels in multiples of 32, and multiples of 28. ComfyUI scales with another filter.
"""


def run(comfyui: ComfyUI, function: str, results: Path, **request: Any) -> dict[str, Tensor]:
    """Call a function of support/custom_nodes/native_reference.py; return its tensors."""
    result = results / "result.safetensors"
    request = {"function": function, "result": str(result), **request}
    graph = {"1": {"class_type": "NativeReference", "inputs": {"request": json.dumps(request)}}}
    outcome = comfyui.run(graph)
    assert outcome.outcome == "execution_success", outcome.events[-1]
    tensors: dict[str, Tensor] = load_file(result)
    return tensors


@pytest.mark.parametrize("count", [1, 3])
def test_the_prompt_is_encoded_as_by_comfyuis_text_encoder(
    comfyui: ComfyUI, tiny_base: Path, tmp_path: Path, count: int
) -> None:
    base = tiny_qwen.copy_base(tiny_base, tmp_path / "base")
    real_tokenizer = comfyui_folder() / "comfy" / "text_encoders" / "qwen25_tokenizer"
    published_qwen.save(base, real_tokenizer)
    loaded = pipeline.load(base)
    images = []
    paths = []
    for index in range(count):
        size = FIXED_SIZES[index % 2]
        name = ("astronaut.png", "coffee.png", "chelsea.png")[index]
        images.append(Image.open(EXAMPLES / name).convert("RGB").resize(size))
        paths.append(str(tmp_path / name))
        images[-1].save(paths[-1])
        height_width = sampler.size_for_area(size[1], size[0], sampler.VISION_PIXELS)
        assert height_width == (size[1], size[0])
    text = "Entferne die Lampe, and keep the 3 chairs (naïve) ..."
    positions: list[Tensor] = []
    rotary = loaded.pipeline.text_encoder.model.language_model.rotary_emb
    rotary.register_forward_pre_hook(
        lambda module, args, kwargs: positions.append(kwargs.get("position_ids", args[-1])),
        with_kwargs=True,
    )
    with torch.no_grad():
        embeds = prompt.encode(loaded.pipeline, text, images, CPU)
    native = run(
        comfyui,
        "encode_prompt",
        tmp_path,
        folder=str(base / "text_encoder"),
        text=text,
        images=paths,
    )
    assert torch.equal(positions[0][-3:, 0], native["positions"])
    assert embeds.shape == native["embeds"].shape
    assert (embeds - native["embeds"]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("zero_cond_t", [False, True], ids=["2509", "2511"])
def test_a_step_predicts_what_comfyuis_transformer_predicts(
    comfyui: ComfyUI, tmp_path: Path, zero_cond_t: bool
) -> None:
    base = tiny_qwen.save_base(tmp_path / "base", zero_cond_t=zero_cond_t)
    loaded = pipeline.load(base)
    random = torch.Generator().manual_seed(0)
    # Latents of the result and of three conditioning images, all of even token grids, and no
    # condition larger than the result: there ComfyUI counts otherwise, see docs/parity.md.
    sizes = [(24, 16), (16, 8), (24, 16), (8, 16)]
    latents, *conditions = (torch.randn(1, 16, 1, *size, generator=random) for size in sizes)
    embeds = torch.randn(1, 40, tiny_qwen.TEXT_WIDTH, generator=random)
    sigma = torch.tensor([0.7])
    inputs = sampler._Inputs(
        prompts=[embeds],
        image_latents=torch.cat([sampler._pack(condition) for condition in conditions], 1),
        noise=sampler._pack(latents),
        grid=(12, 8),
        img_shapes=[(1, height // 2, width // 2) for height, width in sizes],
        background=None,
    )
    with torch.no_grad():
        (velocity,) = sampler._predict(
            loaded.pipeline.transformer,
            inputs,
            sampler._separate_passes(inputs),
            inputs.noise,
            1000 * sigma[0],
            {},
        )
    save_file(
        {
            "latents": latents,
            "sigma": sigma,
            "embeds": embeds,
            **{f"condition {index}": condition for index, condition in enumerate(conditions)},
        },
        tmp_path / "inputs.safetensors",
    )
    native = run(
        comfyui,
        "predict",
        tmp_path,
        folder=str(base / "transformer"),
        inputs=str(tmp_path / "inputs.safetensors"),
        conditions=len(conditions),
    )
    assert native["velocity"].std() > 0.1
    assert (sampler.unpack(velocity, (12, 8)) - native["velocity"]).abs().max() <= TOLERANCE


def test_latents_are_normalized_as_by_comfyui(
    comfyui: ComfyUI, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny_qwen.load(tiny_base)
    vae = loaded.pipeline.vae
    latents = torch.randn(1, 16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    save_file({"latents": latents}, tmp_path / "inputs.safetensors")
    native = run(comfyui, "normalize", tmp_path, inputs=str(tmp_path / "inputs.safetensors"))
    decoded: list[Tensor] = []

    class Encoded:
        class latent_dist:
            mode = staticmethod(lambda: latents)

    monkeypatch.setattr(vae, "encode", lambda pixels: Encoded)
    monkeypatch.setattr(
        vae,
        "decode",
        lambda scaled, return_dict: decoded.append(scaled) or (torch.zeros(1, 3, 1, 64, 64),),
    )
    image = Image.new("RGB", (64, 64))
    ours = sampler._encode_image(loaded, image, None, lambda *_: None)
    assert (ours - native["normalized"]).abs().max() <= 1e-5
    sampler._decode(loaded, latents)
    assert (decoded[0] - native["denormalized"]).abs().max() <= 1e-5


def test_images_are_encoded_and_decoded_as_by_comfyuis_vae(
    comfyui: ComfyUI, tiny_base: Path, tmp_path: Path
) -> None:
    from diffusers import AutoencoderKLQwenImage
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    loaded = tiny_qwen.load(tiny_base)
    image = Image.open(EXAMPLES / "coffee.png").convert("RGB").resize((96, 64))
    values = torch.from_numpy(np.asarray(image, np.float32) / 255)
    pixels = (values * 2 - 1).permute(2, 0, 1)[None, :, None].contiguous()
    latents = torch.randn(1, 16, 1, 8, 12, generator=torch.Generator().manual_seed(0))
    save_file({"pixels": pixels, "latents": latents}, tmp_path / "inputs.safetensors")
    native = run(
        comfyui, "encode_and_decode", tmp_path, inputs=str(tmp_path / "inputs.safetensors")
    )
    weights = {
        name.removeprefix("weight "): values
        for name, values in native.items()
        if name.startswith("weight ")
    }
    vae = AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 2, 4, 4], num_res_blocks=2).eval()
    vae.load_state_dict(convert_wan_vae_to_diffusers(weights), strict=True)
    loaded.pipeline.vae = vae
    with torch.no_grad():
        encoded = sampler._encode_image(loaded, image, None, lambda *_: None)
        decoded = sampler._decode(loaded, latents)
    assert native["latents"].std() > 0.05
    assert (encoded - native["latents"]).abs().max() <= TOLERANCE
    expected = (native["pixels"][:, :, 0] / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert expected.std() > 0.05
    assert (decoded - expected).abs().max() <= TOLERANCE
