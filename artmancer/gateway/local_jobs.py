"""Jobs from acceptance to the end: whose turn it is, where each one is, and what becomes of it when
something dies.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ArtMancerError
from . import logs, metrics
from .comfy_client import ComfyRunner
from .contract import LaneName
from .jobs import HEAVY, LIGHT, RETRY_AFTER, Job, State, too_long
from .lane import Lane
from .pictures import Pictures
from .runner import Host, Lost, Runner, Step, Task
from .sessions import Sessions
from .settings import Settings
from .store import Store
from .workflows import Workflow

logger = logging.getLogger(__name__)

IN_FLIGHT = 3
"""Jobs of a lane that are at the host: one runs, one waits behind it, one's result is fetched."""

_ATTEMPTS = 2
_TIDY_EVERY = 300.0


class LocalJobs:
    """Jobs that wait here, fair to clients, and are kept on this machine's disk.

    Parameters
    ----------
    settings : where they are kept, and the limits
    runners : where the lanes "heavy" and "light" run, which may be one;
        default: the settings' ComfyUIs
    sessions : what a debug session of a job goes to
    """

    def __init__(
        self,
        settings: Settings,
        pictures: Pictures,
        sessions: Sessions,
        runners: Mapping[str, Runner] | None = None,
    ) -> None:
        self._settings = settings
        self._pictures = pictures
        self._sessions = sessions
        self._store = store = Store(settings.data)
        runners = runners or self._comfyuis()
        self.lanes: dict[LaneName, Lane] = {
            HEAVY: Lane(runners[HEAVY], settings.heavy_timeout),
            LIGHT: Lane(runners[LIGHT], settings.light_timeout, urgent=True),
        }
        self._live: dict[str, Job] = {}
        self._sent: set[str] = set()
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._waits: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        for job in store.unfinished():
            self._live[job.id] = job
            self._sent.add(job.id)
            self.lanes[job.lane].put(job)
        if self._live:
            logger.info("%d jobs from before are unfinished", len(self._live))

    def _comfyuis(self) -> dict[str, Runner]:
        heavy, light = (
            self._settings.comfyui_url,
            self._settings.comfyui_light_url or self._settings.comfyui_url,
        )
        identity = f"artmancer-{self._store.identity}"
        runner = ComfyRunner(heavy, identity)
        return {
            HEAVY: runner,
            LIGHT: runner if light == heavy else ComfyRunner(light, f"{identity}-light"),
        }

    async def submit(
        self,
        workflow: Workflow,
        lane: LaneName,
        inputs: dict[str, Any],
        *,
        client: str,
        include: list[str],
        about: dict[str, Any],
        job_id: str | None,
    ) -> Job:
        host = self.lanes[lane].runner.host()
        if not host.up:
            raise ArtMancerError("comfyui_unavailable", f"{host.reason} Try again in a moment.")
        there = [job for job in self._live.values() if job.lane == lane]
        if len(there) >= self._settings.max_waiting:
            raise ArtMancerError(
                "queue_full", f"{len(there)} jobs are waiting. Try again in {RETRY_AFTER} s."
            )
        if sum(job.client == client for job in there) >= self._settings.max_per_client:
            raise ArtMancerError(
                "queue_full",
                f"{self._settings.max_per_client} of your jobs are waiting. Try again in "
                f"{RETRY_AFTER} s.",
            )
        if job_id and self._store.get(job_id):
            raise ArtMancerError(
                "invalid_request",
                "The request_id was used before; expected a new UUID. Choose one.",
            )
        job = Job.new(workflow, lane, inputs, client, include, about, job_id)
        self._store.add(job)
        self._live[job.id] = job
        self.lanes[lane].put(job)
        logs.tell(logger, "job accepted", job=job.id, workflow=job.workflow, lane=lane)
        return job

    async def get(self, job_id: str) -> Job:
        return self._get(job_id)

    def _get(self, job_id: str) -> Job:
        job = self._live.get(job_id) or self._store.get(job_id)
        if job is None:
            raise ArtMancerError(
                "not_found", "There is no job of this id. Jobs are kept for a day."
            )
        return job

    async def pictures(self, job: Job, name: str) -> list[Path]:
        return self._store.pictures(job, name)

    def host(self, lane: LaneName) -> Host:
        return self.lanes[lane].runner.host()

    def load(self, lane: LaneName) -> tuple[int, int]:
        return len(self.lanes[lane].waiting), len(self.lanes[lane].at_host)

    async def free(self) -> int:
        return sum([await runner.free() for runner in self._runners()])

    def _runners(self) -> set[Runner]:
        return {lane.runner for lane in self.lanes.values()}

    def position(self, job: Job) -> int | None:
        return self.lanes[job.lane].position(job) if job.id in self._live else None

    async def follow(self, job_id: str, every: float) -> AsyncIterator[Job]:
        job = self._get(job_id)
        changed = asyncio.Event()
        watchers = self._watchers.setdefault(job_id, set())
        watchers.add(changed)
        try:
            while True:
                changed.clear()
                yield job
                if job.ended:
                    return
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(changed.wait(), every)
        finally:
            watchers.discard(changed)
            if not watchers:
                self._watchers.pop(job_id, None)

    async def wait(self, job: Job) -> Job:
        """An unfinished job when it has ended; one that takes longer than its lane allows
        ends with timeout.
        """
        seconds = self.lanes[job.lane].timeout
        ended = self._waits.setdefault(job.id, asyncio.Event())
        try:
            await asyncio.wait_for(ended.wait(), seconds)
        except asyncio.TimeoutError:
            self._fail(job, too_long(seconds))
            await self.lanes[job.lane].runner.cancel(job.id)
        return job

    async def cancel(self, job_id: str) -> bool:
        job = self._get(job_id)
        if job.ended:
            return False
        sent = job.id in self._sent
        self._end(job, "cancelled")
        if sent:
            await self.lanes[job.lane].runner.cancel(job.id)
        return True

    async def run(self) -> None:
        hosts = [runner.run() for runner in self._runners()]
        lanes = [self._serve(lane) for lane in self.lanes.values()]
        try:
            await asyncio.gather(self._watch(), self._keep_tidy(), *lanes, *hosts)
        finally:
            for task in self._tasks:
                task.cancel()
            self._store.close()

    async def _serve(self, lane: Lane) -> None:
        while True:
            while not lane.waiting or len(lane.at_host) >= IN_FLIGHT:
                lane.changed.clear()
                await lane.changed.wait()
            await lane.runner.ready()
            if lane.waiting:
                job = lane.take()
                await asyncio.wait({self._start(job, self._hand_over(lane, job))})
                for _, _, other in lane.waiting:  # each has moved up
                    self._tell(other)

    async def _hand_over(self, lane: Lane, job: Job) -> None:
        try:
            task = await self._task(lane, job)
            if not (job.id in self._sent and await lane.runner.knows(task)):
                if job.ended:
                    return
                self._begin(job)
                await lane.runner.submit(task)
        except Lost:
            if not job.ended:
                lane.put(job)
            await asyncio.sleep(0.1)
            return
        except ArtMancerError as error:
            self._fail(job, error)
            return
        if job.ended:
            await lane.runner.cancel(job.id)
            return
        coming = self._start(job, self._bring_home(lane, job, task))
        lane.at_host[job.id] = (job, coming)
        coming.add_done_callback(lambda _: lane.leave_host(job))

    async def _task(self, lane: Lane, job: Job) -> Task:
        pictures = {
            job.inputs[name]: await self._pictures.path(job.inputs[name]) for name in job.pictures
        }
        return Task(job.id, job.graph, pictures, job.asked, lane.urgent)

    async def _bring_home(self, lane: Lane, job: Job, task: Task) -> None:
        try:
            outputs = await lane.runner.outputs(task, lambda step: self._on_step(job, step))
            written = await asyncio.to_thread(self._store.write, job, outputs)
            if not job.ended:
                job.outputs = written
                self._end(job, "done")
        except Lost:
            if not job.ended:
                logs.tell(logger, "the host of a job went away", logging.WARNING, job=job.id)
                self._queue_again(job)
                lane.put(job)
        except ArtMancerError as error:
            self._fail(job, error)

    def _start(self, job: Job, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(partial(self._on_crash, job))
        return task

    def _on_crash(self, job: Job, done: "asyncio.Task[None]") -> None:
        """A job does not hang because its host said something nobody expected."""
        if not done.cancelled() and (error := done.exception()):
            logger.error("job %s", job.id, exc_info=error)
            self._fail(
                job,
                ArtMancerError(
                    "generation_failed", "Something went wrong in the gateway. Its log says what."
                ),
            )

    def _begin(self, job: Job) -> None:
        """Before a job is handed over. One that its host forgot while it ran is run once more."""
        if job.attempts >= _ATTEMPTS:
            raise ArtMancerError(
                "generation_failed",
                "ComfyUI stopped twice while this job ran. Try a smaller picture, or see its log.",
            )
        if job.attempts:
            logs.tell(
                logger, "a job was lost with its host, and runs again", logging.WARNING, job=job.id
            )
        self._queue_again(job)
        job.progress, job.started, job.counted, job.deadline = 0.0, None, False, None
        self._sent.add(job.id)

    def _queue_again(self, job: Job) -> None:
        if job.state != "queued":
            job.state, job.step = "queued", Step()
            self._store.save(job)
            self._tell(job)

    def _on_step(self, job: Job, step: Step) -> None:
        if job.ended:
            return
        starts = job.state == "queued"
        job.state = "loading_pipeline" if step.loading else "processing"
        job.step = step
        if starts:
            job.attempts += not job.counted
            job.counted = True
            job.started = job.started or time.time()
            try:
                self._store.save(job)
            except sqlite3.Error:  # it runs nevertheless, and its end is written again
                logger.exception("the start of job %s could not be written", job.id)
        if job.deadline is None:
            job.deadline = time.time() + self.lanes[job.lane].timeout
        if not step.loading and step.total:
            # The last of it is for what comes after the steps.
            job.progress = max(job.progress, round(0.95 * step.done / step.total, 4))
        self._tell(job)

    def _fail(self, job: Job, error: ArtMancerError) -> None:
        if not job.ended:
            job.error = {"error_type": error.code, "detail": str(error), "details": error.details}
            self._end(job, "error")

    def _end(self, job: Job, state: State) -> None:
        job.state, job.finished = state, time.time()
        if state == "done":
            job.progress = 1.0
        self._live.pop(job.id, None)
        self._sent.discard(job.id)
        lane = self.lanes[job.lane]
        lane.drop(job)
        _, coming = lane.at_host.get(job.id, (job, None))
        if coming and coming is not asyncio.current_task():
            coming.cancel()
        try:
            self._store.save(job)
        finally:
            self._tell(job)
            if job.id in self._waits:
                self._waits.pop(job.id).set()
        seconds = round(job.finished - job.created, 3)
        reason = job.error["error_type"] if job.error else None
        logs.tell(
            logger,
            "job ended",
            job=job.id,
            workflow=job.workflow,
            state=state,
            seconds=seconds,
            error=reason,
        )
        metrics.ended(job)
        if self._settings.debug and job.about.get("debug"):
            with suppress(OSError):
                self._write_session(job)

    def _write_session(self, job: Job) -> None:
        results = {name: self._store.pictures(job, name) for name in job.outputs or {}}
        sent = {
            name: path for name in job.pictures if (path := self._pictures.find(job.inputs[name]))
        }
        self._sessions.write(job, sent, results)

    def _tell(self, job: Job) -> None:
        for watcher in self._watchers.get(job.id, ()):
            watcher.set()

    async def _watch(self) -> None:
        """End jobs that run, or wait for a host that is down, longer than their lane allows."""
        up = dict.fromkeys(self.lanes, time.time())
        while True:
            await asyncio.sleep(1)
            now = time.time()
            up |= {name: now for name, lane in self.lanes.items() if lane.runner.host().up}
            for job in list(self._live.values()):
                lane = self.lanes[job.lane]
                with _logged("a job that took too long could not be ended"):
                    if job.deadline and now > job.deadline:
                        self._fail(job, too_long(lane.timeout))
                        await lane.runner.cancel(job.id)
                    elif now - max(job.created, up[job.lane]) > lane.timeout:
                        self._fail(
                            job,
                            ArtMancerError("comfyui_unavailable", str(lane.runner.host().reason)),
                        )

    async def _keep_tidy(self) -> None:
        """Results, pictures and what lies at the hosts are removed when they are old,
        or too many.
        """
        settings = self._settings
        max_age, max_bytes = settings.picture_hours * 3600, settings.picture_gigabytes * 2**30
        while True:
            with _logged("not all that is old could be removed"):
                gone = self._store.forget(time.time() - settings.result_hours * 3600)
                await asyncio.to_thread(self._store.remove_results, gone)
                await asyncio.to_thread(self._pictures.tidy, self._needed(), max_age, max_bytes)
            for runner in self._runners():
                await runner.tidy(self._needed(), max_age, int(max_bytes))
            await asyncio.sleep(_TIDY_EVERY)

    def _needed(self) -> set[str]:
        """The pictures of unfinished jobs."""
        return {job.inputs[name] for job in self._live.values() for name in job.pictures}


@contextmanager
def _logged(what: str) -> Iterator[None]:
    """The disk may be full, or somebody's hand in the folder:
    it passes, and the gateway goes on.
    """
    try:
        yield
    except (OSError, sqlite3.Error):
        logger.exception(what)
