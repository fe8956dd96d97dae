"""The draft editor: all three variants without weights and without a GPU.

It is for trying the pack, for testing all of it, and for small removals. The report names it
draft/removal, and so on.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import mask_ops
from .checks import draft_needs_reference
from .color import LUMINANCE, to_linear, to_srgb
from .conditions import Reference, fill_crop, place
from .editor import EditorWithoutCheckpoint, EditRequest
from .errors import ArtMancerError
from .images import to_uint8
from .light import estimate
from .progress import Progress
from .region import Crop, bounds
from .tone import ToneCurve, value_range
from .variants import VARIANTS

_RIM = 3
"""Pixels from an object's edge over which it passes from Poisson blending to its own colors."""

_PADDING = 2
"""Pixels around an image for OpenCV's Poisson blending."""


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
    """Fit the reference into the mask's bounding box and blend it in (Perez, Gangnet and Blake,
    Poisson Image Editing, 2003).

    Poisson blending alone gives a whole object the tint of its surroundings. It is therefore used
    at the object's rim only; inside, the object keeps its own colors.

    Parameters
    ----------
    crop : the crop around the place of the object
    reference : the object

    Returns
    -------
    IMAGE [B, h, w, 3]
    """
    inserted = crop.image.clone()
    for index, (plane, mask) in enumerate(zip(inserted, crop.mask, strict=True)):
        if not mask.any():
            continue
        box = bounds(mask).clip(crop.region.image_in_crop(index))
        placed = place(reference, crop.region.size, box)
        source, shape = placed.image[0], placed.mask[0]
        # Nothing is left of an object that is scaled down too far.
        if shape.max() < 0.5:
            continue
        depth = (mask_ops.distance(1 - shape) / _RIM).clamp(max=1)
        own_colors = depth.mul(shape).unsqueeze(-1)
        blended = torch.lerp(_poisson(source, plane, shape), source, own_colors)
        plane.copy_(torch.where(mask.unsqueeze(-1) > 0, blended, plane))
    return inserted


def _poisson(source: Tensor, target: Tensor, shape: Tensor) -> Tensor:
    """Return the target [h, w, 3] with the part of the source inside `shape` [h, w] blended in."""
    import cv2

    # OpenCV needs the object away from the image's border.
    cut_out = np.pad((shape.numpy() >= 0.5).view(np.uint8) * 255, _PADDING)
    y, x = np.nonzero(cut_out)
    # OpenCV cannot blend an object that is all rim.
    if np.ptp(y) < 2 or np.ptp(x) < 2:
        return source
    # OpenCV centers the object's bounding box on this point, which keeps it in its place.
    center = (int(x.min() + x.max() + 1) // 2, int(y.min() + y.max() + 1) // 2)
    curve = ToneCurve(*value_range(torch.cat([source, target])))
    above, under = (_pad(curve.encode(image)) for image in (source, target))
    blended = cv2.seamlessClone(above, under, cut_out, center, cv2.NORMAL_CLONE)
    inside = blended[_PADDING:-_PADDING, _PADDING:-_PADDING]
    colors = curve.decode(torch.from_numpy(inside.copy()).to(torch.float32).div_(255))
    # Around the object OpenCV only rounds the target.
    return torch.where((shape >= 0.5).unsqueeze(-1), colors, target)


def _pad(image: Tensor) -> NDArray[np.uint8]:
    """Return an image [h, w, 3] in 0..255, its edge pixels repeated on each side."""
    pixels = to_uint8(image).numpy()
    return np.pad(pixels, ((_PADDING, _PADDING), (_PADDING, _PADDING), (0, 0)), mode="edge")


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
    linear = to_linear(image)
    balanced = torch.empty_like(image)
    for result, original, colors, plane in zip(balanced, image, linear, mask, strict=True):
        light = estimate(colors, plane)
        if (light == 1).all():
            result.copy_(original)
            continue
        gains = (LUMINANCE @ light) / light
        balanced_colors = (colors * gains**strength).clamp(*value_range(colors))
        result.copy_(to_srgb(balanced_colors))
    return balanced
