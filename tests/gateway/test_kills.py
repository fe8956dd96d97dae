"""SIGKILL at random moments: no accepted job is lost, no job is completed twice, and no job has the
result of another job.
"""

import base64
import io
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image
from support.comfyui import free_port
from support.fake_comfyui import serve_fake_comfyui
from support.gateway import GRAPHS, removal, until
from support.paths import ROOT
from support.processes import ForkedProcess

from artmancer import cli
from artmancer.folders import comfyui_folder

ROUNDS = 20
"""Kills of the gateway, the ComfyUI or both."""


def serve(folder: Path, *arguments: object) -> ForkedProcess:
    """Start `artmancer serve`, with its data in a folder."""
    return ForkedProcess(
        cli.main,
        ["serve", *map(str, arguments)],
        log=folder / "gateway.log",
        environment={"ARTMANCER_DATA": str(folder / "data"), "ARTMANCER_WORKFLOWS": str(GRAPHS)},
    )


def unique_image(number: int) -> str:
    """Return an image like no other number's, as base64."""
    color = (number * 7 % 256, number // 36 * 40 % 256, number % 256)
    buffer = io.BytesIO()
    Image.new("RGB", (48, 32), color).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def get(http: httpx.Client, path: str) -> dict[str, Any]:
    """Return the JSON of a 200 answer; empty if the gateway is down or answers with an error."""
    try:
        answer = http.get(path)
        return dict(answer.json()) if answer.status_code == 200 else {}
    except httpx.HTTPError:
        return {}


def ended(http: httpx.Client, job_id: str) -> bool:
    """Tell whether a job has ended."""
    return get(http, f"/api/jobs/{job_id}").get("status") in ("done", "error", "cancelled")


@pytest.mark.slow
def test_no_job_is_lost_or_completed_twice(tmp_path: Path) -> None:
    seed = int(os.environ.get("KILL_SEED", "0")) or random.randrange(10**6)
    chance = random.Random(seed)
    comfyui_port, port = free_port(), free_port()
    events = tmp_path / "events.log"
    events.touch()
    comfyui = ForkedProcess(serve_fake_comfyui, comfyui_port, events, log=tmp_path / "comfyui.log")
    url = f"http://127.0.0.1:{comfyui_port}"
    gateway = serve(tmp_path, "--port", port, "--comfyui-url", url)
    accepted: dict[str, str] = {}
    cancelled: set[str] = set()
    failed: set[str] = set()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as http:

        def is_healthy() -> bool:
            return get(http, "/api/health").get("status") == "healthy"

        for _ in range(ROUNDS):
            until(is_healthy)
            for _ in range(4):
                image = unique_image(len(accepted))
                prompt = chance.choice(["now", "slow 0.1", "slow 0.4"])
                body = removal(prompt=prompt, input_image=image)
                answer = http.post("/api/generate/async", json=body)
                # 503: ComfyUI is still starting.
                if answer.status_code != 503:
                    accepted[answer.json()["task_id"]] = image
            if accepted and chance.random() < 0.3:
                job_id = chance.choice(list(accepted))
                if http.post(f"/api/jobs/{job_id}/cancel").json()["success"]:
                    cancelled.add(job_id)
            time.sleep(chance.uniform(0, 0.8))
            for process in chance.choice([[gateway], [comfyui], [gateway, comfyui]]):
                process.kill()
                if process is comfyui:
                    with events.open("a") as file:
                        file.write("killed\n")
                process.start()
        until(is_healthy)
        assert len(accepted) > ROUNDS
        for job_id, image in accepted.items():
            until(lambda job_id=job_id: ended(http, job_id))
            status = get(http, f"/api/jobs/{job_id}")
            if job_id in cancelled:
                assert status["status"] == "cancelled", f"seed {seed}"
            elif status["status"] == "error":
                assert "stopped 2 times" in status["error"], f"seed {seed}"
                failed.add(job_id)
            else:
                result = get(http, f"/api/generate/result/{job_id}")
                assert result["image"] == image, f"seed {seed}"
    gateway.stop()
    comfyui.stop()
    interruptions = count_interruptions(events.read_text().splitlines(), seed)
    assert all(interruptions[job_id] >= 2 for job_id in failed), f"seed {seed}"


def count_interruptions(events: list[str], seed: int) -> Counter[str]:
    """Count the kills during each job's runs; fail for a job that was completed twice."""
    completed: set[str] = set()
    begun: set[str] = set()
    interruptions: Counter[str] = Counter()
    for line in events:
        event, _, job_id = line.partition(" ")
        if event == "killed":
            # The kill lost all results that the gateway had not downloaded.
            completed.clear()
            interruptions.update(begun)
            begun.clear()
        elif event == "began":
            begun.add(job_id)
        elif event == "completed":
            assert job_id not in completed, f"{job_id} was completed twice, seed {seed}"
            completed.add(job_id)
    return interruptions


def comfyui_processes(port: int) -> list[psutil.Process]:
    """Return the processes of the ComfyUI on a port."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if "main.py" in " ".join(process.info["cmdline"] or [])
        and f"--port {port} " in " ".join(process.info["cmdline"] or [])
    ]


@pytest.mark.comfyui
def test_a_comfyui_that_dies_is_restarted_and_its_jobs_are_done(tmp_path: Path) -> None:
    if not (comfyui_folder() / "main.py").is_file():
        pytest.skip(
            f"no ComfyUI in {comfyui_folder()}, and none could be installed (set COMFYUI_PATH)"
        )
    base, port, comfyui_port = tmp_path / "base", free_port(), free_port()
    (base / "custom_nodes").mkdir(parents=True)
    (base / "custom_nodes" / "artmancer").symlink_to(ROOT)
    url = f"http://127.0.0.1:{comfyui_port}"
    gateway = serve(
        tmp_path,
        *("--with-comfyui", "--cpu", "--comfyui-base", base, "--port", port),
        *("--comfyui-url", url, "--comfyui-light-url", url),
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
            until(lambda: get(http, "/api/system/health").get("status") == "healthy")
            job_ids = [
                http.post("/api/generate/async", json=removal(seed=seed)).json()["task_id"]
                for seed in range(3)
            ]
            until(lambda: get(http, f"/api/jobs/{job_ids[0]}")["status"] == "processing")
            (process,) = comfyui_processes(comfyui_port)
            os.kill(process.pid, signal.SIGKILL)
            until(lambda: get(http, "/api/health")["status"] == "degraded")
            for job_id in job_ids:
                until(lambda job_id=job_id: ended(http, job_id))
                assert get(http, f"/api/jobs/{job_id}")["status"] == "done"
    finally:
        gateway.stop()
    until(lambda: not comfyui_processes(comfyui_port))
