"""What routes share: the gateway, the caller, and how pictures, jobs and failures are answered."""

import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import pybase64
from fastapi import Depends, Request
from fastapi.responses import FileResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic_core import from_json, to_json

from ...errors import CODES, ArtMancerError
from .. import schemas
from ..jobs import Job, check_done
from ..service import Gateway

HEARTBEAT = 5.0
_PART = 3 * 2**15
"""Bytes of a picture that are encoded at a time; a multiple of 3, so that the parts' base64 makes
that of the whole.
"""


# Coroutines, for FastAPI gives a function a thread.
async def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


async def _client(request: Request) -> str:
    return request.client.host if request.client else "local"


Here = Annotated[Gateway, Depends(_gateway)]
Client = Annotated[str, Depends(_client)]


class _PictureRequest(Request):
    async def json(self) -> Any:
        try:
            return from_json(await self.body())
        except ValueError as error:
            raise json.JSONDecodeError(str(error), "", 0) from None


class PictureRoute(APIRoute):
    """Its requests hold pictures, megabytes of base64; pydantic's parser takes a tenth of json's
    time for them.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def with_pictures(request: Request) -> Response:
            return await handle(_PictureRequest(request.scope, request.receive))

        return with_pictures


_OF_ANY_ROUTE = ("invalid_request", "unauthorized", "image_too_large", "timeout")
"""What the guard and the parsing of a request answer."""


def failures(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The answers besides success that a route documents."""
    found: dict[int | str, dict[str, Any]] = {}
    for code in (*_OF_ANY_ROUTE, *codes):
        row = CODES[code]
        about = found.setdefault(row.status, {"model": schemas.Failure, "description": ""})
        about["description"] = f"{about['description']}; {code}".strip("; ")
    return found


RUN_RESPONSES = failures(
    "invalid_image",
    "mask_missing",
    "mask_empty",
    "reference_missing",
    "not_found",
    "object_not_found",
    "not_finished",
    "queue_full",
    "generation_failed",
    "checkpoint_missing",
    "comfyui_unavailable",
    "out_of_memory",
)
"""Of a route that runs a job."""


def invalid(field: str, expected: str, got: str, do: str = "Change it.") -> ArtMancerError:
    """A mistake in one field of a request."""
    details = {"field": field, "expected": expected, "got": got}
    return ArtMancerError("invalid_request", f"{field}: {expected}; got {got}. {do}", details)


def answer(model: BaseModel, status: int = 200) -> Response:
    """An answer with pictures in it, which is not validated again on its way out."""
    return Response(to_json(model, by_alias=True), status, media_type="application/json")


def answer_with_picture(model: schemas.GenerateAnswer, picture: Path) -> Response:
    """An answer whose `image`, still empty, is this file;
    encoded as it is sent, for it may be large.
    """
    head, field, tail = to_json(model).partition(b'"image":"')

    async def body() -> AsyncIterator[bytes]:
        yield head + field
        with picture.open("rb") as file:
            while part := file.read(_PART):
                yield pybase64.b64encode(part)
        yield tail

    length = len(head + field + tail) + 4 * math.ceil(picture.stat().st_size / 3)
    return StreamingResponse(
        body(), headers={"Content-Length": str(length)}, media_type="application/json"
    )


def status_of(gateway: Gateway, job: Job) -> schemas.JobStatus:
    return schemas.JobStatus(
        task_id=job.id,
        status=job.state,
        progress=job.progress,
        current_step=job.step.done,
        total_steps=job.step.total,
        loading_message=job.step.stage or None if not job.ended else None,
        error=job.error["detail"] if job.error else None,
        queue_position=gateway.jobs.position(job),
    )


def stream(
    gateway: Gateway, job: Job, last: Callable[[Job], Awaitable[dict[str, Any]]]
) -> Response:
    """Server-Sent Events, each one `data:` line:
    the status at once, at each change, and every few seconds.

    Parameters
    ----------
    last : what the event of a job that is done carries besides
    """

    async def events() -> AsyncIterator[bytes]:
        async for one in gateway.jobs.follow(job.id, HEARTBEAT):
            event = status_of(gateway, one).model_dump()
            if one.state == "done":
                event |= await last(one)
            yield b"data: " + to_json(event) + b"\n\n"

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


async def cancel(gateway: Gateway, job_id: str) -> schemas.Cancelled:
    if await gateway.jobs.cancel(job_id):
        return schemas.Cancelled(success=True, message="The job is cancelled.", task_id=job_id)
    state = (await gateway.jobs.get(job_id)).state
    return schemas.Cancelled(
        success=state == "cancelled", message=f"The job had ended before: {state}.", task_id=job_id
    )


async def picture(gateway: Gateway, job: Job, name: str) -> FileResponse:
    """The first picture of a result, as a file."""
    check_done(job)
    return FileResponse((await gateway.jobs.result_paths(job, name))[0], media_type="image/png")


STREAM: dict[int | str, dict[str, Any]] = {
    **failures("not_found"),
    200: {
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
        "description": "The job's status.",
    },
}
PNG: dict[int | str, dict[str, Any]] = {
    **RUN_RESPONSES,
    200: {
        "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
        "description": "The picture.",
    },
}
