"""Fill the hole of an image from its surroundings.

The methods are *lama*, the network LaMa, see lama.py; *patchmatch*, PatchMatch (Barnes,
Shechtman, Finkelstein and Goldman, SIGGRAPH 2009) from the library pypatchmatch; *telea*, OpenCV's
inpainting after Telea (2004), which smears; and *auto*, the first of these that is installed.
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
from .folders import LAMA_FILE, LAMA_FOLDERS
from .images import to_uint8
from .lama import Lama
from .progress import Progress
from .tone import ToneCurve, value_range

logger = logging.getLogger(__name__)

METHODS = ("auto", "lama", "patchmatch", "telea")
"""Methods to choose from."""

_TITLES = {"patchmatch": "PatchMatch", "telea": "OpenCV"}
"""Names of the methods without weights, for messages."""

_PATCH_RADIUS = 4
"""Radius of the patches that are compared, in pixels."""

_MIN_REACH = 32
"""Least width of the band around the hole that patches come from, in pixels."""

_POLL_SECONDS = 0.1
"""Seconds between two calls of the progress while PatchMatch runs."""

_TELEA_RADIUS = 3
"""Radius of Telea's neighborhood, in pixels."""

_WHOLE_LEVEL = 0.01
"""Largest distance from a level of an 8-bit image that is rounding."""

_STEP_BLURS = (24, 24, 12, 6, 6, 3, 3, 1.5)
"""Standard deviations, in pixels, of the Gaussians that smooth the steps of 8 bits one after the
other: a step of a soft gradient is tens of pixels wide.
"""

_BOX_MARGIN = 48
"""Pixels around the hole that smooth its steps."""


def method() -> str:
    """Return the method that fills on this machine without weights: "patchmatch" or "telea"."""
    # Where pypatchmatch finds no compiler it is installed without its native part.
    works = find_spec("patchmatch") and importlib.import_module("patchmatch").patchmatch_available
    return "patchmatch" if works else "telea"


def choose(wanted: str, lama_installed: bool) -> tuple[str, str]:
    """Choose the method to fill with.

    Parameters
    ----------
    wanted : one of METHODS
    lama_installed : whether LaMa's file is there

    Returns
    -------
    "lama", "patchmatch" or "telea", and a sentence for the report; empty where it is as wanted

    Raises
    ------
    ArtMancerError : invalid_request
    """
    if wanted not in METHODS:
        raise ArtMancerError(
            "invalid_request",
            f"The method is '{wanted}'; expected one of {', '.join(METHODS)}.",
        )
    if wanted in ("auto", "lama") and lama_installed:
        return "lama", ""
    if wanted == "telea":
        return wanted, ""
    chosen = method()
    notes = []
    if wanted == "lama":
        notes.append(
            f"LaMa is not installed, so {_TITLES[chosen]} filled the hole: there is no "
            f"{LAMA_FILE} in {' or '.join(f'models/{folder}' for folder in LAMA_FOLDERS)}. "
            "Download it with `artmancer models fetch big-lama`."
        )
    if chosen == "telea":
        notes.append(
            "pypatchmatch is not installed, or has no wheel for this Python: OpenCV filled the "
            "hole, which smears."
        )
    return chosen, " ".join(notes)


def fill(
    image: Tensor,
    mask: Tensor,
    seed: int,
    progress: Progress,
    *,
    method: str = "auto",
    lama: Lama | None = None,
) -> Tensor:
    """Replace the masked area by content that continues its surroundings.

    Parameters
    ----------
    image : IMAGE [B, h, w, 3]; values above 1 are filled too, through a tone curve
    mask : MASK [B, h, w]; everything above 0 is replaced
    seed : seed of the first image; the same seed gives the same fill
    progress : called many times for each image; raising in it ends the fill at once
    method : one of METHODS; see `choose` for the method in the place of one that is not installed
    lama : the loaded LaMa; None where it is not installed

    Returns
    -------
    IMAGE [B, h, w, 3]; where the mask is 0, equal to `image` bit for bit

    Raises
    ------
    ArtMancerError : invalid_request where the mask covers the whole image, or for an unknown
        method; what Lama.fill raises
    """
    chosen, note = choose(method, lama is not None)
    if note:
        logger.warning(note)
    filled = image.clone()
    for index, (plane, hole) in enumerate(zip(filled, mask > 0, strict=True)):
        if not hole.any():
            continue
        if hole.all():
            raise ArtMancerError(
                "invalid_request",
                "The mask covers the whole image, so there is nothing to fill from. Leave some "
                "of it unmasked.",
            )
        curve = ToneCurve(*value_range(plane[~hole]))
        if lama is not None and chosen == "lama":
            content = lama.fill(curve.encode(plane), hole, seed + index, progress)
            plane[hole] = curve.decode(content[hole])
            continue

        def check(done: int = index) -> None:
            progress(done, len(image), "filling")

        check()
        fill_hole = _patchmatch if chosen == "patchmatch" else _telea
        curved = curve.encode(plane)
        result = fill_hole(to_uint8(curved).numpy(), hole.numpy(), seed + index, check)
        content = torch.from_numpy(result).to(torch.float32).div_(255)
        if not _has_8_bits(curved[~hole]):
            content = _without_steps(content, curved, hole)
        plane[hole] = curve.decode(content[hole])
    return filled


def _has_8_bits(values: Tensor) -> bool:
    """Return whether all values are whole levels of an 8-bit image."""
    levels = values * 255
    return bool((levels - levels.round()).abs().max() < _WHOLE_LEVEL)


def _without_steps(content: Tensor, image: Tensor, hole: Tensor) -> Tensor:
    """Undo the rounding of a fill to 8 bits: return the smoothest values that round to the same
    levels (projections onto convex sets, as Zakhor 1992 did for JPEG).

    Parameters
    ----------
    content : [h, w, 3], the filled image, in steps of 1/255
    image : [h, w, 3], the image with the hole, in 0..1
    hole : bool [h, w]
    """
    import cv2

    smooth = torch.where(hole.unsqueeze(-1), content, image)
    # Only a box around the hole is worked on.
    ends = [(places.amin(), places.amax() + 1) for places in hole.nonzero().unbind(1)]
    box = tuple(
        slice(max(0, int(start) - _BOX_MARGIN), int(end) + _BOX_MARGIN) for start, end in ends
    )
    inner, inside = smooth[box], hole[box]
    low, high = (content[box] + step / 255 for step in (-0.5, 0.5))
    for deviation in _STEP_BLURS:
        blurred = torch.from_numpy(cv2.GaussianBlur(inner.numpy(), (0, 0), deviation))
        inner[inside] = torch.clamp(blurred, low, high)[inside]
    return smooth


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

    result = cv2.inpaint(image, hole.astype(np.uint8), _TELEA_RADIUS, cv2.INPAINT_TELEA)
    return np.asarray(result, dtype=np.uint8)
