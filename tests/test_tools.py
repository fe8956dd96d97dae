import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.images import disc, smooth_picture

from artmancer import tools
from artmancer.errors import ArtMancerError

SIDE, ASKED = st.integers(1, 20000), st.integers(0, 20000)


@given(size=st.tuples(SIDE, SIDE), width=ASKED, height=ASKED, limit=st.integers(0, 2**27))
def test_a_size_is_what_is_asked_within_the_limit(
    size: tuple[int, int], width: int, height: int, limit: int
) -> None:
    free = tools.fit(size, width, height)
    assert (height or free[0], width or free[1]) == free
    if not width and not height:
        assert free == size
    elif not (width and height):
        off = abs(free[0] * size[1] - free[1] * size[0])
        assert off <= max(size) or min(free) == 1, "the aspect ratio, but for rounding"
    limited = tools.fit(size, width, height, limit)
    area = limited[0] * limited[1]
    if limit == 0 or free[0] * free[1] <= limit:
        assert limited == free
    else:
        assert (
            min(limited) >= 1
            and area <= limit
            and all(a <= b for a, b in zip(limited, free, strict=True))
        )
        # Rounding down takes less than one row and one column.
        assert (limited[0] + 1) * (limited[1] + 1) > limit or min(limited) == 1


def test_a_photo_and_its_mask_are_resized_together() -> None:
    photo, mask = smooth_picture(120, 200, 40, 0), disc(120, 200, 60, 100, 30)
    image, where = tools.resize(photo, mask, width=100)
    assert image.shape == (1, 60, 100, 3) and where is not None and where.shape == (1, 60, 100)
    assert float(image.min()) >= 0 and float(image.max()) <= 1
    assert (image - photo[:, ::2, ::2]).abs().mean() < 0.02
    assert (where - disc(60, 100, 29.75, 49.75, 15)).abs().mean() < 0.02
    assert tools.resize(photo.repeat(3, 1, 1, 1), None, height=60)[0].shape == (3, 60, 100, 3)
    assert tools.resize(photo, None, 50, 70, 1000)[0].shape == (1, 37, 26, 3)


def test_a_photo_of_the_size_asked_for_is_passed_on_as_it_is() -> None:
    photo, mask = smooth_picture(30, 40, 9, 0), torch.rand(1, 30, 40)
    for asked in (
        {},
        {"width": 40},
        {"height": 30},
        {"width": 40, "height": 30},
        {"max_pixels": 1200},
    ):
        image, where = tools.resize(photo, mask, **asked)
        assert torch.equal(image, photo) and where is not None and torch.equal(where, mask)
    assert tools.resize(photo)[1] is None


def test_what_cannot_be_resized_is_refused() -> None:
    photo = torch.zeros(1, 30, 40, 3)
    with pytest.raises(ArtMancerError, match="mask is 30x30 but the image is 40x30"):
        tools.resize(photo, torch.zeros(1, 30, 30), width=10)
    with pytest.raises(ArtMancerError, match=r"shape \[1, 30, 40, 4\]; expected"):
        tools.resize(torch.zeros(1, 30, 40, 4), None, width=10)
    with pytest.raises(
        ArtMancerError,
        match=r"would become 16384x12288; at most 16,384 pixels a side and 134,217,728",
    ):
        tools.resize(photo, None, width=16384)
    with pytest.raises(ArtMancerError, match="would become 1000x40000"):
        tools.resize(torch.zeros(1, 80, 2, 3), None, width=1000)


def test_an_object_is_centred_on_white_and_none_of_its_surroundings_shows() -> None:
    mask = disc(300, 400, 100, 250, 40)
    photo = torch.zeros(1, 300, 400, 3)
    photo[..., 2] = 1  # blue all around
    photo[mask > 0] = torch.tensor([0.8, 0.2, 0.1])
    square = tools.extract_object(photo, mask, 256)[0]
    assert square.shape == (256, 256, 3)
    assert torch.equal(square[0], torch.ones(256, 3)) and torch.allclose(
        square[128, 128], photo[0, 100, 250], atol=0.01
    )
    dark = torch.nonzero(square.amin(-1) < 0.9).float()
    assert torch.allclose(dark.mean(0), torch.tensor([127.5, 127.5]), atol=1.5)
    assert float(dark.amax(0)[0] - dark.amin(0)[0]) == pytest.approx(256 * 0.9, abs=4)
    assert (square[..., 2] <= square[..., 0] + 0.02).all(), "no blue in the edge"


def test_a_square_of_no_side_is_as_large_as_the_largest_object_needs() -> None:
    photo = torch.zeros(1, 40, 1000, 3)
    small, large = torch.zeros(1, 40, 1000), torch.zeros(1, 40, 1000)
    small[:, :10, 100:612] = 1
    large[:, :10, 100:613] = 1
    assert tools.extract_object(photo, small, 0).shape == (1, 512, 512, 3)
    assert tools.extract_object(photo, large, 0).shape == (1, 1024, 1024, 3)
    assert tools.extract_object(photo.repeat(2, 1, 1, 1), torch.cat([small, large]), 0).shape == (
        2,
        1024,
        1024,
        3,
    )


def test_an_oblong_object_keeps_its_shape() -> None:
    mask = torch.zeros(1, 100, 300)
    mask[:, 40:60, 50:250] = 1
    square = tools.extract_object(torch.zeros(1, 100, 300, 3), mask, 200, 0.0)[0]
    dark = square.amin(-1) < 0.5
    assert dark.any(0).sum() == 200 and dark.any(1).sum() == 20


def test_a_shadow_falls_beside_the_object_and_not_on_it() -> None:
    photo, mask = torch.full((1, 200, 200, 3), 0.8), disc(200, 200, 100, 100, 30)
    result, shadow = tools.cast_shadow(photo, mask, (40, 10), 0.5, 4)
    assert torch.equal(result[mask > 0], photo[mask > 0])
    assert float(result[0, 110, 160, 0]) == pytest.approx(0.4, abs=0.02)
    assert torch.equal(result[0, 100, 40], photo[0, 100, 40])
    assert float(shadow.max()) <= 0.5
    hard, _ = tools.cast_shadow(photo, mask, (40, 10), 1.0, 0)
    assert hard.unique().tolist() == pytest.approx([0.0, 0.8])


def test_without_a_mask_the_object_is_what_is_not_white() -> None:
    mask = disc(200, 200, 100, 100, 40)
    photo = torch.where(mask.unsqueeze(-1) > 0, torch.tensor([0.2, 0.6, 0.1]), torch.ones(3))
    photo[:, 90:110, 90:110] = 1  # a white part of it
    result, shadow = tools.cast_shadow(photo, None, (30, 0), 1.0, 0)
    assert torch.equal(result[:, 90:110, 90:110], photo[:, 90:110, 90:110]), "not in the shadow"
    inner, beside = (
        disc(200, 200, 100, 100, 38) > 0,
        (disc(200, 200, 100, 130, 38) > 0) & (mask == 0),
    )
    assert torch.equal(result[inner], photo[inner]) and (shadow[beside] == 1).all()
    soft = torch.lerp(
        torch.ones(3), torch.tensor([0.3, 0.0, 0.5]), torch.linspace(0, 1, 9).view(1, 1, 9, 1)
    )
    row = torch.cat(
        [torch.ones(1, 20, 20, 3), soft.expand(1, 20, 9, 3), torch.zeros(1, 20, 20, 3)], 2
    )
    cast = tools.cast_shadow(row, None, (-10, 0), 1.0, 0)[0][0, 10, :, 0]
    assert (cast.diff()[15:20] <= 0).all(), "no light rim between the shadow and a soft edge"
    empty = torch.ones(1, 20, 20, 3)
    assert torch.equal(tools.cast_shadow(empty, None)[0], empty)


def test_the_shadow_of_an_object_at_the_border_is_not_lighter_there() -> None:
    mask = torch.zeros(1, 100, 100)
    mask[:, :, :30] = 1
    _, shadow = tools.cast_shadow(torch.ones(1, 100, 100, 3), mask, (20, 0), 1.0, 3)
    assert torch.allclose(shadow[0, 50, 40], torch.tensor(1.0), atol=0.02)


def test_light_is_shifted_by_hand_and_a_grey_keeps_its_luminance() -> None:
    grey = torch.full((1, 4, 4, 3), 0.5)
    warm, cold = tools.shift_light(grey, 60)[0, 0, 0], tools.shift_light(grey, -60)[0, 0, 0]
    assert warm[0] > warm[2] and cold[0] < cold[2]
    magenta = tools.shift_light(grey, 0, 60)[0, 0, 0]
    assert magenta[1] < magenta[0] and torch.allclose(magenta[0], magenta[2], atol=1e-6)
    weights, light = (
        torch.tensor([0.2126, 0.7152, 0.0722]),
        float(tools.to_linear(grey)[0, 0, 0, 0]),
    )
    for color in (warm, cold, magenta):
        assert float(weights @ tools.to_linear(color)) == pytest.approx(light, rel=1e-4)
    assert torch.equal(tools.shift_light(grey), grey)
    with pytest.raises(ArtMancerError, match="tint is 101; expected -100 to 100"):
        tools.shift_light(grey, 0, 101)


def test_what_has_alpha_is_laid_over_white() -> None:
    photo = torch.tensor([[0.2, 0.4, 0.6, 1.0], [0.2, 0.4, 0.6, 0.5], [0.2, 0.4, 0.6, 0.0]]).view(
        1, 1, 3, 4
    )
    over = torch.tensor([[0.2, 0.4, 0.6], [0.6, 0.7, 0.8], [1.0, 1.0, 1.0]]).view(1, 1, 3, 3)
    assert torch.allclose(tools.opaque(photo), over) and torch.equal(tools.opaque(over), over)
    for tool in (tools.shift_light, lambda image: tools.side_by_side(over, image)):
        with pytest.raises(ArtMancerError, match=r"shape \[1, 1, 3, 4\]; expected"):
            tool(photo)


def test_two_pictures_are_shown_in_one() -> None:
    one, other = torch.zeros(1, 4, 10, 3), torch.ones(1, 4, 10, 3)
    assert tools.side_by_side(one, other, 0.3)[0, 0, :, 0].tolist() == [0.0] * 3 + [1.0] * 7
    with pytest.raises(ArtMancerError, match=r"before is 10x4 \(batch of 1\) but after is 5x4"):
        tools.side_by_side(one, other[:, :, :5])


def test_pictures_in_half_precision_give_what_others_give() -> None:
    """As ComfyUI's --fp16-intermediates makes them."""
    image, mask = torch.rand(1, 40, 50, 3).half(), torch.zeros(1, 40, 50).half()
    mask[:, 10:30, 10:30] = 1
    full = image.float(), mask.float()
    for run in (
        lambda *given: tools.resize(*given, 25, 20),
        tools.extract_object,
        tools.cast_shadow,
        lambda image, mask: tools.shift_light(tools.opaque(image), 20),
    ):
        ours, expected = run(image, mask), run(*full)
        for one, other in zip(
            ours if isinstance(ours, tuple) else (ours,),
            expected if isinstance(expected, tuple) else (expected,),
            strict=True,
        ):
            assert one.dtype == torch.float32 and torch.equal(one, other)
