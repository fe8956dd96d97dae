"""What an edit changed just outside its mask, such as a shadow or a reflection, which stitching
would cut off.
"""

import numpy as np
import torch
from torch import Tensor

from . import mask_ops

_LEAST = 6 / 255  # a smaller change is none that is seen
_NOISE = 5.0  # times the usual difference outside: what a VAE does to every pixel is no change
_SPECK = 0.002  # of the crop's area


def spill(edited: Tensor, before: Tensor, feathered: Tensor) -> Tensor:
    """Find what an edit changed around its mask.

    The difference is averaged over a few pixels, and held against what is usual outside the mask:
    in brightness, and in the channel where it is largest. What is above, large enough, and touches
    the mask's fade, counts.

    Parameters
    ----------
    edited, before : IMAGE [B, h, w, 3], the crop after the edit, its colours fitted, and before
    feathered : MASK [B, h, w], > 0 where the edit shows

    Returns
    -------
    MASK [B, h, w], 0 or 1
    """
    import cv2

    found = torch.zeros_like(feathered)
    for new, old, shown, out in zip(edited, before, feathered, found, strict=True):
        outside = shown == 0
        if outside.float().mean() < 0.05:
            continue
        smooth = cv2.GaussianBlur((new - old).numpy(), (0, 0), 2.5)
        changed = np.zeros(shown.shape, np.uint8)
        for difference in (np.abs(smooth.mean(-1)), np.abs(smooth).max(-1)):
            usual = float(np.median(difference[outside.numpy()]))
            changed |= difference > max(_LEAST, _NOISE * usual)
        changed = cv2.morphologyEx(changed, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)).astype(bool)
        rim = (mask_ops.distance((~outside).float()) <= 3).numpy()
        _, parts = cv2.connectedComponents((changed & outside.numpy()).astype(np.uint8))
        kept = np.isin(parts, np.setdiff1d(np.unique(parts[rim]), [0]))
        if kept.mean() >= _SPECK:
            out.copy_(torch.from_numpy(kept.astype(np.float32)))
    return found
