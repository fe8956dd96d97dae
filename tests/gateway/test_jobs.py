"""Moments at which a job could be lost, run twice or block other jobs. A scripted runner causes
each of them.
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
from artmancer.gateway.service import Gateway, Sender, local_gateway
from artmancer.gateway.upload_store import UploadStore


class ScriptedRunner:
    """A Runner whose test decides what happens.

    Attributes
    ----------
    up : it accepts runs
    submitted : ids of the submitted runs, in order
    cancelled : ids of the cancelled runs, in order
    on_submit : called with each submitted run; may raise
    on_knows : decides whether it knows a run; it knows none if None
    hold : set when runs end with a result
    lost : set when the next run is lost
    """

    def __init__(self) -> None:
        self.up = True
        self.submitted: list[str] = []
        self.cancelled: list[str] = []
        self.on_submit: Callable[[Run], Coroutine[Any, Any, None]] | None = None
        self.on_knows: Callable[[Run], Coroutine[Any, Any, bool]] | None = None
        self.hold = asyncio.Event()
        self.lost = asyncio.Event()

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
        waits = [asyncio.create_task(event.wait()) for event in (self.hold, self.lost)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
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
    data: Path, act: Callable[[Gateway, ScriptedRunner], Coroutine[Any, Any, None]], **more: Any
) -> None:
    """Run a gateway with one runner while a test acts on it.

    Parameters
    ----------
    act : the test's actions
    more : settings of the gateway
    """

    async def run() -> None:
        runner = ScriptedRunner()
        gateway_settings = settings(data, **{"workflows": GRAPHS, **more})
        gateway = local_gateway(gateway_settings, {"heavy": runner, "light": runner})
        working = asyncio.create_task(gateway.jobs.run())
        try:
            await act(gateway, runner)
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    asyncio.run(run())


async def submit(gateway: Gateway) -> Job:
    """Submit an edit."""
    return await gateway.submit("generate", {"prompt": "x"}, sender=Sender("somebody"))


async def reaches(gateway: Gateway, job_id: str, state: str) -> None:
    """Wait until a job, which an earlier gateway may have accepted, is in a state."""
    job = await gateway.jobs.get(job_id)
    await until(lambda: job.state == state)


async def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true"
        await asyncio.sleep(0.005)


def test_cancelling_a_job_while_it_is_submitted_frees_the_lane(tmp_path: Path) -> None:
    async def act(gateway: Gateway, runner: ScriptedRunner) -> None:
        async def cancel_at_once(run: Run) -> None:
            asyncio.get_running_loop().call_soon(
                lambda: asyncio.get_running_loop().create_task(gateway.jobs.cancel(run.id))
            )

        runner.on_submit = cancel_at_once
        jobs = [await submit(gateway) for _ in range(6)]
        await until(lambda: all(job.state == "cancelled" for job in jobs))
        runner.on_submit = None
        runner.hold.set()
        job = await submit(gateway)
        await until(lambda: job.state == "done")
        await until(lambda: gateway.jobs.load("heavy") == (0, 0))

    play(tmp_path, act)


def test_a_job_that_is_cancelled_while_the_answer_to_its_submission_is_lost_does_not_run(
    tmp_path: Path,
) -> None:
    """Expect a cancel after the loss, too: the first one may have come before the run."""

    async def act(gateway: Gateway, runner: ScriptedRunner) -> None:
        async def accept_and_lose(run: Run) -> None:
            await gateway.jobs.cancel(run.id)
            runner.cancelled.clear()
            raise RunLost

        runner.on_submit = accept_and_lose
        job = await submit(gateway)
        await until(lambda: runner.cancelled == [job.id])
        assert job.state == "cancelled"

    play(tmp_path, act)


def test_a_job_that_is_cancelled_during_the_search_for_its_run_stays_cancelled(
    tmp_path: Path,
) -> None:
    job_ids: list[str] = []

    async def leave_job(gateway: Gateway, runner: ScriptedRunner) -> None:
        job_ids.append((await submit(gateway)).id)
        await reaches(gateway, job_ids[0], "processing")

    async def act(gateway: Gateway, runner: ScriptedRunner) -> None:
        async def cancel_unknown(run: Run) -> bool:
            await gateway.jobs.cancel(run.id)
            return False

        runner.on_knows = cancel_unknown
        await reaches(gateway, job_ids[0], "cancelled")
        await asyncio.sleep(0.2)
        assert (await gateway.jobs.get(job_ids[0])).state == "cancelled" and not runner.submitted

    play(tmp_path, leave_job)
    play(tmp_path, act)


def test_an_old_job_survives_a_short_outage_of_comfyui(tmp_path: Path) -> None:
    async def act(gateway: Gateway, runner: ScriptedRunner) -> None:
        job = await submit(gateway)
        await until(lambda: job.state == "processing")
        waiting = [await submit(gateway) for _ in range(4)]
        old_job = waiting[-1]
        old_job.record = replace(old_job.record, created=old_job.record.created - 10_000)
        runner.up = False
        await asyncio.sleep(1.2)
        assert old_job.state == "queued"
        runner.up = True
        runner.hold.set()
        await until(lambda: all(entry.state == "done" for entry in (job, *waiting)))

    play(tmp_path, act)


def test_a_job_waits_for_comfyui_up_to_its_timeout(tmp_path: Path) -> None:
    async def act(gateway: Gateway, runner: ScriptedRunner) -> None:
        for _ in range(5):
            job = await submit(gateway)
        runner.up = False
        await until(lambda: job.ended)
        assert job.error and job.error["error_type"] == "comfyui_unavailable"

    play(tmp_path, act, heavy_timeout=1)


def test_a_job_that_started_before_a_long_break_does_not_time_out(tmp_path: Path) -> None:
    job_ids: list[str] = []

    async def leave_job(gateway: Gateway, runner: ScriptedRunner) -> None:
        job = await submit(gateway)
        job_ids.append(job.id)
        await until(lambda: job.state == "processing")

    async def act(gateway: Gateway, runner: ScriptedRunner) -> None:
        async def knows(run: Run) -> bool:
            return True

        runner.on_knows = knows
        await asyncio.sleep(1.2)
        runner.hold.set()
        await reaches(gateway, job_ids[0], "done")
        assert not runner.submitted

    play(tmp_path, leave_job)
    store = JobStore(tmp_path)
    (job,) = store.unfinished()
    job.started = time.time() - 10_000
    store.save(job)
    store.close()
    play(tmp_path, act)


def test_a_refusal_by_comfyui_fails_the_job_and_a_lost_connection_does_not(
    tmp_path: Path,
) -> None:
    async def act(gateway: Gateway, runner: ScriptedRunner) -> None:
        losses = [3]

        async def lose(run: Run) -> None:
            if losses[0]:
                losses[0] -= 1
                raise RunLost

        async def refuse(run: Run) -> None:
            raise ArtMancerError("generation_failed", "ComfyUI answered 500. Look at its log.")

        runner.on_submit = lose
        runner.hold.set()
        first = await submit(gateway)
        await until(lambda: first.state == "done")
        assert first.attempts == 1
        runner.on_submit = refuse
        second = await submit(gateway)
        await until(lambda: second.state == "error")

    play(tmp_path, act)


def test_the_queue_of_all_clients_is_limited(tmp_path: Path) -> None:
    async def act(gateway: Gateway, runner: ScriptedRunner) -> None:
        for client in ("a", "b", "c"):
            await gateway.submit("generate", {"prompt": "x"}, sender=Sender(client))
        with pytest.raises(ArtMancerError) as refused:
            await gateway.submit("generate", {"prompt": "x"}, sender=Sender("d"))
        assert refused.value.code == "queue_full"

    play(tmp_path, act, max_waiting=3)


def test_a_job_ends_although_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(gateway: Gateway, runner: ScriptedRunner) -> None:
        job = await submit(gateway)
        await until(lambda: job.state == "processing")

        def fail(self: JobStore, job: Job, webhook: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        waiting = asyncio.create_task(gateway.jobs.wait(job))
        await asyncio.sleep(0.05)
        monkeypatch.setattr(JobStore, "save", fail)
        with pytest.raises(ArtMancerError, match="cancel the job again"):
            await gateway.jobs.cancel(job.id)
        assert (await gateway.jobs.get(job.id)).state == "cancelled"
        await asyncio.wait_for(waiting, 5)
        assert gateway.jobs.load("heavy") == (0, 0)

    play(tmp_path, act)


def test_queued_edits_do_not_block_a_click(tmp_path: Path) -> None:
    async def act(gateway: Gateway, runner: ScriptedRunner) -> None:
        for _ in range(2):
            await submit(gateway)
        with pytest.raises(ArtMancerError):
            await submit(gateway)
        assert await gateway.submit("smart-mask", {}, sender=Sender("somebody"))

    play(tmp_path, act, max_waiting=2, max_per_client=2)


def test_a_run_that_is_found_again_counts_as_one_attempt(tmp_path: Path) -> None:
    job_ids: list[str] = []

    async def leave_job(gateway: Gateway, runner: ScriptedRunner) -> None:
        job = await submit(gateway)
        job_ids.append(job.id)
        await until(lambda: job.state == "processing")
        runner.up = False
        runner.lost.set()
        await until(lambda: job.state == "queued")

    async def act(gateway: Gateway, runner: ScriptedRunner) -> None:
        async def knows(run: Run) -> bool:
            return True

        runner.on_knows = knows
        await reaches(gateway, job_ids[0], "processing")
        assert (await gateway.jobs.get(job_ids[0])).attempts == 1

    play(tmp_path, leave_job)
    play(tmp_path, act)


def test_a_job_runs_the_graph_of_the_time_it_was_submitted(tmp_path: Path) -> None:
    graphs = tmp_path / "graphs"
    graphs.mkdir()
    (graphs / "generate.json").write_text((GRAPHS / "generate.json").read_text())

    async def act(gateway: Gateway, runner: ScriptedRunner) -> None:
        job = await gateway.submit("generate", {"seed": 3}, sender=Sender("somebody"))
        (graphs / "generate.json").write_text(
            (GRAPHS / "generate.json").read_text().replace('"seed"', '"grain"')
        )
        runner.hold.set()
        await until(lambda: job.state == "done")

    play(tmp_path / "data", act, workflows=graphs)


def test_a_disk_that_is_full_for_a_moment_stops_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("artmancer.gateway.local_jobs._TIDY_SECONDS", 0.05)

    def fail(*_: Any, **__: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async def act(gateway: Gateway, runner: ScriptedRunner) -> None:
        with monkeypatch.context() as disk:
            disk.setattr(JobStore, "save", fail)
            disk.setattr(JobStore, "forget", fail)
            job = await submit(gateway)
            await until(lambda: job.state == "processing")
            await asyncio.sleep(0.2)
        runner.hold.set()
        await until(lambda: job.state == "done")

    play(tmp_path, act)


def test_foreign_files_in_the_data_folder_are_kept(tmp_path: Path) -> None:
    foreign = [tmp_path / "results" / "wedding" / "a.png", tmp_path / "pictures" / "IMG_1.jpg"]
    own = [
        tmp_path / "results" / str(uuid.uuid4()) / "image-0.png",
        tmp_path / "pictures" / f"{'0' * 64}.png",
        tmp_path / "pictures" / f"{'0' * 32}.part",
    ]
    for file in (*foreign, *own):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        os.utime(file, (0, 0))
    ResultFolder(tmp_path / "results").remove_orphans(set())
    UploadStore(tmp_path / "pictures").tidy((), 3600, 0)
    assert all(file.is_file() for file in foreign)
    assert not any(file.exists() for file in own)


def test_only_the_gateways_own_comfyui_is_stopped(tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    own = subprocess.Popen([*sleep, str(tmp_path)])
    other = subprocess.Popen(sleep)
    try:
        for process in (own, other):
            asyncio.run(_stop(process.pid, tmp_path))
        assert own.wait(10) == -signal.SIGTERM and other.poll() is None
    finally:
        other.kill()
