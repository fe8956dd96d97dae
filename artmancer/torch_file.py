"""Read the tensors of a PyTorch .pt file, and nothing else: no code of the file runs.

A .pt file is a zip archive of raw tensors and a pickle that names them. torch.save writes one, and
so does TorchScript, the format in which LaMa is published. torch.load(weights_only=True) refuses
TorchScript, and torch.jit.load runs code of the file. This reader takes both kinds: it unpickles
into plain tuples and dictionaries, and makes the tensors itself.
"""

import math
import pickle
import zipfile
from collections import OrderedDict
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_PICKLE_BYTES = 4 << 20
"""Largest size of the pickle. That of LaMa has 0.2 MB."""

MAX_OBJECTS = 100_000
"""Largest number of objects in the pickle that are searched for tensors."""

_MAX_SHARING = 2
"""Largest size of all tensors, as a multiple of the file's size."""

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}
"""Types of tensors, by the names that the pickle has for them."""


class _Entry(NamedTuple):
    """A tensor of the pickle, before it is made.

    Attributes
    ----------
    dtype : type of its values
    key : name of its bytes in the archive
    offset : number of values before it in these bytes
    size, stride : its shape and layout
    """

    dtype: torch.dtype
    key: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .pt file by name, for example "model.1.weight".

    Parameters
    ----------
    path : a file that torch.save wrote from a state dict, or a TorchScript module

    Raises
    ------
    ValueError : it is none, is incomplete, names anything but tensors, or would take far more
        memory than its own size
    OSError : it cannot be read
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, path.stat().st_size)
    # zipfile raises NotImplementedError for a compression that it does not know.
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise ValueError(f"it is not a zip archive, or it is incomplete: {error}") from error
    except (pickle.UnpicklingError, RecursionError, MemoryError) as error:
        raise ValueError(f"its pickle cannot be read: {error}") from error


def _read(archive: zipfile.ZipFile, file_size: int) -> dict[str, Tensor]:
    pickles = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
    if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES:
        raise ValueError("it has no data.pkl of a usable size")
    root = pickles[0].filename.removesuffix("data.pkl")
    entries = [entry for entry in archive.infolist() if entry.filename.startswith(f"{root}data/")]
    entries += pickles
    # PyTorch compresses code, but no data. A compressed or shared entry may be a million times
    # larger than the file.
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if not stored or sum(entry.file_size for entry in entries) > file_size:
        raise ValueError("its data is compressed; PyTorch's is not")
    try:
        content = _Unpickler(BytesIO(archive.read(pickles[0]))).load()
    # A pickle is a program, and a broken one can fail in any way.
    except Exception as error:
        raise ValueError(f"its pickle cannot be read: {error}") from error
    tensors: dict[str, Tensor] = {}
    total = 0
    for name, entry in _named_entries(content).items():
        try:
            data = archive.read(f"{root}data/{entry.key}")
        except KeyError:
            raise ValueError(f"the bytes of {name} are missing") from None
        tensors[name] = _make(entry, data)
        # Tensors may share bytes, but a file of 1 MB does not hold 1 GB of them.
        total += tensors[name].nbytes
        if total > _MAX_SHARING * file_size:
            raise ValueError(f"its tensors share bytes more than {_MAX_SHARING} times")
    return tensors


# The C version of the class allocates any amount of memory that a pickle asks for.
class _Unpickler(pickle._Unpickler):
    """An unpickler that knows the names in a file of tensors, and makes plain values for them."""

    def __init__(self, file: BytesIO) -> None:
        super().__init__(file)
        self.module = type("Module", (), {})

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return self.module
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        match module, name:
            case "torch._utils", "_rebuild_tensor_v2":
                return lambda *values: _entry(*values)
            case "collections", "OrderedDict":
                return OrderedDict
            case "torch.jit._pickle", "restore_type_tag":
                return lambda value, _: value
            case "torch.jit._pickle", str(kind) if kind.startswith("build_"):
                return lambda values: values
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no tensor")

    def persistent_load(self, pid: Any) -> Any:
        match pid:
            case ["storage", torch.dtype() as dtype, str(key), str(), int()]:
                return dtype, key
        raise pickle.UnpicklingError(f"it refers to {pid!r:.80}; expected the bytes of a tensor")


def _entry(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Entry:
    """Check the arguments of PyTorch's function that makes a tensor."""
    match storage, offset, tuple(size), tuple(stride):
        case [torch.dtype() as dtype, str(key)], int(), sizes, strides if len(sizes) == len(
            strides
        ):
            numbers = (offset, *sizes, *strides)
            if all(isinstance(number, int) and number >= 0 for number in numbers):
                return _Entry(dtype, key, offset, sizes, strides)
    raise pickle.UnpicklingError("a tensor's shape is not made of numbers")


def _make(entry: _Entry, data: bytes) -> Tensor:
    """Make a tensor from the bytes of the archive."""
    count = math.prod(entry.size)
    width = entry.dtype.itemsize
    last = entry.offset + sum(
        (side - 1) * step for side, step in zip(entry.size, entry.stride, strict=True)
    )
    # A tensor may not repeat its values: a million of them could come from one.
    if count and (last + 1 > len(data) // width or count > len(data) // width):
        raise ValueError(f"a tensor of {list(entry.size)} has {len(data)} bytes")
    if not count:
        return torch.empty(entry.size, dtype=entry.dtype)
    values = torch.frombuffer(bytearray(data), dtype=entry.dtype)
    return values.as_strided(entry.size, entry.stride, entry.offset).contiguous()


def _named_entries(content: Any) -> dict[str, _Entry]:
    """Search modules and dictionaries for tensors, and name them by their place: "model.1.bias"."""
    entries: dict[str, _Entry] = {}
    todo: list[tuple[str, Any]] = [("", content)]
    # By identity: an object that is reached on many ways would be searched as often.
    seen: dict[int, Any] = {}
    while todo:
        name, value = todo.pop()
        if isinstance(value, _Entry):
            entries[name] = value
            continue
        children = value if isinstance(value, dict) else getattr(value, "__dict__", None)
        if not isinstance(children, dict) or id(value) in seen:
            continue
        seen[id(value)] = value
        if len(todo) + len(children) > MAX_OBJECTS:
            raise ValueError("its pickle has too many objects")
        todo += [(f"{name}.{key}" if name else str(key), child) for key, child in children.items()]
    return entries
