"""UploadStore and masks that the tests make."""

import numpy as np
import torch
from torch import Tensor


def smooth_picture(height: int, width: int, wavelength: float, seed: int) -> Tensor:
    """IMAGE [1, H, W, 3] with no detail finer than this wavelength, in pixels."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    planes = []
    for _ in range(3):
        waves = []
        for _ in range(3):
            angle, phase = random.uniform(0, 2 * np.pi, 2)
            length = wavelength * random.uniform(1, 3)
            waves.append(
                np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / length + phase)
            )
        planes.append(0.5 + sum(waves) / 6.5)
    return torch.from_numpy(np.stack(planes, -1)).float().unsqueeze(0)


def disc(height: int, width: int, y: float, x: float, radius: float) -> Tensor:
    """MASK [1, H, W] of a disc."""
    rows, columns = torch.arange(height).unsqueeze(1), torch.arange(width).unsqueeze(0)
    return ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2).float().unsqueeze(0)


def iou(one: Tensor, other: Tensor) -> float:
    one, other = one >= 0.5, other >= 0.5
    return float((one & other).sum() / (one | other).sum())
