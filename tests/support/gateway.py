"""A gateway for the tests: the real app behind a port, in a thread. And a fake ComfyUI for it."""

import asyncio
import base64
import io
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from aiohttp import web
from fastapi import FastAPI
from PIL import Image

from artmancer.gateway.app import create_app
from artmancer.gateway.settings import Settings

from .comfyui import free_port
from .fake_comfyui import FakeComfyUI
from .paths import EXAMPLES, ROOT

GRAPHS = ROOT / "workflows" / "api"
"""Folder of the graphs that the gateway serves."""


def encoded(name: str) -> str:
    """Return an example image as base64."""
    return base64.b64encode((EXAMPLES / f"{name}.png").read_bytes()).decode()


def removal(**more: Any) -> dict[str, Any]:
    """Return the body of a valid request to remove an object.

    Parameters
    ----------
    more : fields that are added or replaced
    """
    return {
        "prompt": "remove",
        "input_image": encoded("coffee"),
        "mask_image": encoded("coffee_mask"),
        "seed": 7,
        **more,
    }


def settings(data: Path, **more: Any) -> Settings:
    """Return settings that read no .env file."""
    return Settings(_env_file=None, data=data, **more)


WAIT_TIMEOUT = 300.0
"""Longest wait of a test in seconds: far more than the slowest machine needs."""


def until(condition: Callable[[], Any]) -> Any:
    """Wait until a condition is true, and return its value."""
    end = time.monotonic() + WAIT_TIMEOUT
    while not (value := condition()):
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.02)
    return value


class Served:
    """A gateway that listens, in a thread.

    Parameters
    ----------
    app : the app of the gateway; made from the settings if None
    more : further arguments of create_app

    Attributes
    ----------
    url : its address
    http : a client of it
    """

    def __init__(self, settings: Settings, app: FastAPI | None = None, **more: Any) -> None:
        self.settings = settings
        self.url = f"http://127.0.0.1:{free_port()}"
        port = int(self.url.rpartition(":")[2])
        self.app = app or create_app(settings, **more)
        config = uvicorn.Config(
            self.app,
            "127.0.0.1",
            port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        # Without TLS no certificates are needed, and to read them takes longer than the start.
        self.http = httpx.Client(
            base_url=self.url, timeout=WAIT_TIMEOUT, trust_env=False, verify=False
        )
        until(lambda: self.server.started)

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.server.should_exit = True
        self.thread.join()

    def connected(self) -> "Served":
        """Wait until it has a connection to its ComfyUI; return it."""
        until(lambda: self.http.get("/api/health").json()["device_info"].get("comfyui_version"))
        return self

    def submit(self, **more: Any) -> str:
        """Submit an edit; return its job id. `more` are fields as in `removal`."""
        answer = self.http.post("/api/generate/async", json=removal(**more))
        assert answer.status_code == 202, answer.text
        return str(answer.json()["task_id"])

    def status(self, job_id: str) -> dict[str, Any]:
        """Return the status of a job."""
        return dict(self.http.get(f"/api/jobs/{job_id}").json())

    def ended(self, job_id: str) -> dict[str, Any]:
        """Wait until a job has ended; return its status."""
        until(lambda: self.status(job_id)["status"] in ("done", "error", "cancelled"))
        return self.status(job_id)


class FakeHost:
    """A fake ComfyUI that listens, in a thread."""

    def __init__(self) -> None:
        self.fake: FakeComfyUI
        self.url = f"http://127.0.0.1:{free_port()}"
        self.loop = asyncio.new_event_loop()
        self.runner: web.AppRunner
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.start()

    def start(self) -> None:
        """Start it without runs and files, as after a restart."""
        self.fake = FakeComfyUI()

        async def listen() -> None:
            self.runner = web.AppRunner(self.fake.app(), shutdown_timeout=0.1)
            await self.runner.setup()
            await web.TCPSite(
                self.runner, "127.0.0.1", int(self.url.rpartition(":")[2]), reuse_address=True
            ).start()

        asyncio.run_coroutine_threadsafe(listen(), self.loop).result()

    def release(self) -> None:
        """Let runs with "hold" continue, the present and the later."""
        self.loop.call_soon_threadsafe(self.fake.released.set)

    def interrupt_all(self) -> None:
        """Interrupt the current run, and drop the queued runs."""

        def interrupt() -> None:
            self.fake.waiting.clear()
            if self.fake.running:
                self.fake.interrupted.add(self.fake.running[1])

        self.loop.call_soon_threadsafe(interrupt)

    def die(self) -> None:
        """Close the port and abort all connections, as a crash does."""

        async def end() -> None:
            for websocket in list(self.fake.sockets.values()):
                if websocket._req and websocket._req.transport:
                    websocket._req.transport.abort()
            await self.runner.cleanup()

        asyncio.run_coroutine_threadsafe(end(), self.loop).result()


def decoded(text: str) -> Image.Image:
    """Return an image that came as base64."""
    return Image.open(io.BytesIO(base64.b64decode(text)))


def error(answer: httpx.Response) -> tuple[int, str]:
    """Return the status and the error code of an error answer, whose form is checked."""
    body = answer.json()
    assert set(body) == {"detail", "error_type", "details"}
    detail = body["detail"]
    assert detail.endswith(".")
    assert str(ROOT) not in detail
    assert "Traceback" not in detail
    return answer.status_code, body["error_type"]
