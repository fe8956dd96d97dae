"""The shadow of an object, on backgrounds where the shadow is known."""

import numpy as np
import pytest
import torch
from support.images import disc, iou
from torch import Tensor

from artmancer.errors import ArtMancerError
from artmancer.masks import shadow
from artmancer.region import resample
from artmancer.tools import cast_shadow


def ground(kind: str, seed: int = 0) -> Tensor:
    """Draw a background without objects, IMAGE [1, 300, 400, 3]."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:300, :400] / 100
    base = {
        "plain": np.full((300, 400), 0.7),
        "bright to dark": 0.85 - 0.12 * x,
        "wood": 0.6 + 0.05 * np.sin(9 * y + np.sin(2 * x)),
    }[kind]
    tint = np.array([1.0, 0.93, 0.82] if kind == "wood" else [0.98, 1.0, 0.97])
    noise = 0.015 * random.standard_normal((300, 400, 1))
    pixels = base[..., None] * tint + noise
    return torch.from_numpy(pixels.clip(0, 1).astype(np.float32))[None]


def with_object(image: Tensor, mask: Tensor) -> Tensor:
    """Paint the mask blue."""
    return painted(image, mask, [0.2, 0.35, 0.6])


def painted(image: Tensor, mask: Tensor, color: list[float]) -> Tensor:
    return torch.lerp(image, torch.tensor(color).expand_as(image), mask.unsqueeze(-1))


@pytest.mark.parametrize("kind", ["plain", "bright to dark", "wood"])
@pytest.mark.parametrize("opacity", [0.3, 0.6])
def test_a_shadow_is_found(kind: str, opacity: float) -> None:
    mask = disc(300, 400, 130, 180, 45)
    image, cast = cast_shadow(with_object(ground(kind), mask), mask, (35, 20), opacity, 5)
    truth = ((cast > 0.25 * opacity) & (mask < 0.5)).float()
    assert iou(shadow.propose(image, mask), truth) > 0.7


def test_a_shadow_is_found_on_a_photo_of_wood_with_scratches(example) -> None:
    wood = resample(example("coffee")[:, 250:400, 440:600], (300, 320))
    mask = disc(300, 320, 130, 140, 45)
    image, cast = cast_shadow(with_object(wood, mask), mask, (34, 22), 0.5, 5)
    truth = ((cast > 0.125) & (mask < 0.5)).float()
    assert iou(shadow.propose(image, mask), truth) > 0.7


@pytest.mark.parametrize("kind", ["plain", "bright to dark", "wood"])
def test_no_shadow_is_found_where_there_is_none(kind: str) -> None:
    mask = disc(300, 400, 130, 180, 45)
    assert shadow.propose(with_object(ground(kind), mask), mask).mean() < 0.003


def test_a_dark_area_of_another_color_or_farther_away_is_no_shadow() -> None:
    mask = disc(300, 400, 130, 180, 45)
    red = disc(300, 400, 150, 250, 30)
    far = disc(300, 400, 60, 360, 25)
    image = painted(ground("plain"), red, [0.5, 0.15, 0.1])
    image = image * (1 - 0.5 * far[..., None])
    image = with_object(image, mask)
    assert shadow.propose(image, mask).mean() < 0.003


def test_faint_pixels_of_the_mask_far_away_do_not_hide_the_shadow() -> None:
    mask = disc(300, 400, 130, 180, 45)
    image, _ = cast_shadow(with_object(ground("plain"), mask), mask, (35, 20), 0.5, 5)
    faint = mask.clone()
    faint[0, 0, 0] = faint[0, -1, -1] = 1 / 255
    assert torch.equal(shadow.propose(image, faint), shadow.propose(image, mask))


def test_progress_is_reported_for_each_image_and_nan_is_refused() -> None:
    mask = disc(300, 400, 130, 180, 45)
    reports = []
    batch = ground("plain").expand(2, -1, -1, -1)
    shadow.propose(batch, mask, progress=lambda *report: reports.append(report))
    assert [done for done, *_ in reports] == [0, 1]
    with pytest.raises(ArtMancerError, match="NaN"):
        shadow.propose(torch.full((1, 300, 400, 3), torch.nan), mask)


def test_the_images_of_a_batch_share_a_mask_and_a_black_mask_is_refused() -> None:
    mask = disc(300, 400, 130, 180, 45)
    shaded = cast_shadow(with_object(ground("plain"), mask), mask, (35, 20), 0.5, 5)[0]
    both = shadow.propose(torch.cat([shaded, with_object(ground("plain"), mask)]), mask)
    assert both[0].any()
    assert both[1].mean() < 0.003
    with pytest.raises(ArtMancerError, match="black everywhere"):
        shadow.propose(shaded, torch.zeros_like(mask))
