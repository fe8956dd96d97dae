"""The Qwen editor: a base model with the checkpoint of one variant on it."""

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
from ..recipes import RecipeChoice, choose
from . import adapters, checkpoints, sampler, speed
from .base_folder import CPU_OUT_OF_MEMORY
from .pipeline import Base

logger = logging.getLogger(__name__)

ACCELERATED_SHIFT = 3.0
"""Shift of the noise schedule that the acceleration LoRAs for Qwen-Image were trained with."""


@dataclass(frozen=True)
class QwenEditor:
    """An Editor (see editor.py) that samples from Qwen-Image-Edit.

    Attributes
    ----------
    base : the loaded model
    variant : one of VARIANTS
    checkpoint : the variant's LoRA
    strength : strength of the checkpoint, 1 = as trained
    acceleration : a LoRA for few steps on top of the checkpoint; it is sampled with CFG 1 and its
        own noise schedule
    memory : one of MEMORY_MODES, or "auto"
    file_notes : sentences for the report, on the files

    Raises
    ------
    ArtMancerError : invalid_request where the checkpoint and the acceleration are one file
    """

    base: Base
    variant: str
    checkpoint: checkpoints.Checkpoint = checkpoints.NO_CHECKPOINT
    strength: float = 1.0
    acceleration: Path | None = None
    memory: str = "auto"
    file_notes: tuple[str, ...] = ()
    any_size = False
    keeps_surroundings = False
    steps = None

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
        return self._choice.name

    @property
    def recipe_reason(self) -> str:
        return self._choice.reason

    @property
    def resolution(self) -> str | None:
        if self.checkpoint.path is None:
            return "1 megapixel"
        return self.checkpoint.resolution

    @property
    def default_prompt(self) -> str | None:
        return self.checkpoint.prompt

    @property
    def _choice(self) -> RecipeChoice:
        path = self.checkpoint.path
        return choose(None, self.checkpoint.recipe, path.name if path else None)

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.file_notes, *self.base.notes)

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(path.name for path in (self.checkpoint.path, self.acceleration) if path)

    def edit(self, request: EditRequest, progress: Progress) -> Tensor:
        """Edit the crop, see Editor.edit. The images of a batch are edited one by one, with seeds
        counting up; one whose mask is black is not edited.

        When the GPU's memory runs out, the edit is retried once: in the next memory mode, which
        needs less, and with separate passes for classifier-free guidance. "auto" stays with that
        mode for edits of this size.

        Raises
        ------
        ArtMancerError : generation_failed where a checkpoint does not fit the base, out_of_memory
        """
        with self.base.lock, _out_of_memory_explained():
            try:
                return self._edit(request, self.memory, progress)
            except torch.OutOfMemoryError:
                full = self.base.memory.mode
            if self.memory == "auto":
                self.base.memory.ran_out()
                leaner = "auto"
            else:
                leaner = self.base.memory.leaner_mode()
            logger.warning("Out of GPU memory in the memory mode '%s'; retrying once.", full)
            gc.collect()
            self.base.memory.offloader.empty_cache()
            return self._edit(request, leaner, progress, separate_passes=True)

    def _edit(
        self, request: EditRequest, memory: str, progress: Progress, separate_passes: bool = False
    ) -> Tensor:
        sampling = request.sampling
        shift = None
        if self.acceleration:
            sampling = replace(sampling, cfg=1.0)
            shift = ACCELERATED_SHIFT
        sample_requests = [
            _sample_request(request, index, shift) for index in range(len(request.conditions.image))
        ]
        files = {self.checkpoint.path: self.strength, self.acceleration: 1.0}
        strengths = {path: strength for path, strength in files.items() if path}
        adapters.activate(self.base, strengths, in_slots=sampling.compile)
        self.base.memory.set_mode(memory, sample_requests[0].pixels(sampling.condition_pixels))
        images = []
        crop = request.conditions.crop
        for index, sample_request in enumerate(sample_requests):
            if not crop.mask[index].any():
                images.append(crop.image[index : index + 1])
                continue
            image_progress = _image_progress(progress, index, len(sample_requests))
            with speed.settings(self.base, sampling):
                image = sampler.sample(
                    self.base, sample_request, sampling, image_progress, separate_passes
                )
            images.append(image)
        return torch.cat(images)


def _sample_request(request: EditRequest, index: int, shift: float | None) -> sampler.SampleRequest:
    """Make the request for one image of a batch."""
    conditions = request.conditions
    crop = conditions.crop
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


def _image_progress(progress: Progress, index: int, count: int) -> Progress:
    """Return the progress of one image of a batch, as a part of the whole batch's."""

    def image_progress(done: int, total: int, stage: str, latents: Tensor | None = None) -> None:
        if stage in sampler.STAGES:
            progress(index * total + done, count * total, stage, latents)
        else:
            progress(done, total, stage, latents)

    return image_progress


@contextmanager
def _out_of_memory_explained() -> Iterator[None]:
    """Turn an out-of-memory error into a message that names the GPU's memory or the computer's."""
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
        if CPU_OUT_OF_MEMORY not in str(error):
            raise
        raise ArtMancerError(
            "out_of_memory",
            "This computer's memory is too small for this edit. Choose a smaller resolution in "
            "Split Conditions, or close other programs.",
        ) from error
