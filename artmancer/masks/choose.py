"""Choose among the masks of everything in a picture the one a user means."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .prompt import Prompt

COVERED = 0.5
"""Of a mask or of the brush: less in common is no match."""


@dataclass(frozen=True)
class Choice:
    """One answer: the masks that make it up together, and how well it fits, 0..1."""

    masks: tuple[int, ...]
    score: float


def choose(masks: Tensor, scores: Tensor, prompt: Prompt) -> list[Choice]:
    """What a prompt may mean, the likeliest first; empty where nothing fits.

    With points: what holds all positive points and none of the negative ones, the smallest first; points on different
    parts are joined. With a box or a brush: what overlaps it best. With nothing: what is large, central and sure.

    Parameters
    ----------
    masks : bool [N, h, w]
    scores : [N], how sure the model is of each, 0..1
    prompt : in pixels of the masks, the brush of their size
    """
    fits = torch.ones(len(masks), dtype=torch.bool)
    for x, y in prompt.negative:
        fits &= ~masks[:, int(y), int(x)]
    areas = masks.flatten(1).sum(1)
    fits &= areas > 0
    if prompt.box is not None or prompt.brush is not None:
        overlap = _overlap(masks, areas, prompt)
        fits &= overlap > 0
        for x, y in prompt.positive:
            fits &= masks[:, int(y), int(x)]
        return _ranked(fits, overlap)
    if prompt.positive:
        return _under_points(masks, areas, scores, fits, prompt.positive)
    return _ranked(fits, _prominence(masks, areas, scores))


def _ranked(fits: Tensor, values: Tensor) -> list[Choice]:
    order = values.argsort(descending=True, stable=True).tolist()
    return [Choice((index,), float(values[index])) for index in order if fits[index]]


def _under_points(
    masks: Tensor, areas: Tensor, scores: Tensor, fits: Tensor, points: tuple[tuple[float, float], ...]
) -> list[Choice]:
    held = torch.stack([masks[:, int(y), int(x)] for x, y in points]) & fits
    found: dict[tuple[int, ...], tuple[float, float]] = {
        (int(index),): (float(areas[index]), float(scores[index])) for index in held.all(0).nonzero().flatten()
    }
    if held.any(1).all():
        # The smallest under each point, joined: parts that no single mask holds.
        smallest = [int(torch.where(one, areas, areas.max() + 1).argmin()) for one in held]
        parts = tuple(sorted(set(smallest)))
        area = float(masks[list(parts)].any(0).sum())
        found[parts] = (area, float(scores[list(parts)].min()))
    return [Choice(parts, score) for parts, (_, score) in sorted(found.items(), key=lambda one: (one[1][0], one[0]))]


def _overlap(masks: Tensor, areas: Tensor, prompt: Prompt) -> Tensor:
    """Intersection over union of each mask with the brush, or of its extent with the box; 0 where little is common."""
    if prompt.brush is not None:
        brush = prompt.brush[0] >= 0.5
        common = (masks & brush).flatten(1).sum(1)
        enough = (common >= COVERED * brush.sum()) | (common >= COVERED * areas)
        return torch.where(enough, common / (areas + brush.sum() - common), 0.0)
    assert prompt.box is not None
    left, top, right, bottom = prompt.box
    height, width = masks.shape[1:]
    rows, columns = masks.any(2), masks.any(1)
    extents = [(_first(columns), _first(rows), width - _first(columns.flip(1)), height - _first(rows.flip(1)))]
    x0, y0, x1, y1 = extents[0]
    common = (x1.clamp(max=right) - x0.clamp(min=left)).clamp(min=0) * (y1.clamp(max=bottom) - y0.clamp(min=top)).clamp(
        min=0
    )
    union = (x1 - x0) * (y1 - y0) + (right - left) * (bottom - top) - common
    inside = torch.zeros(height, width, dtype=torch.bool)
    inside[max(0, math.floor(top)) : math.ceil(bottom), max(0, math.floor(left)) : math.ceil(right)] = True
    enough = (masks & inside).flatten(1).sum(1) >= COVERED * areas
    return torch.where(enough, common / union, 0.0)


def _first(lines: Tensor) -> Tensor:
    """Index of the first true value in each row of a bool [N, n], as float."""
    return lines.float().argmax(1).float()


def _prominence(masks: Tensor, areas: Tensor, scores: Tensor) -> Tensor:
    """How much each mask looks like the subject: sure, central, large, and not cut off by the picture's border."""
    height, width = masks.shape[1:]
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    central = (masks * torch.exp(-2 * (x.square() + y.square()))).flatten(1).sum(1) / areas.clamp(min=1)
    border = torch.cat([masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]], 1).float().mean(1)
    prominence: Tensor = scores * central * (areas / (height * width)).sqrt() * (1 - border).square()
    return prominence
