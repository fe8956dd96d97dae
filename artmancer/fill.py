"""Fill the hole of an image from its surroundings.

The method is PatchMatch (Barnes, Shechtman, Finkelstein and Goldman, SIGGRAPH 2009) from the
library pypatchmatch. Where that is not installed, it is OpenCV's inpainting after Telea (2004),
which smears.
"""

import importlib
import logging
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import mask_ops
from .errors import ArtMancerError
from .images import to_uint8
from .progress import Progress

logger = logging.getLogger(__name__)

_PATCH_RADIUS = 4
"""Radius of the patches that are compared, in pixels."""

_MIN_REACH = 32
"""Least width of the band around the hole that patches come from, in pixels."""

_POLL_SECONDS = 0.1
"""Seconds between two calls of the progress while PatchMatch runs."""

_TELEA_RADIUS = 3
"""Radius of Telea's neighborhood, in pixels."""


def method() -> str:
    """Return the method that fills on this machine: "patchmatch" or "telea"."""
    # Where pypatchmatch finds no compiler it is installed without its native part.
    works = find_spec("patchmatch") and importlib.import_module("patchmatch").patchmatch_available
    return "patchmatch" if works else "telea"


def fill(image: Tensor, mask: Tensor, seed: int, progress: Progress) -> Tensor:
    """Replace the masked area by patches from nearby.

    Parameters
    ----------
    image : IMAGE [B, h, w, 3]
    mask : MASK [B, h, w]; everything above 0 is replaced
    seed : seed of the first image; the same seed gives the same fill
    progress : called with the number of images that are done; raising in it ends the fill at once

    Returns
    -------
    IMAGE [B, h, w, 3]; where the mask is 0, equal to `image`

    Raises
    ------
    ArtMancerError : invalid_request where the mask covers the whole image
    """
    filled = image.clone()
    for index, (plane, hole) in enumerate(zip(filled, mask > 0, strict=True)):
        if hole.all():
            raise ArtMancerError(
                "invalid_request",
                "The mask covers the whole image, so there is nothing to fill from. Leave some "
                "of it unmasked.",
            )

        def check(done: int = index) -> None:
            progress(done, len(image), "filling")

        check()
        fill_hole = _patchmatch if method() == "patchmatch" else _telea
        result = fill_hole(to_uint8(plane).numpy(), hole.numpy(), seed + index, check)
        plane[hole] = torch.from_numpy(result)[hole].to(torch.float32).div_(255)
    return filled


def _patchmatch(
    image: NDArray[np.uint8], hole: NDArray[np.bool_], seed: int, check: Callable[[], None]
) -> NDArray[np.uint8]:
    script = Path(__file__).with_name("patchmatch_process.py")
    with TemporaryDirectory() as name:
        source, target, log = (Path(name) / file for file in ("in.npz", "out.npy", "log"))
        np.savez(
            source,
            image=image,
            hole=hole,
            far=_far_pixels(hole),
            seed=seed % 2**32,
            radius=_PATCH_RADIUS,
        )
        # An interrupt may come at any moment, also inside Popen, which then returns no process to
        # kill. It closes the pipe, though, and that ends the process.
        with (
            log.open("wb") as output,
            subprocess.Popen(
                [sys.executable, "-P", str(script), str(source), str(target)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                # Ctrl-C reaches only this process, which then ends the other process.
                start_new_session=True,
            ) as process,
        ):
            try:
                while process.poll() is None:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(_POLL_SECONDS)
                    check()
            finally:
                process.kill()
        if process.returncode:
            raise RuntimeError(f"PatchMatch failed: {log.read_text(errors='replace')}")
        return np.asarray(np.load(target), dtype=np.uint8)


def _far_pixels(hole: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels that no patch may come from: all but a band around the hole, as wide as the
    hole is deep. Patches from far away would put a face on a wall.
    """
    depth = mask_ops.distance(torch.from_numpy(~np.pad(hole, 1)).float()).max()
    distance = mask_ops.distance(torch.from_numpy(hole).float()).numpy()
    return np.asarray(distance > max(_MIN_REACH, float(depth)))


def _telea(
    image: NDArray[np.uint8], hole: NDArray[np.bool_], seed: int, check: Callable[[], None]
) -> NDArray[np.uint8]:
    import cv2

    logger.warning(
        "pypatchmatch is not installed, or has no wheel for this Python: "
        "OpenCV fills the hole, and smears."
    )
    result = cv2.inpaint(image, hole.astype(np.uint8), _TELEA_RADIUS, cv2.INPAINT_TELEA)
    return np.asarray(result, dtype=np.uint8)
