"""Refine the mask of a selected object with BiRefNet (Zheng et al., 2024, "Bilateral Reference for
High-Resolution Dichotomous Image Segmentation"), which draws fine edges but takes no clicks.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .. import mask_ops

MARGIN = 0.15
"""Width of what BiRefNet sees around the object, as a share of the longer side of its box."""

MIN_MARGIN = 16
"""Smallest width of what BiRefNet sees around the object, in pixels."""

REACH = 0.03
"""Distance from the found mask within which BiRefNet may add to it, as a share of the longer side
of the object's box. Beyond it lies another object. Of an object that touches, a strip of this width
can be added.
"""

MIN_REACH = 4
"""Smallest such distance, in pixels: half of a soft edge."""

MIN_AGREEMENT = 0.5
"""Smallest intersection over union of the two masks; below it, BiRefNet sees another object."""


def refine(image: Tensor, mask: Tensor, subject: Callable[[Tensor], Tensor]) -> Tensor | None:
    """Refine the mask of an object; None where BiRefNet does not see this object.

    BiRefNet gets the part of the image around the object, so that it is the subject there.

    Parameters
    ----------
    image : IMAGE [1, H, W, 3]
    mask : MASK [1, H, W] of the object, as FastSAM or GrabCut found it
    subject : returns BiRefNet's MASK [1, h, w] of an IMAGE [1, h, w, 3]

    Returns
    -------
    MASK [1, H, W] with soft edges
    """
    found = mask > 0.5
    if not found.any():
        return None
    height, width = found.shape[1:]
    rows, columns = found[0].any(1).nonzero(), found[0].any(0).nonzero()
    top, bottom = int(rows.min()), int(rows.max()) + 1
    left, right = int(columns.min()), int(columns.max()) + 1
    side = max(bottom - top, right - left)
    margin = max(MIN_MARGIN, round(MARGIN * side))
    window = (
        slice(None),
        slice(max(0, top - margin), min(height, bottom + margin)),
        slice(max(0, left - margin), min(width, right + margin)),
    )
    near = mask_ops.grow(found[window].float(), max(MIN_REACH, round(REACH * side)))
    refined = torch.where(near > 0, subject(image[window]), 0.0)
    found_shape, refined_shape = found[window], refined > 0.5
    common, union = found_shape & refined_shape, found_shape | refined_shape
    if int(common.sum()) < MIN_AGREEMENT * int(union.sum()):
        return None
    result = torch.zeros_like(mask)
    result[window] = refined
    return result
