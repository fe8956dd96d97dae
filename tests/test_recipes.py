"""Every recipe's conditioning images against independent implementations, and its settings."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support import recipe_reference as expected
from torch import Tensor

from artmancer import fill as filling
from artmancer import mask_ops
from artmancer.conditions import Conditions, prepare
from artmancer.draft import DraftEditor
from artmancer.edit import edit
from artmancer.editor import plan
from artmancer.errors import ArtMancerError
from artmancer.images import to_uint8
from artmancer.options import ONE_MEGAPIXEL
from artmancer.recipes import (
    DEFAULT_RECIPE,
    RECIPES,
    Overrides,
    choose,
    parse_condition_size,
)

SIZES = [(96, 128), (97, 131), (131, 97), (64, 64)]
"""Sizes of photos, (height, width), also odd."""


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return an image of soft blobs with a dark square and noise."""
    random = np.random.default_rng(seed)
    coarse = random.uniform(60, 255, (6, 6, 3)).astype(np.uint8)
    soft = expected.resized(coarse, (height, width)).astype(np.float64)
    soft[height // 4 : height // 2, width // 3 : width // 2] = 20
    return (soft + random.normal(0, 4, soft.shape)).clip(0, 255).astype(np.uint8)


def masks(height: int, width: int) -> dict[str, NDArray[np.bool_]]:
    """Return masks of different kinds, by name."""
    one = np.zeros((height, width), np.bool_)
    one[20:45, 15:40] = True
    several = one.copy()
    several[50:61, 44:60] = True
    several[5, 5] = several[6, 6] = True
    border = np.zeros_like(one)
    border[:14, -12:] = border[-11:, :30] = True
    speck = np.zeros_like(one)
    speck[30, 30] = True
    thin = np.zeros_like(one)
    thin[40, 10:-10] = True
    thin[10, :] = True
    slanted = np.zeros_like(one)
    for step in range(50):
        slanted[step, step : step + 4] = True
    return {
        "one": one,
        "several": several,
        "border": border,
        "speck": speck,
        "thin": thin,
        "slanted": slanted,
    }


def reference_mask() -> NDArray[np.bool_]:
    """Return the shape of a lamp, which is not symmetric, in an image of 53 x 71."""
    mask = np.zeros((53, 71), np.bool_)
    mask[4:20, 10:50] = True
    mask[20:48, 27:33] = True
    mask[44:49, 20:55] = True
    return mask


def image(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pixels.copy()).float().div(255).unsqueeze(0)


def mask_of(shape: NDArray[np.bool_]) -> Tensor:
    return torch.from_numpy(shape.copy()).float().unsqueeze(0)


def photo_area(conditions: Conditions, name: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the part of a conditioning image that shows the photo; check that the rest is black.

    The photo has its own size there: it is centered in a square of the next multiple of 32.
    """
    pixels = to_uint8(conditions.images[name][0]).numpy()
    side = len(pixels)
    assert pixels.shape == (side, side, 3) and side % 32 == 0
    top, left = (side - size[0]) // 2, (side - size[1]) // 2
    inside = pixels[top : top + size[0], left : left + size[1]]
    assert int(pixels.sum()) == int(inside.sum()), "the padding is black"
    return inside


def prepared(size: tuple[int, int], kind: str, recipe: str, **options) -> Conditions:
    """Prepare an edit in the frame photo at the photo's own size."""
    return prepare(
        image(picture(*size)),
        mask_of(masks(*size)[kind]),
        recipe=recipe,
        frame="photo",
        resolution="native",
        **options,
    )


KINDS = list(masks(64, 64))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_insertion_sees_reference_silhouette_and_background(
    size: tuple[int, int], kind: str
) -> None:
    reference, shape = picture(53, 71, 1), reference_mask()
    conditions = prepared(
        size,
        kind,
        "reference_mask_background",
        reference=image(reference),
        reference_mask=mask_of(shape),
    )
    assert list(conditions.images) == ["reference", "mask", "background"]
    mask = masks(*size)[kind]
    stretched = photo_area(conditions, "reference", size).astype(int)
    assert np.abs(stretched - expected.resized(reference, size)).max() <= 1
    hidden = photo_area(conditions, "mask", size)
    assert np.array_equal(
        hidden, 255 * expected.insertion_mask(mask, shape)[..., None].repeat(3, 2)
    )
    background = photo_area(conditions, "background", size)
    wanted = expected.insertion_background(picture(*size), mask, shape)
    assert np.abs(background - wanted).max() <= 0.501


def test_a_reference_of_the_photos_size_is_not_resampled() -> None:
    reference = picture(97, 131, 1)
    conditions = prepared((97, 131), "one", "reference_mask_background", reference=image(reference))
    assert np.array_equal(photo_area(conditions, "reference", (97, 131)), reference)


def test_the_whole_reference_is_shown_with_white_where_it_is_transparent() -> None:
    reference = torch.full((1, 96, 128, 4), 0.2)
    reference[..., :64, 3] = 0
    reference[..., 64:, 3] = 1
    conditions = prepared((96, 128), "one", "reference_mask_background", reference=reference)
    shown = photo_area(conditions, "reference", (96, 128))
    assert (shown[:, :64] == 255).all() and (shown[:, 64:] == 51).all()


def test_both_hints_can_be_switched_off() -> None:
    size, options = (97, 131), {"reference": image(picture(53, 71, 1))}
    options["reference_mask"] = mask_of(reference_mask())
    mask = masks(*size)["several"]
    plain = prepared(
        size, "several", "reference_mask_background", silhouette=False, shadow=False, **options
    )
    assert np.array_equal(photo_area(plain, "mask", size)[..., 0] > 0, mask)
    background = picture(*size) * ~mask[..., None]
    assert np.array_equal(photo_area(plain, "background", size), background)
    no_shadow = prepared(size, "several", "reference_mask_background", shadow=False, **options)
    hidden = expected.insertion_mask(mask, reference_mask())
    background = picture(*size) * ~hidden[..., None]
    assert np.array_equal(photo_area(no_shadow, "background", size), background)


def test_insertion_without_a_reference_sees_mask_and_background() -> None:
    size = (97, 131)
    conditions = prepared(size, "several", "reference_mask_background")
    mask = masks(*size)["several"]
    assert list(conditions.images) == ["mask", "background"]
    assert np.array_equal(photo_area(conditions, "mask", size)[..., 1] > 0, mask)
    background = picture(*size) * ~mask[..., None]
    assert np.array_equal(photo_area(conditions, "background", size), background)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("brushed", [False, True])
def test_removal_sees_background_mask_and_a_fill_of_the_dilated_hole(
    size: tuple[int, int], kind: str, brushed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "method", lambda: "telea")
    conditions = prepared(size, kind, "background_mask_fill", brushed=brushed)
    assert list(conditions.images) == ["background", "mask", "fill"]
    photo, mask = picture(*size), masks(*size)[kind]
    background = photo_area(conditions, "background", size)
    assert np.array_equal(background, photo * ~mask[..., None]), "undilated"
    assert np.array_equal(photo_area(conditions, "mask", size)[..., 2] > 0, mask), "undilated"
    filled = photo_area(conditions, "fill", size)
    assert np.array_equal(filled, expected.removal_fill(photo, mask, brushed))


def test_a_hole_that_would_cover_the_photo_is_dilated_less() -> None:
    photo, mask = torch.rand(1, 64, 64, 3), torch.zeros(1, 64, 64)
    mask[:, 16:48, 16:48] = 1
    conditions = prepare(photo, mask, recipe="background_mask_fill", brushed=True)
    hole = conditions.fill_mask[0] > 0
    assert hole[16:48, 16:48].all() and not hole.all()
    assert int(hole.sum()) > 32 * 32


@pytest.mark.parametrize("size", SIZES)
def test_white_balance_sees_photo_and_edges(size: tuple[int, int]) -> None:
    conditions = prepare(image(picture(*size)), recipe="image_edges", frame="photo")
    assert list(conditions.images) == ["image", "edges"]
    assert np.array_equal(photo_area(conditions, "image", size), picture(*size))
    lines = photo_area(conditions, "edges", size)
    assert np.array_equal(lines, expected.edges(picture(*size)))
    assert 0 < (lines > 0).mean() < 0.5


def test_the_default_recipe_sees_mask_background_and_object() -> None:
    size = (97, 131)
    conditions = prepared(size, "several", DEFAULT_RECIPE)
    mask, photo = masks(*size)["several"][..., None], picture(*size)
    assert np.array_equal(photo_area(conditions, "mask", size), 255 * mask.repeat(3, 2))
    assert np.array_equal(photo_area(conditions, "background", size), photo * ~mask)
    assert np.array_equal(photo_area(conditions, "object", size), photo * mask)


@pytest.mark.parametrize("size", [(300, 200), (201, 333), (90, 517), (3, 700)])
@pytest.mark.parametrize("resolution", ["512", "1024"])
def test_the_frame_photo_is_the_scaled_photo_on_black(
    size: tuple[int, int], resolution: str
) -> None:
    photo = picture(*size)
    conditions = prepare(image(photo), recipe="image_edges", frame="photo", resolution=resolution)
    pixels = to_uint8(conditions.images["image"][0]).numpy().astype(int)
    wanted = expected.framed(photo, int(resolution))
    assert np.array_equal(pixels.any(-1), wanted.any(-1)) or min(size) < 10
    difference = np.abs(pixels - wanted)
    # The scales of the two differ by less than a pixel along an axis.
    assert np.median(difference) <= 1 and difference.mean() < 4


class Paint:
    """An editor that paints over the whole crop, its padding too, in a color that grows lighter
    downwards.
    """

    name = "paint"
    variant = "removal"
    adapters = ()
    notes = ()
    keeps_surroundings = False

    def edit(self, request, progress) -> Tensor:
        crop = request.conditions.crop.image
        return torch.linspace(0.894, 0.906, crop.shape[1])[:, None, None].expand_as(crop).clone()


@pytest.mark.parametrize("size", [(97, 131), (300, 200), (61, 517)])
@pytest.mark.parametrize("kind", ["several", "border", "speck", "thin"])
@pytest.mark.parametrize("resolution", ["native", "512"])
def test_the_frame_photo_keeps_every_bit_outside_the_feathered_mask(
    size: tuple[int, int], kind: str, resolution: str
) -> None:
    photo, mask = image(picture(*size)), mask_of(masks(*size)[kind])
    conditions = prepare(photo, mask, frame="photo", resolution=resolution)
    result = edit(Paint(), conditions, match=False).image
    outside = mask_ops.feather(mask, 16) == 0
    assert torch.equal(result[outside], photo[outside])
    inside = result[mask == 1]
    assert (inside - 0.9).abs().max() < 2 / 255, "also at the border of the photo"


def test_a_white_balance_in_the_frame_photo_is_not_misled_by_the_padding() -> None:
    photo = image(picture(60, 240))

    class Warm(Paint):
        variant = "white_balance"

        def edit(self, request, progress) -> Tensor:
            return request.conditions.crop.image * torch.tensor([1.0, 0.9, 0.7])

    whole = prepare(photo, recipe="image_edges", frame="photo")
    result = edit(Warm(), whole).image
    assert (result - photo * torch.tensor([1.0, 0.9, 0.7])).abs().mean() < 0.02


def test_the_draft_editor_removes_in_the_frame_photo_without_the_padding() -> None:
    photo, mask = torch.full((1, 90, 200, 3), 0.7), torch.zeros(1, 90, 200)
    mask[:, :20, 80:120] = 1
    photo[mask > 0] = 0.1
    conditions = prepare(photo, mask, frame="photo", grow=2)
    result = edit(DraftEditor("removal"), conditions).image
    assert (result - 0.7).abs().max() < 0.02


# Choosing


@pytest.mark.parametrize(
    ("requested", "metadata", "file", "choice"),
    [
        ("image_edges", "background_mask_fill", "insertion_cp.safetensors", "image_edges asked"),
        (None, "background_mask_fill", "wb_cp.safetensors", "background_mask_fill metadata"),
        (None, None, "insertion_cp.safetensors", "reference_mask_background file name"),
        (None, None, "removal_cp.safetensors", "background_mask_fill file name"),
        (None, None, "wb_cp.safetensors", "image_edges file name"),
        (
            None,
            None,
            "qwen_2509_object_insertion_512_000002750.safetensors",
            "mask_background_object file name",
        ),
        (None, None, "other.safetensors", "mask_background_object default"),
        (None, None, None, "mask_background_object default"),
    ],
)
def test_a_recipe_is_requested_or_in_the_metadata_or_in_the_files_name(
    requested: str | None, metadata: str | None, file: str | None, choice: str
) -> None:
    assert " ".join(choose(requested, metadata, file)) == choice


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(ArtMancerError, match="The recipe is 'soup'; expected one of"):
        choose("soup", None, None)


@pytest.mark.parametrize(
    ("recipe", "values"),
    [
        (DEFAULT_RECIPE, ("crop", "512", "crop", "", " ", 10, 4.0)),
        ("reference_mask_background", ("photo", "1024", 1.0, "", " ", 10, 4.0)),
        ("background_mask_fill", ("photo", "1024", 1.0, "remove object", " ", 10, 4.0)),
        ("image_edges", ("photo", "1024", 1.0, "", " ", 10, 3.3)),
    ],
)
def test_a_recipe_says_everything(recipe: str, values: tuple) -> None:
    assert tuple(RECIPES[recipe].values().values()) == values


def test_what_is_set_wins_and_everything_else_follows_the_recipe() -> None:
    sampling = Overrides().sampling("image_edges")
    assert (sampling.steps, sampling.cfg, sampling.condition_pixels) == (10, 3.3, ONE_MEGAPIXEL)
    sampling = Overrides(steps=3, cfg=2.5, negative="no", condition_size="crop").sampling(
        "image_edges"
    )
    assert (sampling.steps, sampling.cfg, sampling.negative) == (3, 2.5, "no")
    assert sampling.condition_pixels is None
    assert Overrides(condition_size=0.5).sampling(DEFAULT_RECIPE).condition_pixels == 2**19
    assert Overrides().sampling(DEFAULT_RECIPE).condition_pixels is None


def test_a_plan_follows_the_editor_and_the_report_tells_both() -> None:
    own = plan(DraftEditor("removal"))
    assert own == (DEFAULT_RECIPE, "default", "", "native", "crop", True, "auto")
    chosen = plan(DraftEditor("removal"), recipe="background_mask_fill")
    assert chosen[:5] == ("background_mask_fill", "asked", "remove object", "native", "photo")
    assert plan(None, recipe="image_edges", resolution="768", frame="crop")[3:5] == ("768", "crop")
    photo, mask = image(picture(97, 131)), mask_of(masks(97, 131)["one"])
    conditions = prepare(photo, mask, **(chosen._asdict() | {"frame": "crop"}))
    report = edit(
        Paint(), conditions, sampling=Overrides(steps=3).sampling(conditions.recipe)
    ).report
    assert (report.recipe, report.recipe_reason) == ("background_mask_fill", "asked")
    assert report.settings == {
        "frame": "crop",
        "resolution": "native",
        "context": 1.5,
        "condition_size": 1.0,
        "prompt": "remove object",
        "negative": " ",
        "steps": 3,
        "cfg": 4.0,
    }
    assert report.recipe_settings == RECIPES["background_mask_fill"].values()
    assert edit(Paint(), conditions, prompt="take it").report.settings["prompt"] == "take it"


@pytest.mark.parametrize(
    ("text", "size"), [("crop", "crop"), ("recipe", "recipe"), ("0.25", 0.25), ("4", 4.0)]
)
def test_a_condition_size_is_a_name_or_megapixels(text: str, size: str | float) -> None:
    assert parse_condition_size(text) == size


@pytest.mark.parametrize("text", ["", "nan", "5", "0.01", "1 megapixel"])
def test_other_condition_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected recipe, crop, or 0\.05 to 4 megapixels"):
        parse_condition_size(text)
