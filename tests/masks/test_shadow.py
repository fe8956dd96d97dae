"""The shadow of an object, on grounds whose shadow is known."""

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
    """IMAGE [1, 300, 400, 3]."""
    noise = np.random.default_rng(seed)
    y, x = np.mgrid[:300, :400] / 100
    base = {
        "plain": np.full((300, 400), 0.7),
        "bright to dark": 0.85 - 0.12 * x,
        "wood": 0.6 + 0.05 * np.sin(9 * y + np.sin(2 * x)),
    }[kind]
    tint = np.array([1.0, 0.93, 0.82] if kind == "wood" else [0.98, 1.0, 0.97])
    picture = base[..., None] * tint + 0.015 * noise.standard_normal((300, 400, 1))
    return torch.from_numpy(picture.clip(0, 1).astype(np.float32))[None]


def with_object(picture: Tensor, mask: Tensor) -> Tensor:
    return torch.lerp(
        picture, torch.tensor([0.2, 0.35, 0.6]).expand_as(picture), mask.unsqueeze(-1)
    )


@pytest.mark.parametrize("kind", ["plain", "bright to dark", "wood"])
@pytest.mark.parametrize("opacity", [0.3, 0.6])
def test_a_shadow_is_found(kind: str, opacity: float) -> None:
    mask = disc(300, 400, 130, 180, 45)
    picture, cast = cast_shadow(with_object(ground(kind), mask), mask, (35, 20), opacity, 5)
    truth = ((cast > 0.25 * opacity) & (mask < 0.5)).float()
    assert iou(shadow.propose(picture, mask), truth) > 0.7


def test_it_is_found_on_real_wood_with_scratches(example) -> None:
    wood = resample(example("coffee")[:, 250:400, 440:600], (300, 320))
    mask = disc(300, 320, 130, 140, 45)
    picture, cast = cast_shadow(with_object(wood, mask), mask, (34, 22), 0.5, 5)
    truth = ((cast > 0.125) & (mask < 0.5)).float()
    assert iou(shadow.propose(picture, mask), truth) > 0.7


@pytest.mark.parametrize("kind", ["plain", "bright to dark", "wood"])
def test_where_there_is_none_none_is_found(kind: str) -> None:
    mask = disc(300, 400, 130, 180, 45)
    assert shadow.propose(with_object(ground(kind), mask), mask).mean() < 0.003


def test_a_dark_thing_of_another_colour_or_further_away_is_no_shadow() -> None:
    mask, picture = disc(300, 400, 130, 180, 45), ground("plain")
    red, far = disc(300, 400, 150, 250, 30)[..., None], disc(300, 400, 60, 360, 25)[..., None]
    picture = torch.lerp(picture, torch.tensor([0.5, 0.15, 0.1]).expand_as(picture), red)
    picture = with_object(picture * (1 - 0.5 * far), mask)
    assert shadow.propose(picture, mask).mean() < 0.003


def test_a_faint_pixel_far_off_does_not_hide_it() -> None:
    mask = disc(300, 400, 130, 180, 45)
    picture, _ = cast_shadow(with_object(ground("plain"), mask), mask, (35, 20), 0.5, 5)
    faint = mask.clone()
    faint[0, 0, 0] = faint[0, -1, -1] = 1 / 255
    assert torch.equal(shadow.propose(picture, faint), shadow.propose(picture, mask))


def test_it_can_be_cancelled_and_refuses_what_is_not_finite() -> None:
    mask, told = disc(300, 400, 130, 180, 45), []
    shadow.propose(ground("plain").expand(2, -1, -1, -1), mask, progress=lambda *a: told.append(a))
    assert [done for done, *_ in told] == [0, 1]
    with pytest.raises(ArtMancerError, match="NaN"):
        shadow.propose(torch.full((1, 300, 400, 3), torch.nan), mask)


def test_batches_share_a_mask_and_bad_masks_are_refused() -> None:
    mask = disc(300, 400, 130, 180, 45)
    shaded = cast_shadow(with_object(ground("plain"), mask), mask, (35, 20), 0.5, 5)[0]
    both = shadow.propose(torch.cat([shaded, with_object(ground("plain"), mask)]), mask)
    assert both[0].any() and both[1].mean() < 0.003
    with pytest.raises(ArtMancerError, match="black everywhere"):
        shadow.propose(shaded, torch.zeros_like(mask))
