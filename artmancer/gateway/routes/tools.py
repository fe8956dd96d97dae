"""/api/smart-mask and /api/image-utils: masks and tools, which take seconds."""

import json
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Form, Response

from ... import __version__
from ...errors import ArtMancerError
from .. import request_errors, schemas
from ..jobs import LIGHT, Job
from ..schemas import (
    ExtractObjectRequest,
    PreviewRequest,
    RemoveBackgroundRequest,
    ShadowRequest,
    SmartMaskRequest,
    WhiteBalanceRequest,
)
from ..service import Gateway, Sender, file_base64
from . import answers
from .dependencies import FastJsonRoute, GatewayDependency, SenderDependency

router = APIRouter(prefix="/api", tags=["masks and tools"], route_class=FastJsonRoute)

FEATHER = 8
"""Pixels over which the edge of a mask fades out when use_blur is set."""


@router.get("/", responses=answers.error_responses())
async def welcome() -> schemas.Welcome:
    """Return the name and version of this server."""
    return schemas.Welcome(
        message="ArtMancer edits photos where a mask is white. See /docs.", version=__version__
    )


@router.post("/clear-cache", responses=answers.error_responses("comfyui_unavailable"))
async def clear_cache(gateway: GatewayDependency) -> schemas.Cleared:
    """Unload all models and empty all caches of ComfyUI."""
    freed = await gateway.jobs.free()
    return schemas.Cleared(
        message="All models are unloaded and all caches are empty.", freed_bytes=freed
    )


@router.post("/smart-mask", responses=answers.RUN_RESPONSES, response_model=schemas.SmartMaskAnswer)
async def smart_mask(
    request: SmartMaskRequest, gateway: GatewayDependency, sender: SenderDependency
) -> Response:
    """Make a mask of the object at the clicks."""
    answer = await _smart_mask(request, gateway, sender)
    return answers.json_response(answer, answers.unknown_fields(request))


@router.post(
    "/smart-mask/detect", responses=answers.RUN_RESPONSES, response_model=schemas.DetectAnswer
)
async def detect(
    request: SmartMaskRequest, gateway: GatewayDependency, sender: SenderDependency
) -> Response:
    """Make a mask of the main object; clicks, box and rough mask are ignored."""
    request = request.model_copy(update={"auto_detect": True})
    answer = await _smart_mask(request, gateway, sender)
    return answers.json_response(
        schemas.DetectAnswer(**answer.model_dump(), mask=answer.mask_base64),
        answers.unknown_fields(request),
    )


@router.post("/smart-mask/cancel/{request_id}", responses=answers.CANCEL_RESPONSES)
async def cancel(request_id: str, gateway: GatewayDependency) -> schemas.MaskCancelled:
    """Cancel a request for a mask by its request_id. An unknown id is no error: a client may cancel
    before its request has arrived.
    """
    try:
        cancelled = await answers.cancel_job(gateway, request_id)
    except ArtMancerError as error:
        if error.code != "not_found":
            raise
        cancelled = schemas.Cancelled(success=False, message=str(error), task_id=request_id)
    return schemas.MaskCancelled(**cancelled.model_dump(), request_id=request_id)


@router.post(
    "/image-utils/remove-background",
    responses=answers.RUN_RESPONSES,
    response_model=schemas.RemoveBackgroundAnswer,
)
async def remove_background(
    request: RemoveBackgroundRequest, gateway: GatewayDependency, sender: SenderDependency
) -> Response:
    """Cut out the subject of an image: the background becomes transparent."""
    inputs = {
        "image": await gateway.keep("image", request.image),
        "model": _checked_choice(gateway, "remove-background", "model", request.model),
        "alpha_matting": request.alpha_matting,
    }
    job = await _run(gateway, "remove-background", inputs, sender)
    return answers.json_response(
        schemas.RemoveBackgroundAnswer(
            image=await _result_image(gateway, job, "image"),
            mask_base64=await _result_image(gateway, job, "mask"),
            model_used=json.loads(job.result_value("report"))["model"],
        ),
        answers.unknown_fields(request),
    )


@router.post(
    "/image-utils/extract-object",
    responses=answers.RUN_RESPONSES,
    response_model=schemas.ExtractObjectAnswer,
)
async def extract_object(
    request: ExtractObjectRequest, gateway: GatewayDependency, sender: SenderDependency
) -> Response:
    """Center the object on a white square of 512 or 1024 pixels."""
    inputs = {
        "image": await gateway.keep("image", request.image),
        "mask": await gateway.keep("mask", request.mask),
    }
    job = await _run(gateway, "extract-object", inputs, sender)
    image = await _result_image(gateway, job, "image")
    answer = schemas.ExtractObjectAnswer(extracted_image=image)
    return answers.json_response(answer, answers.unknown_fields(request))


@router.post(
    "/image-utils/add-shadow-preview",
    responses=answers.RUN_RESPONSES,
    response_model=schemas.ShadowAnswer,
)
async def add_shadow_preview(
    request: ShadowRequest, gateway: GatewayDependency, sender: SenderDependency
) -> Response:
    """Add a soft shadow to an object."""
    inputs = {
        "image": await gateway.keep("extracted_image", request.extracted_image),
        "mask": await gateway.keep("mask", request.mask),
        "offset_x": request.shadow_offset_x,
        "offset_y": request.shadow_offset_y,
        "opacity": request.shadow_opacity,
        "blur": request.blur_radius,
    }
    job = await _run(gateway, "add-shadow-preview", inputs, sender)
    image = await _result_image(gateway, job, "image")
    answer = schemas.ShadowAnswer(preview_image=image)
    return answers.json_response(answer, answers.unknown_fields(request))


@router.post("/image-utils/preview", responses=answers.PREVIEW_RESPONSES, response_class=Response)
async def preview(request: PreviewRequest, gateway: GatewayDependency) -> Response:
    """Return a photo as a JPEG in its own size and color profile, for a browser that cannot show
    its format.
    """
    name = await gateway.keep("image", request.image)
    response = Response(await gateway.preview(str(name)), media_type="image/jpeg")
    answers.warn_of_ignored(response, answers.unknown_fields(request))
    return response


@router.post(
    "/image-utils/white-balance",
    responses=answers.RUN_RESPONSES,
    response_model=schemas.WhiteBalanceAnswer,
)
async def white_balance(
    request: Annotated[WhiteBalanceRequest, Form(media_type="multipart/form-data")],
    gateway: GatewayDependency,
    sender: SenderDependency,
) -> Response:
    """Remove a color cast: automatically, manually, or with the editor (ai), which takes longer."""
    name = await gateway.uploads.keep(await request.file.read(), "file")
    parameters: dict[str, Any] = {"temperature": request.temperature, "tint": request.tint}
    inputs: dict[str, Any]
    if request.method == "ai":
        workflow, photo = "generate", "input_image"
        inputs = {
            "input_image": name,
            "task_type": "white_balance",
            "prompt": "correct the white balance",
        }
    else:
        workflow, photo = "white-balance", "image"
        parameters["automatic"] = 1.0 if request.method == "auto" else 0.0
        inputs = {"image": name, **parameters}
    bits = (await gateway.photo_header(name)).bits
    job = await _run(gateway, workflow, inputs, sender, context={"photo": photo}, bits=bits)
    return answers.json_response(
        schemas.WhiteBalanceAnswer(
            original_image=await file_base64(await gateway.uploads.path(name)),
            corrected_image=await _result_image(gateway, job, "image"),
            method_used=request.method,
            parameters=parameters,
        ),
        answers.unknown_fields(request),
    )


async def _run(
    gateway: Gateway,
    workflow: str,
    inputs: dict[str, Any],
    sender: Sender,
    **more: Any,
) -> Job:
    """Run a workflow, and wait until it is done.

    Parameters
    ----------
    more : see Gateway.submit
    """
    job = await gateway.submit(workflow, inputs, sender=sender, **more)
    return await gateway.finish(job)


async def _result_image(gateway: Gateway, job: Job, name: str) -> str:
    """Return the first image of a result as base64."""
    images = await gateway.result_base64(job, name)
    return images[0]


async def _smart_mask(
    request: SmartMaskRequest, gateway: Gateway, sender: Sender
) -> schemas.SmartMaskAnswer:
    """Run the workflow smart-mask."""
    if request.request_id is not None and not _is_uuid(request.request_id):
        raise request_errors.invalid("request_id", "expected a UUID in lower case", "another text")
    if request.image is not None:
        image = await gateway.keep("image", request.image)
    elif request.image_id is not None:
        image = (await gateway.uploads.path(request.image_id)).name
    else:
        raise request_errors.invalid(
            "image",
            "expected an image, or the image_id of an image that was sent before",
            "neither",
        )
    clicks: dict[str, Any] = {}
    if not request.auto_detect:
        fields = {"points": request.points, "labels": request.labels, "bbox": request.bbox}
        clicks = {name: value for name, value in fields.items() if value is not None}
    inputs = {
        "image": image,
        "prompt": json.dumps(clicks) if clicks else "",
        "model": _segmenter(gateway, request.model_type),
        "candidate": request.candidate,
        "grow": request.border_adjustment,
        "feather": FEATHER if request.use_blur else None,
    }
    if not request.auto_detect:
        inputs["brush"] = await gateway.keep("mask", request.mask)
    job = await _run(gateway, "smart-mask", inputs, sender, job_id=request.request_id)
    return schemas.SmartMaskAnswer(
        mask_base64=await _result_image(gateway, job, "mask"),
        image_id=job.record.inputs["image"],
        request_id=job.id,
        candidates=int(job.result_value("candidates")),
        score=float(job.result_value("score")),
        report=json.loads(job.result_value("report")),
    )


def _segmenter(gateway: Gateway, model_type: str | None) -> str:
    """Return the value of the workflow's input `model` for a request's model_type.

    Raises
    ------
    ArtMancerError : checkpoint_missing
    """
    if model_type in ("draft", "birefnet"):
        return model_type
    pack = gateway.jobs.comfy_status(LIGHT).info.get("pack") or {}
    if model_type == "fastsam" and not pack.get("segmenters"):
        raise ArtMancerError(
            "checkpoint_missing",
            "There is no FastSAM model in models/fastsam or models/ultralytics/segm. Run "
            "`artmancer models fetch fastsam-s` on ComfyUI's machine, or choose the model_type "
            "draft.",
        )
    return "auto"


def _checked_choice(gateway: Gateway, workflow: str, name: str, value: str | None) -> str | None:
    """Return a value for a choice input of a workflow, if it is a choice.

    Raises
    ------
    ArtMancerError : invalid_request
    """
    choices = gateway.workflows.get(workflow).inputs[name].settings["choices"].splitlines()
    if value is not None and value not in choices:
        raise request_errors.invalid(name, f"expected one of {', '.join(choices)}", f"'{value}'")
    return value


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
