"""A ComfyUI that runs nothing: it takes pictures and graphs, and says what the real one would say,
word for word.

A text input of the graph controls it: "slow 2" takes two seconds, "hold" waits after three steps
until it is released or interrupted, "fail mask_empty" fails with that code, "crash" fails as a bug
would. tests/test_gateway.py holds what it says against a
real ComfyUI.

    python tests/support/fake_comfyui.py PORT LOG

LOG gets a line for each graph that began or ended.
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
"""Answers of a real ComfyUI, taken down by record_comfyui.py."""

HELD_STEPS = 3
"""Steps of ten that a run with "hold" makes before it waits."""

PACK = "custom_nodes.artmancer.artmancer.errors"


class FakeComfyUI:
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
        self.vanishing = 0  # how often it loses its files before one is fetched
        self.released = asyncio.Event()
        self.woken = asyncio.Event()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**27)
        app.add_routes(
            [
                web.get("/ws", self.socket),
                web.post("/upload/image", self.upload),
                web.post("/prompt", self.prompt),
                web.get("/prompt", self.queue_info),
                web.get("/queue", self.queue),
                web.get("/history/{id}", self.one_history),
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
        await self.say(client, "status", {"status": self.info(), "sid": client})
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
        graph, key = body["prompt"], body.get("prompt_id") or str(uuid.uuid4())
        for node_id, node in graph.items():
            if node["class_type"] not in RECORDED["object_info"]:
                said = f"Node '{node_id}' not found. The custom node may not be installed."
                error = {
                    "type": "missing_node_type",
                    "message": said,
                    "details": f"Node ID '#{node_id}'",
                    "extra_info": {},
                }
                return web.json_response({"error": error, "node_errors": {}}, status=400)
            if node["class_type"] not in ("ArtMancer_EndpointImage", "ArtMancer_EndpointMask"):
                continue
            picture = node["inputs"]["image"]
            if picture != "(none)" and picture.removesuffix(" [temp]") not in self.temp:
                return self.refuse(
                    node_id, node, f"there is no '{picture}' in the input folder. Upload it first."
                )
        self.counter += 1
        number = float(body.get("number", self.counter))
        self.posted.append(body)
        heapq.heappush(self.waiting, (number, key, graph, body["client_id"]))
        self.woken.set()
        return web.json_response({"prompt_id": key, "number": number, "node_errors": {}})

    def refuse(self, key: str, node: dict[str, Any], why: str) -> web.Response:
        found = {
            "type": "custom_validation_failed",
            "message": "Custom validation failed for node",
            "details": f"image - {why}",
            "extra_info": {"input_name": "image"},
        }
        error = {
            "type": "prompt_outputs_failed_validation",
            "message": "Prompt outputs failed validation",
            "details": "",
            "extra_info": {},
        }
        errors = {
            key: {"errors": [found], "dependent_outputs": [], "class_type": node["class_type"]}
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

    async def one_history(self, request: web.Request) -> web.Response:
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
        return (
            web.Response(body=data, content_type="image/png") if data else web.Response(status=404)
        )

    async def cancel(self, request: web.Request) -> web.Response:
        key = request.match_info["id"]
        found = [entry for entry in self.waiting if entry[1] == key]
        self.waiting = [entry for entry in self.waiting if entry[1] != key]
        heapq.heapify(self.waiting)
        if self.running and self.running[1] == key:
            self.interrupted.add(key)
            found.append(self.running)
        return web.json_response({"cancelled": bool(found)})

    async def free(self, request: web.Request) -> web.Response:
        await request.json()
        return web.Response()

    async def tidy(self, request: web.Request) -> web.Response:
        body = await request.json()
        gone = (
            [name for name in self.temp if name.split("/")[-1] not in body["keep"]]
            if body["max_bytes"] == 0
            else []
        )
        for name in gone:
            del self.temp[name]
        return web.json_response({"files": len(gone), "bytes": 0})

    async def say(self, client: str, kind: str, data: dict[str, Any]) -> None:
        if socket := self.sockets.get(client):
            with suppress(ConnectionError):  # the client was killed a moment ago
                await socket.send_json({"type": kind, "data": data})

    async def tell(self, client: str, node: str, text: str) -> None:
        if socket := self.sockets.get(client):
            with suppress(ConnectionError):
                await socket.send_bytes(
                    struct.pack(">II", 3, len(node)) + node.encode() + text.encode()
                )

    async def work(self) -> None:
        while True:
            while not self.waiting:
                self.woken.clear()
                await self.woken.wait()
            self.running = heapq.heappop(self.waiting)
            _, key, graph, client = self.running
            messages: list[Any] = []
            self.note("began", key)
            outcome = await self.run(key, graph, client, messages)
            self.note("completed" if outcome["status"]["completed"] else "failed", key)
            self.history[key] = outcome
            self.running = None
            await self.say(client, "executing", {"node": None, "prompt_id": key})

    def note(self, what: str, key: str) -> None:
        if self.log:
            with self.log.open("a") as file:
                file.write(f"{what} {key}\n")

    async def run(
        self, key: str, graph: dict[str, Any], client: str, messages: list[Any]
    ) -> dict[str, Any]:
        async def message(kind: str, data: dict[str, Any]) -> None:
            data = {"prompt_id": key, **data, "timestamp": int(time.time() * 1000)}
            messages.append([kind, data])
            await self.say(client, kind, data)

        await message("execution_start", {})
        await message("execution_cached", {"nodes": []})
        texts = [
            node["inputs"]["value"]
            for node in graph.values()
            if node["class_type"] == "ArtMancer_EndpointText"
        ]
        said = next(
            (
                text.split()
                for text in texts
                if text.split()[:1] in (["slow"], ["hold"], ["fail"], ["crash"])
            ),
            [""],
        )
        outputs: dict[str, Any] = {}
        failure = None
        steps = 10 if said[0] in ("slow", "hold") else 1
        for node, about in graph.items():
            await self.say(
                client, "executing", {"node": node, "display_node": node, "prompt_id": key}
            )
            if about["class_type"] == "ArtMancer_EditSampler":
                await self.tell(client, node, "sampling")
                for step in range(steps):
                    if said[0] == "slow":
                        await asyncio.sleep(float(said[1]) / steps)
                    elif said[0] == "hold" and step == HELD_STEPS:
                        while not self.released.is_set() and key not in self.interrupted:
                            await asyncio.sleep(0.005)
                    data = {"value": step + 1, "max": steps, "prompt_id": key, "node": node}
                    await self.say(client, "progress", data)
                    if key in self.interrupted:
                        data = {"node_id": node, "node_type": about["class_type"], "executed": []}
                        await message("execution_interrupted", data)
                        return self.ended(key, graph, client, outputs, messages, completed=False)
            if said[0] in ("fail", "crash") and about["class_type"] != "ArtMancer_EndpointText":
                failure = {
                    "node_id": node,
                    "node_type": about["class_type"],
                    "executed": [],
                    "exception_message": (
                        f"It was asked to fail, in {Path(__file__)}. Ask for something else.\n"
                    ),
                    "exception_type": f"{PACK}.{said[1]}"
                    if said[0] == "fail"
                    else "ZeroDivisionError",
                    "traceback": [],
                    "current_inputs": {},
                    "current_outputs": [],
                }
            if about["class_type"] == "ArtMancer_EndpointResult" and failure is None:
                outputs[node] = self.result(key, graph, about)
                data = {
                    "node": node,
                    "display_node": node,
                    "output": outputs[node],
                    "prompt_id": key,
                }
                await self.say(client, "executed", data)
        if failure:
            await message("execution_error", failure)
        else:
            await message("execution_success", {})
        return self.ended(key, graph, client, outputs, messages, completed=failure is None)

    def ended(
        self,
        key: str,
        graph: Any,
        client: str,
        outputs: Any,
        messages: list[Any],
        *,
        completed: bool,
    ) -> dict[str, Any]:
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
        source, slot = node["inputs"]["value"]
        kind = RECORDED["object_info"][graph[source]["class_type"]]["output"][slot]
        if kind in ("IMAGE", "MASK"):
            name = f"{key}-{node['inputs']['name']}.png"
            self.temp[name] = self.picture(graph, kind)
            return {"images": [{"filename": name, "subfolder": "", "type": "temp"}]}
        value = {"INT": 1, "FLOAT": 0.5}.get(kind, json.dumps(RECORDED["report"]))
        return {"text": [str(value)], "value": [value]}

    def picture(self, graph: dict[str, Any], kind: str) -> bytes:
        """The first picture of the graph, as it came."""
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


def serve_fake_comfyui(port: int, log: Path) -> None:
    """Serve one on a port of loopback until it is terminated."""
    web.run_app(FakeComfyUI(log).app(), host="127.0.0.1", port=port, print=None)


if __name__ == "__main__":
    serve_fake_comfyui(int(sys.argv[1]), Path(sys.argv[2]))
