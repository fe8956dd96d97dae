"""The light that is estimated in photos whose light is known."""

import pytest
import torch
from torch import Tensor

from artmancer.color import to_linear, to_srgb, whiten_clipped
from artmancer.conditions import prepare
from artmancer.draft import DraftEditor, balance
from artmancer.edit import edit
from artmancer.light import estimate

LAMP, SHADE = torch.tensor([1.41, 1.0, 0.69]), torch.tensor([0.89, 1.0, 1.33])
"""Factors of red, green and blue under a lamp of 4,500 kelvin and in the shade."""


def degrees(light: Tensor, truth: Tensor) -> float:
    return float(torch.cosine_similarity(light, truth, dim=0).clamp(max=1).acos().rad2deg())


def one_color(color: Tensor) -> Tensor:
    """Make a texture of one color in many brightnesses, in linear light [120, 160, 3]."""
    random = torch.Generator().manual_seed(1)
    return color * torch.rand(120, 160, 1, generator=random).mul(0.6).add(0.2)


def test_a_small_mask_over_something_gray_tells_the_light() -> None:
    lamp = torch.tensor([1.6, 1.0, 0.55])
    photo = torch.full((900, 1500, 3), 0.2) * torch.tensor([0.2, 1.0, 0.3])
    photo[400:408, 700:708] = torch.linspace(0.2, 0.5, 8)[:, None, None] * lamp
    mask = torch.zeros(900, 1500)
    mask[400:408, 700:708] = 1
    assert (estimate(photo, mask) / lamp - 1).abs().max() < 0.15


def test_one_value_above_1_leaves_a_clipped_lamp_white() -> None:
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0)) * 0.6
    image = image.mean(-1, keepdim=True) * torch.tensor([1.0, 0.8, 0.55])
    image[0, :8, :8] = 1
    image[0, 40, 40] = 1.002
    balanced = balance(image, torch.ones(1, 64, 64), 1.0)
    assert balanced[0, :8, :8].min() > 0.99
    assert (balanced[0, 20, 20] - image[0, 20, 20]).abs().max() > 0.02


def test_a_photo_without_a_cast_stays_as_it_is(example) -> None:
    photo = example("astronaut")
    assert torch.equal(balance(photo, torch.ones(photo.shape[:3]), 1.0), photo)


@pytest.mark.parametrize("cast", [LAMP, SHADE], ids=["lamp", "shade"])
def test_a_cast_is_found_to_some_degrees(cast: Tensor, example) -> None:
    linear = to_linear(example("astronaut")[0]) * cast / cast.max()
    assert degrees(torch.ones(3), cast) > 9
    assert degrees(estimate(linear, torch.ones(linear.shape[:2])), cast) < 5


@pytest.mark.parametrize(
    "color",
    [(0.2, 0.8, 0.1), (1.0, 0.05, 0.05), (0.1, 0.2, 0.9)],
    ids=["grass", "red wall", "blue cloth"],
)
def test_a_photo_of_one_color_keeps_it_and_the_verdict_says_why(color) -> None:
    photo = to_srgb(one_color(torch.tensor(color))).unsqueeze(0)
    result = edit(DraftEditor("white_balance"), prepare(photo))
    assert (result.image - photo).abs().mean() < 0.01
    (reason,) = result.report.verdict_reasons
    assert "Only 0.0 % of the photo is nearly gray" in reason


def test_walls_in_the_light_of_a_lamp_have_its_color() -> None:
    linear = one_color(LAMP / LAMP.max())
    assert degrees(estimate(linear, torch.ones(linear.shape[:2])), LAMP) < 0.5


def test_clipped_colors_do_not_vote() -> None:
    linear = one_color(LAMP / LAMP.max())
    linear[:60] = torch.tensor([1.0, 1.0, 0.2])
    assert degrees(estimate(linear, torch.ones(linear.shape[:2])), LAMP) < 0.5


def test_a_lamp_that_is_clipped_stays_white() -> None:
    linear = one_color(LAMP / LAMP.max())
    linear[40:60, 40:60] = 1
    result = edit(DraftEditor("white_balance"), prepare(to_srgb(linear).unsqueeze(0))).image[0]
    lamp, wall = result[42:58, 42:58], result[:30]
    assert (wall.amax(-1) - wall.amin(-1)).max() < 0.02
    assert lamp.min() > 0.95


def test_clipped_colors_stay_where_nothing_changes() -> None:
    colors = torch.rand(500, 3, generator=torch.Generator().manual_seed(2)) * 1.3
    colors.clamp_(max=1)
    assert torch.allclose(whiten_clipped(colors, colors), colors, atol=1e-6)
    red = torch.tensor([1.0, 0.1, 0.05])
    duller = red * torch.tensor([0.5, 1.0, 2.0])
    assert torch.equal(whiten_clipped(red, duller), duller)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2)])
def test_too_few_pixels_leave_the_photo_alone_or_have_their_own_light(size) -> None:
    for linear in (torch.zeros(*size, 3), torch.ones(*size, 3)):
        assert torch.equal(estimate(linear, torch.ones(size)), torch.ones(3))
    assert estimate(torch.rand(*size, 3), torch.zeros(size)).tolist() == [1, 1, 1]
