"""Smart Mask without weights: GrabCut (Rother, Kolmogorov and Blake, 2004), from OpenCV."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import mask_ops
from ..cache import Cache, digest
from ..errors import ArtMancerError
from ..images import to_uint8
from .choose import Selection
from .clicks import Clicks, check_clicks, shrink_brush

WORKING_SIDE = 400
"""Longest side, in pixels, of the small image that GrabCut runs on. The mask's edge is then drawn
again at full size, from the colors there.
"""

GUIDED_FILTER_RADIUS = 3
"""Radius of the guided filter that draws the edge, in pixels of the small image."""

FLAT_VARIANCE = 1e-3
"""Variance of the colors, in 0..1, below which a window of the guided filter is flat: it has no
edge.
"""

OBJECT_RADII = (0.2, 0.1, 0.4)
"""Radii around a point within which a pixel is probably object, as shares of the image's diagonal:
one for each candidate, in order.
"""

ITERATIONS = 5
"""Iterations of GrabCut."""

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

_ANSWERS_BYTES = 64 * 2**20
"""Size of the cache of answers, in bytes: 20 for a photo of 24 megapixels."""

_CANNY_THRESHOLDS = (50, 150)
"""Canny's thresholds, lower and upper, for the edges that the score counts."""

_MODEL_SIZE = 65
"""Numbers in one of OpenCV's color models: 5 Gaussians with 13 numbers each."""

_Points = tuple[tuple[float, float], ...]
"""Points (x, y) in pixels of the image."""


@dataclass(frozen=True)
class _Answer:
    """A mask that was found.

    Attributes
    ----------
    bits : uint8 [H * W / 8], eight pixels to a byte
    score : 0..1
    """

    bits: NDArray[np.uint8]
    score: float

    @property
    def nbytes(self) -> int:
        return self.bits.nbytes


@dataclass(eq=False)
class GrabCut:
    """A selector that cuts the object out by its colors. It is used like FastSAM.

    Attributes
    ----------
    answers : the masks for the latest clicks
    """

    answers: Cache = field(default_factory=lambda: Cache(_ANSWERS_BYTES))

    name = "draft"

    def select(self, image: Tensor, clicks: Clicks, candidate: int = 0) -> Selection:
        """Return the clicked object; for the parameters and errors see FastSAM.select.

        The score is the share of the object's rim that lies on an edge in the image.
        """
        check_clicks(clicks, image)
        only_points = clicks.positive and clicks.box is None and clicks.brush is None
        count = len(OBJECT_RADII) if only_points else 1
        candidate %= count

        def find() -> _Answer:
            mask, score = _find(image, clicks, OBJECT_RADII[candidate])
            return _Answer(np.packbits(mask), score)

        brush = None if clicks.brush is None else digest(clicks.brush)
        points = (clicks.positive, clicks.negative, clicks.box)
        answer = self.answers.get((digest(image), points, brush, candidate), find)
        height, width = image.shape[1:3]
        mask = np.unpackbits(answer.bits, count=height * width).reshape(1, height, width)
        return Selection(torch.from_numpy(mask).float(), answer.score, count)


def _find(image: Tensor, clicks: Clicks, reach: float) -> tuple[NDArray[np.uint8], float]:
    """Return the mask of the object, [H, W], 0 or 1, and its score.

    Parameters
    ----------
    reach : see _labels
    """
    import cv2

    height, width = image.shape[1:3]
    ratio = min(1.0, WORKING_SIDE / max(height, width))
    size = max(2, round(width * ratio)), max(2, round(height * ratio))
    pixels = to_uint8(image[0]).numpy()
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    labels = _labels(clicks, size, ratio, reach)
    if not ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).any():
        raise _no_object()
    if not ((labels == cv2.GC_BGD) | (labels == cv2.GC_PR_BGD)).any():
        return np.ones((height, width), np.uint8), 0.0
    discs = (labels == cv2.GC_FGD).astype(np.uint8)
    background, foreground = np.zeros((1, _MODEL_SIZE)), np.zeros((1, _MODEL_SIZE))
    # OpenCV draws the first centers of its clusters from a random generator that the whole process
    # shares.
    cv2.setRNGSeed(0)
    cv2.grabCut(
        small, labels, (0, 0, 1, 1), background, foreground, ITERATIONS, cv2.GC_INIT_WITH_MASK
    )
    shape = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
    shape = _keep_parts(shape, clicks, ratio)
    if clicks.positive and clicks.brush is None and _is_dots(shape, discs):
        raise _no_object()
    smooth = cv2.medianBlur(shape, 3).astype(np.float32)
    soft = mask_ops.guided_upsample(
        smooth,
        small.astype(np.float32) / np.float32(255),
        image[0].numpy(),
        GUIDED_FILTER_RADIUS,
        FLAT_VARIANCE,
    )
    mask = cv2.medianBlur((soft > 0.5).astype(np.uint8), 3)
    for points, value in ((clicks.negative, 0), (clicks.positive, 1)):
        for x, y in points:
            mask[int(y), int(x)] = value
    if not mask.any():
        raise _no_object()
    return np.asarray(mask, np.uint8), _edge_share(small, shape)


def _labels(clicks: Clicks, size: tuple[int, int], ratio: float, reach: float) -> NDArray[np.uint8]:
    """Return the labels [h, w] that GrabCut starts from: each pixel is surely or probably object,
    or surely or probably background.

    Parameters
    ----------
    size : (width, height) of the small image
    ratio : pixels of the small image per pixel of the image
    reach : radius around a point within which a pixel is probably object, as a share of the
        diagonal
    """
    import cv2

    width, height = size
    labels = np.full((height, width), cv2.GC_BGD, np.uint8)
    border = max(1, round(BORDER * min(size)))
    if clicks.brush is not None:
        _label_brush(labels, shrink_brush(clicks.brush, (height, width)), border)
    elif clicks.box is not None:
        left, top, right, bottom = (max(0, round(edge * ratio)) for edge in clicks.box)
        labels[top : max(bottom, top + 1), left : max(right, left + 1)] = cv2.GC_PR_FGD
    elif clicks.positive:
        radius = max(2, round(reach * float(np.hypot(width, height))))
        labels[:] = cv2.GC_PR_BGD
        # The outermost pixels are surely background, unless a disc below covers them.
        labels[[0, -1], :] = cv2.GC_BGD
        labels[:, [0, -1]] = cv2.GC_BGD
        for x, y in clicks.positive:
            cv2.circle(labels, (round(x * ratio), round(y * ratio)), radius, cv2.GC_PR_FGD, -1)
    else:
        labels[border : height - border, border : width - border] = cv2.GC_PR_FGD
    _label_points(labels, clicks, ratio)
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


def _label_points(labels: NDArray[np.uint8], clicks: Clicks, ratio: float) -> None:
    """Label a disc around each point as surely the object or surely background."""
    import cv2

    size = labels.shape[::-1]
    max_radius = max(1, round(POINT_RADIUS * max(size)))
    kinds = (
        (clicks.negative, clicks.positive, cv2.GC_BGD),
        (clicks.positive, clicks.negative, cv2.GC_FGD),
    )
    for points, opposites, label in kinds:
        for point, (row, column) in zip(points, _places(points, ratio, size), strict=True):
            # A disc ends halfway to the nearest point of the other kind.
            radius = min(
                (math.dist(point, opposite) * ratio / 2 for opposite in opposites),
                default=max_radius,
            )
            cv2.circle(labels, (column, row), min(max_radius, int(radius)), label, -1)
    # The discs may overlap: a point itself keeps its label.
    for points, _, label in kinds:
        for place in _places(points, ratio, size):
            labels[place] = label


def _places(points: _Points, ratio: float, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the (row, column) of each point in the small image of this (width, height)."""
    width, height = size
    return [(min(int(y * ratio), height - 1), min(int(x * ratio), width - 1)) for x, y in points]


def _keep_parts(shape: NDArray[np.uint8], clicks: Clicks, ratio: float) -> NDArray[np.uint8]:
    """Return the connected parts under the positive points; without points, the parts that are not
    small beside the largest part.
    """
    import cv2

    count, parts, statistics, _ = cv2.connectedComponentsWithStats(shape)
    if clicks.positive:
        places = _places(clicks.positive, ratio, shape.shape[::-1])
        kept = [parts[place] for place in places if parts[place]]
    else:
        areas = statistics[:, cv2.CC_STAT_AREA]
        min_area = MIN_PART_AREA * areas[1:].max() if count > 1 else 0
        kept = [part for part in range(1, count) if areas[part] >= min_area]
    return np.isin(parts, kept).astype(np.uint8)


def _is_dots(shape: NDArray[np.uint8], discs: NDArray[np.uint8]) -> bool:
    """Tell whether a shape is little more than the discs of the points, both [h, w], 0 or 1."""
    import cv2

    beyond = shape * (1 - cv2.dilate(discs, np.ones((3, 3), np.uint8)))
    radius = max(1, round(POINT_RADIUS * max(shape.shape)))
    return bool(beyond.sum() < MIN_GROWTH * math.pi * radius**2)


def _edge_share(small: NDArray[np.uint8], shape: NDArray[np.uint8]) -> float:
    """Return the share of the shape's rim that lies on an edge in the small image."""
    import cv2

    rim = cv2.morphologyEx(shape, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    edges = cv2.dilate(cv2.Canny(small, *_CANNY_THRESHOLDS), np.ones((3, 3), np.uint8)) > 0
    return float(edges[rim].mean()) if rim.any() else 0.0


def _no_object() -> ArtMancerError:
    return ArtMancerError(
        "object_not_found",
        "The draft model finds no object there. "
        "Click on the object's middle, add a point, or drag a box around it.",
    )
