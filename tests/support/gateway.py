"""A gateway for the tests: the real app behind a real port, in a thread;
and a fake ComfyUI beside it.
"""

import asyncio
import base64
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from aiohttp import web
from fastapi import FastAPI

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


def until(met: Callable[[], Any], seconds: float = 10) -> Any:
    """Wait until something is so; what it gave."""
    end = time.monotonic() + seconds
    while not (found := met()):
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.02)
    return found


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
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        until(lambda: self.server.started)

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.server.should_exit = True
        self.thread.join(20)

    def connected(self) -> "Served":
        """Once it knows its ComfyUI."""
        until(lambda: self.http.get("/api/health").json()["device_info"].get("comfyui_version"), 60)
        return self

    def submit(self, **more: Any) -> str:
        answer = self.http.post("/api/generate/async", json=removal(**more))
        assert answer.status_code == 202, answer.text
        return str(answer.json()["task_id"])

    def status(self, task_id: str) -> dict[str, Any]:
        return dict(self.http.get(f"/api/jobs/{task_id}").json())

    def ended(self, task_id: str, seconds: float = 60) -> dict[str, Any]:
        """Its status once it has ended."""
        until(lambda: self.status(task_id)["status"] in ("done", "error", "cancelled"), seconds)
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

        asyncio.run_coroutine_threadsafe(listen(), self.loop).result(10)

    def die(self) -> None:
        async def end() -> None:
            for one in list(self.fake.sockets.values()):
                if one._req and one._req.transport:
                    one._req.transport.abort()
            await self.runner.cleanup()

        asyncio.run_coroutine_threadsafe(end(), self.loop).result(10)
