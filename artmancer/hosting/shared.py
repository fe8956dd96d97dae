"""Uploads and debug sessions that all containers of a deployment share."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from ..gateway.debug_sessions import DebugSessions
from ..gateway.upload_store import NAME, UploadStore
from .remote import Remote


class SharedUploadStore(UploadStore):
    """Images that clients uploaded to any container.

    Modal's Dict holds all of them, the folder only those that this container used.
    """

    def __init__(self, folder: Path, remote: Remote) -> None:
        super().__init__(folder)
        self._remote = remote
        self._shared: set[str] = set()

    async def keep(self, data: bytes, field: str) -> str:
        name = await super().keep(data, field)
        if name not in self._shared:
            await self._remote.put(f"picture:{name}", data)
            self._shared.add(name)
        return name

    async def receive(self, name: str, data: bytes) -> None:
        """Store an image that came with its job, for this container alone."""
        await asyncio.to_thread(self._write, name, data)

    async def path(self, name: str) -> Path:
        if NAME.fullmatch(name) and not self.find(name):
            data = await self._remote.get(f"picture:{name}")
            if data is not None:
                await asyncio.to_thread(self._write, name, data)
        return await super().path(name)


class SharedDebugSessions(DebugSessions):
    """Debug sessions that workers wrote to a volume.

    Parameters
    ----------
    reload : makes the changes of other containers visible in this one
    commit : makes the changes of this container visible in the others
    """

    def __init__(
        self,
        folder: Path,
        reload: Callable[[], Awaitable[None]],
        commit: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(folder)
        self._reload = reload
        self._commit = commit

    async def refresh(self) -> None:
        await self._reload()

    async def publish(self) -> None:
        await self._commit()
