"""Shape a mask: grow it, close its holes, fade it out.

Every function takes and gives a MASK [B, H, W] in 0..1, but for distance and carry. The shape of a
soft mask is where it is at least one half.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


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
    """All of the below in their order: what does not belong goes first, then the edge is shaped,
    then faded.

    Parameters
    ----------
    border, rounding, fading : pixels for `grow`, `smooth`, `feather`; 0 = leave it
    specks : pixels for `drop_specks`
    holes, largest : whether to `fill_holes`, to `keep_largest`
    """
    if largest:
        mask = keep_largest(mask)
    if specks:
        mask = drop_specks(mask, specks)
    if holes:
        mask = fill_holes(mask)
    return feather(grow(smooth(mask, rounding), border), fading)


def grow(mask: Tensor, pixels: int) -> Tensor:
    """Widen the mask by a disc of this radius, or make it narrower where the radius is negative."""
    if pixels == 0:
        return mask
    if pixels < 0:
        return torch.stack([one.masked_fill(distance(1 - one) <= -pixels, 0) for one in mask])
    return torch.stack([one.masked_fill(distance(one) <= pixels, 1) for one in mask])


def fill_holes(mask: Tensor) -> Tensor:
    """Fill what the mask encloses on all sides; the border of the picture encloses nothing."""
    return torch.stack([one.masked_fill(_enclosed(one), 1) for one in mask])


def drop_specks(mask: Tensor, pixels: int) -> Tensor:
    """Drop the parts of less than this many pixels."""
    return torch.stack([_parts(one, lambda areas: areas >= pixels) for one in mask])


def keep_largest(mask: Tensor) -> Tensor:
    """Drop all parts but the largest."""
    return torch.stack([_parts(one, lambda areas: areas == areas.max()) for one in mask])


def smooth(mask: Tensor, pixels: int) -> Tensor:
    """Round off corners and fill notches of about this radius; the edge stays sharp."""
    import cv2

    if pixels == 0:
        return mask
    blurred = [
        cv2.GaussianBlur(one.cpu().numpy(), (0, 0), pixels / 2) for one in (mask >= 0.5).float()
    ]
    return torch.from_numpy(np.stack(blurred) > 0.5).to(mask)


def feather(mask: Tensor, pixels: int) -> Tensor:
    """Fade the mask outwards: it keeps its values, and smoothly reaches 0 at this distance
    from its shape.
    """
    if pixels == 0 or mask.min() >= 1:
        return mask
    faded = torch.empty_like(mask)
    for one, out in zip(mask, faded, strict=True):
        near = distance(one).div_(-pixels).add_(1).clamp_(0, 1)
        smoothstep = near.square().mul_(near.mul_(-2).add_(3))
        torch.maximum(one, smoothstep, out=out)
    return faded


def distance(mask: Tensor) -> Tensor:
    """Distance in pixels from each pixel to the mask's shape.

    Parameters
    ----------
    mask : one mask [H, W]

    Returns
    -------
    [H, W], 0 inside the shape; infinite everywhere if there is none
    """
    import cv2

    outside = _outside(mask)
    if outside.all():
        return torch.full_like(mask, torch.inf)
    return torch.from_numpy(cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)).to(
        mask.device
    )


def carry(
    mask: NDArray[np.float32],
    small: NDArray[np.float32],
    large: NDArray[np.float32],
    reach: int = 1,
    smoothing: float = 1e-5,
) -> NDArray[np.float32]:
    """A mask of a small picture to the large one, by a guided filter (He and Sun, 2015).

    In each window the mask is taken as linear in the colours; the large picture's own colours then
    give its details.

    Parameters
    ----------
    mask : [h, w] in 0..1
    small, large : the picture [h, w, 3] and [H, W, 3], in 0..1
    reach : pixels from a window's middle to its rim;
        an edge that lies wrong by up to half of it is put right
    smoothing : the variance up to which the colours in a window are taken as one, and the mask
        stays as it is there

    Returns
    -------
    [H, W]
    """
    import cv2

    def mean(plane: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(cv2.blur(plane, (2 * reach + 1, 2 * reach + 1)))

    colors, mixed = mean(small), mean(small * mask[..., None])
    spread = np.stack(
        [mean(small * small[..., i : i + 1]) - colors * colors[..., i : i + 1] for i in range(3)],
        -1,
    )
    shared = mixed - colors * mean(mask)[..., None]
    slope = np.linalg.solve(
        spread + np.float32(smoothing) * np.eye(3, dtype=np.float32), shared[..., None]
    )[..., 0]
    offset = mean(mask) - (slope * colors).sum(-1)
    carried = np.asarray(cv2.resize(mean(offset), large.shape[1::-1]), np.float32)
    for channel in range(3):
        carried += (
            np.asarray(cv2.resize(mean(slope[..., channel]), large.shape[1::-1]))
            * large[..., channel]
        )
    return carried.clip(0, 1)


def _parts(mask: Tensor, keeps: Callable[[NDArray[Any]], NDArray[np.bool_]]) -> Tensor:
    """The mask [H, W] without its connected parts whose areas, in pixels, are not to be kept."""
    import cv2

    count, parts, statistics, _ = cv2.connectedComponentsWithStats(
        (mask.cpu().numpy() >= 0.5).astype(np.uint8)
    )
    if count == 1:
        return mask
    kept = np.concatenate([[False], keeps(statistics[1:, cv2.CC_STAT_AREA])])
    dropped = (parts > 0) & ~kept[parts]
    return mask.masked_fill(torch.from_numpy(dropped).to(mask.device), 0)


def _enclosed(mask: Tensor) -> Tensor:
    import cv2

    # One pixel of margin joins all that touches the border to the flood's start.
    outside = np.pad(_outside(mask), 1, constant_values=1)
    cv2.floodFill(outside, None, (0, 0), 0)
    return torch.from_numpy(outside[1:-1, 1:-1] == 1).to(mask.device)


def _outside(mask: Tensor) -> NDArray[np.uint8]:
    return (mask.cpu().numpy() < 0.5).view(np.uint8)
