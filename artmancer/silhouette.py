"""Hints for an insertion: the silhouette of the reference where the mask is, and its shadow.

The silhouette of the reference stands for the object that the checkpoint is to draw. Sizes are in
pixels of the crop.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import mask_ops

MIN_AREA = 100
"""Area of the smallest connected region of the mask that gets a silhouette, in pixels."""

SHADOW_OFFSET = (5, 3)
"""Pixels down and to the right from an object to its shadow."""

SHADOW_OPACITY = 0.4
"""Share of the light that the darkest part of a shadow takes."""

SHADOW_BLUR = 21
"""Side of the Gaussian kernel that softens a shadow, in pixels."""

DILATION = 3
"""Pixels that the silhouette and its shadow are dilated by: an ellipse of 7 x 7."""


class _Placed(NamedTuple):
    """A silhouette in one region of the mask.

    Attributes
    ----------
    top, left : its corner
    shape : bool [h, w], of the size of the region's bounding box
    """

    top: int
    left: int
    shape: NDArray[np.bool_]


def silhouette_mask(mask: Tensor, reference_mask: Tensor) -> Tensor:
    """Draw the silhouette of the reference in each region of the mask, joined with its shadow and
    dilated.

    The silhouette is stretched to the bounding box of the region, by nearest neighbor. A mask
    without a region of MIN_AREA stays as it is.

    Parameters
    ----------
    mask : [H, W], 1 = edit here
    reference_mask : [h, w], 1 = the object

    Returns
    -------
    [H, W], 0 or 1
    """
    shape = np.zeros(mask.shape, np.bool_)
    for top, left, silhouette in _place(mask, reference_mask):
        for down, right in ((0, 0), SHADOW_OFFSET):
            _join(shape, silhouette, top + down, left + right)
    if not shape.any():
        return mask
    return mask_ops.dilate_ellipse(torch.from_numpy(shape).to(mask).unsqueeze(0), DILATION)[0]


def shadow_strength(mask: Tensor, reference_mask: Tensor) -> Tensor:
    """Draw the shadows of the silhouettes: how much of the light they take.

    A shadow is the silhouette, moved by SHADOW_OFFSET and blurred. It is strongest at the bottom
    row of the region's bounding box, where the object stands on the ground, and fades linearly to
    nothing at the top row. Where shadows meet, the stronger one counts.

    Parameters
    ----------
    mask, reference_mask : see silhouette_mask

    Returns
    -------
    [H, W] in 0..SHADOW_OPACITY
    """
    import cv2

    down, right = SHADOW_OFFSET
    reach = SHADOW_BLUR // 2
    strength = np.zeros(mask.shape, np.float32)
    for top, left, silhouette in _place(mask, reference_mask):
        height, width = silhouette.shape
        first_row = max(0, top + down - reach)
        first_column = max(0, left + right - reach)
        window = strength[
            first_row : top + down + height + reach, first_column : left + right + width + reach
        ]
        moved = np.zeros(window.shape, np.bool_)
        _join(moved, silhouette, top + down - first_row, left + right - first_column)
        blurred = cv2.GaussianBlur(
            moved.astype(np.float32), (SHADOW_BLUR, SHADOW_BLUR), 0, borderType=cv2.BORDER_CONSTANT
        )
        rows = np.arange(first_row, first_row + len(window), dtype=np.float32) - top
        # A region of one row stands on the ground.
        nearness = np.clip(rows / (height - 1), 0, 1) if height > 1 else np.ones_like(rows)
        np.maximum(window, blurred * nearness[:, None] * np.float32(SHADOW_OPACITY), out=window)
    return torch.from_numpy(strength)


def _place(mask: Tensor, reference_mask: Tensor) -> Iterator[_Placed]:
    """Yield the silhouette of the reference for each region of the mask."""
    import cv2

    solid = (reference_mask >= 0.5).numpy()
    if not solid.any():
        solid = (reference_mask > 0).numpy()
    rows, columns = solid.any(1).nonzero()[0], solid.any(0).nonzero()[0]
    solid = solid[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    regions = (mask >= 0.5).numpy().astype(np.uint8)
    _, _, statistics, _ = cv2.connectedComponentsWithStats(regions)
    # Label 0 is the background.
    for left, top, width, height, area in statistics[1:].tolist():
        if area >= MIN_AREA:
            from_rows = np.arange(height) * len(solid) // height
            from_columns = np.arange(width) * solid.shape[1] // width
            yield _Placed(top, left, solid[from_rows][:, from_columns])


def _join(target: NDArray[np.bool_], shape: NDArray[np.bool_], top: int, left: int) -> None:
    """Set a plane where a shape is that is placed at this corner; what lies outside is cut off."""
    inside = target[top : top + shape.shape[0], left : left + shape.shape[1]]
    inside |= shape[: inside.shape[0], : inside.shape[1]]
