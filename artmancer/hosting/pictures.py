"""Pictures that were sent, in every container."""

import asyncio
from pathlib import Path

from ..gateway.pictures import NAME, Pictures
from .remote import Remote


class SharedPictures(Pictures):
    """The folder keeps what this container has seen; all of it is with Modal."""

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

    async def path(self, name: str) -> Path:
        if NAME.fullmatch(name) and not self.find(name):
            data = await self._remote.get(f"picture:{name}")
            if data is not None:
                await asyncio.to_thread(self._write, name, data)
        return await super().path(name)
