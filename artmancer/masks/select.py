"""What a model for Smart Mask is, and what it answers."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Selection:
    """The object that is meant.

    mask : MASK [1, H, W]
    score : how well it fits, 0..1
    count : how many candidates there are
    """

    mask: Tensor
    score: float
    count: int
