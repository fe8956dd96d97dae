"""What a model for Smart Mask is, and what it answers."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .prompt import Prompt


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


class Selector(Protocol):
    """FastSAM, or GrabCut in its place."""

    name: str

    def select(self, image: Tensor, prompt: Prompt, candidate: int = 0) -> Selection:
        """The object that is meant in an IMAGE [1, H, W, 3]; `candidate` counts round."""
        ...
