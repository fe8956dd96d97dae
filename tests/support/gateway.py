"""A gateway for the tests: the real app behind a real port, in a thread;
and a fake ComfyUI beside it.
"""

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


def encoded(name: str) -> str:
    """An example picture as base64."""
    return base64.b64encode((EXAMPLES / f"{name}.png").read_bytes()).decode()


def removal(**more: Any) -> dict[str, Any]:
    """The body of an edit that works."""
    return {
        "prompt": "remove",
        "input_image": encoded("coffee"),
        "mask_image": encoded("coffee_mask"),
        "seed": 7,
        **more,
    }


def settings(data: Path, **more: Any) -> Settings:
    """Independent of this machine's environment and .env."""
    return Settings(_env_file=None, data=data, **more)


WAIT_TIMEOUT = 300.0
"""Seconds after which a test gives up: far more than the slowest machine needs."""


def until(condition: Callable[[], Any]) -> Any:
    """Wait until a condition is true, and return its value."""
    end = time.monotonic() + WAIT_TIMEOUT
    while not (value := condition()):
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.02)
    return value


class Served:
    """A gateway that listens; `http` is a client of it."""

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
        self.http = httpx.Client(base_url=self.url, timeout=WAIT_TIMEOUT, trust_env=False)
        until(lambda: self.server.started)

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.server.should_exit = True
        self.thread.join()

    def connected(self) -> "Served":
        """Once it knows its ComfyUI."""
        until(lambda: self.http.get("/api/health").json()["device_info"].get("comfyui_version"))
        return self

    def submit(self, **more: Any) -> str:
        answer = self.http.post("/api/generate/async", json=removal(**more))
        assert answer.status_code == 202, answer.text
        return str(answer.json()["task_id"])

    def status(self, task_id: str) -> dict[str, Any]:
        return dict(self.http.get(f"/api/jobs/{task_id}").json())

    def ended(self, task_id: str) -> dict[str, Any]:
        """Its status once it has ended."""
        until(lambda: self.status(task_id)["status"] in ("done", "error", "cancelled"))
        return self.status(task_id)


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
        """Empty, as after a restart."""
        self.fake = FakeComfyUI()

        async def listen() -> None:
            self.runner = web.AppRunner(self.fake.app(), shutdown_timeout=0.1)
            await self.runner.setup()
            await web.TCPSite(
                self.runner, "127.0.0.1", int(self.url.rpartition(":")[2]), reuse_address=True
            ).start()

        asyncio.run_coroutine_threadsafe(listen(), self.loop).result()

    def release(self) -> None:
        """Let runs with "hold" go on, now and later."""
        self.loop.call_soon_threadsafe(self.fake.released.set)

    def interrupt_all(self) -> None:
        """Interrupt the run that holds, and forget those that wait."""

        def interrupt() -> None:
            self.fake.waiting.clear()
            if self.fake.running:
                self.fake.interrupted.add(self.fake.running[1])

        self.loop.call_soon_threadsafe(interrupt)

    def die(self) -> None:
        async def end() -> None:
            for one in list(self.fake.sockets.values()):
                if one._req and one._req.transport:
                    one._req.transport.abort()
            await self.runner.cleanup()

        asyncio.run_coroutine_threadsafe(end(), self.loop).result()


def picture(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def error(answer: httpx.Response) -> tuple[int, str]:
    said = answer.json()
    assert set(said) == {"detail", "error_type", "details"}
    assert (
        said["detail"].endswith(".")
        and str(ROOT) not in said["detail"]
        and "Traceback" not in said["detail"]
    )
    return answer.status_code, said["error_type"]
