"""Choose the mask of the object that was clicked among the masks of everything in an image."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MIN_OVERLAP = 0.5
"""Smallest overlap, as a share of the mask or of the brush, that counts as a match."""

_BIT_COUNTS = np.array([value.bit_count() for value in range(256)], np.uint8)
"""Number of bits that are set in each value of a byte."""


@dataclass(frozen=True)
class Selection:
    """The object that the clicks select, as FastSAM and GrabCut return it.

    Attributes
    ----------
    mask : MASK [1, H, W]
    score : quality of the fit, 0..1
    count : number of candidates
    """

    mask: Tensor
    score: float
    count: int


@dataclass(frozen=True)
class Choice:
    """A candidate for the clicked object.

    Attributes
    ----------
    masks : indices of the masks that form the object together
    score : quality of the fit, 0..1
    """

    masks: tuple[int, ...]
    score: float


@dataclass(frozen=True)
class Masks:
    """The masks of everything in an image, with the values that each choice needs; made by `pack`.

    Attributes
    ----------
    size : (height, width)
    bits : uint8 [N, h * w / 8], eight pixels to a byte
    scores : [N], the model's confidence in each mask, 0..1
    areas : [N], in pixels
    extents : [N, 4], the bounding boxes: left, top, right, bottom
    prominence : [N], likelihood that each mask is the main object, 0..1
    """

    size: tuple[int, int]
    bits: NDArray[np.uint8]
    scores: Tensor
    areas: Tensor
    extents: Tensor
    prominence: Tensor


def pack(masks: Tensor, scores: Tensor) -> Masks:
    """Pack masks, and compute the values that each choice needs.

    Parameters
    ----------
    masks : bool [N, h, w]; none of them is empty
    scores : [N], 0..1
    """
    areas = masks.flatten(1).sum(1)
    return Masks(
        (masks.shape[1], masks.shape[2]),
        np.packbits(masks.flatten(1).numpy(), axis=1),
        scores,
        areas,
        _extents(masks),
        _prominence(masks, areas, scores),
    )


def choose(
    masks: Masks,
    positive: Tensor,
    negative: Tensor,
    box: tuple[float, float, float, float] | None = None,
    brush: NDArray[np.bool_] | None = None,
) -> list[Choice]:
    """Return the candidates for the clicked object, the likeliest first; empty where no mask fits.

    With a brush, or else a box: the masks that overlap it most, and hold all positive points and no
    negative point. With points alone: the masks that hold all positive points and no negative
    point, the smallest first; points on different parts join the masks of these parts. Without any
    of these: the most prominent masks, which are large, central and of a high score.

    Parameters
    ----------
    positive, negative : bool [P, N], which masks hold each point
    box : (left, top, right, bottom) in pixels of the masks
    brush : bool [h, w], of the masks' size
    """
    fits = ~negative.any(0)
    if brush is not None:
        overlap = _brush_overlap(masks, brush)
    elif box is not None:
        overlap = _box_overlap(masks, box)
    elif len(positive):
        return _under_points(masks, positive & fits)
    else:
        return _ranked(fits, masks.prominence)
    return _ranked(fits & positive.all(0) & (overlap > 0), overlap)


def _ranked(fits: Tensor, scores: Tensor) -> list[Choice]:
    """Return each mask that fits as a choice, in the order of these scores, the highest first."""
    order = scores.argsort(descending=True, stable=True)
    order = order[fits[order]]
    return [
        Choice((index,), score)
        for index, score in zip(order.tolist(), scores[order].tolist(), strict=True)
    ]


def _under_points(masks: Masks, holds: Tensor) -> list[Choice]:
    """Return the masks that hold all points, and the smallest masks under each point, joined; by
    area, the smallest first.

    Parameters
    ----------
    holds : bool [P, N], which masks hold each point and no negative point
    """
    areas, scores = masks.areas, masks.scores
    candidates: dict[tuple[int, ...], tuple[int, float]] = {}
    for index in holds.all(0).nonzero().flatten().tolist():
        candidates[(index,)] = (int(areas[index]), float(scores[index]))
    if holds.any(1).all():
        # The object may have parts that no single mask holds.
        smallest = torch.where(holds, areas, areas.max() + 1).argmin(1)
        parts = tuple(sorted(set(smallest.tolist())))
        joined = np.bitwise_or.reduce(masks.bits[list(parts)])
        area = int(_BIT_COUNTS[joined].sum())
        candidates[parts] = (area, float(scores[list(parts)].min()))
    by_area = sorted((area, parts, score) for parts, (area, score) in candidates.items())
    return [Choice(parts, score) for _, parts, score in by_area]


def _brush_overlap(masks: Masks, brush: NDArray[np.bool_]) -> Tensor:
    """Return the intersection over union of each mask with the brush; 0 where the overlap is below
    MIN_OVERLAP of both.
    """
    common, painted = _common_area(masks, brush), int(brush.sum())
    matches = (common >= MIN_OVERLAP * painted) | (common >= MIN_OVERLAP * masks.areas)
    return torch.where(matches, common / (masks.areas + painted - common), 0.0)


def _box_overlap(masks: Masks, box: tuple[float, float, float, float]) -> Tensor:
    """Return the intersection over union of each mask's bounding box with the box; 0 where less
    than MIN_OVERLAP of the mask lies in the box.
    """
    left, top, right, bottom = box
    x0, y0, x1, y1 = masks.extents.unbind(1)
    width = (x1.clamp(max=right) - x0.clamp(min=left)).clamp(min=0)
    height = (y1.clamp(max=bottom) - y0.clamp(min=top)).clamp(min=0)
    union = (x1 - x0) * (y1 - y0) + (right - left) * (bottom - top) - width * height
    inside = np.zeros(masks.size, np.bool_)
    inside[math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)] = True
    matches = _common_area(masks, inside) >= MIN_OVERLAP * masks.areas
    return torch.where(matches, width * height / union, 0.0)


def _common_area(masks: Masks, region: NDArray[np.bool_]) -> Tensor:
    """Return the number of pixels that each mask has in common with a bool [h, w]."""
    common = masks.bits & np.packbits(region)
    return torch.from_numpy(_BIT_COUNTS.take(common).sum(1, dtype=np.int64))


def _extents(masks: Tensor) -> Tensor:
    """Return the bounding boxes [N, 4] of the masks: left, top, right, bottom."""
    rows, columns = masks.any(2), masks.any(1)
    height, width = masks.shape[1:]
    sides = [
        _first_true(columns),
        _first_true(rows),
        width - _first_true(columns.flip(1)),
        height - _first_true(rows.flip(1)),
    ]
    return torch.stack(sides, 1)


def _first_true(rows: Tensor) -> Tensor:
    """Return the index of the first true value in each row of a bool [N, n], as float."""
    return rows.float().argmax(1).float()


def _prominence(masks: Tensor, areas: Tensor, scores: Tensor) -> Tensor:
    """Return the likelihood that each mask is the main object: high where the score is high and the
    mask central, large and not cut off by the image's border.
    """
    height, width = masks.shape[1:]
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    # From 1 in the middle of the image to exp(-2) in the middle of each side.
    centrality = torch.exp(-2 * (x.square() + y.square()))
    central = masks.flatten(1).float() @ centrality.flatten() / areas
    sides = [masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]]
    on_border = torch.cat(sides, 1).float().mean(1)
    prominence: Tensor = (
        scores * central * (areas / (height * width)).sqrt() * (1 - on_border).square()
    )
    return prominence
