"""Which conditioning images a checkpoint was trained on, in which order,
and those images for one edit.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .errors import ArtMancerError
from .fill import fill
from .images import to_uint8
from .progress import Progress, no_progress
from .region import Crop, Window, bounds, check, check_finite


@dataclass(frozen=True)
class Recipe:
    """conditions : names of the conditioning images, in order;
    purpose : the checkpoints that were trained so
    """

    conditions: tuple[str, ...]
    purpose: str


RECIPES = {
    "mask_background_object": Recipe(("mask", "background", "object"), "all three variants"),
    "reference_mask_background": Recipe(
        ("reference", "mask", "background"), "insertion checkpoints trained so"
    ),
    "background_mask_fill": Recipe(
        ("background", "mask", "fill"), "removal checkpoints trained so"
    ),
    "image_edges": Recipe(("image", "edges"), "white balance checkpoints trained so"),
}
DEFAULT_RECIPE = "mask_background_object"


@dataclass(frozen=True)
class Reference:
    """The object to insert, cropped to its mask:
    IMAGE [1, h, w, 3] and MASK [1, h, w], 1 = the object.
    """

    image: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Sources:
    """What conditioning images are made from.

    crop : the part of the picture around the mask
    reference : the object to insert
    fill : IMAGE [B, h, w, 3], the crop with its hole filled; None: PatchMatch fills it
    progress : told while it does
    """

    crop: Crop
    reference: Reference | None = None
    fill: Tensor | None = None
    progress: Progress = no_progress


def cut_out(image: Tensor, mask: Tensor | None) -> Reference:
    """The object of a picture, cropped to its mask.

    Parameters
    ----------
    image : IMAGE [1, H, W, 3]; of a fourth channel, alpha, nothing transparent is of the object
    mask : MASK [1, H, W], 1 = the object; None = all of the picture

    Raises
    ------
    ArtMancerError : invalid_request, mask_empty
    """
    opaque = image[..., 3] if image.shape[-1] == 4 else image.new_ones(image.shape[:3])
    image, mask = image[..., :3], opaque if mask is None else mask
    check(image, mask, "reference")
    image, mask, opaque = (given.to("cpu", torch.float32) for given in (image, mask, opaque))
    mask = torch.minimum(mask, opaque)
    if len(image) > 1:
        raise ArtMancerError(
            "invalid_request",
            f"The reference holds {len(image)} images; expected one. Pick one of the batch.",
        )
    check_finite(image, "reference")
    box = bounds(mask[0], "The mask of the reference")
    return Reference(box.of(image[0]).unsqueeze(0), box.of(mask[0]).unsqueeze(0).clamp(0, 1))


def split(sources: Sources, recipe: str = DEFAULT_RECIPE) -> dict[str, Tensor]:
    """The recipe's conditioning images in order, each an IMAGE [B, h, w, 3] of the crop's size.

    Raises
    ------
    ArtMancerError : reference_missing where the recipe has one and `sources` has none;
        invalid_request
    """
    if recipe not in RECIPES:
        raise ArtMancerError(
            "invalid_request",
            f"The recipe is '{recipe}'; expected one of {', '.join(RECIPES)}. Choose one.",
        )
    return {name: condition(sources, name) for name in RECIPES[recipe].conditions}


def condition(sources: Sources, name: str) -> Tensor:
    """One conditioning image, IMAGE [B, h, w, 3]; `name` as in a recipe."""
    return _BUILDERS[name](sources)


def place(reference: Reference, size: tuple[int, int], box: Window) -> Reference:
    """Each object on an empty canvas, scaled to fit a box and centred in it, its aspect ratio kept.

    Parameters
    ----------
    size : (height, width) of the canvas
    box : where on the canvas

    Returns
    -------
    Reference of the canvas' size, black and 0 around the object.
    """
    height, width = reference.mask.shape[1:]
    scale = min((box.bottom - box.top) / height, (box.right - box.left) / width)
    fitted = (max(1, round(height * scale)), max(1, round(width * scale)))
    # Premultiplied, so that what was around the object does not bleed into its edge.
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
    """The edges of an IMAGE [B, H, W, 3] after Canny (1986), white on black,
    as an IMAGE of the same shape.
    """
    import cv2

    lines = [
        cv2.Canny(cv2.cvtColor(to_uint8(one).numpy(), cv2.COLOR_RGB2GRAY), 100, 200)
        for one in image
    ]
    return (
        torch.from_numpy(np.stack(lines))
        .to(torch.float32)
        .div_(255)
        .unsqueeze(-1)
        .expand(-1, -1, -1, 3)
    )


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
            "This recipe shows the editor the object to insert, and there is no reference. Give a "
            "reference image.",
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
