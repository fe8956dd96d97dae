"""Draw the mask of a small image at the size of the photo, with the edge where the photo has it."""

import numpy as np
from numpy.typing import NDArray

from .. import mask_ops

RADIUS = 3
"""Radius of the guided filter that draws the edge, in pixels of the small image."""

FLAT_VARIANCE = 1e-3
"""Variance of the colors, in 0..1, below which a window of the guided filter is flat: it has no
edge.
"""

_TILE = 16
"""Side, in pixels of the small image, of the tiles that are drawn anew where they hold an edge."""


def draw(
    shape: NDArray[np.uint8], small: NDArray[np.float32], large: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Upsample a mask by a guided filter (He and Sun, 2015), near its edge only: the cost follows
    the length of the edge, not the size of the photo.

    Parameters
    ----------
    shape : [h, w], 0 or 1
    small : the image, [h, w, 3] in 0..1
    large : the image, [H, W, 3]; values beyond 0..1 count as 0 or 1

    Returns
    -------
    [H, W], 0 or 1
    """
    import cv2

    height, width = shape.shape
    large_height, large_width = large.shape[:2]
    smooth = cv2.medianBlur(shape, 3)
    reach = np.ones((4 * RADIUS + 3, 4 * RADIUS + 3), np.uint8)
    # Farther from the edge, all windows that hold a pixel are of one value.
    near = cv2.morphologyEx(smooth, cv2.MORPH_GRADIENT, reach) > 0
    planes = mask_ops.guided_planes(smooth.astype(np.float32), small, near, RADIUS, FLAT_VARIANCE)
    result = cv2.resize(smooth, (large_width, large_height), interpolation=cv2.INTER_NEAREST)
    scale_x, scale_y = width / large_width, height / large_height
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            bottom, right = min(top + _TILE, height), min(left + _TILE, width)
            if not near[top:bottom, left:right].any():
                continue
            rows = slice(round(top / scale_y), round(bottom / scale_y))
            columns = slice(round(left / scale_x), round(right / scale_x))
            pixels = large[rows, columns]
            if not pixels.size:
                continue
            # From the center of a pixel of the tile to its place among the small image's pixels.
            matrix = np.array(
                [
                    [scale_x, 0, (columns.start + 0.5) * scale_x - 0.5],
                    [0, scale_y, (rows.start + 0.5) * scale_y - 0.5],
                ]
            )
            values = cv2.warpAffine(
                planes,
                matrix,
                (pixels.shape[1], pixels.shape[0]),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REPLICATE,
            )
            soft = np.einsum("ijk,ijk->ij", values[..., :3], pixels.clip(0, 1)) + values[..., 3]
            result[rows, columns] = cv2.medianBlur((soft > 0.5).astype(np.uint8), 3)
    return np.asarray(result, np.uint8)
