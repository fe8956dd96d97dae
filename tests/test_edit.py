import math

import cv2
import pytest
import torch
from pictures import disc, smooth_picture
from torch import Tensor

from artmancer import fill as filling
from artmancer.draft import DraftEditor, balance
from artmancer.drift import drift
from artmancer.edit import edit, prepare
from artmancer.editor import VARIANTS, EditRequest, Report
from artmancer.errors import ArtMancerError
from artmancer.masks import refine
from artmancer.progress import Progress


class Stand_in:
    """An editor that does to the crop what a test wants."""

    name = "stand-in"
    variant = "removal"

    def __init__(self, change) -> None:
        self.change = change

    def edit(self, request: EditRequest, progress: Progress) -> Tensor:
        return self.change(request.conditions.crop.image)


def stripes(height: int, width: int) -> Tensor:
    rows = (torch.arange(height) // 6 % 2).float().view(1, -1, 1, 1)
    return (0.3 + 0.4 * rows).expand(1, height, width, 3).contiguous()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_leaves_every_bit_outside_the_mask(example, variant: str) -> None:
    photo, mask = example("coffee"), example("coffee_mask")
    conditions = prepare(photo, mask, reference=example("astronaut"), reference_mask=example("astronaut_patch_mask"))
    result = edit(DraftEditor(variant), conditions)
    outside = refine.feather(mask, 16) == 0
    assert torch.equal(result.image[outside], photo[outside])
    assert not torch.equal(result.image[mask == 1], photo[mask == 1])
    assert result.report.editor == f"draft/{variant}"
    assert result.report.outside_psnr == math.inf


def test_removal_continues_the_pattern_around_the_hole() -> None:
    photo, mask = stripes(200, 240), disc(200, 240, 100, 120, 35)
    spoiled = torch.where(mask.unsqueeze(-1) > 0, torch.tensor([1.0, 0.0, 0.0]), photo)
    result = edit(DraftEditor("removal"), prepare(spoiled, mask)).image
    assert (result - photo).abs().mean() < 0.02
    assert (result - photo)[mask > 0].abs().median() < 0.05


def test_removal_does_not_fetch_what_is_far_away() -> None:
    photo, mask = stripes(200, 400), disc(200, 400, 100, 80, 20)
    photo[:, 60:140, 200:280] = torch.tensor([0.0, 0.0, 1.0])
    spoiled = torch.where(mask.unsqueeze(-1) > 0, torch.tensor([1.0, 0.0, 0.0]), photo)
    filled = filling.fill(spoiled, mask, 0, lambda *_: None)
    assert (filled[mask > 0][:, 2] - filled[mask > 0][:, 0]).abs().max() < 0.1, "no blue"


def test_the_same_seed_gives_the_same_edit_and_a_batch_counts_up(example) -> None:
    photo, mask = example("astronaut"), example("astronaut_shuttle_mask")
    once = edit(DraftEditor("removal"), prepare(photo, mask), seed=5).image
    again = edit(DraftEditor("removal"), prepare(photo, mask), seed=5).image
    batch = edit(DraftEditor("removal"), prepare(photo.repeat(2, 1, 1, 1), mask), seed=4).image
    assert torch.equal(once, again)
    assert torch.equal(batch[1:], once) and not torch.equal(batch[:1], once)


def test_without_patchmatch_opencv_fills_the_hole(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(filling, "method", lambda: "telea")
    photo, mask = smooth_picture(120, 120, 100, 0), disc(120, 120, 60, 60, 12)
    spoiled = torch.where(mask.unsqueeze(-1) > 0, torch.zeros(3), photo)
    result = edit(DraftEditor("removal"), prepare(spoiled, mask)).image
    assert (result - photo)[mask > 0].abs().mean() < 0.05
    assert "smears" in caplog.text


def test_insertion_puts_the_reference_into_the_masks_box_in_its_own_colours(example) -> None:
    photo, mask = example("coffee"), example("coffee_mask")
    conditions = prepare(photo, mask, reference=example("astronaut"), reference_mask=example("astronaut_patch_mask"))
    result = edit(DraftEditor("insertion"), conditions).image
    red, green, blue = result[0, 300:340, 500:540].mean((0, 1))
    assert blue > red > green, "the patch is violet, the table under it is brown"


def test_words_alone_cannot_be_drawn_without_weights(example) -> None:
    with pytest.raises(ArtMancerError, match="cannot draw from words") as caught:
        edit(DraftEditor("insertion"), prepare(example("coffee"), example("coffee_mask")), prompt="a spoon")
    assert caught.value.code == "reference_missing"


def test_a_whole_frame_cannot_be_removed(example) -> None:
    photo = example("chelsea")
    with pytest.raises(ArtMancerError, match="nothing to fill from"):
        edit(DraftEditor("removal"), prepare(photo, torch.ones(photo.shape[:3])))
    with pytest.raises(ArtMancerError) as caught:
        edit(DraftEditor("removal"), prepare(photo))
    assert caught.value.code == "mask_missing"


def test_thin_parts_of_an_object_stay_opaque() -> None:
    photo, mask = torch.full((1, 200, 200, 3), 0.9), torch.zeros(1, 200, 200)
    mask[:, 40:160, 40:160] = 1
    lamp = torch.zeros(1, 120, 120)
    lamp[:, :40] = lamp[:, :, 57:63] = 1  # a shade on a stem six pixels wide
    conditions = prepare(photo, mask, reference=torch.zeros(1, 120, 120, 3), reference_mask=lamp)
    result = edit(DraftEditor("insertion"), conditions, match=False).image
    assert result[0, 100:150, 99:101].max() < 0.15
    assert result[0, 100:150, 60:80].min() > 0.85


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ArtMancerError, match="None; expected one of insertion"):
        DraftEditor(None)


def test_white_balance_removes_a_cast_and_keeps_texture() -> None:
    random = torch.Generator().manual_seed(0)
    gray = torch.rand(1, 300, 2000, 1, generator=random).mul(0.5).add(0.2).expand(-1, -1, -1, 3)
    cast = (gray * torch.tensor([1.1, 1.0, 0.8])).clamp(0, 1)
    result = edit(DraftEditor("white_balance"), prepare(cast))
    assert result.report.crop_size[1] < 2000, "edited smaller than the picture"
    assert (result.image.amax(-1) - result.image.amin(-1)).mean() < 0.02
    detail = [picture[0, :, 1:, 1] - picture[0, :, :-1, 1] for picture in (cast, result.image)]
    assert torch.corrcoef(torch.stack([one.flatten() for one in detail]))[0, 1] > 0.999


def test_white_balance_strength_is_a_share(example) -> None:
    photo = example("chelsea")
    mask = torch.ones(photo.shape[:3])
    assert (balance(photo, mask, 0.0) - photo).abs().max() < 1e-4
    half, full = (balance(photo, mask, strength) - photo for strength in (0.5, 1.0))
    assert 0.3 < half.abs().mean() / full.abs().mean() < 0.7


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (33, 2)])
def test_the_smallest_pictures_are_edited_or_refused_with_a_reason(size: tuple[int, int]) -> None:
    photo = torch.rand(1, *size, 3)
    mask = torch.zeros(1, *size)
    mask[:, 0, 0] = 1
    edit(DraftEditor("white_balance"), prepare(photo))
    edit(DraftEditor("insertion"), prepare(photo, mask, reference=torch.rand(1, 9, 9, 3)))
    try:
        edit(DraftEditor("removal"), prepare(photo, mask))
    except ArtMancerError as error:
        assert "nothing to fill from" in str(error)


def test_progress_is_told_and_can_cancel(example) -> None:
    told: list[tuple[int, int, str]] = []
    conditions = prepare(example("astronaut"), example("astronaut_shuttle_mask"))
    edit(DraftEditor("removal"), conditions, progress=lambda *step: told.append(step))
    assert (0, 1, "filling") in told and told[-1] == (1, 1, "stitching")

    def cancel(done: int, total: int, doing: str) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        edit(DraftEditor("removal"), conditions, progress=cancel)
    edit(DraftEditor("removal"), conditions)


def test_colours_are_matched_at_the_rim_unless_told_not_to(example) -> None:
    photo, mask = example("coffee"), example("coffee_mask")
    darker = Stand_in(lambda crop: crop * 0.8)
    matched, raw = (edit(darker, prepare(photo, mask), match=match).image for match in (True, False))
    inside = mask == 1
    assert (matched - photo)[inside].abs().mean() < 0.02 < (raw - photo)[inside].abs().mean()


def test_the_report_measures_what_the_editor_did_outside(example) -> None:
    photo, mask = example("coffee"), example("coffee_mask")
    noisy = edit(Stand_in(lambda crop: (crop + 0.01).clamp(0, 1)), prepare(photo, mask)).report
    assert noisy.outside_psnr_raw == pytest.approx(40, abs=0.5) and noisy.outside_psnr == math.inf
    assert noisy.drift_px == pytest.approx(0, abs=0.05)
    moved = edit(Stand_in(lambda crop: crop.roll(3, 2)), prepare(photo, mask, context=3)).report
    assert moved.drift_px == pytest.approx(3, abs=0.3)
    assert set(noisy.seconds) == {"crop", "split", "edit", "stitch"} and noisy.peak_memory > 2**20


@pytest.mark.parametrize("shift", [(0.5, 0.0), (1.5, -2.25), (0.0, 4.0)])
def test_drift_is_found_to_sub_pixel(example, shift: tuple[float, float]) -> None:
    photo = example("astronaut")
    matrix = torch.tensor([[1, 0, shift[0]], [0, 1, shift[1]]]).numpy()
    moved = cv2.warpAffine(photo[0].numpy(), matrix, (512, 512), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    outside = disc(512, 512, 250, 250, 90) == 0
    found = drift(torch.from_numpy(moved).unsqueeze(0), photo, outside)
    assert found == pytest.approx(math.hypot(*shift), abs=0.05)


def test_where_hardly_anything_is_outside_there_is_no_drift_to_tell(example) -> None:
    photo = example("chelsea")
    assert drift(photo, photo, torch.zeros(photo.shape[:3], dtype=torch.bool)) is None


def test_the_report_is_json_without_infinities() -> None:
    report = Report("e", "r", ("a",), 1, (2, 3), (0, 0, 2, 3), {"edit": 1.0}, 5, math.inf, math.inf, None)
    assert report.as_dict()["outside_psnr"] == "infinite"
    assert report.as_dict()["drift_px"] is None
