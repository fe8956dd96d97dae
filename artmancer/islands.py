"""Split a mask into parts that are edited one after another, each in a crop of its own.

Islands of the mask that lie apart keep the photo's resolution that way, where one crop around all
of them would be scaled down. A long thin mask, such as a power line, is cut along its length.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from .checks import NEAR_BLACK
from .region import MIN_MARGIN, Region, Window, bounds

_CELL = 16
"""Side, in pixels, of the cells in which islands are searched. Islands that are nearer than this
would be joined anyway: there are MIN_MARGIN pixels around each.
"""

MAX_PARTS = 16
"""Most parts of a mask; of more islands, the nearest are joined."""

_THIN = 20
"""Smallest ratio of length to width of a mask that is cut along its length."""

Place = Callable[[Window], Region]
"""The region of a crop around a bounding box of the mask, without fades."""


class Part(NamedTuple):
    """A part of a mask.

    Attributes
    ----------
    mask : MASK [B or 1, H, W], 0 outside the part
    box : bounding box that the crop is made around; None: the mask's, or each mask's of a batch
    """

    mask: Tensor
    box: Window | None = None


def split(mask: Tensor, place: Place, regions: str, *, cut: bool) -> list[Part]:
    """Split a mask into parts, the largest first.

    Islands whose boxes overlap stay one part. Each pixel of the mask is in exactly one part, or
    lies where pieces of a thin mask overlap.

    Parameters
    ----------
    mask : MASK [B or 1, H, W]; a batch is split at the same places in all its images
    place : the box of a crop; it may be larger than the window, and reach past the image
    regions : one of options.REGIONS. "auto": islands stay one part unless their boxes cover fewer
        pixels of the photo than one box around all
    cut : cut long thin masks into pieces, in the order in which they lie
    """
    whole = [Part(mask)]
    if regions == "together" or not bool((mask > NEAR_BLACK).any()):
        return whole
    cells = _cells(mask)
    islands, windows = _islands(cells, place)
    boxes = [place(window).box_size for window in windows]
    around = windows[0]
    for window in windows[1:]:
        around = around.join(window)
    if regions == "auto" and sum(map(_area, boxes)) >= _area(place(around).box_size):
        parts = whole
    else:
        parts = [_part(mask, islands == label, window) for label, window in enumerate(windows, 1)]
        parts.sort(key=lambda part: -int((part.box or around).view(part.mask[0]).count_nonzero()))
    if cut:
        parts = [piece for part in parts for piece in _pieces(part, place)]
    return parts


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _cells(mask: Tensor) -> NDArray[np.bool_]:
    """Return the cells [h, w] with a pixel of the mask in any image."""
    plane = mask.amax(0) if len(mask) > 1 else mask[0]
    pooled = functional.max_pool2d(plane[None], _CELL, ceil_mode=True)[0]
    return (pooled > NEAR_BLACK).numpy()


def _islands(cells: NDArray[np.bool_], place: Place) -> tuple[NDArray[Any], list[Window]]:
    """Return the labels [h, w] of the islands by cell, 0 for none, and the window of each island
    in pixels. Islands whose boxes overlap are joined, then at most MAX_PARTS are kept apart.
    """
    import cv2

    _, labels, statistics, _ = cv2.connectedComponentsWithStats(cells.astype(np.uint8))
    # Label 0 is the background.
    windows = [
        Window(top, left, top + height, left + width)
        for left, top, width, height, _ in statistics[1:].tolist()
    ]
    reach = 0
    while len(windows) > 1:
        canvas = np.zeros(cells.shape, np.uint8)
        for window in windows:
            box = place(_pixels(window)).box_in_image(0)
            top, left = (max(0, side // _CELL - reach) for side in box[:2])
            bottom, right = (-(-side // _CELL) + reach for side in box[2:])
            canvas[top:bottom, left:right] = 1
        count, joined = cv2.connectedComponents(canvas)
        if count - 1 == len(windows):
            if count - 1 <= MAX_PARTS:
                break
            reach = 2 * reach + 1
            continue
        labels = np.where(cells, joined, 0)
        groups: dict[int, Window] = {}
        for window in windows:
            label = int(joined[window.top, window.left])
            groups[label] = groups.get(label, window).join(window)
        windows = [groups[label] for label in range(1, count)]
    return labels, [_pixels(window) for window in windows]


def _pixels(cells: Window) -> Window:
    """Return the pixels of a window of cells."""
    return Window(*(side * _CELL for side in cells))


def _part(mask: Tensor, cells: NDArray[Any], window: Window) -> Part:
    """Return the part of a mask in these cells, which lie in a window of pixels."""
    window = window.clip(Window(0, 0, *mask.shape[1:]))
    inside = torch.from_numpy(
        cells[window.top // _CELL : -(-window.bottom // _CELL), :].repeat(_CELL, 0)
    )[: window.bottom - window.top]
    inside = inside[:, window.left // _CELL : -(-window.right // _CELL)]
    inside = inside.repeat_interleave(_CELL, 1)[:, : window.right - window.left]
    # Zeros that are not written to take no memory.
    part = torch.zeros_like(mask)
    for plane, source in zip(part, mask, strict=True):
        window.view(plane).copy_(window.view(source) * inside)
    if len(mask) > 1:
        return Part(part)
    box = bounds(window.view(part[0]), above=NEAR_BLACK).shift(window.top, window.left)
    return Part(part, box)


def _pieces(part: Part, place: Place) -> list[Part]:
    """Cut a part along its length, where it is thin and its crop would be scaled down otherwise."""
    if len(part.mask) > 1:
        return [part]
    box = part.box or bounds(part.mask[0], above=NEAR_BLACK)
    longest = max(box.bottom - box.top, box.right - box.left)
    if place(box).scale >= 1 or not _is_thin(box.view(part.mask[0]), longest):
        return [part]
    length = max(_native_length(place, longest), -(-longest // MAX_PARTS))
    pieces: list[Part] = []
    rest = part.mask[0].clone()
    while bool((box.view(rest) > NEAR_BLACK).any()):
        core = _first(rest, bounds(rest, above=NEAR_BLACK), length)
        crop = place(core).box_in_image(0)
        mask = torch.zeros_like(part.mask)
        crop.view(mask[0]).copy_(crop.view(rest))
        pieces.append(Part(mask, core))
        # At the border of its crop a piece has no surroundings: the next piece edits it again.
        _inner(crop, rest).view(rest).fill_(0)
        core.view(rest).fill_(0)
    return pieces


def _is_thin(mask: Tensor, longest: int) -> bool:
    """Tell whether the widest place of a mask [h, w] is narrow for its length in pixels."""
    import cv2

    shape = np.pad((mask > NEAR_BLACK).numpy().astype(np.uint8), 1)
    return float(cv2.distanceTransform(shape, cv2.DIST_L2, 3).max()) * 2 * _THIN <= longest


def _native_length(place: Place, longest: int) -> int:
    """Return the length of the longest piece whose crop keeps the photo's resolution."""
    low, high = 1, longest
    while low < high:
        middle = (low + high + 1) // 2
        if place(Window(0, 0, middle, middle)).scale >= 1:
            low = middle
        else:
            high = middle - 1
    return low


def _first(mask: Tensor, box: Window, length: int) -> Window:
    """Return the bounding box of the first part of a mask [H, W] of at most this length, from the
    end where its bounding box starts.
    """
    for _ in range(2):
        height, width = box.bottom - box.top, box.right - box.left
        if height >= width:
            box = box._replace(bottom=min(box.bottom, box.top + length))
        else:
            box = box._replace(right=min(box.right, box.left + length))
        box = bounds(box.view(mask), above=NEAR_BLACK).shift(box.top, box.left)
    return box


def _inner(box: Window, image: Tensor) -> Window:
    """Return a box without its margin, but at the border of the image [H, W]."""
    height, width = image.shape
    return Window(
        box.top + MIN_MARGIN * (box.top > 0),
        box.left + MIN_MARGIN * (box.left > 0),
        box.bottom - MIN_MARGIN * (box.bottom < height),
        box.right - MIN_MARGIN * (box.right < width),
    )
