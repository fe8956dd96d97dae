"""Modal, as far as the gateway and the workers use it:
calls of a worker, and what all containers share.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import modal
from modal.exception import FunctionTimeoutError

if TYPE_CHECKING:
    from ..gateway.jobs import LaneName

APP = "artmancer"
SHARED = "artmancer-jobs"
"""The Dict of job records, progress, pictures and what is known of the workers."""

RESULTS = "artmancer-results"
"""The Volume of results that are too large for a call's answer."""


class Unfinished(Exception):
    """The call has no result yet."""


class CallFailed(Exception):
    """The call ended without a result."""


class CallTimeout(CallFailed):
    """The call was ended at its time limit."""


class Remote(Protocol):
    """What the parts of a deployment have in common."""

    async def spawn(self, lane: "LaneName", order: Mapping[str, Any]) -> str:
        """Have a worker of this lane run an order, see worker.Worker.run; the call's id."""
        ...

    async def result(self, call_id: str, timeout: float) -> dict[str, Any]:
        """A call's result, also in another container than the one that spawned it.

        Raises
        ------
        Unfinished : it does not come within so many seconds
        CallFailed
        """
        ...

    async def cancel(self, call_id: str) -> None:
        """End a call, waiting or running; one that has ended is no error."""
        ...

    async def load(self, lane: "LaneName") -> tuple[int, int]:
        """How many calls wait, and how many run."""
        ...

    async def free(self, lane: "LaneName") -> int:
        """Have one worker unload its models; the bytes that came free."""
        ...

    async def get(self, key: str) -> Any:
        """What was put under a key; None: nothing."""
        ...

    async def put(self, key: str, value: Any) -> None: ...

    async def fetch(self, name: str) -> bytes:
        """A result that was too large for a call's answer."""
        ...


class ModalRemote:
    """The deployed app `artmancer`."""

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
