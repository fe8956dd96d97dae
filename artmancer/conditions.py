"""Conditioning images: the crop and everything an editor sees of one edit."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from . import islands, mask_ops, region
from .checks import (
    NEAR_BLACK,
    check_finite,
    check_image,
    check_mask,
    mask_notes,
    scales_exactly,
)
from .errors import ArtMancerError
from .fill import choose, fill
from .images import to_uint8
from .lama import Lama
from .options import DEFAULT_CONTEXT, FRAMES, REGIONS, RESOLUTIONS
from .progress import Progress, no_progress, part_progress
from .recipes import DEFAULT_RECIPE, RECIPES, check_recipe
from .region import Crop, Region, Window, bounds
from .silhouette import shadow_strength, silhouette_mask
from .tone import value_range

_BILATERAL = (9, 75, 75)
"""Bilateral filter before Canny: diameter in pixels, sigma of the values, sigma in pixels."""

_EXTRA = "extra "
"""Start of the names of conditioning images that the user adds."""

_CANNY_RANGE = 0.33
"""Distance of Canny's thresholds from the median of the values, as a share of it."""

_RIM = 3
"""Pixels of the crop around a hole that are filled too, at most the feather. A mask that ends at an
object's edge, or a little inside it, leaves pixels of the object around the hole, and every method
would continue them.
"""


@dataclass(frozen=True)
class Reference:
    """The object to insert, cropped to its mask.

    Attributes
    ----------
    image : IMAGE [1, h, w, 3]
    mask : MASK [1, h, w], 1 = the object
    whole : IMAGE [1, H, W, 3], the image before it was cropped; None: `image`
    box : where it was cropped; None: the object has no background, as in a file with transparency
    """

    image: Tensor
    mask: Tensor
    whole: Tensor | None = None
    box: Window | None = None


@dataclass(frozen=True)
class Sources:
    """Sources of the conditioning images of one edit.

    Attributes
    ----------
    crop : the crop around the mask
    reference : the object to insert
    fill : IMAGE [B, h, w, 3], the crop with its hole filled; None: it is filled when it is needed
    fill_mask : MASK [B, h, w], the hole to fill; None: the crop's mask
    lama : the loaded LaMa, which makes the fill; None: PatchMatch does
    silhouette : draw the reference's silhouette where the mask is
    shadow : darken the background by a shadow of the silhouette
    progress : called while PatchMatch fills
    """

    crop: Crop
    reference: Reference | None = None
    fill: Tensor | None = None
    fill_mask: Tensor | None = None
    lama: Lama | None = None
    silhouette: bool = True
    shadow: bool = True
    progress: Progress = no_progress

    @property
    def hole(self) -> Tensor:
        """The hole to fill, MASK [B, h, w]."""
        return self.crop.mask if self.fill_mask is None else self.fill_mask


@dataclass(frozen=True)
class Conditions:
    """The crop and all conditioning images of one edit, and the way back to the image.

    Attributes
    ----------
    image : the image as it came, IMAGE [B, H, W, 3]
    masked : False where no mask was given, and the whole image is edited
    crop : the crop around the mask
    recipe : a key of RECIPES
    images : the conditioning images by name, in order, each an IMAGE [B, h, w, 3] of the crop's
        size; the recipe's come first, then those the user adds: "extra 1" and so on
    seconds : seconds it took to make them, by stage
    sources : what the images were made of
    recipe_reason : why the recipe was chosen, see recipes.RecipeChoice
    frame, resolution, context : see prepare
    default_prompt : prompt of an edit that brings none
    notes : sentences for the report
    following : the conditions of the next parts of the mask, see islands.split
    """

    image: Tensor
    masked: bool
    crop: Crop
    recipe: str
    images: dict[str, Tensor]
    seconds: dict[str, float]
    sources: Sources
    recipe_reason: str = "asked"
    frame: str = "crop"
    resolution: str = "native"
    context: float = DEFAULT_CONTEXT
    default_prompt: str = ""
    notes: tuple[str, ...] = ()
    following: "tuple[Conditions, ...]" = ()

    @property
    def parts(self) -> "tuple[Conditions, ...]":
        """The conditions of all parts of the mask, in the order in which they are edited."""
        return (self, *self.following)

    @property
    def reference(self) -> Reference | None:
        """The object to insert."""
        return self.sources.reference

    @property
    def fill_mask(self) -> Tensor:
        """The hole that a fill replaces, MASK [B, h, w]: the crop's mask, or a larger one."""
        return self.sources.hole


def prepare(
    image: Tensor,
    mask: Tensor | None = None,
    *,
    reference: Tensor | None = None,
    reference_mask: Tensor | None = None,
    fill: Tensor | None = None,
    recipe: str = DEFAULT_RECIPE,
    recipe_reason: str = "asked",
    default_prompt: str | None = None,
    resolution: str = "native",
    frame: str = "crop",
    context: float = DEFAULT_CONTEXT,
    grow: int = 0,
    fill_holes: bool = False,
    feather: int = 16,
    brushed: bool = False,
    lama: Lama | None = None,
    silhouette: bool = True,
    shadow: bool = True,
    any_size: bool = False,
    regions: str = REGIONS[0],
    context_mask: Tensor | None = None,
    context_pixels: int = 0,
    progress: Progress = no_progress,
) -> Conditions:
    """Crop an image to its mask and make the recipe's conditioning images, for each part of the
    mask that is edited by itself.

    `editor.plan` returns recipe, recipe_reason, default_prompt, resolution, frame, any_size and
    regions for an editor.

    Parameters
    ----------
    image : IMAGE [B, H, W, 3]
    mask : MASK [B or 1, H, W], 1 = edit here; None = the whole image, which only white balance
        can edit
    reference, reference_mask : IMAGE [1, h, w, 3] of the object to insert, MASK [1, h, w] that cuts
        it out; without a mask, the whole reference is the object
    fill : IMAGE [B, H, W, 3], the image with its hole filled, for recipes that use one; None: it
        is filled here
    recipe : a key of RECIPES
    recipe_reason : why it was chosen, for the report
    default_prompt : prompt of an edit that brings none; None: the recipe's
    resolution : a key of RESOLUTIONS
    frame : one of FRAMES: a crop around the mask, or the whole photo, padded with black to a square
    context, grow, fill_holes, feather, context_mask, context_pixels : see region.crop
    brushed : the mask was painted with a brush: the hole to fill is dilated by the recipe's
        fill_growth, in pixels of the crop; no other image changes
    lama : the loaded LaMa for the fill; None: PatchMatch fills, and the report says so
    silhouette, shadow : hints for recipes that use them, see Sources
    any_size : see region.crop
    regions : one of REGIONS, see islands.split; a long thin mask is cut too, unless there is a
        reference, which would be inserted into each piece
    progress : called before each part, and while its hole is filled; raising in it cancels

    Raises
    ------
    ArtMancerError : invalid_request, mask_empty
    """
    size = _size_options(recipe, resolution, frame, regions)
    size |= {"context": context, "context_pixels": context_pixels, "feather": feather}
    image, area, notes = _checked(image, mask)
    size["context_mask"] = None if context_mask is None else fit_mask(context_mask, image)[0]
    hole = {"grow": grow, "fill_holes": fill_holes, "any_size": any_size}
    row = RECIPES[recipe]
    inserted = None if reference is None else cut_out(reference, reference_mask)

    def make_sources(crop: Crop) -> Sources:
        filled = None if fill is None else region.crop_like(fill.to(image), crop.region, "fill")
        fill_mask = _dilated(crop.mask, crop.region, row.fill_growth if brushed else 0)
        return Sources(crop, inserted, filled, fill_mask, lama, silhouette, shadow)

    if "fill" in row.images_for(reference is not None) and fill is None:
        notes = (*_fill_notes(lama), *notes)
    parts = _split_mask(area, regions, reference is not None, size, hole)
    first, *others = _prepare_parts(
        parts,
        {**size, **hole},
        make_sources,
        progress,
        image=image,
        masked=mask is not None,
        recipe=recipe,
        recipe_reason=recipe_reason,
        frame=frame,
        resolution=resolution,
        context=context,
        default_prompt=row.prompt if default_prompt is None else default_prompt,
        notes=(*notes, *_whole_notes(inserted)),
    )
    return replace(first, following=tuple(others))


def _split_mask(
    mask: Tensor, regions: str, inserts: bool, size: dict[str, Any], hole: dict[str, Any]
) -> list[islands.Part]:
    """Return the parts of a mask, see islands.split.

    Parameters
    ----------
    size, hole : arguments of region.crop that set the box, and the mask in it
    """
    if size["context_mask"] is not None:
        # One crop holds all that it shows.
        regions = "together"
    if hole["fill_holes"]:
        # Otherwise an outline would be cut into pieces that enclose nothing.
        mask = mask_ops.fill_holes(mask_ops.clean(mask))
    grow = hole["grow"]
    boxes = region.mask_boxes(mask, grow, len(mask))
    large = hole["any_size"] and region.small_hole(mask, boxes, grow, False)

    def place(window: Window) -> region.Region:
        return region.plan([window.widen(grow)], mask.shape[1:], large=large, **size)

    return islands.split(mask, place, regions, inserts=inserts)


def _prepare_parts(
    parts: list[islands.Part],
    options: dict[str, Any],
    make_sources: Callable[[Crop], Sources],
    progress: Progress,
    **common: Any,
) -> list[Conditions]:
    """Return the conditions of all parts of a mask.

    Parameters
    ----------
    options : arguments of region.crop
    common : attributes that the conditions of all parts have
    """
    image, prepared = common["image"], list[Conditions]()
    # The photo with the holes of the parts before filled, for those that overlap.
    filled = image
    for index, part in enumerate(parts):
        own_progress = part_progress(progress, index, len(parts))
        own_progress(0, 1, "cropping")
        seconds: dict[str, float] = {}
        with timed(seconds, "crop"):
            crop = region.crop(image, part.mask, box=part.box, window=part.window, **options)
        with timed(seconds, "split"):
            sources = make_sources(crop)
            working = replace(sources, progress=own_progress)
            if _makes_fill(sources, common["recipe"]):
                seen = crop._replace(image=region.crop_like(filled, crop.region))
                content = condition(replace(working, crop=seen), "fill")
                working = replace(working, fill=_fill_hole(sources, content))
                if index + 1 < len(parts):
                    filled = _with_fill(filled, content, seen, is_copy=filled is not image)
            images = split(working, common["recipe"])
        prepared.append(
            Conditions(crop=crop, images=images, seconds=seconds, sources=sources, **common)
        )
    return prepared


def _makes_fill(sources: Sources, recipe: str) -> bool:
    """Return whether the recipe has a fill, and none was connected."""
    images = RECIPES[recipe].images_for(sources.reference is not None)
    return sources.fill is None and "fill" in images.values()


def _fill_hole(sources: Sources, content: Tensor) -> Tensor:
    """Return the crop with this content [B, h, w, 3] in its hole."""
    return torch.where(sources.hole.unsqueeze(-1) > 0, content, sources.crop.image)


def _with_fill(image: Tensor, content: Tensor, crop: Crop, *, is_copy: bool) -> Tensor:
    """Return the image with a filled crop stitched in; a copy may be written to."""
    image = image if is_copy else image.clone()
    inside = region.in_boxes(crop.region)
    boxes = region.stitch(content, region.cut_boxes(image, crop.region), inside, crop.image)
    region.paste_boxes(image, boxes, crop.region)
    return image


def on_image(conditions: Conditions, image: Tensor) -> Conditions:
    """Return the conditions of the same crop of another image, a result of edits before this one.
    A fill that was made for them stays as it is.

    Parameters
    ----------
    image : IMAGE [B, H, W, 3] of the size of the conditions' image
    """
    seconds = dict(conditions.seconds)
    with timed(seconds, "again"):
        crop = conditions.crop._replace(image=region.crop_like(image, conditions.crop.region))
        sources = working = replace(conditions.sources, crop=crop)
        if _makes_fill(sources, conditions.recipe):
            working = replace(sources, fill=_fill_hole(sources, conditions.images["fill"]))
        extra = {name: old for name, old in conditions.images.items() if name.startswith(_EXTRA)}
        images = {**split(working, conditions.recipe), **extra}
    seconds["split"] += seconds.pop("again")
    return replace(
        conditions, image=image, crop=crop, sources=sources, images=images, seconds=seconds
    )


def _fill_notes(lama: Lama | None) -> tuple[str, ...]:
    """Return the report's sentence on the fill, where LaMa should have made it and did not."""
    _, note = choose("lama", lama is not None)
    return (note,) if note else ()


def _whole_notes(reference: Reference | None) -> tuple[str, ...]:
    """Return a sentence for the report where nothing cuts the object out of its picture."""
    if reference is None:
        return ()
    mask, whole = reference.mask, reference.whole
    if whole is None or mask.shape != whole.shape[:3] or not bool((mask == 1).all()):
        return ()
    return (
        "Nothing cuts the object out of the reference, so its whole picture, background included, "
        "is the object: add a mask that is white on the object (Remove Background makes one).",
    )


def _checked(image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Return the image and its mask on the CPU, in 32 bits, and sentences for the report on the
    mask; without a mask, one that is 1 everywhere, and no sentence.
    """
    check_image(image)
    if mask is None:
        mask, notes = torch.ones(1, 1, 1).expand(1, *image.shape[1:3]), ()
    else:
        mask, note = fit_mask(mask, image)
        notes = (*((note,) if note else ()), *mask_notes(mask))
    return image.to("cpu", torch.float32), mask, notes


def fit_mask(mask: Tensor, image: Tensor) -> tuple[Tensor, str]:
    """Return a mask at the size of its image, on the CPU and in 32 bits.

    A mask of exactly the image's aspect ratio is scaled; any other of another size is refused.

    Returns
    -------
    MASK [B or 1, H, W], and a sentence for the report where it was scaled, else ""

    Raises
    ------
    ArtMancerError : invalid_request
    """
    note, (height, width) = "", image.shape[1:3]
    if mask.ndim == 3 and mask.is_floating_point() and mask.shape[1:] != (height, width):
        own = (mask.shape[2], mask.shape[1])
        # Load Image gives an absent mask as a black one of 64x64, which check_mask explains.
        if scales_exactly(own, (width, height)) and mask.max() > NEAR_BLACK:
            layer = mask.to("cpu", torch.float32).unsqueeze(-1)
            mask = region.resample(layer, (height, width), "bilinear")[..., 0]
            note = f"The mask was scaled from {own[0]}x{own[1]} to the photo's {width}x{height}."
    check_mask(mask, image)
    return mask.to("cpu", torch.float32), note


def _size_options(recipe: str, resolution: str, frame: str, regions: str) -> dict[str, Any]:
    """Return the options of region.crop for a frame and a resolution. Refuse unknown choices, of
    the recipe too.

    Raises
    ------
    ArtMancerError : invalid_request
    """
    check_recipe(recipe)
    for name, value, choices in (
        ("resolution", resolution, tuple(RESOLUTIONS)),
        ("frame", frame, FRAMES),
        ("regions", regions, REGIONS),
    ):
        if value not in choices:
            raise ArtMancerError(
                "invalid_request",
                f"The {name} is '{value}'; expected one of {', '.join(choices)}.",
            )
    return {"frame": frame, **RESOLUTIONS[resolution]}


def _dilated(mask: Tensor, region: Region, growth: int) -> Tensor:
    """Return a mask of a crop dilated by this many pixels, or by half of them, a quarter and so on,
    where nothing would be left to fill from.
    """
    shows_image = region.shows_image()
    while growth > 0:
        grown = torch.maximum(mask_ops.dilate_ellipse(mask, growth), mask) * shows_image
        if bool(((grown == 0) & shows_image).flatten(1).any(1).all()):
            return grown
        growth //= 2
    return mask


def with_extra(conditions: Conditions, image: Tensor) -> Conditions:
    """Return the conditions with one more conditioning image after the others: "extra 1",
    "extra 2" and so on.

    Parameters
    ----------
    image : IMAGE [B or 1, H, W, 3]; it is scaled to fit into the crop's size, its aspect ratio
        kept, centered on white

    Raises
    ------
    ArtMancerError : invalid_request
    """
    check_image(image, "extra image")
    image, count = image.to("cpu", torch.float32), len(conditions.image)
    if len(image) not in (1, count):
        raise ArtMancerError(
            "invalid_request",
            f"The extra image is a batch of {len(image)}; expected 1, or {count}, one for each "
            "image to edit.",
        )
    check_finite(image, "extra image")
    height, width = conditions.crop.region.size
    placed = place(
        Reference(image, torch.ones(image.shape[:3])),
        (height, width),
        Window(0, 0, height, width),
    )
    on_white = torch.lerp(torch.ones(()), placed.image, placed.mask.unsqueeze(-1))
    number = sum(name.startswith(_EXTRA) for name in conditions.images) + 1
    images = {**conditions.images, f"{_EXTRA}{number}": on_white.expand(count, -1, -1, -1)}
    following = tuple(with_extra(part, image) for part in conditions.following)
    return replace(conditions, images=images, following=following)


def with_blend_mask(conditions: Conditions, mask: Tensor | None) -> Conditions:
    """Return the conditions of an edit that shows where this mask is, not where it was made. A note
    names the parts of which it shows nothing: they are not edited.

    Parameters
    ----------
    mask : MASK [B or 1, H, W] of the image, see region.blend_inside; None: nothing changes

    Raises
    ------
    ArtMancerError : invalid_request, also where nothing of any part would show; mask_empty
    """
    if mask is None:
        return conditions
    fitted, note = fit_mask(mask, conditions.image)
    first, *following = [
        replace(part, crop=_blended(part.crop, fitted)) for part in conditions.parts
    ]
    hidden = _hidden_notes([part.crop for part in (first, *following)])
    notes = (*conditions.notes, *((note,) if note else ()), *hidden)
    return replace(first, notes=notes, following=tuple(following))


def _blended(crop: Crop, mask: Tensor) -> Crop:
    """Return the crop of an edit that shows where a mask of the image is."""
    blended = region.blend_inside(crop.region, mask)
    return crop._replace(region=blended, blended=region.shown_in_crop(blended))


def _hidden_notes(crops: Sequence[Crop]) -> list[str]:
    """Return a sentence for each crop of which a blend mask shows nothing.

    Raises
    ------
    ArtMancerError : invalid_request where it shows nothing of any crop
    """
    hidden = [number for number, crop in enumerate(crops, 1) if crop.is_hidden]
    if len(hidden) == len(crops):
        raise ArtMancerError(
            "invalid_request",
            "Nothing of the edit would show: the blend mask does not reach the crop around the "
            "mask. Enlarge the blend mask, or choose more context.",
        )
    return [
        f"Part {number} was not edited: the blend mask does not reach its crop, so nothing of it "
        "would show. Enlarge the blend mask, or choose more context."
        for number in hidden
    ]


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Store the seconds a block takes under the name of its stage."""
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start


def cut_out(image: Tensor, mask: Tensor | None) -> Reference:
    """Crop an image of an object to the object's mask.

    Parameters
    ----------
    image : IMAGE [1, H, W, 3]; with a fourth channel, alpha, transparent pixels do not belong to
        the object
    mask : MASK [1, H, W], 1 = the object; None = the whole image

    Raises
    ------
    ArtMancerError : invalid_request, mask_empty
    """
    opaque = image[..., 3] if image.shape[-1] == 4 else None
    image = image[..., :3]
    if mask is None:
        mask = image.new_ones(image.shape[:3]) if opaque is None else opaque
    check_image(image, "reference")
    check_mask(mask, image, "reference")
    image, mask = image.to("cpu", torch.float32), mask.to("cpu", torch.float32)
    whole = image
    if opaque is not None:
        opaque = opaque.to("cpu", torch.float32)
        mask = torch.minimum(mask, opaque)
        # Transparent pixels of an image file hold any color.
        whole = torch.lerp(torch.ones(()), image, opaque.clamp(0, 1).unsqueeze(-1))
    if len(image) > 1:
        raise ArtMancerError(
            "invalid_request", f"The reference holds {len(image)} images; expected one."
        )
    check_finite(image, "reference")
    box = bounds(mask[0], "The mask of the reference", NEAR_BLACK)
    shape = mask_ops.clean(box.view(mask[0]).unsqueeze(0))
    is_opaque = opaque is None or bool((opaque == 1).all())
    cut = box.view(image[0]).unsqueeze(0)
    return Reference(cut, shape, whole, box if is_opaque else None)


def split(sources: Sources, recipe: str = DEFAULT_RECIPE) -> dict[str, Tensor]:
    """Make a recipe's conditioning images, in order, each an IMAGE [B, h, w, 3] of the crop's size.

    Raises
    ------
    ArtMancerError : invalid_request
    """
    check_recipe(recipe)
    images = RECIPES[recipe].images_for(sources.reference is not None)
    return {name: condition(sources, kind) for name, kind in images.items()}


def condition(sources: Sources, kind: str) -> Tensor:
    """Make one conditioning image, IMAGE [B, h, w, 3]; `kind` is a key of _BUILDERS.

    Where the crop has black padding, the image is made of the photo alone, and padded too.
    """
    crop = sources.crop
    if not crop.region.black_padding:
        return _BUILDERS[kind](sources)
    rows, columns = _photo_slices(crop)

    def inside(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[:, rows, columns]

    inner = replace(
        sources,
        crop=Crop(crop.image[:, rows, columns], crop.mask[:, rows, columns], crop.region),
        fill=inside(sources.fill),
        fill_mask=inside(sources.fill_mask),
    )
    padded = torch.zeros_like(crop.image)
    padded[:, rows, columns] = _BUILDERS[kind](inner)
    return padded


def _photo_slices(crop: Crop) -> tuple[slice, slice]:
    """Return the rows and columns of a crop with black padding that show the photo."""
    # The box holds the whole photo, so all windows of a batch are equal.
    window = crop.region.image_in_crop(0)
    return slice(window.top, window.bottom), slice(window.left, window.right)


def fill_crop(
    crop: Crop, mask: Tensor, seed: int, progress: Progress, lama: Lama | None = None
) -> Tensor:
    """Fill a hole of a crop and the rim around it, see fill.fill. Black padding is no texture to
    fill with.

    The rim lies where the edit fades out, so that it is seen: see _RIM.

    Parameters
    ----------
    mask : MASK [B, h, w], the hole
    lama : the loaded LaMa; None: PatchMatch fills
    """
    rim = min(_RIM, round(crop.region.feather * crop.region.scale))
    mask = _dilated(mask, crop.region, rim)
    rows, columns = slice(None), slice(None)
    if crop.region.black_padding:
        rows, columns = _photo_slices(crop)
    image = crop.image[:, rows, columns].contiguous()
    hole = mask[:, rows, columns].contiguous()
    _check_grow(hole, crop.region.grow)
    filled = crop.image.clone()
    filled[:, rows, columns] = fill(image, hole, seed, progress, lama=lama)
    return filled


def _check_grow(hole: Tensor, grow: int) -> None:
    """Refuse a hole [B, h, w] that is everywhere in an image because the mask was dilated."""
    if grow and bool((hole > 0).flatten(1).all(1).any()):
        raise ArtMancerError(
            "invalid_request",
            f"The mask, grown by {grow} pixels (grow; on the command line --grow), covers the "
            "whole image, so there is nothing to fill from. Grow it less.",
        )


def fitting_scale(size: tuple[int, int], box: Window) -> float:
    """Return the scale at which an image of this (height, width) just fits into a box."""
    return min((box.bottom - box.top) / size[0], (box.right - box.left) / size[1])


def place(reference: Reference, size: tuple[int, int], box: Window) -> Reference:
    """Place each object on an empty canvas, scaled to fit a box and centered in it. Its aspect
    ratio is kept.

    Parameters
    ----------
    size : (height, width) of the canvas
    box : the box on the canvas

    Returns
    -------
    Reference of the canvas' size, black and 0 around the object
    """
    height, width = reference.mask.shape[1:]
    scale = fitting_scale((height, width), box)
    fitted = (max(1, round(height * scale)), max(1, round(width * scale)))
    # Premultiplied by the mask, so that the surroundings do not bleed into the object's edge.
    layers = torch.cat(
        [reference.image * reference.mask.unsqueeze(-1), reference.mask.unsqueeze(-1)], -1
    )
    low, high = value_range(reference.image)
    layers = functional.interpolate(
        layers.permute(0, 3, 1, 2), fitted, mode="bicubic", antialias=True
    )
    y, x = (box.top + box.bottom - fitted[0]) // 2, (box.left + box.right - fitted[1]) // 2
    canvas = functional.pad(
        layers, (x, size[1] - x - fitted[1], y, size[0] - y - fitted[0])
    ).permute(0, 2, 3, 1)
    mask = canvas[..., 3]
    image = (canvas[..., :3] / mask.clamp(min=1 / 255).unsqueeze(-1)).clamp(low, high)
    return Reference(image, mask.clamp(0, 1))


def edges(image: Tensor) -> Tensor:
    """Draw the edges of an IMAGE [B, H, W, 3] after Canny (1986), white on black, as an IMAGE of
    the same shape.

    The gray image is smoothed by a bilateral filter (Tomasi and Manduchi, 1998), which removes
    texture and keeps edges. Its median sets the thresholds.
    """
    import cv2

    planes = []
    for plane in image:
        gray = cv2.cvtColor(to_uint8(plane).numpy(), cv2.COLOR_RGB2GRAY)
        smooth = cv2.bilateralFilter(gray, *_BILATERAL)
        median = float(np.median(smooth))
        low = int(max(0.0, (1 - _CANNY_RANGE) * median))
        high = int(min(255.0, (1 + _CANNY_RANGE) * median))
        planes.append(cv2.Canny(smooth, low, high))
    lines = torch.from_numpy(np.stack(planes)).to(torch.float32).div_(255)
    return lines.unsqueeze(-1).expand(-1, -1, -1, 3)


def _background(sources: Sources) -> Tensor:
    return sources.crop.image * (1 - sources.crop.mask.unsqueeze(-1))


def _mask(sources: Sources) -> Tensor:
    return sources.crop.mask.unsqueeze(-1).expand(-1, -1, -1, 3)


def _object(sources: Sources) -> Tensor:
    reference = sources.reference
    if reference is None:
        return sources.crop.image * sources.crop.mask.unsqueeze(-1)
    height, width = sources.crop.mask.shape[1:]
    placed = place(reference, (height, width), Window(0, 0, height, width))
    return (placed.image * placed.mask.unsqueeze(-1)).expand(len(sources.crop.image), -1, -1, -1)


def _stretched_reference(sources: Sources) -> Tensor:
    """Stretch the whole reference to the crop's size."""
    reference = _reference(sources)
    whole = reference.image if reference.whole is None else reference.whole
    height, width = sources.crop.mask.shape[1:]
    return region.resample(whole, (height, width)).expand(len(sources.crop.image), -1, -1, -1)


def _silhouette(sources: Sources) -> Tensor:
    return _silhouette_mask(sources).unsqueeze(-1).expand(-1, -1, -1, 3)


def _background_with_shadow(sources: Sources) -> Tensor:
    """Return the image outside the silhouette, darkened by the silhouette's shadow."""
    background = sources.crop.image * (1 - _silhouette_mask(sources).unsqueeze(-1))
    if not sources.shadow:
        return background
    shape = _reference(sources).mask[0]
    shadows = torch.stack([shadow_strength(plane, shape) for plane in sources.crop.mask])
    return background * (1 - shadows.unsqueeze(-1))


def _silhouette_mask(sources: Sources) -> Tensor:
    """Return the MASK [B, h, w] of the reference's silhouettes, or the crop's mask."""
    if not sources.silhouette:
        return sources.crop.mask
    shape = _reference(sources).mask[0]
    return torch.stack([silhouette_mask(plane, shape) for plane in sources.crop.mask])


def _reference(sources: Sources) -> Reference:
    if sources.reference is None:
        raise ArtMancerError(
            "reference_missing",
            "This image is made of the object to insert, and there is none. Add a reference image.",
        )
    return sources.reference


def _fill(sources: Sources) -> Tensor:
    if sources.fill is not None:
        return sources.fill
    mask = sources.hole
    image = sources.crop.image.contiguous()
    _check_grow(mask, sources.crop.region.grow)
    return fill(image, mask.contiguous(), 0, sources.progress, lama=sources.lama)


_BUILDERS: dict[str, Callable[[Sources], Tensor]] = {
    "mask": _mask,
    "background": _background,
    "object": _object,
    "stretched reference": _stretched_reference,
    "silhouette": _silhouette,
    "background with shadow": _background_with_shadow,
    "fill": _fill,
    "image": lambda sources: sources.crop.image,
    "edges": lambda sources: edges(sources.crop.image),
}
"""The functions that make the conditioning images, by the names that recipes use."""
