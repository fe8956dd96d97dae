"""/api/workflows and /api/jobs: any graph in the folder, as an endpoint."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from ...errors import ArtMancerError
from .. import schemas
from ..jobs import Job, check_done
from ..service import Gateway
from ..workflows import Workflow
from . import answers
from .answers import Client, Here

router = APIRouter(prefix="/api", tags=["workflows"])
"""Those of its routes that name a workflow are documented by `paths`,
with each workflow's own schema.
"""


@router.get("/workflows", responses=answers.failures())
async def workflows(gateway: Here) -> schemas.WorkflowList:
    """What is served, and what each takes; and what is not, and why."""
    return schemas.WorkflowList(
        workflows=[_about(gateway, name, found) for name, found in gateway.workflows]
    )


@router.post("/workflows/{name}", include_in_schema=False)
async def run(name: str, request: Request, gateway: Here, client: Client) -> Response:
    """Run a workflow, and wait for it."""
    job = await gateway.finish(await _submit(gateway, name, request, client))
    return answers.answer(await _answer(gateway, job))


@router.post("/workflows/{name}/async", include_in_schema=False, status_code=202)
async def run_async(name: str, request: Request, gateway: Here, client: Client) -> schemas.Accepted:
    """Run a workflow in the background."""
    return schemas.Accepted(task_id=(await _submit(gateway, name, request, client)).id)


@router.get("/jobs/{job_id}", responses=answers.failures("not_found"))
async def status(job_id: str, gateway: Here) -> schemas.JobStatus:
    """Where a job is."""
    return answers.status_of(gateway, await gateway.jobs.get(job_id))


@router.get("/jobs/{job_id}/stream", responses=answers.STREAM, response_class=Response)
async def stream(job_id: str, gateway: Here) -> Response:
    """Where a job is, as Server-Sent Events; the last one carries the outputs."""

    async def last(job: Job) -> dict[str, Any]:
        return {"outputs": (await _answer(gateway, job)).outputs}

    return answers.stream(gateway, await gateway.jobs.get(job_id), last)


@router.get(
    "/jobs/{job_id}/result", responses=answers.RUN_RESPONSES, response_model=schemas.WorkflowAnswer
)
async def result(job_id: str, gateway: Here) -> Response:
    """The answer of the workflow's route, or the error the job failed with."""
    job = await gateway.jobs.get(job_id)
    check_done(job)
    return answers.answer(await _answer(gateway, job))


@router.post("/jobs/{job_id}/cancel", responses=answers.failures("not_found"))
async def cancel(job_id: str, gateway: Here) -> schemas.Cancelled:
    """End a job in whatever state it is."""
    return await answers.cancel(gateway, job_id)


def openapi_paths(gateway: Gateway) -> tuple[dict[str, Any], dict[str, Any]]:
    """The paths of the workflows that are served, and the schemas they use,
    for the OpenAPI document.
    """
    found: dict[str, Any] = {}
    schemas: dict[str, Any] = {}
    for name, workflow in gateway.workflows:
        if isinstance(workflow, ArtMancerError) or gateway.refusal_reason(workflow):
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
                            for code, row in answers.RUN_RESPONSES.items()
                        },
                    },
                }
            }
    return found, schemas


def _json(model: str) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{model}"}}}}


def _about(gateway: Gateway, name: str, found: Workflow | ArtMancerError) -> schemas.WorkflowInfo:
    if isinstance(found, ArtMancerError):
        return schemas.WorkflowInfo(name=name, served=False, reason=str(found))
    reason = gateway.refusal_reason(found)
    return schemas.WorkflowInfo(
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
            "not_found", f"The workflow '{name}' is not served: {gateway.refusal_reason(workflow)}"
        )
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise answers.invalid(
            "the body", "application/json is expected", kind or "no type", "Set Content-Type."
        )
    try:
        asked = workflow.model.model_validate_json(await request.body()).model_dump()
    except ValidationError as error:
        found = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
        raise RequestValidationError(found) from None
    include = asked.pop("include", [])
    for field, taken in workflow.inputs.items():
        if taken.is_image:
            asked[field] = await gateway.keep(field, asked[field])
    parameters = {
        field: value for field, value in asked.items() if not workflow.inputs[field].is_image
    }
    return await gateway.submit(
        name, asked, client=client, include=include, context={"parameters": parameters}
    )


async def _answer(gateway: Gateway, job: Job) -> schemas.WorkflowAnswer:
    outputs: dict[str, Any] = {}
    for name, output in (job.outputs or {}).items():
        if "pictures" in output:
            found = await gateway.result_base64(job, name)
            outputs[name] = found[0] if len(found) == 1 else found
        else:
            outputs[name] = output["value"]
    return schemas.WorkflowAnswer(request_id=job.id, generation_time=job.seconds, outputs=outputs)
