"""Load models onto the device they run on, and unload them."""

from itertools import chain
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from .progress import Progress

_CONTEXT_BYTES = 2**30
"""Bytes of a GPU that CUDA and other programs take."""


class Offloader:
    """Loader of models onto a device, and back to the CPU.

    In ComfyUI its memory manager does both, see nodes/comfy_host/memory.py.

    Parameters
    ----------
    device : default: CUDA if available, else the CPU
    """

    def __init__(self, device: str | torch.device | None = None) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self.device.type == "cuda" and self.device.index is None:
            # With its index, as tensors name it, so that the two compare equal.
            self.device = torch.device("cuda", torch.cuda.current_device())

    def total_memory(self) -> int | None:
        """Return the bytes of the device that models can have; None: no limit."""
        if self.device.type != "cuda":
            return None
        return torch.cuda.get_device_properties(self.device).total_memory - _CONTEXT_BYTES

    def available_memory(self) -> int | None:
        """Return the bytes that are free for more models on the device; None: no limit."""
        if self.device.type != "cuda":
            return None
        reserved = torch.cuda.memory_reserved(self.device)
        return (
            torch.cuda.mem_get_info(self.device)[0]
            + reserved
            - torch.cuda.memory_allocated(self.device)
        )

    def free_memory(self, size: int) -> None:
        """Free this many bytes on the device, for a model that is streamed and not loaded whole.

        It does nothing here: only ComfyUI has other models to unload.
        """

    def load(self, model: Module, activations: int, progress: Progress) -> None:
        """Load a model onto the device.

        Parameters
        ----------
        activations : bytes to leave free for the model's activations; used in ComfyUI only
        progress : see `move_model`
        """
        move_model(model, self.device, progress)

    def unload(self, model: Module) -> None:
        """Move a model to the CPU, see `unload_model`."""
        unload_model(model)

    def empty_cache(self) -> None:
        """Release the device memory that torch keeps for reuse."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def model_bytes(model: Module, device: torch.device | None = None) -> int:
    """Return the bytes of a model's weights: of all of them, or of those on one device."""
    tensors = chain(model.parameters(), model.buffers())
    return sum(_bytes(tensor) for tensor in tensors if device is None or tensor.device == device)


def move_model(model: Module, device: torch.device, progress: Progress) -> None:
    """Move a model to a device layer by layer. The weights that it had are kept for `unload_model`.

    Parameters
    ----------
    progress : called with the megabytes that are done; if it raises, the whole model goes back to
        the CPU
    """
    layers = [
        module
        for module in model.modules()
        if any(tensor.device != device for tensor in _own_tensors(module).values())
    ]
    total = sum(_own_bytes(layer) for layer in layers)
    done = 0
    try:
        for layer in layers:
            progress(done >> 20, (total >> 20) + 1, f"moving {type(model).__name__} to {device}")
            done += _own_bytes(layer)
            _move_layer(layer, device)
    # A cancel in ComfyUI may be a BaseException; a model that is half on the device cannot run.
    except BaseException:
        unload_model(model)
        raise
    # Moves tensors that are neither parameters nor buffers.
    model.to(device)


def unload_model(model: Module) -> None:
    """Move a model to the CPU. Weights that did not change since `move_model` are not copied: the
    tensors that they were copied from take their place, which are often mapped from a file.
    """
    for layer in model.modules():
        moved = _moved.pop(layer, {})
        for name, tensor in _own_tensors(layer).items():
            original = moved.get(name)
            if original and original.copy is tensor and original.version == tensor._version:
                setattr(layer, name, original.tensor)
    model.to("cpu")


class _Moved(NamedTuple):
    """A tensor that was moved to a device.

    Attributes
    ----------
    tensor : the parameter or buffer as it was
    copy : the one on the device that took its place
    version : the copy's version, which torch counts up when it is changed in place
    """

    tensor: Tensor
    copy: Tensor
    version: int


_moved: WeakKeyDictionary[Module, dict[str, _Moved]] = WeakKeyDictionary()
"""Moved tensors of layers that are on a device, by name."""


@torch.inference_mode(False)  # ComfyUI's nodes run in that mode, whose tensors have no version
def _move_layer(layer: Module, device: torch.device) -> None:
    moved = _moved.setdefault(layer, {})
    for name, tensor in _own_tensors(layer).items():
        if tensor.device == device:
            continue
        copy = tensor.detach().to(device)
        if isinstance(tensor, Parameter):
            copy = Parameter(copy, requires_grad=tensor.requires_grad)
        setattr(layer, name, copy)
        # Between two names of the CPU nothing was copied, and the mode's tensors stay.
        if tensor.device.type == "cpu" and not copy.is_inference():
            moved[name] = _Moved(tensor, copy, copy._version)


def _own_tensors(module: Module) -> dict[str, Tensor]:
    return dict(chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)))


def _own_bytes(module: Module) -> int:
    return sum(_bytes(tensor) for tensor in _own_tensors(module).values())


def _bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor; a quantized one of torchao holds several and has the shape and
    the type of the weight that they stand for.
    """
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.nbytes
    names, _ = tensor.__tensor_flatten__()
    return sum(_bytes(getattr(tensor, name)) for name in names)
