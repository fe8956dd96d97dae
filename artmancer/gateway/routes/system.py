"""Health, metrics and debug sessions."""

from typing import Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse

from ...errors import ArtMancerError
from .. import metrics, schemas
from ..jobs import HEAVY, LIGHT, LaneName
from ..service import Gateway
from . import answers
from .answers import Here

router = APIRouter(tags=["system"])
debug_router = APIRouter(prefix="/api/debug", tags=["debug"])


@router.get("/ping")
async def ping() -> schemas.Ping:
    """Alive."""
    return schemas.Ping()


@router.get("/api/health", responses=answers.failures())
async def health(gateway: Here) -> schemas.Health:
    """What works here, as of a few seconds ago."""
    host = gateway.jobs.comfy_status(HEAVY if gateway.serves(HEAVY) else LIGHT)
    about = dict(host.info)
    pack = about.pop("pack", None) or {}
    checkpoints = pack.get("checkpoints", {})
    reason = host.reason
    if host.up and not pack:
        reason = "ComfyUI has no ArtMancer pack in its custom_nodes."
    return schemas.Health(
        status="degraded" if reason else "healthy",
        reason=reason,
        model_loaded=bool(host.up and pack.get("model_loaded")),
        device=about.get("device", "unknown"),
        device_info={
            **about,
            "jobs_unfinished": sum(sum(gateway.jobs.load(lane)) for lane in gateway.jobs.lanes),
            "bases": pack.get("bases", []),
            "checkpoints": {variant: file for variant, file in checkpoints.items() if file},
            "missing": {
                variant: pack["expected"][variant]
                for variant, file in checkpoints.items()
                if not file
            },
        },
    )


@router.get("/api/system/health", responses=answers.failures())
async def system_health(gateway: Here) -> schemas.SystemHealth:
    """Which of the services answer."""
    services: dict[schemas.ServiceName, schemas.Service] = {
        "generation": _service(gateway, HEAVY, ["generate"]),
        "segmentation": _service(gateway, LIGHT, ["smart-mask"]),
        "image-utils": _service(
            gateway,
            LIGHT,
            ["remove-background", "extract-object", "add-shadow-preview", "white-balance"],
        ),
    }
    here = [
        service
        for name, service in services.items()
        if gateway.serves(HEAVY if name == "generation" else LIGHT)
    ]
    healthy = all(service.status == "healthy" for service in here)
    return schemas.SystemHealth(status="healthy" if healthy else "degraded", services=services)


@router.get("/metrics", responses=answers.failures(), response_class=Response)
async def prometheus(gateway: Here) -> Response:
    """Requests, jobs and hosts, in Prometheus' text format."""
    return Response(metrics.text(gateway.jobs), media_type="text/plain; version=0.0.4")


def _service(gateway: Gateway, lane: LaneName, names: list[str]) -> schemas.Service:
    if not gateway.serves(lane):
        return schemas.Service(status="degraded", reason=f"It belongs to the {lane} deployment.")
    host = gateway.jobs.comfy_status(lane)
    if not host.up:
        return schemas.Service(status="degraded", reason=host.reason)
    for name in names:
        try:
            reason = gateway.refusal_reason(gateway.workflows.get(name))
        except ArtMancerError as error:
            reason = str(error)
        if reason:
            return schemas.Service(status="degraded", reason=f"{name}: {reason}")
    return schemas.Service(status="healthy")


@debug_router.get("/status", responses=answers.failures())
async def debug_status(gateway: Here) -> schemas.DebugStatus:
    """Whether debug sessions are written, and how many there are."""
    found = [gateway.debug_sessions.describe(name) for name in gateway.debug_sessions.names()]
    return schemas.DebugStatus(
        enabled=gateway.settings.debug,
        sessions=len(found),
        bytes=sum(session["bytes"] for session in found),
    )


@debug_router.get("/sessions", responses=answers.failures("not_found"))
async def sessions(gateway: Here) -> list[schemas.DebugSession]:
    """The newest first."""
    await _check_on(gateway)
    return [
        schemas.DebugSession(**gateway.debug_sessions.describe(name))
        for name in gateway.debug_sessions.names()
    ]


@debug_router.get("/sessions/{name}", responses=answers.failures("not_found"))
async def session(name: str, gateway: Here) -> schemas.DebugSessionDetails:
    """What is known of one job."""
    await _check_on(gateway)
    about: dict[str, Any] = gateway.debug_sessions.describe(name)
    return schemas.DebugSessionDetails(**about, parameters=gateway.debug_sessions.parameters(name))


@debug_router.get("/sessions/{name}/images/{image}", responses=answers.PNG, response_class=Response)
async def session_image(name: str, image: str, gateway: Here) -> FileResponse:
    """One of its pictures."""
    await _check_on(gateway)
    return FileResponse(gateway.debug_sessions.picture(name, image))


@debug_router.get(
    "/sessions/{name}/download",
    responses={
        **answers.failures("not_found"),
        200: {
            "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
            "description": "ZIP",
        },
    },
    response_class=Response,
)
async def session_download(name: str, gateway: Here) -> Response:
    """All of it, as a ZIP."""
    await _check_on(gateway)
    headers = {"Content-Disposition": f'attachment; filename="{name}.zip"'}
    return Response(
        gateway.debug_sessions.zipped(name), media_type="application/zip", headers=headers
    )


@debug_router.post("/cleanup", responses=answers.failures("not_found"))
async def cleanup(
    gateway: Here, keep_last_n: int = Query(50, ge=0, le=100_000)
) -> schemas.DebugCleanup:
    """Remove all but the newest."""
    await _check_on(gateway)
    removed = gateway.debug_sessions.clean(keep_last_n)
    await gateway.debug_sessions.publish()
    return schemas.DebugCleanup(removed=removed)


async def _check_on(gateway: Gateway) -> None:
    if not gateway.settings.debug:
        raise ArtMancerError(
            "not_found", "Debug sessions are off. Set DEBUG=true, and start the gateway again."
        )
    await gateway.debug_sessions.refresh()
