"""The draft editor: all three variants without weights and without a GPU.

It is for trying the pack, for testing all of it, and for small removals. The report names it
draft/removal, and so on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import hard_edge
from .checks import draft_needs_reference
from .color import LUMINANCE, in_chunks, to_linear, to_srgb, whiten_clipped
from .conditions import Reference, fill_crop, fitting_scale, place
from .editor import EditorWithoutCheckpoint, EditRequest
from .errors import ArtMancerError
from .light import estimate
from .progress import Progress
from .region import Crop, Window, bounds
from .tone import value_range
from .variants import VARIANTS

_FUSION_SIDES = (90, 6)
"""Sides of the squares of blur fusion, in pixels: the author's."""

_NEAR, _STEEP = 15, 4
"""Side of the square, in pixels, whose colors tell whether an edge is mixed with its background,
and the power of the mask by which they count: opaque pixels tell most.
"""

Plane = NDArray[np.float32]


@dataclass(frozen=True)
class DraftEditor(EditorWithoutCheckpoint):
    """An Editor (see editor.py) that needs no weights.

    Attributes
    ----------
    variant : one of VARIANTS
    strength : share of the white balance that is applied, 0..1
    """

    variant: str
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ArtMancerError(
                "invalid_request",
                f"The variant is {self.variant!r}; expected one of {', '.join(VARIANTS)}.",
            )

    @property
    def name(self) -> str:
        return f"draft/{self.variant}"

    def edit(self, request: EditRequest, progress: Progress) -> Tensor:
        """Edit the crop; see Editor.edit. Only the conditions and the seed of the request are used.

        Raises
        ------
        ArtMancerError : reference_missing for an insertion without a reference: a prompt cannot be
            drawn without weights
        """
        crop = request.conditions.crop
        if self.variant == "removal":
            # Not conditions.fill_mask: grown by a recipe's 35 pixels, it leaves too little of the
            # crop to copy patches from.
            return fill_crop(crop, crop.mask, request.seed, progress)
        if self.variant == "insertion":
            reference = request.conditions.reference
            if reference is None:
                raise draft_needs_reference()
            progress(0, 1, "inserting")
            return insert(crop, reference)
        progress(0, 1, "balancing")
        return balance(crop.image, crop.mask, self.strength)


def insert(crop: Crop, reference: Reference) -> Tensor:
    """Fit the reference into the mask's bounding box and lay it over the photo by its mask, in its
    own colors, also in hair and soft edges. What a hard mask takes of the object's background is
    left out.

    Parameters
    ----------
    crop : the crop around the place of the object
    reference : the object

    Returns
    -------
    IMAGE [B, h, w, 3]
    """
    boxes = {
        index: bounds(mask).clip(crop.region.image_in_crop(index))
        for index, mask in enumerate(crop.mask)
        if mask.any()
    }
    shape = _without_background(reference, list(boxes.values()))
    colors = _own_colors(reference.image[0], shape[0])
    own = Reference(colors.unsqueeze(0), shape)
    inserted = crop.image.clone()
    for index, box in boxes.items():
        plane, mask = inserted[index], crop.mask[index]
        placed = place(own, crop.region.size, box)
        shape = (placed.mask[0] * (mask > 0)).unsqueeze(-1)
        plane.lerp_(placed.image[0], shape)
    return inserted


def _without_background(reference: Reference, boxes: Sequence[Window]) -> Tensor:
    """Return the reference's mask [1, h, w], a hard one without what it takes of the background.

    Parameters
    ----------
    boxes : where the object is placed; a reference that is larger than all of them is examined at
        the scale of the largest
    """
    import cv2

    mask, whole, cut = reference.mask, reference.whole, reference.box
    if whole is None or cut is None or not hard_edge.is_hard(mask[0].numpy()):
        return mask
    height, width = mask.shape[1:]
    scale = min(1.0, max((fitting_scale((height, width), box) for box in boxes), default=1.0))
    around = cut.widen(math.ceil(hard_edge.REACH / scale)).clip(Window(0, 0, *whole.shape[1:3]))
    inside = cut.shift(-around.top, -around.left)
    colors = around.view(whole[0])
    shape = colors.new_zeros(colors.shape[:2])
    inside.view(shape).copy_(mask[0])
    background = colors[shape == 0]
    # One color is what a program puts under transparency, and no background that was photographed.
    if (background == background[:1]).all():
        return mask
    size = [max(1, round(side * scale)) for side in reversed(shape.shape)]
    small, solid = (
        np.asarray(cv2.resize(plane.numpy(), size, interpolation=cv2.INTER_AREA), np.float32)
        for plane in (colors, shape)
    )
    estimate = hard_edge.opacity(small, solid)
    opacity, lost = (
        inside.view(torch.from_numpy(cv2.resize(plane, shape.shape[::-1])))
        for plane in (estimate, solid - estimate)
    )
    # Enlarged, the opacity is soft at every edge.
    return torch.where(lost > 0, torch.minimum(mask, opacity), mask)


def _own_colors(image: Tensor, mask: Tensor) -> Tensor:
    """Return the object's own colors [h, w, 3], without those of its background in soft edges, by
    blur fusion (Forte, Approximate Fast Foreground Colour Estimation, 2021).

    Colors that are the object's own already, as in a cutout with transparency, stay as they are.

    Parameters
    ----------
    image : [h, w, 3]
    mask : [h, w], 1 = the object
    """
    soft = (mask > 0) & (mask < 1)
    if not soft.any():
        return image
    alpha, seen = mask.unsqueeze(-1).numpy(), image.numpy()
    if _is_unmixed(seen, alpha, soft.numpy()):
        return image
    foreground = background = seen
    for side in _FUSION_SIDES:
        around = _average(foreground, alpha, side)
        background = _average(background, 1 - alpha, side)
        foreground = around + alpha * (seen - alpha * around - (1 - alpha) * background)
    own = torch.from_numpy(foreground).clamp(*value_range(image))
    return torch.where(mask.unsqueeze(-1) < 1, own, image)


def _average(colors: Plane, weights: Plane, side: int) -> Plane:
    """Return the average of colors [h, w, 3] in a square, by weights [h, w, 1]."""
    import cv2

    total = cv2.blur(colors * weights, (side, side))
    share = cv2.blur(weights, (side, side))[..., None]
    return np.asarray(total / np.maximum(share, 1e-5), np.float32)


def _is_unmixed(seen: Plane, alpha: Plane, soft: NDArray[np.bool_]) -> bool:
    """Tell whether the colors of soft pixels are as near to the object's colors around them as to
    their mix with the background's.
    """
    around = _average(seen, alpha**_STEEP, _NEAR)
    mixed = alpha * around + (1 - alpha) * _average(seen, (1 - alpha) ** _STEEP, _NEAR)
    own, mix = (np.abs(seen[soft] - colors[soft]).mean() for colors in (around, mixed))
    return bool(own <= mix)


def balance(image: Tensor, mask: Tensor, strength: float) -> Tensor:
    """Remove a color cast: estimate the color of the light (light.py), and divide by it, a gain for
    each channel in linear light. Where the light is not clearly colored, nothing changes.

    Parameters
    ----------
    image : IMAGE [B, h, w, 3]
    mask : MASK [B, h, w]; the cast is estimated where it is at least one half, and removed from the
        whole image
    strength : share of the cast that is removed: 0 = nothing changes, 1 = all of it

    Returns
    -------
    IMAGE [B, h, w, 3]; a gray keeps its luminance
    """
    balanced = []
    for original, plane in zip(image, mask, strict=True):
        colors = in_chunks(to_linear, original)
        light = estimate(colors, plane)
        if (light == 1).all():
            balanced.append(original)
            continue
        gains = ((LUMINANCE @ light) / light) ** strength
        change = partial(_divide, gains=gains, limits=value_range(colors))
        balanced.append(in_chunks(change, colors))
    return torch.stack(balanced)


def _divide(linear: Tensor, *, gains: Tensor, limits: tuple[float, float]) -> Tensor:
    """Multiply colors [n, 3] in linear light by the gains, and return them as sRGB values."""
    return to_srgb(whiten_clipped(linear, linear * gains).clamp(*limits))
