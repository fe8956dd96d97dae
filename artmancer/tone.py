"""The range of an image's values, and a tone curve that fits a high dynamic range (HDR) into 0..1
for methods that know no other values.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_KNEE = 200 / 255
"""Curved value of 1: most of the 256 levels are kept for 0..1, which displays show."""


def value_range(*images: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest value of all images; at most 0, and at least 1."""
    lowest = min(float(image.amin()) for image in images)
    highest = max(float(image.amax()) for image in images)
    return min(0.0, lowest), max(1.0, highest)


@dataclass(frozen=True)
class ToneCurve:
    """A curve from low..high to 0..1: linear up to 1, logarithmic above. It changes nothing where
    the range is 0..1.

    Attributes
    ----------
    low : smallest value, at most 0
    high : largest value, at least 1
    """

    low: float
    high: float

    @property
    def _knee(self) -> float:
        return _KNEE if self.high > 1 else 1.0

    def encode(self, image: Tensor) -> Tensor:
        """Return the values in 0..1; what is out of range is clipped."""
        if (self.low, self.high) == (0, 1):
            return image
        linear = (image - self.low) / (1 - self.low) * self._knee
        if self.high > 1:
            bright = image.clamp(min=1).log() / math.log(self.high)
            linear = torch.where(image > 1, self._knee + (1 - self._knee) * bright, linear)
        return linear.clamp(0, 1)

    def decode(self, curved: Tensor) -> Tensor:
        """Return the values that `encode` curved."""
        if (self.low, self.high) == (0, 1):
            return curved
        image = curved / self._knee * (1 - self.low) + self.low
        if self.high > 1:
            bright = (curved - self._knee) / (1 - self._knee) * math.log(self.high)
            image = torch.where(curved > self._knee, bright.exp(), image)
        return image.clamp(self.low, self.high)
