"""SIGKILL at random moments: no accepted job is lost, none is completed twice,
no result is another's.
"""

import base64
import io
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from support.gateway import GRAPHS, free_port, removal, until
from support.paths import FAKE_COMFYUI, ROOT

from artmancer.folders import comfyui_folder

ROUNDS = 20


def environment(data: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "ARTMANCER_DATA": str(data), "ARTMANCER_WORKFLOWS": str(GRAPHS), **more}


class Process:
    """One that is started, killed and started again."""

    def __init__(self, command: list[str], log: Path, env: dict[str, str]) -> None:
        self.command, self.log, self.env = command, log, env
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=self.env, cwd=ROOT
            )

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def colour(number: int) -> str:
    """A picture like no other's, base64."""
    buffer = io.BytesIO()
    Image.new("RGB", (48, 32), (number * 7 % 256, number // 36 * 40 % 256, number % 256)).save(
        buffer, "PNG"
    )
    return base64.b64encode(buffer.getvalue()).decode()


def ask(http: httpx.Client, path: str) -> dict[str, Any] | None:
    try:
        answer = http.get(path)
        return dict(answer.json()) if answer.status_code == 200 else None
    except httpx.HTTPError:
        return None


def test_no_job_is_lost_or_completed_twice(tmp_path: Path) -> None:
    seed = int(os.environ.get("KILL_SEED", "0")) or random.randrange(10**6)
    chance = random.Random(seed)
    host_port, port = free_port(), free_port()
    told = tmp_path / "told.log"
    told.touch()
    env = environment(tmp_path / "data", PYTHONPATH=str(ROOT / "tests"))
    host = Process(
        [
            sys.executable,
            str(FAKE_COMFYUI),
            str(host_port),
            str(told),
        ],
        tmp_path / "host.log",
        env,
    )
    serve = ["serve", "--port", str(port), "--comfyui-url", f"http://127.0.0.1:{host_port}"]
    gateway = Process(
        [sys.executable, "-m", "artmancer.cli", *serve], tmp_path / "gateway.log", env
    )
    accepted: dict[str, str] = {}
    cancelled: set[str] = set()
    failed: set[str] = set()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as http:

        def healthy() -> bool:
            return (ask(http, "/api/health") or {}).get("status") == "healthy"

        for _ in range(ROUNDS):
            until(healthy, 60)
            for _ in range(4):
                image = colour(len(accepted))
                prompt = chance.choice(["now", "slow 0.1", "slow 0.4"])
                body = removal(prompt=prompt, input_image=image)
                answer = http.post("/api/generate/async", json=body)
                if answer.status_code != 503:  # ComfyUI is not back yet
                    accepted[answer.json()["task_id"]] = image
            if accepted and chance.random() < 0.3:
                task = chance.choice(list(accepted))
                if http.post(f"/api/jobs/{task}/cancel").json()["success"]:
                    cancelled.add(task)
            time.sleep(chance.uniform(0, 0.8))
            for process in chance.choice([[gateway], [host], [gateway, host]]):
                process.kill()
                if process is host:
                    with told.open("a") as file:
                        file.write("killed\n")
                process.start()
        until(healthy, 60)
        assert len(accepted) > ROUNDS
        for task in accepted:
            until(
                lambda task=task: (
                    ask(http, f"/api/jobs/{task}")["status"] in ("done", "error", "cancelled")
                ),
                60,
            )
        for task, image in accepted.items():
            status = ask(http, f"/api/jobs/{task}") or {}
            if task in cancelled:
                assert status["status"] == "cancelled", f"seed {seed}"
            elif status["status"] == "error":
                assert "stopped twice" in status["error"], f"seed {seed}"
                failed.add(task)
            else:
                assert (ask(http, f"/api/generate/result/{task}") or {})["image"] == image, (
                    f"seed {seed}"
                )
    gateway.stop()
    host.stop()
    completed: set[str] = set()
    begun: set[str] = set()
    interrupted: Counter[str] = Counter()
    for line in told.read_text().splitlines():
        what, _, task = line.partition(" ")
        if what == "killed":
            completed.clear()  # what it had made and nobody had fetched went with it
            interrupted.update(begun)
            begun.clear()
        elif what == "began":
            begun.add(task)
        elif what == "completed":
            assert task not in completed, f"{task} was completed twice, seed {seed}"
            completed.add(task)
    assert all(interrupted[task] >= 2 for task in failed), f"seed {seed}"


@pytest.mark.comfyui
def test_a_comfyui_that_is_minded_comes_back(tmp_path: Path) -> None:
    if not (comfyui_folder() / "main.py").is_file():
        pytest.skip(
            f"no ComfyUI in {comfyui_folder()}, and none could be installed (set COMFYUI_PATH)"
        )
    base, port, host_port = tmp_path / "base", free_port(), free_port()
    (base / "custom_nodes").mkdir(parents=True)
    (base / "custom_nodes" / "artmancer").symlink_to(ROOT)
    serve = ["serve", "--with-comfyui", "--cpu", "--comfyui-base", str(base), "--port", str(port)]
    urls = [f"http://127.0.0.1:{host_port}", f"http://127.0.0.1:{free_port()}"]
    serve += ["--comfyui-url", urls[0], "--comfyui-light-url", urls[1]]
    gateway = Process(
        [sys.executable, "-m", "artmancer.cli", *serve],
        tmp_path / "gateway.log",
        environment(tmp_path / "data"),
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
            until(lambda: (ask(http, "/api/system/health") or {}).get("status") == "healthy", 180)
            tasks = [
                http.post("/api/generate/async", json=removal(seed=seed)).json()["task_id"]
                for seed in range(3)
            ]
            until(lambda: (ask(http, f"/api/jobs/{tasks[0]}") or {})["status"] == "processing", 60)
            heavy = subprocess.run(
                ["pgrep", "-f", f"main.py.*--port {host_port} "],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()
            os.kill(int(heavy[0]), signal.SIGKILL)
            until(lambda: (ask(http, "/api/health") or {})["status"] == "degraded", 5)
            for task in tasks:
                until(
                    lambda task=task: ask(http, f"/api/jobs/{task}")["status"] in ("done", "error"),
                    180,
                )
                assert ask(http, f"/api/jobs/{task}")["status"] == "done"
    finally:
        gateway.stop()
    until(
        lambda: (
            subprocess.run(["pgrep", "-f", f"main.py.*--port {host_port} "], check=False).returncode
            == 1
        ),
        30,
    )
