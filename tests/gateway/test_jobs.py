"""The moments at which a job could be lost, run twice or block others, each brought about by a
scripted runner.
"""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.gateway import GRAPHS, settings

from artmancer.errors import ArtMancerError
from artmancer.gateway.comfy_process import _stop
from artmancer.gateway.job_store import JobStore
from artmancer.gateway.jobs import Job
from artmancer.gateway.results import ResultFolder
from artmancer.gateway.runner import ComfyStatus, Outputs, Run, RunLost, Step
from artmancer.gateway.service import Gateway, local_gateway
from artmancer.gateway.upload_store import UploadStore


class Scripted:
    """A Runner that does what its test says."""

    def __init__(self) -> None:
        self.up = True
        self.submitted: list[str] = []
        self.cancelled: list[str] = []
        self.on_submit: Callable[[Run], Coroutine[Any, Any, None]] | None = None
        self.on_knows: Callable[[Run], Coroutine[Any, Any, bool]] | None = None
        self.hold, self.lost = asyncio.Event(), asyncio.Event()

    async def connect(self) -> None:
        await asyncio.Event().wait()

    async def ready(self) -> None:
        while not self.up:
            await asyncio.sleep(0.01)

    def status(self) -> ComfyStatus:
        return ComfyStatus(self.up, None if self.up else "It is down.")

    async def submit(self, run: Run) -> None:
        self.submitted.append(run.id)
        if self.on_submit:
            await self.on_submit(run)

    async def knows(self, run: Run) -> bool:
        return await self.on_knows(run) if self.on_knows else False

    async def outputs(self, run: Run, on_step: Callable[[Step], None]) -> Outputs:
        on_step(Step())
        both = [asyncio.create_task(one.wait()) for one in (self.hold, self.lost)]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if self.lost.is_set():
            self.lost.clear()
            raise RunLost
        return Outputs({}, {name: "x" for name in run.results.values()})

    async def cancel(self, run_id: str) -> None:
        self.cancelled.append(run_id)

    async def free(self) -> int:
        return 0

    async def tidy(self, keep: set[str], max_age: float, max_bytes: int) -> None:
        pass


def play(
    data: Path, act: Callable[[Gateway, Scripted], Coroutine[Any, Any, None]], **more: Any
) -> None:
    """Run a gateway with one runner while a test acts on it."""

    async def run() -> None:
        runner = Scripted()
        made = settings(data, **{"workflows": GRAPHS, **more})
        gateway = local_gateway(made, {"heavy": runner, "light": runner})
        working = asyncio.create_task(gateway.jobs.run())
        try:
            await act(gateway, runner)
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    asyncio.run(run())


async def submit(gateway: Gateway) -> Job:
    return await gateway.submit("generate", {"prompt": "x"}, client="somebody")


async def found(gateway: Gateway, job_id: str, state: str) -> None:
    """Wait until a job, which may be an earlier gateway's, is in a state."""
    job = await gateway.jobs.get(job_id)
    await until(lambda: job.state == state)


async def until(met: Callable[[], Any], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it did not come to be"
        await asyncio.sleep(0.005)


def test_cancelling_in_the_moment_of_acceptance_frees_the_lane(tmp_path: Path) -> None:
    async def act(gateway: Gateway, runner: Scripted) -> None:
        async def cancel_at_once(run: Run) -> None:
            asyncio.get_running_loop().call_soon(
                lambda: asyncio.get_running_loop().create_task(gateway.jobs.cancel(run.id))
            )

        runner.on_submit = cancel_at_once
        jobs = [await submit(gateway) for _ in range(6)]
        await until(lambda: all(job.state == "cancelled" for job in jobs))
        runner.on_submit = None
        runner.hold.set()
        last = await submit(gateway)
        await until(lambda: last.state == "done")
        assert gateway.jobs.load("heavy") == (0, 0)

    play(tmp_path, act)


def test_a_job_that_is_cancelled_while_its_host_is_asked_for_it_stays_so(tmp_path: Path) -> None:
    left: list[str] = []

    async def leave(gateway: Gateway, runner: Scripted) -> None:
        left.append((await submit(gateway)).id)
        await found(gateway, left[0], "processing")

    async def act(gateway: Gateway, runner: Scripted) -> None:
        async def forgets(run: Run) -> bool:
            await gateway.jobs.cancel(run.id)
            return False

        runner.on_knows = forgets
        await found(gateway, left[0], "cancelled")
        await asyncio.sleep(0.2)
        assert (await gateway.jobs.get(left[0])).state == "cancelled" and not runner.submitted

    play(tmp_path, leave)
    play(tmp_path, act)


def test_an_old_job_outlives_a_moment_without_its_host(tmp_path: Path) -> None:
    async def act(gateway: Gateway, runner: Scripted) -> None:
        job = await submit(gateway)
        await until(lambda: job.state == "processing")
        waiting = [await submit(gateway) for _ in range(4)]
        waiting[-1].record = replace(
            waiting[-1].record, created=waiting[-1].record.created - 10_000
        )
        runner.up = False
        await asyncio.sleep(1.2)
        assert waiting[-1].state == "queued"
        runner.up = True
        runner.hold.set()
        await until(lambda: all(one.state == "done" for one in (job, *waiting)))

    play(tmp_path, act)


def test_a_job_waits_for_a_host_that_is_down_and_not_for_ever(tmp_path: Path) -> None:
    async def act(gateway: Gateway, runner: Scripted) -> None:
        for _ in range(5):
            job = await submit(gateway)
        runner.up = False
        await until(lambda: job.ended)
        assert job.error and job.error["error_type"] == "comfyui_unavailable"

    play(tmp_path, act, heavy_timeout=1)


def test_a_job_that_ran_before_a_long_break_is_not_late(tmp_path: Path) -> None:
    left: list[str] = []

    async def leave(gateway: Gateway, runner: Scripted) -> None:
        job = await submit(gateway)
        left.append(job.id)
        await until(lambda: job.state == "processing")

    async def act(gateway: Gateway, runner: Scripted) -> None:
        async def knows(run: Run) -> bool:
            return True

        runner.on_knows = knows
        await asyncio.sleep(1.2)
        runner.hold.set()
        await found(gateway, left[0], "done")
        assert not runner.submitted

    play(tmp_path, leave)
    store = JobStore(tmp_path)
    (job,) = store.unfinished()
    job.started = time.time() - 10_000
    store.save(job)
    store.close()
    play(tmp_path, act)


def test_a_host_that_refuses_fails_the_job_and_one_that_is_gone_does_not(tmp_path: Path) -> None:
    async def act(gateway: Gateway, runner: Scripted) -> None:
        lost = [3]

        async def gone(run: Run) -> None:
            if lost[0]:
                lost[0] -= 1
                raise RunLost

        async def refuses(run: Run) -> None:
            raise ArtMancerError("generation_failed", "ComfyUI answered 500. Look at its log.")

        runner.on_submit = gone
        runner.hold.set()
        first = await submit(gateway)
        await until(lambda: first.state == "done")
        assert first.attempts == 1
        runner.on_submit = refuses
        second = await submit(gateway)
        await until(lambda: second.state == "error")

    play(tmp_path, act)


def test_the_whole_queue_is_bounded(tmp_path: Path) -> None:
    async def act(gateway: Gateway, runner: Scripted) -> None:
        for client in ("a", "b", "c"):
            await gateway.submit("generate", {"prompt": "x"}, client=client)
        with pytest.raises(ArtMancerError) as refused:
            await gateway.submit("generate", {"prompt": "x"}, client="d")
        assert refused.value.code == "queue_full"

    play(tmp_path, act, max_waiting=3)


def test_a_full_disk_leaves_no_job_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(gateway: Gateway, runner: Scripted) -> None:
        job = await submit(gateway)
        await until(lambda: job.state == "processing")

        def full(self: JobStore, job: Job) -> None:
            raise OSError("no space left")

        waiting = asyncio.create_task(gateway.jobs.wait(job))
        await asyncio.sleep(0.05)
        monkeypatch.setattr(JobStore, "save", full)
        with pytest.raises(OSError, match="no space"):
            await gateway.jobs.cancel(job.id)
        await asyncio.wait_for(waiting, 5)
        assert gateway.jobs.load("heavy") == (0, 0)

    play(tmp_path, act)


def test_edits_that_wait_do_not_take_the_place_of_a_click(tmp_path: Path) -> None:
    async def act(gateway: Gateway, runner: Scripted) -> None:
        for _ in range(2):
            await submit(gateway)
        with pytest.raises(ArtMancerError):
            await submit(gateway)
        assert await gateway.submit("smart-mask", {}, client="somebody")

    play(tmp_path, act, max_waiting=2, max_per_client=2)


def test_a_run_is_counted_once_also_when_it_is_found_again(tmp_path: Path) -> None:
    left: list[str] = []

    async def leave(gateway: Gateway, runner: Scripted) -> None:
        job = await submit(gateway)
        left.append(job.id)
        await until(lambda: job.state == "processing")
        runner.up = False
        runner.lost.set()
        await until(lambda: job.state == "queued")

    async def act(gateway: Gateway, runner: Scripted) -> None:
        async def knows(run: Run) -> bool:
            return True

        runner.on_knows = knows
        await found(gateway, left[0], "processing")
        assert (await gateway.jobs.get(left[0])).attempts == 1

    play(tmp_path, leave)
    play(tmp_path, act)


def test_a_job_runs_the_graph_it_came_for(tmp_path: Path) -> None:
    graphs = tmp_path / "graphs"
    graphs.mkdir()
    (graphs / "generate.json").write_text((GRAPHS / "generate.json").read_text())

    async def act(gateway: Gateway, runner: Scripted) -> None:
        job = await gateway.submit("generate", {"seed": 3}, client="somebody")
        (graphs / "generate.json").write_text(
            (GRAPHS / "generate.json").read_text().replace('"seed"', '"grain"')
        )
        runner.hold.set()
        await until(lambda: job.state == "done")

    play(tmp_path / "data", act, workflows=graphs)


def test_a_disk_that_is_full_for_a_moment_ends_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("artmancer.gateway.local_jobs._TIDY_SECONDS", 0.05)

    def full(*_: Any, **__: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async def act(gateway: Gateway, runner: Scripted) -> None:
        with monkeypatch.context() as disk:
            disk.setattr(JobStore, "save", full)
            disk.setattr(JobStore, "forget", full)
            job = await submit(gateway)
            await until(lambda: job.state == "processing")
            await asyncio.sleep(0.2)
        runner.hold.set()
        await until(lambda: job.state == "done")

    play(tmp_path, act)


def test_what_is_not_ours_in_the_data_folder_stays(tmp_path: Path) -> None:
    theirs = [tmp_path / "results" / "wedding" / "a.png", tmp_path / "pictures" / "IMG_1.jpg"]
    ours = [
        tmp_path / "results" / str(uuid.uuid4()) / "image-0.png",
        tmp_path / "pictures" / f"{'0' * 64}.png",
        tmp_path / "pictures" / f"{'0' * 32}.part",
    ]
    for file in (*theirs, *ours):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        os.utime(file, (0, 0))
    ResultFolder(tmp_path / "results").remove_orphans(set())
    UploadStore(tmp_path / "pictures").tidy((), 3600, 0)
    assert all(file.is_file() for file in theirs) and not any(file.exists() for file in ours)


def test_only_a_comfyui_of_the_gateways_own_is_ended(tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    own = subprocess.Popen([*sleep, str(tmp_path)])
    other = subprocess.Popen(sleep)
    try:
        for process in (own, other):
            asyncio.run(_stop(process.pid, tmp_path))
        assert own.wait(10) == -signal.SIGTERM and other.poll() is None
    finally:
        other.kill()
