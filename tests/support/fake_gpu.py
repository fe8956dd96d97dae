"""A GPU that is not there: cuda:0 for code that runs on a machine without CUDA.

torch's fake tensors have a device, a dtype and a shape, and no data. Here a tensor becomes one when
it moves to cuda, so that code before and after the GPU runs as always. Whole numbers and truth
values, such as token ids and positions, keep their data on the CPU, because models read them back.
"""

import math
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from artmancer.offload import Offloader

DEVICE = torch.device("cuda", 0)

_aten = torch.ops.aten


class FakeGpu(TorchDispatchMode):
    """A mode in which cuda:0 works, without results.

    Attributes
    ----------
    memory : bytes on the device now
    peak : most bytes on the device at once since `reset_peak`
    sent, fetched : bytes copied to the device, and back to the CPU
    """

    def __init__(self) -> None:
        super().__init__()
        self._fakes = FakeTensorMode(allow_non_fake_inputs=True)
        self._storages: set[int] = set()
        self.memory = 0
        self.peak = 0
        self.sent = 0
        self.fetched = 0

    def __enter__(self) -> "FakeGpu":
        # torch calls it before it makes the first tensor on cuda.
        self._lazy_init = torch.cuda._lazy_init
        torch.cuda._lazy_init = lambda: None
        # Otherwise torch.tensor(..., device="cuda") goes to the device before a mode sees it.
        torch._C._set_only_lift_cpu_tensors(True)
        self._tensor = torch.tensor
        torch.tensor = self._make_tensor
        self._attention = functional.scaled_dot_product_attention
        functional.scaled_dot_product_attention = self._attend
        self._apply = nn.Module._apply
        nn.Module._apply = _replace_tensors
        self._tolist = FakeTensor.tolist
        FakeTensor.tolist = lambda tensor: self._list_numbers(tensor)
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        torch.cuda._lazy_init = self._lazy_init
        torch._C._set_only_lift_cpu_tensors(False)
        torch.tensor = self._tensor
        functional.scaled_dot_product_attention = self._attention
        nn.Module._apply = self._apply
        FakeTensor.tolist = self._tolist

    def _make_tensor(self, data: Any, **options: Any) -> Tensor:
        """Do what torch.tensor does. torch's own reads numbers on the device without a mode."""
        numbers = tree_map(lambda x: x.item() if isinstance(x, FakeTensor) else x, data)
        result: Tensor = self._tensor(numbers, **options)
        return result

    def _list_numbers(self, tensor: FakeTensor) -> Any:
        """Do what tolist does. torch's own reads one number after the other, in seconds."""
        value = _known(tensor)
        return self._tolist(tensor) if value is None else value.tolist()

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Choose the kernel that torch chooses on a GPU; without one it chooses the slowest."""
        if query.device.type != "cuda" or query.shape[-1] > _FLASH_WIDTH:
            result: Tensor = self._attention(
                query,
                key,
                value,
                attn_mask,
                dropout_p,
                is_causal,
                scale=scale,
                enable_gqa=enable_gqa,
            )
            return result
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
        if attn_mask is None:
            flash = _aten._scaled_dot_product_flash_attention.default
            return flash(query, key, value, dropout_p, is_causal, scale=scale)[0]
        bias = attn_mask.expand(*query.shape[:-1], key.shape[-2]).to(query.dtype)
        efficient = _aten._scaled_dot_product_efficient_attention.default
        return efficient(query, key, value, bias, False, dropout_p, is_causal, scale=scale)[0]

    def reset_peak(self) -> None:
        self.peak = self.memory

    def to_fake(self, model: nn.Module) -> None:
        """Replace a model's weights and buffers on the CPU by ones without data."""
        for module in model.modules():
            for name, parameter in [*module.named_parameters(recurse=False)]:
                fake = self._fakes.from_tensor(parameter.detach())
                setattr(module, name, nn.Parameter(fake, requires_grad=False))
            for name, buffer in [*module.named_buffers(recurse=False)]:
                module._buffers[name] = self._fakes.from_tensor(buffer)

    def place(self, tensors: Iterable[Tensor], device: torch.device) -> list[Tensor]:
        """Set the device of tensors without data in place, as group offload sets their data; return
        them. They are not counted.
        """
        placed = [*tensors]
        for tensor in placed:
            assert isinstance(tensor, FakeTensor)
            tensor.fake_device = device
        return placed

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors((*args, *kwargs.values()))
        fakes = [tensor for tensor in tensors if isinstance(tensor, FakeTensor)]
        device = kwargs.get("device")
        is_to_gpu = device is not None and torch.device(device).type == "cuda"
        if not fakes and not is_to_gpu:
            return func(*args, **kwargs)
        if all(map(_is_known, tensors)):
            exact = self._exact(func, args, kwargs)
            if exact is not NotImplemented:
                return exact
        if func in (_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default):
            args = (args[0], _positions(args[1]), *args[2:])
        with self._fakes:
            result = func(*args, **kwargs)
        self._count(result)
        if func is _aten._to_copy.default and args[0].device != result.device:
            self.sent += result.nbytes if result.device == DEVICE else 0
            self.fetched += result.nbytes if result.device.type == "cpu" else 0
        return result

    def _exact(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Compute with data that is known, on the CPU; NotImplemented: the result is too large."""
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs))):
            size = args[0] if args and isinstance(args[0], (list, tuple)) else ()
            if kwargs.get("dtype") not in _EXACT and math.prod(size) > _KNOWN_NUMBERS:
                return NotImplemented
        pairs: list[tuple[Tensor, Tensor]] = []

        def to_cpu(leaf: Any) -> Any:
            if not isinstance(leaf, FakeTensor):
                return torch.device("cpu") if isinstance(leaf, torch.device) else leaf
            value = _known(leaf)
            assert value is not None
            pairs.append((value, leaf))
            return value

        result = func(*tree_map(to_cpu, args), **tree_map(to_cpu, kwargs))
        device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if device is None:
            device = next((fake.device for _, fake in pairs), DEVICE)
        leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if any(leaf.dtype not in _EXACT and leaf.numel() > _KNOWN_NUMBERS for leaf in leaves):
            return NotImplemented
        if device.type == "cpu":
            return result

        def to_gpu(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            for value, fake in pairs:
                if leaf is value:
                    return fake
            with self._fakes:
                fake = torch.empty_strided(
                    leaf.shape, leaf.stride(), dtype=leaf.dtype, device=device
                )
            # An attribute of ours on a class of torch.
            fake.known = leaf  # type: ignore[attr-defined]
            return fake

        return tree_map(to_gpu, result)

    def _count(self, result: Any) -> None:
        for leaf in _tensors((result,)):
            if not isinstance(leaf, FakeTensor) or leaf.device.type != "cuda":
                continue
            storage = leaf.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in self._storages:
                continue
            self._storages.add(key)
            self.memory += size
            self.peak = max(self.peak, self.memory)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.memory -= size


_EXACT = (torch.int64, torch.int32, torch.bool, torch.uint8)
"""Types of tensors that keep their data whatever their size."""

_FLASH_WIDTH = 256
"""Largest width of a head that the fused kernels take."""

_KNOWN_NUMBERS = 4096
"""Largest number of elements of other tensors that keep their data."""


def _replace_tensors(module: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    """Do what Module._apply does. torch's own swaps two fake tensors, which it refuses where
    something has a weak reference to one.
    """
    for child in module.children() if recurse else ():
        child._apply(fn)
    for name, parameter in [*module.named_parameters(recurse=False)]:
        moved = fn(parameter)
        if moved is not parameter:
            module._parameters[name] = nn.Parameter(moved.detach(), requires_grad=False)
    for name, buffer in [*module.named_buffers(recurse=False)]:
        module._buffers[name] = fn(buffer)
    return module


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Collect the tensors among an operation's arguments and in its lists and tuples."""
    tensors: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, (list, tuple)):
            tensors += _tensors(value)
    return tensors


def _is_known(tensor: Tensor) -> bool:
    """Tell whether results of a tensor are computed: it has data, and not much of it."""
    if isinstance(tensor, FakeTensor):
        return _known(tensor) is not None
    return tensor.dtype in _EXACT or tensor.numel() <= _KNOWN_NUMBERS


def _known(tensor: Tensor) -> Tensor | None:
    """Return the data of a fake tensor; None: it has none."""
    return getattr(tensor, "known", None)


def _positions(indices: Any) -> list[Any]:
    """Replace masks by the positions where they are true: their number is the result's size."""
    positions: list[Any] = []
    for index in indices:
        if isinstance(index, Tensor) and index.dtype == torch.bool:
            value = _known(index) if isinstance(index, FakeTensor) else index
            assert value is not None, "the mask has no data"
            positions.extend(value.nonzero(as_tuple=True))
        else:
            positions.append(index)
    return positions


class FakeOffloader(Offloader):
    """An Offloader for the GPU that is not there.

    Parameters
    ----------
    gpu : the mode
    capacity : bytes of the device
    """

    def __init__(self, gpu: FakeGpu, capacity: int) -> None:
        self.device = DEVICE
        self.gpu = gpu
        self.capacity = capacity

    def total_memory(self) -> int:
        return self.capacity

    def available_memory(self) -> int:
        return self.capacity - self.gpu.memory

    def empty_cache(self) -> None:
        pass
