"""Errors of the gateway's disk in sentences: it is full, or a folder cannot be written."""

import errno
import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ArtMancerError

logger = logging.getLogger(__name__)

_MIN_FREE = 2**20
"""Free bytes below which a disk counts as full."""


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raise errors of the block's writes below a folder as errors for the user.

    Raises
    ------
    ArtMancerError : storage_full; generation_failed where the folder cannot be written
    """
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        logger.warning("could not write in %s: %s", folder, error)
        is_full = (
            error.errno in (errno.ENOSPC, errno.EDQUOT)
            if isinstance(error, OSError)
            else "is full" in str(error)
        )
        raise _full(folder) if is_full else _not_writable(folder, error) from error


def disk_problem(folder: Path) -> ArtMancerError | None:
    """Return why nothing can be written in a folder, without writing; None: it can."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return _not_writable(folder, error)
    if not os.access(folder, os.W_OK | os.X_OK):
        return _not_writable(folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    return _full(folder) if free < _MIN_FREE else None


def make_folder(folder: Path) -> None:
    """Make a folder, and check that it can be written.

    Raises
    ------
    ArtMancerError : as `disk_errors`
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if problem := disk_problem(folder):
        raise problem


def _full(folder: Path) -> ArtMancerError:
    return ArtMancerError(
        "storage_full",
        f"The disk that holds '{folder}' is full, so nothing can be stored. Free some space.",
    )


def _not_writable(folder: Path, error: Exception) -> ArtMancerError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return ArtMancerError(
        "generation_failed",
        f"The folder '{folder}' cannot be written ({reason}). Let the gateway's user write in it, "
        "or set ARTMANCER_DATA to another folder.",
    )
