"""A real ComfyUI for the tests: a process on a free loopback port, with the pack installed."""

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

from artmancer.folders import comfyui_folder

from .paths import BUILD, ROOT

Event = dict[str, Any]

CUSTOM_NODES = ROOT / "tests" / "support" / "custom_nodes"
"""Nodes that only the tests use."""

START_TIMEOUT = 600.0
"""Longest start in seconds; on a busy machine it takes minutes."""

RUN_TIMEOUT = 600.0
"""Longest run of a graph in seconds."""

NO_WORK = {
    "no work": {
        "class_type": "EmptyImage",
        "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0},
    },
    "no preview": {"class_type": "PreviewImage", "inputs": {"images": ["no work", 0]}},
}
"""A graph that takes no time."""


@dataclass
class Run:
    """The events and outputs of one queued graph.

    Attributes
    ----------
    events : messages of the websocket, in order
    outputs : outputs by node id
    previews : images shown while it ran, as JPEG
    texts : progress texts shown on a node
    last_texts : the last of them by node id, which ComfyUI leaves on the node
    """

    prompt_id: str
    events: list[Event] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)
    previews: list[bytes] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    last_texts: dict[str, str] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        """Type of the last event."""
        return str(self.events[-1]["type"])

    def on_binary(self, message: bytes) -> None:
        """Read one of ComfyUI's binary messages: a preview or a progress text."""
        kind, length = struct.unpack(">II", message[:8])
        if kind == 1:
            self.previews.append(message[8:])
        elif kind == 3:
            node, text = message[8 : 8 + length].decode(), message[8 + length :].decode()
            self.texts.append(text)
            self.last_texts[node] = text

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return the data of all events of a type."""
        return [event["data"] for event in self.events if event["type"] == kind]


def free_port() -> int:
    """Return a free port of loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ComfyUI:
    """A ComfyUI process and its HTTP interface.

    Parameters
    ----------
    base : its --base-directory, which is created
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.log = base / "comfyui.log"
        (base / "custom_nodes").mkdir(parents=True)
        (base / "user" / "default").mkdir(parents=True)
        # Without this, a new ComfyUI opens its list of templates over the graph.
        (base / "user" / "default" / "comfy.settings.json").write_text(
            '{"Comfy.TutorialCompleted": true}'
        )
        (base / "custom_nodes" / "artmancer").symlink_to(ROOT)
        for path in CUSTOM_NODES.glob("*.py"):
            shutil.copy(path, base / "custom_nodes")
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [
            *(sys.executable, "main.py", "--cpu", "--disable-auto-launch"),
            *("--base-directory", str(base), "--port", str(port)),
            # The default cache drops outputs when the machine's memory is short.
            *("--preview-method", "auto", "--cache-classic"),
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=comfyui_folder(),
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    def wait(self) -> None:
        """Wait until the process answers."""
        end = time.monotonic() + START_TIMEOUT
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.get("/system_stats")
                return
            except aiohttp.ClientError:
                time.sleep(0.2)
        raise RuntimeError(f"ComfyUI did not start:\n{self.log.read_text()[-4000:]}")

    def stop(self) -> None:
        """Stop the process and keep its log in build/."""
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        BUILD.mkdir(exist_ok=True)
        worker = os.environ.get("PYTEST_XDIST_WORKER", "")
        shutil.copy(self.log, BUILD / f"comfyui-test{worker}.log")

    def get(self, path: str) -> Any:
        """Return the JSON or the bytes behind a path."""

        async def request() -> Any:
            async with aiohttp.ClientSession(self.url) as session, session.get(path) as answer:
                answer.raise_for_status()
                is_json = answer.content_type == "application/json"
                return await answer.json() if is_json else await answer.read()

        return asyncio.run(request())

    def upload(self, path: Path, name: str | None = None, **fields: str) -> str:
        """Upload a file and return the name it got.

        Parameters
        ----------
        fields : further fields of the form, for a folder other than the input folder
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

    def free(self, keep_outputs_of: dict[str, Any] | None = None) -> None:
        """Unload all models, as the button in the menu does, and wait until it is done.

        Parameters
        ----------
        keep_outputs_of : the last graph, whose outputs stay in ComfyUI's cache, and with them the
            base in main memory; without it, all outputs are dropped too
        """
        if keep_outputs_of is not None:
            self._free({**keep_outputs_of, **NO_WORK}, free_memory=False)
            return
        end = time.monotonic() + RUN_TIMEOUT
        self._free(NO_WORK, free_memory=True)
        # The base is dropped a moment later, and ComfyUI may miss a request.
        while self.get("/artmancer/status")["model_loaded"]:
            assert time.monotonic() < end, "the base is still in memory"
            time.sleep(0.5)
            self._free(NO_WORK, free_memory=True)

    def _free(self, graph: dict[str, Any], free_memory: bool) -> None:
        """Request it and run a graph twice: ComfyUI's worker acts on the request after the first
        run at the latest, and the second starts when that is done.
        """

        async def request() -> None:
            body = {"unload_models": True, "free_memory": free_memory}
            async with (
                aiohttp.ClientSession(self.url) as session,
                session.post("/free", json=body) as answer,
            ):
                answer.raise_for_status()

        asyncio.run(request())
        for _ in range(2):
            assert self.run(graph).outcome == "execution_success"

    def queue(self, graph: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """POST /prompt without waiting for the run; return the status and the answer."""
        return self.post("/prompt", json={"prompt": graph})

    def post(self, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
        """POST a body; return the status and the answer."""

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
        """Queue a graph and wait until it ends.

        Parameters
        ----------
        on_event : returns a path to POST to, for example /interrupt, or None
        """

        async def listen() -> Run:
            client = uuid.uuid4().hex
            timeout = aiohttp.ClientTimeout(total=RUN_TIMEOUT)
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
                        run.on_binary(message.data)
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
                # ComfyUI writes the history a moment after the last event.
                history: dict[str, Any] = {}
                while run.prompt_id not in history:
                    async with session.get(f"/history/{run.prompt_id}") as answer:
                        history = await answer.json()
                run.outputs = history[run.prompt_id]["outputs"]
                return run

        return asyncio.run(listen())

    def view(self, file: dict[str, str]) -> bytes:
        """Return the bytes of an image that a run showed."""
        query = "&".join(f"{name}={file[name]}" for name in ("filename", "subfolder", "type"))
        return bytes(self.get(f"/view?{query}"))
