"""The Qwen editor: a base model, and the checkpoint of one variant on it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..editor import EditRequest
from ..images import to_pil
from ..progress import Progress
from . import checkpoints, sampler
from .pipeline import Base


@dataclass(frozen=True)
class QwenEditor:
    """An Editor (see editor.py) that samples from Qwen-Image-Edit.

    base : the loaded model
    variant : "insertion", "removal" or "white_balance"
    checkpoint : the variant's LoRA; None: the base alone
    strength : how strongly the checkpoint acts, 1 = as trained
    condition_pixels : the area each conditioning image is encoded at; None = the crop's own size
    """

    base: Base
    variant: str
    checkpoint: Path | None = None
    strength: float = 1.0
    condition_pixels: int | None = None

    @property
    def name(self) -> str:
        return f"qwen-image-edit/{self.variant}"

    def edit(self, request: EditRequest, progress: Progress) -> Tensor:
        """See Editor.edit. A batch is edited one by one, with seeds counting up.

        Raises
        ------
        ArtMancerError : generation_failed where a checkpoint does not fit
        """
        images = list(request.conditions.images.values())
        height, width = request.conditions.crop.region.size
        edited = []
        with self.base.lock:
            used = [self.checkpoint] if self.checkpoint else []
            checkpoints.use(self.base, used, [self.strength] * len(used))
            total = len(images[0]) * request.steps
            for index in range(len(images[0])):
                picture = sampler.sample(
                    self.base,
                    [to_pil(image[index]) for image in images],
                    sampler.Sampling(
                        request.prompt,
                        request.negative,
                        height,
                        width,
                        request.steps,
                        request.cfg,
                        request.seed + index,
                        self.condition_pixels,
                    ),
                    _tell(progress, index * request.steps, total),
                )
                edited.append(picture)
        return torch.cat(edited)


def _tell(progress: Progress, done: int, total: int) -> sampler.Step:
    def step(number: int, latents: Tensor) -> None:
        progress(done + number, total, "sampling")

    return step
