"""The `Remote` interface to Modal: calls of workers, and data that all containers share."""

import asyncio
import io
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import modal
from grpclib.exceptions import StreamTerminatedError
from modal import exception

from ..gateway.waiting import within

if TYPE_CHECKING:
    from ..gateway.jobs import LaneName

logger = logging.getLogger(__name__)

T = TypeVar("T")

APP = "artmancer"
"""Name of the app."""

SHARED = "artmancer-jobs"
"""Name of the modal.Dict with job records, progress, uploaded images and the workers' state."""

RESULTS = "artmancer-results"
"""Name of the modal.Volume with debug sessions, and with images that are too large for a call."""

VOLUME_BYTES = 4 * 2**20
"""Size from which an image goes to the volume instead of into a call or its answer, in bytes."""

_TRIES = 8
"""Tries of a request to Modal, in all."""

_FIRST_PAUSE = 0.1
"""Seconds between the first two tries; each further pause is twice as long."""

_LONGEST_PAUSE = 1.0
"""Longest pause between two tries, in seconds."""

_REQUEST_TIMEOUT = 20.0
"""Timeout of one try in seconds. Without it, Modal's client repeats some requests without end."""

_FREE_TIMEOUT = 120.0
"""Timeout of `free` in seconds: it may wait for a worker that is busy."""

_FILE_TIMEOUT = 900.0
"""Timeout of `store` and `fetch` in seconds: a photo may have hundreds of megabytes, and a batch
sends several at a time over its user's own line.
"""

_REQUEST_ERRORS = (
    exception.AuthError,
    exception.ClientClosed,
    exception.ConnectionError,
    exception.InternalError,
    exception.PermissionDeniedError,
    exception.ResourceExhaustedError,
    exception.ServiceError,
    StreamTerminatedError,
    OSError,
)
"""Exceptions of a request for a result that failed. All others are the call's own: Modal raises
what the worker raised.
"""


class Unavailable(Exception):
    """Modal did not answer a request, in no try. The request may have had its effect."""


class Unfinished(Exception):
    """The call has no result yet."""


class CallFailed(Exception):
    """The call ended without a result."""


class CallTimeout(CallFailed):
    """The call ran into its timeout."""


class Remote(Protocol):
    """The parts of Modal that gateways and workers use. Implementations: ModalRemote, whose methods
    raise any exception where Modal does not answer, and RetryingRemote.
    """

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

    async def announce(self, job_id: str) -> None:
        """Start a call that sends a job's webhook when the job has ended; see delivery.py."""
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

    async def put_new(self, key: str, value: Any) -> bool:
        """Share a value under a key that has none; return whether it had none."""
        ...

    async def fetch(self, name: str) -> bytes:
        """Download a file from the volume of results.

        Parameters
        ----------
        name : "JOB_ID/FILE_NAME"

        Raises
        ------
        FileNotFoundError
        """
        ...

    async def store(self, name: str, data: bytes) -> None:
        """Upload a file to the volume of results, where `fetch` finds it. A day after the last
        file, workers remove its folder.

        Parameters
        ----------
        name : "FOLDER/FILE_NAME"
        """
        ...


async def retry(request: Callable[[], Awaitable[T]], timeout: float | None = None) -> T:
    """Send a request to Modal, again if it fails.

    Parameters
    ----------
    request : sends it; it may run again after it had its effect, if its answer was lost
    timeout : of one try, in seconds; default: _REQUEST_TIMEOUT

    Raises
    ------
    Unavailable : no try was answered
    Unfinished, CallFailed, FileNotFoundError : answers; they are not tried again
    """
    tries = 0
    while True:
        try:
            return await within(request(), timeout or _REQUEST_TIMEOUT)
        except (Unfinished, CallFailed, FileNotFoundError):
            raise
        # Modal's client also raises plain exceptions, for example where its queue is full.
        except Exception as error:
            tries += 1
            if tries == _TRIES:
                reason = f"{type(error).__name__}: {error}"
                logger.warning("Modal does not answer: %s", reason)
                raise Unavailable(reason) from error
        await asyncio.sleep(min(_FIRST_PAUSE * 2 ** (tries - 1), _LONGEST_PAUSE))


class RetryingRemote:
    """A Remote that sends requests again that failed. Its methods raise Unavailable where no try
    was answered.
    """

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    async def spawn(self, lane: "LaneName", order: Mapping[str, Any]) -> str:
        # A call whose id was lost in a try ends by itself; see calls.py.
        return await retry(lambda: self._remote.spawn(lane, order))

    async def result(self, call_id: str, timeout: float) -> dict[str, Any]:
        return await retry(
            lambda: self._remote.result(call_id, timeout), timeout + _REQUEST_TIMEOUT
        )

    async def announce(self, job_id: str) -> None:
        # Of two calls for a job, one ends by itself; see delivery.py.
        await retry(lambda: self._remote.announce(job_id))

    async def cancel(self, call_id: str) -> None:
        await retry(lambda: self._remote.cancel(call_id))

    async def load(self, lane: "LaneName") -> tuple[int, int]:
        return await retry(lambda: self._remote.load(lane))

    async def free(self, lane: "LaneName") -> int:
        return await retry(lambda: self._remote.free(lane), _FREE_TIMEOUT)

    async def get(self, key: str) -> Any:
        return await retry(lambda: self._remote.get(key))

    async def put(self, key: str, value: Any) -> None:
        await retry(lambda: self._remote.put(key, value))

    async def put_new(self, key: str, value: Any) -> bool:
        """See Remote.put_new; after a retry, False also where an earlier try stored the value."""
        return await retry(lambda: self._remote.put_new(key, value))

    async def fetch(self, name: str) -> bytes:
        return await retry(lambda: self._remote.fetch(name), _FILE_TIMEOUT)

    async def store(self, name: str, data: bytes) -> None:
        await retry(lambda: self._remote.store(name, data), _FILE_TIMEOUT)


class ModalRemote:
    """The Remote of an app on Modal.

    Parameters
    ----------
    workers : instances of the app's own worker classes, by lane. They belong to the app that runs
        this container, deployed or served; modal.Cls.from_name would find the deployed one only
    deliver : the app's own function that runs delivery.deliver
    """

    def __init__(self, workers: Mapping[str, Any], deliver: Any = None) -> None:
        self._shared = modal.Dict.from_name(SHARED, create_if_missing=True)
        self._results = modal.Volume.from_name(RESULTS, create_if_missing=True)
        self._workers = workers
        self._deliver = deliver

    async def spawn(self, lane: "LaneName", order: Mapping[str, Any]) -> str:
        call = await self._workers[lane].run.spawn.aio(dict(order))
        return str(call.object_id)

    async def result(self, call_id: str, timeout: float) -> dict[str, Any]:
        try:
            return dict(await modal.FunctionCall.from_id(call_id).get.aio(timeout=timeout))
        except exception.FunctionTimeoutError as error:
            raise CallTimeout(str(error)) from error
        except TimeoutError as error:
            raise Unfinished from error
        except _REQUEST_ERRORS:
            raise
        # Modal raises what the worker raised, which may be anything.
        except Exception as error:
            raise CallFailed(f"{type(error).__name__}: {error}") from error

    async def announce(self, job_id: str) -> None:
        await self._deliver.spawn.aio(job_id)

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

    async def put_new(self, key: str, value: Any) -> bool:
        return bool(await self._shared.put.aio(key, value, skip_if_exists=True))

    async def fetch(self, name: str) -> bytes:
        return b"".join([part async for part in self._results.read_file.aio(name)])

    async def store(self, name: str, data: bytes) -> None:
        async with self._results.batch_upload(force=True) as batch:
            batch.put_file(io.BytesIO(data), f"/{name}")
