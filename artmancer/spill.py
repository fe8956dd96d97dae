"""The changes of an edit just outside its mask, such as a shadow or a reflection, which stitching
would cut off.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import mask_ops

_MIN_OUTSIDE = 0.05
"""Smallest share of the crop that must lie outside the feathered mask; with less, the usual
difference is not known, and nothing counts as spill.
"""

_BLUR = 2.5
"""Standard deviation, in pixels of the crop, of the Gaussian that averages the difference."""

_MIN_CHANGE = 6 / 255
"""Smallest difference that is visible, as a share of the range of values."""

_NOISE_FACTOR = 5.0
"""Multiple of the usual difference up to which a difference is noise: a VAE changes every pixel a
little.
"""

_OPENING = 3
"""Side of the square, in pixels of the crop, that removes thinner changes (morphological opening).
"""

_MAX_GAP = 3.0
"""Largest distance, in pixels of the crop, between the feathered mask and a change that touches it.
"""

_MIN_AREA = 0.002
"""Smallest spill, as a share of the crop's area."""


def spill(edited: Tensor, before: Tensor, feathered: Tensor) -> Tensor:
    """Find the changes of an edit around its mask.

    The difference between the edit and the crop is averaged over a few pixels. It is compared with
    the usual (median) difference outside the mask: once in brightness, and once in the channel
    where it is largest. A change counts where it is well above the usual difference, large enough,
    and touches the feathered mask.

    Parameters
    ----------
    edited, before : IMAGE [B, h, w, 3], the crop after the edit, its colors matched, and before
    feathered : MASK [B, h, w], above 0 where the edit shows

    Returns
    -------
    MASK [B, h, w], 0 or 1
    """
    result = torch.zeros_like(feathered)
    for new, old, alpha, plane in zip(edited, before, feathered, result, strict=True):
        outside = alpha == 0
        if outside.float().mean() < _MIN_OUTSIDE:
            continue
        parts = _touching_parts(_changed(new, old, outside), outside)
        if parts.mean() >= _MIN_AREA:
            plane.copy_(torch.from_numpy(parts.astype(np.float32)))
    return result


def _changed(new: Tensor, old: Tensor, outside: Tensor) -> NDArray[np.bool_]:
    """Return where two images [h, w, 3] differ by more than noise, bool [h, w]."""
    import cv2

    smooth = cv2.GaussianBlur((new - old).numpy(), (0, 0), _BLUR)
    brightness = np.abs(smooth.mean(-1))
    largest_channel = np.abs(smooth).max(-1)
    changed = np.zeros(outside.shape, np.uint8)
    for difference in (brightness, largest_channel):
        usual = float(np.median(difference[outside.numpy()]))
        changed |= difference > max(_MIN_CHANGE, _NOISE_FACTOR * usual)
    square = np.ones((_OPENING, _OPENING), np.uint8)
    return cv2.morphologyEx(changed, cv2.MORPH_OPEN, square).astype(bool)


def _touching_parts(changed: NDArray[np.bool_], outside: Tensor) -> NDArray[np.bool_]:
    """Return the connected parts of the changes outside that touch the inside, bool [h, w]."""
    import cv2

    rim = (mask_ops.distance((~outside).float()) <= _MAX_GAP).numpy()
    _, labels = cv2.connectedComponents((changed & outside.numpy()).astype(np.uint8))
    # Label 0 is the background.
    touching = np.setdiff1d(np.unique(labels[rim]), [0])
    return np.isin(labels, touching)
