"""Write a recipe into the metadata of a checkpoint's file."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, BinaryIO

from ..errors import ArtMancerError
from ..safetensors_header import file_parts, read_header
from .checkpoints import missing
from .lora_keys import changes_layer

_ALIGNMENT = 8
"""The length of a header is a multiple of this many bytes, as safetensors writes it."""

_COPY_BYTES = 2**24
"""Bytes of weights that are copied at a time."""


def tag(path: Path, values: Mapping[str, str], output: Path | None = None) -> Path:
    """Write metadata into a safetensors file: as a copy, or in place.

    The new file is written beside its place, its weights are compared with the old file's, and only
    then takes it the place: a failure leaves the old file as it was.

    Parameters
    ----------
    values : metadata by name, without the prefix `artmancer.`, in place of all that the file has
        with this prefix; other metadata stays
    output : the copy; None: `path` itself

    Returns
    -------
    path of the file that was written

    Raises
    ------
    ArtMancerError : checkpoint_missing; generation_failed where it is not a whole safetensors file,
        or no LoRA, or cannot be written
    """
    # A link keeps pointing at the file that it names.
    target = (output or path).resolve()
    try:
        source = path.open("rb")
    except OSError:
        raise missing(path) from None
    with source:
        start, entries = _read(source, path)
        metadata = {
            **{
                name: value
                for name, value in entries.pop("__metadata__", {}).items()
                if not name.startswith("artmancer.")
            },
            **{f"artmancer.{name}": value for name, value in values.items()},
        }
        header = json.dumps(
            {"__metadata__": metadata, **entries}, separators=(",", ":"), ensure_ascii=False
        ).encode()
        header += b" " * (-len(header) % _ALIGNMENT)
        source.seek(start)
        try:
            _replace(source, header, target)
        except OSError as error:
            raise ArtMancerError(
                "generation_failed",
                f"'{target}' cannot be written ({error.strerror or error}). Choose another file "
                "with --output.",
            ) from error
    return target


def _read(source: BinaryIO, path: Path) -> tuple[int, dict[str, Any]]:
    """Return where the weights start, and the entries of the header.

    Raises
    ------
    ArtMancerError : generation_failed
    """
    try:
        header = read_header(file_parts(source))
        if header.file_size != os.fstat(source.fileno()).st_size:
            raise ValueError("not whole")
    except ValueError:
        raise ArtMancerError(
            "generation_failed",
            f"'{path.name}' is not a whole safetensors file. Download it again.",
        ) from None
    if not any(map(changes_layer, header.tensors)):
        raise ArtMancerError(
            "generation_failed",
            f"'{path.name}' is no LoRA that can be loaded: none of its {len(header.tensors)} "
            "tensors changes a layer, as transformer_blocks.0.attn.to_q.lora_A.weight does. Choose "
            "another file.",
        )
    source.seek(0)
    length = int.from_bytes(source.read(8), "little")
    entries: dict[str, Any] = json.loads(source.read(length))
    return 8 + length, entries


def _replace(source: BinaryIO, header: bytes, target: Path) -> None:
    """Write a header and the rest of the source into a new file, and put it into the target's
    place.
    """
    with NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
        new = Path(file.name)
        try:
            file.write(len(header).to_bytes(8, "little") + header)
            digest = hashlib.sha256()
            while part := source.read(_COPY_BYTES):
                digest.update(part)
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
            _check_weights(new, 8 + len(header), digest.digest())
            if target.exists():
                shutil.copymode(target, new)
            else:
                # Temporary files are private; a new file follows the process's own mask.
                mask = os.umask(0)
                os.umask(mask)
                new.chmod(0o666 & ~mask)
            new.replace(target)
        # Ctrl-C too leaves no half-written file.
        except BaseException:
            with suppress(OSError):
                new.unlink()
            raise


def _check_weights(path: Path, start: int, expected: bytes) -> None:
    """Refuse a new file whose weights differ from the old file's.

    Raises
    ------
    OSError : they differ
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while part := file.read(_COPY_BYTES):
            digest.update(part)
    if digest.digest() != expected:
        raise OSError("the weights on the disk differ from those that were written")
