"""Split a mask into parts that are edited one after another, each in a crop of its own.

Islands of the mask that lie apart keep the photo's resolution that way, where one crop around all
of them would be scaled down. A long thin mask, such as a power line, is cut along its length.

Words of this module:
- island: a connected part of the mask, and all others near it
- piece: what a long thin island is cut into
- part: an island, a piece, or the whole mask: what is edited by itself
- cell: a square of the mask in which islands are searched
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

_GAP = 4
"""Cells of the widest gap in a mask that is cut: scattered specks are no line."""

_ENLARGED = 1.1
"""Largest scale of the crop of a piece; of a smaller piece, the crop shows more of the photo."""

_SPECK = 0.01
"""Smallest island that an object is inserted into, as a share of the largest; with a smaller one
"auto" inserts one object.
"""

Place = Callable[[Window], Region]
"""The region of a crop around a bounding box of the mask, without fades."""


class Part(NamedTuple):
    """A part of a mask.

    Attributes
    ----------
    mask : MASK [B or 1, h, w] of the window, 0 outside the part
    window : the part of the image outside which nothing is masked
    box : box that the crop is made around; None: the mask's bounding box, or each mask's of a batch
    """

    mask: Tensor
    window: Window
    box: Window | None = None


def split(mask: Tensor, place: Place, regions: str, *, inserts: bool) -> list[Part]:
    """Split a mask into at most MAX_PARTS parts: the largest island first, its pieces in the order
    in which they lie.

    Islands whose boxes overlap stay one part. Each pixel of the mask is in exactly one part, or
    lies where pieces of a thin mask overlap.

    Parameters
    ----------
    mask : MASK [B or 1, H, W]; a batch is split at the same places in all its images
    place : the box of a crop; it may be larger than the window, and reach past the image
    regions : one of options.REGIONS. "auto": islands stay one part unless their boxes cover fewer
        pixels of the photo than one box around all
    inserts : an object is inserted into each part: no mask is cut into pieces
    """
    parts = [Part(mask, Window(0, 0, *mask.shape[1:]))]
    if regions == "together":
        return parts
    cells = _cells(mask)
    if not cells.any():
        return parts
    labels, windows = _islands(cells, place)
    if regions == "apart" or _pay(windows, place):
        parts = _island_parts(mask, labels, windows, regions == "auto" and inserts) or parts
    if inserts:
        return parts
    for index in reversed(range(len(parts))):
        pieces = _pieces(parts[index], place)
        if len(parts) + len(pieces) - 1 <= MAX_PARTS:
            parts[index : index + 1] = pieces
    return parts


def _pay(windows: list[Window], place: Place) -> bool:
    """Return whether the boxes of these windows cover fewer pixels than one box around all."""
    around = windows[0]
    for window in windows[1:]:
        around = around.join(window)
    return sum(_area(place(window)) for window in windows) < _area(place(around))


def _area(region: Region) -> int:
    return region.box_size[0] * region.box_size[1]


def _island_parts(
    mask: Tensor, labels: NDArray[Any], windows: list[Window], refuse_specks: bool
) -> list[Part]:
    """Return the part of each island, the largest first; none where one of them is a speck and
    specks are refused.
    """
    parts = [_part(mask, labels == label, window) for label, window in enumerate(windows, 1)]
    parts.sort(key=lambda part: -_pixel_count(part))
    if refuse_specks and _pixel_count(parts[-1]) < _SPECK * _pixel_count(parts[0]):
        return []
    return parts


def _pixel_count(part: Part) -> int:
    return int(part.mask.count_nonzero())


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
    part = window.cut(mask) * inside
    if len(mask) > 1:
        return Part(part, window)
    return Part(part, window, bounds(part[0], above=NEAR_BLACK).shift(window.top, window.left))


def _pieces(part: Part, place: Place) -> list[Part]:
    """Cut a part along its length, where it is thin and its crop would be scaled down otherwise. A
    batch is cut at the same places in all its images.
    """
    top, left, _, _ = part.window
    union = part.mask.amax(0) if len(part.mask) > 1 else part.mask[0]
    box = bounds(union, above=NEAR_BLACK)
    longest = max(box.bottom - box.top, box.right - box.left)
    around = place(box.shift(top, left))
    if around.scale >= 1 or not _is_thin(box.view(union), longest):
        return [part]
    length = max(_native_length(place, longest), -(-longest // MAX_PARTS))
    pieces: list[Part] = []
    rest = union.clone()
    while bool((rest > NEAR_BLACK).any()):
        core = _first(rest, bounds(rest, above=NEAR_BLACK), length)
        wider = _not_enlarged(core.shift(top, left), length, place)
        crop = place(wider).box_in_image(0)
        window = crop.clip(part.window)
        inside = window.shift(-top, -left)
        pieces.append(Part(inside.cut(part.mask) * (inside.view(rest) > 0), window, wider))
        # At the border of its crop a piece has no surroundings: the next piece edits it again.
        inner = _inner(crop, around.image_size).clip(part.window)
        inner.shift(-top, -left).view(rest).fill_(0)
        core.view(rest).fill_(0)
    return pieces


def _not_enlarged(core: Window, length: int, place: Place) -> Window:
    """Return a window that holds the core of a piece, and whose crop is not enlarged: it reaches
    back along the mask, or it is a square, for a crop of a certain area.

    Parameters
    ----------
    length : the longest side of the core of the other pieces
    """
    if place(core).scale <= _ENLARGED:
        return core
    if core.bottom - core.top >= core.right - core.left:
        core = core._replace(top=min(core.top, core.bottom - length))
    else:
        core = core._replace(left=min(core.left, core.right - length))
    if place(core).scale <= _ENLARGED:
        return core
    height, width = core.bottom - core.top, core.right - core.left
    down, right = max(0, length - height) // 2, max(0, length - width) // 2
    return Window(core.top - down, core.left - right, core.bottom + down, core.right + right)


def _is_thin(mask: Tensor, longest: int) -> bool:
    """Tell whether a mask [h, w] hangs together, and its widest place is narrow for its length in
    pixels.
    """
    import cv2

    shape = np.pad((mask > NEAR_BLACK).numpy().astype(np.uint8), 1)
    if float(cv2.distanceTransform(shape, cv2.DIST_L2, 3).max()) * 2 * _THIN > longest:
        return False
    cells = functional.max_pool2d(mask[None], _GAP * _CELL, ceil_mode=True)[0] > NEAR_BLACK
    count, _ = cv2.connectedComponents(cells.numpy().astype(np.uint8))
    return count == 2


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


def _inner(box: Window, image_size: tuple[int, int]) -> Window:
    """Return a box without its margin, but at the border of the image."""
    height, width = image_size
    return Window(
        box.top + MIN_MARGIN * (box.top > 0),
        box.left + MIN_MARGIN * (box.left > 0),
        box.bottom - MIN_MARGIN * (box.bottom < height),
        box.right - MIN_MARGIN * (box.right < width),
    )
