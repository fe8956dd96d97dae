"""The encoding of prompts: positions, tokens and embeddings, compared with implementations other
than the installed transformers, whose default has wrong positions.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support import old_releases, published_qwen, tiny_qwen
from support.paths import EXAMPLES
from torch import Tensor

from artmancer.options import Sampling
from artmancer.progress import no_progress
from artmancer.qwen import pipeline, prompt, sampler

CPU = torch.device("cpu")

IMAGES = [
    Image.open(EXAMPLES / name).convert("RGB")
    for name in ("astronaut.png", "coffee.png", "chelsea.png")
]

TEXT = "Remove the lamp."

TOLERANCE = 1e-4
"""Largest difference in 32 bits; the embeddings have a deviation of 1."""


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> pipeline.Base:
    return pipeline.load(tiny_base)


def embeds_of(
    loaded: pipeline.Base, images: list[Image.Image], encode: Callable[..., Any] = prompt.encode
) -> tuple[Tensor, dict[str, Any], Tensor]:
    """Encode TEXT with images.

    Returns
    -------
    the embeddings, the text encoder's inputs, and the positions that its language model receives,
    [3, 1, tokens]
    """
    inputs: list[dict[str, Any]] = []
    positions: list[Tensor] = []
    encoder = loaded.pipeline.text_encoder
    hooks = [
        encoder.register_forward_pre_hook(
            lambda module, args, kwargs: inputs.append(kwargs), with_kwargs=True
        ),
        encoder.model.language_model.rotary_emb.register_forward_pre_hook(
            lambda module, args, kwargs: positions.append(kwargs.get("position_ids", args[-1])),
            with_kwargs=True,
        ),
    ]
    try:
        with torch.no_grad():
            embeds = encode(loaded.pipeline, TEXT, images, CPU)
    finally:
        for hook in hooks:
            hook.remove()
    return embeds, inputs[0], positions[0]


def stock_encode(stock: Any, text: str, images: list[Image.Image], device: torch.device) -> Tensor:
    """Encode as diffusers' pipeline does."""
    embeds: Tensor = stock.encode_prompt(text, image=images, device=device)[0]
    return embeds


def positions_by_definition(ids: list[int], image_id: int, grids: list[list[int]]) -> Tensor:
    """Compute the positions [3, tokens] as the paper defines them (Wang et al. 2024, section 2.1).

    A token of text has one position on all axes. An image's tokens have (start, start + row,
    start + column), and what follows starts after the largest of them.

    Parameters
    ----------
    grids : (rows, columns) of each image's tokens
    """
    positions: list[tuple[int, int, int]] = []
    following = 0
    index = 0
    remaining = iter(grids)
    while index < len(ids):
        if ids[index] != image_id:
            positions.append((following,) * 3)
            following += 1
            index += 1
            continue
        rows, columns = next(remaining)
        positions += [
            (following, following + row, following + column)
            for row in range(rows)
            for column in range(columns)
        ]
        following += max(rows, columns)
        index += rows * columns
    return torch.tensor(positions).T


def vision_size(image: Image.Image) -> Image.Image:
    """Scale an image as the sampler does for the text encoder."""
    height, width = sampler.size_for_area(image.height, image.width, sampler.VISION_PIXELS)
    return image.resize((width, height), Image.Resampling.LANCZOS)


@pytest.mark.parametrize("sizes", [[(640, 480)], [(512, 512), (200, 900)], [(900, 200)] * 4])
def test_the_language_model_receives_three_dimensional_positions(
    base: pipeline.Base, sizes: list[tuple[int, int]]
) -> None:
    images = [vision_size(Image.new("RGB", size, "gray")) for size in sizes]
    _, inputs, positions = embeds_of(base, images)
    encoder = base.pipeline.text_encoder
    grids = (inputs["image_grid_thw"][:, 1:] // 2).tolist()
    expected = positions_by_definition(
        inputs["input_ids"][0].tolist(), encoder.config.image_token_id, grids
    )
    assert torch.equal(positions[-3:, 0], expected)
    types = base.pipeline.processor.create_mm_token_type_ids(inputs["input_ids"].tolist())
    theirs, _ = encoder.model.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=torch.tensor(types),
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    assert torch.equal(positions[-3:], theirs)
    # Positions of text alone would go up to the number of tokens.
    assert positions.max() < inputs["input_ids"].shape[1] / 1.2


def test_without_the_token_types_the_embeddings_are_visibly_different(base: pipeline.Base) -> None:
    images = [vision_size(image) for image in IMAGES]
    embeds, inputs, _ = embeds_of(base, images)
    stock, stock_inputs, _ = embeds_of(base, images, stock_encode)
    assert torch.equal(inputs["input_ids"], stock_inputs["input_ids"])
    assert torch.equal(inputs["pixel_values"], stock_inputs["pixel_values"])
    assert embeds.shape == stock.shape
    with tiny_qwen.token_types(base.pipeline):
        anchor, _, _ = embeds_of(base, images, stock_encode)
    assert (embeds - anchor).abs().max() <= TOLERANCE
    if "mm_token_type_ids" in inputs:
        assert (embeds - stock).norm() > 0.3 * embeds.norm()


def test_wrong_positions_change_the_image(base: pipeline.Base) -> None:
    request = sampler.SampleRequest(TEXT, IMAGES, 96, 96, seed=0)
    sampling = Sampling(steps=2, condition_pixels=96 * 96)
    right = sampler.sample(base, request, sampling, no_progress)
    base.cache.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt, "_token_types", lambda *_: {})
        wrong = sampler.sample(base, request, sampling, no_progress)
    base.cache.clear()
    assert (right - wrong).abs().max() > 0.1 * right.std()


@pytest.mark.slow
def test_the_embeddings_equal_those_of_transformers_4(
    tiny_base: Path, old_packages: Path, tmp_path: Path
) -> None:
    images = [vision_size(image) for image in IMAGES]
    paths = [tmp_path / f"{index}.png" for index in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    text = "".join(prompt.IMAGE_PROMPT.format(index + 1) for index in range(len(images))) + TEXT
    bases: list[pipeline.Base] = []
    requests: list[dict[str, Any]] = []
    # The text encoder's configuration with text_config, and flat.
    for nested in (True, False):
        folder = tiny_qwen.copy_base(tiny_base, tmp_path / f"nested-{nested}")
        published_qwen.save(folder, nested=nested)
        bases.append(pipeline.load(folder))
        requests.append(
            {
                "base": str(folder),
                "template": bases[-1].pipeline.prompt_template_encode,
                "text": text,
                "prompt": TEXT,
                "images": list(map(str, paths)),
            }
        )
    old = old_releases.run(old_packages, "encode", tmp_path, requests)
    for loaded, result in zip(bases, old, strict=True):
        check_embeddings(loaded, images, result)


def check_embeddings(
    loaded: pipeline.Base, images: list[Image.Image], old: dict[str, Tensor]
) -> None:
    """Compare the encoding of TEXT and images with that of transformers 4."""
    embeds, inputs, positions = embeds_of(loaded, images)
    assert torch.equal(inputs["input_ids"], old["input_ids"])
    assert (inputs["pixel_values"] - old["pixel_values"]).abs().max() <= TOLERANCE
    assert torch.equal(positions[-3:], old["positions"][-3:])
    dropped = loaded.pipeline.prompt_template_encode_start_idx
    assert (embeds - old["hidden_states"][:, dropped:]).abs().max() <= TOLERANCE
    # Our function on transformers 4, which takes no token types, gives the same.
    assert (old["our embeds"] - old["hidden_states"]).abs().max() <= TOLERANCE
    assert math.isclose(float(embeds.std()), 1, rel_tol=0.1)
    # Wrong positions would be visible with these weights.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt, "_token_types", lambda *_: {})
        flat, _, flat_positions = embeds_of(loaded, images)
    if not torch.equal(flat_positions[-3:], positions[-3:]):
        assert (flat - embeds).norm() > 0.3 * embeds.norm()
