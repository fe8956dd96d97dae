"""Load models onto the device they run on, and unload them."""

from itertools import chain

import torch
from torch.nn import Module

from .progress import Progress


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
        """Move a model to the CPU."""
        model.to("cpu")

    def empty_cache(self) -> None:
        """Release the device memory that torch keeps for reuse."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def model_bytes(model: Module, device: torch.device | None = None) -> int:
    """Return the bytes of a model's weights: of all of them, or of those on one device."""
    tensors = chain(model.parameters(), model.buffers())
    return sum(tensor.nbytes for tensor in tensors if device is None or tensor.device == device)


def move_model(model: Module, device: torch.device, progress: Progress) -> None:
    """Move a model to a device layer by layer.

    Parameters
    ----------
    progress : called with the megabytes that are done; if it raises, the whole model goes back to
        the CPU
    """
    layers = [
        module
        for module in model.modules()
        if any(tensor.device != device for tensor in _own_tensors(module))
    ]
    total = sum(_own_bytes(layer) for layer in layers)
    done = 0
    try:
        for layer in layers:
            progress(done >> 20, (total >> 20) + 1, f"moving {type(model).__name__} to {device}")
            done += _own_bytes(layer)
            # torch's own method for one layer; Module.to would move its children too.
            layer._apply(lambda tensor: tensor.to(device), recurse=False)
    # A cancel in ComfyUI may be a BaseException; a model that is half on the device cannot run.
    except BaseException:
        model.to("cpu")
        raise
    # Moves tensors that are neither parameters nor buffers.
    model.to(device)


def _own_tensors(module: Module) -> list[torch.Tensor]:
    return [*module.parameters(False), *module.buffers(False)]


def _own_bytes(module: Module) -> int:
    return sum(tensor.nbytes for tensor in _own_tensors(module))
