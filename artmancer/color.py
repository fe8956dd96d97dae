"""Colors: match an edit's colors to the image around it, and apply a change of colors to the image
at full resolution.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import mask_ops
from .tone import value_range

LUMINANCE = torch.tensor([0.2126, 0.7152, 0.0722])
"""Luminance of red, green and blue in linear light."""

_MIN_PIXELS = 64
"""Fewest pixels that colors are fitted on."""

_MAX_PIXELS = 1 << 14
"""Most pixels that a change of colors is fitted on; of more, every nth pixel is used."""

_MAX_GAIN = 1.25
"""Largest gain of a channel at the rim; the smallest is its inverse. An editor changes the colors
of the whole crop only a little. A larger gain comes from a ring that does not determine it.
"""

_RIM_RIDGE = 1e-3
"""Ridge of the fit at the rim; see `_fit`."""

_CHANGE_RIDGE = 1e-6
"""Ridge of the fit of a change of colors; see `_fit`."""

_CLIPPED = (1 / 255, 254 / 255)
"""Values at or beyond these count as clipped."""

_CLIPPING = (0.95, 0.99)
"""Values in linear light between which a channel passes to being clipped, as the sensor sees it."""

_HDR = 1.05
"""Value in linear light from which a color is one of an HDR image, which was not clipped; below, a
resize may have gone beyond 1.
"""

_CHUNK = 1 << 15
"""Pixels whose colors are changed at a time: so few stay in the processor's cache."""

_ROUNDS = 8
"""Rounds of reweighting in a fit."""

_OUTLIER = 1.5
"""Error, as a multiple of the median error, at which the weight of a sample has fallen to 1/4."""

_ROUNDING = 1 / 512
"""Half a level of an 8-bit image, added to the threshold of outliers so that rounding is none."""


def match_rim(edited: Tensor, original: Tensor, mask: Tensor, width: int = 16) -> Tensor:
    """Match the colors of an edit to the original's just outside the mask, so that no seam shows.

    For each channel a gain, an offset and a slope of the offset across the image are fitted on a
    ring around the mask. The fit is robust: a real change there (a shadow, a reflection) counts as
    an outlier.

    Parameters
    ----------
    edited, original : IMAGE [B, h, w, 3], the crop after and before the edit
    mask : MASK [B, h, w], 1 = edited
    width : width of the ring around the mask, in pixels

    Returns
    -------
    IMAGE [B, h, w, 3], `edited` with its colors changed; unchanged where the mask leaves no ring
    """
    matched = edited.clone()
    for new, old, hole in zip(matched, original, mask, strict=True):
        ring = (hole == 0) & (mask_ops.distance((hole > 0).float()) <= width)
        if int(ring.sum()) < _MIN_PIXELS or torch.equal(new[ring], old[ring]):
            continue
        # The fit compares local averages, which agree even where the edit moved a little or drew
        # the texture anew.
        smooth_new, smooth_old = _averages([new, old], ring, width)
        y, x = _centered_positions(ring)
        for channel in range(3):
            features = torch.stack([smooth_new[..., channel], torch.ones_like(x), x, y], -1)[ring]
            target = smooth_old[ring][:, channel, None]
            gain, offset, slope_x, slope_y = _fit_rim(features, target)
            new[..., channel] = gain * new[..., channel] + offset + slope_x * x + slope_y * y
    return matched.clamp_(*value_range(edited, original))


@dataclass(frozen=True)
class ColorChange:
    """A change of colors: a polynomial of second degree in linear light.

    Attributes
    ----------
    weights : [10, 3], the weight of each term of the polynomial in each channel of the result
    whitens : whether clipped whites stay white, see `whiten_clipped`
    """

    weights: Tensor
    whitens: bool = False

    def __call__(self, colors: Tensor) -> Tensor:
        """Change colors [..., 3] (sRGB). Those brighter than 1, in HDR images, change as their
        darker copies in 0..1 do.
        """
        return in_chunks(self._change, colors)

    def _change(self, colors: Tensor) -> Tensor:
        """Change colors [n, 3]."""
        # One plane for each channel: reductions and sums over channels are quicker so.
        linear = to_linear(colors.T.contiguous())
        brightness = linear.amax(0).clamp_(min=1)
        changed = (self.weights.T @ _terms(linear / brightness)).clamp_(0, 1).mul_(brightness)
        return to_srgb(whiten_clipped(linear.T, changed.T) if self.whitens else changed.T)


def fit_change(before: Tensor, after: Tensor) -> ColorChange:
    """Fit the change of colors between two images of one scene. The fit is robust to other changes.

    Parameters
    ----------
    before, after : colors [..., 3] in 0..1 of the same pixels; without any, nothing changes
    """
    old, new = before.reshape(-1, 3), after.reshape(-1, 3)
    # A clipped value does not say how far the change went.
    darkest, brightest = _CLIPPED
    kept = ((new > darkest) & (new < brightest)).all(1).nonzero()[:, 0]
    if len(kept) < _MIN_PIXELS:
        kept = torch.arange(len(new))
    no_change = torch.zeros(10, 3)
    no_change[1:4] = torch.eye(3)
    if len(kept) == 0:
        return ColorChange(no_change)
    kept = kept[:: sampling_step(len(kept), _MAX_PIXELS)]
    weights = _fit(_terms(to_linear(old[kept]).T).T, to_linear(new[kept]), no_change, _CHANGE_RIDGE)
    clipped = (old >= brightest).any(1).nonzero()[:, 0]
    if len(clipped) == 0:
        return ColorChange(weights)
    clipped = clipped[:: sampling_step(len(clipped), _MAX_PIXELS)]
    return min(
        (ColorChange(weights, whitens) for whitens in (False, True)),
        key=lambda change: float((change(old[clipped]) - new[clipped]).abs().mean()),
    )


def sampling_step(count: int, limit: int) -> int:
    """Return the step by which at most `limit` of `count` pixels in a row are used. It is odd,
    because an even one would see a few columns of the image alone.
    """
    return math.ceil(count / limit) | 1


def whiten_clipped(before: Tensor, after: Tensor) -> Tensor:
    """Raise the channels that were clipped, so that white stays white, in linear light.

    A clipped channel was brighter than it says. Changed like the others, it would give a white
    lamp or cloud the opposite of the cast that is removed. No channel becomes brighter than the
    brightest of its color.

    Parameters
    ----------
    before, after : colors [..., 3] before and after a change of colors; those above 1, in HDR
        images, were not clipped
    """
    start, end = _CLIPPING
    brightest = before.amax(-1)
    # Few colors of a photo are clipped.
    clipped = (brightest > start) & (brightest <= _HDR)
    old, new = before[clipped], after[clipped]
    share = ((old - start) / (end - start)).clamp(0, 1)
    scale = new.amax(-1, keepdim=True) / brightest[clipped].unsqueeze(-1)
    whitened = after.clone()
    whitened[clipped] = torch.lerp(new, torch.maximum(new, old * scale), share)
    return whitened


def to_linear(srgb: Tensor) -> Tensor:
    """Convert sRGB values 0..1 to linear light (IEC 61966-2-1)."""
    curved = srgb.add(0.055).div_(1.055).clamp_(min=0).pow_(2.4)
    return torch.where(srgb <= 0.04045, srgb / 12.92, curved)


def to_srgb(linear: Tensor) -> Tensor:
    """Convert linear light 0..1 to sRGB values (IEC 61966-2-1)."""
    curved = linear.clamp(min=0).pow_(1 / 2.4).mul_(1.055).sub_(0.055)
    return torch.where(linear <= 0.0031308, linear * 12.92, curved)


def in_chunks(change: Callable[[Tensor], Tensor], colors: Tensor) -> Tensor:
    """Change colors [..., 3] by a function from colors [n, 3] to others. It is called with so few
    that what it calculates on the way stays in the processor's cache.
    """
    changed = torch.empty_like(colors, memory_format=torch.contiguous_format)
    old, new = colors.reshape(-1, 3), changed.view(-1, 3)
    for start in range(0, len(old), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        new[chunk] = change(old[chunk])
    return changed


def _averages(images: list[Tensor], ring: Tensor, width: int) -> list[Tensor]:
    """Return the local average of each image [h, w, 3] over the pixels of the ring [h, w] alone."""
    import cv2

    share = cv2.blur(ring.float().numpy(), (width, width))[..., None]
    # Far from the ring the share is 0.
    share = np.maximum(share, 1e-6)
    averages = []
    for image in images:
        total = cv2.blur((image * ring.unsqueeze(-1)).numpy(), (width, width))
        averages.append(torch.from_numpy(total / share))
    return averages


def _centered_positions(ring: Tensor) -> tuple[Tensor, Tensor]:
    """Return y and x [h, w] of each pixel, -1..1 across the image, with mean 0 over the ring."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in ring.shape), indexing="ij")
    return y - y[ring].mean(), x - x[ring].mean()


def _fit_rim(features: Tensor, target: Tensor) -> tuple[float, Tensor, Tensor, Tensor]:
    """Return gain, offset, slope in x and slope in y of one channel.

    Parameters
    ----------
    features : [m, 4]: the channel, 1, x, y
    target : [m, 1]
    """
    no_change = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
    gain = float(_fit(features, target, no_change, _RIM_RIDGE)[0])
    gain = min(max(gain, 1 / _MAX_GAIN), _MAX_GAIN)
    # Fitted again, because the gain may have been limited.
    rest = _fit(features[:, 1:], target - gain * features[:, :1], torch.zeros(3, 1), _RIM_RIDGE)
    offset, slope_x, slope_y = rest[:, 0]
    return gain, offset, slope_x, slope_y


def _terms(linear: Tensor) -> Tensor:
    """Return the terms [10, n] of a polynomial of second degree in r, g and b [3, n]: 1, r, g, b,
    r², g², b², rg, gb and br.
    """
    products = [linear * linear, linear * linear.roll(-1, 0)]
    return torch.cat([torch.ones_like(linear[:1]), linear, *products])


def _fit(features: Tensor, target: Tensor, prior: Tensor, ridge: float) -> Tensor:
    """Return weights w [n, c] such that features [m, n] @ w is close to target [m, c].

    Least squares, reweighted after Geman and McClure (1987): outliers hardly count. A feature whose
    mean square is not well above `ridge` keeps its weight in `prior` [n, c], so that noise is not
    fitted as a change.
    """
    features, target, prior = features.double(), target.double(), prior.double()
    hold = ridge * torch.eye(len(prior), dtype=torch.double)
    trust = torch.full((len(features), 1), 1 / len(features), dtype=torch.double)
    for _ in range(_ROUNDS):
        weighted = (features * trust).T
        weights: Tensor = torch.linalg.solve(
            weighted @ features + hold, weighted @ target + hold @ prior
        )
        error = (features @ weights - target).norm(dim=1, keepdim=True)
        scale = _OUTLIER * error.median() + _ROUNDING
        trust = (1 + (error / scale).square()).reciprocal().square()
        trust /= trust.sum()
    return weights.float()
