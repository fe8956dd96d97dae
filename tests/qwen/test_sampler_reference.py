"""The sampler compared with references other than the installed diffusers: an older release of it,
and formulas written out.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import old_releases, published_qwen, tiny_qwen
from support.paths import EXAMPLES
from torch import Tensor

from artmancer.options import Sampling
from artmancer.progress import no_progress
from artmancer.qwen import pipeline, sampler

PUBLISHED_SCHEDULER = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "time_shift_type": "exponential",
    "use_dynamic_shifting": True,
}
"""The scheduler's configuration in Qwen-Image-Edit-2509 and 2511."""


@pytest.mark.slow
def test_the_image_equals_that_of_older_releases(old_packages: Path, tmp_path: Path) -> None:
    base = tiny_qwen.save_base(tmp_path / "base", joint_attention_dim=published_qwen.WIDTH)
    published_qwen.save(base)
    paths = [EXAMPLES / name for name in ("astronaut.png", "coffee.png", "chelsea.png")]
    conditions = [Image.open(path).convert("RGB") for path in paths]
    for index, image in enumerate(conditions):
        image.save(tmp_path / f"{index}.png")
    pixels = 160 * 160
    # The conditions' grids are larger than the result's, whose sides are odd in the second case.
    cases = [(4.0, 3, (128, 96)), (1.0, 1, (112, 144))]
    loaded = pipeline.load(base)
    edited: list[Tensor] = []
    requests: list[dict[str, Any]] = []
    for cfg, count, (height, width) in cases:
        request = sampler.SampleRequest(
            "remove the lamp", conditions[:count], height, width, seed=3
        )
        sampling = Sampling(steps=3, cfg=cfg, condition_pixels=pixels)
        edited.append(sampler.sample(loaded, request, sampling, no_progress))
        requests.append(
            {
                "base": str(base),
                "images": [str(tmp_path / f"{index}.png") for index in range(count)],
                "condition_pixels": pixels,
                "seed": 3,
                "prompt": "remove the lamp",
                "negative_prompt": sampling.negative if cfg > 1 else None,
                "true_cfg_scale": cfg,
                "num_inference_steps": 3,
                "height": height,
                "width": width,
            }
        )
    old = old_releases.run(old_packages, "sample", tmp_path, requests)
    for case, image, result in zip(cases, edited, old, strict=True):
        assert (image - result["image"]).abs().max() <= 1e-4, case


def test_tokens_are_rotated_by_image_row_and_column(tiny_base: Path) -> None:
    """Qwen-Image's positions ("MSRoPE", Wu et al. 2025, "Qwen-Image"): images are numbered from 0,
    rows and columns are counted from an image's center, and the text follows on the diagonal after
    the largest of them.
    """
    loaded = tiny_qwen.load(tiny_base)
    transformer = loaded.pipeline.transformer
    grids = [(4, 6), (3, 5), (10, 2)]
    rotations: list[tuple[Tensor, Tensor]] = []
    hook = transformer.pos_embed.register_forward_hook(
        lambda module, args, output: rotations.append(output)
    )
    tokens = [torch.randn(1, rows * columns, 64) for rows, columns in grids]
    inputs = sampler._Inputs(
        prompts=[torch.randn(1, 7, tiny_qwen.TEXT_WIDTH)],
        image_latents=torch.cat(tokens[1:], 1),
        noise=tokens[0],
        grid=grids[0],
        img_shapes=[(1, *grid) for grid in grids],
        background=None,
    )
    passes = sampler._separate_passes(inputs)
    with torch.no_grad():
        sampler._predict(transformer, inputs, passes, inputs.noise, torch.tensor(500.0), {})
    hook.remove()

    def angles(position: tuple[int, int, int]) -> list[float]:
        return [
            value * 10000 ** (-2 * index / axis)
            for value, axis in zip(position, transformer.config.axes_dims_rope, strict=True)
            for index in range(axis // 2)
        ]

    images = [
        angles((number, row - math.ceil(rows / 2), column - math.ceil(columns / 2)))
        for number, (rows, columns) in enumerate(grids)
        for row in range(rows)
        for column in range(columns)
    ]
    start = max(side // 2 for grid in grids for side in grid)
    text = [angles((start + index,) * 3) for index in range(7)]
    for rotation, expected in zip(rotations[0], (images, text), strict=True):
        expected_rotation = torch.polar(torch.ones(1), torch.tensor(expected))
        assert (rotation - expected_rotation).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("steps", "tokens", "shift"),
    [(10, 1024, None), (15, 4096, None), (40, 8192, None), (1, 1024, None), (4, 1024, 3.0)],
)
def test_the_sigmas_follow_the_published_schedule(
    steps: int, tokens: int, shift: float | None
) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = sampler._scheduler(
        FlowMatchEulerDiscreteScheduler(**PUBLISHED_SCHEDULER),
        steps,
        tokens,
        shift,
        torch.device("cpu"),
    )
    # mu grows linearly from 0.5 at 256 tokens to 0.9 at 8192 (Esser et al. 2024, section 5.3.2).
    factor = shift or math.exp(0.5 + 0.4 * (tokens - 256) / (8192 - 256))
    linear = np.array([1 - index / steps for index in range(steps)])
    sigmas = factor * linear / (1 + (factor - 1) * linear)
    if steps > 1 and shift is None:
        # Stretched so that the last step starts from 0.02.
        sigmas = 1 - (1 - sigmas) * (1 - 0.02) / (1 - sigmas[-1])
    np.testing.assert_allclose(scheduler.sigmas.numpy(), [*sigmas, 0], atol=1e-6)
    np.testing.assert_allclose(scheduler.timesteps.numpy(), 1000 * sigmas, atol=1e-3)


def test_guidance_keeps_the_norm_of_each_conditional_token() -> None:
    random = np.random.default_rng(0)
    conditional, unconditional = random.standard_normal((2, 1, 6, 64)).astype(np.float32)
    expected = np.empty_like(conditional)
    for index in range(6):
        guided = unconditional[0, index] + 3.5 * (conditional[0, index] - unconditional[0, index])
        length = math.sqrt(sum(float(value) ** 2 for value in guided))
        target = math.sqrt(sum(float(value) ** 2 for value in conditional[0, index]))
        expected[0, index] = guided * target / length
    velocities = [torch.from_numpy(conditional), torch.from_numpy(unconditional)]
    np.testing.assert_allclose(sampler._guide(velocities, 3.5).numpy(), expected, atol=1e-5)


def test_a_step_moves_the_latents_along_the_velocity(tiny_base: Path) -> None:
    """With x = (1 - sigma) image + sigma noise, the velocity is noise - image (Lipman et al. 2022):
    a perfect prediction leads every schedule exactly to the image.
    """
    loaded = tiny_qwen.load(tiny_base)
    random = torch.Generator().manual_seed(0)
    noise, image = torch.randn(2, 1, 24, 64, generator=random)
    scheduler = sampler._scheduler(loaded.pipeline.scheduler, 7, 24, None, torch.device("cpu"))
    latents = noise
    for timestep in scheduler.timesteps:
        latents = scheduler.step(noise - image, timestep, latents, return_dict=False)[0]
    assert (latents - image).abs().max() <= 1e-5


@pytest.mark.parametrize("size", [(96, 64), (70, 130), (33, 200)])
def test_the_vae_reads_pixels_from_minus_one_to_one(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    loaded = tiny_qwen.load(tiny_base)
    encode = loaded.pipeline.vae.encode
    pixels: list[Tensor] = []

    def record(values: Tensor) -> Any:
        pixels.append(values)
        return encode(values)

    monkeypatch.setattr(loaded.pipeline.vae, "encode", record)
    image = Image.open(EXAMPLES / "coffee.png").convert("RGB").resize(size)
    sampler._encode_image(loaded, image, 96 * 96, lambda *_: None)
    height, width = pixels[0].shape[-2:]
    scaled = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS), np.float32)
    expected = scaled.transpose(2, 0, 1)[None, :, None] / 127.5 - 1
    np.testing.assert_allclose(pixels[0].numpy(), expected, atol=1e-6)
