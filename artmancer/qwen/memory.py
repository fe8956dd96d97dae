"""Placement of the base's three models while one of them runs."""

from itertools import pairwise
from typing import Any

import torch
from torch.nn import Module, ParameterDict

from ..offload import Offloader, model_bytes
from ..options import MEMORY_MODES
from ..progress import Progress

PARTS = ("text_encoder", "transformer", "vae")
"""The pipeline's components with weights."""

ALL_ON_GPU, ONE_AT_A_TIME, GROUP_OFFLOAD = MEMORY_MODES

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
    """

    def __init__(self, pipeline: Any, offloader: Offloader) -> None:
        self.parts: dict[str, Module] = {name: getattr(pipeline, name) for name in PARTS}
        self.offloader = offloader
        self.mode = ALL_ON_GPU

    def set_mode(self, mode: str, pixels: int) -> None:
        """Set the mode from now on.

        Parameters
        ----------
        mode : one of MEMORY_MODES; "auto": the first of them that fits
        pixels : area of the result and all conditions together, which the activations grow with
        """
        mode = self._fitting_mode(pixels) if mode == "auto" else mode
        if mode == self.mode:
            return
        for model in (self.parts["text_encoder"], self.parts["transformer"]):
            if mode == GROUP_OFFLOAD:
                self.offloader.unload(model)
                _start_streaming(model, self.offloader.device)
            elif self.mode == GROUP_OFFLOAD:
                _stop_streaming(model)
        self.mode = mode

    def load_part(self, name: str, pixels: int, progress: Progress) -> None:
        """Make a part ready to run on the device.

        Parameters
        ----------
        name : one of PARTS
        pixels : as for `set_mode`
        progress : called while the part is loaded; raising in it cancels
        """
        if self.mode != ALL_ON_GPU:
            for other, model in self.parts.items():
                if other != name and not self._is_streamed(other):
                    self.offloader.unload(model)
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
            _start_streaming(self.parts["transformer"], self.offloader.device)

    def leaner_mode(self) -> str:
        """Return the next mode, which needs less memory; the last mode returns itself."""
        return dict(pairwise(MEMORY_MODES)).get(self.mode, self.mode)

    def _is_streamed(self, name: str) -> bool:
        return self.mode == GROUP_OFFLOAD and name != "vae"

    def _fitting_mode(self, pixels: int) -> str:
        available = self.offloader.available_memory()
        if available is None:
            return ALL_ON_GPU
        weights = {name: model_bytes(model) for name, model in self.parts.items()}
        activations = {name: activation_bytes(name, pixels) for name in PARTS}
        available += sum(model_bytes(model, self.offloader.device) for model in self.parts.values())
        if sum(weights.values()) + max(activations.values()) <= available:
            return ALL_ON_GPU
        if max(weights[name] + activations[name] for name in PARTS) <= available:
            return ONE_AT_A_TIME
        return GROUP_OFFLOAD


def activation_bytes(name: str, pixels: int) -> int:
    """Estimate the bytes that a part needs for its activations, in bfloat16 at the real model's
    width.

    The transformer holds about 32 vectors of 3,072 for each token of 256 pixels; the VAE two maps
    of 192 channels at full size, with the workspace of their convolutions; the text encoder gets
    images of a fixed size.

    Parameters
    ----------
    name : one of PARTS
    pixels : area of the result and all conditions together
    """
    return {
        "text_encoder": 2 * 2**30,
        "transformer": 2**29 + 800 * pixels,
        "vae": 2**29 + 3000 * pixels,
    }[name]


def _start_streaming(model: Module, device: torch.device) -> None:
    """Keep a model's weights on the CPU, and send each layer to the device when it runs. The
    factors of PEFT's LoKr and LoHa stay on the device: they are in a ParameterDict, which never
    runs itself.
    """
    from diffusers.hooks.group_offloading import apply_group_offloading
    from diffusers.hooks.hooks import HookRegistry

    # low_cpu_mem_usage pins weights only while they are sent: pinning all of them would lock 57 GB
    # of the CPU's memory.
    streams = device.type == "cuda"
    apply_group_offloading(
        model, device, offload_type="leaf_level", use_stream=streams, low_cpu_mem_usage=streams
    )
    for module in model.modules():
        if isinstance(module, ParameterDict):
            registry = HookRegistry.check_if_exists_or_initialize(module)
            for hook in _HOOKS:
                registry.remove_hook(hook, recurse=False)
            module.to(device)


def _stop_streaming(model: Module) -> None:
    from diffusers.hooks.hooks import HookRegistry

    registry = HookRegistry.check_if_exists_or_initialize(model)
    for hook in _HOOKS:
        registry.remove_hook(hook, recurse=True)
