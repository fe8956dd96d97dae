import pytest
import torch
from pictures import disc

from artmancer import tools
from artmancer.errors import ArtMancerError


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
    weights, light = torch.tensor([0.2126, 0.7152, 0.0722]), float(tools.to_linear(grey)[0, 0, 0, 0])
    for color in (warm, cold, magenta):
        assert float(weights @ tools.to_linear(color)) == pytest.approx(light, rel=1e-4)
    assert torch.equal(tools.shift_light(grey), grey)
    with pytest.raises(ArtMancerError, match="tint is 101; expected -100 to 100"):
        tools.shift_light(grey, 0, 101)


def test_two_pictures_are_shown_in_one() -> None:
    one, other = torch.zeros(1, 4, 10, 3), torch.ones(1, 4, 10, 3)
    assert tools.side_by_side(one, other, 0.3)[0, 0, :, 0].tolist() == [0.0] * 3 + [1.0] * 7
    with pytest.raises(ArtMancerError, match="before is 1 of 10x4 but after is 1 of 5x4"):
        tools.side_by_side(one, other[:, :, :5])
