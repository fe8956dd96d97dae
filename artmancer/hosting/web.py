"""The gateway's app in a container of Modal's."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI, Request, Response

from ..errors import ArtMancerError
from ..gateway.app import create_app
from ..gateway.jobs import HEAVY, LIGHT, LaneName
from ..gateway.runner import ComfyStatus
from ..gateway.service import Gateway, make_fetcher
from ..gateway.settings import Settings
from ..gateway.workflows import WorkflowFolder
from ..options import EDITORS
from ..variants import CHECKPOINT_FILES
from . import container
from .modal_jobs import ModalJobs
from .model_volume import BASE, Inventory, LocalVolume, take_inventory
from .remote import Remote, RetryingRemote, Unavailable, retry
from .shared import SharedDebugSessions, SharedUploadStore
from .worker import DEBUG_SESSIONS


def web_app(
    remote: Remote,
    checkpoints: Path,
    results: Path,
    reload: Callable[[], Awaitable[None]],
    commit: Callable[[], Awaitable[None]],
    settings: Settings | None = None,
) -> FastAPI:
    """Make the ASGI app of a role, `ARTMANCER_ROLE`.

    Parameters
    ----------
    checkpoints, results : folders where the volumes are mounted
    reload, commit : see SharedDebugSessions; of the volume of results
    settings : default: from the environment, with a data folder of this container's own
    """
    settings = settings or Settings(data=container.DATA)

    def build(settings: Settings) -> Gateway:
        settings.data.mkdir(parents=True, exist_ok=True)
        uploads = SharedUploadStore(settings.data / "pictures", RetryingRemote(remote))
        inventory = take_inventory(LocalVolume(checkpoints))
        expected: dict[LaneName, ComfyStatus] = {
            lane: _expected_status(inventory) for lane in (HEAVY, LIGHT)
        }
        jobs = ModalJobs(settings, uploads, remote, expected)
        debug_sessions = SharedDebugSessions(
            results / DEBUG_SESSIONS, lambda: retry(reload), lambda: retry(commit)
        )
        workflows = WorkflowFolder(settings.workflows)
        fetcher = make_fetcher(settings)
        return Gateway(settings, workflows, uploads, debug_sessions, jobs, fetcher)

    app = create_app(settings, build)
    on_error: Callable[[Request, Exception], Awaitable[Response]]
    on_error = app.exception_handlers[ArtMancerError]  # type: ignore[assignment]  # it is async

    async def on_unavailable(request: Request, error: Exception) -> Response:
        return await on_error(request, _modal_unavailable())

    app.add_exception_handler(Unavailable, on_unavailable)
    return app


def _modal_unavailable() -> ArtMancerError:
    """Make the error for a request that Modal did not answer."""
    return ArtMancerError("comfyui_unavailable", "Modal does not answer. Try again in a moment.")


def _expected_status(inventory: Inventory) -> ComfyStatus:
    """Return what a worker would report that has not been started yet."""
    pack = {
        "editors": [*EDITORS, *inventory.model_sets],
        "model_sets": [
            {"name": name, "complete": not problem, "reason": problem or None}
            for name, problem in inventory.model_sets.items()
        ],
        "lama": bool(inventory.lama),
        "bases": [BASE] if inventory.base else [],
        "checkpoints": inventory.checkpoints,
        "expected": CHECKPOINT_FILES,
        "segmenters": inventory.fastsam,
        "rembg": inventory.rembg,
        "model_loaded": False,
    }
    return ComfyStatus(True, None, {"device": "cuda", "pack": pack})
