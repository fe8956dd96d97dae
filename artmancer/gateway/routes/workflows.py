"""/api/workflows and /api/jobs: every workflow as an endpoint, and all jobs."""

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from ...errors import ArtMancerError
from .. import request_errors, schemas
from ..jobs import Job, check_done
from ..service import Gateway, Sender
from ..workflows import Workflow
from . import answers
from .dependencies import KEY_PARAMETER, GatewayDependency, SenderDependency

router = APIRouter(prefix="/api", tags=["workflows"])
"""The routes. Those that have a workflow's name in their path are documented by `openapi_paths`,
with the schema of each workflow.
"""


@router.get("/workflows", responses=answers.error_responses())
async def workflows(gateway: GatewayDependency) -> schemas.WorkflowList:
    """List all workflows with their schemas. For those that are not served, the reason is given."""
    return schemas.WorkflowList(
        workflows=[_info(gateway, name, workflow) for name, workflow in gateway.workflows]
    )


@router.post("/workflows/{name}", include_in_schema=False)
async def run(
    name: str, request: Request, gateway: GatewayDependency, sender: SenderDependency
) -> Response:
    """Run a workflow, and wait for its results."""
    job = await gateway.finish(await _submit(gateway, name, request, sender))
    return answers.json_response(await _answer(gateway, job))


@router.post("/workflows/{name}/async", include_in_schema=False, status_code=202)
async def run_async(
    name: str, request: Request, gateway: GatewayDependency, sender: SenderDependency
) -> schemas.Accepted:
    """Run a workflow in the background."""
    return schemas.Accepted(task_id=(await _submit(gateway, name, request, sender)).id)


@router.get("/jobs/{job_id}", responses=answers.error_responses("not_found"))
async def status(job_id: str, gateway: GatewayDependency) -> schemas.JobStatus:
    """Return a job's status and progress."""
    return await answers.job_status(gateway, await gateway.jobs.get(job_id))


@router.get("/jobs/{job_id}/stream", responses=answers.STREAM_RESPONSES, response_class=Response)
async def stream(job_id: str, gateway: GatewayDependency) -> Response:
    """Stream a job's status as Server-Sent Events. The last event carries the outputs."""

    async def result_fields(job: Job) -> dict[str, Any]:
        return {"outputs": (await _answer(gateway, job)).outputs}

    return answers.event_stream(gateway, await gateway.jobs.get(job_id), result_fields)


@router.get(
    "/jobs/{job_id}/result", responses=answers.RUN_RESPONSES, response_model=schemas.WorkflowAnswer
)
async def result(job_id: str, gateway: GatewayDependency) -> Response:
    """Return the answer of /api/workflows/{name} for a job, or the error that it failed with."""
    job = await gateway.jobs.get(job_id)
    check_done(job)
    return answers.json_response(await _answer(gateway, job))


@router.post("/jobs/{job_id}/cancel", responses=answers.CANCEL_RESPONSES)
async def cancel(job_id: str, gateway: GatewayDependency) -> schemas.Cancelled:
    """Cancel a job in any state."""
    return await answers.cancel_job(gateway, job_id)


def openapi_paths(
    gateway: Gateway, fixed_schemas: Iterable[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the OpenAPI paths of all served workflows, and the schemas that they use.

    Parameters
    ----------
    fixed_schemas : names of the fixed routes' schemas, which no workflow's schema may replace
    """
    paths: dict[str, Any] = {}
    # No fixed route answers with it.
    components: dict[str, Any] = {"Accepted": schemas.Accepted.model_json_schema()}
    # Generated clients fold the names of classes: two that differ in case only would be one.
    taken = {name.lower() for name in (*fixed_schemas, *components)}
    for name, workflow in gateway.workflows:
        if isinstance(workflow, ArtMancerError) or gateway.refusal_reason(workflow):
            continue
        model = _unique_name(workflow.model.__name__, taken)
        schema = workflow.model.model_json_schema(ref_template="#/components/schemas/{model}")
        schema.pop("$defs", None)  # ImageUrl, which fixed routes take too
        components[model] = {**schema, "title": model}
        done = {"description": "Done.", **_json_content("WorkflowAnswer")}
        accepted = {"description": "Accepted.", **_json_content("Accepted")}
        title = workflow.title.capitalize()
        paths[f"/api/workflows/{name}"] = _operation(f"run{model}", model, title, {"200": done})
        paths[f"/api/workflows/{name}/async"] = _operation(
            f"queue{model}", model, f"{title}, in the background", {"202": accepted}
        )
    return paths, components


def _unique_name(name: str, taken: set[str]) -> str:
    """Return a name for a schema, with a number where the name is taken, and add it to `taken`."""
    unique, number = name, 1
    while unique.lower() in taken:
        number += 1
        unique = f"{name}{number}"
    taken.add(unique.lower())
    return unique


def _operation(
    operation_id: str,
    model: str,
    summary: str,
    success: dict[str, Any],
) -> dict[str, Any]:
    """Return the OpenAPI path item of a workflow.

    Parameters
    ----------
    model : name of its request's schema
    success : the response that is no error
    """
    errors = {
        str(code): {"description": response["description"], **_json_content("Failure")}
        for code, response in answers.RUN_RESPONSES.items()
    }
    return {
        "post": {
            "tags": ["workflows"],
            "summary": summary,
            "operationId": operation_id,
            "parameters": [KEY_PARAMETER],
            "requestBody": {"required": True, **_json_content(model)},
            "responses": {**success, **errors},
        }
    }


def _json_content(model: str) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{model}"}}}}


def _info(gateway: Gateway, name: str, workflow: Workflow | ArtMancerError) -> schemas.WorkflowInfo:
    """Describe a workflow, or a file that is not a workflow because of an error."""
    if isinstance(workflow, ArtMancerError):
        return schemas.WorkflowInfo(name=name, served=False, reason=str(workflow))
    reason = gateway.refusal_reason(workflow)
    return schemas.WorkflowInfo(
        name=name,
        served=reason is None,
        reason=reason,
        lane=gateway.lane_of(workflow),
        schema_=workflow.model.model_json_schema(),
        results={result.name: result.help for result in workflow.results},
    )


async def _submit(gateway: Gateway, name: str, request: Request, sender: Sender) -> Job:
    """Check a request against its workflow's schema, store its images and submit the job."""
    workflow = gateway.workflows.get(name)
    if not gateway.serves(gateway.lane_of(workflow)):
        raise ArtMancerError(
            "not_found", f"The workflow '{name}' is not served: {gateway.refusal_reason(workflow)}"
        )
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await request.body()
    try:
        if content_type != "application/json" or not body:
            kind = "bytes" if body else "missing"
            raise RequestValidationError([{"type": kind, "loc": ("body",), "input": body}])
        values = dict(workflow.model.model_validate_json(body))
    except ValidationError as error:
        # In FastAPI's own errors a location begins with "body" or "query".
        mistakes: list[dict[str, Any]] = [
            {**mistake, "loc": ("body", *mistake["loc"])}
            for mistake in error.errors(include_url=False)
        ]
        for mistake in mistakes:
            if mistake["type"] == "json_invalid":
                mistake["ctx"] = {"error": request_errors.not_json(body, mistake["msg"])}
        raise RequestValidationError(mistakes) from None
    if earlier := await gateway.claimed(sender):
        return earlier
    include = values.pop("include", [])
    parameters = {}
    for field, endpoint_input in workflow.inputs.items():
        if endpoint_input.is_image:
            values[field] = await gateway.keep(field, values[field])
        else:
            parameters[field] = values[field]
    return await gateway.submit(
        name, values, sender=sender, include=include, context={"parameters": parameters}
    )


async def _answer(gateway: Gateway, job: Job) -> schemas.WorkflowAnswer:
    """Return the answer to a finished job: a single image is not put into a list."""
    outputs: dict[str, Any] = {}
    for name, output in (job.outputs or {}).items():
        if "pictures" in output:
            images = await gateway.result_base64(job, name)
            outputs[name] = images[0] if len(images) == 1 else images
        else:
            outputs[name] = output["value"]
    return schemas.WorkflowAnswer(request_id=job.id, generation_time=job.seconds, outputs=outputs)
