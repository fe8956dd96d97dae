"""Masks of several parts: how they are split, and edits of all parts."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from artmancer import islands, region
from artmancer.conditions import Conditions, prepare, with_blend_mask, with_extra
from artmancer.draft import DraftEditor
from artmancer.edit import edit
from artmancer.editor import EditorWithoutCheckpoint, EditRequest, PrecomputedEdit, plan
from artmancer.errors import ArtMancerError
from artmancer.lama import Lama
from artmancer.progress import Progress, no_progress
from artmancer.region import Window


class Inverter(EditorWithoutCheckpoint):
    """An editor that inverts colors that are not inverted yet; it counts its requests."""

    name = "inverter"
    variant = "removal"
    keeps_surroundings = False

    def __init__(self) -> None:
        self.requests: list[EditRequest] = []

    def edit(self, request: EditRequest, progress: Progress) -> Tensor:
        self.requests.append(request)
        for step in range(4):
            progress(step, 4, "inverting")
        crop = request.conditions.crop.image
        return torch.where(crop < 0.5, 1 - crop, crop)


def photo(height: int, width: int) -> Tensor:
    """Return an IMAGE of noise between 0 and 1/4, so that an inverted pixel is over 1/2."""
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(0)) / 4


def marks(height: int, width: int, *boxes: tuple[int, int, int, int]) -> Tensor:
    """Return a MASK with rectangles (top, left, bottom, right)."""
    mask = torch.zeros(1, height, width)
    for top, left, bottom, right in boxes:
        mask[:, top:bottom, left:right] = 1
    return mask


TWO = ((10, 10, 40, 40), (460, 400, 480, 460))
"""Marks in two corners of a photo of 512 x 512."""


def place(size: tuple[int, int], **options: Any) -> Callable[[Window], region.Region]:
    return lambda window: region.plan([window], size, **options)


@pytest.mark.parametrize("regions", ["auto", "apart"])
def test_marks_in_two_corners_are_edited_apart(regions: str) -> None:
    image, mask = photo(512, 512), marks(512, 512, *TWO)
    editor = Inverter()
    result = edit(editor, prepare(image, mask, regions=regions, feather=0), match=False, seed=7)
    assert [request.seed for request in editor.requests] == [7, 8]
    assert torch.equal(result.image[mask == 0], image[mask == 0])
    assert torch.allclose(result.image[mask == 1], 1 - image[mask == 1])
    rows = result.report.regions
    # The largest first: 1,200 pixels, then 900.
    assert [row["box"][0] < 256 for row in rows] == [False, True]
    assert sum(np.prod(row["crop_size"]) for row in rows) < 512 * 512 / 8


def test_together_makes_one_crop() -> None:
    conditions = prepare(photo(512, 512), marks(512, 512, *TWO), regions="together")
    assert conditions.following == ()
    assert conditions.crop.region.box_size == (512, 512)


def test_marks_whose_contexts_overlap_stay_together() -> None:
    mask = marks(512, 512, (100, 100, 140, 140), (100, 160, 140, 200))
    assert prepare(photo(512, 512), mask, regions="apart").following == ()


def test_auto_keeps_islands_together_that_would_need_more_pixels() -> None:
    """Sixteen marks with their contexts nearly fill the photo, but do not touch."""
    boxes = [(y, x, y + 80, x + 80) for y in range(20, 480, 120) for x in range(20, 480, 120)]
    image, mask = photo(480, 480), marks(480, 480, *boxes)
    # Boxes of 144 pixels at a distance of 120 overlap.
    assert prepare(image, mask, regions="auto").following == ()


def test_many_islands_are_joined_to_a_limit() -> None:
    boxes = [(y, x, y + 4, x + 4) for y in range(60, 2000, 160) for x in range(60, 2000, 160)]
    mask = marks(2048, 2048, *boxes)
    parts = islands.split(mask, place((2048, 2048)), "apart", inserts=False)
    assert len(parts) <= islands.MAX_PARTS
    assert torch.equal(sum(whole(part, mask) for part in parts), mask)


def whole(part: islands.Part, mask: Tensor) -> Tensor:
    """Return the mask of a part at the size of the whole mask."""
    top, left, bottom, right = part.window
    result = torch.zeros_like(mask)
    result[:, top:bottom, left:right] = part.mask
    return result


class Written(TorchDispatchMode):
    """Counts the bytes of all tensors that torch makes."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        own = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, Tensor)}
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in own:
                self.total += tensor.nbytes
        return result


@pytest.mark.slow
def test_one_more_part_costs_no_copy_of_the_photo_or_its_mask() -> None:
    corners = [(20, 20), (1900, 1900), (20, 1900), (1900, 20)]
    boxes = [(y, x, y + 30, x + 30) for y, x in corners]
    image, totals = photo(2048, 2048), []
    for count in (1, 4):
        mask = marks(2048, 2048, *boxes[:count])
        with Written() as written:
            conditions = prepare(image, mask, regions="apart")
            edit(Inverter(), conditions, match_grain=True)
        assert len(conditions.parts) == count
        totals.append(written.total)
    # The steps of a crop of 96 x 96 pixels make 19 MB of small tensors, a copy of the photo 50 MB.
    assert totals[1] - totals[0] < 3 * image.nbytes / 2


@st.composite
def masks(draw: st.DrawFn) -> Tensor:
    """Return a MASK of some rectangles, thin lines and soft spots."""
    height, width = draw(st.integers(40, 700)), draw(st.integers(40, 700))
    mask = torch.zeros(1, height, width)
    for _ in range(draw(st.integers(1, 6))):
        top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        high = draw(st.sampled_from([1, 3, 30, height]))
        wide = draw(st.sampled_from([1, 3, 30, width]))
        value = draw(st.sampled_from([1.0, 0.5, 0.1]))
        mask[:, top : top + high, left : left + wide] = value
    return mask


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(masks(), st.sampled_from([{}, {"longest_side": 128}, {"pixels": 128 * 128}]))
def test_each_masked_pixel_is_in_one_part_or_where_pieces_join(
    mask: Tensor, size: dict[str, int]
) -> None:
    height, width = mask.shape[1:]
    found = place((height, width), context=1.5, feather=8, **size)
    parts = islands.split(mask, found, "apart", inserts=False)
    wholes = [whole(part, mask) for part in parts]
    count = sum((own > 0).int() for own in wholes)
    assert torch.equal(count > 0, mask > 0)
    assert all(torch.equal(own[own > 0], mask[own > 0]) for own in wholes)
    for number, (part, own) in enumerate(zip(parts, wholes, strict=True), 1):
        # Twice only within the margin of a crop that cuts the mask.
        crop = found(part.box or region.bounds(own[0])).box_in_image(0)
        inner = Window(crop.top + 32, crop.left + 32, crop.bottom - 32, crop.right - 32)
        for other in wholes[number:]:
            assert not (inner.view(own[0]) * inner.view(other[0])).any()


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(masks(), st.sampled_from(["auto", "together", "apart"]))
def test_no_pixel_outside_the_feathered_mask_changes_and_all_inside_do(
    mask: Tensor, regions: str
) -> None:
    mask = (mask > 0).float()
    image = photo(*mask.shape[1:])
    conditions = prepare(image, mask, regions=regions, feather=4, resolution="512")
    result = edit(Inverter(), conditions, match=False).image
    inside = (result > 0.5).all(-1)
    assert inside[mask == 1].all()
    shape = torch.nn.functional.max_pool2d(mask, 9, 1, 4)
    # A disc of radius 4 lies in a square of 9.
    assert torch.equal(result[shape == 0], image[shape == 0])


def line(length: int, thickness: int = 4) -> Tensor:
    """Return a MASK of a slanting line across a photo twice as long as high."""
    import cv2

    mask = np.zeros((length // 2, length), np.uint8)
    cv2.line(mask, (0, length // 8), (length, length // 3), 1, thickness)
    return torch.from_numpy(mask).float()[None]


def test_a_long_thin_mask_is_cut_into_crops_at_the_photos_resolution() -> None:
    mask = line(1200)
    image = photo(600, 1200)
    conditions = prepare(image, mask, resolution="512", feather=4)
    assert len(conditions.parts) == 4
    assert all(part.crop.region.scale == 1 for part in conditions.parts)
    result = edit(Inverter(), conditions, match=False).image
    assert (result[mask == 1] > 0.5).all()
    # Each piece lies beside the one before it.
    lefts = [row["box"][1] for row in edit(Inverter(), conditions, match=False).report.regions]
    assert lefts == sorted(lefts)


@pytest.mark.parametrize(
    ("mask", "reference"),
    [(marks(600, 1200, (100, 100, 500, 1100)), None), (line(1200), torch.rand(1, 20, 20, 3))],
)
def test_a_wide_mask_and_the_place_of_an_object_are_not_cut(
    mask: Tensor, reference: Tensor | None
) -> None:
    image = photo(600, 1200)
    conditions = prepare(image, mask, reference=reference, resolution="512")
    assert conditions.following == ()


def test_a_piece_shows_the_edit_of_the_piece_before_it() -> None:
    mask = line(1200)
    seen: list[Tensor] = []

    class Watcher(Inverter):
        def edit(self, request: EditRequest, progress: Progress) -> Tensor:
            seen.append(request.conditions.images["background"])
            return super().edit(request, progress)

    conditions = prepare(photo(600, 1200), mask, resolution="512", feather=4)
    edit(Watcher(), conditions, match=False)
    # Only inverted pixels are over one half.
    assert [bool((image > 0.5).any()) for image in seen] == [False, True, True, True]


@pytest.mark.parametrize("length", [1160, 1290, 1400])
@pytest.mark.parametrize("size", [{"longest_side": 512}, {"pixels": 400 * 400}])
def test_no_piece_is_enlarged(length: int, size: dict[str, int]) -> None:
    mask = line(length)
    found = place((length // 2, length), context=1.5, feather=4, **size)
    for turned in (mask, mask.flip(2)):
        parts = islands.split(turned, found, "auto", inserts=False)
        assert len(parts) > 2
        scales = [found(part.box).scale for part in parts]
        assert min(scales) >= 1 and max(scales) <= 1.1


class Filler:
    """Stands for LaMa: it fills holes with 1/8 and keeps what it sees around them."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def fill(self, image: Tensor, hole: Tensor, seed: int, progress: Progress) -> Tensor:
        self.seen.append(image[~hole])
        for step in range(3):
            progress(step, 3, "filling")
        return torch.where(hole.unsqueeze(-1), torch.full((3,), 0.125), image)


def prepare_line(filler: Filler, progress: Progress = no_progress) -> Conditions:
    """Return the conditions of a removal of a white line, cut into pieces."""
    mask = line(1200)
    image = torch.where(mask.unsqueeze(-1) > 0, 1.0, photo(600, 1200))
    return prepare(
        image,
        mask,
        recipe="background_mask_fill",
        resolution="512",
        feather=4,
        lama=cast(Lama, filler),
        progress=progress,
    )


def test_each_piece_is_filled_once_and_sees_the_fill_of_the_piece_before_it() -> None:
    filler = Filler()
    conditions = prepare_line(filler)
    editor = Inverter()
    edit(editor, conditions, match=False)
    assert len(conditions.parts) == len(filler.seen) == 4
    # The rest of the line is 1, and lies to the right of each piece but the last.
    bright = [float((around > 0.9).sum()) for around in filler.seen]
    assert bright[3] == 0
    for request in editor.requests:
        shown, crop = request.conditions.images["fill"], request.conditions.crop
        inside = crop.mask.unsqueeze(-1).expand_as(shown) == 1
        assert torch.allclose(shown[inside], torch.tensor(0.125))
        outside = crop.mask.unsqueeze(-1).expand_as(shown) == 0
        assert torch.equal(shown[outside], crop.image[outside])


def test_the_progress_of_the_fills_runs_once_over_all_pieces() -> None:
    shares: list[float] = []

    def note(done: int, total: int, stage: str, latents: Tensor | None = None) -> None:
        shares.append(done / total)

    prepare_line(Filler(), note)
    assert shares == sorted(shares)
    assert len(set(shares)) == 4 * 3


@pytest.mark.parametrize(("stage", "fills"), [("cropping (2 of 4)", 1), ("filling (2 of 4)", 2)])
def test_the_preparation_is_cancelled_between_pieces_and_within_one(stage: str, fills: int) -> None:
    filler = Filler()

    def cancel(done: int, total: int, name: str, latents: Tensor | None = None) -> None:
        if name == stage:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        prepare_line(filler, cancel)
    assert len(filler.seen) == fills


def test_a_batch_of_thin_masks_is_cut_too() -> None:
    mask = torch.cat([line(1200), line(1200).flip(1), torch.zeros(1, 600, 1200)])
    image = photo(600, 1200).expand(3, -1, -1, -1)
    one = prepare(image[:1], mask[:1], resolution="512", feather=4)
    both = prepare(image[::2], mask[::2], resolution="512", feather=4)
    assert len(both.parts) == len(one.parts) == 4
    result = edit(Inverter(), both, match=False).image
    assert (result[0][mask[0] == 1] > 0.5).all()
    assert torch.equal(result[1], image[2])


def test_an_outline_that_is_to_be_filled_is_not_cut() -> None:
    import cv2

    ring = np.zeros((1200, 1200), np.uint8)
    cv2.circle(ring, (600, 600), 500, 1, 6)
    mask = torch.from_numpy(ring).float()[None]
    filled = prepare(photo(1200, 1200), mask, fill_holes=True, resolution="512")
    assert filled.following == ()
    # The area of a disc of radius 500, as a share of its box.
    side = 1200 * filled.crop.region.scale
    assert float(filled.crop.mask.sum()) == pytest.approx(
        3.1416 * (side * 500 / 1200) ** 2, rel=0.05
    )


def test_scattered_specks_are_not_cut_into_pieces() -> None:
    places = torch.rand(200, 2, generator=torch.Generator().manual_seed(1)) * torch.tensor(
        [1480.0, 1980.0]
    )
    boxes = [(int(y), int(x), int(y) + 6, int(x) + 6) for y, x in places]
    mask = marks(1500, 2000, *boxes)
    parts = islands.split(mask, place((1500, 2000), longest_side=512), "auto", inserts=False)
    assert len(parts) <= islands.MAX_PARTS


def test_a_speck_beside_the_place_of_an_object_gets_no_object() -> None:
    mask = marks(512, 512, (300, 300, 400, 400), (10, 10, 13, 13))
    conditions = prepare(photo(512, 512), mask, reference=torch.rand(1, 20, 20, 3))
    assert conditions.following == ()


@pytest.mark.parametrize("widen", [False, True])
@pytest.mark.parametrize("removes_all", [False, True])
def test_edits_made_before_bring_nothing_back_that_an_earlier_piece_removed(
    widen: bool, removes_all: bool
) -> None:
    """As in the native way, where all crops are cut from the photo as it came."""
    mask, clean = line(1200), photo(600, 1200)
    dirty = torch.where(mask.unsqueeze(-1) > 0, 1.0, clean)
    conditions = prepare(dirty, mask, resolution="512", feather=4)
    perfect = [
        torch.where(
            (part.crop.mask.unsqueeze(-1) > 0) | removes_all,
            region.crop_like(clean, part.crop.region),
            part.crop.image,
        )
        for part in conditions.parts
    ]
    editor = PrecomputedEdit(perfect, "removal")
    result = edit(editor, conditions, match=False, widen=widen).image
    assert len(conditions.parts) == 4
    # The line was 1, and the photo is between 0 and 1/4.
    assert result.max() < 0.5
    assert torch.allclose(result[mask == 1], clean[mask == 1], atol=1e-4)


def test_the_progress_runs_once_over_all_parts_and_cancels_between_them() -> None:
    conditions = prepare(photo(512, 512), marks(512, 512, *TWO))
    shares: list[float] = []

    def note(done: int, total: int, stage: str, latents: Tensor | None = None) -> None:
        shares.append(done / total)
        if "(2 of 2)" in stage:
            raise InterruptedError

    editor = Inverter()
    with pytest.raises(InterruptedError):
        edit(editor, conditions, progress=note)
    assert len(editor.requests) == 2
    assert shares == sorted(shares)
    assert shares[-1] == 0.5


def test_a_part_that_a_blend_mask_hides_is_not_edited() -> None:
    image = photo(512, 512)
    conditions = prepare(image, marks(512, 512, *TWO), feather=0)
    blended = with_blend_mask(conditions, marks(512, 512, TWO[0]))
    editor, shares = Inverter(), list[float]()

    def note(done: int, total: int, stage: str, latents: Tensor | None = None) -> None:
        shares.append(done / total)

    result = edit(editor, blended, match=False, seed=7, progress=note)
    # The part has the seed that it has without a blend mask.
    assert [request.seed for request in editor.requests] == [8]
    assert len(result.report.regions) == 1
    assert shares[-1] == 1
    assert (result.image[0, 15:35, 15:35] > 0.5).all()
    assert torch.equal(result.image[:, 100:], image[:, 100:])
    (sentence,) = (note for note in result.report.notes if "blend mask" in note)
    assert sentence.startswith("Part 1 was not edited")


def test_edits_made_before_keep_their_place_where_a_part_is_hidden() -> None:
    image, mask = photo(512, 512), marks(512, 512, *TWO)
    conditions = prepare(image, mask, feather=0)
    crops = [1 - part.crop.image for part in conditions.parts]
    blended = with_blend_mask(conditions, marks(512, 512, TWO[0]))
    result = edit(PrecomputedEdit(crops, "removal"), blended, match=False).image
    assert torch.allclose(result[:, 15:35, 15:35], 1 - image[:, 15:35, 15:35])


def test_a_blend_mask_that_hides_all_parts_is_refused() -> None:
    conditions = prepare(photo(512, 512), marks(512, 512, *TWO))
    with pytest.raises(ArtMancerError, match="Nothing of the edit would show") as caught:
        with_blend_mask(conditions, marks(512, 512, (250, 250, 260, 260)))
    assert caught.value.code == "invalid_request"


def test_a_reference_is_inserted_into_each_island() -> None:
    image = torch.full((1, 512, 512, 3), 0.5)
    reference = torch.zeros(1, 20, 20, 3)
    conditions = prepare(image, marks(512, 512, *TWO), reference=reference)
    result = edit(DraftEditor("insertion"), conditions).image
    for top, left, bottom, right in TWO:
        middle = result[0, (top + bottom) // 2, (left + right) // 2]
        assert (middle < 0.1).all()


def test_extra_images_go_to_each_part() -> None:
    conditions = with_extra(
        prepare(photo(512, 512), marks(512, 512, *TWO)), torch.rand(1, 50, 50, 3)
    )
    assert all("extra 1" in part.images for part in conditions.parts)


def test_a_batch_is_split_at_the_same_places_and_a_mask_may_miss_an_island() -> None:
    mask = torch.cat([marks(512, 512, *TWO), marks(512, 512, TWO[1])])
    image = photo(512, 512).expand(2, -1, -1, -1)
    result = edit(Inverter(), prepare(image, mask, feather=0), match=False)
    assert len(result.report.regions) == 2
    assert torch.equal(result.image[mask == 0], image[mask == 0])
    assert torch.allclose(result.image[mask == 1], 1 - image[mask == 1])


def test_white_balance_edits_all_islands_together() -> None:
    image, mask = photo(512, 512), marks(512, 512, *TWO)
    choices = plan(DraftEditor("white_balance"))
    assert prepare(image, mask, **choices._asdict()).following == ()
    choices = plan(None, recipe="image_edges")
    assert prepare(image, mask, **choices._asdict()).following == ()
    choices = plan(DraftEditor("white_balance"), regions="apart")
    assert len(prepare(image, mask, **choices._asdict()).following) == 1


def test_edits_made_before_are_stitched_part_by_part() -> None:
    image, mask = photo(512, 512), marks(512, 512, *TWO)
    conditions = prepare(image, mask, feather=0)
    crops = [1 - part.crop.image for part in conditions.parts]
    result = edit(PrecomputedEdit(crops, "removal"), conditions, match=False).image
    assert torch.allclose(result[mask == 1], 1 - image[mask == 1])
    assert torch.equal(result[mask == 0], image[mask == 0])


def test_unknown_regions_are_refused() -> None:
    with pytest.raises(ArtMancerError, match="expected one of auto, together, apart"):
        prepare(photo(64, 64), marks(64, 64, (1, 1, 9, 9)), regions="some")
