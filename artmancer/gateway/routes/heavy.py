"""/api/generate: edits, and the jobs they are."""

import json
import secrets
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Response

from ... import images
from ...errors import ArtMancerError
from .. import contract
from ..contract import GenerateRequest
from ..gateway import Gateway, check_done
from ..jobs import Job
from . import common
from .common import Client, Here

router = APIRouter(prefix="/api/generate", tags=["edit"], route_class=common.PictureRoute)

WORKFLOW = "generate"
_NAME_LENGTH, _MOST_NAMES = 80, 50
"""Of fields that are not known: as much as is told again."""

_HEADER = 2**16
"""Bytes of a result in which its size stands."""

BRUSH_GROWTH = 8
"""Pixels a brush mask is grown by: a hand paints short of an object's edge."""


@router.post("", responses=common.RUNS, response_model=contract.GenerateAnswer)
async def generate(request: GenerateRequest, gateway: Here, client: Client) -> Response:
    """Edit a picture, and wait for it."""
    job = await gateway.finish(await _submit(gateway, request, client))
    return common.answer_with_picture(*await _result(gateway, job))


@router.post("/async", status_code=202, responses=common.RUNS)
async def generate_async(
    request: GenerateRequest, gateway: Here, client: Client
) -> contract.Accepted:
    """Edit a picture in the background."""
    return contract.Accepted(task_id=(await _submit(gateway, request, client)).id)


@router.get("/status/{task_id}", responses=common.failures("not_found"))
async def status(task_id: str, gateway: Here) -> contract.JobStatus:
    """Where a job is."""
    return common.status_of(gateway, await _job(gateway, task_id))


@router.get("/stream/{task_id}", responses=common.STREAM, response_class=Response)
async def stream(task_id: str, gateway: Here) -> Response:
    """Where a job is, as Server-Sent Events; the last one carries the result."""

    async def last(job: Job) -> dict[str, Any]:
        done, _ = await _result(gateway, job)
        (picture,) = await gateway.base64(job, "image")
        return {"result": picture, "debug_info": done.debug_info.model_dump()}

    return common.stream(gateway, await _job(gateway, task_id), last)


@router.get("/result/{task_id}", responses=common.RUNS, response_model=contract.GenerateAnswer)
async def result(task_id: str, gateway: Here) -> Response:
    """The answer of /api/generate, or the error the job failed with."""
    job = await _job(gateway, task_id)
    check_done(job)
    return common.answer_with_picture(*await _result(gateway, job))


@router.get("/result-image/{task_id}", responses=common.PNG, response_class=Response)
async def result_image(task_id: str, gateway: Here) -> Response:
    """The edited picture's bytes."""
    return await common.picture(gateway, await _job(gateway, task_id), "image")


@router.post("/async/cancel/{task_id}", responses=common.failures("not_found"))
async def cancel(task_id: str, gateway: Here) -> contract.Cancelled:
    """End a job in whatever state it is."""
    return await common.cancel(gateway, (await _job(gateway, task_id)).id)


async def _submit(gateway: Gateway, request: GenerateRequest, client: str) -> Job:
    given = request.conditional_images or []
    mask = request.mask_image or (given[0] if given else None)
    task = _task(request, mask)
    if task != "white_balance" and mask is None:
        raise ArtMancerError(
            "mask_missing",
            f"A mask is needed for {task}: it says where. Paint what should change white, and send "
            "it as mask_image.",
        )
    pictures = {
        "input_image": request.input_image,
        "mask_image": mask,
        "reference_image": request.reference_image,
        "reference_mask_R": request.reference_mask_R,
        **{f"extra_{index}": text for index, text in enumerate(given[1:], 1)},
    }
    settings = _settings(request, task)
    unknown = sorted(name[:_NAME_LENGTH] for name in request.model_extra or {})[:_MOST_NAMES]
    ignored = [
        name for name in contract.WITHOUT_EFFECT if getattr(request, name) is not None
    ] + unknown
    parameters = {
        "task_type": task,
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
    input_width, input_height = gateway.pictures.size(str(names["input_image"]))
    debug = bool(request.enable_debug)
    return await gateway.submit(
        WORKFLOW,
        {**names, **settings},
        client=client,
        include=["conditions"] if debug else [],
        about={
            "parameters": parameters,
            "input_size": f"{input_width}x{input_height}",
            "debug": debug,
        },
    )


def _settings(request: GenerateRequest, task: str) -> dict[str, Any]:
    """The workflow's inputs besides the pictures."""
    seed = secrets.randbelow(2**53) if request.seed is None else request.seed
    cfg = next(
        (one for one in (request.true_cfg_scale, request.guidance_scale) if one is not None), 4.0
    )
    return {
        "task_type": task,
        "prompt": request.prompt,
        "negative_prompt": " " if request.negative_prompt is None else request.negative_prompt,
        "seed": seed,
        "num_inference_steps": request.num_inference_steps or 10,
        "true_cfg_scale": cfg,
        "width": request.width,
        "height": request.height,
        "max_megapixels": 1.0 if request.input_quality == "resized" else None,
        "grow_mask": BRUSH_GROWTH if request.mask_tool_type == "brush" else None,
    }


def _task(request: GenerateRequest, mask: str | None) -> str:
    if request.task_type:
        return request.task_type.replace("-", "_")
    if request.reference_image:
        return "insertion"
    return "removal" if mask else "white_balance"


async def _job(gateway: Gateway, task_id: str) -> Job:
    job = await gateway.jobs.get(task_id)
    if (
        job.workflow != WORKFLOW or "input_size" not in job.about
    ):  # one of /api/workflows/generate is not of here
        raise ArtMancerError(
            "not_found", "The job of this id is no edit. Ask under /api/jobs for it."
        )
    return job


async def _result(gateway: Gateway, job: Job) -> tuple[contract.GenerateAnswer, Path]:
    """The answer to an edit that is done, with its picture apart."""
    report = json.loads(gateway.value(job, "report"))
    (picture,) = await gateway.jobs.pictures(job, "image")
    with picture.open("rb") as file:
        _, width, height = images.inspect(file.read(_HEADER))
    shown = await gateway.base64(job, "conditions") if job.about["debug"] else None
    answer = contract.GenerateAnswer(
        image="",
        generation_time=job.seconds,
        model_used=report["editor"],
        parameters_used={**job.about["parameters"], "width": width, "height": height},
        request_id=job.id,
        debug_info=contract.DebugInfo(
            conditional_images=shown,
            conditional_labels=report["conditions"],
            input_image_size=job.about["input_size"],
            output_image_size=f"{width}x{height}",
            lora_adapter=next(iter(report["adapters"]), None),
            loaded_adapters=report["adapters"],
        ),
        report=report,
    )
    return answer, picture
