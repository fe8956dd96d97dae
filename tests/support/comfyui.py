"""A real ComfyUI for the tests: started once on a free loopback port,
with the pack in its custom_nodes.
"""

import asyncio
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from artmancer.doctor import comfyui_folder
from support.paths import ROOT

Event = dict[str, Any]


@dataclass
class Run:
    """What one queued graph did.

    events : the messages of the websocket, in order; outcome : the last one's type
    outputs : by node id
    previews : the pictures shown while it ran, as JPEG; texts : what was said on a node
    """

    prompt_id: str
    events: list[Event] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)
    previews: list[bytes] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        return str(self.events[-1]["type"])

    def hear(self, message: bytes) -> None:
        """One of ComfyUI's binary messages: a preview or a text."""
        kind, length = struct.unpack(">II", message[:8])
        if kind == 1:
            self.previews.append(message[8:])
        elif kind == 3:
            self.texts.append(message[8 + length :].decode())

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event["data"] for event in self.events if event["type"] == kind]


class ComfyUI:
    def __init__(self, base: Path) -> None:
        self.base = base
        self.log = base / "comfyui.log"
        (base / "custom_nodes").mkdir(parents=True)
        (base / "user" / "default").mkdir(parents=True)
        # A fresh ComfyUI greets with its templates, over the graph.
        (base / "user" / "default" / "comfy.settings.json").write_text(
            '{"Comfy.TutorialCompleted": true}'
        )
        (base / "custom_nodes" / "artmancer").symlink_to(ROOT)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [
            sys.executable,
            "main.py",
            "--cpu",
            "--base-directory",
            str(base),
            "--port",
            str(port),
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--disable-auto-launch", "--preview-method", "auto"],
                cwd=comfyui_folder(),
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    def wait(self, seconds: float = 180) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.get("/system_stats")
                return
            except aiohttp.ClientError:
                time.sleep(0.2)
        raise RuntimeError(f"ComfyUI did not start:\n{self.log.read_text()[-4000:]}")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        kept = ROOT / "build"
        kept.mkdir(exist_ok=True)
        shutil.copy(self.log, kept / "comfyui-test.log")

    def get(self, path: str) -> Any:
        async def ask() -> Any:
            async with aiohttp.ClientSession(self.url) as session, session.get(path) as answer:
                answer.raise_for_status()
                return (
                    await answer.json()
                    if answer.content_type == "application/json"
                    else await answer.read()
                )

        return asyncio.run(ask())

    def upload(self, path: Path, name: str | None = None, **fields: str) -> str:
        """Put a file into the input folder, or where the fields of the form say;
        the name it has there.
        """

        async def send() -> str:
            form = aiohttp.FormData(fields)
            form.add_field("image", path.read_bytes(), filename=name or path.name)
            async with (
                aiohttp.ClientSession(self.url) as session,
                session.post("/upload/image", data=form) as answer,
            ):
                answer.raise_for_status()
                return str((await answer.json())["name"])

        return asyncio.run(send())

    def free(self) -> None:
        """Unload all models and drop what is cached, as the button in the menu does."""

        async def post() -> None:
            async with aiohttp.ClientSession(self.url) as session:
                await session.post("/free", json={"unload_models": True, "free_memory": True})

        # The worker does it when it wakes, and says nothing. Asked while it collects garbage after
        # a run, it goes to sleep over it.
        for seconds in (0.5, 1.5):
            asyncio.run(post())
            time.sleep(seconds)

    def queue(self, graph: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """POST /prompt without waiting for the run: the status and the answer."""
        return self.post("/prompt", json={"prompt": graph})

    def post(self, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
        """The status and the answer."""

        async def send() -> tuple[int, dict[str, Any]]:
            async with (
                aiohttp.ClientSession(self.url) as session,
                session.post(path, **body) as answer,
            ):
                return answer.status, await answer.json()

        return asyncio.run(send())

    def run(
        self, graph: dict[str, Any], on_event: Callable[[Event], str | None] = lambda event: None
    ) -> Run:
        """Queue a graph and listen until it ends. What on_event gives is POSTed as a path,
        /interrupt say.
        """

        async def listen() -> Run:
            client = uuid.uuid4().hex
            timeout = aiohttp.ClientTimeout(total=120)
            async with (
                aiohttp.ClientSession(self.url, timeout=timeout) as session,
                session.ws_connect(f"/ws?clientId={client}", max_msg_size=0) as socket,
            ):
                body = {"prompt": graph, "client_id": client}
                async with session.post("/prompt", json=body) as answer:
                    assert answer.status == 200, await answer.text()
                    run = Run((await answer.json())["prompt_id"])
                async for message in socket:
                    if message.type == aiohttp.WSMsgType.BINARY:
                        run.hear(message.data)
                        continue
                    event = json.loads(message.data)
                    if event["data"].get("prompt_id") != run.prompt_id:
                        continue
                    run.events.append(event)
                    if path := on_event(event):
                        await session.post(path)
                    if event["type"] in (
                        "execution_success",
                        "execution_error",
                        "execution_interrupted",
                    ):
                        break
                history: dict[str, Any] = {}
                while run.prompt_id not in history:  # written a moment after the last event
                    async with session.get(f"/history/{run.prompt_id}") as answer:
                        history = await answer.json()
                run.outputs = history[run.prompt_id]["outputs"]
                return run

        return asyncio.run(listen())

    def view(self, picture: dict[str, str]) -> bytes:
        return bytes(
            self.get(
                f"/view?filename={picture['filename']}&subfolder={picture['subfolder']}&type={picture['type']}"
            )
        )
