"""Choose among the masks of everything in a picture the one a user means."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

COVERED = 0.5
"""Of a mask or of the brush: less in common is no match."""

_ONES = np.array([value.bit_count() for value in range(256)], np.uint8)
"""How many bits of a byte are set."""


@dataclass(frozen=True)
class Selection:
    """The object that a prompt selects, as FastSAM and GrabCut return it.

    Attributes
    ----------
    mask : MASK [1, H, W]
    score : how well it fits, 0..1
    count : number of candidates
    """

    mask: Tensor
    score: float
    count: int


@dataclass(frozen=True)
class Choice:
    """One answer: the masks that make it up together, and how well it fits, 0..1."""

    masks: tuple[int, ...]
    score: float


@dataclass(frozen=True)
class Masks:
    """The masks of everything in a picture, and what each click would otherwise have to find anew;
    see pack.

    size : (height, width)
    bits : [N, h * w / 8], eight pixels to a byte
    scores : [N], how sure the model is of each, 0..1
    areas : [N], in pixels
    extents : [N, 4], left, top, right, bottom
    prominence : [N], how much each looks like the subject
    """

    size: tuple[int, int]
    bits: NDArray[np.uint8]
    scores: Tensor
    areas: Tensor
    extents: Tensor
    prominence: Tensor


def pack(masks: Tensor, scores: Tensor) -> Masks:
    """From bool [N, h, w], none of them empty, and scores [N]."""
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
    """What a prompt may mean, the likeliest first; empty where nothing fits.

    With points: what holds all positive points and none of the negative ones, the smallest first;
    points on different parts are joined. With a box or a brush: what overlaps it best. With
    nothing: what is large, central and sure.

    Parameters
    ----------
    positive, negative : bool [P, N], which masks hold each point
    box : in pixels of the masks
    brush : [h, w], as the masks
    """
    fits = ~negative.any(0)
    if brush is not None:
        overlap = _with_brush(masks, brush)
    elif box is not None:
        overlap = _with_box(masks, box)
    elif len(positive):
        return _under_points(masks, positive & fits)
    else:
        return _ranked(fits, masks.prominence)
    return _ranked(fits & positive.all(0) & (overlap > 0), overlap)


def _ranked(fits: Tensor, values: Tensor) -> list[Choice]:
    order = values.argsort(descending=True, stable=True)
    order = order[fits[order]]
    return [
        Choice((index,), value)
        for index, value in zip(order.tolist(), values[order].tolist(), strict=True)
    ]


def _under_points(masks: Masks, held: Tensor) -> list[Choice]:
    areas, scores = masks.areas, masks.scores
    found: dict[tuple[int, ...], tuple[int, float]] = {
        (index,): (int(areas[index]), float(scores[index]))
        for index in held.all(0).nonzero().flatten().tolist()
    }
    if held.any(1).all():
        # The smallest under each point, joined: parts that no single mask holds.
        smallest = torch.where(held, areas, areas.max() + 1).argmin(1)
        parts = tuple(sorted(set(smallest.tolist())))
        area = int(_ONES[np.bitwise_or.reduce(masks.bits[list(parts)])].sum())
        found[parts] = (area, float(scores[list(parts)].min()))
    return [
        Choice(parts, score)
        for parts, (_, score) in sorted(found.items(), key=lambda one: (one[1][0], one[0]))
    ]


def _with_brush(masks: Masks, brush: NDArray[np.bool_]) -> Tensor:
    """Intersection over union of each mask with the brush; 0 where little is common."""
    common, painted = _common(masks, brush), int(brush.sum())
    enough = (common >= COVERED * painted) | (common >= COVERED * masks.areas)
    return torch.where(enough, common / (masks.areas + painted - common), 0.0)


def _with_box(masks: Masks, box: tuple[float, float, float, float]) -> Tensor:
    """Intersection over union of each mask's extent with the box;
    0 where little of the mask lies in it.
    """
    left, top, right, bottom = box
    x0, y0, x1, y1 = masks.extents.unbind(1)
    width = (x1.clamp(max=right) - x0.clamp(min=left)).clamp(min=0)
    height = (y1.clamp(max=bottom) - y0.clamp(min=top)).clamp(min=0)
    union = (x1 - x0) * (y1 - y0) + (right - left) * (bottom - top) - width * height
    inside = np.zeros(masks.size, np.bool_)
    inside[math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)] = True
    return torch.where(_common(masks, inside) >= COVERED * masks.areas, width * height / union, 0.0)


def _common(masks: Masks, where: NDArray[np.bool_]) -> Tensor:
    """How many pixels each mask has in common with bool [h, w]."""
    return torch.from_numpy(_ONES.take(masks.bits & np.packbits(where)).sum(1, dtype=np.int64))


def _extents(masks: Tensor) -> Tensor:
    rows, columns = masks.any(2), masks.any(1)
    height, width = masks.shape[1:]
    sides = [
        _first(columns),
        _first(rows),
        width - _first(columns.flip(1)),
        height - _first(rows.flip(1)),
    ]
    return torch.stack(sides, 1)


def _first(lines: Tensor) -> Tensor:
    """Index of the first true value in each row of a bool [N, n], as float."""
    return lines.float().argmax(1).float()


def _prominence(masks: Tensor, areas: Tensor, scores: Tensor) -> Tensor:
    """How much each mask looks like the subject: sure, central, large, and not cut off by the
    picture's border.
    """
    height, width = masks.shape[1:]
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    central = masks.flatten(1).float() @ torch.exp(-2 * (x.square() + y.square())).flatten() / areas
    border = (
        torch.cat([masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]], 1).float().mean(1)
    )
    prominence: Tensor = (
        scores * central * (areas / (height * width)).sqrt() * (1 - border).square()
    )
    return prominence
