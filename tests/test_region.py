"""Crops around a mask and the way back: stitch, recolor, resample."""

import cmath
import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.images import disc, smooth_picture, waves
from torch import Tensor

from artmancer import mask_ops, region
from artmancer.errors import ArtMancerError
from artmancer.registration import Registration, Similarity, undo

TARGETS = [
    {},
    {"longest_side": 512},
    {"longest_side": 1024},
    {"pixels": 256 * 256},
    {"pixels": 2**20},
]
"""Size options of region.crop; {} is the native size."""

MEGAPIXEL = 2**20
"""Largest area that `sizes` draws, in pixels."""


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int]:
    """Draw a height and a width from 1 to 4096, together at most MEGAPIXEL."""
    height = draw(st.integers(1, 4096))
    width = draw(st.integers(1, min(4096, MEGAPIXEL // height)))
    return height, width


@st.composite
def masks(draw: st.DrawFn, height: int, width: int) -> Tensor:
    """Draw a MASK of one to three rectangles, soft or hard, from one pixel to the whole frame."""
    mask = torch.zeros(1, height, width)
    for _ in range(draw(st.integers(1, 3))):
        top = draw(st.integers(0, height - 1))
        left = draw(st.integers(0, width - 1))
        bottom = draw(st.integers(top + 1, height))
        right = draw(st.integers(left + 1, width))
        mask[:, top:bottom, left:right] = draw(st.sampled_from([1.0, 0.5, 0.2]))
    return mask


def same_bits(first: Tensor, second: Tensor) -> Tensor:
    return first.view(torch.int32) == second.view(torch.int32)


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(data=st.data(), size=sizes())
def test_every_bit_outside_the_feathered_mask_stays(
    data: st.DataObject, size: tuple[int, int]
) -> None:
    # Batches of large images would take too long.
    batch = data.draw(st.integers(1, 3)) if math.prod(size) < MEGAPIXEL / 4 else 1
    mask = torch.cat([data.draw(masks(*size)) for _ in range(batch)])
    # randn also gives values outside 0..1. They stay too.
    image = torch.randn(batch, *size, 3, generator=torch.Generator().manual_seed(0))
    grow = data.draw(st.integers(0, 20))
    feather = data.draw(st.integers(0, 40))
    fill_holes = data.draw(st.booleans())
    target = data.draw(st.sampled_from(TARGETS))

    crop = region.crop(image, mask, grow=grow, feather=feather, fill_holes=fill_holes, **target)
    height, width = crop.region.size
    assert height % 32 == 0 and width % 32 == 0
    box_height, box_width = crop.region.box_size
    assert height * box_width == width * box_height, "the aspect ratio stays"
    edited = torch.full_like(crop.image, 7)
    result = region.stitch(edited, image, crop.region)

    filled = mask_ops.fill_holes(mask) if fill_holes else mask
    grown = mask_ops.grow(filled, grow)
    outside = mask_ops.feather(grown, feather) == 0
    assert same_bits(result, image)[outside].all()
    assert (result != image).any(-1)[~outside & (grown > 0)].all(), "the whole mask is edited"


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(data=st.data(), size=sizes(), context=st.floats(1, 4))
@example(data=None, size=(1, 1), context=1.0)
def test_stitching_the_unchanged_native_crop_gives_the_image(
    data: st.DataObject | None, size: tuple[int, int], context: float
) -> None:
    mask = data.draw(masks(*size)) if data else torch.ones(1, *size)
    image = torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(0))
    crop = region.crop(image, mask, context=context)
    if crop.region.scale == 1:
        assert same_bits(region.stitch(crop.image, image, crop.region), image).all()


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(64, 900),
    width=st.integers(64, 900),
    y=st.floats(0, 1),
    x=st.floats(0, 1),
    radius=st.floats(0.02, 0.7),
    target=st.sampled_from(TARGETS[1:]),
    seed=st.integers(0, 9),
)
def test_resampling_keeps_smooth_images_within_two_levels(
    height: int, width: int, y: float, x: float, radius: float, target: dict[str, int], seed: int
) -> None:
    center_y = round(y * (height - 1))
    center_x = round(x * (width - 1))
    mask = disc(height, width, center_y, center_x, radius * min(height, width))
    plan = region.crop(torch.zeros(1, height, width, 3), mask, **target).region
    image = smooth_picture(height, width, wavelength=max(80, 40 / plan.scale), seed=seed)
    crop = region.crop(image, mask, **target)
    result = region.stitch(crop.image, image, crop.region)
    assert (result - image).abs().max() <= 2 / 255


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    height=st.integers(8, 700),
    width=st.integers(8, 700),
    feather=st.integers(0, 40),
    frame=st.sampled_from(["crop", "photo"]),
    target=st.sampled_from(TARGETS),
)
def test_an_unchanged_crop_gives_every_bit_around_the_mask_back(
    data: st.DataObject,
    height: int,
    width: int,
    feather: int,
    frame: str,
    target: dict[str, int],
) -> None:
    mask = data.draw(masks(height, width))
    image = torch.randn(1, height, width, 3, generator=torch.Generator().manual_seed(0))
    crop = region.crop(image, mask, feather=feather, frame=frame, **target)
    result = region.stitch(crop.image, image, crop.region, crop.image)
    assert same_bits(result, image)[mask == 0].all()


BAR = (140, 230)
"""First row and the row after the last of a mask that is a bar across a photo of 400 rows."""


def bar(width: int) -> Tensor:
    mask = torch.zeros(1, 400, width)
    mask[:, BAR[0] : BAR[1]] = 1
    return mask


@pytest.mark.parametrize("side", [96, 256, 512, 1024])
def test_around_the_mask_the_change_is_added_to_the_photos_own_pixels(side: int) -> None:
    random = torch.Generator().manual_seed(0)
    photo = 0.3 + 0.3 * torch.rand(1, 400, 500, 3, generator=random)
    crop = region.crop(photo, bar(500), longest_side=side, feather=20)
    # A change that rises along the photo, by its columns: 0.1 at the left, 0.3 at the right.
    rising = torch.linspace(0.1, 0.3, 500).view(1, 1, -1, 1)
    edited = crop.image + region.crop_like(rising.expand_as(photo).contiguous(), crop.region)
    result = region.stitch(edited, photo, crop.region, crop.image)
    rows = torch.arange(400)
    distance = torch.maximum(BAR[0] - rows, rows - BAR[1] + 1).clamp(min=0)
    near = (1 - distance / 20).clamp(min=0)
    expected = photo + (3 * near**2 - 2 * near**3).view(1, -1, 1, 1) * rising
    outside = distance > 0
    # Past the photo's end its edge is repeated, which the crop's first and last columns show.
    error = (result - expected)[:, outside, 20:-20]
    assert error.abs().max() < 0.5 / 255


@pytest.mark.parametrize("side", [96, 256, 384])
def test_what_was_removed_leaves_no_rim_in_its_surroundings(side: int) -> None:
    wall, mask = torch.full((1, 400, 500, 3), 0.4), bar(500)
    photo = torch.where(mask.unsqueeze(-1) > 0, torch.ones(3), wall)
    crop = region.crop(photo, mask, longest_side=side)
    filled = torch.full_like(crop.image, 0.4)
    result = region.stitch(filled, photo, crop.region, crop.image)
    # What was removed was 0.6 brighter; pasted with its rim, up to half of that would show.
    assert (result - wall).abs().max() < 0.05
    assert (result - wall)[mask > 0].abs().max() < 1e-5


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("height", "width", "radius"), [(700, 900, 200), (333, 517, 90), (1500, 1501, 700)]
)
def test_crop_and_stitch_do_not_shift_the_image(
    height: int, width: int, radius: int, target: dict[str, int]
) -> None:
    noise = torch.rand(height, width, 1, generator=torch.Generator().manual_seed(0))
    blurred = cv2.GaussianBlur(noise.expand(-1, -1, 3).numpy(), (0, 0), 3)
    image = torch.from_numpy(blurred).unsqueeze(0)
    mask = disc(height, width, height / 2 - 7, width / 2 + 11, radius)
    crop = region.crop(image, mask, **target)
    result = region.stitch(crop.image, image, crop.region)
    weight = mask[0].numpy() * cv2.GaussianBlur(mask[0].numpy(), (0, 0), 10)
    before = (image[0, ..., 0] - 0.5).numpy() * weight
    after = (result[0, ..., 0] - 0.5).numpy() * weight
    (x, y), _ = cv2.phaseCorrelate(before, after)
    assert math.hypot(x, y) < 0.05


@pytest.mark.parametrize(
    "item",
    {
        "corner": torch.eye(200)[None].cumsum(1).flip(2).clamp(max=1),
        "one pixel wide": torch.zeros(1, 200, 200).index_fill(2, torch.tensor([77]), 1),
        "one pixel": torch.zeros(1, 200, 200).index_put(
            (torch.tensor(0), torch.tensor(199), torch.tensor(0)), torch.tensor(1.0)
        ),
        "islands": disc(200, 200, 20, 20, 9) + disc(200, 200, 180, 170, 12),
        "full frame": torch.ones(1, 200, 200),
    }.items(),
    ids=lambda item: item[0],
)
def test_the_crop_shows_the_whole_mask_and_its_surroundings(item: tuple[str, Tensor]) -> None:
    _, mask = item
    image = torch.rand(1, 200, 200, 3)
    crop = region.crop(image, mask)
    assert crop.mask.sum() >= mask.sum()
    box = region.bounds(mask[0]).widen(region.MIN_MARGIN).clip(region.Window(0, 0, 200, 200))
    top, left = crop.region.corners[0]
    height, width = crop.region.box_size
    assert top <= box.top
    assert left <= box.left
    assert top + height >= box.bottom
    assert left + width >= box.right


def test_the_crops_of_a_batch_have_one_size_and_their_own_corners() -> None:
    mask = torch.cat([disc(300, 400, 40, 50, 20), disc(300, 400, 250, 330, 45)])
    image = torch.rand(2, 300, 400, 3)
    crop = region.crop(image, mask)
    assert crop.image.shape == (2, *crop.region.size, 3)
    assert crop.region.corners[0] != crop.region.corners[1]
    for index in range(2):
        alone = region.crop(image[index : index + 1], mask[index : index + 1])
        assert alone.mask.sum() == crop.mask[index].sum()


def test_one_mask_serves_all_images_of_a_batch() -> None:
    image = torch.rand(3, 100, 120, 3)
    mask = disc(100, 120, 50, 50, 20)
    crop = region.crop(image, mask)
    result = region.stitch(crop.image * 0, image, crop.region)
    assert (result[:, 50, 50] == 0).all()
    assert torch.equal(result[:, 0], image[:, 0])


def test_outside_the_image_its_edge_pixels_are_repeated() -> None:
    image = torch.rand(1, 20, 300, 3)
    crop = region.crop(image, torch.ones(1, 20, 300))
    assert crop.region.size == (32, 320)
    top, left = crop.region.corners[0]
    assert torch.equal(crop.image[0, 0, -left:][:300], image[0, 0])
    assert torch.equal(crop.image[0, -top : 20 - top, 0], image[0, :, 0])


@pytest.mark.parametrize(
    ("options", "longest"), [({}, 1536), ({"longest_side": 512}, 512), ({"longest_side": 700}, 672)]
)
def test_the_crop_keeps_to_its_longest_side(options: dict[str, int], longest: int) -> None:
    crop = region.crop(torch.zeros(1, 3000, 2500, 3), torch.ones(1, 3000, 2500), **options)
    assert max(crop.region.size) == longest


def test_an_editor_of_any_size_sees_a_thin_mask_at_the_photos_resolution() -> None:
    photo, line = torch.zeros(1, 1600, 2560, 3), torch.zeros(1, 1600, 2560)
    for column in range(2560):
        row = 100 + column // 2
        line[:, row : row + 4, column] = 1
    assert region.crop(photo, line, any_size=True).region.scale == 1
    assert max(region.crop(photo, line).region.size) == region.NATIVE_LIMIT
    assert region.crop(photo, line, any_size=True, longest_side=512).region.size[1] == 512
    large = torch.zeros(1, 1600, 2560)
    large[:, 200:1200, 200:1400] = 1
    for options in ({"mask": large}, {"mask": line, "grow": 300}):
        crop = region.crop(photo, any_size=True, **options)
        assert max(crop.region.size) == region.NATIVE_LIMIT, "a large hole takes minutes to fill"
    wide = torch.zeros(1, 1600, 3000)
    wide[:, 0, 0] = wide[:, -1, -1] = 1
    crop = region.crop(torch.zeros(1, 1600, 3000, 3), wide, any_size=True)
    assert max(crop.region.size) == region.NATIVE_LIMIT, "more than four megapixels"


def test_the_crop_keeps_to_its_pixel_budget() -> None:
    for height, width in [(3000, 2500), (500, 4000), (40, 40), (100, 1)]:
        crop = region.crop(
            torch.zeros(1, height, width, 3), torch.ones(1, height, width), pixels=2**18
        )
        assert math.prod(crop.region.size) <= 2**18


def test_a_crop_of_another_size_is_refused() -> None:
    image, mask = torch.rand(1, 200, 200, 3), disc(200, 200, 100, 100, 10)
    crop = region.crop(image, mask)
    with pytest.raises(ValueError, match=r"\(96, 96\)"):
        region.stitch(torch.zeros(1, 64, 64, 3), image, crop.region)


@pytest.mark.parametrize(
    ("image", "mask", "code", "message"),
    [
        (torch.zeros(1, 50, 60, 3), torch.zeros(1, 50, 60), "mask_empty", "black everywhere"),
        (
            torch.zeros(2, 50, 60, 3),
            torch.stack([torch.ones(50, 60), torch.full((50, 60), torch.nan)]),
            "invalid_request",
            "Mask 2",
        ),
        (
            torch.zeros(1, 50, 60, 3),
            torch.ones(1, 60, 50),
            "invalid_request",
            "mask is 50x60 but the image is 60x50",
        ),
        (
            torch.zeros(1, 50, 60, 3),
            torch.zeros(1, 64, 64),
            "invalid_request",
            "none was painted",
        ),
        (torch.zeros(3, 50, 60, 3), torch.ones(2, 50, 60), "invalid_request", r"batch of 3"),
        (torch.zeros(1, 50, 60, 4), torch.ones(1, 50, 60), "invalid_request", r"\[1, 50, 60, 4\]"),
        (
            torch.zeros(1, 50, 60, 3, dtype=torch.uint8),
            torch.ones(1, 50, 60),
            "invalid_request",
            "uint8.*expected float32",
        ),
        (
            torch.full((1, 50, 60, 3), torch.nan),
            torch.ones(1, 50, 60),
            "invalid_request",
            "image holds NaN",
        ),
        (
            torch.full((1, 50, 60, 3), torch.inf),
            torch.ones(1, 50, 60),
            "invalid_request",
            "infinite",
        ),
        (
            torch.zeros(1, 50, 60, 3),
            torch.full((1, 50, 60), torch.nan),
            "invalid_request",
            "mask holds NaN",
        ),
    ],
)
def test_an_image_or_mask_that_does_not_fit_is_refused(
    image: Tensor, mask: Tensor, code: str, message: str
) -> None:
    with pytest.raises(ArtMancerError, match=message) as error:
        region.crop(image, mask)
    assert error.value.code == code


def test_resampling_is_antialiased() -> None:
    columns = (torch.arange(1200) % 2).float().view(1, 1, -1, 1)
    lines = columns.expand(1, 1200, 1200, 3).contiguous()
    crop = region.crop(lines, torch.ones(1, 1200, 1200), longest_side=512)
    middle = crop.image[:, 20:-20, 20:-20]
    assert middle.std() < 0.05, "lines finer than a pixel become gray, not stripes"


def test_an_infinite_value_is_refused_before_it_is_resampled() -> None:
    image = torch.zeros(1, 1200, 1200, 3)
    image[0, 600, 600, 0] = torch.inf
    with pytest.raises(ArtMancerError, match="infinite"):
        region.crop(image, torch.ones(1, 1200, 1200), longest_side=512)


def test_recolor_changes_the_images_own_pixels_inside_the_mask() -> None:
    image, mask = torch.rand(1, 300, 300, 3), disc(300, 300, 100, 100, 60)
    plan = region.crop(image, mask, longest_side=64).region
    result = region.recolor([lambda colors: 1 - colors], image, plan)
    inside = mask > 0
    assert torch.equal(result[inside], 1 - image[inside])
    assert same_bits(result, image)[mask_ops.feather(mask, 16) == 0].all()


def test_outside_error_includes_a_changed_pixel() -> None:
    image, mask = torch.rand(1, 300, 300, 3), disc(300, 300, 100, 100, 60)
    plan = region.crop(image, mask).region
    changed = image.clone()
    assert region.outside_error(changed, image, plan) == 0
    # Inside the crop and outside the feathered mask.
    area = mask_ops.feather(mask, 16)[0, 30:170, 30:170] == 0
    y, x = np.argwhere(area.numpy())[0] + 30
    changed[0, y, x] += 0.5
    assert region.outside_error(changed, image, plan) > 0


def test_the_crop_holds_its_context_mask_too() -> None:
    image = torch.rand(2, 400, 600, 3)
    mask = torch.cat([disc(400, 600, 100, 120, 20), disc(400, 600, 200, 300, 20)])
    other = torch.zeros(1, 400, 600)
    other[:, 310:390, 500:560] = 1
    plain, crop = region.crop(image, mask), region.crop(image, mask, context_mask=other)
    for index, (top, left) in enumerate(crop.region.corners):
        height, width = crop.region.box_size
        around = region.bounds(mask[index]).widen(region.MIN_MARGIN)
        for box in (around, region.Window(310, 500, 390, 560)):
            assert top <= box.top
            assert left <= box.left
            assert top + height >= box.bottom
            assert left + width >= box.right
        assert crop.mask[index].sum() == plain.mask[index].sum(), "the mask itself stays"
    assert torch.equal(
        region.stitch(1 - crop.image, image, crop.region)[:, 310:390], image[:, 310:390]
    )
    black = region.crop(image, mask, context_mask=torch.zeros_like(mask))
    assert black.region.corners == plain.region.corners


def test_the_context_in_pixels_is_on_each_side_of_the_mask() -> None:
    image, mask = torch.rand(1, 600, 600, 3), torch.zeros(1, 600, 600)
    mask[:, 280:320, 280:320] = 1
    for pixels in (44, 140):
        crop = region.crop(image, mask, context=4, context_pixels=pixels)
        assert crop.region.box_size == (40 + 2 * pixels, 40 + 2 * pixels)
        assert crop.region.corners == ((280 - pixels, 280 - pixels),)
    least = region.crop(image, mask, context_pixels=1)
    assert least.region.box_size[0] >= 40 + 2 * region.MIN_MARGIN


@pytest.mark.parametrize("target", [{}, {"longest_side": 64}])
def test_a_blend_mask_says_where_the_edit_shows(target: dict[str, int]) -> None:
    image, mask = torch.rand(2, 300, 400, 3), disc(300, 400, 150, 200, 40)
    blend = torch.cat([disc(300, 400, 150, 230, 20), torch.zeros(1, 300, 400)])
    crop = region.crop(image, mask, context=3, feather=5, **target)
    plan = region.blend_inside(crop.region, blend)
    result = region.stitch(torch.full_like(crop.image, 7), image, plan)
    outside = mask_ops.feather(blend, 5) == 0
    assert same_bits(result, image)[outside].all()
    assert (result != image).all(-1)[blend == 1].all(), "also outside the mask"
    assert (result != image).any(-1)[0][(blend[0] == 1) & (mask[0] == 0)].any()
    with pytest.raises(ArtMancerError, match="blend mask is black"):
        region.blend_inside(crop.region, torch.zeros(1, 300, 400))


def test_a_blend_mask_that_reaches_past_the_crop_fades_out_at_its_sides() -> None:
    image, mask = torch.full((1, 300, 400, 3), 0.5), disc(300, 400, 150, 20, 20)
    crop = region.crop(image, mask, context=3, feather=10)
    plan = region.blend_inside(crop.region, torch.ones(1, 300, 400))
    change = (region.stitch(crop.image + 0.3, image, plan) - image)[0, ..., 0]
    steps = torch.cat([change.diff(dim=0).flatten(), change.diff(dim=1).flatten()]).abs()
    # The steepest step of 3 x^2 - 2 x^3 is 1.5 times the mean one.
    assert 0 < steps.max() <= 1.5 * 0.3 / 10 + 1e-4
    box = plan.box_in_image(0)
    assert torch.allclose(change[150, :100], torch.tensor(0.3)), "no fade at the photo's border"
    inner = change[box.top + 10 : box.bottom - 10, : box.right - 10]
    assert torch.allclose(inner, torch.tensor(0.3))
    assert (box.view(change) > 0).all(), "the whole crop shows"


@pytest.mark.parametrize("scale", [0.4, 0.6, 1.5])
def test_an_edit_that_moved_is_resampled_once(scale: float) -> None:
    # Details as fine as both the crop and the photo can hold.
    frequency = 1.6 * min(scale, 1)
    y, x = torch.meshgrid(torch.arange(320.0), torch.arange(320.0), indexing="ij")
    photo, mask = waves(y, x, frequency)[None], disc(320, 320, 160, 160, 40)
    side = round(scale * max(region.crop(photo, mask, context=3).region.box_size))
    crop = region.crop(photo, mask, context=3, longest_side=side)
    (top, left), (height, width) = crop.region.corners[0], crop.region.size
    # Without OpenCV: the formula at the places that the pixels of the moved edit show.
    similarity = Similarity(cmath.rect(1.012, 0.006), 1.3 - 0.8j)
    rows, columns = np.mgrid[:height, :width]
    center = complex(width - 1, height - 1) / 2
    places = (columns + 1j * rows - center - similarity.shift) / similarity.factor + center
    places = (places + 0.5 + 0.5j) / crop.region.scale - (0.5 + 0.5j) + complex(left, top)
    moved = waves(
        *(torch.from_numpy(part).float() for part in (places.imag, places.real)), frequency
    )
    back = undo(moved, similarity)
    registered = Registration(back, similarity, applied=True, came=moved)

    def error(registrations: list[Registration]) -> float:
        result = region.stitch(
            back[None], photo, crop.region, crop.image, registrations=registrations
        )
        return float(255 * (result - photo)[mask > 0].abs().mean())

    once, twice = error([registered]), error([])
    assert once < 1
    assert once < 0.5 * twice
