"""/api/smart-mask and /api/image-utils: what answers while a person waits."""

import json
import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Response, UploadFile

from ... import __version__
from ...errors import ArtMancerError
from .. import schemas
from ..jobs import LIGHT, Job
from ..schemas import ExtractObjectRequest, RemoveBackgroundRequest, ShadowRequest, SmartMaskRequest
from ..service import Gateway, file_base64
from . import answers
from .answers import Client, Here

router = APIRouter(prefix="/api", tags=["masks and tools"], route_class=answers.PictureRoute)

BLUR = 8
"""Pixels over which a mask fades out where use_blur is set."""


@router.get("/", responses=answers.failures())
async def welcome() -> schemas.Welcome:
    """What answers here."""
    return schemas.Welcome(
        message="ArtMancer edits photos where a mask says. See /docs.", version=__version__
    )


@router.post("/clear-cache", responses=answers.failures("comfyui_unavailable"))
async def clear_cache(gateway: Here) -> schemas.Cleared:
    """Unload all models and empty all caches."""
    freed = await gateway.jobs.free()
    return schemas.Cleared(message="Models are unloaded, and caches are empty.", freed_bytes=freed)


@router.post("/smart-mask", responses=answers.RUN_RESPONSES, response_model=schemas.SmartMaskAnswer)
async def smart_mask(request: SmartMaskRequest, gateway: Here, client: Client) -> Response:
    """The mask of the object that was clicked."""
    return await _smart_mask(request, gateway, client)


@router.post(
    "/smart-mask/detect", responses=answers.RUN_RESPONSES, response_model=schemas.SmartMaskAnswer
)
async def detect(request: SmartMaskRequest, gateway: Here, client: Client) -> Response:
    """The mask of the main object."""
    return await _smart_mask(request.model_copy(update={"auto_detect": True}), gateway, client)


@router.post("/smart-mask/cancel/{request_id}", responses=answers.failures("not_found"))
async def cancel(request_id: str, gateway: Here) -> schemas.Cancelled:
    """Give up a click."""
    return await answers.cancel(gateway, request_id)


@router.post(
    "/image-utils/remove-background",
    responses=answers.RUN_RESPONSES,
    response_model=schemas.RemoveBackgroundAnswer,
)
async def remove_background(
    request: RemoveBackgroundRequest, gateway: Here, client: Client
) -> Response:
    """The subject of a picture, transparent where the background was."""
    inputs = {
        "image": await gateway.keep("image", request.image),
        "model": _choice(gateway, "remove-background", "model", request.model),
        "alpha_matting": request.alpha_matting,
    }
    job = await gateway.finish(await gateway.submit("remove-background", inputs, client=client))
    return answers.answer(
        schemas.RemoveBackgroundAnswer(
            image=(await gateway.result_base64(job, "image"))[0],
            mask_base64=(await gateway.result_base64(job, "mask"))[0],
            model_used=json.loads(job.result_value("report"))["model"],
        )
    )


@router.post(
    "/image-utils/extract-object",
    responses=answers.RUN_RESPONSES,
    response_model=schemas.ExtractObjectAnswer,
)
async def extract_object(request: ExtractObjectRequest, gateway: Here, client: Client) -> Response:
    """The object, centred on a white square of 512 or 1024 pixels."""
    inputs = {
        "image": await gateway.keep("image", request.image),
        "mask": await gateway.keep("mask", request.mask),
    }
    job = await gateway.finish(await gateway.submit("extract-object", inputs, client=client))
    return answers.answer(
        schemas.ExtractObjectAnswer(extracted_image=(await gateway.result_base64(job, "image"))[0])
    )


@router.post(
    "/image-utils/add-shadow-preview",
    responses=answers.RUN_RESPONSES,
    response_model=schemas.ShadowAnswer,
)
async def add_shadow_preview(request: ShadowRequest, gateway: Here, client: Client) -> Response:
    """The object with a soft shadow."""
    inputs = {
        "image": await gateway.keep("extracted_image", request.extracted_image),
        "mask": await gateway.keep("mask", request.mask),
        "offset_x": request.shadow_offset_x,
        "offset_y": request.shadow_offset_y,
        "opacity": request.shadow_opacity,
        "blur": request.blur_radius,
    }
    job = await gateway.finish(await gateway.submit("add-shadow-preview", inputs, client=client))
    return answers.answer(
        schemas.ShadowAnswer(preview_image=(await gateway.result_base64(job, "image"))[0])
    )


@router.post(
    "/image-utils/white-balance",
    responses=answers.RUN_RESPONSES,
    response_model=schemas.WhiteBalanceAnswer,
)
async def white_balance(
    gateway: Here,
    client: Client,
    file: Annotated[UploadFile, File(description="The photo.")],
    method: Annotated[Literal["auto", "manual", "ai"], Form()] = "auto",
    temperature: Annotated[float, Form(ge=-100, le=100, allow_inf_nan=False)] = 0,
    tint: Annotated[float, Form(ge=-100, le=100, allow_inf_nan=False)] = 0,
) -> Response:
    """Remove a colour cast: by itself, by hand, or with the editor (ai), which takes longer."""
    name = await gateway.uploads.keep(await file.read(), "file")
    parameters: dict[str, Any] = {"temperature": temperature, "tint": tint}
    if method == "ai":
        inputs = {
            "input_image": name,
            "task_type": "white_balance",
            "prompt": "correct the white balance",
        }
        job = await gateway.submit("generate", inputs, client=client)
    else:
        parameters["automatic"] = 1.0 if method == "auto" else 0.0
        job = await gateway.submit("white-balance", {"image": name, **parameters}, client=client)
    job = await gateway.finish(job)
    return answers.answer(
        schemas.WhiteBalanceAnswer(
            original_image=await file_base64(await gateway.uploads.path(name)),
            corrected_image=(await gateway.result_base64(job, "image"))[0],
            method_used=method,
            parameters=parameters,
        )
    )


async def _smart_mask(request: SmartMaskRequest, gateway: Gateway, client: str) -> Response:
    if request.request_id is not None and not _is_uuid(request.request_id):
        raise answers.invalid(
            "request_id", "a UUID in lower case is expected", "another text", "Send a new one."
        )
    if request.image is not None:
        image = await gateway.keep("image", request.image)
    elif request.image_id is not None:
        image = (await gateway.uploads.path(request.image_id)).name
    else:
        raise answers.invalid(
            "image", "a picture, or the image_id of one, is expected", "neither", "Send the image."
        )
    said = (
        {}
        if request.auto_detect
        else {"points": request.points, "labels": request.labels, "bbox": request.bbox}
    )
    asked = {name: value for name, value in said.items() if value is not None}
    inputs = {
        "image": image,
        "prompt": json.dumps(asked) if asked else "",
        "model": _segmenter(gateway, request.model_type),
        "candidate": request.candidate,
        "grow": request.border_adjustment,
        "feather": BLUR if request.use_blur else None,
        "brush": None if request.auto_detect else await gateway.keep("mask", request.mask),
    }
    job = await gateway.finish(
        await gateway.submit("smart-mask", inputs, client=client, job_id=request.request_id)
    )
    return answers.answer(await _mask_of(gateway, job))


async def _mask_of(gateway: Gateway, job: Job) -> schemas.SmartMaskAnswer:
    return schemas.SmartMaskAnswer(
        mask_base64=(await gateway.result_base64(job, "mask"))[0],
        image_id=job.record.inputs["image"],
        request_id=job.id,
        candidates=int(job.result_value("candidates")),
        score=float(job.result_value("score")),
    )


def _segmenter(gateway: Gateway, model_type: str | None) -> str:
    if model_type == "draft":
        return "draft"
    pack = gateway.jobs.comfy_status(LIGHT).info.get("pack") or {}
    if model_type == "fastsam" and not pack.get("segmenters"):
        raise ArtMancerError(
            "checkpoint_missing",
            "There is no FastSAM; it was looked for in models/fastsam and models/ultralytics/segm. "
            "Run `artmancer models fetch fastsam-s` there, or ask for the model_type draft.",
        )
    return "auto"


def _choice(gateway: Gateway, workflow: str, name: str, value: str | None) -> str | None:
    """A value for a choice of a workflow's.

    Raises
    ------
    ArtMancerError : invalid_request
    """
    choices = gateway.workflows.get(workflow).inputs[name].settings["choices"].splitlines()
    if value is not None and value not in choices:
        raise answers.invalid(
            name, f"one of {', '.join(choices)} is expected", f"'{value}'", "Send one of them."
        )
    return value


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
