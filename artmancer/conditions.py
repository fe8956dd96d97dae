"""Conditioning images: the crop and everything an editor sees of one edit."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from . import region
from .checks import check_finite, check_image, check_mask
from .errors import ArtMancerError
from .fill import fill
from .images import to_uint8
from .options import RESOLUTIONS
from .progress import Progress, no_progress
from .recipes import DEFAULT_RECIPE, RECIPES
from .region import Crop, Window, bounds

_CANNY = (100, 200)
"""Canny's lower and upper threshold of the gradient, for 8-bit values."""


@dataclass(frozen=True)
class Reference:
    """The object to insert, cropped to its mask.

    Attributes
    ----------
    image : IMAGE [1, h, w, 3]
    mask : MASK [1, h, w], 1 = the object
    """

    image: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Sources:
    """Sources of the conditioning images of one edit.

    Attributes
    ----------
    crop : the crop around the mask
    reference : the object to insert
    fill : IMAGE [B, h, w, 3], the crop with its hole filled; None: PatchMatch fills it
    progress : called while PatchMatch fills
    """

    crop: Crop
    reference: Reference | None = None
    fill: Tensor | None = None
    progress: Progress = no_progress


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
    reference : the object to insert
    seconds : seconds it took to make them, by stage
    """

    image: Tensor
    masked: bool
    crop: Crop
    recipe: str
    images: dict[str, Tensor]
    reference: Reference | None
    seconds: dict[str, float]


def prepare(
    image: Tensor,
    mask: Tensor | None = None,
    *,
    reference: Tensor | None = None,
    reference_mask: Tensor | None = None,
    fill: Tensor | None = None,
    recipe: str = DEFAULT_RECIPE,
    resolution: str = "native",
    context: float = 1.5,
    grow: int = 0,
    fill_holes: bool = False,
    feather: int = 16,
    progress: Progress = no_progress,
) -> Conditions:
    """Crop an image to its mask and make the recipe's conditioning images.

    Parameters
    ----------
    image : IMAGE [B, H, W, 3]
    mask : MASK [B or 1, H, W], 1 = edit here; None = the whole image, which only white balance
        can edit
    reference, reference_mask : IMAGE [1, h, w, 3] of the object to insert, MASK [1, h, w] that cuts
        it out; without a mask, the whole reference is the object
    fill : IMAGE [B, H, W, 3], the image with its hole filled, for recipes that use one; None:
        PatchMatch fills it
    recipe : a key of RECIPES
    resolution : a key of RESOLUTIONS
    context, grow, fill_holes, feather : see region.crop
    progress : called while PatchMatch fills; raising in it cancels

    Raises
    ------
    ArtMancerError : invalid_request, mask_empty, reference_missing
    """
    if resolution not in RESOLUTIONS:
        raise ArtMancerError(
            "invalid_request",
            f"The resolution is '{resolution}'; expected one of {', '.join(RESOLUTIONS)}.",
        )
    check_image(image)
    area = torch.ones(1, 1, 1).expand(1, *image.shape[1:3]) if mask is None else mask
    check_mask(area, image)
    image, area = image.to("cpu", torch.float32), area.to("cpu", torch.float32)
    seconds: dict[str, float] = {}
    with timed(seconds, "crop"):
        crop = region.crop(
            image,
            area,
            context=context,
            grow=grow,
            fill_holes=fill_holes,
            feather=feather,
            **RESOLUTIONS[resolution],
        )
    with timed(seconds, "split"):
        sources = Sources(
            crop,
            reference=None if reference is None else cut_out(reference, reference_mask),
            fill=None if fill is None else region.crop_like(fill.to(image), crop.region, "fill"),
            progress=progress,
        )
        images = split(sources, recipe)
    return Conditions(
        image=image,
        masked=mask is not None,
        crop=crop,
        recipe=recipe,
        images=images,
        reference=sources.reference,
        seconds=seconds,
    )


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
    number = len(conditions.images) - len(RECIPES[conditions.recipe].conditions) + 1
    images = {**conditions.images, f"extra {number}": on_white.expand(count, -1, -1, -1)}
    return replace(conditions, images=images)


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
    opaque = image[..., 3] if image.shape[-1] == 4 else image.new_ones(image.shape[:3])
    image, mask = image[..., :3], opaque if mask is None else mask
    check_image(image, "reference")
    check_mask(mask, image, "reference")
    image, mask, opaque = (tensor.to("cpu", torch.float32) for tensor in (image, mask, opaque))
    mask = torch.minimum(mask, opaque)
    if len(image) > 1:
        raise ArtMancerError(
            "invalid_request", f"The reference holds {len(image)} images; expected one."
        )
    check_finite(image, "reference")
    box = bounds(mask[0], "The mask of the reference")
    return Reference(box.view(image[0]).unsqueeze(0), box.view(mask[0]).unsqueeze(0).clamp(0, 1))


def split(sources: Sources, recipe: str = DEFAULT_RECIPE) -> dict[str, Tensor]:
    """Make a recipe's conditioning images, in order, each an IMAGE [B, h, w, 3] of the crop's size.

    Raises
    ------
    ArtMancerError : reference_missing where the recipe uses a reference and `sources` has none;
        invalid_request
    """
    if recipe not in RECIPES:
        raise ArtMancerError(
            "invalid_request",
            f"The recipe is '{recipe}'; expected one of {', '.join(RECIPES)}.",
        )
    return {name: condition(sources, name) for name in RECIPES[recipe].conditions}


def condition(sources: Sources, name: str) -> Tensor:
    """Make one conditioning image, IMAGE [B, h, w, 3]; `name` as in a recipe."""
    return _BUILDERS[name](sources)


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
    scale = min((box.bottom - box.top) / height, (box.right - box.left) / width)
    fitted = (max(1, round(height * scale)), max(1, round(width * scale)))
    # Premultiplied by the mask, so that the surroundings do not bleed into the object's edge.
    layers = torch.cat(
        [reference.image * reference.mask.unsqueeze(-1), reference.mask.unsqueeze(-1)], -1
    )
    layers = functional.interpolate(
        layers.permute(0, 3, 1, 2), fitted, mode="bicubic", antialias=True
    )
    y, x = (box.top + box.bottom - fitted[0]) // 2, (box.left + box.right - fitted[1]) // 2
    canvas = functional.pad(
        layers, (x, size[1] - x - fitted[1], y, size[0] - y - fitted[0])
    ).permute(0, 2, 3, 1)
    mask = canvas[..., 3]
    image = (canvas[..., :3] / mask.clamp(min=1 / 255).unsqueeze(-1)).clamp(0, 1)
    return Reference(image, mask.clamp(0, 1))


def edges(image: Tensor) -> Tensor:
    """Draw the edges of an IMAGE [B, H, W, 3] after Canny (1986), white on black, as an IMAGE of
    the same shape.
    """
    import cv2

    planes = []
    for plane in image:
        gray = cv2.cvtColor(to_uint8(plane).numpy(), cv2.COLOR_RGB2GRAY)
        planes.append(cv2.Canny(gray, *_CANNY))
    lines = torch.from_numpy(np.stack(planes)).to(torch.float32).div_(255)
    return lines.unsqueeze(-1).expand(-1, -1, -1, 3)


def _background(sources: Sources) -> Tensor:
    return sources.crop.image * (1 - sources.crop.mask.unsqueeze(-1))


def _mask(sources: Sources) -> Tensor:
    return sources.crop.mask.unsqueeze(-1).expand(-1, -1, -1, 3)


def _object(sources: Sources) -> Tensor:
    if sources.reference is not None:
        return _reference(sources)
    return sources.crop.image * sources.crop.mask.unsqueeze(-1)


def _reference(sources: Sources) -> Tensor:
    if sources.reference is None:
        raise ArtMancerError(
            "reference_missing",
            "This recipe needs an image of the object to insert, and there is none. "
            "Add a reference image.",
        )
    height, width = sources.crop.mask.shape[1:]
    placed = place(sources.reference, (height, width), Window(0, 0, height, width))
    return (placed.image * placed.mask.unsqueeze(-1)).expand(len(sources.crop.image), -1, -1, -1)


def _fill(sources: Sources) -> Tensor:
    if sources.fill is not None:
        return sources.fill
    return fill(sources.crop.image, sources.crop.mask, 0, sources.progress)


_BUILDERS: dict[str, Callable[[Sources], Tensor]] = {
    "mask": _mask,
    "background": _background,
    "object": _object,
    "reference": _reference,
    "fill": _fill,
    "image": lambda sources: sources.crop.image,
    "edges": lambda sources: edges(sources.crop.image),
}
"""The functions that make the conditioning images, by the names that recipes use."""
