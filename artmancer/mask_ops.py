"""Operations on masks: grow, close holes, drop parts, smooth, feather.

All functions take and return a MASK [B, H, W] in 0..1, except `distance` and the two of the guided
filter. The shape of a soft mask is the set of pixels where it is at least one half.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .checks import NEAR_BLACK, NEAR_WHITE

_DETAIL_REACH, _DETAIL_SMOOTHING = 1, 1e-5
"""The window's radius and the variance of flat colors, see `guided_planes`, with which a mask that
is right at the small size gets its details.
"""


def shape(
    mask: Tensor,
    *,
    border: int = 0,
    rounding: int = 0,
    fading: int = 0,
    specks: int = 0,
    holes: bool = False,
    largest: bool = False,
) -> Tensor:
    """Clean up a mask, then shape its edge, then feather it, with the functions below.

    Parameters
    ----------
    border : pixels for `grow`; 0 = off
    rounding : pixels for `smooth`; 0 = off
    fading : pixels for `feather`; 0 = off
    specks : pixels for `drop_specks`; 0 = off
    holes : apply `fill_holes`
    largest : apply `keep_largest`
    """
    if largest:
        mask = keep_largest(mask)
    if specks:
        mask = drop_specks(mask, specks)
    if holes:
        mask = fill_holes(mask)
    return feather(grow(smooth(mask, rounding), border), fading)


def clean(mask: Tensor) -> Tensor:
    """Return the mask with near-black as 0 and near-white as 1: values within 8 levels of 255.

    JPEG writes such values where a mask was black or white. A threshold is used, not a stretch: the
    values between stay as they are, so that a soft edge keeps its shape and loses only the last 3 %
    at each end, which no eye sees.
    """
    return mask.masked_fill(mask <= NEAR_BLACK, 0).masked_fill_(mask >= NEAR_WHITE, 1)


def grow(mask: Tensor, pixels: int) -> Tensor:
    """Dilate the mask by a disc of this radius, or erode it where the radius is negative."""
    if pixels == 0:
        return mask
    if pixels < 0:
        return torch.stack([plane.masked_fill(distance(1 - plane) <= -pixels, 0) for plane in mask])
    return torch.stack([plane.masked_fill(distance(plane) <= pixels, 1) for plane in mask])


def dilate_ellipse(mask: Tensor, pixels: int) -> Tensor:
    """Dilate the mask's shape by OpenCV's ellipse of this radius; everywhere else it is 0."""
    import cv2

    if pixels == 0:
        return (mask >= 0.5).to(mask)
    side = 2 * pixels + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    planes = [cv2.dilate(plane.cpu().numpy().view(np.uint8), kernel) for plane in mask >= 0.5]
    return torch.from_numpy(np.stack(planes)).to(mask)


def fill_holes(mask: Tensor) -> Tensor:
    """Fill the holes that the mask encloses on all sides. The image's border encloses nothing."""
    return torch.stack([plane.masked_fill(_enclosed(plane), 1) for plane in mask])


def drop_specks(mask: Tensor, pixels: int) -> Tensor:
    """Drop the connected parts whose area is less than this many pixels."""
    return torch.stack([_keep_parts(plane, lambda areas: areas >= pixels) for plane in mask])


def keep_largest(mask: Tensor) -> Tensor:
    """Drop all connected parts but the largest."""
    return torch.stack([_keep_parts(plane, lambda areas: areas == areas.max()) for plane in mask])


def smooth(mask: Tensor, pixels: int) -> Tensor:
    """Round off corners and fill notches of about this radius. The edge stays sharp."""
    import cv2

    if pixels == 0:
        return mask
    blurred = [
        cv2.GaussianBlur(plane.cpu().numpy(), (0, 0), pixels / 2) for plane in (mask >= 0.5).float()
    ]
    return torch.from_numpy(np.stack(blurred) > 0.5).to(mask)


def feather(mask: Tensor, pixels: int) -> Tensor:
    """Fade the mask outwards: it keeps its values, and falls smoothly to 0 at this distance from
    its shape.
    """
    if pixels == 0 or mask.min() >= 1:
        return mask
    faded = torch.empty_like(mask)
    for plane, result in zip(mask, faded, strict=True):
        near = distance(plane).div_(-pixels).add_(1).clamp_(0, 1)
        # Smoothstep: 3 x^2 - 2 x^3.
        fade = near.square().mul_(near.mul_(-2).add_(3))
        torch.maximum(plane, fade, out=result)
    return faded


def distance(mask: Tensor) -> Tensor:
    """Return the distance in pixels from each pixel to the mask's shape.

    Parameters
    ----------
    mask : a mask [H, W]

    Returns
    -------
    [H, W], 0 inside the shape; infinite everywhere if the mask has no shape
    """
    import cv2

    outside = _outside(mask)
    if outside.all():
        return torch.full_like(mask, torch.inf)
    pixels = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return torch.from_numpy(pixels).to(mask.device)


def guided_upsample(
    mask: NDArray[np.float32], small: NDArray[np.float32], large: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Upsample a mask of a small image to the large image, by a guided filter (He and Sun, 2015).
    The colors of the large image give the mask its details.

    Parameters
    ----------
    mask : [h, w] in 0..1
    small, large : the image, [h, w, 3] and [H, W, 3], in 0..1

    Returns
    -------
    [H, W]
    """
    import cv2

    everywhere = np.ones(mask.shape, np.bool_)
    planes = guided_planes(mask, small, everywhere, _DETAIL_REACH, _DETAIL_SMOOTHING)

    def upsample(channel: int) -> NDArray[np.float32]:
        plane = np.ascontiguousarray(planes[..., channel])
        return np.asarray(cv2.resize(plane, large.shape[1::-1]), np.float32)

    result = upsample(3)
    for channel in range(3):
        result += upsample(channel) * large[..., channel]
    return result.clip(0, 1)


def guided_planes(
    mask: NDArray[np.float32],
    image: NDArray[np.float32],
    near: NDArray[np.bool_],
    reach: int,
    smoothing: float,
) -> NDArray[np.float32]:
    """Return a mask as a linear function of the colors around each pixel, [h, w, 4]: three slopes
    and an offset, as a guided filter has them (He, Sun and Tang, 2010).

    Parameters
    ----------
    mask : [h, w] in 0..1
    image : [h, w, 3] in 0..1
    near : [h, w], where the function is computed; elsewhere it is the mask's own value
    reach : radius of a window in pixels; an edge that is off by up to half of it is corrected
    smoothing : variance of the colors up to which a window counts as flat; the mask keeps its
        values there
    """
    import cv2

    def mean(plane: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(cv2.blur(plane, (2 * reach + 1, 2 * reach + 1)))

    color, level = mean(image)[near], mean(mask)[near]
    products = np.stack([mean(image * image[..., i : i + 1])[near] for i in range(3)], -1)
    covariance = products - color[:, :, None] * color[:, None]
    covariance += np.float32(smoothing) * np.eye(3, dtype=np.float32)
    relation = mean(image * mask[..., None])[near] - color * level[:, None]
    slope = np.linalg.solve(covariance, relation[..., None])[..., 0]
    planes = np.zeros((*mask.shape, 4), np.float32)
    planes[..., 3] = mask
    planes[near] = np.column_stack([slope, level - (slope * color).sum(-1)])
    return mean(planes)


def _keep_parts(mask: Tensor, select: Callable[[NDArray[Any]], NDArray[np.bool_]]) -> Tensor:
    """Return the mask [H, W] with only those connected parts that `select` keeps.

    Parameters
    ----------
    select : returns for the parts' areas, in pixels, which parts to keep
    """
    import cv2

    count, labels, statistics, _ = cv2.connectedComponentsWithStats(
        (mask.cpu().numpy() >= 0.5).astype(np.uint8)
    )
    if count == 1:
        return mask
    # Label 0 is the background.
    kept = np.concatenate([[False], select(statistics[1:, cv2.CC_STAT_AREA])])
    dropped = (labels > 0) & ~kept[labels]
    return mask.masked_fill(torch.from_numpy(dropped).to(mask.device), 0)


def _enclosed(mask: Tensor) -> Tensor:
    """Return where a mask [H, W] has holes, as bool [H, W]."""
    import cv2

    # A margin of one pixel joins everything that touches the border to the start of the flood.
    outside = np.pad(_outside(mask), 1, constant_values=1)
    cv2.floodFill(outside, None, (0, 0), 0)
    return torch.from_numpy(outside[1:-1, 1:-1] == 1).to(mask.device)


def _outside(mask: Tensor) -> NDArray[np.uint8]:
    """Return 1 outside the shape of a mask [H, W], 0 inside."""
    return (mask.cpu().numpy() < 0.5).view(np.uint8)
