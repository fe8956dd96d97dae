"""Give a smooth fill the texture of its surroundings.

A hole that was filled at a lower scale has the right shapes and colors, but no details. This module
copies details from around the hole: for each place of the fill it searches the place around the
hole that looks most alike at the lower scale (PatchMatch; Barnes, Shechtman, Finkelstein and
Goldman, SIGGRAPH 2009), and adds what the lower scale had lost there (image analogies; Hertzmann,
Jacobs, Oliver, Curless and Salesin, SIGGRAPH 2001).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

_REACH = 2
"""Radius of the patches that are compared, in pixels of the lower scale."""

_ITERATIONS = 5
"""Number of passes of the search."""

_STEPS = ((0, 1), (0, -1), (1, 0), (-1, 0), (0, 4), (0, -4), (4, 0), (-4, 0))
"""Distances, in pixels of the lower scale, to the neighbors whose match is tried."""

_CHUNK = 1 << 18
"""Number of pixels that are compared at a time, which bounds the memory."""

Step = Callable[[int, int], None]
"""A function that receives the number of passes that are done, and of all passes; it may raise."""


def enlarge(image: Tensor, factor: int) -> Tensor:
    """Scale an image [h, w, 3] up by a whole factor."""
    large = functional.interpolate(
        image.permute(2, 0, 1).unsqueeze(0),
        scale_factor=factor,
        mode="bicubic",
        align_corners=False,
    )
    return large[0].permute(1, 2, 0)


def restore(
    fill: Tensor, hole: Tensor, image: Tensor, factor: int, seed: int, step: Step
) -> Tensor:
    """Scale a fill up, and add the details of its surroundings.

    Parameters
    ----------
    fill : [h, w, 3] in 0..1, the whole image at the lower scale, with its hole filled
    hole : bool [h, w], True where the image has a hole, also where it covers a part of the pixel
    image : [h * factor, w * factor, 3], the image; its hole is not read
    factor : pixels of the image per pixel of the fill, in each direction
    seed : seed of the search
    step : called at each pass of the search; raising in it ends the search

    Returns
    -------
    [h * factor, w * factor, 3] in 0..1; only the hole is of use. Where there is nothing to copy
    from, the fill is only scaled up
    """
    base = enlarge(fill, factor)
    # The details of a pixel are known where neither it nor what was enlarged into it is a hole.
    source = functional.max_pool2d(hole.float()[None, None], 2 * (_REACH + 1) + 1, 1, _REACH + 1)[
        0, 0
    ].eq(0)
    if source.any() and hole.any():
        matches = _match(fill, hole, source, seed, step)
        details = _blocks(image - base, factor)
        copied = torch.zeros_like(details)
        copied[hole] = details[matches[:, 0], matches[:, 1]]
        base = base + _join(copied, factor)
    return base.clamp(0, 1)


def _match(fill: Tensor, hole: Tensor, source: Tensor, seed: int, step: Step) -> Tensor:
    """Return for each pixel of the hole the row and column, [n, 2], of the pixel of `source` whose
    surroundings are most alike.
    """
    height, width = hole.shape
    patches = _patches(fill)
    places = hole.nonzero()
    sources = source.nonzero()
    generator = torch.Generator().manual_seed(seed % 2**63)
    drawn = torch.randint(len(sources), (len(places),), generator=generator)
    best = sources[drawn]
    distance = _distance(patches, places, best, source)
    # Index of each pixel of the hole in `places`; -1 elsewhere.
    index = torch.full((height, width), -1)
    index[hole] = torch.arange(len(places))

    def improve(candidates: Tensor) -> None:
        difference = _distance(patches, places, candidates, source)
        better = difference < distance
        best[better], distance[better] = candidates[better], difference[better]

    radii = [max(height, width) >> shift for shift in range(1, max(height, width).bit_length())]
    for done in range(_ITERATIONS):
        step(done, _ITERATIONS)
        for move in map(torch.tensor, _STEPS):
            neighbors = places + move
            neighbors = torch.stack(
                [neighbors[:, 0].clamp(0, height - 1), neighbors[:, 1].clamp(0, width - 1)], 1
            )
            known = index[neighbors[:, 0], neighbors[:, 1]]
            # Outside the hole a pixel has no match: its own is tried again.
            known = torch.where(known < 0, torch.arange(len(places)), known)
            improve(best[known] + places - places[known])
        for radius in radii:
            shift = torch.randint(-radius, radius + 1, best.shape, generator=generator)
            improve(best + shift)
    return best


def _patches(image: Tensor) -> Tensor:
    """Return the colors around each pixel, [h, w, 27]: every second pixel of a square."""
    height, width = image.shape[:2]
    padded = functional.pad(image.permute(2, 0, 1)[None], (_REACH,) * 4, "replicate")
    colors = functional.unfold(padded, 3, dilation=_REACH)
    return colors[0].view(-1, height, width).permute(1, 2, 0).contiguous()


def _distance(patches: Tensor, places: Tensor, candidates: Tensor, source: Tensor) -> Tensor:
    """Return the sums of squared differences, [n]; infinite where a candidate is no source."""
    height, width = source.shape
    result = torch.full((len(places),), torch.inf)
    y, x = candidates.unbind(1)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    inside[inside.clone()] &= source[y[inside], x[inside]]
    for rows in torch.split(inside.nonzero()[:, 0], _CHUNK):
        own = patches[places[rows, 0], places[rows, 1]]
        result[rows] = (own - patches[y[rows], x[rows]]).square().sum(1)
    return result


def _blocks(image: Tensor, factor: int) -> Tensor:
    """Split an image [h * factor, w * factor, 3] into blocks [h, w, factor, factor, 3]."""
    height, width = image.shape[0] // factor, image.shape[1] // factor
    return image.view(height, factor, width, factor, 3).permute(0, 2, 1, 3, 4).contiguous()


def _join(blocks: Tensor, factor: int) -> Tensor:
    """Join the blocks that _blocks made."""
    height, width = blocks.shape[:2]
    return blocks.permute(0, 2, 1, 3, 4).reshape(height * factor, width * factor, 3)
