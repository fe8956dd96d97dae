"""LoRA slots: layers with room for LoRAs, which are switched by copying tensors.

torch compiles a block for its modules and the shapes of their tensors. An adapter that is attached
changes both, so each new file would be compiled anew; in slots both stay as they are.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Module, Parameter

from .lora_files import Change

_RANK_STEP = 32
"""Slots have multiples of this rank, so that few files need larger slots than files before them."""

KEPT_FILES = 4
"""Number of LoRA files whose tensors stay in memory: the least recently used beyond it leave."""


@dataclass(frozen=True)
class SlotFile:
    """A LoRA file that was read for slots.

    Attributes
    ----------
    stamp : modification time, in nanoseconds, and size, in bytes, of the file when it was read
    changes : the change of each layer, on the CPU: lora_A, lora_B, and where the file has them bias
        and gain, see Slot; None: slots cannot hold the file's changes
    norms : what is added to weights of the transformer's norms, by the parameter's name
    """

    stamp: tuple[int, int]
    changes: dict[str, Change] | None
    norms: dict[str, Tensor]

    @property
    def scales_outputs(self) -> bool:
        """True for a DoRA, which scales what the base's layers return."""
        return any("gain" in change for change in (self.changes or {}).values())


@dataclass
class Slots:
    """The slots of one base.

    Attributes
    ----------
    ranks : rank of the slot of each kind of layer: the largest that was needed so far
    files : the files in memory by path, the least recently used first
    installed : whether the slots are in the transformer now
    """

    ranks: dict[str, int] = field(default_factory=dict)
    files: dict[Path, SlotFile] = field(default_factory=dict)
    installed: bool = False

    def keep(self, path: Path, file: SlotFile) -> None:
        """Keep a file, and drop the least recently used beyond the limit."""
        self.files.pop(path, None)
        self.files[path] = file
        while len(self.files) > KEPT_FILES:
            del self.files[next(iter(self.files))]

    def make_room(self, transformer: Any, files: Iterable[dict[str, Change]]) -> bool:
        """Make the slots large enough for the changes of these files together; return True if
        slots were installed, which are empty.
        """
        ranks = {**self.ranks}
        for kind, rank in _ranks(files).items():
            ranks[kind] = max(ranks.get(kind, 0), rank)
        if self.installed and ranks == self.ranks:
            return False
        restore(transformer)
        dtype = transformer.dtype
        for name, module in list(transformer.named_modules()):
            if isinstance(module, Linear) and (rank := ranks.get(_kind(name), 0)):
                transformer.set_submodule(name, Slot(module, rank, dtype))
        self.ranks = ranks
        self.installed = True
        return True


class Gain(Module):
    """A factor for each output of a layer."""

    def __init__(self, gain: Tensor) -> None:
        super().__init__()
        self.weight = Parameter(gain, requires_grad=False)

    def forward(self, result: Tensor) -> Tensor:
        return self.weight * result


class Slot(Module):
    """A linear layer of the base with room for one LoRA, into which those of several files are
    joined.

    It returns base(x) + gain * base(x) + lora_B(lora_A(x)) + bias; gain and bias are [out].

    Parameters
    ----------
    rank : of lora_A and lora_B
    dtype : of the change
    """

    def __init__(self, base_layer: Linear, rank: int, dtype: torch.dtype) -> None:
        super().__init__()
        place: dict[str, Any] = {"device": base_layer.weight.device, "dtype": dtype}
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        # lora_files tells layers of an adapter from those of the base by "lora_".
        self.lora_A = Linear(base_layer.in_features, rank, bias=False, **place)
        self.lora_B = Linear(rank, base_layer.out_features, **place)
        self.lora_gain = Gain(torch.empty(base_layer.out_features, **place))
        for parameter in self._own_parameters():
            parameter.requires_grad_(False).zero_()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base_layer(x)
        changed: Tensor = result + self.lora_gain(result) + self.lora_B(self.lora_A(x))
        return changed

    @torch.no_grad()
    def write(self, changes: list[tuple[Change, float]]) -> None:
        """Overwrite the slot with changes and their strengths; at most one of them has a gain."""
        for parameter in self._own_parameters():
            parameter.zero_()
        start = 0
        for change, strength in changes:
            end = start + len(change["lora_A"])
            self.lora_A.weight[start:end] = change["lora_A"]
            self.lora_B.weight[:, start:end] = change["lora_B"]
            self.lora_B.weight[:, start:end] *= strength
            for name, parameter in (("bias", self.lora_B.bias), ("gain", self.lora_gain.weight)):
                if name in change:
                    parameter.add_(strength * change[name].to(parameter.device))
            start = end

    def _own_parameters(self) -> list[Tensor]:
        return [self.lora_A.weight, self.lora_B.weight, self.lora_B.bias, self.lora_gain.weight]


def write(transformer: Any, files: list[tuple[dict[str, Change], float]]) -> None:
    """Overwrite all slots with the changes of files and their strengths."""
    for name, module in transformer.named_modules():
        if isinstance(module, Slot):
            module.write([(file[name], strength) for file, strength in files if name in file])


def restore(transformer: Any) -> None:
    """Put the base's own layers back, in place of slots and of PEFT's layers around them."""
    for name, module in list(transformer.named_modules()):
        if hasattr(module, "base_layer") and ".base_layer" not in name:
            transformer.set_submodule(name, base_layer(module))


def base_layer(module: Any) -> Any:
    """Return the base's own layer inside of slots and of PEFT's layers."""
    while hasattr(module, "base_layer"):
        module = module.base_layer
    return module


def _ranks(files: Iterable[dict[str, Change]]) -> dict[str, int]:
    """Return the rank that each kind of layer needs for these files together."""
    sums: dict[str, int] = {}
    for file in files:
        for layer, change in file.items():
            sums[layer] = sums.get(layer, 0) + len(change["lora_A"])
    ranks: dict[str, int] = {}
    for layer, rank in sums.items():
        rounded = -(-rank // _RANK_STEP) * _RANK_STEP
        ranks[_kind(layer)] = max(ranks.get(_kind(layer), 0), rounded)
    return ranks


def _kind(layer: str) -> str:
    """Return the name that a layer has in every block: all blocks share their compiled code, so
    they need equal slots.
    """
    return re.sub(r"^transformer_blocks\.\d+\.", "transformer_blocks.*.", layer)
