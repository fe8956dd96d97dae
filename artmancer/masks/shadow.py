"""Find the shadow that an object casts, so that a removal removes it too."""

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

WORKING_SIDE = 512
"""Longest side, in pixels, of the small image that is searched: a shadow has no fine details."""

SHADOW_LIGHT = (0.2, 0.93)
"""Smallest and largest share of the surrounding light in a shadow. With less, the area is another
object; with more, it is not dark enough for a shadow.
"""

MAX_CHROMATICITY_DIFFERENCE = 0.06
"""Largest difference between the chromaticities of a shadow and of the ground around it. A
chromaticity is r / (r + g + b), and the same for g and b.
"""

MIN_LIT_GROUND = 0.05
"""Smallest share of the window that must lie beyond the shadow's reach; with less there is no lit
ground to compare with.
"""

MAX_AREA = 2.0
"""Largest area of a shadow, as a multiple of the object's area. A larger dark area is the ground
itself.
"""

_REACH_MARGIN = 0.5
"""Width of the ground that the window includes beyond the shadow's reach, as a share of the
object's longer side.
"""

_NEIGHBORHOOD = 0.75
"""Radius of the neighborhood that gives the surrounding light, as a share of the object's longer
side.
"""

_SMOOTHING = 0.06
"""Sigma of the smoothing that removes the ground's texture, as a share of that radius."""

_GROUND_QUANTILE = 0.1
"""Quantile of the light beyond the shadow's reach that stands for the darkest texture of the lit
ground.
"""

_GROUND_MARGIN = 0.02
"""Share of the surrounding light by which a shadow must be darker than that quantile."""

_CLOSING_RADIUS = 16
"""Radius, in pixels, that the closing's disc is reduced to by working at a coarser size."""

_MIN_SIDE = 8
"""Smallest side of the small image, in pixels."""

_MIN_DIVISOR = 1e-3
"""Lower limit of a divisor, which keeps quotients finite where no light or no ground is near."""


def propose(
    image: Tensor, mask: Tensor, reach: float = 1.0, progress: Progress = no_progress
) -> Tensor:
    """Find the shadow of an object: the area that touches the object, is darker than the ground
    around it, and has the same color.

    The surrounding light is estimated as the brightest light that is usual in the neighborhood,
    without the object: a morphological closing of the smoothed luminance, by the size of the
    object.

    Parameters
    ----------
    image : IMAGE [B, H, W, 3]
    mask : MASK [B or 1, H, W], 1 = the object
    reach : largest distance of the shadow from the object, as a share of the object's longer side
    progress : called before each image; raising in it cancels

    Returns
    -------
    MASK [B, H, W], 0 or 1, without the object; black where no shadow is found

    Raises
    ------
    ArtMancerError : invalid_request (shapes that do not match, NaN), mask_empty
    """
    check_image(image)
    check_mask(mask, image)
    check_finite(image, "image")
    image, mask = image.to("cpu", torch.float32), mask.to("cpu", torch.float32)
    shadows = []
    for index, plane in enumerate(image):
        progress(index, len(image), "looking for the shadow")
        mask_index = index % len(mask)
        name = "The mask" if len(mask) == 1 else f"Mask {mask_index + 1} of the batch"
        shadows.append(_propose(plane, mask[mask_index], reach, name))
    return torch.stack(shadows)


def _propose(image: Tensor, mask: Tensor, reach: float, name: str) -> Tensor:
    """Return the shadow [H, W] in one image [H, W, 3]; `name` is the mask's in messages."""
    import cv2

    # A matte may have faint pixels far from the object.
    solid = mask * (mask >= 0.5)
    box = region.bounds(solid if solid.any() else mask, name)
    size = max(box.bottom - box.top, box.right - box.left)
    height, width = mask.shape
    margin = math.ceil(size * (reach + _REACH_MARGIN))
    window = box.widen(margin).clip(region.Window(0, 0, height, width))
    pixels = to_uint8(window.view(image)).numpy()
    hole = window.view(mask).numpy() >= 0.5
    window_size = hole.shape[::-1]
    scale = min(1.0, WORKING_SIDE / max(hole.shape))
    small_size = tuple(max(_MIN_SIDE, round(side * scale)) for side in window_size)
    small = cv2.resize(pixels, small_size, interpolation=cv2.INTER_AREA)
    colors = small.astype(np.float32) / np.float32(255)
    hole = cv2.resize(hole.astype(np.uint8), small_size, interpolation=cv2.INTER_NEAREST) > 0
    radius = max(3, round(_NEIGHBORHOOD * size * scale))
    small_shadow = _find_shadow(colors, hole, reach * size * scale, radius)
    coverage = cv2.resize(
        small_shadow.astype(np.float32), window_size, interpolation=cv2.INTER_LINEAR
    )
    shadow = torch.zeros_like(mask)
    window.view(shadow).copy_(torch.from_numpy((coverage > 0.5).astype(np.float32)))
    return shadow * (mask < 0.5)


def _find_shadow(
    colors: NDArray[np.float32], hole: NDArray[np.bool_], reach: float, radius: int
) -> NDArray[np.bool_]:
    """Return the shadow [h, w] of the object in the hole of an image.

    Parameters
    ----------
    colors : the image [h, w, 3] in 0..1
    hole : [h, w], the object
    reach : largest distance of the shadow from the object, in pixels
    radius : radius of the neighborhood that gives the surrounding light, in pixels
    """
    import cv2

    distance = mask_ops.distance(torch.from_numpy(hole.astype(np.float32))).numpy()
    far = distance > reach
    if far.mean() < MIN_LIT_GROUND:
        return np.zeros_like(hole)
    # The soft edge of the object belongs to it.
    near = cv2.dilate(hole.astype(np.uint8), _square(5)) > 0
    ground = (~near).astype(np.float32)
    # Smoothed, so that the texture of the ground does not count.
    smooth = _mean(colors, ground, max(2.0, _SMOOTHING * radius))
    # In sRGB values, not in linear light: shadows are compared as the eye perceives them.
    luminance = smooth @ LUMINANCE.numpy()
    closed = _closing(np.asarray(luminance * ground, np.float32), radius)
    light = luminance / np.maximum(_blur(closed, radius / 4), _MIN_DIVISOR)
    # Beyond the shadow's reach, the light shows how dark the ground's own texture is.
    limit = float(np.quantile(light[far], _GROUND_QUANTILE)) - _GROUND_MARGIN
    darkest = min(SHADOW_LIGHT[1], limit)
    chromaticity = smooth / np.maximum(smooth.sum(-1, keepdims=True), _MIN_DIVISOR)
    bright = (~near & (light > darkest)).astype(np.float32)
    usual = _mean(chromaticity, bright, radius)
    same_color = np.abs(chromaticity - usual).max(-1) < MAX_CHROMATICITY_DIFFERENCE

    dark = (light > SHADOW_LIGHT[0]) & (light < darkest) & same_color & ~near & (distance <= reach)
    # The opening removes specks and thin lines.
    dark = cv2.morphologyEx(dark.astype(np.uint8), cv2.MORPH_OPEN, _square(5))
    _, parts = cv2.connectedComponents(dark)
    rim = cv2.dilate(near.astype(np.uint8), _square(5)) > 0
    areas = np.bincount(parts.flatten())
    max_area = MAX_AREA * hole.sum()
    touching = [part for part in np.unique(parts[rim]) if part and areas[part] <= max_area]
    shadow = np.isin(parts, touching)
    # The object's soft edge beside the shadow belongs to the shadow.
    beside = cv2.dilate(shadow.astype(np.uint8), _square(7)) > 0
    return np.asarray((shadow | (beside & near)) & ~hole)


def _closing(plane: NDArray[np.float32], radius: int) -> NDArray[np.float32]:
    """Return the closing of [h, w] by a disc, computed at a coarser size: a large disc takes
    seconds at full size, and the result is blurred anyway.
    """
    import cv2

    factor = max(1, radius // _CLOSING_RADIUS)
    size = tuple(max(1, round(side / factor)) for side in plane.shape[::-1])
    diameter = 2 * round(radius / factor) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (diameter, diameter))
    coarse = cv2.resize(plane, size, interpolation=cv2.INTER_AREA)
    closed = cv2.morphologyEx(coarse, cv2.MORPH_CLOSE, disc)
    return np.asarray(cv2.resize(closed, plane.shape[::-1]))


def _mean(
    values: NDArray[np.float32], weights: NDArray[np.float32], sigma: float
) -> NDArray[np.float32]:
    """Return the weighted mean of values [h, w, 3] around each pixel; weights are [h, w]."""
    total = _blur(values * weights[..., None], sigma)
    return np.asarray(total / np.maximum(_blur(weights, sigma), _MIN_DIVISOR)[..., None])


def _blur(plane: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    import cv2

    return np.asarray(cv2.GaussianBlur(np.asarray(plane, np.float32), (0, 0), sigma))


def _square(side: int) -> NDArray[np.uint8]:
    """Return a square structuring element of this side, in pixels."""
    return np.ones((side, side), np.uint8)
