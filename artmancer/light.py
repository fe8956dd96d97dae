"""The color of the light in a photo, estimated without weights.

Every pixel and every edge votes for the light that would make it gray. The votes are counted in a
histogram of log chromaticity, as in Barron's Convolutional Color Constancy (2015); edges vote
because a step between two shades of one material has the color of the light (van de Weijer, Gevers
and Gijsenij, Edge-Based Color Constancy, 2007). In the place of learned filters stands a
prior: lamps and daylight lie near the Planckian locus, so that blue and amber casts are likelier
than green and magenta ones. Where no light has clearly more votes than white, the light is white: a
meadow is green by itself.

The constants were set by benchmarks/balance.py on half of its photos.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .color import LUMINANCE

_SIDE = 256
"""Longer side, in pixels, of the small image that votes; averaged, noise does not."""

_CLIPPED = 0.99
"""Value in linear light from which a channel has lost its hue."""

_DARK = 0.002
"""Value in linear light below which a channel is mostly noise and rounding."""

_REACH = 1.5
"""Largest absolute log chromaticity of a light: red or blue are 4.5 times green, or a fraction."""

_BIN = 1 / 64
"""Side of a cell of the histogram, in log chromaticity."""

_SPREAD = 0.1
"""Standard deviation of the log chromaticity of grays under one light."""

_EDGES = 0.85
"""Share of the votes that edges have."""

_STRENGTH = 1.5
"""Factor of the logarithm of the votes beside that of the prior."""

_NO_VOTES = 0.003
"""Share of the votes that every light has: few pixels of one color prove nothing."""

_LOCUS = (0.62, -0.78)
"""Direction of the Planckian locus from 3,200 to 9,000 kelvin in log chromaticity."""

_AMBER, _GREEN = 1.0, 0.2
"""Standard deviations of the prior along the locus and across it."""

_BLUEST = -0.9
"""Place on the locus of an infinite color temperature: no sky is bluer, but blue cloth is."""

_CLEARLY = 0.5
"""Least difference of log probability between a light and white for which the photo is changed."""

Plane = NDArray[np.float32]


def estimate(colors: Tensor, mask: Tensor) -> Tensor:
    """Estimate the color of the light.

    Parameters
    ----------
    colors : [h, w, 3] in linear light
    mask : [h, w]; pixels where it is at least one half vote

    Returns
    -------
    [3], a green of 1; all ones where nothing speaks clearly for another light
    """
    votes = _votes(*_shrink(colors, mask))
    if votes is None:
        return torch.ones(3)
    likely = _log_probability(votes)
    white = likely[len(likely) // 2, len(likely) // 2]
    if likely.max() - white < _CLEARLY:
        return torch.ones(3)
    weights = np.exp(likely - likely.max())
    red, blue = (float((weights * axis).sum() / weights.sum()) for axis in _axes())
    return torch.tensor([red, 0.0, blue]).exp()


def _shrink(colors: Tensor, mask: Tensor) -> tuple[Plane, NDArray[np.bool_]]:
    """Return the small image [h, w, 3], and where all of its pixels may vote [h, w]."""
    import cv2

    # Scaled down with its surroundings, a small mask would have no pixel of its own.
    rows, columns = ((mask >= 0.5).any(axis).nonzero()[:, 0] for axis in (1, 0))
    if len(rows):
        part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        colors, mask = colors[part], mask[part]
    may_vote = (mask >= 0.5) & (colors.amax(-1) < _CLIPPED)
    height, width = may_vote.shape
    scale = min(1, _SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small, share = (
        np.asarray(cv2.resize(plane.float().numpy(), size, interpolation=cv2.INTER_AREA), "f4")
        for plane in (colors, may_vote)
    )
    return small, (share > 0.999) & (small.min(-1) > _DARK)


def _votes(small: Plane, may_vote: NDArray[np.bool_]) -> Plane | None:
    """Return the share of the votes for each light [n, n], by the logarithms of red and of blue
    over green; None without any.
    """
    import cv2

    counts = _count(small[may_vote])
    if counts is None:
        return None
    smooth = cv2.GaussianBlur(small, (0, 0), 1)
    steps = np.hypot(*(cv2.Sobel(smooth, -1, *axis) for axis in ((1, 0), (0, 1))))
    inside = cv2.erode(may_vote.view(np.uint8), np.ones((7, 7), np.uint8)) > 0
    edges = _count(steps[inside].reshape(-1, 3))
    return counts if edges is None else (1 - _EDGES) * counts + _EDGES * edges


def _count(colors: Plane) -> Plane | None:
    """Count the votes of colors [n, 3], each as strong as its luminance, as shares [n, n];
    None without any. A color that no light has votes for none, and takes its share from all.
    """
    colors = colors[colors.min(-1) > 0]
    if len(colors) == 0:
        return None
    red, green, blue = np.log(colors).T
    strength = colors @ LUMINANCE.numpy()
    limits = np.linspace(-_REACH - _BIN / 2, _REACH + _BIN / 2, round(2 * _REACH / _BIN) + 2)
    counts, *_ = np.histogram2d(red - green, blue - green, [limits, limits], weights=strength)
    return np.asarray(counts / strength.sum(), np.float32)


def _log_probability(votes: Plane) -> NDArray[np.float64]:
    """Return the logarithm of the probability of each light [n, n], up to a constant."""
    import cv2

    spread = _SPREAD / _BIN
    # Divided by the peak of the blur, so that 1 means that all votes agree.
    agreeing = cv2.GaussianBlur(votes, (0, 0), spread) * (2 * np.pi * spread**2)
    red, blue = _axes()
    amber = _LOCUS[0] * red + _LOCUS[1] * blue
    green = _LOCUS[1] * red - _LOCUS[0] * blue
    prior = (amber / _AMBER) ** 2 + (green / _GREEN) ** 2
    likely = _STRENGTH * np.log(agreeing + _NO_VOTES) - prior / 2
    return np.where(amber < _BLUEST, -np.inf, likely)


def _axes() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the logarithms of red and of blue over green of each light, [n, 1] and [1, n]."""
    axis = np.linspace(-_REACH, _REACH, round(2 * _REACH / _BIN) + 1)
    return axis[:, None], axis[None]
