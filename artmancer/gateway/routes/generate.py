"""/api/generate: edits, and the jobs they are."""

import json
import secrets
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Response

from ... import images
from ...checks import check_mask_given
from ...errors import ArtMancerError
from ...options import DEFAULT_SAMPLING, MAX_SEED
from .. import schemas
from ..jobs import Job, check_done
from ..schemas import GenerateRequest
from ..service import Gateway
from . import answers
from .answers import Client, Here

router = APIRouter(prefix="/api/generate", tags=["edit"], route_class=answers.PictureRoute)

WORKFLOW = "generate"
_NAME_LENGTH, _MOST_NAMES = 80, 50
"""Of fields that are not known: as much as is told again."""

_HEADER = 2**16
"""Bytes of a result in which its size stands."""

BRUSH_GROWTH = 8
"""Pixels a brush mask is grown by: a hand paints short of an object's edge."""


@router.post("", responses=answers.RUN_RESPONSES, response_model=schemas.GenerateAnswer)
async def generate(request: GenerateRequest, gateway: Here, client: Client) -> Response:
    """Edit a picture, and wait for it."""
    job = await gateway.finish(await _submit(gateway, request, client))
    return answers.answer_with_picture(*await _result(gateway, job))


@router.post("/async", status_code=202, responses=answers.RUN_RESPONSES)
async def generate_async(
    request: GenerateRequest, gateway: Here, client: Client
) -> schemas.Accepted:
    """Edit a picture in the background."""
    return schemas.Accepted(task_id=(await _submit(gateway, request, client)).id)


@router.get("/status/{task_id}", responses=answers.failures("not_found"))
async def status(task_id: str, gateway: Here) -> schemas.JobStatus:
    """Where a job is."""
    return answers.status_of(gateway, await _job(gateway, task_id))


@router.get("/stream/{task_id}", responses=answers.STREAM, response_class=Response)
async def stream(task_id: str, gateway: Here) -> Response:
    """Where a job is, as Server-Sent Events; the last one carries the result."""

    async def last(job: Job) -> dict[str, Any]:
        done, _ = await _result(gateway, job)
        (picture,) = await gateway.result_base64(job, "image")
        return {"result": picture, "debug_info": done.debug_info.model_dump()}

    return answers.stream(gateway, await _job(gateway, task_id), last)


@router.get(
    "/result/{task_id}", responses=answers.RUN_RESPONSES, response_model=schemas.GenerateAnswer
)
async def result(task_id: str, gateway: Here) -> Response:
    """The answer of /api/generate, or the error the job failed with."""
    job = await _job(gateway, task_id)
    check_done(job)
    return answers.answer_with_picture(*await _result(gateway, job))


@router.get("/result-image/{task_id}", responses=answers.PNG, response_class=Response)
async def result_image(task_id: str, gateway: Here) -> Response:
    """The edited picture's bytes."""
    return await answers.picture(gateway, await _job(gateway, task_id), "image")


@router.post("/async/cancel/{task_id}", responses=answers.failures("not_found"))
async def cancel(task_id: str, gateway: Here) -> schemas.Cancelled:
    """End a job in whatever state it is."""
    return await answers.cancel(gateway, (await _job(gateway, task_id)).id)


async def _submit(gateway: Gateway, request: GenerateRequest, client: str) -> Job:
    given = request.conditional_images or []
    mask = request.mask_image or (given[0] if given else None)
    variant = _variant(request, mask)
    check_mask_given(variant, mask is not None)
    pictures = {
        "input_image": request.input_image,
        "mask_image": mask,
        "reference_image": request.reference_image,
        "reference_mask_R": request.reference_mask_R,
        **{f"extra_{index}": text for index, text in enumerate(given[1:], 1)},
    }
    settings = _settings(request, variant)
    unknown = sorted(name[:_NAME_LENGTH] for name in request.model_extra or {})[:_MOST_NAMES]
    ignored = [
        name for name in schemas.WITHOUT_EFFECT if getattr(request, name) is not None
    ] + unknown
    parameters = {
        "task_type": variant,
        **{
            name: settings[name]
            for name in (
                "prompt",
                "negative_prompt",
                "seed",
                "num_inference_steps",
                "true_cfg_scale",
            )
        },
        "input_quality": request.input_quality or "original",
        "mask_tool_type": request.mask_tool_type,
        "ignored": ignored,
    }
    names = {field: await gateway.keep(field, text) for field, text in pictures.items()}
    input_width, input_height = gateway.uploads.size(str(names["input_image"]))
    debug = bool(request.enable_debug)
    return await gateway.submit(
        WORKFLOW,
        {**names, **settings},
        client=client,
        include=["conditions"] if debug else [],
        context={
            "parameters": parameters,
            "input_size": f"{input_width}x{input_height}",
            "debug": debug,
        },
    )


def _settings(request: GenerateRequest, variant: str) -> dict[str, Any]:
    """The workflow's inputs besides the pictures."""
    seed = secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed
    cfg = next(
        (one for one in (request.true_cfg_scale, request.guidance_scale) if one is not None),
        DEFAULT_SAMPLING.cfg,
    )
    return {
        "task_type": variant,
        "prompt": request.prompt,
        "negative_prompt": DEFAULT_SAMPLING.negative
        if request.negative_prompt is None
        else request.negative_prompt,
        "seed": seed,
        "num_inference_steps": request.num_inference_steps or DEFAULT_SAMPLING.steps,
        "true_cfg_scale": cfg,
        "width": request.width,
        "height": request.height,
        "max_megapixels": 1.0 if request.input_quality == "resized" else None,
        "grow_mask": BRUSH_GROWTH if request.mask_tool_type == "brush" else None,
    }


def _variant(request: GenerateRequest, mask: str | None) -> str:
    if request.task_type:
        return request.task_type.replace("-", "_")
    if request.reference_image:
        return "insertion"
    return "removal" if mask else "white_balance"


async def _job(gateway: Gateway, task_id: str) -> Job:
    job = await gateway.jobs.get(task_id)
    if (
        job.workflow != WORKFLOW or "input_size" not in job.record.context
    ):  # one of /api/workflows/generate is not of here
        raise ArtMancerError(
            "not_found", "The job of this id is no edit. Ask under /api/jobs for it."
        )
    return job


async def _result(gateway: Gateway, job: Job) -> tuple[schemas.GenerateAnswer, Path]:
    """The answer to an edit that is done, with its picture apart."""
    report = json.loads(job.result_value("report"))
    (picture,) = await gateway.jobs.result_paths(job, "image")
    with picture.open("rb") as file:
        _, width, height = images.inspect(file.read(_HEADER))
    shown = await gateway.result_base64(job, "conditions") if job.record.context["debug"] else None
    answer = schemas.GenerateAnswer(
        image="",
        generation_time=job.seconds,
        model_used=report["editor"],
        parameters_used={**job.record.context["parameters"], "width": width, "height": height},
        request_id=job.id,
        debug_info=schemas.DebugInfo(
            conditional_images=shown,
            conditional_labels=report["conditions"],
            input_image_size=job.record.context["input_size"],
            output_image_size=f"{width}x{height}",
            lora_adapter=next(iter(report["adapters"]), None),
            loaded_adapters=report["adapters"],
        ),
        report=report,
    )
    return answer, picture
