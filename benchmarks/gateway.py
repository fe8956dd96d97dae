"""What the gateway costs, beside doing by hand what it does: upload, prompt, wait, view.

Two real ComfyUIs with the draft editor and the tests' tiny FastSAM, the gateway in front of them as
its own process and a client in this one; both ways by turns, each request with a picture or a
parameter that was not seen before.

Usage: python benchmarks/gateway.py [--json] [--edits N] [--seconds N]
"""

import argparse
import asyncio
import base64
import io
import itertools
import json
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import aiohttp
import cv2
import numpy as np
import psutil
from report import Row, finish
from support.gateway import free_port
from support.paths import ROOT
from support.shapes import scene

GRAPHS = ROOT / "workflows" / "api"
CLIENTS = 20
SHARES = 4
"""Parts that each way's seconds under load are split into, by turns."""

_counter = itertools.count(1)


def photo(side: int) -> bytes:
    """JPEG of a photo of this size that was not seen before."""
    picture = cv2.imread(str(ROOT / "workflows" / "examples" / "coffee.png"))
    picture = cv2.resize(picture, (side, side), interpolation=cv2.INTER_CUBIC)
    number = next(_counter)
    # In steps that JPEG does not take for the same.
    picture[:16, :16] = [16 * (number // 16**place % 16) for place in range(3)]
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def spot(side: int) -> bytes:
    """PNG of a mask over a small thing."""
    mask = np.zeros((side, side), np.uint8)
    cv2.circle(mask, (side // 8, side * 7 // 8), side // 32, 255, -1)
    return cv2.imencode(".png", mask)[1].tobytes()


class ByHand:
    """A client of ComfyUI alone, with one websocket, as one writes it."""

    def __init__(self, url: str) -> None:
        self.url, self.client = url, uuid.uuid4().hex
        self.http = aiohttp.ClientSession(url, raise_for_status=True)
        self.sent: dict[bytes, str] = {}
        self.ends: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self.shown: dict[str, dict[str, Any]] = {}

    async def listen(self) -> None:
        async with self.http.ws_connect(f"/ws?clientId={self.client}", max_msg_size=0) as socket:
            async for message in socket:
                if message.type != aiohttp.WSMsgType.TEXT:
                    continue
                event = json.loads(message.data)
                key = event["data"].get("prompt_id")
                if key not in self.ends:
                    continue
                if event["type"] == "executed":
                    self.shown[key][event["data"]["node"]] = event["data"]["output"]
                elif event["type"] == "execution_success":
                    self.ends[key].set_result(self.shown[key])
                elif event["type"] == "execution_error":
                    self.ends[key].set_exception(RuntimeError(event["data"]["exception_message"]))

    async def upload(self, data: bytes) -> str:
        """Once, as the gateway does."""
        if data in self.sent:
            return self.sent[data]
        form = aiohttp.FormData({"type": "temp", "subfolder": "by_hand"})
        form.add_field(
            "image", io.BytesIO(data), filename=f"{uuid.uuid4().hex}.jpg", content_type="image/jpeg"
        )
        async with self.http.post("/upload/image", data=form) as answer:
            self.sent[data] = f"by_hand/{(await answer.json())['name']} [temp]"
            return self.sent[data]

    async def run(self, graph: dict[str, Any], pictures: dict[str, bytes]) -> dict[str, bytes]:
        """The pictures that the graph's results show, by node."""
        names = dict(
            zip(pictures, [await self.upload(data) for data in pictures.values()], strict=True)
        )
        for node in graph.values():
            if node["inputs"].get("name") in names and "image" in node["inputs"]:
                node["inputs"]["image"] = names[node["inputs"]["name"]]
            if node["class_type"] == "ArtMancer_EndpointResult":
                node["inputs"]["folder"] = "temp"
        key = str(uuid.uuid4())
        self.ends[key], self.shown[key] = asyncio.get_running_loop().create_future(), {}
        body = {"prompt": graph, "client_id": self.client, "prompt_id": key}
        async with self.http.post("/prompt", json=body):
            pass
        shown = await self.ends[key]
        del self.ends[key], self.shown[key]
        return {
            node: await self.view(output["images"][0])
            for node, output in shown.items()
            if "images" in output
        }

    async def view(self, picture: dict[str, str]) -> bytes:
        async with self.http.get("/view", params=picture) as answer:
            return await answer.read()


class ByGateway:
    """A client of the gateway, with the same HTTP library."""

    def __init__(self, url: str) -> None:
        self.http = aiohttp.ClientSession(
            url,
            raise_for_status=True,
            timeout=aiohttp.ClientTimeout(300),
            connector=aiohttp.TCPConnector(limit=250),
        )

    async def get(self, path: str) -> Any:
        async with self.http.get(path) as answer:
            return await answer.json()

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        async with self.http.post(path, json=body) as answer:
            return await answer.json()


def graph(name: str, **values: Any) -> dict[str, Any]:
    """A served graph with these values, and without the results on request."""
    found: dict[str, Any] = json.loads((GRAPHS / f"{name}.json").read_text())
    for key, node in list(found.items()):
        if node["inputs"].get("on_request") is True:
            del found[key]
        elif node["inputs"].get("name") in values:
            node["inputs"]["value"] = values[node["inputs"]["name"]]
    return found


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def edits(
    gateway: ByGateway, by_hand: ByHand, process: psutil.Process, rounds: int
) -> list[Row]:
    took: dict[str, list[float]] = {"by hand": [], "gateway": []}
    spent = 0.0
    for index in range(rounds + 2):
        seconds = {}
        for way in ("by hand", "gateway") if index % 2 else ("gateway", "by hand"):
            image = photo(1024)
            before, start = process.cpu_times(), time.perf_counter()
            if way == "gateway":
                body = {"prompt": "balance", "input_image": encoded(image)}
                answer = await gateway.post("/api/generate", body)
            else:
                filled = graph("generate", prompt="balance", task_type="white_balance")
                shown = await by_hand.run(filled, {"input_image": image})
            seconds[way] = time.perf_counter() - start
            assert base64.b64decode(answer["image"]) if way == "gateway" else shown["14"]
            after = process.cpu_times()
            if way == "gateway" and index >= 2:
                spent += after.user + after.system - before.user - before.system
        if index >= 2:  # the first ones load what is loaded once
            for way, value in seconds.items():
                took[way].append(value * 1000)
    added = [ours - theirs for ours, theirs in zip(took["gateway"], took["by hand"], strict=True)]
    return [
        Row(
            "draft white balance, 1024x1024, by hand, median",
            statistics.median(took["by hand"]),
            "ms",
        ),
        Row(
            "draft white balance, 1024x1024, gateway, median",
            statistics.median(took["gateway"]),
            "ms",
        ),
        Row("added by the gateway, median of the differences", statistics.median(added), "ms", 25),
        Row("CPU of the gateway an edit", spent / rounds * 1000, "ms", 20),
    ]


def shapes_to_click(side: int) -> tuple[bytes, Callable[[int], list[float]]]:
    """PNG of shapes that the tests' FastSAM knows, and where the nth click goes: no two alike."""
    pixels, shapes = scene(507, side)
    inner = [cv2.erode(one.astype(np.uint8), np.ones((side // 16, side // 16))) for one in shapes]
    spots = [place for one in inner for place in np.argwhere(one)[::97, ::-1].tolist()]
    random.Random(0).shuffle(spots)

    def place(number: int) -> list[float]:
        x, y = spots[number % len(spots)]
        return [x + number % 9973 / 9973, y]

    return cv2.imencode(".png", pixels[..., ::-1])[1].tobytes(), place


async def known(gateway: ByGateway, image: bytes, spot: list[float]) -> str:
    """The image_id of a picture that was clicked once."""
    body = {"image": encoded(image), "points": [spot]}
    return str((await gateway.post("/api/smart-mask", body))["image_id"])


async def load(gateway: ByGateway, by_hand: ByHand, seconds: float) -> list[Row]:
    """Clicks and shadows by turns, each with a parameter that was not seen before. Both ways send
    the photo that is clicked once: by hand its file is named from then on, here its image_id.
    """
    image, mask = photo(512), spot(512)
    shapes, place = shapes_to_click(512)
    image_id = await known(gateway, shapes, place(0))
    took: dict[str, list[float]] = {"by hand": [], "gateway": []}
    spent = {"by hand": 0.0, "gateway": 0.0}
    errors = 0

    async def ask_gateway() -> None:
        nonlocal errors
        number = next(_counter)
        if number % 2:
            body = {
                "extracted_image": encoded(image),
                "mask": encoded(mask),
                "shadow_opacity": number % 9973 / 9973,
            }
            path, answered = "/api/image-utils/add-shadow-preview", "preview_image"
        else:
            body = {"image_id": image_id, "points": [place(number)]}
            path, answered = "/api/smart-mask", "mask_base64"
        try:
            errors += not (await gateway.post(path, body))[answered]
        except aiohttp.ClientError:
            errors += 1

    async def ask_comfyui() -> None:
        number = next(_counter)
        if number % 2:
            filled = graph("add-shadow-preview", opacity=number % 9973 / 9973)
            assert await by_hand.run(filled, {"image": image, "mask": mask})
        else:
            filled = graph("smart-mask", prompt=json.dumps({"points": [place(number)]}))
            assert await by_hand.run(filled, {"image": shapes})

    async def client(ask: Callable[[], Awaitable[None]], times: list[float], end: float) -> None:
        while (start := time.perf_counter()) < end:
            await ask()
            times.append(time.perf_counter() - start)

    for _ in range(SHARES):
        for way, ask in (("by hand", ask_comfyui), ("gateway", ask_gateway)):
            start = time.perf_counter()
            times = took[way]
            await asyncio.gather(
                *(client(ask, times, start + seconds / SHARES) for _ in range(CLIENTS))
            )
            spent[way] += time.perf_counter() - start
    rate = {way: len(times) / spent[way] for way, times in took.items()}
    ours = sorted(took["gateway"])
    return [
        Row(
            f"{CLIENTS} clients, {seconds:g} s, clicks and shadows, 512x512, by hand",
            rate["by hand"],
            "a second",
        ),
        Row(
            f"{CLIENTS} clients, {seconds:g} s, clicks and shadows, 512x512, gateway",
            rate["gateway"],
            "a second",
        ),
        Row(
            "its throughput over that by hand, at least",
            rate["gateway"] / rate["by hand"],
            "x",
            0.95,
        ),
        Row("errors under that load", errors, "", 0),
        Row(
            "p99 over the median under that load",
            ours[int(len(ours) * 0.99)] / statistics.median(ours),
            "x",
            3,
        ),
    ]


async def flood(gateway: ByGateway, process: psutil.Process) -> list[Row]:
    bodies = [
        {"prompt": "balance", "input_image": encoded(photo(256)), "seed": seed}
        for seed in range(200)
    ]
    start = time.perf_counter()
    answers = await asyncio.gather(*(gateway.post("/api/generate/async", body) for body in bodies))
    tasks = [answer["task_id"] for answer in answers]
    accepted = time.perf_counter() - start
    memory = process.memory_info().rss
    states: dict[str, str] = {}
    while len(states) < len(tasks):
        memory = max(memory, process.memory_info().rss)
        for task in [task for task in tasks if task not in states][:8]:
            state = (await gateway.get(f"/api/jobs/{task}"))["status"]
            if state in ("done", "error", "cancelled"):
                states[task] = state
        await asyncio.sleep(0.01)
    ended = time.perf_counter() - start
    later = [await gateway.get(f"/api/jobs/{task}/result") for task in tasks]
    read = sum(
        json.loads(answer["outputs"]["report"])["seed"] == seed for seed, answer in enumerate(later)
    )
    return [
        Row("200 jobs at once: accepted within", accepted, "s"),
        Row("200 jobs at once: ended within", ended, "s"),
        Row(
            "200 jobs at once: done, at least",
            sum(state == "done" for state in states.values()),
            "",
            200,
        ),
        Row("200 jobs at once: own results read back, at least", read, "", 200),
        Row("200 jobs at once, 256x256: memory of the gateway", memory / 2**20, "MB", 200),
    ]


def overtaken(database: Path) -> Row:
    """Of the last 200 jobs, in the order of acceptance, those that ended before the one that
    came before them.
    """
    with closing(sqlite3.connect(database)) as jobs:
        rows = jobs.execute("SELECT finished FROM jobs ORDER BY number DESC LIMIT 200").fetchall()
    ends = [finished for (finished,) in reversed(rows)]
    return Row(
        "200 jobs at once: out of order", sum(later < one for one, later in pairwise(ends)), "", 0
    )


async def clicks(gateway: ByGateway) -> list[Row]:
    mask = spot(1024)
    image, place = shapes_to_click(1024)
    spots = [place(number) for number in range(40)]
    image_id = await known(gateway, image, spots[0])
    took: dict[str, list[float]] = {"/ping": [], "/api/health": [], "click": []}
    running = asyncio.create_task(asyncio.sleep(0))
    for index, point in enumerate(spots):
        if running.done():
            body = {
                "prompt": "remove",
                "input_image": encoded(photo(1024)),
                "mask_image": encoded(mask),
                "seed": index,
            }
            running = asyncio.create_task(gateway.post("/api/generate", body))
            await asyncio.sleep(0.1)
        for path in ("/ping", "/api/health"):
            start = time.perf_counter()
            await gateway.get(path)
            took[path].append((time.perf_counter() - start) * 1000)
        body = {"image_id": image_id, "points": [point]}
        start = time.perf_counter()
        await gateway.post("/api/smart-mask", body)
        took["click"].append((time.perf_counter() - start) * 1000)
    await running
    return [
        Row("/ping while an edit runs, slowest of 40", max(took["/ping"]), "ms", 50),
        Row("/api/health while an edit runs, slowest of 40", max(took["/api/health"]), "ms", 50),
        Row(
            "click on a known picture, 1024x1024, while an edit runs, median",
            statistics.median(took["click"]),
            "ms",
            300,
        ),
        Row(
            "click on a known picture, 1024x1024, while an edit runs, slowest of 40",
            max(took["click"]),
            "ms",
        ),
    ]


async def measure(rounds: int, seconds: float) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        base, port, heavy, light = Path(folder) / "base", free_port(), free_port(), free_port()
        (base / "custom_nodes").mkdir(parents=True)
        (base / "custom_nodes" / "artmancer").symlink_to(ROOT)
        (base / "models" / "fastsam").mkdir(parents=True)
        (base / "models" / "fastsam" / "tiny.pt").symlink_to(
            ROOT / "tests" / "assets" / "tiny_fastsam.pt"
        )
        urls = [f"http://127.0.0.1:{one}" for one in (heavy, light)]
        command = [
            "serve",
            "--with-comfyui",
            "--cpu",
            "--comfyui-base",
            str(base),
            "--port",
            str(port),
        ]
        command += ["--comfyui-url", urls[0], "--comfyui-light-url", urls[1]]
        env = {**os.environ, "ARTMANCER_DATA": str(Path(folder) / "data"), "YOLO_OFFLINE": "True"}
        log = (Path(folder) / "gateway.log").open("wb")
        started = subprocess.Popen(
            [sys.executable, "-m", "artmancer.cli", *command], env=env, stdout=log, stderr=log
        )
        process = psutil.Process(started.pid)
        gateway = ByGateway(f"http://127.0.0.1:{port}")
        hands = [ByHand(url) for url in urls]
        listening: list[asyncio.Task[None]] = []
        try:
            await _until_healthy(gateway)
            listening = [asyncio.create_task(hand.listen()) for hand in hands]
            rows = await edits(gateway, hands[0], process, rounds)
            rows += await load(gateway, hands[1], seconds)
            rows += await clicks(gateway)
            rows += await flood(gateway, process)
        finally:
            for task in listening:
                task.cancel()
            for client in (gateway, *hands):
                await client.http.close()
            started.terminate()
            started.wait(30)
        rows.append(overtaken(Path(folder) / "data" / "jobs.sqlite"))
    return rows


async def _until_healthy(gateway: ByGateway) -> None:
    while True:
        try:
            if (await gateway.get("/api/system/health"))["status"] == "healthy":
                return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.5)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--edits", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    return finish(asyncio.run(measure(options.edits, options.seconds)), options.json)


if __name__ == "__main__":
    sys.exit(main())
