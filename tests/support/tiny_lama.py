"""A small LaMa with random weights, made of spandrel's own classes, in files like the real one."""

import functools
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn import Module

WIDTH, BLOCKS = 4, 2
"""Channels of the first layer and number of residual blocks; LaMa has 64 and 18."""


@contextmanager
def small() -> Iterator[None]:
    """Make spandrel's LaMa class, and so its loader too, build the small network."""
    from spandrel.architectures.LaMa import LaMa

    module = sys.modules[LaMa.__module__]
    original = module.FFCResNetGenerator
    module.FFCResNetGenerator = functools.partial(original, ngf=WIDTH, n_blocks=BLOCKS)
    try:
        yield
    finally:
        module.FFCResNetGenerator = original


def network(seed: int = 0) -> Module:
    """Return the network; call it inside `small`."""
    from spandrel.architectures.LaMa import LaMa

    torch.manual_seed(seed)
    lama = LaMa(in_nc=4, out_nc=3).eval()
    for name, tensor in lama.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    return lama


def save(path: Path, seed: int = 0) -> Path:
    """Write the network as TorchScript, the format of big-lama.pt; return the path."""
    with small():
        lama = network(seed)
    inputs = torch.rand(1, 3, 32, 32), torch.ones(1, 1, 32, 32)
    with torch.no_grad(), warnings.catch_warnings():
        # PyTorch advises against new files of this format; LaMa's is an old one.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(lama, inputs, check_trace=False), str(path))
    return path


def save_state_dict(path: Path, seed: int = 0) -> Path:
    """Write the network's weights with torch.save; return the path."""
    with small():
        torch.save(network(seed).state_dict(), path)
    return path
