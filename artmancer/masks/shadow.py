"""A mask for the shadow that an object casts, so that a removal takes it along."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import mask_ops, region
from ..checks import check_finite, check_image, check_mask
from ..color import LUMINANCE
from ..images import to_uint8
from ..progress import Progress, no_progress

SIDE = 512
"""The shadow is looked for at this size at most; it has no fine details."""
DARKER = (0.2, 0.93)
"""What of the light around it falls into a shadow: less is another object, more is nothing."""
SAME_HUE = 0.06
"""How far a shadow's chromaticity, r / (r + g + b) and its like,
may be from that of the ground around it.
"""

LEAST_GROUND = 0.05
"""Of what is looked at: where less lies out of the shadow's reach, nothing tells how the ground
looks without one.
"""
LARGEST = 2.0
"""Of the object's area: what is larger is no shadow of it, but the ground itself."""


def propose(
    image: Tensor, mask: Tensor, reach: float = 1.0, progress: Progress = no_progress
) -> Tensor:
    """Find the shadow of an object: what touches it, is darker than the ground around,
    and of the same colour.

    The light around is the brightest that is usual in the neighbourhood, without the object: a
    morphological closing of the smoothed luminance, by the size of the object.

    Parameters
    ----------
    image : IMAGE [B, H, W, 3]
    mask : MASK [B or 1, H, W], 1 = the object
    reach : how far from the object it may lie, over the longer side of the object
    progress : told before each picture; may raise to cancel

    Returns
    -------
    MASK [B, H, W], 0 or 1, without the object; black where no shadow is found.

    Raises
    ------
    ArtMancerError : invalid_request (shapes that do not fit, NaN), mask_empty
    """
    check_image(image)
    check_mask(mask, image)
    check_finite(image, "image")
    image, mask = image.to("cpu", torch.float32), mask.to("cpu", torch.float32)
    found = []
    for index, one in enumerate(image):
        progress(index, len(image), "looking for the shadow")
        which = index % len(mask)
        name = "The mask" if len(mask) == 1 else f"Mask {which + 1} of the batch"
        found.append(_propose(one, mask[which], reach, name))
    return torch.stack(found)


def _propose(image: Tensor, mask: Tensor, reach: float, name: str) -> Tensor:
    import cv2

    # A matte may be faint far from the object.
    solid = mask * (mask >= 0.5)
    box = region.bounds(solid if solid.any() else mask, name)
    size = max(box.bottom - box.top, box.right - box.left)
    height, width = mask.shape
    window = box.widen(math.ceil(size * (reach + 0.5))).clip(region.Window(0, 0, height, width))
    part, hole = to_uint8(window.view(image)).numpy(), window.view(mask).numpy() >= 0.5
    scale = min(1.0, SIDE / max(hole.shape))
    small = tuple(max(8, round(side * scale)) for side in hole.shape[::-1])
    colors = cv2.resize(part, small, interpolation=cv2.INTER_AREA).astype(np.float32) / np.float32(
        255
    )
    hole = cv2.resize(hole.astype(np.uint8), small, interpolation=cv2.INTER_NEAREST) > 0
    found = _darker(colors, hole, reach * size * scale, max(3, round(0.75 * size * scale)))
    shadow = torch.zeros_like(mask)
    area = cv2.resize(
        found.astype(np.float32), window.view(mask).shape[::-1], interpolation=cv2.INTER_LINEAR
    )
    window.view(shadow).copy_(torch.from_numpy((area > 0.5).astype(np.float32)))
    return shadow * (mask < 0.5)


def _darker(
    colors: NDArray[np.float32], hole: NDArray[np.bool_], reach: float, side: int
) -> NDArray[np.bool_]:
    """Where a picture [h, w, 3] is in the shadow of what is in its hole."""
    import cv2

    away = mask_ops.distance(torch.from_numpy(hole.astype(np.float32))).numpy()
    far = away > reach
    if far.mean() < LEAST_GROUND:
        return np.zeros_like(hole)
    near = (
        cv2.dilate(hole.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    )  # the object's soft edge belongs to it
    free, fine = (~near).astype(np.float32), max(2.0, 0.06 * side)
    smooth = _blur(colors * free[..., None], fine) / np.maximum(_blur(free, fine), 1e-3)[..., None]
    # Of the sRGB values, not of linear light: shadows are compared as the eye sees them.
    luminance = smooth @ LUMINANCE.numpy()
    ratio = luminance / np.maximum(
        _blur(_closed(np.asarray(luminance * free, np.float32), side), side / 4), 1e-3
    )
    # Where no shadow can be, the ground's own texture tells how dark it may be by itself.
    darkest = min(DARKER[1], float(np.quantile(ratio[far], 0.1)) - 0.02)
    hues = smooth / np.maximum(smooth.sum(-1, keepdims=True), 1e-3)
    bright = (~near & (ratio > darkest)).astype(np.float32)
    usual = _blur(hues * bright[..., None], side) / np.maximum(_blur(bright, side), 1e-3)[..., None]
    same = np.abs(hues - usual).max(-1) < SAME_HUE

    dark = (ratio > DARKER[0]) & (ratio < darkest) & same & ~near & (away <= reach)
    dark = cv2.morphologyEx(dark.astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    _, parts = cv2.connectedComponents(dark)
    rim = cv2.dilate(near.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    areas = np.bincount(parts.flatten())
    touching = [
        part for part in np.unique(parts[rim]) if part and areas[part] <= LARGEST * hole.sum()
    ]
    shadow = np.isin(parts, touching)
    beside = cv2.dilate(shadow.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    return np.asarray((shadow | (beside & near)) & ~hole)


def _closed(plane: NDArray[np.float32], radius: int) -> NDArray[np.float32]:
    """A closing by a disc, made at a coarser size: a large disc takes seconds at the full one, and
    what comes of it is blurred anyway.
    """
    import cv2

    coarse = max(1, radius // 16)
    size = tuple(max(1, round(side / coarse)) for side in plane.shape[::-1])
    side = 2 * round(radius / coarse) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    small = cv2.resize(plane, size, interpolation=cv2.INTER_AREA)
    closed = cv2.morphologyEx(small, cv2.MORPH_CLOSE, disc)
    return np.asarray(cv2.resize(closed, plane.shape[::-1]))


def _blur(plane: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    import cv2

    return np.asarray(cv2.GaussianBlur(np.asarray(plane, np.float32), (0, 0), sigma))
