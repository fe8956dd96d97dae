"""AsyncClient: Client for asyncio."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, TypeVar

import httpx

from ..errors import ArtMancerError
from . import bodies, calls
from .bodies import ImageSource
from .calls import Accepted, Call
from .patience import POLL_SECONDS, GatewayLost, NoAnswer, Patience
from .results import EditResponse, JobStatus

T = TypeVar("T")


class AsyncClient:
    """A connection to the gateway at a URL, for asyncio. Use it in an `async with` block, or await
    `close`. Its methods are those of Client.

    Parameters
    ----------
    token : the gateway's token; None where it has none
    timeout : timeout of a request, in seconds: the longest silence of the gateway within it

    Raises
    ------
    ArtMancerError : invalid_request where the URL or the token cannot be used
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8003", token: str | None = None, timeout: float = 60
    ) -> None:
        self._connection = calls.connection(url, token, timeout)
        self._http = httpx.AsyncClient(
            base_url=self._connection.url, headers=self._connection.headers
        )

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._http.aclose()

    async def edit(
        self,
        image: ImageSource,
        prompt: str,
        *,
        mask: ImageSource | None = None,
        reference: ImageSource | None = None,
        reference_mask: ImageSource | None = None,
        task: Literal["insertion", "removal", "white_balance"] | None = None,
        on_progress: Callable[[JobStatus], None] | None = None,
        **parameters: Any,
    ) -> EditResponse:
        """Edit an image and wait for the result; see `Client.edit`.

        Cancelling the asyncio task cancels the job, and so does an exception of `on_progress`; it
        is raised again.
        """
        task_id = await self.submit(
            image,
            prompt,
            mask=mask,
            reference=reference,
            reference_mask=reference_mask,
            task=task,
            **parameters,
        )
        try:
            return await self.wait(task_id, on_progress)
        except GatewayLost:
            # The job goes on, and the error says how to get its result.
            raise
        # Ctrl-C, a cancelled task, or an exception of on_progress.
        except BaseException:
            await self._cancel_if_possible(task_id)
            raise

    async def submit(
        self,
        image: ImageSource,
        prompt: str,
        *,
        mask: ImageSource | None = None,
        reference: ImageSource | None = None,
        reference_mask: ImageSource | None = None,
        task: Literal["insertion", "removal", "white_balance"] | None = None,
        **parameters: Any,
    ) -> str:
        """Send an edit to the queue and return its task id; see `Client.submit`.

        Cancelling the asyncio task waits for the gateway's answer and cancels the job.
        """
        # In a thread: it reads files and may compress images.
        body = await asyncio.to_thread(
            bodies.edit_body,
            image,
            prompt,
            mask=mask,
            reference=reference,
            reference_mask=reference_mask,
            task=task,
            parameters=parameters,
        )
        sending = asyncio.create_task(self._send(calls.submit(body), self._connection.timeout))
        try:
            accepted = await asyncio.shield(sending)
            if accepted.ignored:
                await self._check_ignored(accepted)
        except BaseException:
            # The gateway may have queued the edit already, and only its answer names the job.
            with suppress(ArtMancerError, ConnectionError):
                await self._cancel_if_possible((await sending).task_id)
            raise
        return accepted.task_id

    async def status(self, task_id: str) -> JobStatus:
        """Return the status of a job. Raises the errors of `edit`."""
        return await self._send(calls.status(task_id), self._connection.timeout)

    async def wait(
        self, task_id: str, on_progress: Callable[[JobStatus], None] | None = None
    ) -> EditResponse:
        """Wait until a job ends and return its result; see `Client.wait`."""
        last_status: JobStatus | None = None
        while True:
            status = await self._send_patiently(calls.status(task_id), task_id)
            if on_progress and status != last_status:
                on_progress(status)
                last_status = status
            if status.ended:
                # Raises the error of a job that failed.
                return await self.result(task_id)
            await asyncio.sleep(POLL_SECONDS)

    async def result(self, task_id: str) -> EditResponse:
        """Return the result of a job; see `Client.result`."""
        return await self._send_patiently(calls.result(task_id), task_id)

    async def cancel(self, task_id: str) -> bool:
        """Cancel a job; return False where it had ended before; see `Client.cancel`."""
        return await self._send_patiently(calls.cancel(task_id), task_id)

    async def _check_ignored(self, accepted: Accepted) -> None:
        """Refuse a parameter that the gateway does not know.

        Raises
        ------
        ArtMancerError : invalid_request
        """
        try:
            names = await self._send(calls.field_names(), self._connection.timeout)
        except (ArtMancerError, ConnectionError):
            # A proxy may let only /api through. The names only help to find the mistake.
            names = frozenset()
        error = bodies.name_error(accepted.ignored, names)
        if error:
            raise error

    async def _cancel_if_possible(self, task_id: str) -> None:
        """Cancel a job before an error is raised, which is more important than errors here."""
        with suppress(ArtMancerError, ConnectionError):
            await self.cancel(task_id)

    async def _send_patiently(self, call: Call[T], task_id: str) -> T:
        """Send a request that may arrive twice. Repeat it while the gateway does not answer."""
        patience = Patience(self._connection.timeout, task_id)
        while True:
            try:
                return await self._send(call, patience.timeout)
            except NoAnswer as error:
                patience.check(error)
            await asyncio.sleep(POLL_SECONDS)

    async def _send(self, call: Call[T], timeout: float) -> T:
        """Send a request and return its result."""
        try:
            response = await self._http.request(
                call.method, call.path, content=call.body, timeout=timeout
            )
        except httpx.RequestError as error:
            raise calls.no_answer(call, self._connection, error, timeout) from error
        return calls.read_answer(call, self._connection, response)
