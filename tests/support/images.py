"""Synthetic images and masks."""

import math

import numpy as np
import torch
from torch import Tensor


def smooth_picture(height: int, width: int, wavelength: float, seed: int) -> Tensor:
    """Return an IMAGE [1, H, W, 3] without details finer than a wavelength, in pixels."""
    random = np.random.default_rng(seed)
    waves_per_channel = 3
    y, x = np.mgrid[:height, :width].astype(np.float32)
    planes = []
    for _ in range(3):
        waves = []
        for _ in range(waves_per_channel):
            angle, phase = random.uniform(0, 2 * np.pi, 2)
            length = wavelength * random.uniform(1, 3)
            waves.append(
                np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / length + phase)
            )
        planes.append(0.5 + sum(waves) / 6.5)
    return torch.from_numpy(np.stack(planes, -1)).float().unsqueeze(0)


def disc(height: int, width: int, y: float, x: float, radius: float) -> Tensor:
    """Return a MASK [1, H, W] of a disc, in pixels."""
    rows, columns = torch.arange(height).unsqueeze(1), torch.arange(width).unsqueeze(0)
    return ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2).float().unsqueeze(0)


def iou(first: Tensor, second: Tensor) -> float:
    """Return the intersection over union of two masks, which are cut at 0.5."""
    first, second = first >= 0.5, second >= 0.5
    return float((first & second).sum() / (first | second).sum())


def waves(y: Tensor, x: Tensor, frequency: float) -> Tensor:
    """Return a picture [h, w, 3] by a formula, at any places [h, w].

    Parameters
    ----------
    frequency : in radians per pixel
    """
    planes = [
        0.5
        + 0.2 * torch.cos(frequency * (math.cos(turn) * x + math.sin(turn) * y))
        + 0.2 * torch.cos(frequency * (math.sin(turn) * x - math.cos(turn) * y))
        for turn in (0.2, 0.7, 1.2)
    ]
    return torch.stack(planes, -1)
