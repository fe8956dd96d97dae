"""The app: the gateway's parts behind its routes."""

import asyncio
import logging
import os
import reprlib
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import __version__
from ..errors import ArtMancerError
from . import logs, metrics
from .gateway import Gateway, local_gateway
from .guard import Guard
from .jobs import HEAVY, LIGHT, RETRY_AFTER
from .routes import common, heavy, light, system, workflows
from .settings import Settings

logger = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
_PAGE_POLICY = "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'none'"


def create_app(
    settings: Settings | None = None,
    build: Callable[[Settings], Gateway] = local_gateway,
    companions: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (),
    hosts: set[str] | None = None,
) -> FastAPI:
    """The ASGI app.

    Parameters
    ----------
    settings : default: from the environment
    build : makes the gateway, once the event loop runs
    hosts : names it may be asked for under; default: any
    companions : what runs beside the gateway, and is cancelled with it
    """
    settings = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.gateway = build(settings)
        working = [asyncio.create_task(run()) for run in (app.state.gateway.jobs.run, *companions)]
        for task in working:
            task.add_done_callback(_on_stopped)
        yield
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)

    app = FastAPI(
        title="ArtMancer",
        version=__version__,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_exception_handler(ArtMancerError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_fields)
    app.add_exception_handler(HTTPException, _refuse_route)
    # They are looked through in this order.
    if settings.role in ("all", LIGHT):
        app.include_router(light.router)
    if settings.role in ("all", HEAVY):
        app.include_router(heavy.router)
    app.include_router(workflows.router)
    app.include_router(system.router)
    app.include_router(system.debug_router)
    if settings.page:
        app.add_api_route("/", _index, include_in_schema=False)
        app.mount("/page", StaticFiles(directory=PAGE))
    app.add_middleware(
        Guard,
        token=settings.api_token.get_secret_value() if settings.api_token else None,
        origins=settings.allowed_origins,
        hosts=hosts,
        max_body=settings.max_body,
        refuse=_answer,
    )
    app.add_middleware(_Bugs)
    # Outside of them, so that a page of an allowed origin may read its refusals.
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.allowed_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type"],
        expose_headers=["ETag", "Retry-After"],
    )
    app.add_middleware(_Counted)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


async def _index() -> FileResponse:
    return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": _PAGE_POLICY})


class _Counted:
    """Counts the answers by route, and logs them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                metrics.REQUESTS.labels(route, message["status"]).inc()
                if route != "/ping":
                    told = {"method": scope["method"], "route": route, "status": message["status"]}
                    logs.tell(
                        logger, "answered", **told, ms=round((time.perf_counter() - start) * 1000)
                    )
            await send(message)

        await self.app(scope, receive, counting if scope["type"] == "http" else send)


class _Bugs:
    """Inside of CORS, so that a page of an allowed origin can read that something went wrong."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def giving(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, giving)
        except Exception:
            if begun or scope["type"] != "http":
                raise
            logger.exception("a bug")
            sentence = "Something went wrong in the gateway. Its log says what."
            await _answer(ArtMancerError("generation_failed", sentence))(scope, receive, send)


def _answer(error: ArtMancerError) -> JSONResponse:
    headers = {"Retry-After": str(RETRY_AFTER)} if error.code == "queue_full" else None
    body = {"detail": str(error), "error_type": error.code, "details": error.details}
    return JSONResponse(body, error.status, headers)


async def _refuse(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ArtMancerError)
    return _answer(error)


async def _refuse_fields(request: Request, error: Exception) -> JSONResponse:
    """The first mistake of a request that does not fit its schema."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:])
    got = "nothing" if first["type"] == "missing" else _brief(first.get("input"))
    expected = first["msg"] if field or got != "nothing" else "expected a JSON object"
    return _answer(common.invalid(field or "the body", expected, got))


def _brief(value: Any) -> str:
    """What came, as far as it may be repeated: not at length, and not a picture."""
    if isinstance(value, str) and len(value) > 80:
        return f"a text of {len(value):,} characters"
    return reprlib.repr(value)


async def _refuse_route(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _answer(
            ArtMancerError("not_found", f"There is no {request.url.path[:200]} here. See /docs.")
        )
    answer = _answer(
        ArtMancerError("invalid_request", f"{error.detail}. See /docs for what is expected.")
    )
    if error.status_code == 405:
        answer.status_code = 405
        answer.headers.update(error.headers or {})
    return answer


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The routes' part is made once, the workflows' each time: one may have come or gone."""
    if app.openapi_schema is None:
        app.openapi_schema = get_openapi(
            title=app.title, version=app.version, routes=app.routes, description=_ABOUT
        )
    fixed = app.openapi_schema
    found, schemas = workflows.paths(app.state.gateway)
    components = {**fixed["components"], "schemas": {**fixed["components"]["schemas"], **schemas}}
    return {**fixed, "paths": {**fixed["paths"], **found}, "components": components}


_ABOUT = (
    "Edits photos where a mask says, and leaves every other pixel alone. "
    "Errors have one shape: Failure."
)


def _on_stopped(working: "asyncio.Task[None]") -> None:
    if not working.cancelled() and (error := working.exception()):
        logger.critical("The gateway's work has stopped, and so does the gateway.", exc_info=error)
        os.kill(os.getpid(), signal.SIGTERM)
