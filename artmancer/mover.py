"""Puts models on the device where they compute, and takes them off."""

from itertools import chain

import torch
from torch.nn import Module

from .progress import Progress


class Mover:
    """Puts models on the device where they compute, and takes them off.

    In ComfyUI its memory manager does that, see comfy_host.py.

    Parameters
    ----------
    device : default: CUDA where there is one, else the CPU
    """

    def __init__(self, device: str | torch.device | None = None) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self.device.type == "cuda" and self.device.index is None:
            # As tensors name it, so that the two compare equal.
            self.device = torch.device("cuda", torch.cuda.current_device())

    def room(self) -> int | None:
        """Bytes that models could have on the device beside those that are there;
        None: no need to ask.
        """
        if self.device.type != "cuda":
            return None
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + kept

    def make_room(self, work: int) -> None:
        """See that this many bytes are free on the device,
        for work without a model of its own there.
        """

    def put(self, model: Module, work: int, progress: Progress) -> None:
        """Put a model on the device, and see that this many bytes are free for its work."""
        move(model, self.device, progress)

    def take(self, model: Module) -> None:
        """Take a model off the device."""
        model.to("cpu")

    def empty(self) -> None:
        """Give memory that is kept for reuse back to the device."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def size(model: Module, device: torch.device | None = None) -> int:
    """Bytes of a model's weights; of those on one device where that is given."""
    tensors = chain(model.parameters(), model.buffers())
    return sum(tensor.nbytes for tensor in tensors if device is None or tensor.device == device)


def move(model: Module, device: torch.device, progress: Progress) -> None:
    """Move a model layer by layer, telling the megabytes that are done; if `progress` raises, all
    of it goes back.
    """
    waiting = [
        module
        for module in model.modules()
        if any(
            tensor.device != device
            for tensor in chain(module.parameters(False), module.buffers(False))
        )
    ]
    total = sum(_own(module) for module in waiting)
    done = 0
    try:
        for module in waiting:
            progress(done >> 20, (total >> 20) + 1, f"moving {type(model).__name__} to {device}")
            done += _own(module)
            module._apply(lambda tensor: tensor.to(device), recurse=False)
    except (
        BaseException
    ):  # A cancel in ComfyUI is one too; a model half on the device cannot compute.
        model.to("cpu")
        raise
    # What is neither parameter nor buffer, and moves with the whole.
    model.to(device)


def _own(module: Module) -> int:
    return sum(tensor.nbytes for tensor in chain(module.parameters(False), module.buffers(False)))
