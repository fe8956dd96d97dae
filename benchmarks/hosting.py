"""Benchmarks of hosting on Modal: cold starts, the time a gateway adds, and jobs whose worker is
killed.

The tests' stand-in takes the place of Modal. The workers are real, each in its own process. Workers
that are killed have the tests' fake ComfyUI, so that fifty of them take minutes. The other
measurements use a real ComfyUI.

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
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import httpx
from gateway import SHAPES_SEED, shapes_to_click
from PIL import Image
from report import Row, finish
from support.fake_modal import FakeModal, StandIn
from support.gateway import Served, free_port, until
from support.paths import EXAMPLES, ROOT
from support.shapes import scene

from artmancer.gateway import comfy_process
from artmancer.gateway.jobs import JobRecord, LaneName
from artmancer.gateway.service import make_fetcher
from artmancer.gateway.settings import Settings
from artmancer.gateway.workflows import WorkflowFolder
from artmancer.hosting import calls, container
from artmancer.hosting.modal_jobs import make_order
from artmancer.hosting.shared import SharedUploadStore
from artmancer.hosting.worker import Worker

ENDED = ("done", "error", "cancelled")

WARMUP = 3
"""Requests before the measurement: they load the models."""

LIMIT_MS = 15
"""Most milliseconds that the gateway may add to a click."""


async def _nothing() -> None:
    pass


def make_job_order(name: str, lane: LaneName, inputs: dict[str, Any]) -> dict[str, Any]:
    """Make the order of a job that runs a workflow."""
    workflow = WorkflowFolder(ROOT / "workflows" / "api").get(name)
    record = JobRecord.create(workflow, lane, inputs, client="benchmark")
    return make_order(record, workflow.with_inputs(inputs, record.results), debug_session=False)


def kills(rounds: int) -> Iterator[Row]:
    """Kill the worker of two jobs in each round, and count how the jobs end.

    One of the two jobs runs when the worker is killed, the other waits for it.
    """
    states: list[str] = []
    seconds = []
    with (
        tempfile.TemporaryDirectory() as folder,
        FakeModal(Path(folder) / "modal") as modal,
        modal.gateway(Path(folder) / "gateway") as gateway,
    ):
        for index in range(rounds):
            job_ids = [gateway.submit(prompt="slow 0.5", seed=seed) for seed in range(2)]
            until(lambda ids=job_ids: gateway.status(ids[0])["status"] == "processing")
            # Each round kills the worker at a later moment of the run.
            time.sleep(0.4 * index / rounds)
            modal.kill("heavy")
            start = time.perf_counter()
            states += [_state_at_end(gateway, job_id) for job_id in job_ids]
            seconds.append(time.perf_counter() - start)
    name = f"{rounds} workers killed during a job, 2 jobs each"
    yield Row(f"{name}: run again elsewhere", states.count("done"), "")
    yield Row(f"{name}: failed with a reason", states.count("error"), "")
    yield Row(f"{name}: lost", states.count("lost"), "", 0)
    yield Row(
        f"{name}: until both have ended, with the start of a worker, median",
        statistics.median(seconds),
        "s",
    )


def _state_at_end(gateway: Served, job_id: str) -> str:
    """Wait until a job has ended; return "done", "error", or "lost" for any other end."""
    until(lambda: gateway.status(job_id)["status"] in ENDED)
    status = gateway.status(job_id)
    state = str(status["status"])
    if state == "done":
        answer = gateway.http.get(f"/api/jobs/{job_id}/result")
        return state if answer.status_code == 200 else "lost"
    return state if state == "error" and status["error"] else "lost"


def photo(number: int) -> bytes:
    """Make a new PNG, 512x512, for each number, of shapes that the tests' FastSAM finds."""
    pixels, _ = scene(SHAPES_SEED, 512)
    pixels[:8, :8] = number % 256, number // 256, 7
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def clicks(requests: int) -> list[Row]:
    """Measure clicks through the gateway and through the worker's method, in turns.

    Each click is in a new photo.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = folder / "base" / "models" / "fastsam" / "tiny.pt"
        weights.parent.mkdir(parents=True)
        weights.symlink_to(ROOT / "tests" / "assets" / "tiny_fastsam.pt")
        command = comfyui_command(folder / "base", "{folder}/comfyui", "{port}")
        with (
            FakeModal(folder / "modal", command) as modal,
            modal.gateway(folder / "gateway") as gateway,
        ):
            gateway.http.timeout = httpx.Timeout(300)
            return asyncio.run(_measure_clicks(requests, gateway, modal.remote(), folder))


async def _measure_clicks(
    requests: int, gateway: Served, remote: StandIn, folder: Path
) -> list[Row]:
    _, click_at = shapes_to_click(512)
    uploads = SharedUploadStore(folder / "pictures", remote)
    milliseconds: dict[str, list[float]] = {"gateway": [], "worker": []}

    async def click_by_gateway(data: bytes, point: list[float]) -> None:
        body = {"image": base64.b64encode(data).decode(), "points": [point]}
        answer = await asyncio.to_thread(gateway.http.post, "/api/smart-mask", json=body)
        assert answer.status_code == 200 and answer.json()["mask_base64"], answer.text

    async def click_by_worker(data: bytes, point: list[float]) -> None:
        inputs = {
            "image": await uploads.keep(data, "image"),
            "prompt": json.dumps({"points": [point]}),
        }
        order = make_job_order("smart-mask", "light", inputs)
        call = await remote.spawn("light", order)
        await calls.settle_call(remote, order["record"]["id"], call)
        outcome = await remote.result(call, 60)
        assert outcome["images"]["mask"], outcome

    photo_number = 0
    for index in range(WARMUP + requests):
        ways = [("gateway", click_by_gateway), ("worker", click_by_worker)]
        if index % 2:
            ways.reverse()
        for way, click in ways:
            data = photo(photo_number)
            photo_number += 1
            start = time.perf_counter()
            await click(data, click_at(index))
            if index >= WARMUP:
                milliseconds[way].append(1000 * (time.perf_counter() - start))
    differences = [
        by_gateway - by_worker
        for by_gateway, by_worker in zip(
            milliseconds["gateway"], milliseconds["worker"], strict=True
        )
    ]
    name = "click, 512x512, a new photo each"
    return [
        Row(
            f"{name}: the worker's method, median of {requests}",
            statistics.median(milliseconds["worker"]),
            "ms",
        ),
        Row(
            f"{name}: through the gateway's app, median of {requests}",
            statistics.median(milliseconds["gateway"]),
            "ms",
        ),
        Row(
            "added by app and runner, median of the differences",
            statistics.median(differences),
            "ms",
            LIMIT_MS,
        ),
    ]


def comfyui_command(base: Path, folder: str, port: str) -> list[str]:
    """Return the command that starts a ComfyUI with the pack on the CPU.

    Parameters
    ----------
    base : folder of its models and custom nodes; the pack is linked there
    folder : its own folder, or a placeholder for it
    port : its port, or a placeholder for it
    """
    custom_nodes = base / "custom_nodes"
    custom_nodes.mkdir(parents=True, exist_ok=True)
    pack = custom_nodes / "artmancer"
    if not pack.exists():
        pack.symlink_to(ROOT)
    # comfy_process.command needs a real folder and port, which are replaced below.
    real_folder = base.parent / "comfyui"
    command = comfy_process.command(1, real_folder, base=base, cpu=True)
    command[command.index("1")] = port
    command[command.index(str(real_folder))] = folder
    return [*command, *container.COMFYUI_ARGUMENTS]


def starts(rounds: int) -> Iterator[Row]:
    """Measure starts of a worker, without a memory snapshot and from one."""
    stages: dict[str, list[Mapping[str, float]]] = {"plain": [], "prepared": []}
    for _ in range(rounds):
        for way, measurements in stages.items():
            with tempfile.TemporaryDirectory() as folder:
                seconds = asyncio.run(_start(Path(folder), prepare=way == "prepared"))
                measurements.append(seconds)

    def median(way: str, stage: str) -> float:
        return statistics.median(seconds[stage] for seconds in stages[way])

    plain = median("plain", "comfyui")
    from_snapshot = median("prepared", "comfyui")
    yield Row("cold start, no snapshot: ComfyUI with the pack", plain, "s")
    yield Row("cold start, snapshot: imports, which it holds", median("prepared", "imports"), "s")
    yield Row("cold start, snapshot: ComfyUI with the pack", from_snapshot, "s")
    yield Row("cold start: share that the snapshot saves", 1 - from_snapshot / plain, "")
    for way, name in (("plain", "no snapshot"), ("prepared", "snapshot")):
        yield Row(
            f"cold start, {name}: the first draft edit, 600x400", median(way, "first edit"), "s"
        )


async def _start(folder: Path, prepare: bool) -> Mapping[str, float]:
    """Start a worker and run one edit; return the seconds of each stage."""
    port = free_port()
    command = comfyui_command(folder / "base", str(folder / "comfyui"), str(port))
    with FakeModal(folder / "modal") as modal:
        remote = modal.remote()
        worker = Worker(
            "heavy",
            remote,
            command,
            port,
            folder / "worker",
            folder / "results",
            fetcher=make_fetcher(Settings()),
            sync=_nothing,
            on_dead=_nothing,
        )
        if prepare:
            worker.prepare()
        try:
            await worker.start()
            uploads = SharedUploadStore(folder / "pictures", remote)
            inputs = {"prompt": "remove the spoon"}
            for name, file in (("input_image", "coffee.png"), ("mask_image", "coffee_mask.png")):
                inputs[name] = await uploads.keep((EXAMPLES / file).read_bytes(), name)
            order = make_job_order("generate", "heavy", inputs)
            await calls.settle_call(remote, order["record"]["id"], "a call")
            start = time.perf_counter()
            outcome = await worker.run(order, "a call")
            seconds = time.perf_counter() - start
            assert outcome.get("images", {}).get("image"), outcome
        finally:
            await worker.stop()
        return {**worker.stages, "first edit": seconds}


def main() -> int:
    """Run all benchmarks and print their rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--kills", type=int, default=50, help="workers to kill (default: 50)")
    parser.add_argument(
        "--requests", type=int, default=100, help="clicks of each kind (default: 100)"
    )
    parser.add_argument("--starts", type=int, default=3, help="starts of each kind (default: 3)")
    options = parser.parse_args()
    rows = [*starts(options.starts), *clicks(options.requests), *kills(options.kills)]
    return finish(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
