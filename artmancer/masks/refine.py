"""Shape a mask: grow it, close its holes, fade it out.

Every function takes and gives a MASK [B, H, W] in 0..1. The shape of a soft mask is where it is at least one half.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def grow(mask: Tensor, pixels: int) -> Tensor:
    """Widen the mask by a disc of this radius."""
    if pixels == 0:
        return mask
    return torch.stack([one.masked_fill(distance(one) <= pixels, 1) for one in mask])


def fill_holes(mask: Tensor) -> Tensor:
    """Fill what the mask encloses on all sides; the border of the picture encloses nothing."""
    return torch.stack([one.masked_fill(_enclosed(one), 1) for one in mask])


def feather(mask: Tensor, pixels: int) -> Tensor:
    """Fade the mask outwards: it keeps its values, and smoothly reaches 0 at this distance from its shape."""
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
    return torch.from_numpy(cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)).to(mask.device)


def _enclosed(mask: Tensor) -> Tensor:
    import cv2

    # One pixel of margin joins all that touches the border to the flood's start.
    outside = np.pad(_outside(mask), 1, constant_values=1)
    cv2.floodFill(outside, None, (0, 0), 0)
    return torch.from_numpy(outside[1:-1, 1:-1] == 1).to(mask.device)


def _outside(mask: Tensor) -> NDArray[np.uint8]:
    return (mask.cpu().numpy() < 0.5).view(np.uint8)
