"""Images that clients sent, stored by the hash of their content: the same image is stored once."""

import asyncio
import hashlib
import os
import re
import uuid
from collections.abc import Container
from contextlib import suppress
from pathlib import Path

from .. import images
from ..errors import ArtMancerError
from .clock import SteadyClock
from .disk import disk_errors

NAME = re.compile(rf"[0-9a-f]{{64}}\.({'|'.join(images.NAMES)})")
"""Names of stored images."""

_PARTIAL_NAME = re.compile(r"[0-9a-f]{32}\.part")

_GRACE_SECONDS = 60.0
"""Age below which an image is never removed: its job may be about to be accepted."""


def describe(data: bytes, field: str) -> tuple[str, tuple[int, int]]:
    """Return the name that an image file is stored under, and its width and height, upright.

    Parameters
    ----------
    field : what a message calls the image

    Raises
    ------
    ArtMancerError : invalid_image, image_too_large, from its header
    """
    kind, width, height = images.inspect(data, name=field)
    return f"{hashlib.sha256(data).hexdigest()}.{kind.lower()}", (width, height)


class UploadStore:
    """Images in a folder on this machine.

    Attributes
    ----------
    clock : the times of the last use are this clock's
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = SteadyClock()
        self._sizes: dict[str, tuple[int, int]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    async def keep(self, data: bytes, field: str) -> str:
        """Store an image file and return its name.

        Parameters
        ----------
        field : what a message calls the image

        Raises
        ------
        ArtMancerError : invalid_image, image_too_large, from its header; storage_full
        """
        return await asyncio.to_thread(self._keep, data, field)

    async def keep_base64(self, text: str, field: str) -> str:
        """Store an image that came as base64; see `keep`."""
        return await self.keep(
            await asyncio.to_thread(images.decode_base64, text, name=field), field
        )

    def _keep(self, data: bytes, field: str) -> str:
        name, size = describe(data, field)
        self._sizes[name] = size
        self._write(name, data)
        return name

    def _write(self, name: str, data: bytes) -> None:
        if self.find(name):
            return
        with disk_errors(self.folder):
            self.folder.mkdir(exist_ok=True)
            partial = self.folder / f"{uuid.uuid4().hex}.part"
            try:
                partial.write_bytes(data)
                self._mark_used(partial)
                partial.replace(self.folder / name)
            except OSError:
                partial.unlink(missing_ok=True)
                raise

    def size(self, name: str) -> tuple[int, int]:
        """Return the width and height, upright, of an image that was stored since the start."""
        return self._sizes[name]

    async def path(self, name: str) -> Path:
        """Return the file of a stored image; this counts as a use of it.

        Raises
        ------
        ArtMancerError : not_found
        """
        if path := self.find(name):
            return path
        raise ArtMancerError(
            "not_found",
            # Older clients search for the first words.
            "Image ID not found or expired. Send the image again.",
        )

    def find(self, name: str) -> Path | None:
        """Return the file of a stored image; None: it is gone."""
        path = self.folder / name
        if not NAME.fullmatch(name) or not path.is_file():
            return None
        # In a folder that cannot be written, nothing is removed either.
        with suppress(OSError):
            self._mark_used(path)
        return path

    def _mark_used(self, path: Path) -> None:
        now = self.clock.now()
        os.utime(path, (now, now))

    def move_times(self, seconds: float) -> None:
        """Add seconds to the times of the last use; see JobStore.resume_times."""
        for entry in os.scandir(self.folder):
            with suppress(OSError):
                used = entry.stat().st_mtime + seconds
                os.utime(entry, (used, used))

    def tidy(self, keep: Container[str], max_age: float, max_bytes: float) -> None:
        """Remove images that were last used more than `max_age` seconds ago, then the oldest until
        `max_bytes` are left. Other files stay.

        Parameters
        ----------
        keep : names that stay
        """
        files = []
        for entry in os.scandir(self.folder):
            if not (NAME.fullmatch(entry.name) or _PARTIAL_NAME.fullmatch(entry.name)):
                continue
            with suppress(FileNotFoundError):  # another thread renames it
                files.append((entry.stat(), entry))
        total = sum(status.st_size for status, _ in files)
        for status, entry in sorted(files, key=lambda file: file[0].st_mtime):
            age = self.clock.now() - status.st_mtime
            too_old = total > max_bytes or age > max_age
            if entry.name not in keep and age > _GRACE_SECONDS and too_old:
                if os.stat(entry).st_mtime != status.st_mtime:  # it was used again just now
                    continue
                os.unlink(entry)
                self._sizes.pop(entry.name, None)
                total -= status.st_size
