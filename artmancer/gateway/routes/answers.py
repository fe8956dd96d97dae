"""Responses that routes share: JSON with images, job status, event streams, files and errors."""

import math
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pybase64
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel
from pydantic_core import to_json

from ...errors import CODES, ArtMancerError
from .. import schemas
from ..jobs import Job
from ..service import Gateway

HEARTBEAT = 5.0
"""Longest pause between two events of a stream, in seconds. The page treats a stream as broken
after three such pauses (page/job.js).
"""

_CHUNK_BYTES = 3 * 2**15
"""Bytes of an image that are encoded at a time. It is a multiple of 3, so that the base64 of the
chunks, joined, is the base64 of the file.
"""

_MAX_UNKNOWN_FIELDS = 50
"""Number of a request's unknown fields that are named in the answer."""

_MAX_FIELD_LENGTH = 80
"""Characters of an unknown field's name that are repeated."""

_MAX_WARNING_LENGTH = 1000
"""Characters of a header Warning: a proxy may refuse an answer with longer headers."""

_COMMON_ERRORS = ("invalid_request", "unauthorized", "image_too_large", "timeout")
"""Error codes of every route: from the middleware and from parsing the request."""


def error_responses(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Return the error responses that a route documents, by HTTP status.

    Parameters
    ----------
    codes : the route's error codes, besides those of every route
    """
    codes_by_status: dict[int, list[str]] = defaultdict(list)
    for code in (*_COMMON_ERRORS, *codes):
        codes_by_status[CODES[code].status].append(code)
    return {
        status: {"model": schemas.Failure, "description": "; ".join(names)}
        for status, names in codes_by_status.items()
    }


RUN_RESPONSES = error_responses(
    "invalid_image",
    "mask_missing",
    "mask_empty",
    "reference_missing",
    "not_found",
    "object_not_found",
    "not_finished",
    "idempotency_conflict",
    "queue_full",
    "generation_failed",
    "checkpoint_missing",
    "comfyui_unavailable",
    "out_of_memory",
    "storage_full",
)
"""Error responses of a route that runs a job."""

CANCEL_RESPONSES = error_responses("not_found", "storage_full")
"""Error responses of a route that cancels a job."""

STREAM_RESPONSES: dict[int | str, dict[str, Any]] = {
    **error_responses("not_found"),
    200: {
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
        "description": "The job's status, as Server-Sent Events.",
    },
}
"""Responses of a route that streams a job's status."""


def _file_responses(*kinds: str) -> dict[int | str, dict[str, Any]]:
    content = {
        f"image/{kind}": {"schema": {"type": "string", "format": "binary"}} for kind in kinds
    }
    return {**RUN_RESPONSES, 200: {"content": content, "description": "The image."}}


PNG_RESPONSES = _file_responses("png")
"""Responses of a route that returns a PNG file."""

PREVIEW_RESPONSES = _file_responses("jpeg")
"""Responses of a route that returns a photo for a browser."""

IMAGE_RESPONSES = _file_responses("png", "webp", "jpeg")
"""Responses of a route that returns an edited photo."""


def json_response(model: BaseModel, ignored: Sequence[str] = ()) -> Response:
    """Return a model as JSON. It is not validated a second time: it may hold large images.

    Parameters
    ----------
    ignored : the request's fields that have no effect
    """
    response = Response(to_json(model, by_alias=True), media_type="application/json")
    warn_of_ignored(response, ignored)
    return response


def json_response_with_image(model: schemas.GenerateAnswer, image: Path) -> Response:
    """Return a model as JSON, with this file in its field `image`, which is empty so far.

    The file may be large, so it is encoded while it is sent.
    """
    head, field, tail = to_json(model).partition(b'"image":"')

    async def body() -> AsyncIterator[bytes]:
        yield head + field
        with image.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield pybase64.b64encode(chunk)
        yield tail

    base64_length = 4 * math.ceil(image.stat().st_size / 3)
    length = len(head + field + tail) + base64_length
    return StreamingResponse(
        body(), headers={"Content-Length": str(length)}, media_type="application/json"
    )


def unknown_fields(request: schemas.OpenRequest) -> list[str]:
    """Return the names of a request's fields that its schema does not have."""
    names = sorted(name[:_MAX_FIELD_LENGTH] for name in request.model_extra or {})
    return names[:_MAX_UNKNOWN_FIELDS]


def warn_of_ignored(response: Response, fields: Sequence[str]) -> None:
    """Name a request's fields that have no effect in the response's header Warning (RFC 7234)."""
    if fields:
        # A header holds visible ASCII; a field's name may hold anything.
        names = ", ".join(field.encode("ascii", "backslashreplace").decode() for field in fields)
        text = re.sub(r'[^ -~]|["\\]', "?", f"without effect: {names}")
        response.headers["Warning"] = f'299 - "{text[:_MAX_WARNING_LENGTH]}"'


async def job_status(gateway: Gateway, job: Job) -> schemas.JobStatus:
    """Return the status of a job as clients get it. A job whose result is gone has failed."""
    status = schemas.JobStatus.of(job, gateway.jobs.position(job))
    try:
        for name in job.outputs or {}:
            await gateway.jobs.result_paths(job, name)
    except ArtMancerError as gone:
        status.status, status.error = "error", str(gone)
    return status


def event_stream(
    gateway: Gateway, job: Job, result_fields: Callable[[Job], Awaitable[dict[str, Any]]]
) -> Response:
    """Stream a job's status as Server-Sent Events: at once, at each change, and every HEARTBEAT
    seconds. Each event is one `data:` line.

    Parameters
    ----------
    result_fields : returns the fields that the last event of a successful job has besides the
        status
    """

    async def events() -> AsyncIterator[bytes]:
        async for update in gateway.jobs.follow(job.id, HEARTBEAT):
            event = (await job_status(gateway, update)).model_dump()
            if event["status"] == "done":
                event |= await result_fields(update)
            yield b"data: " + to_json(event) + b"\n\n"

    # Neither a cache nor nginx may hold events back.
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


async def cancel_job(gateway: Gateway, job_id: str) -> schemas.Cancelled:
    """Cancel a job in any state. A job that is cancelled already counts as a success."""
    if await gateway.jobs.cancel(job_id):
        return schemas.Cancelled(success=True, message="The job is cancelled.", task_id=job_id)
    state = (await gateway.jobs.get(job_id)).state
    return schemas.Cancelled(
        success=state == "cancelled",
        message=f"The job had already ended: {state}.",
        task_id=job_id,
    )
