"""Grain and sharpness: give the pasted part of an edit what its surroundings have.

An editor's picture is cleaner than a grainy photo, and softer where the crop was scaled. The noise
of both is estimated on their flattest pixels, by second differences, which a slope does not change.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import mask_ops
from .region import Region, enlarge
from .registration import Registration
from .tone import value_range

_RING = 32
"""Width of the ring around the mask, in pixels of the photo."""

_FLAT = 0.15
"""Share of the pixels that noise is estimated on, the flattest: they have noise, but no texture."""

_FLAT_WINDOW = (15, 15)
"""Sides, in pixels, of the window in which flatness is measured."""

_MIN_PIXELS = 40
"""Fewest flat pixels that noise is estimated on."""

_MAX_GRAIN = 25 / 255
"""Largest standard deviation of the noise that is added: more is texture."""

_MIN_GRAIN = 0.25 / 255
"""Smallest standard deviation that is added: less is rounding."""

_SIZES = np.linspace(0.0, 2.0, 41)
"""Grain sizes to choose from: standard deviations, in pixels, of a Gaussian over white noise."""

_MAX_SHARPENING = 2.0
"""Largest strength of the unsharp mask."""

Noise = NDArray[np.float64]
"""Covariances [..., 3, 3] of the noise of red, green and blue."""


class Grain(NamedTuple):
    """The grain that was added.

    Attributes
    ----------
    image : IMAGE [B, H, W, 3]
    deviation : largest standard deviation of the added noise, in levels of 255, averaged over the
        channels
    sharpening : largest strength of the unsharp mask; 0 = none
    """

    image: Tensor
    deviation: float
    sharpening: float


def match_grain(
    result: Tensor,
    image: Tensor,
    edited: Tensor,
    region: Region,
    seed: int,
    registrations: Sequence[Registration | None] = (),
) -> Grain:
    """Sharpen the pasted part, and add noise to it, as far as its surroundings have more.

    Parameters
    ----------
    result : IMAGE [B, H, W, 3], the photo with the edit stitched in
    image : IMAGE [B, H, W, 3], the photo
    edited : IMAGE [B, h, w, 3], the crop after the edit, h x w = region.size
    region : the region that was stitched
    seed : seed of the noise of the first image
    registrations : as for region.stitch
    """
    grained = result.clone()
    deviation = sharpening = 0.0
    for index, (fade, (top, left)) in enumerate(zip(region.fades, region.corners, strict=True)):
        window = fade.window.widen(_RING).clip(region.box_in_image(index))
        mask = torch.zeros(window.bottom - window.top, window.right - window.left)
        fade.window.shift(-window.top, -window.left).view(mask).copy_(fade.mask)
        inside = mask > 0
        ring = ~inside & (mask_ops.distance(inside.float()) <= _RING)
        photo, target = window.view(image[index]), window.view(grained[index])
        low, high = value_range(photo, target)
        registration = registrations[index] if registrations else None
        patch = enlarge(edited[index], window.shift(-top, -left), region, registration)
        strength = _sharpening(photo, patch, ring, region.scale)
        target += strength * mask.unsqueeze(-1) * _details(target, region.scale)
        noise, size = _missing_noise(photo, ring, target, inside)
        target += mask.unsqueeze(-1) * _noise(noise, size, tuple(mask.shape), seed + index)
        target.clamp_(low, high)
        deviation = max(deviation, 255 * float(np.sqrt(np.trace(noise) / 3)))
        sharpening = max(sharpening, strength)
    return Grain(grained, round(deviation, 2), round(sharpening, 2))


def _details(image: Tensor, scale: float) -> Tensor:
    """Return the details of an image [h, w, 3] that a crop of this scale has in part."""
    import cv2

    deviation = max(1.0, 0.5 / scale)
    return image - torch.from_numpy(cv2.GaussianBlur(image.numpy(), (0, 0), deviation))


def _sharpening(photo: Tensor, edited: Tensor, ring: Tensor, scale: float) -> float:
    """Return the strength of the unsharp mask that brings the edit closest to the photo in the
    ring, by least squares: noise of the photo does not change it.

    Parameters
    ----------
    photo, edited : [h, w, 3], at the photo's resolution
    ring : bool [h, w]
    """
    details = _details(edited, scale)[ring]
    energy = float(details.square().sum())
    if energy == 0:
        return 0.0
    lacking = photo[ring] - edited[ring]
    return min(max(float((lacking * details).sum()) / energy, 0.0), _MAX_SHARPENING)


def _missing_noise(
    photo: Tensor, ring: Tensor, pasted: Tensor, inside: Tensor
) -> tuple[Noise, float]:
    """Return the covariance of the noise that the pasted part lacks, and its grain size.

    Parameters
    ----------
    photo, pasted : [h, w, 3]
    ring, inside : bool [h, w], where their noise is measured
    """
    around = _second_differences(photo, ring)
    within = _second_differences(pasted, inside)
    if around is None:
        return np.zeros((3, 3)), 0.0
    if within is not None:
        around = around - within
    fine, coarse = np.trace(around, axis1=1, axis2=2)
    size = _grain_size(float(fine / max(coarse, 1e-12))) if fine > 0 else 0.0
    missing = around[0] / _gain(size)
    values, vectors = np.linalg.eigh(missing)
    values = np.clip(values, 0, None)
    deviation = np.sqrt(values.sum() / 3)
    if deviation < _MIN_GRAIN:
        return np.zeros((3, 3)), 0.0
    values *= min(1.0, _MAX_GRAIN / deviation) ** 2
    return (vectors * values) @ vectors.T, size


def _second_differences(image: Tensor, area: Tensor) -> Noise | None:
    """Return the covariances [2, 3, 3] of the channels' second differences, over one pixel and over
    two, on the flattest pixels of an area; None where there are too few.
    """
    import cv2

    whole = cv2.erode(area.numpy().astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=0) > 0
    if whole.sum() * _FLAT < _MIN_PIXELS:
        return None
    pixels = image.numpy()
    energy = sum(np.square(_difference(pixels, 1, axis)).mean(-1) for axis in (0, 1))
    share = cv2.blur(whole.astype(np.float32), _FLAT_WINDOW)
    energy = cv2.blur(np.asarray(energy * whole), _FLAT_WINDOW) / np.maximum(share, 1e-6)
    flat = whole & (energy <= np.quantile(energy[whole], _FLAT))
    covariances = []
    for step in (1, 2):
        samples = np.concatenate([_difference(pixels, step, axis)[flat] for axis in (0, 1)])
        covariances.append(samples.T.astype(np.float64) @ samples / len(samples))
    return np.stack(covariances)


def _difference(pixels: NDArray[np.float32], step: int, axis: int) -> NDArray[np.float32]:
    """Return the second difference [h, w, 3] of each pixel; at the image's end it is not of use."""
    return np.roll(pixels, step, axis) - 2 * pixels + np.roll(pixels, -step, axis)


def _correlation(size: float, distance: int) -> float:
    """Return the correlation of the noise at a distance in pixels."""
    return float(np.exp(-(distance**2) / (4 * size**2))) if size else 0.0


def _gain(size: float, step: int = 1) -> float:
    """Return the variance of second differences over this step, of noise of variance 1."""
    return 6 - 8 * _correlation(size, step) + 2 * _correlation(size, 2 * step)


def _grain_size(ratio: float) -> float:
    """Return the grain size whose second differences over one pixel and over two have this ratio
    of variances.
    """
    ratios = np.array([_gain(size) / _gain(size, 2) for size in _SIZES])
    return float(_SIZES[np.abs(ratios - ratio).argmin()])


def _noise(covariance: Noise, size: float, shape: tuple[int, ...], seed: int) -> Tensor:
    """Return noise [h, w, 3] with this covariance of its channels and this grain size."""
    import cv2

    generator = torch.Generator().manual_seed(seed % 2**63)
    white = torch.randn(*shape, 3, generator=generator).numpy()
    if size:
        # A Gaussian that is sampled this coarsely does not have its variance by the formula.
        impulse = np.zeros((33, 33), np.float32)
        impulse[16, 16] = 1
        weight = float(np.square(cv2.GaussianBlur(impulse, (0, 0), size)).sum())
        white = cv2.GaussianBlur(white, (0, 0), size) / np.sqrt(weight)
    values, vectors = np.linalg.eigh(covariance)
    mixing = vectors * np.sqrt(np.clip(values, 0, None))
    return torch.from_numpy((white @ mixing.T.astype(np.float32)).astype(np.float32))
