"""Colours: fit an edit's to the picture around it,
and carry a change of colours to full resolution.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import mask_ops

LUMINANCE = torch.tensor([0.2126, 0.7152, 0.0722])
"""Of red, green and blue in linear light."""

_SAMPLES = 1 << 16
_ROUNDS = 8
_MOST_GAIN = 1.25  # what an editor changes all over is small; more is a ring that tells nothing


def match_rim(edited: Tensor, original: Tensor, mask: Tensor, width: int = 16) -> Tensor:
    """Fit the colours of an edit to the original's just outside the mask, so that no seam shows.

    Per channel a gain, an offset and a slope of the offset over the picture are fitted on the ring,
    robustly: what the edit really changed there (a shadow, a reflection) counts as an outlier.

    Parameters
    ----------
    edited, original : IMAGE [B, h, w, 3], the crop after and before the edit
    mask : MASK [B, h, w], 1 = edited
    width : pixels of the ring around the mask

    Returns
    -------
    IMAGE [B, h, w, 3], `edited` with its colours changed; unchanged where the mask leaves no ring.
    """
    import cv2

    matched = edited.clone()
    for one, before, hole in zip(matched, original, mask, strict=True):
        ring = (hole == 0) & (mask_ops.distance((hole > 0).float()) <= width)
        if int(ring.sum()) < 64 or torch.equal(one[ring], before[ring]):
            continue
        # Averaged over the ring alone: an edit that moved a little, or drew the texture anew,
        # agrees in its averages.
        share = cv2.blur(ring.float().numpy(), (width, width))[..., None]
        smooth = [
            torch.from_numpy(
                cv2.blur((picture * ring.unsqueeze(-1)).numpy(), (width, width))
                / np.maximum(share, 1e-6)
            )
            for picture in (one, before)
        ]
        y, x = (torch.linspace(-1, 1, side) for side in hole.shape)
        y, x = torch.meshgrid(y, x, indexing="ij")
        y, x = y - y[ring].mean(), x - x[ring].mean()
        for channel in range(3):
            features = torch.stack([smooth[0][..., channel], torch.ones_like(x), x, y], -1)[ring]
            target = smooth[1][ring][:, channel, None]
            gain = float(
                _fit(features, target, torch.tensor([[1.0], [0.0], [0.0], [0.0]]), ridge=1e-3)[0]
            )
            gain = min(max(gain, 1 / _MOST_GAIN), _MOST_GAIN)
            rest = _fit(
                features[:, 1:], target - gain * features[:, :1], torch.zeros(3, 1), ridge=1e-3
            )[:, 0]
            one[..., channel] = gain * one[..., channel] + rest[0] + rest[1] * x + rest[2] * y
    return matched.clamp_(0, 1)


@dataclass(frozen=True)
class ColorChange:
    """A change of colours: a polynomial of second degree in linear light, weights [10, 3].

    Called with colours [..., 3] in 0..1 (sRGB), it gives the changed ones.
    """

    weights: Tensor

    def __call__(self, colors: Tensor) -> Tensor:
        return to_srgb((_terms(to_linear(colors)) @ self.weights).clamp_(0, 1))


def fit_change(before: Tensor, after: Tensor) -> ColorChange:
    """The change of colours between two pictures of the same scene, robust to what else changed.

    Parameters
    ----------
    before, after : colours [..., 3] in 0..1 of the same places
    """
    old, new = before.reshape(-1, 3), after.reshape(-1, 3)
    # A channel at its limit has lost what it would have been.
    kept = ((new > 1 / 255) & (new < 254 / 255)).all(1).nonzero()[:, 0]
    if len(kept) < 64:
        kept = torch.arange(len(new))
    kept = kept[:: math.ceil(len(kept) / _SAMPLES)]
    prior = torch.zeros(10, 3)
    prior[1:4] = torch.eye(3)
    return ColorChange(_fit(_terms(to_linear(old[kept])), to_linear(new[kept]), prior, ridge=1e-6))


def to_linear(srgb: Tensor) -> Tensor:
    """sRGB values 0..1 to linear light (IEC 61966-2-1)."""
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055).clamp(min=0) ** 2.4)


def to_srgb(linear: Tensor) -> Tensor:
    """Linear light 0..1 to sRGB values (IEC 61966-2-1)."""
    return torch.where(
        linear <= 0.0031308, linear * 12.92, linear.clamp(min=0) ** (1 / 2.4) * 1.055 - 0.055
    )


def _terms(linear: Tensor) -> Tensor:
    r, g, b = linear.unbind(-1)
    return torch.stack([torch.ones_like(r), r, g, b, r * r, g * g, b * b, r * g, g * b, b * r], -1)


def _fit(features: Tensor, target: Tensor, prior: Tensor, ridge: float) -> Tensor:
    """Weights w [n, c] so that features [m, n] @ w is near target [m, c].

    Least squares, reweighted after Geman and McClure (1987): what lies far off hardly counts. A
    feature whose mean square is not well above `ridge` keeps its prior [n, c]: noise shall not pass
    for a change.
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
        scale = 1.5 * error.median() + 1 / 512
        trust = (1 + (error / scale).square()).reciprocal().square()
        trust /= trust.sum()
    return weights.float()
