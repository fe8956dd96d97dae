"""A fake ComfyUI: it accepts images and graphs, runs nothing, and answers word for word as a real
ComfyUI does.

A text input of the graph controls the run: "slow 2" takes two seconds, "hold" waits after three
steps until it is released or interrupted, "fail mask_empty" fails with that error code, "crash"
fails as a bug does. tests/gateway/test_fake_comfyui.py compares its answers with those of a real
ComfyUI.

    python tests/support/fake_comfyui.py PORT LOG

LOG receives a line for each graph that began or ended.
"""

import asyncio
import heapq
import io
import json
import struct
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web
from PIL import Image

RECORDED = json.loads((Path(__file__).parents[1] / "assets" / "comfyui.json").read_text())
"""Answers of a real ComfyUI, recorded by record_comfyui.py."""

HELD_STEPS = 3
"""Steps, of RUN_STEPS, after which a run with "hold" waits."""

RUN_STEPS = 10
"""Steps of a run with "slow" or "hold"."""

COMMANDS = ("slow", "hold", "fail", "crash")
"""First words of a text input that control the run."""

ERRORS_MODULE = "custom_nodes.artmancer.artmancer.errors"
"""Module of the pack's errors, by the name that it has in a ComfyUI."""

_TEXT_MESSAGE = 3
"""Type of ComfyUI's binary message with the progress text that a node shows."""


class FakeComfyUI:
    """A queue, a folder of temporary files and websockets, as a ComfyUI has them.

    Attributes
    ----------
    temp : files by name, with their subfolder
    sockets : open websockets by client id
    waiting : heap of the queued runs: number, run id, graph, client id
    running : the entry of the current run
    history : records of the runs that ended, by run id
    interrupted : ids of the runs to interrupt
    posted : bodies of POST /prompt, in order
    uploads : file names of the uploads, in order
    vanishing : downloads before which it loses all its files
    arrived : number of the POSTs of /prompt, accepted or not
    accepting : set when it accepts the runs that arrive; else they wait
    released : set when runs with "hold" continue
    """

    def __init__(self, log: Path | None = None) -> None:
        self.log = log
        self.temp: dict[str, bytes] = {}
        self.sockets: dict[str, web.WebSocketResponse] = {}
        self.waiting: list[tuple[float, str, dict[str, Any], str]] = []
        self.running: tuple[float, str, dict[str, Any], str] | None = None
        self.history: dict[str, Any] = {}
        self.interrupted: set[str] = set()
        self.posted: list[dict[str, Any]] = []
        self.uploads: list[str] = []
        self.counter = 0
        self.vanishing = 0
        self.arrived = 0
        self.accepting = asyncio.Event()
        self.accepting.set()
        self.released = asyncio.Event()
        self.queued = asyncio.Event()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**27)
        app.add_routes(
            [
                web.get("/ws", self.socket),
                web.post("/upload/image", self.upload),
                web.post("/prompt", self.prompt),
                web.get("/prompt", self.queue_info),
                web.get("/queue", self.queue),
                web.get("/history/{id}", self.run_history),
                web.post("/history", self.forget),
                web.get("/view", self.view),
                web.post("/api/jobs/{id}/cancel", self.cancel),
                web.post("/free", self.free),
                web.get("/{name:system_stats|object_info|artmancer/status}", self.recorded),
                web.post("/artmancer/tidy", self.tidy),
            ]
        )
        app.cleanup_ctx.append(self.working)
        return app

    async def working(self, app: web.Application) -> AsyncIterator[None]:
        worker = asyncio.create_task(self.work())
        yield
        worker.cancel()

    async def recorded(self, request: web.Request) -> web.Response:
        return web.json_response(RECORDED[request.match_info["name"].rpartition("/")[2]])

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        client = request.query["clientId"]
        self.sockets[client] = socket
        await self.send_event(client, "status", {"status": self.info(), "sid": client})
        try:
            async for message in socket:
                if message.type == WSMsgType.ERROR:
                    break
        finally:
            self.sockets.pop(client, None)
        return socket

    async def upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        image = form["image"]
        assert isinstance(image, web.FileField)
        self.temp[f"{form['subfolder']}/{image.filename}"] = image.file.read()
        self.uploads.append(image.filename)
        return web.json_response(
            {"name": image.filename, "subfolder": form["subfolder"], "type": form["type"]}
        )

    async def prompt(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.arrived += 1
        await self.accepting.wait()
        graph = body["prompt"]
        key = body.get("prompt_id") or str(uuid.uuid4())
        for node_id, node in graph.items():
            if node["class_type"] not in RECORDED["object_info"]:
                message = f"Node '{node_id}' not found. The custom node may not be installed."
                error = {
                    "type": "missing_node_type",
                    "message": message,
                    "details": f"Node ID '#{node_id}'",
                    "extra_info": {},
                }
                return web.json_response({"error": error, "node_errors": {}}, status=400)
            if node["class_type"] not in ("ArtMancer_EndpointImage", "ArtMancer_EndpointMask"):
                continue
            image = node["inputs"]["image"]
            if image != "(none)" and image.removesuffix(" [temp]") not in self.temp:
                reason = f"there is no '{image}' in the input folder. Upload it first."
                return self.refuse(node_id, node, reason)
        self.counter += 1
        number = float(body.get("number", self.counter))
        self.posted.append(body)
        heapq.heappush(self.waiting, (number, key, graph, body["client_id"]))
        self.queued.set()
        return web.json_response({"prompt_id": key, "number": number, "node_errors": {}})

    def refuse(self, node_id: str, node: dict[str, Any], reason: str) -> web.Response:
        """Answer as for a graph with a node that refuses its input `image`."""
        node_error = {
            "type": "custom_validation_failed",
            "message": "Custom validation failed for node",
            "details": f"image - {reason}",
            "extra_info": {"input_name": "image"},
        }
        error = {
            "type": "prompt_outputs_failed_validation",
            "message": "Prompt outputs failed validation",
            "details": "",
            "extra_info": {},
        }
        errors = {
            node_id: {
                "errors": [node_error],
                "dependent_outputs": [],
                "class_type": node["class_type"],
            }
        }
        return web.json_response({"error": error, "node_errors": errors}, status=400)

    def info(self) -> dict[str, Any]:
        return {"exec_info": {"queue_remaining": len(self.waiting) + (self.running is not None)}}

    async def queue_info(self, request: web.Request) -> web.Response:
        return web.json_response(self.info())

    async def queue(self, request: web.Request) -> web.Response:
        items = [
            [number, key, graph, {"client_id": client}, []]
            for number, key, graph, client in self.waiting
        ]
        running = [[*self.running[:3], {"client_id": self.running[3]}, []]] if self.running else []
        return web.json_response({"queue_running": running, "queue_pending": items})

    async def run_history(self, request: web.Request) -> web.Response:
        key = request.match_info["id"]
        return web.json_response({key: self.history[key]} if key in self.history else {})

    async def forget(self, request: web.Request) -> web.Response:
        for key in (await request.json())["delete"]:
            self.history.pop(key, None)
        return web.Response()

    async def view(self, request: web.Request) -> web.Response:
        if self.vanishing:
            self.vanishing -= 1
            self.temp.clear()
        data = self.temp.get(request.query["filename"])
        if not data:
            return web.Response(status=404)
        return web.Response(body=data, content_type="image/png")

    async def cancel(self, request: web.Request) -> web.Response:
        key = request.match_info["id"]
        cancelled = [entry for entry in self.waiting if entry[1] == key]
        self.waiting = [entry for entry in self.waiting if entry[1] != key]
        heapq.heapify(self.waiting)
        if self.running and self.running[1] == key:
            self.interrupted.add(key)
            cancelled.append(self.running)
        return web.json_response({"cancelled": bool(cancelled)})

    async def free(self, request: web.Request) -> web.Response:
        await request.json()
        return web.Response()

    async def tidy(self, request: web.Request) -> web.Response:
        body = await request.json()
        surplus: list[str] = []
        if body["max_bytes"] == 0:
            surplus = [name for name in self.temp if name.split("/")[-1] not in body["keep"]]
        for name in surplus:
            del self.temp[name]
        return web.json_response({"files": len(surplus), "bytes": 0})

    async def send_event(self, client: str, kind: str, data: dict[str, Any]) -> None:
        if socket := self.sockets.get(client):
            # The client may have been killed a moment ago.
            with suppress(ConnectionError):
                await socket.send_json({"type": kind, "data": data})

    async def send_text(self, client: str, node: str, text: str) -> None:
        if socket := self.sockets.get(client):
            with suppress(ConnectionError):
                await socket.send_bytes(
                    struct.pack(">II", _TEXT_MESSAGE, len(node)) + node.encode() + text.encode()
                )

    async def work(self) -> None:
        while True:
            while not self.waiting:
                self.queued.clear()
                await self.queued.wait()
            self.running = heapq.heappop(self.waiting)
            _, key, graph, client = self.running
            messages: list[Any] = []
            self.log_event("began", key)
            outcome = await self.run(key, graph, client, messages)
            self.log_event("completed" if outcome["status"]["completed"] else "failed", key)
            self.history[key] = outcome
            self.running = None
            await self.send_event(client, "executing", {"node": None, "prompt_id": key})

    def log_event(self, event: str, key: str) -> None:
        if self.log:
            with self.log.open("a") as file:
                file.write(f"{event} {key}\n")

    async def run(
        self, key: str, graph: dict[str, Any], client: str, messages: list[Any]
    ) -> dict[str, Any]:
        """Send the events of a run, which `messages` collects; return the run's record."""

        async def message(kind: str, data: dict[str, Any]) -> None:
            data = {"prompt_id": key, **data, "timestamp": int(time.time() * 1000)}
            messages.append([kind, data])
            await self.send_event(client, kind, data)

        await message("execution_start", {})
        await message("execution_cached", {"nodes": []})
        command = control(graph)
        outputs: dict[str, Any] = {}
        failure = None
        steps = RUN_STEPS if command[0] in ("slow", "hold") else 1
        for node_id, node in graph.items():
            await self.send_event(
                client, "executing", {"node": node_id, "display_node": node_id, "prompt_id": key}
            )
            if node["class_type"] == "ArtMancer_EditSampler":
                await self.send_text(client, node_id, "sampling")
                for step in range(steps):
                    if command[0] == "slow":
                        await asyncio.sleep(float(command[1]) / steps)
                    elif command[0] == "hold" and step == HELD_STEPS:
                        while not self.released.is_set() and key not in self.interrupted:
                            await asyncio.sleep(0.005)
                    data = {"value": step + 1, "max": steps, "prompt_id": key, "node": node_id}
                    await self.send_event(client, "progress", data)
                    if key in self.interrupted:
                        data = {"node_id": node_id, "node_type": node["class_type"], "executed": []}
                        await message("execution_interrupted", data)
                        return self.record(key, graph, client, outputs, messages, completed=False)
            if command[0] in ("fail", "crash") and node["class_type"] != "ArtMancer_EndpointText":
                failure = {
                    "node_id": node_id,
                    "node_type": node["class_type"],
                    "executed": [],
                    "exception_message": (
                        f"The prompt requested a failure, in {Path(__file__)}. Change it.\n"
                    ),
                    "exception_type": f"{ERRORS_MODULE}.{command[1]}"
                    if command[0] == "fail"
                    else "ZeroDivisionError",
                    "traceback": [],
                    "current_inputs": {},
                    "current_outputs": [],
                }
            if node["class_type"] == "ArtMancer_EndpointResult" and failure is None:
                outputs[node_id] = self.result(key, graph, node)
                data = {
                    "node": node_id,
                    "display_node": node_id,
                    "output": outputs[node_id],
                    "prompt_id": key,
                }
                await self.send_event(client, "executed", data)
        if failure:
            await message("execution_error", failure)
        else:
            await message("execution_success", {})
        return self.record(key, graph, client, outputs, messages, completed=failure is None)

    def record(
        self,
        key: str,
        graph: Any,
        client: str,
        outputs: Any,
        messages: list[Any],
        *,
        completed: bool,
    ) -> dict[str, Any]:
        """Return the record of a run that ended, as in /history."""
        return {
            "prompt": [0, key, graph, {"client_id": client}, list(outputs)],
            "outputs": outputs,
            "status": {
                "status_str": "success" if completed else "error",
                "completed": completed,
                "messages": messages,
            },
            "meta": {},
        }

    def result(self, key: str, graph: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
        """Return the output of a node that is a result of the endpoint."""
        source, slot = node["inputs"]["value"]
        kind = RECORDED["object_info"][graph[source]["class_type"]]["output"][slot]
        if kind in ("IMAGE", "MASK"):
            name = f"{key}-{node['inputs']['name']}.png"
            self.temp[name] = self.result_image(graph, kind)
            return {"images": [{"filename": name, "subfolder": "", "type": "temp"}]}
        report = RECORDED["report"]
        if graph[source]["class_type"] == "ArtMancer_SmartMask":
            report = {"model": "draft", "refined_by": None, "note": "It is not installed."}
        elif graph[source]["class_type"] == "ArtMancer_RemoveBackground":
            report = {"model": "u2net"}
        value = {"INT": 1, "FLOAT": 0.5}.get(kind, json.dumps(report))
        return {"text": [str(value)], "value": [value]}

    def result_image(self, graph: dict[str, Any], kind: str) -> bytes:
        """Return the first uploaded image of the graph; unchanged where it is a PNG."""
        name = next(
            node["inputs"]["image"]
            for node in graph.values()
            if node["class_type"] == "ArtMancer_EndpointImage"
        )
        data = self.temp[name.removesuffix(" [temp]")]
        if kind == "IMAGE" and data.startswith(b"\x89PNG"):
            return data
        buffer = io.BytesIO()
        Image.open(io.BytesIO(data)).convert("RGB" if kind == "IMAGE" else "L").save(buffer, "PNG")
        return buffer.getvalue()


def control(graph: dict[str, Any]) -> list[str]:
    """Return the words of the first text input that controls the run; [""] without any."""
    for node in graph.values():
        if node["class_type"] == "ArtMancer_EndpointText":
            words: list[str] = node["inputs"]["value"].split()
            if words and words[0] in COMMANDS:
                return words
    return [""]


def serve_fake_comfyui(port: int, log: Path) -> None:
    """Serve a fake ComfyUI on a port of loopback until the process is terminated."""
    web.run_app(FakeComfyUI(log).app(), host="127.0.0.1", port=port, print=None)


if __name__ == "__main__":
    serve_fake_comfyui(int(sys.argv[1]), Path(sys.argv[2]))
