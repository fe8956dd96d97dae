"""The ASGI app: middlewares, routes, error responses and the OpenAPI document."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from .. import __version__
from ..errors import ArtMancerError
from .jobs import HEAVY, LIGHT
from .limits import RETRY_AFTER
from .middleware import ErrorMiddleware, HeadMiddleware, MetricsMiddleware, RequestGuard
from .request_errors import request_error
from .routes import generate, system, tools, workflows
from .routes.dependencies import IDEMPOTENCY_KEY
from .service import Gateway, local_gateway
from .settings import Settings

logger = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
_PAGE_POLICY = "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'none'"

_DESCRIPTION = (
    "Edits photos where a mask is white; every other pixel stays as it is. "
    "Errors have one shape: Failure."
)


def create_app(
    settings: Settings | None = None,
    build: Callable[[Settings], Gateway] = local_gateway,
    companions: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (),
    allowed_hosts: set[str] | None = None,
) -> FastAPI:
    """Make the ASGI app.

    Parameters
    ----------
    settings : default: from the environment
    build : makes the gateway, once the event loop runs
    companions : run beside the gateway, and are cancelled with it
    allowed_hosts : host names it answers to; default: any
    """
    settings = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.gateway = build(settings)
        tasks = [asyncio.create_task(run()) for run in (app.state.gateway.jobs.run, *companions)]
        for task in tasks:
            task.add_done_callback(_on_stopped)
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    app = FastAPI(
        title="ArtMancer",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
    )
    app.add_exception_handler(ArtMancerError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_error)
    # Routes are matched in this order.
    if settings.role in ("all", LIGHT):
        app.include_router(tools.router)
    if settings.role in ("all", HEAVY):
        app.include_router(generate.router)
    app.include_router(workflows.router)
    app.include_router(system.router)
    app.include_router(system.debug_router)
    app.add_api_route("/docs", _docs, include_in_schema=False)
    if settings.page:
        app.add_api_route("/", _index, include_in_schema=False)
        app.mount("/page", StaticFiles(directory=PAGE))
    _add_middlewares(app, settings, allowed_hosts)
    needs_token = settings.api_token is not None
    # FastAPI's documented way to extend the document.
    app.openapi = lambda: _openapi(app, needs_token)  # type: ignore[method-assign]
    return app


def _add_middlewares(app: FastAPI, settings: Settings, allowed_hosts: set[str] | None) -> None:
    """Add the middlewares; the last runs first."""
    app.add_middleware(
        RequestGuard,
        token=settings.api_token.get_secret_value() if settings.api_token else None,
        origins=settings.allowed_origins,
        allowed_hosts=allowed_hosts,
        max_body=settings.max_body,
        error_response=_error_response,
    )
    app.add_middleware(ErrorMiddleware, error_response=_error_response)
    # Outside of the guard, so that a page of an allowed origin can read its refusals.
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.allowed_origins,
        allow_methods=["GET", "HEAD", "POST"],
        allow_headers=["Authorization", "Content-Type", IDEMPOTENCY_KEY],
        expose_headers=["ETag", "Retry-After", "Warning"],
        allow_private_network=True,
    )
    app.add_middleware(HeadMiddleware)
    app.add_middleware(MetricsMiddleware)


async def _index() -> FileResponse:
    return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": _PAGE_POLICY})


async def _docs() -> HTMLResponse:
    """Return the documentation. Its address of the document is relative: FastAPI's own page works
    at the root of a host only.
    """
    return get_swagger_ui_html(openapi_url="openapi.json", title="ArtMancer")


def _error_response(error: ArtMancerError) -> JSONResponse:
    headers = {"Retry-After": str(RETRY_AFTER)} if error.code == "queue_full" else None
    body = error.as_dict()
    return JSONResponse(
        {name: body[name] for name in ("detail", "error_type", "details")}, error.status, headers
    )


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ArtMancerError)
    return _error_response(error)


async def _on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    """Answer with the first mistake of a request that does not match its schema."""
    assert isinstance(error, RequestValidationError)
    content_type = request.headers.get("content-type", "")[:100]
    return _error_response(request_error(error.errors(), content_type))


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _error_response(
            ArtMancerError("not_found", f"There is no {request.url.path[:200]} here. See /docs.")
        )
    response = _error_response(
        ArtMancerError("invalid_request", f"{error.detail}. See /docs for what is expected.")
    )
    if error.status_code == 405:
        response.status_code = 405
        response.headers.update(error.headers or {})
    return response


def _operation_id(route: APIRoute) -> str:
    """Return a route's operation id, which generated clients name its function by: POST
    /api/generate/async/cancel/{task_id} is post_generate_async_cancel_by_task_id.
    """
    method = min(route.methods or {"GET"})
    parts = route.path.removeprefix("/api").replace("-", "_").strip("/").split("/")
    words = [part.replace("{", "by_").replace("}", "") for part in parts if part]
    return "_".join([method.lower(), *(words or ["root"])])


def _openapi(app: FastAPI, needs_token: bool) -> dict[str, Any]:
    """Make the OpenAPI document. The fixed routes' part is made once, the workflows' part each
    time: a file may have been added or removed.
    """
    if app.openapi_schema is None:
        app.openapi_schema = get_openapi(
            title=app.title,
            version=app.version,
            routes=app.routes,
            description=_DESCRIPTION,
            # The folder of the document, which may be a path of a proxy.
            servers=[{"url": "."}],
        )
    fixed = app.openapi_schema
    fixed_schemas = fixed["components"]["schemas"]
    paths, schemas = workflows.openapi_paths(app.state.gateway, fixed_schemas)
    document = {
        **fixed,
        "paths": {**fixed["paths"], **paths},
        "components": {
            "schemas": {**fixed_schemas, **schemas},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }
    if needs_token:
        document["security"] = [{"token": []}]
        ping = fixed["paths"]["/ping"]
        document["paths"]["/ping"] = {"get": {**ping["get"], "security": []}}
    return document


def _on_stopped(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()):
        logger.critical("The gateway's work has stopped, and so does the gateway.", exc_info=error)
        os.kill(os.getpid(), signal.SIGTERM)
