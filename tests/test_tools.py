"""Tools around an edit: resize, extract an object, cast a shadow, shift the light, compare."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.images import disc, smooth_picture

from artmancer import region, tools
from artmancer.errors import ArtMancerError

LUMINANCE = torch.tensor([0.2126, 0.7152, 0.0722])
"""Luminance of red, green and blue in linear light."""

SIDE = st.integers(1, 20000)
"""Sides of an image, in pixels."""

NEW_SIDE = st.integers(0, 20000)
"""Sides to resize to, in pixels; 0 = follow the other side."""


@given(size=st.tuples(SIDE, SIDE), width=NEW_SIDE, height=NEW_SIDE, limit=st.integers(0, 2**27))
def test_fit_returns_the_requested_size_within_the_limit(
    size: tuple[int, int], width: int, height: int, limit: int
) -> None:
    unlimited = tools.fit(size, width, height)
    assert (height or unlimited[0], width or unlimited[1]) == unlimited
    if not width and not height:
        assert unlimited == size
    elif not (width and height):
        difference = abs(unlimited[0] * size[1] - unlimited[1] * size[0])
        assert difference <= max(size) or min(unlimited) == 1, "the aspect ratio stays"
    limited = tools.fit(size, width, height, limit)
    if limit == 0 or math.prod(unlimited) <= limit:
        assert limited == unlimited
    else:
        assert min(limited) >= 1
        assert math.prod(limited) <= limit
        assert limited[0] <= unlimited[0]
        assert limited[1] <= unlimited[1]
        # Rounding down removes less than one row and one column.
        assert (limited[0] + 1) * (limited[1] + 1) > limit or min(limited) == 1


def test_a_photo_and_its_mask_are_resized_together() -> None:
    photo, mask = smooth_picture(120, 200, 40, 0), disc(120, 200, 60, 100, 30)
    small_photo, small_mask = tools.resize(photo, mask, width=100)
    assert small_photo.shape == (1, 60, 100, 3)
    assert small_mask is not None
    assert small_mask.shape == (1, 60, 100)
    assert float(small_photo.min()) >= 0
    assert float(small_photo.max()) <= 1
    assert (small_photo - photo[:, ::2, ::2]).abs().mean() < 0.02
    assert (small_mask - disc(60, 100, 29.75, 49.75, 15)).abs().mean() < 0.02
    assert tools.resize(photo.repeat(3, 1, 1, 1), None, height=60)[0].shape == (3, 60, 100, 3)
    assert tools.resize(photo, None, 50, 70, 1000)[0].shape == (1, 37, 26, 3)


def test_a_photo_that_has_the_requested_size_stays_unchanged() -> None:
    photo, mask = smooth_picture(30, 40, 9, 0), torch.rand(1, 30, 40)
    for options in (
        {},
        {"width": 40},
        {"height": 30},
        {"width": 40, "height": 30},
        {"max_pixels": 1200},
    ):
        same_photo, same_mask = tools.resize(photo, mask, **options)
        assert torch.equal(same_photo, photo)
        assert same_mask is not None
        assert torch.equal(same_mask, mask)
    assert tools.resize(photo)[1] is None


def test_resize_refuses_invalid_images_and_sizes() -> None:
    photo = torch.zeros(1, 30, 40, 3)
    with pytest.raises(ArtMancerError, match="mask is 30x30 but the image is 40x30"):
        tools.resize(photo, torch.zeros(1, 30, 30), width=10)
    for size in ((30, 40), (15, 20)):
        with pytest.raises(ArtMancerError, match=r"is torch\.bool; expected float32"):
            tools.resize(photo, torch.ones(1, *size, dtype=torch.bool), width=10)
        with pytest.raises(ArtMancerError, match="with a batch of 1, one mask for each image"):
            tools.resize(photo, torch.ones(3, *size), width=10)
    with pytest.raises(ArtMancerError, match=r"shape \[1, 30, 40, 4\]; expected"):
        tools.resize(torch.zeros(1, 30, 40, 4), None, width=10)
    with pytest.raises(
        ArtMancerError,
        match=r"would become 16384x12288; at most 16,384 pixels a side and 134,217,728",
    ):
        tools.resize(photo, None, width=16384)
    with pytest.raises(ArtMancerError, match="would become 1000x40000"):
        tools.resize(torch.zeros(1, 80, 2, 3), None, width=1000)


def test_an_object_is_centered_on_white_without_its_surroundings() -> None:
    mask = disc(300, 400, 100, 250, 40)
    blue = torch.tensor([0.0, 0.0, 1.0])
    photo = blue.repeat(1, 300, 400, 1)
    photo[mask > 0] = torch.tensor([0.8, 0.2, 0.1])
    square = tools.extract_object(photo, mask, 256)[0]
    assert square.shape == (256, 256, 3)
    assert torch.equal(square[0], torch.ones(256, 3))
    assert torch.allclose(square[128, 128], photo[0, 100, 250], atol=0.01)
    positions = torch.nonzero(square.amin(-1) < 0.9).float()
    assert torch.allclose(positions.mean(0), torch.tensor([127.5, 127.5]), atol=1.5)
    height = float(positions[:, 0].max() - positions[:, 0].min())
    assert height == pytest.approx(256 * 0.9, abs=4)
    assert (square[..., 2] <= square[..., 0] + 0.02).all(), "no blue in the edge"


def test_side_0_follows_the_largest_object_of_the_batch() -> None:
    photo = torch.zeros(1, 40, 1000, 3)
    small, large = torch.zeros(1, 40, 1000), torch.zeros(1, 40, 1000)
    small[:, :10, 100:612] = 1
    large[:, :10, 100:613] = 1
    assert tools.extract_object(photo, small, 0).shape == (1, 512, 512, 3)
    assert tools.extract_object(photo, large, 0).shape == (1, 1024, 1024, 3)
    batch = tools.extract_object(photo.repeat(2, 1, 1, 1), torch.cat([small, large]), 0)
    assert batch.shape == (2, 1024, 1024, 3)


def test_an_oblong_object_keeps_its_aspect_ratio() -> None:
    mask = torch.zeros(1, 100, 300)
    mask[:, 40:60, 50:250] = 1
    square = tools.extract_object(torch.zeros(1, 100, 300, 3), mask, 200, 0.0)[0]
    dark = square.amin(-1) < 0.5
    assert dark.any(0).sum() == 200
    assert dark.any(1).sum() == 20


def test_a_shadow_falls_beside_the_object_and_not_on_it() -> None:
    photo, mask = torch.full((1, 200, 200, 3), 0.8), disc(200, 200, 100, 100, 30)
    result, shadow = tools.cast_shadow(photo, mask, (40, 10), 0.5, 4)
    assert torch.equal(result[mask > 0], photo[mask > 0])
    assert float(result[0, 110, 160, 0]) == pytest.approx(0.4, abs=0.02)
    assert torch.equal(result[0, 100, 40], photo[0, 100, 40])
    assert float(shadow.max()) <= 0.5
    hard, _ = tools.cast_shadow(photo, mask, (40, 10), 1.0, 0)
    assert hard.unique().tolist() == pytest.approx([0.0, 0.8])


def test_without_a_mask_everything_that_is_not_white_is_the_object() -> None:
    mask = disc(200, 200, 100, 100, 40)
    photo = torch.where(mask.unsqueeze(-1) > 0, torch.tensor([0.2, 0.6, 0.1]), torch.ones(3))
    white_part = region.Window(90, 90, 110, 110)
    white_part.view(photo[0]).fill_(1)
    result, shadow = tools.cast_shadow(photo, None, (30, 0), 1.0, 0)
    assert torch.equal(white_part.view(result[0]), white_part.view(photo[0])), (
        "no shadow falls on the white part"
    )
    inside = disc(200, 200, 100, 100, 38) > 0
    beside = (disc(200, 200, 100, 130, 38) > 0) & (mask == 0)
    assert torch.equal(result[inside], photo[inside])
    assert (shadow[beside] == 1).all()
    empty = torch.ones(1, 20, 20, 3)
    assert torch.equal(tools.cast_shadow(empty, None)[0], empty)


def test_between_a_shadow_and_a_soft_edge_there_is_no_light_rim() -> None:
    steps = torch.linspace(0, 1, 9).view(1, 1, 9, 1)
    edge = torch.lerp(torch.ones(3), torch.tensor([0.3, 0.0, 0.5]), steps).expand(1, 20, 9, 3)
    white = torch.ones(1, 20, 20, 3)
    black = torch.zeros(1, 20, 20, 3)
    photo = torch.cat([white, edge, black], 2)
    result, _ = tools.cast_shadow(photo, None, (-10, 0), 1.0, 0)
    row = result[0, 10, :, 0]
    assert (row.diff()[15:20] <= 0).all()


def test_the_shadow_of_an_object_at_the_border_is_not_lighter_there() -> None:
    mask = torch.zeros(1, 100, 100)
    mask[:, :, :30] = 1
    _, shadow = tools.cast_shadow(torch.ones(1, 100, 100, 3), mask, (20, 0), 1.0, 3)
    assert torch.allclose(shadow[0, 50, 40], torch.tensor(1.0), atol=0.02)


def test_temperature_and_tint_shift_a_gray_and_keep_its_luminance() -> None:
    gray = torch.full((1, 4, 4, 3), 0.5)
    warm = tools.shift_light(gray, 60)[0, 0, 0]
    cold = tools.shift_light(gray, -60)[0, 0, 0]
    magenta = tools.shift_light(gray, 0, 60)[0, 0, 0]
    assert warm[0] > warm[2]
    assert cold[0] < cold[2]
    assert magenta[1] < magenta[0]
    assert torch.allclose(magenta[0], magenta[2], atol=1e-6)
    luminance = float(tools.to_linear(gray)[0, 0, 0, 0])
    for color in (warm, cold, magenta):
        assert float(LUMINANCE @ tools.to_linear(color)) == pytest.approx(luminance, rel=1e-4)
    assert torch.equal(tools.shift_light(gray), gray)
    with pytest.raises(ArtMancerError, match="tint is 101; expected -100 to 100"):
        tools.shift_light(gray, 0, 101)


def test_transparent_pixels_are_laid_over_white() -> None:
    photo = torch.tensor([[[[0.2, 0.4, 0.6, 1.0], [0.2, 0.4, 0.6, 0.5], [0.2, 0.4, 0.6, 0.0]]]])
    on_white = torch.tensor([[[[0.2, 0.4, 0.6], [0.6, 0.7, 0.8], [1.0, 1.0, 1.0]]]])
    assert torch.allclose(tools.opaque(photo), on_white)
    assert torch.equal(tools.opaque(on_white), on_white)
    for tool in (tools.shift_light, lambda image: tools.side_by_side(on_white, image)):
        with pytest.raises(ArtMancerError, match=r"shape \[1, 1, 3, 4\]; expected"):
            tool(photo)


def test_two_images_are_shown_side_by_side_in_one() -> None:
    black, white = torch.zeros(1, 4, 10, 3), torch.ones(1, 4, 10, 3)
    row = tools.side_by_side(black, white, 0.3)[0, 0, :, 0]
    assert row.tolist() == [0.0] * 3 + [1.0] * 7
    with pytest.raises(ArtMancerError, match=r"before is 10x4 \(batch of 1\) but after is 5x4"):
        tools.side_by_side(black, white[:, :, :5])


TOOLS = {
    "resize": lambda image, mask: tools.resize(image, mask, 25, 20),
    "extract object": lambda image, mask: [tools.extract_object(image, mask)],
    "cast shadow": tools.cast_shadow,
    "shift light": lambda image, mask: [tools.shift_light(tools.opaque(image), 20)],
}
"""Tools that take an image and a mask and return a sequence of tensors."""


@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
def test_images_in_half_precision_give_float32_results(tool) -> None:
    # ComfyUI's --fp16-intermediates makes such images.
    image, mask = torch.rand(1, 40, 50, 3).half(), torch.zeros(1, 40, 50).half()
    mask[:, 10:30, 10:30] = 1
    expected_results = tool(image.float(), mask.float())
    for result, expected in zip(tool(image, mask), expected_results, strict=True):
        assert result.dtype == torch.float32
        assert torch.equal(result, expected)
