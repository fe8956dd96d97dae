"""Smart Mask without weights: GrabCut (Rother, Kolmogorov and Blake, 2004), from OpenCV."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import mask_ops
from ..errors import ArtMancerError
from ..images import to_uint8
from .choose import Selection
from .clicks import Clicks, check_clicks, shrink

SIDE = 400
"""The picture is cut at this size; its edge is then drawn anew at full size,
by the colours there.
"""
WINDOW, FAINT = 3, 1e-3
"""For that: how far it is looked around in pixels of the small picture, and the variance that is
too faint for an edge.
"""
REACHES = (0.2, 0.1, 0.4)
"""How far around the points the object may reach, as a share of the picture's diagonal: the
candidates, in order.
"""
ROUNDS = 5


class GrabCut:
    """Cuts the object out by its colours; the same prompts and the same answer as FastSAM."""

    name = "draft"

    def select(self, image: Tensor, clicks: Clicks, candidate: int = 0) -> Selection:
        """The object that is meant; for the parameters and errors see FastSAM.select.

        The score says how much of the object's rim lies on an edge of the picture's colours.
        """
        import cv2

        check_clicks(clicks, image)
        height, width = image.shape[1:3]
        ratio = min(1.0, SIDE / max(height, width))
        size = max(2, round(width * ratio)), max(2, round(height * ratio))
        picture = to_uint8(image[0]).numpy()
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
        count = (
            len(REACHES) if clicks.positive and clicks.box is None and clicks.brush is None else 1
        )
        labels = _labels(clicks, size, ratio, REACHES[candidate % count])
        if not ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).any():
            raise _nothing()
        if not ((labels == cv2.GC_BGD) | (labels == cv2.GC_PR_BGD)).any():
            return Selection(torch.ones(1, height, width), 0.0, count)
        background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
        # OpenCV draws its clusters' first centres from a generator of the whole process.
        cv2.setRNGSeed(0)
        cv2.grabCut(
            small, labels, (0, 0, 1, 1), background, foreground, ROUNDS, cv2.GC_INIT_WITH_MASK
        )
        shape = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
        shape = _under(shape, clicks, ratio)
        even = cv2.medianBlur(shape, 3).astype(np.float32)
        soft = mask_ops.carry(
            even, small.astype(np.float32) / np.float32(255), image[0].numpy(), WINDOW, FAINT
        )
        mask = cv2.medianBlur((soft > 0.5).astype(np.uint8), 3)
        for points, value in ((clicks.negative, 0), (clicks.positive, 1)):
            for x, y in points:
                mask[int(y), int(x)] = value
        if not mask.any():
            raise _nothing()
        return Selection(torch.from_numpy(mask)[None].float(), _on_edges(small, shape), count)


def _labels(clicks: Clicks, size: tuple[int, int], ratio: float, reach: float) -> NDArray[np.uint8]:
    """What is surely and what is probably the object, [h, w] in OpenCV's labels."""
    import cv2

    width, height = size
    labels = np.full((height, width), cv2.GC_BGD, np.uint8)
    inset = max(1, round(0.1 * min(size)))
    if clicks.brush is not None:
        brush = shrink(clicks.brush, (height, width))
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * inset + 1, 2 * inset + 1))
        core = cv2.erode(brush.astype(np.uint8), disc[::2, ::2]) > 0
        labels[cv2.dilate(brush.astype(np.uint8), disc) > 0] = cv2.GC_PR_BGD
        labels[brush] = cv2.GC_PR_FGD
        # Paint is surely on the object, but for its rim.
        labels[core if core.any() else brush] = cv2.GC_FGD
    elif clicks.box is not None:
        left, top, right, bottom = (max(0, round(one * ratio)) for one in clicks.box)
        labels[top : max(bottom, top + 1), left : max(right, left + 1)] = cv2.GC_PR_FGD
    elif clicks.positive:
        radius = max(2, round(reach * float(np.hypot(width, height))))
        labels[:] = cv2.GC_PR_BGD
        labels[[0, -1]] = labels[:, [0, -1]] = cv2.GC_BGD
        for x, y in clicks.positive:
            cv2.circle(labels, (round(x * ratio), round(y * ratio)), radius, cv2.GC_PR_FGD, -1)
    else:
        labels[inset : height - inset, inset : width - inset] = cv2.GC_PR_FGD
    widest = max(1, round(0.01 * max(size)))
    said = (
        (clicks.negative, clicks.positive, cv2.GC_BGD),
        (clicks.positive, clicks.negative, cv2.GC_FGD),
    )
    for points, others, label in said:
        for point, (row, column) in zip(points, _places(points, ratio, size), strict=True):
            # At most half of the way to a point that says the opposite.
            room = min((math.dist(point, other) * ratio / 2 for other in others), default=widest)
            cv2.circle(labels, (column, row), min(widest, int(room)), label, -1)
    for points, _, label in said:
        for place in _places(points, ratio, size):
            labels[place] = label
    return labels


def _places(
    points: tuple[tuple[float, float], ...], ratio: float, size: tuple[int, int]
) -> list[tuple[int, int]]:
    """The row and column of each point in the small picture of (width, height)."""
    return [(min(int(y * ratio), size[1] - 1), min(int(x * ratio), size[0] - 1)) for x, y in points]


def _under(shape: NDArray[np.uint8], clicks: Clicks, ratio: float) -> NDArray[np.uint8]:
    """The connected parts under the positive points;
    without points, all that are not small beside the largest.
    """
    import cv2

    count, parts, statistics, _ = cv2.connectedComponentsWithStats(shape)
    if clicks.positive:
        places = _places(clicks.positive, ratio, shape.shape[::-1])
        kept = [parts[place] for place in places if parts[place]]
    else:
        areas = statistics[:, cv2.CC_STAT_AREA]
        kept = [part for part in range(1, count) if areas[part] >= 0.1 * areas[1:].max()]
    return np.isin(parts, kept).astype(np.uint8)


def _on_edges(small: NDArray[np.uint8], shape: NDArray[np.uint8]) -> float:
    import cv2

    rim = cv2.morphologyEx(shape, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    edges = cv2.dilate(cv2.Canny(small, 50, 150), np.ones((3, 3), np.uint8)) > 0
    return float(edges[rim].mean()) if rim.any() else 0.0


def _nothing() -> ArtMancerError:
    return ArtMancerError(
        "object_not_found",
        "The draft model finds no object there. "
        "Click on its middle, add a point, or drag a box around it.",
    )
