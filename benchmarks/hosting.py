"""What hosting on Modal costs and loses, with the tests' stand-in for Modal and real workers in
processes of their own.

Killed are workers with the tests' fake ComfyUI, so that fifty of them take minutes; all else is a
real ComfyUI.

Usage: python benchmarks/hosting.py [--json] [--kills N] [--requests N] [--starts N]
"""

import argparse
import asyncio
import base64
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import httpx
from gateway import shapes_to_click
from PIL import Image
from report import Row, finish
from support.fake_modal import FakeModal, StandIn
from support.gateway import Served, free_port, settings, until
from support.paths import EXAMPLES, FAKE_COMFYUI, ROOT
from support.shapes import scene

from artmancer.gateway import comfy_process
from artmancer.gateway.jobs import Job
from artmancer.gateway.workflows import WorkflowFolder
from artmancer.hosting import container
from artmancer.hosting.modal_jobs import order
from artmancer.hosting.shared import SharedUploadStore
from artmancer.hosting.web import web_app
from artmancer.hosting.worker import Worker

FAKE = [
    sys.executable,
    str(FAKE_COMFYUI),
    "{port}",
    "{folder}/told.log",
]
ENDS = ("done", "error", "cancelled")


async def nothing() -> None:
    pass


def served(modal: FakeModal, folder: Path) -> Served:
    made = settings(folder / "gateway")
    app = web_app(modal.remote(), folder / "checkpoints", modal.results, nothing, nothing, made)
    return Served(made, app)


def kills(tries: int) -> Iterator[Row]:
    """Of two jobs each, on the GPU or next in turn, what became when their worker was killed."""
    states: list[str] = []
    waits = []
    with (
        tempfile.TemporaryDirectory() as folder,
        FakeModal(Path(folder) / "modal", FAKE) as modal,
        served(modal, Path(folder)) as gateway,
    ):
        for number in range(tries):
            tasks = [gateway.submit(prompt="slow 0.5", seed=seed) for seed in range(2)]
            until(lambda tasks=tasks: gateway.status(tasks[0])["status"] == "processing", 60)
            time.sleep(0.4 * number / tries)
            modal.kill("heavy")
            start = time.perf_counter()
            for task in tasks:
                until(lambda task=task: gateway.status(task)["status"] in ENDS, 120)
                said = gateway.status(task)
                read = gateway.http.get(f"/api/jobs/{task}/result").status_code == 200
                well = (said["status"] == "done" and read) or (
                    said["status"] == "error" and said["error"]
                )
                states.append(said["status"] if well else "lost")
            waits.append(time.perf_counter() - start)
    name = f"{tries} workers killed in mid-job, 2 jobs each"
    yield Row(f"{name}: run again elsewhere", states.count("done"), "")
    yield Row(f"{name}: failed with a reason", states.count("error"), "")
    yield Row(f"{name}: lost", states.count("lost"), "", 0)
    yield Row(
        f"{name}: until both have ended, a worker's start included, median",
        statistics.median(waits),
        "s",
    )


def photo(number: int) -> bytes:
    """PNG of shapes that the tests' FastSAM knows, 512x512, that was not seen before."""
    pixels, _ = scene(507, 512)
    pixels[:8, :8] = number % 256, number // 256, 7
    saved = io.BytesIO()
    Image.fromarray(pixels).save(saved, "PNG")
    return saved.getvalue()


def added(requests: int) -> list[Row]:
    """A click by the gateway, and by the worker's method, in turn;
    each with a photo that was not seen before.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = folder / "base" / "models" / "fastsam" / "tiny.pt"
        weights.parent.mkdir(parents=True)
        weights.symlink_to(ROOT / "tests" / "assets" / "tiny_fastsam.pt")
        command = comfyui(folder / "base", "{folder}/comfyui", "{port}")
        with FakeModal(folder / "modal", command) as modal, served(modal, folder) as gateway:
            gateway.http.timeout = httpx.Timeout(300)
            return asyncio.run(_added(requests, gateway, modal.remote(), folder))


async def _added(requests: int, gateway: Served, remote: StandIn, folder: Path) -> list[Row]:
    _, place = shapes_to_click(512)
    pictures = SharedUploadStore(folder / "pictures", remote)
    workflow = WorkflowFolder(ROOT / "workflows" / "api").get("smart-mask")
    took: dict[str, list[float]] = {"gateway": [], "worker": []}

    async def by_gateway(data: bytes, point: list[float]) -> None:
        body = {"image": base64.b64encode(data).decode(), "points": [point]}
        answer = await asyncio.to_thread(gateway.http.post, "/api/smart-mask", json=body)
        assert answer.status_code == 200 and answer.json()["mask_base64"], answer.text

    async def by_worker(data: bytes, point: list[float]) -> None:
        inputs = {
            "image": await pictures.keep(data, "image"),
            "prompt": json.dumps({"points": [point]}),
        }
        job = Job.new(workflow, "light", inputs, "benchmark", [], {}, None)
        call = await remote.spawn("light", order(job))
        outcome = await remote.result(call, 60)
        assert outcome["pictures"]["mask"], outcome

    numbers = iter(range(10_000))
    for number in range(requests + 3):
        ways = (("gateway", by_gateway), ("worker", by_worker))
        for way, ask in ways if number % 2 == 0 else reversed(ways):
            data = photo(next(numbers))
            start = time.perf_counter()
            await ask(data, place(number))
            if number >= 3:  # the first ones load what is loaded once
                took[way].append(1000 * (time.perf_counter() - start))
    differences = [
        ours - theirs for ours, theirs in zip(took["gateway"], took["worker"], strict=True)
    ]
    what = "click, 512x512, a new photo each"
    return [
        Row(
            f"{what}: the worker's method, median of {requests}",
            statistics.median(took["worker"]),
            "ms",
        ),
        Row(
            f"{what}: by the gateway's app, median of {requests}",
            statistics.median(took["gateway"]),
            "ms",
        ),
        Row(
            "added by app and runner, median of the differences",
            statistics.median(differences),
            "ms",
            15,
        ),
    ]


def comfyui(base: Path, folder: str, port: str) -> list[str]:
    """What starts a ComfyUI with the pack on the CPU, where these stand for its folder
    and its port.
    """
    (base / "custom_nodes").mkdir(parents=True, exist_ok=True)
    pack = base / "custom_nodes" / "artmancer"
    if not pack.exists():
        pack.symlink_to(ROOT)
    made = base.parent / "comfyui"
    start = comfy_process.command(1, made, base=base, cpu=True)
    start[start.index("1")], start[start.index(str(made))] = port, folder
    return [*start, *container.COMFYUI_ARGUMENTS]


def starts(rounds: int) -> Iterator[Row]:
    """Of a worker: plain, and with what a snapshot of memory holds done ahead."""
    stages: dict[str, list[Mapping[str, float]]] = {"plain": [], "ahead": []}
    for _ in range(rounds):
        for way, found in stages.items():
            with tempfile.TemporaryDirectory() as folder:
                found.append(asyncio.run(_start(Path(folder), ahead=way == "ahead")))

    def median(way: str, stage: str) -> float:
        return statistics.median(one[stage] for one in stages[way])

    yield Row(
        "cold start, before: ComfyUI with the pack, from nothing", median("plain", "comfyui"), "s"
    )
    yield Row("cold start, after: imports, kept in the snapshot", median("ahead", "imports"), "s")
    yield Row(
        "cold start, after: ComfyUI with the pack, from the snapshot",
        median("ahead", "comfyui"),
        "s",
    )
    saved = 1 - median("ahead", "comfyui") / median("plain", "comfyui")
    yield Row("cold start: share of it that the snapshot saves", saved, "")
    for way, name in (("plain", "before"), ("ahead", "after")):
        yield Row(
            f"cold start, {name}: the first draft edit, 600x400", median(way, "first edit"), "s"
        )


async def _start(folder: Path, ahead: bool) -> Mapping[str, float]:
    port = free_port()
    command = comfyui(folder / "base", str(folder / "comfyui"), str(port))
    with FakeModal(folder / "modal", FAKE) as modal:
        remote = modal.remote()
        worker = Worker(
            "heavy",
            remote,
            command,
            port,
            folder / "worker",
            folder / "results",
            sync=nothing,
            on_dead=nothing,
        )
        if ahead:
            worker.prepare()
        await worker.start()
        pictures = SharedUploadStore(folder / "pictures", remote)
        files = {"input_image": "coffee.png", "mask_image": "coffee_mask.png"}
        inputs = {"prompt": "remove the spoon"}
        for name, file in files.items():
            inputs[name] = await pictures.keep((EXAMPLES / file).read_bytes(), name)
        workflow = WorkflowFolder(ROOT / "workflows" / "api").get("generate")
        job = Job.new(workflow, "heavy", inputs, "benchmark", [], {}, None)
        start = time.perf_counter()
        outcome = await worker.run(order(job))
        assert outcome.get("pictures", {}).get("image"), outcome
        first = time.perf_counter() - start
        await worker.stop()
        return {**worker.stages, "first edit": first}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--starts", type=int, default=3)
    options = parser.parse_args()
    rows = [*starts(options.starts), *added(options.requests), *kills(options.kills)]
    return finish(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
