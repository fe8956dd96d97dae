"""The `Remote` interface to Modal: calls of workers, and data that all containers share."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import modal
from modal.exception import FunctionTimeoutError

if TYPE_CHECKING:
    from ..gateway.jobs import LaneName

APP = "artmancer"
"""Name of the deployed app."""

SHARED = "artmancer-jobs"
"""Name of the modal.Dict with job records, progress, uploaded images and the workers' state."""

RESULTS = "artmancer-results"
"""Name of the modal.Volume with debug sessions, and with results that are too large for a call's
answer.
"""


class Unfinished(Exception):
    """The call has no result yet."""


class CallFailed(Exception):
    """The call ended without a result."""


class CallTimeout(CallFailed):
    """The call ran into its timeout."""


class Remote(Protocol):
    """The parts of Modal that gateways and workers use. Implementation: ModalRemote."""

    async def spawn(self, lane: "LaneName", order: Mapping[str, Any]) -> str:
        """Start a call that runs an order on a worker of this lane; return the call's id.

        Parameters
        ----------
        order : from modal_jobs.make_order
        """
        ...

    async def result(self, call_id: str, timeout: float) -> dict[str, Any]:
        """Wait for a call's result and return it; the call may be from another container.

        Parameters
        ----------
        timeout : longest wait, in seconds

        Raises
        ------
        Unfinished : there is no result within `timeout`
        CallTimeout
        CallFailed
        """
        ...

    async def cancel(self, call_id: str) -> None:
        """Cancel a call, waiting or running; a call that has ended is no error."""
        ...

    async def load(self, lane: "LaneName") -> tuple[int, int]:
        """Return how many calls wait, and how many run."""
        ...

    async def free(self, lane: "LaneName") -> int:
        """Unload the models of one worker; return the bytes of memory that were freed."""
        ...

    async def get(self, key: str) -> Any:
        """Return the value that is shared under a key; None: there is none."""
        ...

    async def put(self, key: str, value: Any) -> None:
        """Share a value under a key."""
        ...

    async def fetch(self, name: str) -> bytes:
        """Download a file from the volume of results.

        Parameters
        ----------
        name : "JOB_ID/FILE_NAME"
        """
        ...


class ModalRemote:
    """The Remote of the deployed app `artmancer`."""

    def __init__(self) -> None:
        self._shared = modal.Dict.from_name(SHARED, create_if_missing=True)
        self._results = modal.Volume.from_name(RESULTS, create_if_missing=True)
        self._workers = {
            lane: modal.Cls.from_name(APP, lane.capitalize())() for lane in ("heavy", "light")
        }

    async def spawn(self, lane: "LaneName", order: Mapping[str, Any]) -> str:
        call = await self._workers[lane].run.spawn.aio(dict(order))
        return str(call.object_id)

    async def result(self, call_id: str, timeout: float) -> dict[str, Any]:
        try:
            return dict(await modal.FunctionCall.from_id(call_id).get.aio(timeout=timeout))
        except FunctionTimeoutError as error:
            raise CallTimeout(str(error)) from error
        except TimeoutError as error:
            raise Unfinished from error
        except modal.exception.Error as error:
            raise CallFailed(str(error) or type(error).__name__) from error

    async def cancel(self, call_id: str) -> None:
        await modal.FunctionCall.from_id(call_id).cancel.aio()

    async def load(self, lane: "LaneName") -> tuple[int, int]:
        stats = await self._workers[lane].run.get_current_stats.aio()
        return stats.backlog, stats.num_running_inputs

    async def free(self, lane: "LaneName") -> int:
        return int(await self._workers[lane].free.remote.aio())

    async def get(self, key: str) -> Any:
        return await self._shared.get.aio(key)

    async def put(self, key: str, value: Any) -> None:
        await self._shared.put.aio(key, value)

    async def fetch(self, name: str) -> bytes:
        return b"".join([part async for part in self._results.read_file.aio(name)])
