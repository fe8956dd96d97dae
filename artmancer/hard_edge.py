"""The edge of an object that a hard mask cuts out.

A hard mask has no pixel that is partly the object, and where it is a little larger than the
object, it takes some of the background along. The colors show how much of a pixel is the object:
around each pixel near the edge, Fisher's linear discriminant (1936) is the axis that separates the
object's colors from the background's best, and on it a mixed color lies between the two as its
opacity lies between 1 and 0.

The constants were set on the first half of the cases of benchmarks/insertion.py.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_BAND = 3
"""Pixels inside the mask's edge whose opacity is estimated. Farther in, all is the object."""

REACH = 8
"""Half the side of the square, in pixels, whose colors tell object and background apart."""

_FEW = 8
"""Fewest pixels of each of both in the square."""

_FLAT_VARIANCE = 1e-4
"""Variance of colors, in 0..1, that noise has."""

_SEPARATION = 9.0
"""Least square of the distance between object and background, in standard deviations."""

_TRANSPARENT, _OPAQUE = 0.1, 0.9
"""Estimates that count as 0 and as 1: texture is no transparency."""

_SOFT_PIXELS = 2.0
"""Most soft pixels of a hard mask for each pixel at its edge: more than antialiasing makes."""

Plane = NDArray[np.float32]


def is_hard(mask: Plane) -> bool:
    """Tell whether a mask [h, w] in 0..1 has no soft edge, or only an antialiased one."""
    import cv2

    solid = (mask >= 0.5).astype(np.uint8)
    edge = solid - cv2.erode(solid, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)))
    soft = np.count_nonzero((mask > 0) & (mask < 1))
    return bool(soft <= _SOFT_PIXELS * np.count_nonzero(edge))


def opacity(image: Plane, mask: Plane) -> Plane:
    """Estimate the opacity of an object near the edge of its hard mask.

    Where the mask is thin, or object and background look alike, the mask stays.

    Parameters
    ----------
    image : [h, w, 3], the object and its background
    mask : [h, w] in 0..1, 1 = the object

    Returns
    -------
    [h, w] in 0..1, at most the mask
    """
    import cv2

    solid = (mask >= 0.5).astype(np.uint8)
    core = _depth(solid) > _BAND
    # A pixel beside the mask may be mixed.
    background = _depth(1 - solid) > 1
    if not core.any() or not background.any():
        return mask
    is_near = cv2.distanceTransform((~core).astype(np.uint8), cv2.DIST_L2, 5) < _BAND + 1.5
    band = (mask > 0) & ~core & is_near
    share, inner, inner_spread = _colors_around(image, core, band)
    other_share, outer, outer_spread = _colors_around(image, background, band)
    difference = inner - outer
    spread = (inner_spread + outer_spread) / 2 + _FLAT_VARIANCE * np.eye(3, dtype=np.float32)
    axis = np.linalg.solve(spread, difference[..., None])[..., 0]
    separation = (difference * axis).sum(-1)
    position = ((image[band] - outer) * axis).sum(-1) / np.maximum(separation, 1e-6)
    estimate = ((position - _TRANSPARENT) / (_OPAQUE - _TRANSPARENT)).clip(0, 1)
    few = _FEW / (2 * REACH + 1) ** 2
    is_clear = (separation > _SEPARATION) & (share > few) & (other_share > few)
    result: Plane = mask.copy()
    result[band] = np.where(is_clear, np.minimum(mask[band], estimate), mask[band])
    return result


def _depth(place: NDArray[np.uint8]) -> Plane:
    """Return how far each pixel of a place lies inside it, in pixels; 0 outside."""
    import cv2

    return np.asarray(cv2.distanceTransform(place, cv2.DIST_L2, 5), np.float32)


def _colors_around(
    image: Plane, place: NDArray[np.bool_], band: NDArray[np.bool_]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return the share of a place in the square around each of n pixels of a band, [n], and the
    mean and covariance of its colors there, [n, 3] and [n, 3, 3].
    """
    import cv2

    weights, side = place.astype(np.float32), 2 * REACH + 1

    def average(plane: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(cv2.blur(plane, (side, side)))[band]

    weighted = image * weights[..., None]
    share = average(weights)
    scale = 1 / np.maximum(share, 1e-6)
    mean = average(weighted) * scale[:, None]
    products = [average(weighted * image[..., channel, None]) for channel in range(3)]
    square = np.stack(products, -1) * scale[:, None, None]
    return share, mean, square - mean[:, :, None] * mean[:, None]
