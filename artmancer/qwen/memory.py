"""Placement of the base's three models while one of them runs."""

from collections.abc import Sequence
from contextlib import suppress
from itertools import chain, combinations, pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

from ..offload import Offloader, model_bytes
from ..options import MEMORY_MODES
from ..progress import Progress

PARTS = ("text_encoder", "transformer", "vae")
"""The pipeline's components with weights."""

ALL_ON_GPU, ONE_AT_A_TIME, GROUP_OFFLOAD = MEMORY_MODES

_SPARE_MEMORY = 8 * 2**30
"""Bytes of the computer's memory that stay free for others when a model is pinned."""

_CGROUP = Path("/sys/fs/cgroup")
"""Folder with the limits of a container, whose memory is less than the computer's."""

_HOOKS = ("group_offloading", "layer_execution_tracker", "lazy_prefetch_group_offloading")
"""Hooks of diffusers' group offloading. They are removed by name: diffusers has no call for it."""


class Memory:
    """Placement of the models of one pipeline.

    Parameters
    ----------
    pipeline : its components are loaded and unloaded
    offloader : loads and unloads them

    Attributes
    ----------
    parts : the models by name
    mode : one of MEMORY_MODES
    note : why "auto" chose the mode, in a sentence; "": it chose the fastest, or did not choose
    """

    def __init__(self, pipeline: Any, offloader: Offloader) -> None:
        self.parts: dict[str, Module] = {name: getattr(pipeline, name) for name in PARTS}
        self.offloader = offloader
        self.mode = ALL_ON_GPU
        self.note = ""
        self._pixels = 0
        self._too_large: dict[str, int] = {}

    def set_mode(self, mode: str, pixels: int) -> None:
        """Set the mode from now on.

        Parameters
        ----------
        mode : one of MEMORY_MODES; "auto": the first of them that fits, and that did not run out of
            memory at this size before
        pixels : area of the result and all conditions together, which the activations grow with
        """
        self.note = ""
        self._pixels = pixels
        if mode == "auto":
            mode, self.note = self.fitting_mode(pixels)
        if mode == self.mode:
            return
        for model in (self.parts["text_encoder"], self.parts["transformer"]):
            if mode == GROUP_OFFLOAD:
                self.offloader.unload(model)
                self._start_streaming(model)
            elif self.mode == GROUP_OFFLOAD:
                _stop_streaming(model)
        self.mode = mode

    def load_part(self, name: str, pixels: int, progress: Progress) -> None:
        """Make a part ready to run on the device.

        Parameters
        ----------
        name : one of PARTS
        pixels : area of the images that it works on at once
        progress : called while the part is loaded; raising in it cancels
        """
        if self.mode != ALL_ON_GPU:
            self._make_room(name, pixels)
        if self._is_streamed(name):
            self.offloader.free_memory(activation_bytes(name, pixels))
        else:
            self.offloader.load(self.parts[name], activation_bytes(name, pixels), progress)

    def adapters_changed(self) -> None:
        """Restart streaming after adapters of the transformer were attached or switched: its layers
        are streamed in the order in which they ran before.
        """
        if self._is_streamed("transformer"):
            _stop_streaming(self.parts["transformer"])
            self._start_streaming(self.parts["transformer"])

    def leaner_mode(self) -> str:
        """Return the next mode, which needs less memory; the last mode returns itself."""
        return dict(pairwise(MEMORY_MODES)).get(self.mode, self.mode)

    def ran_out(self) -> None:
        """Let "auto" choose a leaner mode for edits of the last size, and for larger ones."""
        smallest = self._too_large.get(self.mode, self._pixels)
        self._too_large[self.mode] = min(smallest, self._pixels)

    def _start_streaming(self, model: Module) -> None:
        # Only the transformer runs in every step. Weights that are pinned already stay as they are.
        runs_often = model is self.parts["transformer"]
        level = "block_level" if runs_often else "leaf_level"
        _start_streaming(model, self.offloader.device, level, runs_often and _can_pin(model))

    def _make_room(self, name: str, pixels: int) -> None:
        """Unload the other parts that have to go, and no more: the small VAE does not push out the
        transformer.
        """
        others = [
            model
            for other, model in self.parts.items()
            if other != name and not self._is_streamed(other)
        ]
        others.sort(key=model_bytes)
        unloaded: Sequence[Module] = others
        available = self.offloader.available_memory()
        if available is not None:
            device = self.offloader.device
            lacking = self._missing(name, pixels) - available
            choices = chain.from_iterable(
                combinations(others, count) for count in range(len(others))
            )
            unloaded = next(
                (
                    models
                    for models in choices
                    if sum(model_bytes(model, device) for model in models) >= lacking
                ),
                others,
            )
        for model in unloaded:
            self.offloader.unload(model)

    def _missing(self, name: str, pixels: int) -> int:
        """Return the bytes that a part needs beside its weights that are on the device."""
        model = self.parts[name]
        on_device = model_bytes(model, self.offloader.device)
        weights = 0 if self._is_streamed(name) else model_bytes(model) - on_device
        return weights + activation_bytes(name, pixels)

    def _is_streamed(self, name: str) -> bool:
        return self.mode == GROUP_OFFLOAD and name != "vae"

    def needed_bytes(self, pixels: int) -> dict[str, int]:
        """Return the bytes of the device that an edit needs in the modes that load whole models, at
        most: the VAE's activations are those of an image as large as all together.
        """
        weights = {name: model_bytes(model) for name, model in self.parts.items()}
        activations = {name: activation_bytes(name, pixels) for name in PARTS}
        return {
            ALL_ON_GPU: sum(weights.values()) + max(activations.values()),
            ONE_AT_A_TIME: max(weights[name] + activations[name] for name in PARTS),
        }

    def fitting_mode(self, pixels: int) -> tuple[str, str]:
        """Return the first mode that fits, and a note on the memory where it is not the first."""
        available = self.offloader.available_memory()
        if available is None:
            return ALL_ON_GPU, ""
        device = self.offloader.device
        available += sum(model_bytes(model, device) for model in self.parts.values())
        note = ""
        for mode, size in self.needed_bytes(pixels).items():
            if pixels >= self._too_large.get(mode, pixels + 1):
                note = f"'{mode}' ran out of memory at this size before"
            elif size > available:
                note = f"'{mode}' needs {gigabytes(size)}, and {gigabytes(available)} are free"
            else:
                return mode, f"Memory '{mode}': {note}." if note else ""
        return GROUP_OFFLOAD, f"Memory '{GROUP_OFFLOAD}': {note}."


def gigabytes(size: int) -> str:
    """Return a number of bytes for a person."""
    return f"{size / 2**30:.1f} GB"


def activation_bytes(name: str, pixels: int) -> int:
    """Estimate the bytes that a part needs for its activations, in bfloat16 at the real model's
    width.

    The transformer holds about 32 vectors of 3,072 for each token of 256 pixels; the VAE two maps
    of 192 channels at full size, with the workspace of their convolutions; the text encoder gets
    images of a fixed size.

    Parameters
    ----------
    name : one of PARTS
    pixels : area of the images that it works on at once: the transformer on the result and all
        conditions, the VAE on one image
    """
    return {
        "text_encoder": 2 * 2**30,
        "transformer": 2**29 + 800 * pixels,
        "vae": 2**29 + 3200 * pixels,
    }[name]


def _can_pin(model: Module) -> bool:
    """Tell whether the computer has the memory to pin a model's weights, which then cannot be
    swapped out. Windows pins half of the memory at most.
    """
    import psutil

    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    with suppress(OSError, ValueError):  # no limit, or no container
        total = min(total, int((_CGROUP / "memory.max").read_text()))
        available = min(available, total - int((_CGROUP / "memory.current").read_text()))
    size = model_bytes(model)
    return size <= total // 2 and size <= available - _SPARE_MEMORY


def _start_streaming(model: Module, device: torch.device, level: str, pinned: bool) -> None:
    """Keep a model's weights on the CPU, and send each block or layer to the device while the one
    before it runs.

    Parameters
    ----------
    level : "block_level" for a model whose blocks are in a list of its own: the device waits once a
        block, and layers without a forward, as the factors of PEFT's LoKr and LoHa, come with their
        block; "leaf_level" for others
    pinned : pin all weights once; otherwise each block or layer is pinned every time it is sent
    """
    from diffusers.hooks.group_offloading import apply_group_offloading

    streams = device.type == "cuda"
    apply_group_offloading(
        model,
        device,
        offload_type=level,
        num_blocks_per_group=1,
        use_stream=streams,
        low_cpu_mem_usage=streams and not pinned,
    )


def _stop_streaming(model: Module) -> None:
    from diffusers.hooks.hooks import HookRegistry

    registry = HookRegistry.check_if_exists_or_initialize(model)
    for hook in _HOOKS:
        registry.remove_hook(hook, recurse=True)
