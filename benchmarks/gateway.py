"""Benchmark of the gateway, compared with a client that uses ComfyUI's own API by hand.

By hand means four requests: upload, prompt, wait, view. Two real ComfyUIs run with the draft editor
and the tests' tiny FastSAM. The gateway is a process in front of them, the client is this process.
The two ways take turns. Each request has an image or a parameter that was not sent before, so that
no cache can answer it.

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
from support.paths import EXAMPLES, ROOT
from support.shapes import scene

GRAPHS = ROOT / "workflows" / "api"

BY_HAND = "by hand"
GATEWAY = "gateway"

CLIENTS = 20
"""Clients that send requests at the same time, in the measurement under load."""

TURNS = 4
"""Turns that each way gets in the measurement under load."""

WARMUP = 2
"""Edits before the measurement: they load what is loaded once."""

CLICKS = 40
"""Clicks that are measured while an edit runs."""

FLOOD = 200
"""Jobs that are submitted at once."""

POLLED_JOBS = 8
"""Jobs of the flood whose status is requested in each round of polling."""

DISTINCT_VALUES = 9973
"""Different values of a parameter before they repeat: more than any run needs."""

SHAPES_SEED = 507
"""Seed of a scene whose shapes the tiny FastSAM finds."""

CLICK_STRIDE = 97
"""One in this many pixels of a shape can be clicked."""

_counter = itertools.count(1)


def photo(side: int) -> bytes:
    """Make a JPEG of a square photo that was not sent before."""
    image = cv2.imread(str(EXAMPLES / "coffee.png"))
    image = cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC)
    # The photo's number is written into a corner as three hexadecimal digits, one for each channel.
    # Steps of 16 survive the JPEG compression.
    number = next(_counter)
    digits = [number // 16**place % 16 for place in range(3)]
    image[:16, :16] = [16 * digit for digit in digits]
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def small_mask(side: int) -> bytes:
    """Make a PNG of a mask over a small disc."""
    mask = np.zeros((side, side), np.uint8)
    cv2.circle(mask, (side // 8, side * 7 // 8), side // 32, 255, -1)
    return cv2.imencode(".png", mask)[1].tobytes()


def distinct_value(number: int) -> float:
    """Return a value in 0..1 that differs from those of other numbers."""
    return number % DISTINCT_VALUES / DISTINCT_VALUES


class ByHand:
    """A client of ComfyUI's own API, with one websocket, as an application would have it.

    Attributes
    ----------
    upload_names : names of uploaded images by their content
    futures : for each run, a future that receives its outputs
    outputs : for each run, its outputs so far by node id
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = uuid.uuid4().hex
        self.http = aiohttp.ClientSession(url, raise_for_status=True)
        self.upload_names: dict[bytes, str] = {}
        self.futures: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self.outputs: dict[str, dict[str, Any]] = {}

    async def listen(self) -> None:
        """Read the events of all runs."""
        async with self.http.ws_connect(f"/ws?clientId={self.client}", max_msg_size=0) as socket:
            async for message in socket:
                if message.type != aiohttp.WSMsgType.TEXT:
                    continue
                event = json.loads(message.data)
                data = event["data"]
                key = data.get("prompt_id")
                if key not in self.futures:
                    continue
                if event["type"] == "executed":
                    self.outputs[key][data["node"]] = data["output"]
                elif event["type"] == "execution_success":
                    self.futures[key].set_result(self.outputs[key])
                elif event["type"] == "execution_error":
                    self.futures[key].set_exception(RuntimeError(data["exception_message"]))

    async def upload(self, data: bytes) -> str:
        """Upload an image once, as the gateway does, and return its name."""
        if data in self.upload_names:
            return self.upload_names[data]
        form = aiohttp.FormData({"type": "temp", "subfolder": "by_hand"})
        form.add_field(
            "image", io.BytesIO(data), filename=f"{uuid.uuid4().hex}.jpg", content_type="image/jpeg"
        )
        async with self.http.post("/upload/image", data=form) as response:
            name = (await response.json())["name"]
        self.upload_names[data] = f"by_hand/{name} [temp]"
        return self.upload_names[data]

    async def run(self, graph: dict[str, Any], images: dict[str, bytes]) -> dict[str, bytes]:
        """Run a graph and return its result images by node id.

        Parameters
        ----------
        images : image files by input name
        """
        names = {name: await self.upload(data) for name, data in images.items()}
        for node in graph.values():
            inputs = node["inputs"]
            if inputs.get("name") in names and "image" in inputs:
                inputs["image"] = names[inputs["name"]]
            if node["class_type"] == "ArtMancer_EndpointResult":
                inputs["folder"] = "temp"
        key = str(uuid.uuid4())
        self.futures[key] = asyncio.get_running_loop().create_future()
        self.outputs[key] = {}
        body = {"prompt": graph, "client_id": self.client, "prompt_id": key}
        async with self.http.post("/prompt", json=body):
            pass
        outputs = await self.futures[key]
        del self.futures[key]
        del self.outputs[key]
        return {
            node: await self.view(output["images"][0])
            for node, output in outputs.items()
            if "images" in output
        }

    async def view(self, image: dict[str, str]) -> bytes:
        """Download a result image."""
        async with self.http.get("/view", params=image) as response:
            return await response.read()


class ByGateway:
    """A client of the gateway, with the same HTTP library."""

    def __init__(self, url: str) -> None:
        self.http = aiohttp.ClientSession(
            url,
            raise_for_status=True,
            timeout=aiohttp.ClientTimeout(300),
            connector=aiohttp.TCPConnector(limit=FLOOD + 50),
        )

    async def get(self, path: str) -> Any:
        async with self.http.get(path) as response:
            return await response.json()

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        async with self.http.post(path, json=body) as response:
            return await response.json()


def graph(name: str, **values: Any) -> dict[str, Any]:
    """Return a served graph with these values, without the results that come only on request."""
    nodes: dict[str, Any] = json.loads((GRAPHS / f"{name}.json").read_text())
    for key, node in list(nodes.items()):
        inputs = node["inputs"]
        if inputs.get("on_request") is True:
            del nodes[key]
        elif inputs.get("name") in values:
            inputs["value"] = values[inputs["name"]]
    return nodes


def to_base64(data: bytes) -> str:
    """Return bytes as base64."""
    return base64.b64encode(data).decode()


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time that a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


async def edits(
    gateway: ByGateway, by_hand: ByHand, process: psutil.Process, rounds: int
) -> list[Row]:
    """Measure single edits, the two ways in turns."""

    async def edit_by_hand(image: bytes) -> bytes:
        nodes = graph("generate", prompt="balance", task_type="white_balance")
        outputs = await by_hand.run(nodes, {"input_image": image})
        return outputs["14"]

    async def edit_by_gateway(image: bytes) -> str:
        body = {"prompt": "balance", "input_image": to_base64(image)}
        answer = await gateway.post("/api/generate", body)
        return str(answer["image"])

    ways: list[tuple[str, Callable[[bytes], Awaitable[str | bytes]]]] = [
        (BY_HAND, edit_by_hand),
        (GATEWAY, edit_by_gateway),
    ]
    milliseconds: dict[str, list[float]] = {BY_HAND: [], GATEWAY: []}
    cpu = 0.0
    for index in range(WARMUP + rounds):
        # The way that comes first changes each time.
        ways.reverse()
        for way, edit in ways:
            image = photo(1024)
            cpu_before = cpu_seconds(process)
            start = time.perf_counter()
            result = await edit(image)
            seconds = time.perf_counter() - start
            assert result
            if index < WARMUP:
                continue
            milliseconds[way].append(seconds * 1000)
            if way == GATEWAY:
                cpu += cpu_seconds(process) - cpu_before
    differences = [
        with_gateway - without
        for with_gateway, without in zip(milliseconds[GATEWAY], milliseconds[BY_HAND], strict=True)
    ]
    return [
        *(
            Row(
                f"draft white balance, 1024x1024, {way}, median",
                statistics.median(values),
                "ms",
            )
            for way, values in milliseconds.items()
        ),
        Row(
            "added by the gateway, median of the differences",
            statistics.median(differences),
            "ms",
            25,
        ),
        Row("CPU time of the gateway for each edit", cpu / rounds * 1000, "ms", 20),
    ]


def shapes_to_click(side: int) -> tuple[bytes, Callable[[int], list[float]]]:
    """Make a square PNG of shapes that the tests' FastSAM finds.

    Returns
    -------
    The PNG, and a function that returns the position [x, y] of the click with a number. No two
    positions are alike.
    """
    pixels, shapes = scene(SHAPES_SEED, side)
    kernel = np.ones((side // 16, side // 16))
    positions: list[list[int]] = []
    for shape in shapes:
        # Clicks stay away from the edges of a shape.
        inside = cv2.erode(shape.astype(np.uint8), kernel)
        rows_and_columns = np.argwhere(inside)[::CLICK_STRIDE]
        positions += rows_and_columns[:, ::-1].tolist()
    random.Random(0).shuffle(positions)

    def click_at(number: int) -> list[float]:
        x, y = positions[number % len(positions)]
        return [x + distinct_value(number), y]

    return cv2.imencode(".png", pixels[..., ::-1])[1].tobytes(), click_at


async def upload_by_click(gateway: ByGateway, image: bytes, point: list[float]) -> str:
    """Click an image once, and return the image_id for further clicks."""
    body = {"image": to_base64(image), "points": [point]}
    return str((await gateway.post("/api/smart-mask", body))["image_id"])


async def load(gateway: ByGateway, by_hand: ByHand, seconds: float) -> list[Row]:
    """Measure the throughput of clicks and shadows, in equal parts, from many clients at once.

    Both ways send the clicked image once. Further clicks use its name or its image_id.
    """
    image = photo(512)
    mask = small_mask(512)
    shapes, click_at = shapes_to_click(512)
    image_id = await upload_by_click(gateway, shapes, click_at(0))
    errors = 0

    async def request_gateway() -> None:
        nonlocal errors
        number = next(_counter)
        if number % 2:
            path = "/api/image-utils/add-shadow-preview"
            body = {
                "extracted_image": to_base64(image),
                "mask": to_base64(mask),
                "shadow_opacity": distinct_value(number),
            }
            result = "preview_image"
        else:
            path = "/api/smart-mask"
            body = {"image_id": image_id, "points": [click_at(number)]}
            result = "mask_base64"
        try:
            answer = await gateway.post(path, body)
            errors += not answer[result]
        except aiohttp.ClientError:
            errors += 1

    async def request_by_hand() -> None:
        number = next(_counter)
        if number % 2:
            nodes = graph("add-shadow-preview", opacity=distinct_value(number))
            assert await by_hand.run(nodes, {"image": image, "mask": mask})
        else:
            nodes = graph("smart-mask", prompt=json.dumps({"points": [click_at(number)]}))
            assert await by_hand.run(nodes, {"image": shapes})

    latencies: dict[str, list[float]] = {BY_HAND: [], GATEWAY: []}
    durations = {BY_HAND: 0.0, GATEWAY: 0.0}

    async def client(way: str, request: Callable[[], Awaitable[None]], end: float) -> None:
        while (start := time.perf_counter()) < end:
            await request()
            latencies[way].append(time.perf_counter() - start)

    for _ in range(TURNS):
        for way, request in ((BY_HAND, request_by_hand), (GATEWAY, request_gateway)):
            start = time.perf_counter()
            end = start + seconds / TURNS
            await asyncio.gather(*(client(way, request, end) for _ in range(CLIENTS)))
            durations[way] += time.perf_counter() - start
    rates = {way: len(values) / durations[way] for way, values in latencies.items()}
    sorted_latencies = sorted(latencies[GATEWAY])
    p99 = sorted_latencies[int(len(sorted_latencies) * 0.99)]
    return [
        *(
            Row(
                f"{CLIENTS} clients, {seconds:g} s, clicks and shadows, 512x512, {way}",
                rate,
                "a second",
            )
            for way, rate in rates.items()
        ),
        Row(
            "throughput of the gateway over by hand, at least",
            rates[GATEWAY] / rates[BY_HAND],
            "x",
            0.95,
        ),
        Row("errors under that load", errors, "", 0),
        Row(
            "p99 over the median under that load", p99 / statistics.median(sorted_latencies), "x", 3
        ),
    ]


async def flood(gateway: ByGateway, process: psutil.Process) -> list[Row]:
    """Submit many jobs at once; measure time and memory, and count their correct results."""
    bodies = [
        {"prompt": "balance", "input_image": to_base64(photo(256)), "seed": seed}
        for seed in range(FLOOD)
    ]
    start = time.perf_counter()
    answers = await asyncio.gather(*(gateway.post("/api/generate/async", body) for body in bodies))
    accept_seconds = time.perf_counter() - start
    job_ids = [answer["task_id"] for answer in answers]
    memory = process.memory_info().rss
    states: dict[str, str] = {}
    while len(states) < len(job_ids):
        memory = max(memory, process.memory_info().rss)
        unfinished = [job_id for job_id in job_ids if job_id not in states]
        for job_id in unfinished[:POLLED_JOBS]:
            state = (await gateway.get(f"/api/jobs/{job_id}"))["status"]
            if state in ("done", "error", "cancelled"):
                states[job_id] = state
        await asyncio.sleep(0.01)
    end_seconds = time.perf_counter() - start
    correct_results = 0
    for seed, job_id in enumerate(job_ids):
        result = await gateway.get(f"/api/jobs/{job_id}/result")
        correct_results += json.loads(result["outputs"]["report"])["seed"] == seed
    done_jobs = sum(state == "done" for state in states.values())
    name = f"{FLOOD} jobs at once"
    return [
        Row(f"{name}: accepted within", accept_seconds, "s"),
        Row(f"{name}: ended within", end_seconds, "s"),
        Row(f"{name}: done, at least", done_jobs, "", FLOOD),
        Row(f"{name}: own results read back, at least", correct_results, "", FLOOD),
        Row(f"{name}, 256x256: memory of the gateway", memory / 2**20, "MB", 200),
    ]


def out_of_order(database: Path) -> Row:
    """Count the jobs of the flood that ended before a job that was accepted earlier."""
    with closing(sqlite3.connect(database)) as jobs:
        rows = jobs.execute(
            f"SELECT finished FROM jobs ORDER BY number DESC LIMIT {FLOOD}"
        ).fetchall()
    ends = [finished for (finished,) in reversed(rows)]
    count = sum(later < earlier for earlier, later in pairwise(ends))
    return Row(f"{FLOOD} jobs at once: out of order", count, "", 0)


async def clicks(gateway: ByGateway) -> list[Row]:
    """Measure clicks, and requests for the status, while edits run."""
    mask = small_mask(1024)
    image, click_at = shapes_to_click(1024)
    points = [click_at(number) for number in range(CLICKS)]
    image_id = await upload_by_click(gateway, image, points[0])
    milliseconds: dict[str, list[float]] = {"/ping": [], "/api/health": [], "click": []}
    edit: asyncio.Task[Any] | None = None
    for index, point in enumerate(points):
        if edit is None or edit.done():
            body = {
                "prompt": "remove",
                "input_image": to_base64(photo(1024)),
                "mask_image": to_base64(mask),
                "seed": index,
            }
            edit = asyncio.create_task(gateway.post("/api/generate", body))
            # The edit reaches ComfyUI before the next click.
            await asyncio.sleep(0.1)
        for path in ("/ping", "/api/health"):
            start = time.perf_counter()
            await gateway.get(path)
            milliseconds[path].append((time.perf_counter() - start) * 1000)
        body = {"image_id": image_id, "points": [point]}
        start = time.perf_counter()
        await gateway.post("/api/smart-mask", body)
        milliseconds["click"].append((time.perf_counter() - start) * 1000)
    if edit:
        await edit
    slowest = f"slowest of {CLICKS}"
    click = "click on a known image, 1024x1024, while an edit runs"
    return [
        Row(f"/ping while an edit runs, {slowest}", max(milliseconds["/ping"]), "ms", 50),
        Row(
            f"/api/health while an edit runs, {slowest}", max(milliseconds["/api/health"]), "ms", 50
        ),
        Row(f"{click}, median", statistics.median(milliseconds["click"]), "ms", 300),
        Row(f"{click}, {slowest}", max(milliseconds["click"]), "ms"),
    ]


async def status_of_comfyui(comfyui: ByHand) -> Row:
    """Measure the status of the pack in ComfyUI, which lists the models on the disk."""
    milliseconds = []
    for _ in range(CLICKS):
        start = time.perf_counter()
        async with comfyui.http.get("/artmancer/status") as answer:
            await answer.read()
        milliseconds.append((time.perf_counter() - start) * 1000)
    return Row(f"ComfyUI's /artmancer/status, slowest of {CLICKS}", max(milliseconds), "ms", 200)


def make_base(base: Path) -> None:
    """Make a base folder for ComfyUI with the pack and the tiny FastSAM."""
    pack = base / "custom_nodes" / "artmancer"
    pack.parent.mkdir(parents=True)
    pack.symlink_to(ROOT)
    model = base / "models" / "fastsam" / "tiny.pt"
    model.parent.mkdir(parents=True)
    model.symlink_to(ROOT / "tests" / "assets" / "tiny_fastsam.pt")


async def measure(rounds: int, seconds: float) -> list[Row]:
    """Start the gateway with its ComfyUIs and run all measurements."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_base(folder / "base")
        port = free_port()
        heavy_url = f"http://127.0.0.1:{free_port()}"
        light_url = f"http://127.0.0.1:{free_port()}"
        command = [
            *(sys.executable, "-m", "artmancer", "serve", "--port", str(port)),
            *("--with-comfyui", "--cpu", "--comfyui-base", str(folder / "base")),
            *("--comfyui-url", heavy_url, "--comfyui-light-url", light_url),
        ]
        env = {**os.environ, "ARTMANCER_DATA": str(folder / "data"), "YOLO_OFFLINE": "True"}
        log = (folder / "gateway.log").open("wb")
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        process = psutil.Process(server.pid)
        gateway = ByGateway(f"http://127.0.0.1:{port}")
        heavy_by_hand = ByHand(heavy_url)
        light_by_hand = ByHand(light_url)
        listeners: list[asyncio.Task[None]] = []
        try:
            await _until_healthy(gateway)
            for by_hand in (heavy_by_hand, light_by_hand):
                listeners.append(asyncio.create_task(by_hand.listen()))
            rows = await edits(gateway, heavy_by_hand, process, rounds)
            rows += await load(gateway, light_by_hand, seconds)
            rows += await clicks(gateway)
            rows.append(await status_of_comfyui(light_by_hand))
            rows += await flood(gateway, process)
        finally:
            for listener in listeners:
                listener.cancel()
            for client in (gateway, heavy_by_hand, light_by_hand):
                await client.http.close()
            server.terminate()
            server.wait(30)
        rows.append(out_of_order(folder / "data" / "jobs.sqlite"))
    return rows


async def _until_healthy(gateway: ByGateway) -> None:
    """Wait until all services of the gateway are healthy."""
    while True:
        try:
            if (await gateway.get("/api/system/health"))["status"] == "healthy":
                return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.5)


def main() -> int:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--edits", type=int, default=20, help="edits to measure (default: 20)")
    parser.add_argument(
        "--seconds", type=float, default=60, help="seconds under load, for each way (default: 60)"
    )
    options = parser.parse_args()
    return finish(asyncio.run(measure(options.edits, options.seconds)), options.json)


if __name__ == "__main__":
    sys.exit(main())
