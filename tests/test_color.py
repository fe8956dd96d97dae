"""Color matching at the rim of a mask, and fitted changes of color."""

import cv2
import pytest
import torch
from support.images import disc
from torch import Tensor

from artmancer import color, mask_ops


@pytest.fixture
def photo(example) -> Tensor:
    return example("coffee")[:, 80:336, 200:456]


def seam(edited: Tensor, original: Tensor, mask: Tensor) -> float:
    """Return the mean difference in the 4 pixels around the mask, in 8-bit levels."""
    ring = (mask == 0) & (mask_ops.distance(mask[0]) <= 4)
    return ((edited - original)[ring].abs().mean() * 255).item()


def test_a_gain_an_offset_and_a_slope_are_undone(photo: Tensor) -> None:
    mask = disc(256, 256, 128, 128, 60)
    slope = torch.linspace(-0.03, 0.03, 256).view(1, 1, -1, 1)
    edited = photo * torch.tensor([0.9, 1.05, 1.1]) + torch.tensor([0.02, -0.03, 0.01]) + slope
    assert seam(edited, photo, mask) > 5
    assert seam(color.match_rim(edited, photo, mask), photo, mask) < 1


def test_a_shadow_across_the_rim_does_not_tint_the_rest(photo: Tensor) -> None:
    mask = disc(256, 256, 128, 128, 60)
    edited = photo * 0.95 + 0.03
    edited[:, 180:, :128] *= 0.3
    matched = color.match_rim(edited, photo, mask)
    untouched = matched[:, :170] - photo[:, :170]
    assert untouched.abs().mean() * 255 < 1.5


def test_noise_on_a_flat_wall_does_not_lower_the_contrast_of_the_object() -> None:
    random = torch.Generator().manual_seed(0)
    wall = 0.6 + 0.01 * torch.randn(1, 128, 128, 3, generator=random)
    edited = 0.6 + 0.01 * torch.randn(1, 128, 128, 3, generator=random)
    mask = disc(128, 128, 64, 64, 30)
    edited[:, 54:74, 54:74] = 0.1
    matched = color.match_rim(edited, wall, mask)
    assert matched[:, 54:74, 54:74].mean() == pytest.approx(0.1, abs=0.06)


@pytest.mark.parametrize("shift", [None, 2, 3])
def test_texture_that_moved_or_is_new_does_not_wash_out_the_object(shift: int | None) -> None:
    random = torch.Generator().manual_seed(0)
    grass = (0.5 + 0.12 * torch.randn(1, 256, 256, 3, generator=random)).clamp(0, 1)
    other_grass = (0.5 + 0.12 * torch.randn(1, 256, 256, 3, generator=random)).clamp(0, 1)
    edited = grass.roll(shift, 2) if shift else other_grass
    mask = disc(256, 256, 128, 128, 50)
    edited[:, 100:156, 100:156] = torch.tensor([0.9, 0.1, 0.1])
    matched = color.match_rim(edited, grass, mask)
    assert (matched[0, 128, 128] - torch.tensor([0.9, 0.1, 0.1])).abs().max() < 0.06


def test_a_soft_mask_has_a_rim_too(photo: Tensor) -> None:
    hard = disc(256, 256, 128, 128, 60)[0].numpy()
    soft = torch.from_numpy(cv2.GaussianBlur(hard, (0, 0), 12)).unsqueeze(0)
    edited = photo * 0.9
    matched = color.match_rim(edited, photo, soft)
    assert (matched - photo).abs().mean() < 0.3 * (edited - photo).abs().mean()


def test_a_mask_with_surroundings_on_one_side_gets_no_color_cast(photo: Tensor) -> None:
    mask = torch.ones(1, 256, 256)
    mask[:, :, :16] = 0
    original = photo * 0.8
    matched = color.match_rim(original + 0.1, original, mask)
    assert (matched - original)[:, :, -10:].mean().abs() < 0.03


def test_an_edit_that_changed_nothing_around_the_mask_stays_bit_for_bit(photo: Tensor) -> None:
    mask = disc(256, 256, 128, 128, 60)
    edited = torch.where(mask.unsqueeze(-1) > 0, torch.rand_like(photo), photo)
    assert torch.equal(color.match_rim(edited, photo, mask), edited)
    assert torch.equal(color.match_rim(edited, photo, torch.ones_like(mask)), edited), (
        "there is nothing around the mask"
    )


def test_srgb_to_linear_light_and_back() -> None:
    levels = torch.linspace(0, 1, 256)
    assert torch.allclose(color.to_srgb(color.to_linear(levels)), levels, atol=1e-6)
    assert color.to_linear(torch.tensor(0.5)) == pytest.approx(0.21404, abs=1e-5)


@pytest.mark.parametrize("gains", [(1.3, 1.0, 0.7), (0.8, 1.1, 1.2)])
def test_a_fitted_change_of_colors_applies_at_another_resolution(
    photo: Tensor, gains: tuple[float, ...]
) -> None:
    def cast(image: Tensor) -> Tensor:
        return color.to_srgb((color.to_linear(image) * torch.tensor(gains)).clamp(0, 1))

    small = photo[:, ::4, ::4]
    after = cast(small)
    # The edit also changed something else.
    after[:, :12, :12] = 0.5
    change = color.fit_change(small[0], after[0])
    error = (change(photo) - cast(photo)).abs() * 255
    assert error.mean() < 0.5 and error.quantile(0.999) < 4


def test_equal_images_are_fitted_as_no_change(photo: Tensor) -> None:
    assert (color.fit_change(photo[0], photo[0])(photo) - photo).abs().max() * 255 < 0.01
    black = torch.zeros(8, 8, 3)
    assert (color.fit_change(black, black)(photo) - photo).abs().max() * 255 < 0.01


def test_a_change_is_fitted_on_all_columns_of_an_image() -> None:
    torch.manual_seed(0)
    before = 0.2 + 0.5 * torch.rand(1024, 1024, 3)
    # These columns alone would be seen by a step that divides the width.
    before[:, ::64] = 0.4
    after = before * torch.tensor([1.1, 1.0, 0.9])
    assert (color.fit_change(before, after)(before) - after).abs().max() < 0.01
