"""The tone curve for HDR images, and edits of HDR and float images."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.images import disc, smooth_picture
from torch import Tensor

from artmancer import color, fill, mask_ops, region
from artmancer.conditions import prepare
from artmancer.draft import DraftEditor, balance
from artmancer.edit import edit
from artmancer.editor import Editor, PrecomputedEdit
from artmancer.progress import no_progress
from artmancer.report import EditResult
from artmancer.tone import ToneCurve

needs_patchmatch = pytest.mark.skipif(
    fill.method() != "patchmatch", reason="pypatchmatch has no wheel for this Python"
)


@settings(deadline=None)
@given(low=st.floats(-2, 0), high=st.floats(1, 1e4), share=st.floats(0, 1))
def test_the_curve_is_undone_and_keeps_the_order(low: float, high: float, share: float) -> None:
    curve = ToneCurve(low, high)
    values = torch.tensor([low, low * share, share, 1.0, 1 + share * (high - 1), high])
    curved = curve.encode(values)
    assert curved.min() >= 0 and curved.max() <= 1
    assert (curved[values.argsort()].diff() >= -1e-6).all()
    assert torch.allclose(curve.decode(curved), values, rtol=2e-4, atol=1e-5)


def test_the_curve_leaves_the_usual_range_alone() -> None:
    values = torch.rand(4, 5, 3)
    curve = ToneCurve(0, 1)
    assert torch.equal(curve.encode(values), values) and torch.equal(curve.decode(values), values)


def lamp() -> tuple[Tensor, Tensor]:
    """Return an HDR photo of a lamp, 8 at its center, on a wall of 0.2, and the mask of a mark
    across its edge.
    """
    y, x = torch.meshgrid(torch.arange(240.0), torch.arange(300.0), indexing="ij")
    glow = 7.8 * torch.exp(-((y - 120) ** 2 + (x - 150) ** 2) / (2 * 40**2))
    photo = (0.2 + glow).unsqueeze(-1).expand(-1, -1, 3).unsqueeze(0).contiguous()
    return photo, disc(240, 300, 120, 185, 14)


@needs_patchmatch
@pytest.mark.parametrize("resolution", ["native", "512"])
def test_a_removal_in_a_lamp_keeps_the_light(resolution: str) -> None:
    photo, mask = lamp()
    marked = torch.where(mask.unsqueeze(-1) > 0, torch.zeros(3), photo)
    conditions = prepare(marked, mask, resolution=resolution)
    result = edit(DraftEditor("removal"), conditions)
    filled, truth = result.image[mask > 0], photo[mask > 0]
    assert filled.amax() > 3, "values above 1 are filled as such"
    assert result.image.amax() <= photo.amax()
    assert (filled / truth).log2().abs().median() < 0.5, "half a stop"
    assert torch.equal(
        result.image[mask_ops.feather(mask, 16) == 0], marked[mask_ops.feather(mask, 16) == 0]
    )
    assert not result.report.notes


def test_an_editor_that_clips_leaves_the_light_around_the_mask_and_is_reported() -> None:
    photo, mask = lamp()
    conditions = prepare(photo, mask)
    result = edit(PrecomputedEdit([conditions.crop.image.clamp(0, 1)], "removal"), conditions)
    assert torch.allclose(result.image[mask == 0], photo[mask == 0])
    assert result.image[mask > 0].amax() <= 1
    (note,) = result.report.notes
    assert "values of 0 to 8" in note


@needs_patchmatch
def test_a_soft_gradient_is_filled_without_the_steps_of_8_bits() -> None:
    # A tenth of an 8-bit level for each pixel.
    slope = torch.arange(300) / 2550
    photo = (0.25 + slope).view(1, 1, -1, 1).expand(1, 160, 300, 3).contiguous()
    mask = torch.zeros(1, 160, 300)
    mask[:, 50:110, 100:200] = 1
    marked = torch.where(mask.unsqueeze(-1) > 0, torch.ones(3), photo)
    filled = fill.fill(marked, mask, 0, no_progress, method="patchmatch")
    inside = filled[0, 50:110, 99:201] * 255
    steps, rounded = (levels.diff(dim=1).abs() for levels in (inside, inside.round()))
    visible = (rounded > 0.5).float().mean()
    assert (steps > 0.5).float().mean() < 0.35 * visible
    # Between its steps, the rounded fill stands still.
    assert (steps == 0).float().mean() < 0.35 * (rounded == 0).float().mean()
    assert (filled - photo)[mask > 0].abs().mean() * 255 < 2


def test_a_photo_in_8_bits_is_filled_in_8_bits() -> None:
    photo = (torch.rand(1, 90, 90, 3) * 255).round() / 255
    filled = fill.fill(photo, disc(90, 90, 45, 45, 12), 0, no_progress, method="telea")
    assert torch.allclose(filled * 255, (filled * 255).round(), atol=1e-3)


def test_colors_at_the_rim_are_matched_above_1() -> None:
    photo, mask = 4 * smooth_picture(200, 200, 80, 0), disc(200, 200, 100, 100, 50)
    matched = color.match_rim(0.9 * photo, photo, mask)
    assert (matched - photo).abs().mean() < 0.03
    assert matched.amax() <= photo.amax()


@pytest.mark.parametrize("side", [96, 256])
def test_a_resampled_crop_keeps_values_above_1(side: int) -> None:
    photo, mask = 5 * smooth_picture(300, 300, 150, 0), disc(300, 300, 150, 150, 80)
    crop = region.crop(photo, mask, longest_side=side)
    result = region.stitch(crop.image, photo, crop.region, crop.image)
    assert (result - photo).abs().max() < 0.05


@pytest.mark.parametrize("side", [96, 256])
def test_a_change_beyond_the_photos_range_fades_out_around_the_mask(side: int) -> None:
    photo, mask = 0.3 * smooth_picture(300, 300, 150, 0), disc(300, 300, 150, 150, 60)
    crop = region.crop(photo, mask, longest_side=side, feather=24)
    for change in (3.0, -2.0):
        result = region.stitch(crop.image + change, photo, crop.region, crop.image)
        expected = photo + mask_ops.feather(mask, 24).unsqueeze(-1) * change
        assert (result - expected).abs().max() < 0.05


def test_a_white_balance_keeps_the_light_of_a_lamp() -> None:
    photo, _ = lamp()
    cast = photo * torch.tensor([1.2, 1.0, 0.8])
    balanced = balance(cast, torch.ones(1, 240, 300), 1.0)
    assert balanced.amax() > 5
    result = edit(DraftEditor("white_balance"), prepare(cast)).image
    assert result[0, 120, 150].amin() > 4, "the change of colors applies above 1, too"
    before, after = (
        math.log2(image[0, 120, 150, 0] / image[0, 120, 150, 2]) for image in (cast, result)
    )
    assert after < 0.5 * before


def test_an_insertion_keeps_the_photos_values_beside_the_object() -> None:
    photo, mask = lamp()
    reference = torch.full((1, 40, 20, 3), 0.5)
    box = torch.zeros_like(mask)
    box[:, 80:160, 100:200] = 1
    result = edit(DraftEditor("insertion"), prepare(photo, box, reference=reference)).image
    beside = result[0, 85:155, 105:120]
    assert torch.allclose(beside, photo[0, 85:155, 105:120])


def insert_a_lamp(
    editor: Editor | None = None, resolution: str = "native", match_grain: bool = False
) -> EditResult:
    """Return the insertion of an object of 4 into a photo of 0.3."""
    photo, box = torch.full((1, 240, 300, 3), 0.3), torch.zeros(1, 240, 300)
    box[:, 80:160, 100:200] = 1
    reference = torch.full((1, 40, 50, 3), 4.0)
    conditions = prepare(photo, box, reference=reference, resolution=resolution)
    return edit(editor or DraftEditor("insertion"), conditions, match_grain=match_grain)


@pytest.mark.parametrize("match_grain", [False, True])
@pytest.mark.parametrize("resolution", ["native", "512"])
def test_the_draft_inserts_the_values_of_an_hdr_reference(
    resolution: str, match_grain: bool
) -> None:
    result = insert_a_lamp(None, resolution, match_grain)
    assert torch.allclose(result.image[0, 90:150, 110:190], torch.tensor(4.0), atol=0.05)
    assert torch.allclose(result.image[0, :60], torch.tensor(0.3))
    assert not [note for note in result.report.notes if "clipped" in note]


def test_the_report_says_that_an_editor_clipped_the_reference() -> None:
    white = PrecomputedEdit([torch.ones(1, 160, 192, 3)], "insertion")
    result = insert_a_lamp(white)
    (note,) = (note for note in result.report.notes if "clipped" in note)
    assert note.startswith("The reference has values up to 4,")
