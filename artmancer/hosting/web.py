"""The gateway's app in a container of Modal's."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI

from ..gateway.app import create_app
from ..gateway.contract import LaneName
from ..gateway.gateway import Gateway
from ..gateway.jobs import HEAVY, LIGHT
from ..gateway.runner import Host
from ..gateway.sessions import Sessions
from ..gateway.settings import Settings
from ..gateway.workflows import Folder
from ..variants import FILES
from .jobs import ModalJobs
from .pictures import SharedPictures
from .remote import Remote
from .volume import BASE, Inventory, take_stock
from .volume import Folder as Mounted
from .worker import SESSIONS


class SharedSessions(Sessions):
    """Debug sessions that workers wrote onto a volume."""

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

    async def settle(self) -> None:
        await self._commit()


def web_app(
    remote: Remote,
    checkpoints: Path,
    results: Path,
    reload: Callable[[], Awaitable[None]],
    commit: Callable[[], Awaitable[None]],
    settings: Settings | None = None,
) -> FastAPI:
    """The ASGI app of a role, `ARTMANCER_ROLE`.

    Parameters
    ----------
    checkpoints, results : where the volumes are mounted
    reload, commit : of the volume of results: see what others wrote, show what was written
    settings : default: from the environment, with a folder of this container's for what
        is kept here
    """
    settings = settings or Settings(data=Path("/tmp/artmancer"))

    def build(settings: Settings) -> Gateway:
        settings.data.mkdir(parents=True, exist_ok=True)
        pictures = SharedPictures(settings.data / "pictures", remote)
        stock = take_stock(Mounted(checkpoints))
        known: dict[LaneName, Host] = {lane: _known(stock) for lane in (HEAVY, LIGHT)}
        jobs = ModalJobs(settings, pictures, remote, known)
        sessions = SharedSessions(results / SESSIONS, reload, commit)
        return Gateway(settings, Folder(settings.workflows), pictures, sessions, jobs)

    return create_app(settings, build)


def _known(stock: Inventory) -> Host:
    """What can be told of a worker that nobody has needed yet: it would find this."""
    pack = {
        "bases": [BASE] if stock.base else [],
        "checkpoints": stock.checkpoints,
        "expected": FILES,
        "segmenters": stock.fastsam,
        "rembg": stock.rembg,
        "model_loaded": False,
    }
    return Host(True, None, {"device": "cuda", "pack": pack})
