"""Client: the methods wait for the gateway's answer."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
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


class Client:
    """A connection to the gateway at a URL. Use it in a `with` block, or call `close`.

    Threads can share it.

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
        self._http = httpx.Client(base_url=self._connection.url, headers=self._connection.headers)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def edit(
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
        """Edit an image and wait for the result. Ctrl-C cancels the job, and so does an exception
        of `on_progress`; it is raised again.

        Parameters
        ----------
        prompt : the edit in words
        mask : an image, white = edit; required for insertion and removal
        reference : an image of the object to insert
        reference_mask : white where the object is in the reference
        task : kind of edit; None: insertion with a reference, else removal with a mask, else white
            balance
        on_progress : called with each new status
        parameters : other fields of POST /api/generate:
            seed, num_inference_steps, true_cfg_scale, context, resolution, fill_holes, widen,
            regions...

        Raises
        ------
        ArtMancerError : with the gateway's code and message; invalid_request for a parameter with
            an unknown name or a value that is no JSON, and where no gateway is at the URL
        ConnectionError : no gateway answers
        OSError : an image's file cannot be read
        """
        task_id = self.submit(
            image,
            prompt,
            mask=mask,
            reference=reference,
            reference_mask=reference_mask,
            task=task,
            **parameters,
        )
        try:
            return self.wait(task_id, on_progress)
        except GatewayLost:
            # The job goes on, and the error says how to get its result.
            raise
        # Ctrl-C, a cancelled task, or an exception of on_progress.
        except BaseException:
            self._cancel_if_possible(task_id)
            raise

    def submit(
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
        """Send an edit to the queue and return its task id; see `edit`.

        It is sent once: if the answer was lost, a second request could make a second job. A
        parameter that the gateway does not know is an error, and its job is cancelled. Ctrl-C waits
        for the gateway's answer and cancels the job; a second Ctrl-C does not wait.
        """
        body = bodies.edit_body(
            image,
            prompt,
            mask=mask,
            reference=reference,
            reference_mask=reference_mask,
            task=task,
            parameters=parameters,
        )
        sending: Future[Accepted] = Future()
        try:
            _run_in_thread(
                lambda: self._send(calls.submit(body), self._connection.timeout), sending
            )
            accepted = sending.result()
            if accepted.ignored:
                self._check_ignored(accepted)
        # Ctrl-C may come at any time, also while the thread starts.
        except BaseException:
            if not sending.cancel():
                # The gateway may have queued the edit already, and only its answer names the job.
                with suppress(ArtMancerError, ConnectionError):
                    self._cancel_if_possible(sending.result().task_id)
            raise
        return accepted.task_id

    def status(self, task_id: str) -> JobStatus:
        """Return the status of a job. Raises the errors of `edit`."""
        return self._send(calls.status(task_id), self._connection.timeout)

    def wait(
        self, task_id: str, on_progress: Callable[[JobStatus], None] | None = None
    ) -> EditResponse:
        """Wait until a job ends and return its result. Raises the errors of `edit`.

        While the gateway does not answer, for example because it restarts, the request is repeated
        for about 30 seconds, or for one `timeout` where that is longer. The job goes on if the
        waiting ends early; `cancel` ends it.
        """
        last_status: JobStatus | None = None
        while True:
            status = self._send_patiently(calls.status(task_id), task_id)
            if on_progress and status != last_status:
                on_progress(status)
                last_status = status
            if status.ended:
                # Raises the error of a job that failed.
                return self.result(task_id)
            time.sleep(POLL_SECONDS)

    def result(self, task_id: str) -> EditResponse:
        """Return the result of a job. Raises the errors of `edit`, and not_finished while the job
        runs and where it was cancelled. Repeats its request as `wait` does.
        """
        return self._send_patiently(calls.result(task_id), task_id)

    def cancel(self, task_id: str) -> bool:
        """Cancel a job; return False where it had ended before. Repeats its request as `wait`
        does.
        """
        return self._send_patiently(calls.cancel(task_id), task_id)

    def _check_ignored(self, accepted: Accepted) -> None:
        """Refuse a parameter that the gateway does not know.

        Raises
        ------
        ArtMancerError : invalid_request
        """
        try:
            names = self._send(calls.field_names(), self._connection.timeout)
        except (ArtMancerError, ConnectionError):
            # A proxy may let only /api through. The names only help to find the mistake.
            names = frozenset()
        error = bodies.name_error(accepted.ignored, names)
        if error:
            raise error

    def _cancel_if_possible(self, task_id: str) -> None:
        """Cancel a job before an error is raised, which is more important than errors here."""
        with suppress(ArtMancerError, ConnectionError):
            self.cancel(task_id)

    def _send_patiently(self, call: Call[T], task_id: str) -> T:
        """Send a request that may arrive twice. Repeat it while the gateway does not answer."""
        patience = Patience(self._connection.timeout, task_id)
        while True:
            try:
                return self._send(call, patience.timeout)
            except NoAnswer as error:
                patience.check(error)
            time.sleep(POLL_SECONDS)

    def _send(self, call: Call[T], timeout: float) -> T:
        """Send a request and return its result."""
        try:
            response = self._http.request(
                call.method, call.path, content=call.body, timeout=timeout
            )
        except httpx.RequestError as error:
            raise calls.no_answer(call, self._connection, error, timeout) from error
        return calls.read_answer(call, self._connection, response)


def _run_in_thread(function: Callable[[], T], future: "Future[T]") -> None:
    """Run a function in a thread, where Ctrl-C does not interrupt it, and put its result into a
    future. If the future was cancelled before the thread began, the function is not run.
    """

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(function())
        except Exception as error:  # noqa: BLE001  # it is raised where the result is read
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
