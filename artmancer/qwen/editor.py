"""The Qwen editor: a base model, and the checkpoint of one variant on it."""

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..editor import EditRequest
from ..errors import ArtMancerError
from ..images import to_pil
from ..progress import Progress
from ..recipes import DEFAULT_RECIPE
from . import adapters, checkpoints, sampler, speed
from .pipeline import NO_MEMORY, Base

logger = logging.getLogger(__name__)

ACCELERATED_SHIFT = 3.0
"""Of the noise schedule that the acceleration LoRAs for Qwen-Image were trained with."""


@dataclass(frozen=True)
class QwenEditor:
    """An Editor (see editor.py) that samples from Qwen-Image-Edit.

    base : the loaded model
    variant : "insertion", "removal" or "white_balance"
    checkpoint : the variant's LoRA
    strength : how strongly the checkpoint acts, 1 = as trained
    acceleration : a LoRA for few steps on top of it, which samples with CFG 1 and its own schedule
    memory : one of options.MEMORY_MODES, or "auto"
    """

    base: Base
    variant: str
    checkpoint: checkpoints.Checkpoint = checkpoints.NO_CHECKPOINT
    strength: float = 1.0
    acceleration: Path | None = None
    memory: str = "auto"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.acceleration and self.acceleration == self.checkpoint.path:
            raise ArtMancerError(
                "invalid_request",
                f"'{self.acceleration.name}' is both the checkpoint and the acceleration; expected "
                "two files. Leave one of them out.",
            )

    @property
    def name(self) -> str:
        return f"qwen-image-edit/{self.variant}"

    @property
    def recipe(self) -> str:
        return self.checkpoint.recipe or DEFAULT_RECIPE

    @property
    def resolution(self) -> str:
        return self.checkpoint.resolution or ("512" if self.checkpoint.path else "1 megapixel")

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(path.name for path in (self.checkpoint.path, self.acceleration) if path)

    def edit(self, request: EditRequest, progress: Progress) -> Tensor:
        """See Editor.edit. A batch is edited one by one, with seeds counting up.

        Out of GPU memory, it is tried once more, in the next mode, which needs less, with the
        halves of CFG in turn.

        Raises
        ------
        ArtMancerError : generation_failed where a checkpoint does not fit, out_of_memory
        """
        with self.base.lock, _memory_is_said():
            try:
                return self._edit(request, self.memory, progress)
            except torch.OutOfMemoryError:
                leaner = self.base.memory.leaner_mode()
            logger.warning(
                "Out of GPU memory in the mode '%s'; trying '%s'.", self.base.memory.mode, leaner
            )
            gc.collect()
            self.base.memory.offloader.empty_cache()
            return self._edit(request, leaner, progress, in_turn=True)

    def _edit(
        self, request: EditRequest, memory: str, progress: Progress, in_turn: bool = False
    ) -> Tensor:
        sampling, shift = request.sampling, None
        if self.acceleration:
            sampling, shift = replace(sampling, cfg=1.0), ACCELERATED_SHIFT
        tasks = [_task(request, index, shift) for index in range(len(request.conditions.image))]
        files = {self.checkpoint.path: self.strength, self.acceleration: 1.0}
        adapters.activate(self.base, {path: strength for path, strength in files.items() if path})
        self.base.memory.set_mode(memory, tasks[0].pixels(sampling.condition_pixels))
        edited = []
        for index, task in enumerate(tasks):
            with speed.settings(self.base, sampling):
                part = _part(progress, index, len(tasks))
                edited.append(sampler.sample(self.base, task, sampling, part, in_turn))
        return torch.cat(edited)


def _task(request: EditRequest, index: int, shift: float | None) -> sampler.SampleRequest:
    conditions, crop = request.conditions, request.conditions.crop
    height, width = crop.region.size
    background = None
    if request.sampling.keep_background:
        background = to_pil(crop.image[index]), crop.feathered[index]
    return sampler.SampleRequest(
        request.prompt,
        [to_pil(image[index]) for image in conditions.images.values()],
        height,
        width,
        request.seed + index,
        background,
        shift,
    )


def _part(progress: Progress, index: int, count: int) -> Progress:
    """The progress of one picture of a batch, as a part of the whole's."""

    def tell(done: int, total: int, stage: str, latents: Tensor | None = None) -> None:
        if stage in sampler.STAGES:
            progress(index * total + done, count * total, stage, latents)
        else:
            progress(done, total, stage, latents)

    return tell


@contextmanager
def _memory_is_said() -> Iterator[None]:
    """Say which memory was too small."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise ArtMancerError(
            "out_of_memory",
            "The GPU's memory is too small for this edit. Choose a smaller resolution in Split "
            "Conditions, the memory mode 'group offload' or the precision fp8 in Load Editor, or "
            "close other programs that use the GPU.",
        ) from None
    except RuntimeError as error:
        if NO_MEMORY not in str(error):
            raise
        raise ArtMancerError(
            "out_of_memory",
            "This computer's memory is too small for this edit. Choose a smaller resolution in "
            "Split Conditions, or close other programs.",
        ) from error
