"""Smart Mask without weights: GrabCut (Rother, Kolmogorov and Blake, 2004), from OpenCV."""

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..cache import Cache, digest
from ..errors import ArtMancerError
from . import edge
from .choose import Selection
from .clicks import Clicks, check_clicks, shrink_brush

PHOTO_SIDE = 1024
"""Longest side, in pixels, of the copy of a photo that is kept for the next click."""

SEARCHED_RADII = ((160, (0.07, 0.14, 0.28, 0.55)), (224, (0.2, 0.4)))
"""Views in which objects are searched around points: the longest side of each, in pixels; and for
each object that is searched there, the radius around a point within which a pixel is probably
object, as a share of the view's diagonal. In the larger view GrabCut smooths less, and takes twice
as long: it is searched only where there is no object in the smaller.
"""

CUT_SIDE = 320
"""Longest side, in pixels, of the view in which one object is cut out."""

SEARCHED_SHARES = (1.0, 0.25)
"""Sides of the views that are searched around points, as shares of the photo's sides. The next is
searched only where there is no object in the last.
"""

MAX_CANDIDATES = 3
"""Largest number of candidates."""

SIZE_RATIO = 1.5
"""Smallest ratio of the areas of two candidates: another candidate is an object of another size."""

EDGE_STEP = 8.0
"""Smallest change of color from a pixel to the next that is an edge, as a distance in CIELAB."""

BAND = 2.0
"""Distance from an object's edge within which the second cut may move it, in pixels of the view in
which the object was found.
"""

MARGIN = 0.5
"""Width of the view around an object or a box, as a share of its longer side."""

ITERATIONS = 1
"""Iterations of GrabCut. More change the masks of points little, and take as long again each."""

BORDER = 0.1
"""Width of the border around the object, as a share of the image's shorter side. Without clicks it
is the image's own border, which is surely background; around a brush, it is probably background.
"""

POINT_RADIUS = 0.01
"""Largest radius of the disc that a point stands for, as a share of the longer side."""

MIN_PART_AREA = 0.1
"""Smallest area of a part that is kept without points, as a share of the largest part's area."""

MIN_GROWTH = 0.5
"""Smallest area of an object beyond the discs of its points, as a share of one disc's area; with
less, only the points themselves were found.
"""

SPECK_SHARE = 0.006
"""Share of the view below which an object's size lowers its score, down to half: what small shapes
have on all of their rim is often the edge of a highlight or a spot.
"""

FULL_SHARE = 0.2
"""Share of the box, or of the first guess without one, from which an object's size does not lower
its score.
"""

_PHOTOS_BYTES = 32 * 2**20
"""Size of the cache of photos, in bytes: ten and more."""

_ANSWERS_BYTES = 32 * 2**20
"""Size of the cache of answers, in bytes: about 40 clicks."""

_MODEL_SIZE = 65
"""Numbers in one of OpenCV's color models: 5 Gaussians with 13 numbers each."""

_Points = tuple[tuple[float, float], ...]
"""Points (x, y) in pixels of the image."""

_Box = tuple[int, int, int, int]
"""A part of the image: left, top, right, bottom in pixels."""


@dataclass(frozen=True)
class _View:
    """A part of the image, scaled down.

    Attributes
    ----------
    box : the part of the image
    pixels : uint8 [h, w, 3]
    """

    box: _Box
    pixels: NDArray[np.uint8]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels of the view."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def ratio(self) -> float:
        """Pixels of the view per pixel of the image."""
        left, top, right, bottom = self.box
        return max(self.size) / max(right - left, bottom - top)

    def places(self, points: _Points) -> list[tuple[int, int]]:
        """Return the (row, column) in the view of points of the image; a point beside the view is
        at its border.
        """
        left, top, right, bottom = self.box
        height, width = self.size
        rows = [int((y - top) * height / (bottom - top)) for _, y in points]
        columns = [int((x - left) * width / (right - left)) for x, _ in points]
        return [
            (min(max(row, 0), height - 1), min(max(column, 0), width - 1))
            for row, column in zip(rows, columns, strict=True)
        ]


@dataclass(frozen=True)
class _Answer:
    """An object that was found: its shape in a view, [h, w], 0 or 1, and its score."""

    view: _View
    shape: NDArray[np.uint8]
    score: float

    @property
    def nbytes(self) -> int:
        return self.shape.nbytes + self.view.pixels.nbytes


@dataclass(eq=False)
class GrabCut:
    """A selector that cuts the object out by its colors. It is used like FastSAM.

    Attributes
    ----------
    photos : copies of the latest photos, scaled down
    answers : what was found for the latest clicks
    """

    photos: Cache = field(default_factory=lambda: Cache(_PHOTOS_BYTES))
    answers: Cache = field(default_factory=lambda: Cache(_ANSWERS_BYTES))

    name = "draft"

    def select(self, image: Tensor, clicks: Clicks, candidate: int = 0) -> Selection:
        """Return the clicked object; for the parameters and errors see FastSAM.select.

        The score is the share of the object's rim that lies on an edge in the image; less where the
        object is small beside the box, or a speck in the image. The candidates for points
        differ in size. With a box, a brush or no clicks there is one candidate.
        """
        check_clicks(clicks, image)
        photo_key = digest(image)
        photo = self.photos.get(photo_key, lambda: _shrink(image))
        brush_key = None if clicks.brush is None else digest(clicks.brush)
        key = (photo_key, clicks.positive, clicks.negative, clicks.box, brush_key)
        whole = (0, 0, image.shape[2], image.shape[1])
        found = self.answers.get(key, lambda: _find(photo, whole, clicks))
        if not found:
            raise _no_object()
        answer = found[candidate % len(found)]
        if _has_only_points(clicks):
            answer = self.answers.get(
                (*key, candidate % len(found)), lambda: _refine(photo, whole, clicks, answer)
            )
        mask = _draw(image, clicks, answer)
        # The object may be thinner than a pixel of the image.
        if not mask.any():
            raise _no_object()
        return Selection(torch.from_numpy(mask)[None].float(), answer.score, len(found))


def _no_object() -> ArtMancerError:
    return ArtMancerError(
        "object_not_found",
        "The draft model finds no object there. "
        "Click on the object's middle, add a point, or drag a box around it.",
    )


def _has_only_points(clicks: Clicks) -> bool:
    return bool(clicks.positive) and clicks.box is None and clicks.brush is None


def _find(photo: NDArray[np.uint8], whole: _Box, clicks: Clicks) -> tuple[_Answer, ...]:
    """Return the candidates, the likeliest first; empty where there is no object.

    Parameters
    ----------
    photo : the image scaled down
    whole : the box of the whole image
    """
    if _has_only_points(clicks):
        for share in SEARCHED_SHARES:
            box = _around(clicks, whole, share)
            for side, radii in SEARCHED_RADII:
                found = _search(_view(photo, whole, box, side), radii, clicks)
                if found:
                    return found
        return ()
    view = _view(photo, whole, _room(clicks, whole), CUT_SIDE)
    labels = _labels(view, clicks)
    room = int(_is_object(labels).sum())
    shape = _cut(view, labels, clicks)
    if not shape.any() or (clicks.brush is None and _is_dots(view, shape, clicks)):
        return ()
    fill = min(1.0, float(shape.sum()) / (FULL_SHARE * room))
    return (_Answer(view, shape, _edge_share(view, shape) * fill),)


def _search(view: _View, radii: tuple[float, ...], clicks: Clicks) -> tuple[_Answer, ...]:
    """Return the objects that hold the points, of different sizes, the likeliest first: those in
    the fewest parts, then those of the highest score. A shape without an edge anywhere on its rim
    is no object.

    Parameters
    ----------
    radii : as in SEARCHED_RADII
    """

    def search(radius: float) -> _Answer:
        shape = _cut(view, _labels(view, clicks, radius), clicks)
        if _is_dots(view, shape, clicks):
            return _Answer(view, shape, 0.0)
        size = min(1.0, float(shape.mean()) / SPECK_SHARE)
        return _Answer(view, shape, _edge_share(view, shape) * (1 + size) / 2)

    # OpenCV cuts one mask on one core.
    with ThreadPoolExecutor(len(radii)) as pool:
        answers = [answer for answer in pool.map(search, radii) if answer.score]
    kept: list[_Answer] = []
    for answer in sorted(answers, key=lambda answer: (_part_count(answer.shape), -answer.score)):
        ratios = [float(answer.shape.mean() / other.shape.mean()) for other in kept]
        if all(max(ratio, 1 / ratio) >= SIZE_RATIO for ratio in ratios):
            kept.append(answer)
    return tuple(kept[:MAX_CANDIDATES])


def _refine(photo: NDArray[np.uint8], whole: _Box, clicks: Clicks, answer: _Answer) -> _Answer:
    """Cut an object out again in a band around its edge, in a view of its surroundings: with more
    pixels, and with the colors of its surroundings alone.
    """
    import cv2

    left, top, right, bottom = answer.view.box
    rows, columns = answer.shape.any(1).nonzero()[0], answer.shape.any(0).nonzero()[0]
    scale_y = (bottom - top) / answer.shape.shape[0]
    scale_x = (right - left) / answer.shape.shape[1]
    extent = (
        left + columns[0] * scale_x,
        top + rows[0] * scale_y,
        left + (columns[-1] + 1) * scale_x,
        top + (rows[-1] + 1) * scale_y,
    )
    view = _view(photo, whole, _widen(extent, (), whole), CUT_SIDE)
    height, width = view.size
    x0, y0, x1, y1 = view.box
    # From the center of a pixel of the view to its place in the shape.
    step_x, step_y = (x1 - x0) / width / scale_x, (y1 - y0) / height / scale_y
    matrix = np.array(
        [
            [step_x, 0, (x0 - left) / scale_x + step_x / 2 - 0.5],
            [0, step_y, (y0 - top) / scale_y + step_y / 2 - 0.5],
        ]
    )
    inside = cv2.warpAffine(
        answer.shape.astype(np.float32),
        matrix,
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    guess = (inside > 0.5).astype(np.uint8)
    reach = max(1, round(BAND / step_x))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    labels = np.where(guess, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[cv2.erode(guess, disc) > 0] = cv2.GC_FGD
    labels[cv2.dilate(guess, disc) == 0] = cv2.GC_BGD
    _label_points(labels, view, clicks)
    return _Answer(view, _cut(view, labels, clicks), answer.score)


def _cut(view: _View, labels: NDArray[np.uint8], clicks: Clicks) -> NDArray[np.uint8]:
    """Return the shape of the object, [h, w], 0 or 1, from the labels that GrabCut starts from."""
    import cv2

    inside = _is_object(labels)
    if inside.any() and not inside.all():
        background, foreground = np.zeros((1, _MODEL_SIZE)), np.zeros((1, _MODEL_SIZE))
        # OpenCV draws the first centers of its clusters from a random generator of the thread.
        cv2.setRNGSeed(0)
        cv2.grabCut(
            view.pixels,
            labels,
            (0, 0, 1, 1),
            background,
            foreground,
            ITERATIONS,
            cv2.GC_INIT_WITH_MASK,
        )
        inside = _is_object(labels)
    return _keep_parts(inside.astype(np.uint8), view.places(clicks.positive))


def _is_object(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Tell which labels are surely or probably object."""
    import cv2

    return np.asarray((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD))


def _shrink(image: Tensor) -> NDArray[np.uint8]:
    """Return an IMAGE [1, H, W, 3] as RGB of at most PHOTO_SIDE."""
    import cv2

    pixels = image[0].cpu().float().numpy()
    small = cv2.resize(pixels, _fit(pixels.shape[:2], PHOTO_SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray((small.clip(0, 1) * 255).round(), np.uint8)


def _fit(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return the (width, height) of a (height, width) that is scaled down to this longest side."""
    height, width = size
    ratio = min(1.0, side / max(height, width))
    # GrabCut needs two pixels.
    return max(2, round(width * ratio)), max(2, round(height * ratio))


def _view(
    photo: NDArray[np.uint8], whole: _Box, box: tuple[float, float, float, float], side: int
) -> _View:
    """Return a view of this box, of at most this longest side."""
    import cv2

    height, width = photo.shape[:2]
    scale_x, scale_y = width / whole[2], height / whole[3]
    left, top = math.floor(box[0] * scale_x), math.floor(box[1] * scale_y)
    right, bottom = math.ceil(box[2] * scale_x), math.ceil(box[3] * scale_y)
    # Two pixels and more, inside the photo.
    left, top = max(0, min(left, width - 2)), max(0, min(top, height - 2))
    right, bottom = min(width, max(right, left + 2)), min(height, max(bottom, top + 2))
    part = photo[top:bottom, left:right]
    pixels = cv2.resize(part, _fit(part.shape[:2], side), interpolation=cv2.INTER_AREA)
    return _View(
        (
            round(left / scale_x),
            round(top / scale_y),
            max(round(right / scale_x), 1),
            max(round(bottom / scale_y), 1),
        ),
        np.asarray(pixels, np.uint8),
    )


def _around(clicks: Clicks, whole: _Box, share: float) -> tuple[float, float, float, float]:
    """Return a box around all points, with this share of the image's sides around their box."""
    x, y = zip(*clicks.positive, *clicks.negative, strict=True)
    reach_x, reach_y = share * whole[2] / 2, share * whole[3] / 2
    if share == 1:
        return whole
    return min(x) - reach_x, min(y) - reach_y, max(x) + reach_x, max(y) + reach_y


def _room(clicks: Clicks, whole: _Box) -> tuple[float, float, float, float]:
    """Return the box with a margin around it, and all points; the whole image without a box, or
    with a brush, which may be a stroke on a large object.
    """
    if clicks.box is None or clicks.brush is not None:
        return whole
    return _widen(clicks.box, (*clicks.positive, *clicks.negative), whole)


def _widen(
    box: tuple[float, float, float, float], points: Iterable[tuple[float, float]], whole: _Box
) -> tuple[float, float, float, float]:
    """Return a box with a margin, and with all points, inside the image."""
    left, top, right, bottom = box
    margin = MARGIN * max(right - left, bottom - top) + 1
    points = list(points)
    x, y = [x for x, _ in points], [y for _, y in points]
    return (
        max(0, min([left - margin, *x])),
        max(0, min([top - margin, *y])),
        min(whole[2], max([right + margin, *(value + 1 for value in x)])),
        min(whole[3], max([bottom + margin, *(value + 1 for value in y)])),
    )


def _draw(image: Tensor, clicks: Clicks, answer: _Answer) -> NDArray[np.uint8]:
    """Draw an object at the image's size, [H, W], 0 or 1; a point keeps its label."""
    height, width = image.shape[1:3]
    left, top, right, bottom = answer.view.box
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = edge.draw(
        answer.shape,
        answer.view.pixels.astype(np.float32) / np.float32(255),
        image[0, top:bottom, left:right].cpu().float().numpy(),
    )
    for points, value in ((clicks.negative, 0), (clicks.positive, 1)):
        for x, y in points:
            mask[int(y), int(x)] = value
    return mask


def _labels(view: _View, clicks: Clicks, radius: float = 0) -> NDArray[np.uint8]:
    """Return the labels [h, w] that GrabCut starts from: each pixel is surely or probably object,
    or surely or probably background.

    Parameters
    ----------
    radius : radius around a point within which a pixel is probably object, as a share of the view's
        diagonal; for points alone
    """
    import cv2

    height, width = view.size
    labels = np.full((height, width), cv2.GC_BGD, np.uint8)
    border = max(1, round(BORDER * min(height, width)))
    if clicks.brush is not None:
        _label_brush(labels, shrink_brush(clicks.brush, (height, width)), border)
    elif clicks.box is not None:
        left, top, right, bottom = clicks.box
        (first_row, first_column), (last_row, last_column) = view.places(
            ((left, top), (right - 1, bottom - 1))
        )
        labels[first_row : last_row + 1, first_column : last_column + 1] = cv2.GC_PR_FGD
    elif clicks.positive:
        pixels = max(2, round(radius * math.hypot(width, height)))
        labels[:] = cv2.GC_PR_BGD
        # The outermost pixels are surely background, unless a disc below covers them.
        labels[[0, -1], :] = cv2.GC_BGD
        labels[:, [0, -1]] = cv2.GC_BGD
        for row, column in view.places(clicks.positive):
            cv2.circle(labels, (column, row), pixels, cv2.GC_PR_FGD, -1)
    else:
        labels[border : height - border, border : width - border] = cv2.GC_PR_FGD
    _label_points(labels, view, clicks)
    return labels


def _label_brush(labels: NDArray[np.uint8], brush: NDArray[np.bool_], border: int) -> None:
    """Label the brush as the object, its rim as probably the object, and a border around it as
    probably background.
    """
    import cv2

    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * border + 1, 2 * border + 1))
    # Every second row and column of a disc is a disc of half the radius.
    half_disc = disc[::2, ::2]
    core = cv2.erode(brush.astype(np.uint8), half_disc) > 0
    labels[cv2.dilate(brush.astype(np.uint8), disc) > 0] = cv2.GC_PR_BGD
    labels[brush] = cv2.GC_PR_FGD
    # A thin stroke has no core: all of it is surely on the object.
    labels[core if core.any() else brush] = cv2.GC_FGD


def _label_points(labels: NDArray[np.uint8], view: _View, clicks: Clicks) -> None:
    """Label a disc around each point as surely the object or surely background."""
    import cv2

    kinds = (
        (clicks.negative, clicks.positive, cv2.GC_BGD),
        (clicks.positive, clicks.negative, cv2.GC_FGD),
    )
    for points, opposites, label in kinds:
        for point, (row, column) in zip(points, view.places(points), strict=True):
            # A disc ends halfway to the nearest point of the other kind.
            radius = min(
                (math.dist(point, opposite) * view.ratio / 2 for opposite in opposites),
                default=_disc_radius(view),
            )
            cv2.circle(labels, (column, row), min(_disc_radius(view), int(radius)), label, -1)
    # The discs may overlap: a point itself keeps its label.
    for points, _, label in kinds:
        for place in view.places(points):
            labels[place] = label


def _disc_radius(view: _View) -> int:
    """Return the largest radius of the disc that a point stands for, in pixels of the view."""
    return max(1, round(POINT_RADIUS * max(view.size)))


def _keep_parts(shape: NDArray[np.uint8], places: list[tuple[int, int]]) -> NDArray[np.uint8]:
    """Return the connected parts under these places; without places, the parts that are not small
    beside the largest part.
    """
    import cv2

    count, parts, statistics, _ = cv2.connectedComponentsWithStats(shape)
    if places:
        kept = [parts[place] for place in places if parts[place]]
    else:
        areas = statistics[:, cv2.CC_STAT_AREA]
        min_area = MIN_PART_AREA * areas[1:].max() if count > 1 else 0
        kept = [part for part in range(1, count) if areas[part] >= min_area]
    return np.isin(parts, kept).astype(np.uint8)


def _part_count(shape: NDArray[np.uint8]) -> int:
    """Return the number of a shape's connected parts."""
    import cv2

    return cv2.connectedComponents(shape)[0] - 1


def _is_dots(view: _View, shape: NDArray[np.uint8], clicks: Clicks) -> bool:
    """Tell whether a shape is little more than the discs of the points on the object."""
    import cv2

    if not clicks.positive:
        return False
    radius = _disc_radius(view)
    beyond = shape.copy()
    for row, column in view.places(clicks.positive):
        cv2.circle(beyond, (column, row), radius + 1, 0, -1)
    return bool(beyond.sum() < MIN_GROWTH * math.pi * radius**2)


def _edge_share(view: _View, shape: NDArray[np.uint8]) -> float:
    """Return the share of the shape's rim, inside the image, that lies on an edge."""
    import cv2

    square = np.ones((3, 3), np.uint8)
    rim = cv2.morphologyEx(shape, cv2.MORPH_GRADIENT, square) > 0
    if not rim.any():
        return 0.0
    lab = cv2.cvtColor(view.pixels.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB)
    smooth = cv2.GaussianBlur(lab, (0, 0), 0.7)
    # An eighth of Sobel's sums is the change of color from a pixel to the next.
    across, down = (cv2.Sobel(smooth, cv2.CV_32F, *axes) / 8 for axes in ((1, 0), (0, 1)))
    change = np.sqrt(np.square(across).sum(-1) + np.square(down).sum(-1))
    return float((cv2.dilate(change, square)[rim] > EDGE_STEP).mean())
