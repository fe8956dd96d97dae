"""Verdicts on edits whose faults are known, because they are made."""

import re
from collections.abc import Callable

import cv2
import pytest
import torch
from support.images import disc, smooth_picture
from torch import Tensor

from artmancer import mask_ops, verdict
from artmancer.conditions import prepare
from artmancer.edit import edit
from artmancer.editor import PrecomputedEdit
from artmancer.verdict import FAILED, GOOD, LOOK, Edit, conclude, judge, judge_shift

SIDE = 192
"""Side of the crops, in pixels."""

MASK = disc(SIDE, SIDE, 96, 96, 40)
"""Mask of the edits, loose around the object."""

OBJECT = disc(SIDE, SIDE, 96, 96, 32)
"""The object that is removed or inserted."""


def grain(levels: float, seed: int) -> Tensor:
    """Return noise [1, SIDE, SIDE, 3] of this standard deviation, in 8-bit levels."""
    generator = torch.Generator().manual_seed(seed)
    return levels / 255 * torch.randn(1, SIDE, SIDE, 3, generator=generator)


def blur(image: Tensor, sigma: float) -> Tensor:
    return torch.from_numpy(cv2.GaussianBlur(image[0].numpy(), (0, 0), sigma))[None]


def blend(image: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    return torch.lerp(image, other.expand_as(image), mask[..., None])


BACKGROUND = (smooth_picture(SIDE, SIDE, 40, 1) * 0.6 + 0.2 + grain(3, 1)).clamp(0, 1)
"""A picture without an object."""

PICTURE = blend(BACKGROUND, smooth_picture(SIDE, SIDE, 12, 5), OBJECT)
"""The same with an object."""


def seen(edited: Tensor, before: Tensor = PICTURE, shown: Tensor | None = None) -> Edit:
    """Return an edit whose colors were not matched."""
    feathered = mask_ops.feather(MASK, 16)
    return Edit(
        before[0],
        edited[0].clamp(0, 1),
        edited[0].clamp(0, 1),
        MASK[0],
        feathered[0],
        feathered[0] if shown is None else shown[0],
        torch.ones(SIDE, SIDE, dtype=torch.bool),
    )


def names(edited: Tensor, variant: str = "removal", before: Tensor = PICTURE) -> set[str]:
    return {finding.name for finding in judge(seen(edited, before), variant)}


def word(edited: Tensor, variant: str = "removal", before: Tensor = PICTURE) -> str:
    return conclude([judge(seen(edited, before), variant)]).word


def test_an_edit_without_a_fault_is_good() -> None:
    assert conclude([judge(seen(BACKGROUND), "removal")]) == (GOOD, ())
    assert names(BACKGROUND + grain(1, 2)) == set(), "the noise of a decoder"
    assert names(blend(PICTURE, BACKGROUND, MASK)) == set(), "only the mask is edited"
    assert names(PICTURE, "insertion", BACKGROUND) == set()


def test_an_edit_that_changes_nothing_failed() -> None:
    for edited in (PICTURE, PICTURE + grain(1, 2)):
        assert names(edited) == {"unchanged"}
        assert word(edited) == FAILED
    assert names(BACKGROUND, "insertion", BACKGROUND) == {"unchanged"}


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_mask_of_one_color_failed(value: float) -> None:
    flat = blend(BACKGROUND, torch.full((3,), value), MASK)
    assert names(flat) == {"flat"}
    assert word(flat) == FAILED


def test_one_color_is_right_in_a_wall_of_one_color() -> None:
    wall = torch.full_like(BACKGROUND, 0.6)
    assert names(wall, before=blend(wall, PICTURE, OBJECT)) == set()


@pytest.mark.parametrize(("levels", "expected"), [(1, set()), (12, {"seam"}), (30, {"seam"})])
def test_a_step_of_colors_along_the_rim_is_a_seam(levels: float, expected: set[str]) -> None:
    for color in (torch.ones(3), torch.tensor([1.0, 0, -1])):
        edited = blend(PICTURE, BACKGROUND + color * levels / 255, MASK)
        assert names(edited) == expected, color


def test_an_edge_of_the_photo_across_the_rim_is_no_seam() -> None:
    rows = torch.arange(SIDE).view(1, -1, 1, 1)
    horizon = torch.where(rows < 96, BACKGROUND * 0.4, 0.4 + 0.6 * BACKGROUND)
    assert names(horizon, before=blend(horizon, PICTURE, OBJECT)) == set()


def test_the_edge_of_an_inserted_object_is_no_seam() -> None:
    red = blend(BACKGROUND, torch.tensor([0.9, 0.1, 0.1]) + grain(3, 3), MASK)
    assert names(red, "insertion", BACKGROUND) == set()


@pytest.mark.parametrize(("levels", "expected"), [(3, False), (16, True)])
def test_colors_that_differ_around_the_mask_jump(levels: float, expected: bool) -> None:
    near = mask_ops.feather(MASK, 30)
    edited = blend(BACKGROUND, BACKGROUND + levels / 255, near)
    assert ("jump" in names(edited)) == expected
    inserted = blend(PICTURE, PICTURE + levels / 255, near)
    assert ("jump" in names(inserted, "insertion", BACKGROUND)) == expected


def test_a_shadow_on_one_side_is_no_jump() -> None:
    right = torch.zeros_like(MASK)
    right[..., 120:] = 1
    shaded = blend(PICTURE, PICTURE * 0.6, right * mask_ops.feather(MASK, 14))
    assert "jump" not in names(shaded, "insertion", BACKGROUND)


@pytest.mark.parametrize(("sigma", "expected"), [(0.3, set()), (1.5, {"soft"})])
def test_a_blurred_edit_is_softer_than_its_surroundings(sigma: float, expected: set[str]) -> None:
    assert names(blur(BACKGROUND, sigma)) == expected
    only_inside = blend(PICTURE, blur(BACKGROUND, sigma), MASK)
    assert names(only_inside) == expected
    assert names(blur(PICTURE, sigma), "insertion", BACKGROUND) == expected


def test_a_smooth_object_is_not_softer() -> None:
    ball = blend(BACKGROUND, torch.full((3,), 0.2), OBJECT)
    assert names(ball, "insertion", BACKGROUND) == set()


@pytest.mark.parametrize("opacity", [0.02, 0.4])
def test_a_change_outside_counts_unless_it_is_shown(opacity: float) -> None:
    stain = disc(SIDE, SIDE, 40, 160, 25)
    edited = blend(BACKGROUND, torch.zeros(3), opacity * stain)
    assert names(edited) == ({"outside"} if opacity > 0.1 else set())
    widened = torch.maximum(mask_ops.feather(MASK, 16), stain)
    assert judge(seen(edited, shown=widened), "removal") == []


@pytest.mark.parametrize(("share", "expected"), [(0.03, False), (0.5, True)])
def test_a_ghost_of_the_object_may_be_the_object(share: float, expected: bool) -> None:
    assert ("still there" in names(torch.lerp(BACKGROUND, PICTURE, share))) == expected


def test_an_object_in_other_colors_is_still_there() -> None:
    edited = blend(BACKGROUND, PICTURE[..., [2, 0, 1]], OBJECT)
    assert "still there" in names(edited)
    assert "still there" not in names(PICTURE, "insertion", BACKGROUND)


def left_half(mask: Tensor) -> Tensor:
    half = mask.clone()
    half[..., SIDE // 2 :] = 0
    return half


def top_half(mask: Tensor) -> Tensor:
    return left_half(mask.movedim(1, 2)).movedim(2, 1)


@pytest.mark.parametrize("half", [left_half, top_half])
def test_a_half_of_the_object_may_be_left(half: Callable[[Tensor], Tensor]) -> None:
    edited = blend(BACKGROUND, PICTURE, half(OBJECT)) + grain(1, 2)
    findings = {finding.name: finding.sentence for finding in judge(seen(edited), "removal")}
    assert "part left" in findings
    share = int(re.search(r"about (\d+) % of it", findings["part left"])[1])
    assert share == pytest.approx(50, abs=12)
    assert "part left" not in names(edited, "insertion", BACKGROUND)


@pytest.mark.parametrize(
    "shape",
    [disc(SIDE, SIDE, 90, 100, 18), OBJECT - disc(SIDE, SIDE, 96, 96, 20)],
    ids=["a small object", "a ring"],
)
def test_the_wall_that_a_loose_mask_covers_is_no_part_of_the_object(shape: Tensor) -> None:
    wall = (0.55 + 0.1 * smooth_picture(SIDE, SIDE, 60, 1) + grain(3, 1)).clamp(0, 1)
    before = blend(wall, PICTURE, shape)
    assert names(wall + grain(1, 2), before=before) == set()
    assert "part left" in names(blend(wall, before, left_half(shape)), before=before)


@pytest.mark.parametrize(
    ("pixels", "put_back", "expected"),
    [(None, False, []), (0.2, False, []), (3.0, True, []), (3.0, False, ["moved"])],
)
def test_a_shift_counts_unless_it_was_put_back(
    pixels: float | None, put_back: bool, expected: list[str]
) -> None:
    findings = judge_shift(pixels, put_back)
    assert [finding.name for finding in findings] == expected
    assert all("3.0 px" in finding.sentence for finding in findings)


CAST = torch.tensor([1.0, 0.8, 0.6])
"""A warm cast of colors."""


@pytest.mark.parametrize(
    ("edited", "expected", "word_expected"),
    [
        (BACKGROUND, set(), GOOD),
        (BACKGROUND * CAST, {"unmoved"}, LOOK),
        (BACKGROUND * 1.6, {"clipped"}, LOOK),
        (BACKGROUND.flip(2), {"repainted"}, FAILED),
        (torch.full_like(BACKGROUND, 0.4), {"flat"}, FAILED),
    ],
)
def test_a_white_balance_has_reasons_of_its_own(
    edited: Tensor, expected: set[str], word_expected: str
) -> None:
    before = BACKGROUND * CAST
    assert names(edited, "white_balance", before) == expected
    assert word(edited, "white_balance", before) == word_expected


def test_a_batch_has_the_verdict_on_its_worst_image() -> None:
    batch = [judge(seen(edited), "removal") for edited in (BACKGROUND, PICTURE)]
    both = conclude(batch)
    assert both.word == FAILED
    assert both.reasons == ("Image 2: Only 0.0 % of the mask changed visibly.",)
    assert conclude([]).word == GOOD


@pytest.mark.parametrize(
    "mask",
    [
        disc(SIDE, SIDE, 0, 0, 30),
        torch.ones(1, SIDE, SIDE),
        disc(SIDE, SIDE, 96, 96, 1),
        disc(SIDE, SIDE, 30, 40, 12) + disc(SIDE, SIDE, 150, 140, 12),
        0.4 * MASK,
        0 * MASK,
    ],
    ids=["in a corner", "everything", "a dot", "two islands", "soft", "empty"],
)
@pytest.mark.parametrize("variant", ["removal", "insertion", "white_balance"])
def test_any_mask_has_a_verdict(mask: Tensor, variant: str) -> None:
    feathered = mask_ops.feather(mask, 16)
    inside_image = torch.ones(SIDE, SIDE, dtype=torch.bool)
    inside_image[:, 150:] = False
    planes = (PICTURE[0], BACKGROUND[0], BACKGROUND[0], mask[0], feathered[0], feathered[0])
    assert conclude([judge(Edit(*planes, inside_image), variant)]).word in verdict.VERDICTS


def result_of(change, variant: str = "removal", **options):
    """Edit PICTURE by a function of the crop, and return the report."""
    conditions = prepare(PICTURE, MASK, context=2)
    editor = PrecomputedEdit([change(conditions.crop.image)], variant)
    return edit(editor, conditions, **options).report


def test_an_edit_reports_its_verdict() -> None:
    unchanged = result_of(lambda crop: crop)
    assert (unchanged.verdict, len(unchanged.verdict_reasons)) == (FAILED, 1)
    balanced = result_of(lambda crop: crop * CAST, "white_balance")
    assert (balanced.verdict, balanced.verdict_reasons) == (GOOD, ())
    assert result_of(lambda crop: crop, "white_balance").verdict == LOOK
    assert balanced.as_dict()["verdict"] == GOOD


@pytest.mark.parametrize("pixels", [3, 24])
def test_a_shift_that_is_too_large_to_be_put_back_is_worth_a_look(example, pixels: int) -> None:
    conditions = prepare(example("astronaut"), disc(512, 512, 250, 250, 30), context=6)
    cleared = blend(conditions.crop.image, torch.full((3,), 0.5), conditions.crop.mask)
    moved = torch.roll(cleared, pixels, 2)
    report = edit(PrecomputedEdit([moved], "removal"), conditions).report
    assert report.realigned == (pixels == 3), "only small shifts are put back"
    changed = any("of the crop that is not pasted" in reason for reason in report.verdict_reasons)
    assert changed == (pixels == 24)
    assert pixels == 3 or report.verdict == "look"


def test_a_shift_that_was_measured_and_not_put_back_is_a_reason() -> None:
    (finding,) = verdict.judge_shift(1.5, put_back=False)
    assert (finding.word, "1.5 px" in finding.sentence) == ("look", True)
    assert verdict.judge_shift(1.5, put_back=True) == verdict.judge_shift(0.4, False) == []
    assert verdict.judge_shift(None, put_back=False) == []
