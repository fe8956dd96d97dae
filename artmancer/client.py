"""A client of the gateway, for Python programs. Example:

from artmancer.client import Client

with Client("http://127.0.0.1:8003") as artmancer:
    edited = artmancer.edit("room.jpg", "remove the lamp", mask="lamp-mask.png")
edited.save("room-without-lamp.png")
"""

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx

from .errors import CODES, ArtMancerError

ImageSource = bytes | str | Path
"""The bytes of an image file, or the path of the file."""

_POLL_SECONDS = 0.3
"""Seconds between two requests for a job's status."""

_RETRY_SECONDS = 30.0
"""Seconds for which a gateway that does not answer is tried again."""


@dataclass(frozen=True)
class JobStatus:
    """The state and the progress of a job.

    Attributes
    ----------
    state : "queued", "loading_pipeline", "processing", "done", "error" or "cancelled"
    progress : 0..1
    step : denoising steps that are done
    steps : denoising steps in all
    message : the current stage
    error : the reason, where the job failed
    position : position in the queue, 1 = next
    """

    state: str
    progress: float
    step: int
    steps: int
    message: str | None
    error: str | None
    position: int | None


@dataclass(frozen=True)
class EditResponse:
    """The result of an edit.

    Attributes
    ----------
    task_id : the job's id
    image : bytes of a PNG
    seconds : seconds for which the job ran
    model : the editor's name, for example "draft/removal"
    parameters : the parameters of the edit, including the seed
    report : the report on the edit; see report.Report
    """

    task_id: str
    image: bytes
    seconds: float
    model: str
    parameters: dict[str, Any]
    report: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Write the image to a file."""
        Path(path).write_bytes(self.image)


class Client:
    """A connection to the gateway at a URL. Use it in a `with` block, or call `close`.

    Parameters
    ----------
    token : the gateway's token; None where it has none
    timeout : timeout of a request, in seconds
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8003", token: str | None = None, timeout: float = 60
    ) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout)

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
        """Edit an image and wait for the result. Ctrl-C cancels the job.

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
            seed, num_inference_steps, true_cfg_scale...

        Raises
        ------
        ArtMancerError : with the gateway's code and message
        ConnectionError : no gateway answers
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
        except KeyboardInterrupt:
            self.cancel(task_id)
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
        """Send an edit to the queue and return its task id; see `edit`."""
        sources = {
            "input_image": image,
            "mask_image": mask,
            "reference_image": reference,
            "reference_mask_R": reference_mask,
        }
        images = {name: _encode(source) for name, source in sources.items() if source is not None}
        variant = {"task_type": task} if task else {}
        body = {"prompt": prompt, **images, **variant, **parameters}
        return str(self._request("POST", "/api/generate/async", json=body)["task_id"])

    def status(self, task_id: str) -> JobStatus:
        """Return the status of a job. Raises the errors of `edit`."""
        fields = self._request("GET", f"/api/generate/status/{task_id}")
        return JobStatus(
            fields["status"],
            fields["progress"],
            fields["current_step"],
            fields["total_steps"],
            fields["loading_message"],
            fields["error"],
            fields["queue_position"],
        )

    def wait(
        self, task_id: str, on_progress: Callable[[JobStatus], None] | None = None
    ) -> EditResponse:
        """Wait until a job ends and return its result. Raises the errors of `edit`.

        While the gateway does not answer, for example because it restarts, the request is retried
        for about 30 seconds.
        """
        last_status: JobStatus | None = None
        failures = 0
        while True:
            try:
                status = self.status(task_id)
                result = self.result(task_id) if status.state == "done" else None
            except ConnectionError:
                failures += 1
                if failures > _RETRY_SECONDS / _POLL_SECONDS:
                    raise
                time.sleep(_POLL_SECONDS)
                continue
            failures = 0
            if on_progress and status != last_status:
                on_progress(status)
                last_status = status
            if result:
                return result
            if status.state in ("error", "cancelled"):
                # Raises the job's error.
                return self.result(task_id)
            time.sleep(_POLL_SECONDS)

    def result(self, task_id: str) -> EditResponse:
        """Return the result of a job. Raises the errors of `edit`, and not_finished while the job
        runs and where it was cancelled.
        """
        fields = self._request("GET", f"/api/generate/result/{task_id}")
        return EditResponse(
            task_id,
            base64.b64decode(fields["image"]),
            fields["generation_time"],
            fields["model_used"],
            fields["parameters_used"],
            fields["report"],
        )

    def cancel(self, task_id: str) -> bool:
        """Cancel a job; return False where it had ended before."""
        return bool(self._request("POST", f"/api/generate/async/cancel/{task_id}")["success"])

    def _request(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """Send a request and return the fields of the response."""
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise ConnectionError(
                f"No gateway answers at {self._http.base_url} ({error or type(error).__name__}). "
                "Start a gateway with `artmancer serve`, or pass the URL of yours to Client."
            ) from error
        try:
            fields: dict[str, Any] = response.json()
        except ValueError:
            fields = {}
        if response.is_success:
            return fields
        code = fields.get("error_type")
        # Without a known code the response is not the gateway's, but for example a proxy's.
        if code not in CODES:
            response.raise_for_status()
        raise ArtMancerError(str(code), fields["detail"])


def _encode(source: ImageSource) -> str:
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    return base64.b64encode(data).decode()
