"""/api/generate: edits, at once or as background jobs."""

import json
import struct
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse

from ...errors import ArtMancerError
from ...images import Header
from .. import schemas
from ..edit_request import WORKFLOW, read_edit
from ..jobs import UPLOAD_ERROR, UPLOADED, Job, check_done
from ..results import in_format
from ..schemas import GenerateRequest
from ..service import Gateway, Sender, file_base64
from . import answers
from .dependencies import FastJsonRoute, GatewayDependency, SenderDependency

router = APIRouter(prefix="/api/generate", tags=["edit"], route_class=FastJsonRoute)

_HEADER_BYTES = 24
"""Leading bytes of a PNG, which end with its width and height."""

_ECHOED = (
    "prompt",
    "negative_prompt",
    "num_inference_steps",
    "true_cfg_scale",
    "frame",
    "context",
    "resolution",
    "fill_holes",
    "widen",
    "regions",
    "editor",
    "match_grain",
)
"""Inputs of the workflow that `parameters_used` repeats where the request sets them."""

_USED_SETTINGS = {
    "prompt": "prompt",
    "negative": "negative_prompt",
    "steps": "num_inference_steps",
    "cfg": "true_cfg_scale",
    "frame": "frame",
    "resolution": "resolution",
    "context": "context",
    "condition_size": "condition_size",
}
"""Names in `parameters_used` of a report's settings."""


@router.post("", responses=answers.RUN_RESPONSES, response_model=schemas.GenerateAnswer)
async def generate(
    request: GenerateRequest, gateway: GatewayDependency, sender: SenderDependency
) -> Response:
    """Edit a photo, and wait for the result."""
    job = await gateway.finish(await _submit(gateway, request, sender))
    response = await _answer(gateway, job)
    answers.warn_of_ignored(response, job.record.context["parameters"]["ignored"])
    return response


@router.post("/async", status_code=202, responses=answers.RUN_RESPONSES)
async def generate_async(
    request: GenerateRequest,
    gateway: GatewayDependency,
    sender: SenderDependency,
    response: Response,
) -> schemas.AcceptedEdit:
    """Edit a photo in the background."""
    job = await _submit(gateway, request, sender)
    ignored = job.record.context["parameters"]["ignored"]
    answers.warn_of_ignored(response, ignored)
    return schemas.AcceptedEdit(task_id=job.id, ignored=ignored)


@router.get("/status/{task_id}", responses=answers.error_responses("not_found"))
async def status(task_id: str, gateway: GatewayDependency) -> schemas.JobStatus:
    """Return a job's status and progress."""
    return await answers.job_status(gateway, await _job(gateway, task_id))


@router.get("/stream/{task_id}", responses=answers.STREAM_RESPONSES, response_class=Response)
async def stream(task_id: str, gateway: GatewayDependency) -> Response:
    """Stream a job's status as Server-Sent Events. The last event carries the result."""

    async def result_fields(job: Job) -> dict[str, Any]:
        answer, image = await _result(gateway, job)
        fields = answer.model_dump(include={"debug_info", "uploaded", "upload_error"})
        return {"result": "" if answer.uploaded else await file_base64(image), **fields}

    return answers.event_stream(gateway, await _job(gateway, task_id), result_fields)


@router.get(
    "/result/{task_id}", responses=answers.RUN_RESPONSES, response_model=schemas.GenerateAnswer
)
async def result(task_id: str, gateway: GatewayDependency) -> Response:
    """Return the answer of /api/generate for a job, or the error that it failed with."""
    job = await _job(gateway, task_id)
    check_done(job)
    return await _answer(gateway, job)


@router.get("/result-image/{task_id}", responses=answers.IMAGE_RESPONSES, response_class=Response)
async def result_image(task_id: str, gateway: GatewayDependency) -> Response:
    """Return the edited photo as a file, a PNG by default."""
    job = await _job(gateway, task_id)
    check_done(job)
    (stored,) = await gateway.jobs.result_paths(job, "image")
    path = await in_format(job, stored)
    return FileResponse(path, media_type=f"image/{path.suffix[1:]}")


@router.post("/async/cancel/{task_id}", responses=answers.CANCEL_RESPONSES)
async def cancel(task_id: str, gateway: GatewayDependency) -> schemas.Cancelled:
    """Cancel a job in any state."""
    return await answers.cancel_job(gateway, (await _job(gateway, task_id)).id)


async def _submit(gateway: Gateway, request: GenerateRequest, sender: Sender) -> Job:
    """Submit the edit that a request describes, unless the same request made it before."""
    if earlier := await gateway.claimed(sender):
        return earlier
    edit = read_edit(request)
    settings = edit.settings
    gateway.check_delivery("webhook_url", request.webhook_url)
    gateway.check_delivery("upload_url", request.upload_url)
    parameters = {
        "task_type": edit.variant,
        "seed": settings["seed"],
        # A report has them too, and those that follow the recipe.
        **{name: settings[name] for name in _ECHOED if settings[name] not in (None, "")},
        "input_quality": request.input_quality or "original",
        "mask_tool_type": request.mask_tool_type,
        "ignored": _ignored_fields(request),
    }
    if request.output_format:
        parameters["output_format"] = request.output_format
        if "output_quality" not in parameters["ignored"]:
            parameters["output_quality"] = request.output_quality
    names = {field: await gateway.keep(field, image) for field, image in edit.images.items()}
    photo = await gateway.photo_header(str(names["input_image"]))
    if reference := names.get("reference_image"):
        names["reference_image"] = await gateway.match_reference(reference, photo.profile)
    width, height = gateway.uploads.size(str(names["input_image"]))
    debug = bool(request.enable_debug)
    return await gateway.submit(
        WORKFLOW,
        {**names, **settings},
        sender=sender,
        include=["conditions"] if debug else [],
        context={
            "photo": "input_image",
            "parameters": parameters,
            "input_size": f"{width}x{height}",
            "debug": debug,
            "webhook": request.webhook_url,
            "upload": request.upload_url,
            "output": _output(request, photo),
        },
        bits=photo.bits,
    )


def _output(request: GenerateRequest, photo: Header) -> dict[str, Any]:
    """Return how the result is written; see results.in_format."""
    return {
        "format": request.output_format or "png",
        "quality": request.output_quality,
        "tables": photo.tables.as_dict() if photo.tables else None,
    }


def _ignored_fields(request: GenerateRequest) -> list[str]:
    """Return the names of a request's fields that have no effect, and of its unknown fields."""
    without_effect = [name for name in schemas.WITHOUT_EFFECT if getattr(request, name) is not None]
    if request.output_quality is not None and request.output_format in (None, "png"):
        without_effect.append("output_quality")
    return without_effect + answers.unknown_fields(request)


async def _job(gateway: Gateway, task_id: str) -> Job:
    """Return a job that one of these routes accepted.

    Raises
    ------
    ArtMancerError : not_found
    """
    job = await gateway.jobs.get(task_id)
    # /api/workflows/generate runs the same workflow, but stores no input size: `_result` could not
    # answer its jobs.
    if job.workflow != WORKFLOW or "input_size" not in job.record.context:
        raise ArtMancerError(
            "not_found",
            "The job with this id does not come from /api/generate. Use /api/jobs for it.",
        )
    return job


async def _answer(gateway: Gateway, job: Job) -> Response:
    """Answer a finished edit, with its image unless that was uploaded."""
    answer, image = await _result(gateway, job)
    if answer.uploaded:
        return answers.json_response(answer)
    return answers.json_response_with_image(answer, image)


async def _result(gateway: Gateway, job: Job) -> tuple[schemas.GenerateAnswer, Path]:
    """Return the answer to a finished edit, with an empty `image`, and the image's file."""
    context = job.record.context
    report = json.loads(job.result_value("report"))
    adapters = report["adapters"]
    (stored,) = await gateway.jobs.result_paths(job, "image")
    with stored.open("rb") as file:
        width, height = struct.unpack(">16x2L", file.read(_HEADER_BYTES))
    conditions = await gateway.result_base64(job, "conditions") if context["debug"] else None
    answer = schemas.GenerateAnswer(
        image="",
        generation_time=job.seconds,
        model_used=report["editor"],
        parameters_used={
            **_used(report),
            **context["parameters"],
            "width": width,
            "height": height,
        },
        request_id=job.id,
        debug_info=schemas.DebugInfo(
            conditional_images=conditions,
            conditional_labels=report["conditions"],
            input_image_size=context["input_size"],
            output_image_size=f"{width}x{height}",
            lora_adapter=adapters[0] if adapters else None,
            loaded_adapters=adapters,
        ),
        report=report,
        uploaded=job.result_value(UPLOADED),
        upload_error=job.result_value(UPLOAD_ERROR),
    )
    return answer, await in_format(job, stored)


def _used(report: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe and the settings that an edit used, and `recipe_settings`: those that the
    recipe has, by the same names.
    """
    settings, own = (
        {
            name: report[part][key]
            for key, name in _USED_SETTINGS.items()
            if key in report.get(part, {})
        }
        for part in ("settings", "recipe_settings")
    )
    return {
        **settings,
        "recipe": report["recipe"],
        "recipe_reason": report.get("recipe_reason"),
        "recipe_settings": own,
    }
