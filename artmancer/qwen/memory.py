"""Where the base's three models lie while one of them works."""

from itertools import pairwise
from typing import Any

import torch
from torch.nn import Module

from ..mover import Mover, size
from ..progress import Progress

PARTS = ("text_encoder", "transformer", "vae")
MODES = ("all on the GPU", "one model at a time", "group offload")
"""From the fastest to the one that needs the least memory; "auto" takes the first that fits."""

_HOOKS = ("group_offloading", "layer_execution_tracker", "lazy_prefetch_group_offloading")
"""What diffusers' group offloading leaves on a module; it has no call that takes them off."""


class Memory:
    """Where the parts of one pipeline lie.

    Parameters
    ----------
    pipeline : its components are moved
    mover : moves them
    """

    def __init__(self, pipeline: Any, mover: Mover) -> None:
        self.parts: dict[str, Module] = {name: getattr(pipeline, name) for name in PARTS}
        self.mover = mover
        self.mode = MODES[0]

    def use(self, mode: str, pixels: int) -> None:
        """Keep to one of MODES, or with "auto" to the first of them that fits, from now on.

        Parameters
        ----------
        pixels : area of all conditions and the result together, which the work grows with
        """
        mode = self._fitting(pixels) if mode == "auto" else mode
        if mode == self.mode:
            return
        streamed = [self.parts["text_encoder"], self.parts["transformer"]]
        for model in streamed:
            if mode == "group offload":
                self.mover.take(model)
                _stream(model, self.mover.device)
            elif self.mode == "group offload":
                _unstream(model)
        self.mode = mode

    def bring(self, name: str, pixels: int, progress: Progress) -> None:
        """See that a part can compute on the device."""
        if self.mode != MODES[0]:
            for other, model in self.parts.items():
                if other != name and not self._streams(other):
                    self.mover.take(model)
        if self._streams(name):
            self.mover.make_room(work(name, pixels))
        else:
            self.mover.put(self.parts[name], work(name, pixels), progress)

    def adapted(self) -> None:
        """Take note that layers were added to the transformer, or that others of them act: it is
        streamed in order.
        """
        if self._streams("transformer"):
            _unstream(self.parts["transformer"])
            _stream(self.parts["transformer"], self.mover.device)

    def leaner(self) -> str:
        """The mode that needs less memory than the present one; of the last, itself."""
        return dict(pairwise(MODES)).get(self.mode, self.mode)

    def _streams(self, name: str) -> bool:
        return self.mode == "group offload" and name != "vae"

    def _fitting(self, pixels: int) -> str:
        room = self.mover.room()
        if room is None:
            return MODES[0]
        sizes = {name: size(model) for name, model in self.parts.items()}
        there = sum(size(model, self.mover.device) for model in self.parts.values())
        most = max(work(name, pixels) for name in PARTS)
        if sum(sizes.values()) + most <= room + there:
            return MODES[0]
        if max(sizes[name] + work(name, pixels) for name in PARTS) <= room + there:
            return MODES[1]
        return MODES[2]


def work(name: str, pixels: int) -> int:
    """Bytes a part needs beside its weights, in bfloat16 at the real width;
    estimated from its activations.

    The transformer holds some 32 vectors of 3,072 for each token of 256 pixels; the VAE two maps of
    192 channels at full size, with their convolutions' workspace; the text encoder sees pictures of
    a fixed size.
    """
    return {
        "text_encoder": 2 * 2**30,
        "transformer": 2**29 + 800 * pixels,
        "vae": 2**29 + 3000 * pixels,
    }[name]


def _stream(model: Module, device: torch.device) -> None:
    from diffusers.hooks.group_offloading import apply_group_offloading

    # Pinned as they are sent: all at once would lock 57 GB of the CPU's memory.
    streams = device.type == "cuda"
    apply_group_offloading(
        model, device, offload_type="leaf_level", use_stream=streams, low_cpu_mem_usage=streams
    )


def _unstream(model: Module) -> None:
    from diffusers.hooks.hooks import HookRegistry

    registry = HookRegistry.check_if_exists_or_initialize(model)
    for hook in _HOOKS:
        registry.remove_hook(hook, recurse=True)
