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
from ..images import DISK_FULL

logger = logging.getLogger(__name__)

_MIN_FREE = 2**20
"""Free bytes below which a disk counts as full."""

_REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)
"""Error numbers that another folder or other permissions mend."""


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
            error.errno in DISK_FULL if isinstance(error, OSError) else "is full" in str(error)
        )
        raise _full(folder) if is_full else _not_writable(folder, error) from error


def disk_problem(folder: Path) -> ArtMancerError | None:
    """Return why nothing can be written in a folder, without writing; None: it can."""
    try:
        _check_access(folder)
        is_full = shutil.disk_usage(folder).free < _MIN_FREE
    except OSError as error:
        return _not_writable(folder, error)
    return _full(folder) if is_full else None


def make_folder(folder: Path) -> None:
    """Make a folder that can be written. Its disk may be full: what it holds can still be read.

    Raises
    ------
    ArtMancerError : as `disk_errors`
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _check_access(folder)


def _check_access(folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        code = errno.EACCES if folder.exists() else errno.ENOENT
        raise OSError(code, os.strerror(code))


def _full(folder: Path) -> ArtMancerError:
    return ArtMancerError(
        "storage_full",
        f"The disk that holds '{folder}' is full, so nothing can be stored. Free some space.",
    )


def _not_writable(folder: Path, error: Exception) -> ArtMancerError:
    if isinstance(error, OSError):
        reason, is_refused = error.strerror or str(error), error.errno in _REFUSALS
    else:
        reason, is_refused = str(error), "readonly" in str(error)
    advice = "Look at the gateway's log."
    if is_refused:
        advice = "Let the gateway's user write in it, or set ARTMANCER_DATA to another folder."
    return ArtMancerError(
        "generation_failed", f"The folder '{folder}' cannot be written ({reason}). {advice}"
    )
