"""Pictures that were sent, kept by what is in them: one that is sent twice lies here once."""

import asyncio
import hashlib
import os
import re
import time
import uuid
from collections.abc import Container
from contextlib import suppress
from pathlib import Path

from .. import images
from ..errors import ArtMancerError

_YOUNG = 60.0
NAME = re.compile(r"[0-9a-f]{64}\.(png|jpeg|webp|bmp|tiff|gif)")
_PART = re.compile(r"[0-9a-f]{32}\.part")


class Pictures:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sizes: dict[str, tuple[int, int]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    async def keep(self, data: bytes, field: str) -> str:
        """Store a picture file; the name it is known by.

        Raises
        ------
        ArtMancerError : invalid_image, image_too_large, from its header
        """
        return await asyncio.to_thread(self._keep, data, field)

    async def keep_base64(self, text: str, field: str) -> str:
        """The same for base64."""
        return await self.keep(
            await asyncio.to_thread(images.decode_base64, text, name=field), field
        )

    def _keep(self, data: bytes, field: str) -> str:
        kind, width, height = images.inspect(data, name=field)
        name = f"{hashlib.sha256(data).hexdigest()}.{kind.lower()}"
        self._sizes[name] = width, height
        self._write(name, data)
        return name

    def _write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        if path.is_file():
            os.utime(path)
        else:
            partial = self.folder / f"{uuid.uuid4().hex}.part"
            partial.write_bytes(data)
            partial.replace(path)

    def size(self, name: str) -> tuple[int, int]:
        """Width and height, upright, of a picture that was sent since the start."""
        return self._sizes[name]

    async def path(self, name: str) -> Path:
        """The file of a picture that was sent before, which counts as a use of it.

        Raises
        ------
        ArtMancerError : not_found
        """
        if path := self.find(name):
            return path
        raise ArtMancerError(
            "not_found", "The picture of this image_id is not kept any more. Send the picture."
        )

    def find(self, name: str) -> Path | None:
        path = self.folder / name
        if not NAME.fullmatch(name) or not path.is_file():
            return None
        os.utime(path)
        return path

    def tidy(self, keep: Container[str], max_age: float, max_bytes: float) -> None:
        """Remove what was last used more than max_age seconds ago,
        then the oldest until max_bytes are left.

        What came within the last minute stays: its job may be about to be accepted. So does what is
        not ours.
        """
        found = []
        for entry in os.scandir(self.folder):
            if not (NAME.fullmatch(entry.name) or _PART.fullmatch(entry.name)):
                continue
            with suppress(FileNotFoundError):  # another thread gives it its name
                found.append((entry.stat(), entry))
        total = sum(stat.st_size for stat, _ in found)
        for stat, entry in sorted(found, key=lambda one: one[0].st_mtime):
            age = time.time() - stat.st_mtime
            if entry.name not in keep and age > _YOUNG and (total > max_bytes or age > max_age):
                if os.stat(entry).st_mtime != stat.st_mtime:  # it was sent again just now
                    continue
                os.unlink(entry)
                self._sizes.pop(entry.name, None)
                total -= stat.st_size
