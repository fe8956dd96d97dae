"""Health, metrics and debug sessions."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse

from ...errors import ArtMancerError
from .. import metrics, schemas
from ..jobs import HEAVY, LIGHT, LaneName
from ..service import Gateway
from . import answers
from .dependencies import GatewayDependency

router = APIRouter(tags=["system"])
debug_router = APIRouter(prefix="/api/debug", tags=["debug"])


_TOOLS = ("remove-background", "extract-object", "add-shadow-preview", "white-balance")
_SERVICES: dict[schemas.ServiceName, tuple[LaneName, Sequence[str]]] = {
    "generation": (HEAVY, ("generate",)),
    "segmentation": (LIGHT, ("smart-mask",)),
    "image-utils": (LIGHT, _TOOLS),
    "image_utils": (LIGHT, _TOOLS),  # its name for older clients
}
"""Lane and workflows of each service."""


@router.get("/ping")
async def ping() -> schemas.Ping:
    """Report that the gateway is alive. This route needs no token."""
    return schemas.Ping()


@router.get("/api/health", responses=answers.error_responses())
async def health(gateway: GatewayDependency) -> schemas.Health:
    """Return the state of ComfyUI and its models, as of a few seconds ago."""
    lane, workflows = _SERVICES["generation" if gateway.serves(HEAVY) else "segmentation"]
    comfyui = gateway.jobs.comfy_status(lane)
    info = dict(comfyui.info)
    pack = info.pop("pack", None) or {}
    reason = _service(gateway, lane, workflows).reason
    if comfyui.up and not pack and not reason:
        reason = "ComfyUI has no ArtMancer pack in its custom_nodes."
    checkpoints: dict[str, str] = {}
    missing: dict[str, str] = {}
    for variant, file in pack.get("checkpoints", {}).items():
        if file:
            checkpoints[variant] = file
        else:
            missing[variant] = pack["expected"][variant]
    return schemas.Health(
        status="degraded" if reason else "healthy",
        reason=reason,
        starting=comfyui.starting and reason == comfyui.reason,
        model_loaded=bool(comfyui.up and pack.get("model_loaded")),
        device=info.get("device", "unknown"),
        device_info={
            **info,
            "jobs_unfinished": sum(sum(gateway.jobs.load(lane)) for lane in gateway.jobs.lanes),
            "editors": pack.get("editors", []),
            "model_sets": pack.get("model_sets", []),
            "bases": pack.get("bases", []),
            "lama": bool(pack.get("lama")),
            "checkpoints": checkpoints,
            "missing": missing,
        },
    )


@router.get("/api/system/health", responses=answers.error_responses())
async def system_health(gateway: GatewayDependency) -> schemas.SystemHealth:
    """Return the state of each service. Only services of this deployment count for `status`."""
    services = {name: _service(gateway, *needs) for name, needs in _SERVICES.items()}
    own = (services[name] for name, (lane, _) in _SERVICES.items() if gateway.serves(lane))
    is_healthy = all(service.status == "healthy" for service in own)
    return schemas.SystemHealth(status="healthy" if is_healthy else "degraded", services=services)


@router.get("/metrics", responses=answers.error_responses(), response_class=Response)
async def prometheus(gateway: GatewayDependency) -> Response:
    """Return counts of requests and jobs and the state of each ComfyUI, for Prometheus."""
    return Response(metrics.text(gateway.jobs), media_type="text/plain; version=0.0.4")


def _service(gateway: Gateway, lane: LaneName, names: Sequence[str]) -> schemas.Service:
    """Return the state of a service that needs these workflows."""
    if not gateway.serves(lane):
        return schemas.Service(status="degraded", reason=f"It belongs to the {lane} deployment.")
    if reason := gateway.storage_problem() or gateway.jobs.comfy_status(lane).reason:
        return schemas.Service(status="degraded", reason=reason)
    for name in names:
        try:
            reason = gateway.refusal_reason(gateway.workflows.get(name))
        except ArtMancerError as error:
            reason = str(error)
        if reason:
            return schemas.Service(status="degraded", reason=f"{name}: {reason}")
    return schemas.Service(status="healthy")


@debug_router.get("/status", responses=answers.error_responses())
async def debug_status(gateway: GatewayDependency) -> schemas.DebugStatus:
    """Return whether debug sessions are recorded, how many there are, and their size."""
    store = gateway.debug_sessions
    descriptions = [store.describe(name) for name in store.names()]
    return schemas.DebugStatus(
        enabled=gateway.settings.debug,
        sessions=len(descriptions),
        bytes=sum(description["bytes"] for description in descriptions),
    )


@debug_router.get("/sessions", responses=answers.error_responses("not_found"))
async def sessions(gateway: GatewayDependency) -> list[schemas.DebugSession]:
    """List the debug sessions, the newest first."""
    await _open_sessions(gateway)
    store = gateway.debug_sessions
    return [schemas.DebugSession(**store.describe(name)) for name in store.names()]


@debug_router.get("/sessions/{name}", responses=answers.error_responses("not_found"))
async def session(name: str, gateway: GatewayDependency) -> schemas.DebugSessionDetails:
    """Return a debug session: its files and the parameters of its job."""
    await _open_sessions(gateway)
    description: dict[str, Any] = gateway.debug_sessions.describe(name)
    parameters = gateway.debug_sessions.parameters(name)
    return schemas.DebugSessionDetails(**description, parameters=parameters)


@debug_router.get(
    "/sessions/{name}/images/{image}",
    responses=answers.PNG_RESPONSES,
    response_class=Response,
)
async def session_image(name: str, image: str, gateway: GatewayDependency) -> FileResponse:
    """Return an image of a debug session."""
    await _open_sessions(gateway)
    return FileResponse(gateway.debug_sessions.image_path(name, image))


@debug_router.get(
    "/sessions/{name}/download",
    responses={
        **answers.error_responses("not_found"),
        200: {
            "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
            "description": "The ZIP file.",
        },
    },
    response_class=Response,
)
async def session_download(name: str, gateway: GatewayDependency) -> Response:
    """Return all files of a debug session as a ZIP file."""
    await _open_sessions(gateway)
    headers = {"Content-Disposition": f'attachment; filename="{name}.zip"'}
    return Response(
        gateway.debug_sessions.as_zip(name), media_type="application/zip", headers=headers
    )


@debug_router.post("/cleanup", responses=answers.error_responses("not_found"))
async def cleanup(
    gateway: GatewayDependency, keep_last_n: int = Query(50, ge=0, le=100_000)
) -> schemas.DebugCleanup:
    """Remove all debug sessions except the newest."""
    await _open_sessions(gateway)
    removed = gateway.debug_sessions.clean(keep_last_n)
    await gateway.debug_sessions.publish()
    return schemas.DebugCleanup(removed=removed)


async def _open_sessions(gateway: Gateway) -> None:
    """Read the list of debug sessions anew.

    Raises
    ------
    ArtMancerError : not_found where debug sessions are off
    """
    if not gateway.settings.debug:
        raise ArtMancerError(
            "not_found", "Debug sessions are off. Set DEBUG=true and restart the gateway."
        )
    await gateway.debug_sessions.refresh()
