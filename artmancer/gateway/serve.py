"""The gateway as a server, with ComfyUIs of its own where it is asked to."""

import logging
import sys
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn

from ..errors import ArtMancerError
from . import comfy_process
from .app import create_app
from .logs import JsonLines, PlainLines
from .settings import Settings

_OWN = {"127.0.0.1", "localhost", "::1"}

_KEEP_ALIVE = 75
"""Seconds that a connection may rest: longer than a person looks at a picture, and than proxies and
clients keep theirs, so that none is closed while a request is on its way.
"""


def serve(
    settings: Settings, *, with_comfyui: bool, base: Path | None, cpu: bool, light_on_gpu: bool
) -> None:
    """Serve until interrupted.

    Parameters
    ----------
    with_comfyui : start a ComfyUI at each of the settings' addresses,
        and start it again when it dies
    base : the base directory of those; see comfy_process.command
    cpu : run the heavy one without a GPU, too
    light_on_gpu : let the light one use the GPU
    """
    handler = logging.StreamHandler()
    handler.setFormatter(PlainLines() if sys.stderr.isatty() else JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    companions = []
    if with_comfyui:
        heavy = urlsplit(settings.comfyui_url)
        next_port = heavy._replace(netloc=f"{heavy.hostname}:{(heavy.port or 80) + 1}").geturl()
        light = urlsplit(settings.comfyui_light_url or next_port)
        settings = settings.model_copy(update={"comfyui_light_url": light.geturl()})
        wanted = {heavy.netloc: ("heavy", heavy, cpu)}
        wanted.setdefault(light.netloc, ("light", light, cpu or not light_on_gpu))
        for name, url, without_gpu in wanted.values():
            if url.hostname not in _OWN:
                raise ArtMancerError(
                    "invalid_request",
                    f"A ComfyUI is to be started at {url.geturl()}; expected an address of this "
                    "machine, such as http://127.0.0.1:8188. "
                    "Change it, or leave --with-comfyui out.",
                )
            port, folder = url.port or 80, settings.data / f"comfyui-{name}"
            start = comfy_process.command(port, folder, base=base, cpu=without_gpu)
            companions.append(partial(comfy_process.keep_running, start, port, folder))
    uvicorn.run(
        create_app(settings, companions=companions, allowed_hosts=_allowed_hosts(settings)),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=5,
    )


def _allowed_hosts(settings: Settings) -> set[str] | None:
    """The names of a gateway that is for this machine alone, and of the proxies in front of it."""
    if settings.api_token or settings.host not in _OWN:
        return None
    return _OWN | {
        name for origin in settings.allowed_origins if (name := urlsplit(origin).hostname)
    }
