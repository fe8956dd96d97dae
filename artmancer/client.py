"""A client of the gateway, for Python programs.

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
"""The bytes of a picture file, or the file."""

_POLL_SECONDS = 0.3
_PATIENCE = 30.0
"""Seconds to wait for a gateway that does not answer."""


@dataclass(frozen=True)
class JobStatus:
    """Where a job is.

    state : queued, loading_pipeline, processing, done, error or cancelled
    progress : 0..1
    step, steps : of the sampling
    message : what is being done
    error : why it failed
    position : in the queue, 1 = next
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

    image : PNG bytes
    seconds : the job ran
    model : who edited, "draft/removal"
    parameters : what was used, the seed among them
    report : what was done; see the README
    """

    task_id: str
    image: bytes
    seconds: float
    model: str
    parameters: dict[str, Any]
    report: dict[str, Any]

    def save(self, path: str | Path) -> None:
        Path(path).write_bytes(self.image)


class Client:
    """Talks to the gateway at a URL; to be used in a `with`, or closed.

    Parameters
    ----------
    token : where the gateway asks for one
    timeout : seconds one request may take
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
        """Edit a picture, and wait for it; when interrupted, the job is cancelled.

        Parameters
        ----------
        prompt : the edit, in words
        mask : white = edit; needed for insertion and removal
        reference, reference_mask : the object to insert,
            and the mask that cuts it out of its picture
        task : default: a reference means insertion, a mask removal, neither white balance
        on_progress : told of each change
        parameters : other fields of POST /api/generate:
            seed, num_inference_steps, true_cfg_scale...

        Raises
        ------
        ArtMancerError : with the gateway's code and sentence
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
        """Queue an edit; its task id. See `edit`."""
        pictures = {
            "input_image": image,
            "mask_image": mask,
            "reference_image": reference,
            "reference_mask_R": reference_mask,
        }
        sent = {name: _encode(picture) for name, picture in pictures.items() if picture is not None}
        body = {"prompt": prompt, **sent, **({"task_type": task} if task else {}), **parameters}
        return str(self._ask("POST", "/api/generate/async", json=body)["task_id"])

    def status(self, task_id: str) -> JobStatus:
        said = self._ask("GET", f"/api/generate/status/{task_id}")
        return JobStatus(
            said["status"],
            said["progress"],
            said["current_step"],
            said["total_steps"],
            said["loading_message"],
            said["error"],
            said["queue_position"],
        )

    def wait(
        self, task_id: str, on_progress: Callable[[JobStatus], None] | None = None
    ) -> EditResponse:
        """Wait until a job ends; a gateway that is started again meanwhile loses nothing.
        Raises as `edit`.
        """
        shown, failures = None, 0
        while True:
            try:
                status = self.status(task_id)
                ended = self.result(task_id) if status.state == "done" else None
            except ConnectionError:
                failures += 1
                if failures > _PATIENCE / _POLL_SECONDS:
                    raise
                time.sleep(_POLL_SECONDS)
                continue
            failures = 0
            if on_progress and status != shown:
                on_progress(status)
                shown = status
            if ended:
                return ended
            if status.state in ("error", "cancelled"):
                return self.result(task_id)  # which raises
            time.sleep(_POLL_SECONDS)

    def result(self, task_id: str) -> EditResponse:
        """What became of a job. Raises as `edit`;
        not_finished while it runs, and where it was cancelled.
        """
        said = self._ask("GET", f"/api/generate/result/{task_id}")
        return EditResponse(
            task_id,
            base64.b64decode(said["image"]),
            said["generation_time"],
            said["model_used"],
            said["parameters_used"],
            said["report"],
        )

    def cancel(self, task_id: str) -> bool:
        """End a job; False: it had ended before."""
        return bool(self._ask("POST", f"/api/generate/async/cancel/{task_id}")["success"])

    def _ask(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, **more)
        except httpx.TransportError as error:
            raise ConnectionError(
                f"No gateway answers at {self._http.base_url} ({error or type(error).__name__}). "
                "Start one with `artmancer serve`, or give Client the address of yours."
            ) from error
        try:
            said: dict[str, Any] = answer.json()
        except ValueError:
            said = {}
        if answer.is_success:
            return said
        code = said.get("error_type")
        if code not in CODES:  # a proxy, or something else that is not the gateway
            answer.raise_for_status()
        raise ArtMancerError(str(code), said["detail"])


def _encode(picture: ImageSource) -> str:
    data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
    return base64.b64encode(data).decode()
