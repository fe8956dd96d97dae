"""/api/workflows and /api/jobs: any graph in the folder, as an endpoint."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from ...errors import ArtMancerError
from .. import contract
from ..gateway import Gateway, check_done
from ..jobs import Job
from ..workflows import Workflow
from . import common
from .common import Client, Here

router = APIRouter(prefix="/api", tags=["workflows"])
"""Those of its routes that name a workflow are documented by `paths`,
with each workflow's own schema.
"""


@router.get("/workflows", responses=common.failures())
async def workflows(gateway: Here) -> contract.WorkflowList:
    """What is served, and what each takes; and what is not, and why."""
    return contract.WorkflowList(
        workflows=[_about(gateway, name, found) for name, found in gateway.workflows]
    )


@router.post("/workflows/{name}", include_in_schema=False)
async def run(name: str, request: Request, gateway: Here, client: Client) -> Response:
    """Run a workflow, and wait for it."""
    job = await gateway.finish(await _submit(gateway, name, request, client))
    return common.answer(await _answer(gateway, job))


@router.post("/workflows/{name}/async", include_in_schema=False, status_code=202)
async def run_async(
    name: str, request: Request, gateway: Here, client: Client
) -> contract.Accepted:
    """Run a workflow in the background."""
    return contract.Accepted(task_id=(await _submit(gateway, name, request, client)).id)


@router.get("/jobs/{job_id}", responses=common.failures("not_found"))
async def status(job_id: str, gateway: Here) -> contract.JobStatus:
    """Where a job is."""
    return common.status_of(gateway, await gateway.jobs.get(job_id))


@router.get("/jobs/{job_id}/stream", responses=common.STREAM, response_class=Response)
async def stream(job_id: str, gateway: Here) -> Response:
    """Where a job is, as Server-Sent Events; the last one carries the outputs."""

    async def last(job: Job) -> dict[str, Any]:
        return {"outputs": (await _answer(gateway, job)).outputs}

    return common.stream(gateway, await gateway.jobs.get(job_id), last)


@router.get("/jobs/{job_id}/result", responses=common.RUNS, response_model=contract.WorkflowAnswer)
async def result(job_id: str, gateway: Here) -> Response:
    """The answer of the workflow's route, or the error the job failed with."""
    job = await gateway.jobs.get(job_id)
    check_done(job)
    return common.answer(await _answer(gateway, job))


@router.post("/jobs/{job_id}/cancel", responses=common.failures("not_found"))
async def cancel(job_id: str, gateway: Here) -> contract.Cancelled:
    """End a job in whatever state it is."""
    return await common.cancel(gateway, job_id)


def paths(gateway: Gateway) -> tuple[dict[str, Any], dict[str, Any]]:
    """The paths of the workflows that are served, and the schemas they use,
    for the OpenAPI document.
    """
    found: dict[str, Any] = {}
    schemas: dict[str, Any] = {}
    for name, workflow in gateway.workflows:
        if isinstance(workflow, ArtMancerError) or gateway.unservable(workflow):
            continue
        model = workflow.model.__name__
        schema = workflow.model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= {model: schema, **schema.pop("$defs", {})}
        body = {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{model}"}}},
        }
        for path, status, answer in (("", 200, "WorkflowAnswer"), ("/async", 202, "Accepted")):
            about = ", in the background" if path else ""
            found[f"/api/workflows/{name}{path}"] = {
                "post": {
                    "tags": ["workflows"],
                    "summary": f"{workflow.title.capitalize()}{about}",
                    "operationId": f"run_{name}{path.replace('/', '_')}",
                    "requestBody": body,
                    "responses": {
                        str(status): {
                            "description": "Done." if status == 200 else "Accepted.",
                            **_json(answer),
                        },
                        **{
                            str(code): {"description": row["description"], **_json("Failure")}
                            for code, row in common.RUNS.items()
                        },
                    },
                }
            }
    return found, schemas


def _json(model: str) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{model}"}}}}


def _about(gateway: Gateway, name: str, found: Workflow | ArtMancerError) -> contract.WorkflowInfo:
    if isinstance(found, ArtMancerError):
        return contract.WorkflowInfo(name=name, served=False, reason=str(found))
    reason = gateway.unservable(found)
    return contract.WorkflowInfo(
        name=name,
        served=reason is None,
        reason=reason,
        lane=gateway.lane_of(found),
        schema_=found.model.model_json_schema(),
        results={result.name: result.help for result in found.results},
    )


async def _submit(gateway: Gateway, name: str, request: Request, client: str) -> Job:
    workflow = gateway.workflows.get(name)
    if not gateway.serves(gateway.lane_of(workflow)):
        raise ArtMancerError(
            "not_found", f"The workflow '{name}' is not served: {gateway.unservable(workflow)}"
        )
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise common.invalid(
            "the body", "application/json is expected", kind or "no type", "Set Content-Type."
        )
    try:
        asked = workflow.model.model_validate_json(await request.body()).model_dump()
    except ValidationError as error:
        found = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
        raise RequestValidationError(found) from None
    include = asked.pop("include", [])
    for field, taken in workflow.inputs.items():
        if taken.picture:
            asked[field] = await gateway.keep(field, asked[field])
    parameters = {
        field: value for field, value in asked.items() if not workflow.inputs[field].picture
    }
    return await gateway.submit(
        name, asked, client=client, include=include, about={"parameters": parameters}
    )


async def _answer(gateway: Gateway, job: Job) -> contract.WorkflowAnswer:
    outputs: dict[str, Any] = {}
    for name, output in (job.outputs or {}).items():
        if "pictures" in output:
            found = await gateway.base64(job, name)
            outputs[name] = found[0] if len(found) == 1 else found
        else:
            outputs[name] = output["value"]
    return contract.WorkflowAnswer(request_id=job.id, generation_time=job.seconds, outputs=outputs)
