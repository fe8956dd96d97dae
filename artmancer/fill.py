"""Fill the hole of a picture from what surrounds it.

PatchMatch (Barnes, Shechtman, Finkelstein and Goldman, SIGGRAPH 2009) through the library
pypatchmatch. Where that has no wheel: OpenCV's inpainting after Telea (2004), which smears.
"""

import importlib
import io
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

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


def method() -> str:
    """What fills here: "patchmatch" or "telea"."""
    # Where pypatchmatch finds no compiler it installs itself without its native part.
    works = find_spec("patchmatch") and importlib.import_module("patchmatch").patchmatch_available
    return "patchmatch" if works else "telea"


def fill(image: Tensor, mask: Tensor, seed: int, progress: Progress) -> Tensor:
    """Replace what the mask covers by patches from nearby.

    Parameters
    ----------
    image : IMAGE [B, h, w, 3]
    mask : MASK [B, h, w]; what is above 0 is replaced
    seed : of the first picture; the same seed gives the same fill
    progress : told how many pictures of the batch are done; may raise, which ends the fill at once

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
                "The mask covers the whole picture, so there is nothing to fill from. Leave some "
                "of it unmasked.",
            )

        def check(done: int = index) -> None:
            progress(done, len(image), "filling")

        check()
        patched = _patchmatch if method() == "patchmatch" else _telea
        result = patched(to_uint8(one).numpy(), hole.numpy(), seed + index, check)
        one[hole] = torch.from_numpy(result)[hole].to(torch.float32).div_(255)
    return filled


def _patchmatch(
    image: NDArray[np.uint8], hole: NDArray[np.bool_], seed: int, check: Callable[[], None]
) -> NDArray[np.uint8]:
    script = Path(__file__).with_name("patchmatch_process.py")
    with tempfile.TemporaryFile() as given:
        np.savez(
            given, image=image, hole=hole, far=_far(hole), seed=seed % 2**32, radius=_PATCH_RADIUS
        )
        given.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-P", str(script)],
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    try:
        while True:
            try:
                out, said = process.communicate(timeout=_POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                check()
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise RuntimeError(f"PatchMatch failed: {said.decode(errors='replace')}")
    return np.asarray(np.load(io.BytesIO(out)), dtype=np.uint8)


def _far(hole: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What no patch may come from: all but a band around the hole as wide as the hole is deep, lest
    a face lands on a wall."""
    depth = refine.distance(torch.from_numpy(~np.pad(hole, 1)).float()).max()
    return refine.distance(torch.from_numpy(hole).float()).numpy() > max(_MIN_REACH, float(depth))


def _telea(
    image: NDArray[np.uint8], hole: NDArray[np.bool_], seed: int, check: Callable[[], None]
) -> NDArray[np.uint8]:
    import cv2

    logger.warning(
        "pypatchmatch is not there, or has no wheel for this Python: "
        "OpenCV fills the hole, and smears."
    )
    return np.asarray(
        cv2.inpaint(image, hole.astype(np.uint8), 3, cv2.INPAINT_TELEA), dtype=np.uint8
    )
