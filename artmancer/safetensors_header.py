"""Read the header of a safetensors file: names, shapes and metadata, without the weights.

Standard library only: `modal run` checks files with it on the deployer's machine, and the command
line lists models with it, without the seconds that the import of torch takes.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_MAX_BYTES = 2**27
"""Largest header that is read, in bytes."""


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file.

    Attributes
    ----------
    tensors : "dtype", "shape" and "data_offsets" by the tensor's name
    metadata : texts by name
    file_size : bytes the whole file has by its header
    """

    tensors: dict[str, dict[str, Any]]
    metadata: dict[str, str]
    file_size: int


def read_header(parts: Iterable[bytes]) -> Header:
    """Parse the header of a safetensors file.

    Parameters
    ----------
    parts : the file's content from its beginning; no more is read than the header's length

    Raises
    ------
    ValueError : it is not a safetensors file
    """
    data, length = b"", _MAX_BYTES
    for part in parts:
        data += part
        length = int.from_bytes(data[:8], "little")
        if len(data) >= 8 + length or length > _MAX_BYTES:
            break
    try:
        entries = json.loads(data[8 : 8 + length])
        metadata = dict(entries.pop("__metadata__", {}))
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ValueError("not a safetensors file") from error
    return Header(entries, metadata, 8 + length + end)


def file_parts(file: Any, size: int = 2**16) -> Iterable[bytes]:
    """Yield the content of an open binary file in parts of `size` bytes."""
    while part := file.read(size):
        yield part
