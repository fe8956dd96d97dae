"""Fill the hole of a picture from what surrounds it.

PatchMatch (Barnes, Shechtman, Finkelstein and Goldman, SIGGRAPH 2009) through the library pypatchmatch. Where that has
no wheel: OpenCV's inpainting after Telea (2004), which smears.
"""

import logging
from concurrent.futures import ThreadPoolExecutor, wait
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import ArtMancerError
from .images import to_uint8
from .masks import refine
from .progress import Progress

logger = logging.getLogger(__name__)

_PATCH_RADIUS = 4
_MIN_REACH = 32
_POLL_SECONDS = 0.1

# The libraries cannot be interrupted, their caller has to be: so they work in a thread, and a fill that was cancelled
# runs out there. There is one thread, because pypatchmatch keeps one seed for the whole process.
_worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="artmancer-fill")


def method() -> str:
    """What fills here: "patchmatch" or "telea"."""
    return "patchmatch" if find_spec("patchmatch") else "telea"


def fill(image: Tensor, mask: Tensor, seed: int, progress: Progress) -> Tensor:
    """Replace what the mask covers by patches from nearby.

    Parameters
    ----------
    image : IMAGE [B, h, w, 3]
    mask : MASK [B, h, w]; what is above 0 is replaced
    seed : of the first picture; the same seed gives the same fill
    progress : told how many pictures of the batch are done

    Returns
    -------
    IMAGE [B, h, w, 3]; where the mask is 0, equal to `image`.

    Raises
    ------
    ArtMancerError : invalid_request where the mask leaves nothing to fill from
    """
    filled = image.clone()
    for index, (one, hole) in enumerate(zip(filled, mask > 0, strict=True)):
        if hole.all():
            raise ArtMancerError(
                "invalid_request",
                "The mask covers the whole picture, so there is nothing to fill from. Leave some of it unmasked.",
            )
        job = _worker.submit(_fill, to_uint8(one).numpy(), hole.numpy(), seed + index)
        try:
            while not job.done():
                progress(index, len(image), "filling")
                wait([job], timeout=_POLL_SECONDS)
        finally:
            job.cancel()
        one[hole] = torch.from_numpy(job.result())[hole].to(torch.float32).div_(255)
    return filled


def _fill(image: NDArray[np.uint8], hole: NDArray[np.bool_], seed: int) -> NDArray[np.uint8]:
    import cv2

    if method() == "telea":
        logger.warning("pypatchmatch has no wheel for this Python: OpenCV fills the hole, and smears.")
        return np.asarray(cv2.inpaint(image, hole.astype(np.uint8), 3, cv2.INPAINT_TELEA), dtype=np.uint8)
    import patchmatch

    # Patches come from a band around the hole as wide as the hole is deep, so that no face lands on a wall.
    depth = cv2.distanceTransform(np.pad(hole, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE).max()
    far = refine.distance(torch.from_numpy(hole).float()).numpy() > max(_MIN_REACH, depth)
    patchmatch.set_random_seed(seed % 2**32)
    return np.asarray(patchmatch.inpaint(image, hole, global_mask=far, patch_size=_PATCH_RADIUS), dtype=np.uint8)
