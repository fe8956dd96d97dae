"""Grain and sharpness of what is pasted."""

import cv2
import numpy as np
import pytest
import torch
from support.images import disc, smooth_picture
from torch import Tensor

from artmancer import mask_ops, region
from artmancer.conditions import prepare
from artmancer.draft import DraftEditor
from artmancer.edit import edit
from artmancer.editor import PrecomputedEdit
from artmancer.grain import Grain, match_grain
from artmancer.report import Report

MASK = disc(300, 340, 150, 170, 60)


def noise(deviation: float, size: float = 0, gray: bool = False, seed: int = 7) -> Tensor:
    """Return noise [1, 300, 340, 3] of a standard deviation in levels of 255, white or blurred by a
    Gaussian of this size, of each channel on its own or gray.
    """
    random = np.random.default_rng(seed)
    values = random.standard_normal((300, 340, 1 if gray else 3)).astype(np.float32)
    values = np.broadcast_to(values, (300, 340, 3)).copy()
    if size:
        values = cv2.GaussianBlur(values, (0, 0), size)
    return torch.from_numpy(values / values.std() * deviation / 255).unsqueeze(0)


def grained(photo: Tensor, clean: Tensor, seed: int = 0, side: int | None = None) -> Grain:
    """Match the grain of an edit that makes the clean photo of the noisy one."""
    crop = region.crop(photo, MASK, longest_side=side)
    edited = region.crop_like(clean, crop.region)
    result = region.stitch(edited, photo, crop.region, crop.image)
    return match_grain(result, photo, edited, crop.region, seed)


def added(grain: Grain, clean: Tensor) -> Tensor:
    """Return what was added well inside the mask, [n, 3] in levels of 255."""
    inside = mask_ops.distance(1 - MASK[0]) > 3
    return (grain.image - clean)[0][inside] * 255


@pytest.mark.parametrize("deviation", [1.5, 4, 10])
@pytest.mark.parametrize("gray", [False, True])
def test_noise_of_the_surroundings_strength_is_added(deviation: float, gray: bool) -> None:
    clean = 0.2 + 0.6 * smooth_picture(300, 340, 120, 3)
    grain = grained(clean + noise(deviation, gray=gray), clean)
    pixels = added(grain, clean)
    assert pixels.std() == pytest.approx(deviation, rel=0.15)
    assert grain.deviation == pytest.approx(float(pixels.std()), rel=0.05)
    assert abs(pixels.mean()) < 0.1 * deviation
    correlation = torch.corrcoef(pixels.T)[0, 1]
    assert correlation == pytest.approx(1.0 if gray else 0.0, abs=0.1)


@pytest.mark.parametrize("name", ["coffee", "astronaut"])
def test_texture_of_a_photo_hardly_counts_as_noise(example, name: str) -> None:
    clean = example(name)[:, 50:350, 30:370]
    grain = grained(clean + noise(6), clean)
    assert added(grain, clean).std() == pytest.approx(6, rel=0.25)


@pytest.mark.parametrize("size", [0.7, 1.2])
def test_the_noise_has_the_size_of_the_photos_grain(size: float) -> None:
    clean = 0.2 + 0.6 * smooth_picture(300, 340, 120, 3)
    grain = grained(clean + noise(6, size), clean)
    change = (grain.image - clean)[0, 115:185, 135:205, 1]
    change = change - change.mean()
    measured = float((change[:, 1:] * change[:, :-1]).mean() / change.square().mean())
    # The autocorrelation of white noise that a Gaussian blurred.
    assert measured == pytest.approx(np.exp(-1 / (4 * size**2)), abs=0.12)
    assert change.std() * 255 == pytest.approx(6, rel=0.2)


def test_an_edit_that_has_the_grain_gets_none() -> None:
    clean = 0.2 + 0.6 * smooth_picture(300, 340, 120, 3)
    edited = clean + noise(6, seed=8)
    grain = grained(clean + noise(6), edited)
    assert grain.deviation < 1.5
    assert grained(clean, clean).deviation == 0


@pytest.mark.parametrize("side", [None, 96, 160])
def test_nothing_changes_outside_the_mask_and_a_seed_is_repeatable(side: int | None) -> None:
    clean = 0.2 + 0.6 * smooth_picture(300, 340, 120, 3)
    photo = clean + noise(6)
    first, second, third = (grained(photo, clean, seed, side).image for seed in (1, 1, 2))
    crop = region.crop(photo, MASK, longest_side=side)
    edited = region.crop_like(clean, crop.region)
    plain = region.stitch(edited, photo, crop.region, crop.image)
    assert torch.equal(first[MASK == 0], plain[MASK == 0])
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize("name", ["coffee", "astronaut"])
def test_an_enlarged_edit_is_sharpened_towards_the_photo(example, name: str) -> None:
    photo = example(name)[:, 50:350, 30:370]
    crop = region.crop(photo, MASK, longest_side=128)
    plain = region.stitch(crop.image, photo, crop.region, crop.image)
    grain = match_grain(plain, photo, crop.image, crop.region, 0)
    inside = mask_ops.distance(1 - MASK[0]) > 3
    # The photo itself is the truth: the edit changed nothing but its sharpness.
    before, after = ((image - photo)[0][inside].square().mean() for image in (plain, grain.image))
    noise_share = (grain.deviation / 255) ** 2
    assert after - noise_share < 0.95 * before
    assert grain.sharpening > 0.2
    native = region.crop(photo, MASK)
    assert match_grain(photo, photo, native.image, native.region, 0).sharpening == 0


@pytest.mark.parametrize(("height", "width"), [(1, 1), (40, 3), (9, 200)])
def test_the_smallest_photos_have_nothing_to_measure(height: int, width: int) -> None:
    photo, mask = torch.rand(1, height, width, 3), torch.zeros(1, height, width)
    mask[:, 0, 0] = 1
    crop = region.crop(photo, mask)
    grain = match_grain(photo, photo, crop.image, crop.region, 0)
    assert grain.image.isfinite().all()
    assert torch.equal(grain.image[mask == 0], photo[mask == 0])


def test_grain_is_matched_where_it_is_switched_on_and_is_in_the_report() -> None:
    clean = 0.2 + 0.6 * smooth_picture(300, 340, 120, 3)
    photo = clean + noise(6)
    conditions = prepare(photo, MASK)
    clean_crop = region.crop_like(clean, conditions.crop.region)
    reports: list[Report] = [
        edit(PrecomputedEdit([clean_crop], "removal"), conditions, match_grain=switch).report
        for switch in (False, True)
    ]
    assert (reports[0].grain, reports[0].sharpening) == (None, None)
    assert reports[1].grain == pytest.approx(6, rel=0.2)
    balanced = edit(DraftEditor("white_balance"), conditions, match_grain=True)
    assert balanced.report.grain is None, "the photo's own pixels are kept"
