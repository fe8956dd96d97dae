"""The gateway's HTTP server, which can start ComfyUIs of its own."""

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..errors import ArtMancerError
from . import comfy_process
from .app import create_app
from .disk import make_folder
from .logs import JsonLines, PlainLines
from .service import local_gateway
from .settings import Settings

logger = logging.getLogger(__name__)

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
"""Host names of this machine that no other machine can reach."""

_KEEP_ALIVE = 75
"""Seconds that an idle connection stays open. This is longer than proxies and clients keep theirs,
so that none is closed while a request is on its way, and longer than people look at an image.
"""

HEADER_TIMEOUT = 20.0
"""Longest time in seconds from a connection's start, or from the first byte of a further request,
to the end of the request's headers. The RequestGuard limits the time for a body.
"""


def serve(
    settings: Settings, *, with_comfyui: bool, base: Path | None, cpu: bool, light_on_gpu: bool
) -> None:
    """Serve until interrupted.

    Parameters
    ----------
    with_comfyui : start a ComfyUI at each address in the settings, and restart it when it exits
    base : base directory of these ComfyUIs; see comfy_process.command
    cpu : run the ComfyUI of the heavy lane on the CPU, too
    light_on_gpu : let a ComfyUI of the light lane's own use the GPU

    Raises
    ------
    ArtMancerError : the folder of the data cannot be written, or there is no ComfyUI
    """
    handler = logging.StreamHandler()
    handler.setFormatter(PlainLines() if sys.stderr.isatty() else JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    make_folder(settings.data)
    companions: list[Callable[[], Coroutine[Any, Any, None]]] = []
    absences = {}
    if with_comfyui:
        heavy_url = settings.comfyui_url
        light_url = settings.comfyui_light_url or heavy_url
        heavy, light = urlsplit(heavy_url), urlsplit(light_url)
        kept = {heavy_url: _kept_comfyui("heavy", heavy, settings, base, cpu)}
        if light.netloc != heavy.netloc:
            light_on_cpu = cpu or not light_on_gpu
            kept[light_url] = _kept_comfyui("light", light, settings, base, light_on_cpu)
        elif light_on_gpu:
            logger.warning(
                "--light-on-gpu is ignored: there is no second ComfyUI. Set COMFYUI_LIGHT_URL to "
                "an address of its own, for example http://127.0.0.1:8189."
            )
        absences = {url: comfyui.absence for url, comfyui in kept.items()}
        companions += [comfyui.keep_running for comfyui in kept.values()]

    async def announce() -> None:
        await app.state.gateway.jobs.ready()
        logger.info("Ready: open %s", _address(settings))

    app = create_app(
        settings,
        partial(local_gateway, absences=absences),
        companions=[*companions, announce],
        allowed_hosts=_allowed_hosts(settings),
    )
    uvicorn.run(app, **server_options(settings))


def _address(settings: Settings) -> str:
    """Return the URL of the page on this machine; without a page, of the documentation."""
    # A browser does not open the addresses that stand for all of the machine's.
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
    host = everywhere.get(settings.host, settings.host)
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{settings.port}/{'' if settings.page else 'docs'}"


def server_options(settings: Settings, header_timeout: float = HEADER_TIMEOUT) -> dict[str, Any]:
    """Return the arguments of uvicorn.run and uvicorn.Config beside the app."""

    class Protocol(_HeaderTimeoutProtocol):
        timeout = header_timeout

    return {
        "host": settings.host,
        "port": settings.port,
        "http": Protocol,
        "ws": "none",
        "log_config": None,
        "access_log": False,
        "timeout_keep_alive": _KEEP_ALIVE,
        "timeout_graceful_shutdown": 5,
    }


class _HeaderTimeoutProtocol(HttpToolsProtocol):
    """HTTP on one connection, which is closed if the headers of a request do not come to an end.

    uvicorn alone limits only the time without a byte after a response. While a response is
    pending there is no limit here: a client may wait for it as long as it likes.

    Attributes
    ----------
    timeout : seconds for the headers
    """

    timeout: float
    _timer: asyncio.TimerHandle | None = None

    def connection_made(  # type: ignore[override]  # as in the base class
        self, transport: asyncio.Transport
    ) -> None:
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._timer is None:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.timeout, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None


def _kept_comfyui(
    name: str, url: SplitResult, settings: Settings, base: Path | None, cpu: bool
) -> comfy_process.KeptComfyUI:
    """Return a ComfyUI that is kept running at a URL.

    Raises
    ------
    ArtMancerError : the URL is not on this machine; there is no ComfyUI
    """
    if url.hostname not in _LOOPBACK:
        raise ArtMancerError(
            "invalid_request",
            f"--with-comfyui cannot start a ComfyUI at {url.geturl()}; expected an address of this "
            "machine, such as http://127.0.0.1:8188. Change the address, or leave --with-comfyui "
            "out.",
        )
    port = url.port or 80
    folder = settings.data / f"comfyui-{name}"
    start = comfy_process.command(port, folder, base=base, cpu=cpu)
    return comfy_process.KeptComfyUI(start, port, folder)


def _allowed_hosts(settings: Settings) -> set[str] | None:
    """Return the host names that a gateway for this machine alone answers to; None: any name.

    They include the names of the allowed origins, for proxies in front of the gateway.
    """
    if settings.api_token or settings.host not in _LOOPBACK:
        return None
    names = set(_LOOPBACK)
    for origin in settings.allowed_origins:
        name = urlsplit(origin).hostname
        if name:
            names.add(name)
    return names
