"""Movements of an edit whose truth is known: measured, undone, and never undone for the worse.

The edits are warped by Pillow, another library than that of the code.
"""

import cmath
import math

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from support.images import disc, smooth_picture
from torch import Tensor

from artmancer import mask_ops
from artmancer.registration import Registration, Similarity, register, undo

SIDE = 256
"""Side of the crops in pixels."""

NOISE = 0.1
"""Levels of 255 by which noise may raise an error."""


def similarity(down: float, right: float, zoom: float = 1, degrees: float = 0) -> Similarity:
    return Similarity(cmath.rect(zoom, math.radians(degrees)), complex(right, down))


def warp(image: Tensor, truth: Similarity) -> Tensor:
    """Move an image [h, w, 3] by a similarity, with Pillow; what comes in from outside is black."""
    height, width = image.shape[:2]
    inverse = 1 / truth.factor
    # Pillow maps from the result to the source, and counts from the corner of a pixel.
    center = complex(width, height) / 2
    start = center - inverse * (center + truth.shift)
    matrix = (inverse.real, -inverse.imag, start.real, inverse.imag, inverse.real, start.imag)
    planes = [
        np.asarray(
            Image.fromarray(plane.numpy()).transform(
                (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
            )
        )
        for plane in image.movedim(-1, 0).contiguous()
    ]
    return torch.from_numpy(np.stack(planes, -1)).clamp(0, 1)


def crop_of(photo: Tensor) -> Tensor:
    """Return a square crop [SIDE, SIDE, 3] of an IMAGE."""
    top, left = (photo.shape[1] - SIDE) // 2, (photo.shape[2] - SIDE) // 2
    return photo[0, top : top + SIDE, left : left + SIDE].contiguous()


def measure(edited: Tensor, before: Tensor, mask: Tensor) -> Registration | None:
    shown = mask_ops.feather(mask, 12)[0] > 0
    return register(edited, before, ~shown, shown)


def error(image: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Return the mean error inside a MASK [1, h, w], in levels of 255."""
    return float(255 * (image - truth)[mask[0] > 0].abs().mean())


MASKS = {
    "small": disc(SIDE, SIDE, 120, 140, 20),
    "large": disc(SIDE, SIDE, 128, 128, 80),
    "border": disc(SIDE, SIDE, SIDE - 1, 100, 55),
    "thin": (torch.arange(SIDE).view(1, -1, 1) // 3 == 45).float().expand(1, -1, SIDE).contiguous(),
    "many": torch.stack(
        [disc(SIDE, SIDE, y, x, 14)[0] for y, x in ((50, 60), (90, 190), (180, 80), (210, 200))]
    ).amax(0, keepdim=True),
}

TRUTHS = [
    similarity(0.5, 0),
    similarity(1.5, -2.25),
    similarity(0, 4),
    similarity(-11, 11),
    similarity(0, 0, 1.03),
    similarity(0, 0, 0.97),
    similarity(0, 0, 1, 1),
    similarity(2.5, -6, 1.02, -0.7),
    similarity(-9, 3, 0.985, 0.4),
]


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee"])
@pytest.mark.parametrize("truth", TRUTHS, ids=str)
def test_a_movement_is_measured_to_a_tenth_of_a_pixel(example, name: str, truth) -> None:
    before, mask = crop_of(example(name)), MASKS["large"]
    result = measure(warp(before, truth), before, mask)
    assert result and result.applied
    corners = np.array([complex(x, y) for x in (-80, 80) for y in (-80, 80)])
    assert np.abs(result.similarity.move(corners) - truth.move(corners)).max() < 0.1
    assert result.moved == pytest.approx(np.abs(truth.move(corners) - corners).max(), abs=1)
    assert result.error_after < 0.3 * result.error_before


def edited_crop(before: Tensor, mask: Tensor, seed: int) -> tuple[Tensor, Tensor, Similarity]:
    """Return an edit with another object and its shadow, in other colors, moved, with noise; the
    edit before it moved; and the movement.
    """
    random = np.random.default_rng(seed)
    shade = 0.4 * mask.roll((7, 7), (1, 2))[0] * (1 - mask[0])
    truth = torch.where(mask[0].unsqueeze(-1) > 0, before.flip(0, 2), before)
    truth = truth * (1 - shade.unsqueeze(-1))
    gains = torch.from_numpy(random.uniform(0.9, 1.1, 3)).float()
    truth = (truth ** random.uniform(0.9, 1.1) * gains + random.uniform(-0.03, 0.03)).clamp(0, 1)
    still = seed % 5 == 0
    movement = similarity(
        *random.uniform(-11, 11, 2), random.uniform(0.97, 1.03), random.uniform(-1, 1)
    )
    if seed % 5 == 1:
        movement = similarity(*random.uniform(-0.3, 0.3, 2), random.uniform(0.998, 1.002))
    noise = torch.from_numpy(random.normal(0, random.uniform(0, 6) / 255, truth.shape)).float()
    moved = truth if still else warp(truth, movement)
    return (moved + noise).clamp(0, 1), truth, Similarity() if still else movement


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("kind", MASKS)
def test_registration_never_raises_the_error_inside_the_mask(example, kind: str, seed: int) -> None:
    name = ("astronaut", "chelsea", "coffee")[seed % 3]
    before, mask = crop_of(example(name)), MASKS[kind]
    edited, truth, movement = edited_crop(before, mask, seed)
    result = measure(edited, before, mask)
    came = error(edited, truth, mask)
    ours = error(result.image, truth, mask) if result else came
    assert ours <= came + NOISE
    if movement != Similarity():
        # Undoes the known movement by the same single resampling.
        known = error(undo(edited, movement), truth, mask)
        assert ours <= 1.5 * known + NOISE


@pytest.mark.parametrize("seed", range(4))
def test_a_change_of_colors_is_no_movement(seed: int) -> None:
    before, mask = smooth_picture(SIDE, SIDE, 120, seed)[0], MASKS["small"]
    random = np.random.default_rng(seed)
    down, right = torch.meshgrid(*[torch.linspace(-1, 1, SIDE)] * 2, indexing="ij")
    slope = (random.uniform(-0.05, 0.05) * down + random.uniform(-0.05, 0.05) * right)[..., None]
    edited = (before ** random.uniform(0.8, 1.2) * random.uniform(0.85, 1.1) + slope).clamp(0, 1)
    result = measure(edited, before, mask)
    assert result is None or torch.equal(result.image, edited)


def test_an_edit_that_did_not_move_keeps_every_bit(example) -> None:
    before, mask = crop_of(example("coffee")), MASKS["large"]
    edited = torch.where(mask[0].unsqueeze(-1) > 0, 1 - before, before)
    result = measure(edited, before, mask)
    assert result and torch.equal(result.image, edited)
    assert result.moved == 0 and not result.applied
    noise = 0.02 * torch.randn(before.shape, generator=torch.Generator().manual_seed(0))
    noisy = (edited + noise).clamp(0, 1)
    result = measure(noisy, before, mask)
    assert result and torch.equal(result.image, noisy)


def test_a_lamp_in_an_hdr_photo_stays_as_bright_when_an_edit_is_moved_back(example) -> None:
    before = crop_of(example("coffee")).clone()
    before[40:60, 40:60] = 8
    result = measure(torch.roll(before, 3, 1), before, MASKS["large"])
    assert result and result.applied
    assert torch.allclose(result.image[44:56, 44:56], torch.tensor(8.0), atol=0.1)


def test_a_movement_that_noise_hides_is_measured_and_not_undone(example) -> None:
    sharp, mask = crop_of(example("chelsea")), MASKS["small"]
    before = torch.from_numpy(cv2.GaussianBlur(sharp.numpy(), (0, 0), 12))
    noise = 24 / 255 * torch.randn(before.shape, generator=torch.Generator().manual_seed(0))
    edited = (warp(before, similarity(1.5, -1)) + noise).clamp(0, 1)
    result = measure(edited, before, mask)
    assert result and not result.applied
    assert torch.equal(result.image, edited)
    assert result.moved == pytest.approx(math.hypot(1.5, 1), abs=0.1)


def test_a_small_movement_of_a_large_soft_photo_is_undone(example) -> None:
    soft = cv2.GaussianBlur(crop_of(example("coffee")).numpy(), (0, 0), 4)
    before = torch.from_numpy(cv2.resize(soft, (4 * SIDE, 4 * SIDE), interpolation=cv2.INTER_CUBIC))
    mask = disc(4 * SIDE, 4 * SIDE, 500, 520, 330)
    noise = 0.01 * torch.randn(before.shape, generator=torch.Generator().manual_seed(0))
    edited = (warp(before, similarity(0.6, -1)) + noise).clamp(0, 1)
    result = measure(edited, before, mask)
    assert result and result.applied
    assert result.moved == pytest.approx(math.hypot(0.6, 1), abs=0.1)


def test_an_empty_mask_shows_no_movement(example) -> None:
    photo = crop_of(example("coffee"))
    edited = warp(photo, similarity(2, 2))
    result = measure(edited, photo, torch.zeros_like(MASKS["small"]))
    assert result and not result.applied
    assert result.moved == 0 and torch.equal(result.image, edited)


def test_an_edit_that_moved_only_far_from_the_mask_stays_as_it_came(example) -> None:
    before, mask = crop_of(example("astronaut")), MASKS["small"]
    near = mask_ops.distance(mask[0]) <= 60
    edited = torch.where(near.unsqueeze(-1), before, before.roll(3, 1))
    result = measure(edited, before, mask)
    assert result is None or torch.equal(result.image, edited)


def noise_picture(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.5 + 0.02 * torch.randn(SIDE, SIDE, 3, generator=generator)


def test_what_cannot_be_told_is_none(example) -> None:
    photo, mask = crop_of(example("coffee")), MASKS["small"]
    flat = torch.full_like(photo, 0.5)
    rows = (torch.arange(SIDE) // 9 % 2).float().view(-1, 1, 1).expand_as(photo) * 0.5 + 0.2
    grain = 0.01 * (noise_picture(3) - 0.5)
    for edited, before in (
        (noise_picture(1), noise_picture(2)),
        (flat + grain, flat),
        # Stripes do not show a movement along them.
        (rows + grain, rows),
        (crop_of(example("astronaut")), photo),
    ):
        result = measure(edited, before, mask)
        assert result is None or torch.equal(result.image, edited)
    assert measure(flat + grain, flat, mask) is None
    assert measure(rows + grain, rows, mask) is None
    assert measure(warp(photo, similarity(2, 2)), photo, torch.ones_like(mask)) is None


@pytest.mark.parametrize("size", [(32, 32), (32, 256), (64, 96)])
def test_the_smallest_crops_are_no_obstacle(example, size: tuple[int, int]) -> None:
    before = crop_of(example("coffee"))[: size[0], : size[1]].contiguous()
    mask = torch.zeros(1, *size)
    mask[:, 12:20, 12:20] = 1
    edited = (before.roll(1, 0) + 0.01).clamp(0, 1)
    shown = mask_ops.feather(mask, 4)[0] > 0
    result = register(edited, before, ~shown, shown)
    truth = (before + 0.01).clamp(0, 1)
    assert result is None or error(result.image, truth, mask) <= error(edited, truth, mask) + NOISE
