"""Edits from end to end with the draft editor, and with stand-ins whose edit is known."""

import math
import re
from collections.abc import Callable

import cv2
import pytest
import torch
from support.images import disc, iou, smooth_picture, waves
from torch import Tensor

from artmancer import fill as filling
from artmancer import mask_ops, region
from artmancer.color import to_linear
from artmancer.conditions import Conditions, prepare, with_blend_mask, with_extra
from artmancer.draft import DraftEditor, balance
from artmancer.edit import edit
from artmancer.editor import EditRequest
from artmancer.errors import ArtMancerError
from artmancer.options import Sampling
from artmancer.progress import Progress
from artmancer.report import EditResult, Report
from artmancer.variants import VARIANTS

needs_patchmatch = pytest.mark.skipif(
    filling.method() != "patchmatch", reason="pypatchmatch has no wheel for this Python"
)


class StandIn:
    """An editor that applies a function of the test to the crop."""

    name = "stand-in"
    adapters = ()
    notes = ()
    keeps_surroundings = False

    def __init__(self, change, variant: str = "removal") -> None:
        self.change = change
        self.variant = variant

    def edit(self, request: EditRequest, progress: Progress) -> Tensor:
        return self.change(request.conditions.crop.image)


def stripes(height: int, width: int) -> Tensor:
    """Return an IMAGE [1, H, W, 3] of horizontal gray stripes, 6 pixels high."""
    rows = (torch.arange(height) // 6 % 2).float().view(1, -1, 1, 1)
    return (0.3 + 0.4 * rows).expand(1, height, width, 3).contiguous()


def translate(image: Tensor, right: float, down: float) -> Tensor:
    """Move an IMAGE [1, H, W, 3] by a shift in pixels; edge pixels are repeated."""
    height, width = image.shape[1:3]
    matrix = torch.tensor([[1.0, 0, right], [0, 1, down]]).numpy()
    moved = cv2.warpAffine(
        image[0].numpy(),
        matrix,
        (width, height),
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return torch.from_numpy(moved).unsqueeze(0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_keeps_every_bit_outside_the_mask(example, variant: str) -> None:
    photo, mask = example("coffee"), example("coffee_mask")
    conditions = prepare(
        photo, mask, reference=example("astronaut"), reference_mask=example("astronaut_patch_mask")
    )
    result = edit(DraftEditor(variant), conditions)
    outside = mask_ops.feather(mask, 16) == 0
    assert torch.equal(result.image[outside], photo[outside])
    assert not torch.equal(result.image[mask == 1], photo[mask == 1])
    assert result.report.editor == f"draft/{variant}"
    assert result.report.outside_psnr == math.inf


def test_extra_images_follow_the_recipes_images_at_the_crops_size(example) -> None:
    conditions = prepare(example("coffee"), example("coffee_mask"))
    height, width = conditions.crop.region.size
    wide = torch.full((1, height, 2 * width, 3), 0.25)
    extended = with_extra(with_extra(conditions, wide), example("coffee"))
    assert list(extended.images) == ["mask", "background", "object", "extra 1", "extra 2"]
    assert list(conditions.images) == ["mask", "background", "object"]
    first = extended.images["extra 1"]
    assert first.shape == conditions.crop.image.shape
    middle = first[:, height // 4 + 2 : -height // 4 - 2]
    assert torch.allclose(middle, torch.tensor(0.25), atol=1e-5)
    border = first[:, : height // 4 - 2]
    assert torch.equal(border, torch.ones(1, height // 4 - 2, width, 3))
    fitting = with_extra(conditions, conditions.crop.image).images["extra 1"]
    assert torch.allclose(fitting, conditions.crop.image, atol=1e-5)
    result = edit(DraftEditor("white_balance"), extended)
    assert result.report.conditions == tuple(extended.images)
    assert torch.equal(result.image, edit(DraftEditor("white_balance"), conditions).image)


def test_an_extra_image_serves_the_batch_or_comes_once_for_each_photo(example) -> None:
    photos = torch.cat([example("coffee"), 1 - example("coffee")])
    conditions = prepare(photos, example("coffee_mask"))
    assert len(with_extra(conditions, example("astronaut")).images["extra 1"]) == 2
    both = with_extra(conditions, photos).images["extra 1"]
    assert torch.allclose(both[1, 100:120], 1 - both[0, 100:120], atol=0.1)
    for image, message in (
        (photos.repeat(2, 1, 1, 1), "batch of 4; expected 1, or 2"),
        (photos[..., :1], r"The extra image has shape \[2, 400, 600, 1\]"),
        (photos * torch.nan, "NaN"),
    ):
        with pytest.raises(ArtMancerError, match=message) as error:
            with_extra(conditions, image)
        assert error.value.code == "invalid_request"


def test_a_black_edit_is_accepted_where_the_surroundings_are_black() -> None:
    photo, mask = torch.zeros(1, 200, 240, 3), disc(200, 240, 100, 120, 20)
    photo[mask > 0] = 1
    conditions = prepare(photo, mask, grow=4)
    assert not edit(DraftEditor("removal"), conditions).image.any()


@pytest.mark.skipif(filling.method() != "patchmatch", reason="OpenCV's fill is blurred")
def test_removal_continues_the_pattern_around_the_hole() -> None:
    photo, mask = stripes(200, 240), disc(200, 240, 100, 120, 35)
    red_object = torch.where(mask.unsqueeze(-1) > 0, torch.tensor([1.0, 0.0, 0.0]), photo)
    result = edit(DraftEditor("removal"), prepare(red_object, mask)).image
    assert (result - photo).abs().mean() < 0.02
    assert (result - photo)[mask > 0].abs().median() < 0.05


def test_removal_does_not_fill_the_wall_with_a_face(example) -> None:
    photo, mask = example("astronaut"), example("astronaut_shuttle_mask")
    mask[:, 60:220, 345:375] = 1
    filled = filling.fill(photo, mask, 0, lambda *_: None)[mask == 1]
    reddish = (filled[:, 0] - filled[:, 2]) > 0.25
    assert reddish.float().mean() < 0.005, "neither skin nor orange cloth"


@pytest.mark.parametrize("side", [1, 2, 3])
def test_an_object_of_one_to_three_pixels_is_inserted(side: int) -> None:
    photo, mask = torch.rand(1, 200, 300, 3), torch.zeros(1, 200, 300)
    mask[:, 100 : 100 + side, 100:160] = 1
    conditions = prepare(photo, mask, reference=torch.ones(1, 4, 240, 3))
    result = edit(DraftEditor("insertion"), conditions, match=False).image
    assert not torch.equal(result, photo)


def test_an_object_at_the_edge_of_the_image_is_whole() -> None:
    photo, mask = torch.full((1, 100, 100, 3), 0.5), torch.zeros(1, 100, 100)
    mask[:, 25:75, :50] = 1
    red = torch.tensor([1.0, 0.0, 0.0]).expand(1, 50, 50, 3)
    result = edit(DraftEditor("insertion"), prepare(photo, mask, reference=red), match=False).image
    box = region.bounds((result[0, ..., 0] - result[0, ..., 1] > 0.5).float())
    assert box.left <= 4 and box.right >= 46
    assert box.top <= 29 and box.bottom >= 71


def test_an_edit_with_nan_is_refused(example) -> None:
    editor = StandIn(lambda crop: crop.clone().index_fill(1, torch.tensor([0]), torch.nan))
    with pytest.raises(ArtMancerError, match="stand-in returned NaN"):
        edit(editor, prepare(example("coffee"), example("coffee_mask")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fill": torch.zeros(1, 10, 10, 3), "recipe": "background_mask_fill"}, "fill has shape"),
        ({"fill": torch.zeros(2, 400, 600, 3), "recipe": "background_mask_fill"}, "fill has shape"),
        ({"reference": torch.full((1, 8, 8, 3), torch.nan)}, "reference holds NaN"),
        (
            {"fill": torch.full((1, 400, 600, 3), torch.nan), "recipe": "background_mask_fill"},
            "fill holds NaN",
        ),
        ({"recipe": "soup"}, "recipe is 'soup'"),
        ({"resolution": "640"}, "resolution is '640'"),
    ],
)
def test_prepare_refuses_invalid_options(example, options: dict, message: str) -> None:
    with pytest.raises(ArtMancerError, match=message):
        prepare(example("coffee"), example("coffee_mask"), **options)


@pytest.mark.slow
@needs_patchmatch
def test_the_same_seed_gives_the_same_edit_and_a_batch_counts_up(example) -> None:
    photo, mask = example("astronaut"), example("astronaut_shuttle_mask")
    first = edit(DraftEditor("removal"), prepare(photo, mask), seed=5).image
    second = edit(DraftEditor("removal"), prepare(photo, mask), seed=5).image
    batch = edit(DraftEditor("removal"), prepare(photo.repeat(2, 1, 1, 1), mask), seed=4).image
    assert torch.equal(first, second)
    assert torch.equal(batch[1:], first)
    assert not torch.equal(batch[:1], first)


@pytest.mark.slow
@needs_patchmatch
def test_the_draft_removes_what_a_brush_painted_as_well_as_any_other_mask(example) -> None:
    # The wall behind the shuttle is light. Patches of the suit and the helmet are not.
    photo, mask = example("astronaut"), example("astronaut_shuttle_mask")
    result = edit(DraftEditor("removal"), prepare(photo, mask, brushed=True)).image
    wall = result[0, 40:240, 390:440]
    assert (wall.mean((0, 1)) - photo[0, 60:180, 310:335].mean((0, 1))).abs().max() < 0.1
    assert wall.amin() > 0.4


def ball_on_wood(example: Callable[[str], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return a photo of a wooden table, the same with a blue ball whose edge is as soft as a
    camera's, and the ball's opacity, [1, h, w].
    """
    table = example("coffee")[:, :150, 430:]
    height, width = table.shape[1:3]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    opacity = (torch.hypot(y - 70.0, x - 90.0).neg() + 25.5).clamp(0, 1)[None]
    ball = torch.tensor([0.1, 0.2, 0.9])
    return table, torch.lerp(table, ball.expand_as(table), opacity[..., None]), opacity


@pytest.mark.parametrize("method", ["patchmatch", "telea"])
@pytest.mark.parametrize("short", [0, 2], ids=["mask to the edge", "mask 2 px short"])
def test_a_removal_continues_nothing_of_an_object_that_the_mask_leaves_at_its_edge(
    example, monkeypatch: pytest.MonkeyPatch, method: str, short: int
) -> None:
    if filling.method() != "patchmatch" and method == "patchmatch":
        pytest.skip("pypatchmatch has no wheel for this Python")
    monkeypatch.setattr(filling, "method", lambda: method)
    table, photo, opacity = ball_on_wood(example)
    mask = mask_ops.grow((opacity > 0.5).float(), -short)
    result = edit(DraftEditor("removal"), prepare(photo, mask)).image
    # Wood is orange: red is far above blue. What is left of the ball fades out with the edit.
    place = mask > 0
    blue = result[..., 2] - result[..., 0]
    assert blue[place].amax() < 0
    assert blue.amax() < 0.25 * (photo[..., 2] - photo[..., 0]).amax()
    error = (result - table)[place].square().mean().sqrt()
    assert error < 0.09


@pytest.mark.parametrize("method", ["patchmatch", "telea"])
def test_the_colors_of_a_fill_are_not_matched_to_what_it_removed_around_the_mask(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    if filling.method() != "patchmatch" and method == "patchmatch":
        pytest.skip("pypatchmatch has no wheel for this Python")
    monkeypatch.setattr(filling, "method", lambda: method)
    y, x = torch.meshgrid(torch.arange(200) / 384, torch.arange(200) / 384, indexing="ij")
    wall = torch.stack([0.25 + 0.5 * x, 0.3 + 0.4 * y, 0.6 - 0.3 * x], -1)[None]
    ball = disc(200, 200, 100, 100, 20)
    photo = torch.where(ball.unsqueeze(-1) > 0, 0.98, wall)
    short = disc(200, 200, 100, 100, 18)
    result = edit(DraftEditor("removal"), prepare(photo, short)).image
    error = (result - wall)[short > 0] * 255
    assert error.mean(0).abs().max() < 2


def test_without_patchmatch_opencv_fills_the_hole(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(filling, "method", lambda: "telea")
    photo, mask = smooth_picture(120, 120, 100, 0), disc(120, 120, 60, 60, 12)
    black_object = torch.where(mask.unsqueeze(-1) > 0, torch.zeros(3), photo)
    result = edit(DraftEditor("removal"), prepare(black_object, mask)).image
    assert (result - photo)[mask > 0].abs().mean() < 0.05
    assert "smears" in caplog.text


def test_insertion_puts_the_reference_into_the_masks_box_in_its_own_colors(example) -> None:
    photo, mask = example("coffee"), example("coffee_mask")
    conditions = prepare(
        photo, mask, reference=example("astronaut"), reference_mask=example("astronaut_patch_mask")
    )
    result = edit(DraftEditor("insertion"), conditions).image
    red, green, blue = result[0, 300:340, 500:540].mean((0, 1))
    assert blue > red > green, "the patch is violet, the table under it is brown"


def test_the_draft_editor_cannot_insert_from_a_prompt_alone(example) -> None:
    conditions = prepare(example("coffee"), example("coffee_mask"))
    with pytest.raises(ArtMancerError, match="cannot draw from words") as error:
        edit(DraftEditor("insertion"), conditions, prompt="a spoon")
    assert error.value.code == "reference_missing"


def test_removal_needs_a_mask_and_surroundings_to_fill_from(example) -> None:
    photo = example("chelsea")
    with pytest.raises(ArtMancerError, match="nothing to fill from"):
        edit(DraftEditor("removal"), prepare(photo, torch.ones(photo.shape[:3])))
    with pytest.raises(ArtMancerError) as error:
        edit(DraftEditor("removal"), prepare(photo))
    assert error.value.code == "mask_missing"


def test_thin_parts_of_an_object_stay_opaque() -> None:
    photo, mask = torch.full((1, 200, 200, 3), 0.9), torch.zeros(1, 200, 200)
    mask[:, 40:160, 40:160] = 1
    # A shade on a stem that is six pixels wide.
    lamp = torch.zeros(1, 120, 120)
    lamp[:, :40] = 1
    lamp[:, :, 57:63] = 1
    conditions = prepare(photo, mask, reference=torch.zeros(1, 120, 120, 3), reference_mask=lamp)
    result = edit(DraftEditor("insertion"), conditions, match=False).image
    assert result[0, 100:150, 99:101].max() < 0.15
    assert result[0, 100:150, 60:80].min() > 0.85


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ArtMancerError, match="None; expected one of insertion"):
        DraftEditor(None)


def test_white_balance_removes_a_color_cast_and_keeps_texture() -> None:
    random = torch.Generator().manual_seed(0)
    gray = torch.rand(1, 300, 2000, 1, generator=random).mul(0.5).add(0.2).expand(-1, -1, -1, 3)
    cast = (gray * torch.tensor([1.1, 1.0, 0.8])).clamp(0, 1)
    result = edit(DraftEditor("white_balance"), prepare(cast))
    assert result.report.crop_size[1] < 2000, "edited at a smaller size than the image"
    assert (result.image.amax(-1) - result.image.amin(-1)).mean() < 0.02
    vertical_steps = [
        (image[0, :, 1:, 1] - image[0, :, :-1, 1]).flatten() for image in (cast, result.image)
    ]
    assert torch.corrcoef(torch.stack(vertical_steps))[0, 1] > 0.999


def test_white_balance_strength_is_a_share(example) -> None:
    photo = example("chelsea") * torch.tensor([1.0, 0.8, 0.6])
    mask = torch.ones(photo.shape[:3])
    assert (balance(photo, mask, 0.0) - photo).abs().max() < 1e-4
    half, full = (balance(photo, mask, strength) - photo for strength in (0.5, 1.0))
    assert 0.3 < half.abs().mean() / full.abs().mean() < 0.7


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (33, 2)])
def test_the_smallest_images_are_edited_or_refused_with_a_reason(size: tuple[int, int]) -> None:
    photo = torch.rand(1, *size, 3)
    mask = torch.zeros(1, *size)
    mask[:, 0, 0] = 1
    edit(DraftEditor("white_balance"), prepare(photo))
    edit(DraftEditor("insertion"), prepare(photo, mask, reference=torch.rand(1, 9, 9, 3)))
    try:
        edit(DraftEditor("removal"), prepare(photo, mask))
    except ArtMancerError as error:
        assert "nothing to fill from" in str(error)


@pytest.mark.slow
def test_progress_is_reported_and_can_cancel(example) -> None:
    reports: list[tuple[int, int, str]] = []
    conditions = prepare(example("astronaut"), example("astronaut_shuttle_mask"))
    edit(DraftEditor("removal"), conditions, progress=lambda *report: reports.append(report))
    assert (0, 1, "filling") in reports
    assert reports[-1] == (1, 1, "stitching")

    def cancel(done: int, total: int, stage: str) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        edit(DraftEditor("removal"), conditions, progress=cancel)
    edit(DraftEditor("removal"), conditions)


def test_colors_are_matched_at_the_rim_unless_match_is_off(example) -> None:
    photo, mask = example("coffee"), example("coffee_mask")
    darker = StandIn(lambda crop: crop * 0.8)
    matched = edit(darker, prepare(photo, mask), match=True).image
    unmatched = edit(darker, prepare(photo, mask), match=False).image
    inside = mask == 1
    assert (matched - photo)[inside].abs().mean() < 0.02
    assert (unmatched - photo)[inside].abs().mean() > 0.02


def test_the_report_measures_the_editors_changes_outside_the_mask(example) -> None:
    photo, mask = example("coffee"), example("coffee_mask")
    brighter = edit(StandIn(lambda crop: (crop + 0.01).clamp(0, 1)), prepare(photo, mask)).report
    assert brighter.outside_psnr_raw == pytest.approx(40, abs=0.5)
    assert brighter.outside_psnr == math.inf
    assert brighter.drift_px == pytest.approx(0, abs=0.05)
    assert not brighter.realigned
    assert set(brighter.seconds) == {"crop", "split", "edit", "stitch"}
    assert brighter.peak_memory > 2**20
    moved = edit(StandIn(lambda crop: crop.roll(3, 2)), prepare(photo, mask, context=3)).report
    assert moved.drift_px == pytest.approx(3, abs=0.05)
    assert moved.realigned
    assert moved.registration["shift"] == pytest.approx([0, 3], abs=0.05)
    assert moved.registration["error_after"] < 0.1 * moved.registration["error_before"]


def test_a_moved_edit_is_moved_back_before_it_is_stitched(example) -> None:
    photo, mask = example("astronaut"), disc(512, 512, 250, 250, 60)
    conditions = prepare(photo, mask, context=3)

    def move(crop: Tensor) -> Tensor:
        return translate(crop, 1.5, -0.75).clamp(0, 1)

    result = edit(StandIn(move), conditions, match=False)
    assert result.report.realigned
    assert result.report.drift_px == pytest.approx(math.hypot(1.5, 0.75), abs=0.05)
    crop = conditions.crop
    error_before = (move(crop.image) - crop.image)[crop.mask == 1].abs().mean()
    error_after = (result.image - photo)[mask == 1].abs().mean()
    assert error_after < error_before / 5


def test_a_moved_edit_of_a_scaled_crop_keeps_its_details() -> None:
    y, x = torch.meshgrid(torch.arange(1000.0), torch.arange(1000.0), indexing="ij")

    def picture(y: Tensor, x: Tensor) -> Tensor:
        # Bent, because a movement of straight waves cannot be told.
        down, right = y + 8 * torch.sin(x / 40), x + 8 * torch.sin(y / 37)
        return (waves(down, right, 0.6) + waves(down, right, 0.06))[None] / 2

    photo, mask = picture(y, x), disc(1000, 1000, 500, 500, 130)
    conditions = prepare(photo, mask, context=3, resolution="512")
    region = conditions.crop.region
    (top, left), (height, width) = region.corners[0], region.size

    def move(crop: Tensor) -> Tensor:
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = (
            (part + 0.5 - shift) / region.scale - 0.5 + start
            for part, shift, start in ((rows, 1.4, top), (columns, -0.7, left))
        )
        return picture(*places)

    result = edit(StandIn(move), conditions, match=False)
    assert result.report.realigned
    # Moved back first, and then enlarged, it would be off by 4 levels.
    assert 255 * (result.image - photo)[mask == 1].abs().mean() < 1.5


@pytest.mark.parametrize("frame", ["crop", "photo"])
def test_a_zoomed_and_turned_edit_is_moved_back_in_either_frame(example, frame: str) -> None:
    photo, mask = example("coffee"), disc(400, 600, 200, 300, 70)
    conditions = prepare(photo, mask, context=3, frame=frame)

    def zoom(crop: Tensor) -> Tensor:
        height, width = crop.shape[1:3]
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -0.5, 1.02)
        moved = cv2.warpAffine(crop[0].numpy(), matrix, (width, height), flags=cv2.INTER_CUBIC)
        return torch.from_numpy(moved)[None].clamp(0, 1)

    result = edit(StandIn(zoom), conditions, match=False)
    crop, registration = conditions.crop, result.report.registration
    assert result.report.realigned
    assert registration["zoom"] == pytest.approx(1.02, abs=1e-3)
    assert registration["rotation"] == pytest.approx(0.5, abs=0.05)
    error_before = (zoom(crop.image) - crop.image)[crop.mask == 1].abs().mean()
    assert (result.image - photo)[mask == 1].abs().mean() < error_before / 5


def test_the_report_says_where_a_movement_cannot_be_measured() -> None:
    photo, mask = torch.full((1, 200, 240, 3), 0.6), disc(200, 240, 100, 120, 35)
    noise = 0.01 * torch.rand(1, 200, 240, 3, generator=torch.Generator().manual_seed(0))
    conditions = prepare(photo, mask, context=4)
    noisy = region.crop_like(photo + noise, conditions.crop.region)
    report = edit(StandIn(lambda crop: noisy), conditions).report
    assert report.drift_px is None and report.registration is None
    assert not report.realigned
    assert any("moved cannot be measured" in note for note in report.notes)
    untouched = edit(StandIn(lambda crop: crop), conditions).report
    assert untouched.drift_px == 0 and not untouched.notes


@pytest.mark.parametrize("resolution", ["native", "512"])
def test_a_shadow_beside_the_mask_is_found_and_stitched_if_widen_is_on(
    example, resolution: str
) -> None:
    photo, mask = example("coffee"), disc(400, 600, 200, 300, 40)
    shade = disc(400, 600, 215, 350, 28) * (1 - mask)
    conditions = prepare(photo, mask, context=3, feather=4, resolution=resolution)
    darker = region.crop_like(photo * (1 - 0.4 * shade.unsqueeze(-1)), conditions.crop.region)
    editor = StandIn(lambda crop: darker)
    narrow = edit(editor, conditions, widen=False)
    wide = edit(editor, conditions, widen=True)
    spill = narrow.spill > 0.5
    shadow = (shade > 0) & (mask_ops.feather(mask, 4) == 0)
    assert iou(spill.float(), shadow.float()) > 0.8
    assert narrow.report.spill > 0.01
    assert not narrow.report.widened
    assert wide.report.widened
    assert torch.equal(narrow.image[shadow], photo[shadow])
    assert (wide.image - photo)[spill & shadow].mean() < -0.05
    far = mask_ops.feather(((shade + mask) > 0).float(), 14) == 0
    assert torch.equal(wide.image[far], photo[far])


@pytest.mark.parametrize("feather", [0, 16, 32])
def test_no_stripe_of_a_shadow_remains_between_mask_and_spill(feather: int) -> None:
    ground, mask = torch.full((1, 300, 400, 3), 0.8), disc(300, 400, 150, 150, 40)
    shade = disc(300, 400, 150, 220, 50)
    photo = ground * (1 - 0.35 * shade.unsqueeze(-1))
    conditions = prepare(photo, mask, context=4, feather=feather)
    # The removal takes away the shadow too.
    clean = region.crop_like(ground, conditions.crop.region)
    result = edit(StandIn(lambda crop: clean), conditions, match=False, widen=True)
    error = (result.image - ground).abs().amax(-1)[0]
    assert error[150, 192:255].max() < 0.02


@pytest.mark.parametrize(("y", "x"), [(150, 110), (150, 290), (60, 200), (240, 200)])
def test_a_spill_that_reaches_the_crops_edge_is_stitched_up_to_that_edge(y: int, x: int) -> None:
    ground, mask = torch.full((1, 300, 400, 3), 0.8), disc(300, 400, 150, 200, 40)
    conditions = prepare(ground, mask)
    shade = disc(300, 400, y, x, 60).unsqueeze(-1)
    dark = region.crop_like(ground * (1 - 0.3 * shade), conditions.crop.region)
    result = edit(StandIn(lambda crop: dark), conditions, match=False, widen=True)
    assert result.report.spill > 0
    assert (result.image - ground).min() < -0.1
    top, left = conditions.crop.region.corners[0]
    corner = region.Window(top, left, top, left).clip(region.Window(0, 0, 300, 400))
    assert torch.equal(result.image[:, : corner.top], ground[:, : corner.top])


def test_changes_outside_the_image_are_no_spill() -> None:
    photo, mask = torch.full((1, 100, 400, 3), 0.8), disc(100, 400, 50, 200, 30)
    conditions = prepare(photo, mask, context=3)
    padding = -conditions.crop.region.corners[0][0]
    assert padding > 0

    def paint_the_padding(crop: Tensor) -> Tensor:
        edited = crop.clone()
        edited[:, :padding] = 0.2
        return edited

    result = edit(StandIn(paint_the_padding), conditions, match=False, widen=True)
    assert result.report.spill == 0
    assert torch.equal(result.image, photo)


def test_a_shadow_is_found_after_the_colors_were_matched_at_the_rim(example) -> None:
    photo, mask = example("coffee"), disc(400, 600, 340, 480, 40)
    shade = disc(400, 600, 352, 524, 32) * (1 - mask)
    conditions = prepare(photo, mask, context=3, feather=4)
    blue = torch.tensor([0.2, 0.35, 0.6]).expand_as(photo)
    ball = torch.lerp(photo, blue, mask.unsqueeze(-1))
    edited = region.crop_like(ball * (1 - 0.5 * shade.unsqueeze(-1)), conditions.crop.region)
    result = edit(StandIn(lambda crop: edited, "insertion"), conditions)
    shadow = (shade > 0) & (mask_ops.feather(mask, 4) == 0)
    assert iou(result.spill.round(), shadow.float()) > 0.7


def test_a_change_of_color_alone_is_spill_too() -> None:
    photo, mask = torch.full((1, 300, 400, 3), 0.5), disc(300, 400, 150, 200, 40)
    conditions = prepare(photo, mask, context=3)
    tint = torch.tensor([0.1, 0.0, -0.1]) * disc(300, 400, 150, 250, 40).unsqueeze(-1)
    tinted = region.crop_like(photo + tint, conditions.crop.region)
    result = edit(StandIn(lambda crop: tinted), conditions, match=False)
    assert result.report.spill > 0.01


def test_a_white_balance_that_changes_only_the_mask_is_applied_inside_the_mask(example) -> None:
    photo, mask = example("coffee"), disc(400, 600, 200, 300, 40)
    conditions = prepare(photo, mask, context=3)
    gains = torch.tensor([0.8, 1.0, 1.2])
    feathered = conditions.crop.feathered.unsqueeze(-1) > 0

    def balance_the_mask(crop: Tensor) -> Tensor:
        return torch.where(feathered, (crop * gains).clamp(0, 1), crop)

    result = edit(StandIn(balance_the_mask, "white_balance"), conditions)
    expected = (photo * gains).clamp(0, 1)
    error = (result.image - expected)[mask == 1].abs().mean()
    assert error < 0.1 * (photo - expected)[mask == 1].abs().mean()


def test_each_image_of_a_batch_is_moved_back_on_its_own(example) -> None:
    photo, mask = example("astronaut"), disc(512, 512, 250, 250, 60)
    flat = torch.full_like(photo, 0.5)

    def move_the_first(crop: Tensor) -> Tensor:
        return torch.cat([crop[:1].roll(2, 2), crop[1:]])

    alone = edit(StandIn(move_the_first), prepare(photo, mask, context=3), match=False)
    for second in (flat, photo):
        both = prepare(torch.cat([photo, second]), mask, context=3)
        result = edit(StandIn(move_the_first), both, match=False)
        assert result.report.realigned
        assert result.report.drift_px == alone.report.drift_px
        assert torch.equal(result.image[:1], alone.image)
        assert torch.equal(result.image[1:], second)


def test_an_image_that_stayed_moved_is_a_reason_in_a_batch(example) -> None:
    sharp, mask = example("chelsea")[:, :256, :256], disc(256, 256, 120, 140, 20)
    hazy = torch.from_numpy(cv2.GaussianBlur(sharp[0].numpy(), (0, 0), 12)).unsqueeze(0)
    noise = 24 / 255 * torch.randn(hazy.shape, generator=torch.Generator().manual_seed(0))
    conditions = prepare(torch.cat([sharp, hazy]), mask, frame="photo")
    assert conditions.crop.image.shape == (2, 256, 256, 3)

    def move(crop: Tensor) -> Tensor:
        second = translate(crop[1:], -1, 1.5) + noise
        return torch.cat([translate(crop[:1], 4.0, 0.0), second]).clamp(0, 1)

    report = edit(StandIn(move), conditions, match=False).report
    assert report.realigned and report.drift_px == pytest.approx(4, abs=0.1)
    (moved,) = (reason for reason in report.verdict_reasons if "was not put back" in reason)
    sentence = re.fullmatch(r"Image 2: The edit is moved by ([\d.]+) px, and .*", moved)
    assert sentence and float(sentence[1]) == pytest.approx(math.hypot(1, 1.5), abs=0.15)


def test_an_empty_mask_in_a_batch_needs_no_note(example) -> None:
    photo, mask = example("coffee"), disc(400, 600, 200, 300, 40)
    masks = torch.cat([mask, torch.zeros_like(mask)])
    conditions = prepare(photo.repeat(2, 1, 1, 1), masks, context=3)
    report = edit(StandIn(lambda crop: crop.roll(3, 2)), conditions).report
    assert report.realigned and report.drift_px == pytest.approx(3, abs=0.1)
    assert not any("cannot be measured" in note for note in report.notes)


def test_noise_from_a_vae_is_no_spill(example) -> None:
    photo, mask = example("coffee"), disc(400, 600, 200, 300, 40)
    noise = 0.03 * torch.randn(1, 400, 600, 3, generator=torch.Generator().manual_seed(0))
    conditions = prepare(photo, mask, context=3)
    noisy = region.crop_like((photo + noise).clamp(0, 1), conditions.crop.region)
    result = edit(StandIn(lambda crop: noisy), conditions)
    assert result.report.spill == 0
    assert not result.spill.any()


def test_prompt_seed_and_sampling_reach_the_editor(example) -> None:
    requests = []

    class Recorder(StandIn):
        def edit(self, request: EditRequest, progress: Progress) -> Tensor:
            requests.append((request.prompt, request.seed, request.sampling))
            return request.conditions.crop.image

    conditions = prepare(example("coffee"), example("coffee_mask"))
    edit(Recorder(None), conditions, prompt="p", seed=3, sampling=Sampling(steps=7, cfg=2.5))
    assert requests == [("p", 3, Sampling(steps=7, cfg=2.5))]


def test_grow_fill_and_context_change_the_editors_conditions(example) -> None:
    photo, mask = example("coffee"), example("coffee_mask")
    plain = prepare(photo, mask)
    assert prepare(photo, mask, grow=20).crop.mask.sum() > plain.crop.mask.sum()
    assert prepare(photo, mask, context=3).crop.region.size > plain.crop.region.size
    fill = torch.rand_like(photo)
    filled = prepare(photo, mask, fill=fill, recipe="background_mask_fill")
    assert torch.equal(filled.images["fill"], region.crop_like(fill, filled.crop.region))


@pytest.mark.parametrize("variant", ["removal", "white_balance"])
def test_an_edit_shows_inside_its_blend_mask_alone(example, variant: str) -> None:
    photo, mask = example("coffee"), disc(400, 600, 200, 300, 40)
    blend = torch.zeros(1, 200, 300)
    blend[:, 80:120, 150:] = 1
    conditions = prepare(photo, mask, context=3, feather=0)
    blended = with_blend_mask(conditions, blend)
    result = edit(StandIn(lambda crop: crop * 0.5, variant), blended)
    shown = torch.zeros(1, 400, 600, dtype=torch.bool)
    shown[:, 160:240, 300:] = True
    changed = (result.image != photo).any(-1)
    # Scaled to the photo, the mask's edge is soft.
    assert not changed[:, :, :296].any()
    assert changed[:, 190:210, 310:330].float().mean() > 0.9
    assert not changed[:, :150].any()
    assert result.report.outside_psnr == math.inf


def darkened(conditions: Conditions, blend: Tensor, **options: bool) -> EditResult:
    """Return an edit that makes a whole crop darker, and shows where the blend mask is."""
    blended = with_blend_mask(conditions, blend)
    return edit(StandIn(lambda crop: crop * 0.6), blended, match=False, **options)


def test_what_a_blend_mask_shows_is_no_spill(example) -> None:
    photo, mask = example("coffee"), disc(400, 600, 200, 300, 40)
    conditions = prepare(photo, mask, context=3)
    everywhere = torch.ones(1, 400, 600)
    result = darkened(conditions, everywhere)
    assert not [reason for reason in result.report.verdict_reasons if "not pasted" in reason]
    assert result.report.spill == 0
    assert result.report.outside_psnr_raw is None, "all of the crop is pasted"
    widened = darkened(conditions, everywhere, widen=True)
    assert torch.equal(widened.image, result.image)


def test_the_part_of_an_edit_that_a_blend_mask_hides_is_no_spill(example) -> None:
    photo, mask = example("coffee"), disc(400, 600, 200, 300, 40)
    conditions, right = prepare(photo, mask, context=3), torch.zeros(1, 400, 600)
    right[:, :, 310:] = 1
    inside = conditions.crop.mask.unsqueeze(-1) > 0
    editor = StandIn(lambda crop: torch.where(inside, crop * 0.6, crop))
    result = edit(editor, with_blend_mask(conditions, right), match=False, widen=True)
    assert not [reason for reason in result.report.verdict_reasons if "not pasted" in reason]
    assert result.report.outside_psnr_raw == math.inf
    assert torch.equal(result.image[:, :, :290], photo[:, :, :290]), "hidden, also with widen"


def test_the_reasons_against_a_part_have_its_number_where_another_is_hidden(example) -> None:
    photo = example("coffee")
    mask = torch.maximum(disc(400, 600, 60, 60, 30), disc(400, 600, 340, 540, 20))
    conditions = prepare(photo, mask, regions="apart")
    unchanged = StandIn(lambda crop: crop)
    assert len(edit(unchanged, conditions).report.verdict_reasons) == 2
    blended = with_blend_mask(conditions, disc(400, 600, 340, 540, 20))
    report = edit(unchanged, blended).report
    assert [reason[:8] for reason in report.verdict_reasons] == ["Part 2: "]
    assert [row["verdict"] for row in report.regions] == ["failed"]


def test_the_report_has_the_context_in_pixels(example) -> None:
    conditions = prepare(example("coffee"), example("coffee_mask"), context_pixels=80)
    settings = edit(StandIn(lambda crop: crop), conditions).report.settings
    assert settings["context_pixels"] == 80


def test_white_balance_is_measured_inside_the_mask() -> None:
    photo = torch.full((1, 64, 128, 3), 0.5)
    photo[:, :, :64] *= torch.tensor([1.2, 1.0, 0.8])
    photo[:, :, 64:] *= torch.tensor([0.8, 1.0, 1.2])
    mask = torch.zeros(1, 64, 128)
    mask[:, :, :64] = 1
    balanced = balance(photo, mask, 1.0)[:, :, :64]
    assert (balanced.amax(-1) - balanced.amin(-1)).max() < 0.01
    luminance = torch.tensor([0.2126, 0.7152, 0.0722])
    before, after = (
        float(to_linear(image).mean((0, 1, 2)) @ luminance)
        for image in (photo[:, :, :64], balanced)
    )
    assert before == pytest.approx(after, rel=0.02), "the luminance stays"


def test_a_red_wall_stays_red() -> None:
    wall = torch.tensor([0.8, 0.1, 0.1]).expand(1, 64, 64, 3)
    balanced = balance(wall, torch.ones(1, 64, 64), 1.0)[0, 0, 0]
    assert balanced[0] > 2 * balanced[1]


def test_the_report_is_json_without_infinities() -> None:
    report = Report(
        editor="e",
        variant="removal",
        adapters=(),
        recipe="r",
        conditions=("a",),
        seed=1,
        crop_size=(2, 3),
        box=(0, 0, 2, 3),
        seconds={"edit": 1.0},
        peak_memory=5,
        outside_psnr_raw=math.inf,
        outside_psnr=math.inf,
        drift_px=None,
        realigned=False,
        spill=0.0,
        widened=False,
    )
    assert report.as_dict()["outside_psnr"] == "infinite"
    assert report.as_dict()["drift_px"] is None


def hair(width: int) -> Tensor:
    """Draw upright strands of a width in pixels with soft edges, as a MASK [1, 160, 160]."""
    mask = torch.zeros(1, 160, 160)
    for left in range(20, 140, 20):
        mask[:, 20:140, left : left + width] = 1
        mask[:, 20:140, left - 1] = mask[:, 20:140, left + width] = 0.4
    return mask


@pytest.mark.parametrize("mixed", [True, False], ids=["photo", "cutout"])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_hair_keeps_its_color_and_none_of_its_old_background(width: int, mixed: bool) -> None:
    color, old, new = torch.tensor([0.3, 0.15, 0.1]), torch.tensor([0.2, 0.7, 0.2]), 0.8
    alpha = hair(width)
    share = alpha.unsqueeze(-1) if mixed else (alpha > 0).float().unsqueeze(-1)
    reference = share * color + (1 - share) * old
    box = torch.zeros(1, 160, 160)
    region.bounds(alpha[0]).view(box[0]).fill_(1)
    photo = torch.full((1, 160, 160, 3), new)
    conditions = prepare(photo, box, reference=reference, reference_mask=alpha)
    result = edit(DraftEditor("insertion"), conditions, match=False).image
    expected = alpha.unsqueeze(-1) * color + (1 - alpha.unsqueeze(-1)) * new
    assert (result - expected).abs().max() < 0.03


def cut_out_by(
    mask: Tensor, photo: Tensor, alpha: Tensor, *, scale: int = 1
) -> tuple[Tensor, Tensor]:
    """Insert a striped object, seen before a gradient, by this mask of it into a photo.

    Returns
    -------
    the result and what it should be, both IMAGE; the object is `scale` times as large in the
    reference as in the photo, alpha is that of the reference
    """
    height, width = alpha.shape[1:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    stripes = 0.08 * torch.sin(x / (5.0 * scale))
    body = torch.stack([0.75 + stripes, 0.35 + stripes, 0.25 - stripes], -1)
    behind = torch.stack([0.1 + 0.2 * x / width, 0.3 + 0.2 * y / height, 0.4 + 0 * x], -1)
    reference = torch.lerp(behind, body, alpha[0, ..., None])[None]
    box = torch.zeros(1, *photo.shape[1:3])
    around = region.bounds(mask[0])
    box[0, around.top // scale : around.bottom // scale] = 1
    box[0, :, : around.left // scale] = box[0, :, around.right // scale :] = 0
    conditions = prepare(photo, box, reference=reference, reference_mask=mask, feather=0)
    small = [
        torch.nn.functional.avg_pool2d(plane, scale).permute(0, 2, 3, 1)
        for plane in (body.permute(2, 0, 1)[None], alpha[None])
    ]
    truth = torch.lerp(photo, *small)
    return edit(DraftEditor("insertion"), conditions).image, truth


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "antialiased"])
@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize("larger", [1, 2])
def test_a_hard_mask_that_is_too_large_takes_nothing_of_the_background_along(
    larger: int, scale: int, soft: bool
) -> None:
    side, radius = 160 * scale, 40 * scale
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    depth = (radius - torch.hypot(y - side / 2, x - side / 2))[None]
    alpha = (depth / scale + 0.5).clamp(0, 1)
    mask = (depth + larger * scale + 0.5).clamp(0, 1)
    photo = torch.full((1, 160, 160, 3), 0.9)
    result, truth = cut_out_by(mask if soft else mask.round(), photo, alpha, scale=scale)
    # Only of the background is it dark here.
    rim = (result - truth)[:, 34:126, 34:126].abs().amax(-1)
    assert rim.mean() < 0.006
    assert rim.quantile(0.99) < 0.1


@pytest.mark.parametrize("separate", [False, True], ids=["with alpha", "alpha as the mask"])
def test_the_edge_of_a_cutout_with_transparency_stays(separate: bool) -> None:
    sticker = torch.zeros(1, 120, 120, 4)
    sticker[:, 20:100, 20:100] = 1
    # A black line around it, before what is black under the transparency.
    sticker[:, 23:97, 23:97, 0] = 0.2
    sticker[:, 20:23, 20:100, :3] = sticker[:, 97:100, 20:100, :3] = 0
    sticker[:, 20:100, 20:23, :3] = sticker[:, 20:100, 97:100, :3] = 0
    photo, mask = torch.full((1, 200, 200, 3), 0.5), torch.zeros(1, 200, 200)
    mask[:, 60:140, 60:140] = 1
    # So a file with transparency comes from ComfyUI's Load Image, and from the command.
    alpha = sticker[..., 3] if separate else None
    reference = sticker[..., :3] if separate else sticker
    conditions = prepare(photo, mask, reference=reference, reference_mask=alpha, feather=0)
    result = edit(DraftEditor("insertion"), conditions).image
    assert result[:, 60:63, 60:140].max() < 0.05


def test_a_hard_mask_of_a_large_reference_stays_where_object_and_background_look_alike() -> None:
    torch.manual_seed(0)
    reference, strip = 0.5 + 0.05 * torch.rand(1, 800, 800, 3), torch.zeros(1, 800, 800)
    strip[:, 340:460, 100:700] = 1
    photo, mask = torch.ones(1, 200, 200, 3), torch.zeros(1, 200, 200)
    mask[:, 85:115, 25:175] = 1
    conditions = prepare(photo, mask, reference=reference, reference_mask=strip, feather=0)
    result = edit(DraftEditor("insertion"), conditions).image
    assert result[:, 85:115, 25:175].max() < 0.6


def test_a_hard_mask_at_the_end_of_the_reference_stays_whole_there() -> None:
    torch.manual_seed(0)
    reference, half = 0.2 + 0.01 * torch.rand(1, 100, 100, 3), torch.zeros(1, 100, 100)
    half[:, :, :50] = 1
    reference[:, :, :48] = 0.8
    photo, mask = torch.full((1, 200, 200, 3), 0.5), torch.zeros(1, 200, 200)
    mask[:, 50:150, 50:100] = 1
    conditions = prepare(photo, mask, reference=reference, reference_mask=half, feather=0)
    result = edit(DraftEditor("insertion"), conditions).image
    assert (result[:, 50:150, 50:98] - 0.8).abs().max() < 0.02
    assert (result[:, 50:150, 98:100] - 0.5).abs().max() < 0.02
