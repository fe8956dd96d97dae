"""Jobs that wait and run on this machine: queueing, submission, retries, timeouts, tidying."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ArtMancerError
from . import logs, metrics
from .comfy_runner import ComfyRunner
from .debug_sessions import DebugSessions
from .disk import disk_errors
from .fair_queue import FairQueue
from .fetch import Fetcher
from .job_store import JobStore, LocalJob
from .jobs import (
    CLAIM_SECONDS,
    HEAVY,
    LIGHT,
    MAX_ATTEMPTS,
    Claim,
    Job,
    JobRecord,
    LaneName,
    job_timeout,
    stopped_too_often,
    unexpected_error,
    unknown_job,
)
from .limits import check_claim, check_new_id, check_queue
from .results import RESULTS, ResultFolder, finished
from .runner import ComfyStatus, Outputs, Run, RunLost, Runner, Step
from .settings import Settings
from .upload_store import UploadStore
from .url_upload import upload_result
from .waiting import within
from .webhooks import Webhooks, make_webhook

logger = logging.getLogger(__name__)

IN_FLIGHT = 3
"""Jobs of a lane that are submitted at a time: one runs, one waits behind it, one's result is
fetched.
"""

_RETRY_SECONDS = 0.1
"""Pause after a submission that did not reach ComfyUI."""

_WATCH_SECONDS = 1.0
"""Seconds between two looks for timeouts and unsaved ends of jobs."""

_WRITE_RETRY_SECONDS = 60.0
"""Seconds for which results are kept in memory and written again while the disk refuses them."""

_TIDY_SECONDS = 300.0
"""Seconds between two removals of old files."""


@dataclass
class Lane:
    """A queue of jobs, and the runner they are submitted to.

    Attributes
    ----------
    timeout : seconds a job may run
    urgent : its runs go before those of other lanes that wait at the same ComfyUI
    submitted : jobs that are at the ComfyUI, with the task that collects their results, by id
    changed : set when the queue or the submitted jobs change
    """

    runner: Runner
    timeout: float
    urgent: bool = False
    queue: FairQueue = field(default_factory=FairQueue)
    submitted: dict[str, tuple[LocalJob, "asyncio.Task[None]"]] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, job: LocalJob) -> None:
        """Queue a job."""
        self.queue.put(job)
        self.changed.set()

    def drop(self, job: LocalJob) -> None:
        """Remove a job that has ended from the queue."""
        self.queue.drop(job)
        self.changed.set()

    def collected(self, job: LocalJob) -> None:
        """Make room for the next job after a submitted one."""
        self.submitted.pop(job.id, None)
        self.changed.set()

    def position(self, job: LocalJob) -> int | None:
        """Return a job's position, 1 = next to run; None: it runs, or has ended."""
        if job.state != "queued":
            return None
        ahead = [other for other, _ in self.submitted.values() if other.state == "queued"]
        ahead += list(self.queue)
        return ahead.index(job) + 1 if job in ahead else 1  # it is being submitted


class LocalJobs:
    """The `Jobs` of a gateway with its own queue, database and disk.

    Parameters
    ----------
    settings : the folder of the data, and the limits
    uploads : images that were sent
    debug_sessions : where a job with `debug` in its context is recorded
    fetcher : sends webhooks, and results to the URLs of their requests
    runners : runners of the lanes "heavy" and "light", which may be one; default: the settings'
        ComfyUIs
    absences : for ComfyUIs that the gateway starts, by URL; see ComfyRunner
    """

    def __init__(
        self,
        settings: Settings,
        uploads: UploadStore,
        debug_sessions: DebugSessions,
        fetcher: Fetcher,
        runners: Mapping[str, Runner] | None = None,
        absences: Mapping[str, Callable[[], ComfyStatus]] | None = None,
    ) -> None:
        self._settings = settings
        self._uploads = uploads
        self._debug_sessions = debug_sessions
        self._fetcher = fetcher
        self._store = JobStore(settings.data)
        self._results = ResultFolder(settings.data / RESULTS)
        self._results.remove_orphans(self._store.ids())
        runners = runners or self._comfy_runners(absences or {})
        self.lanes: dict[LaneName, Lane] = {
            HEAVY: Lane(runners[HEAVY], settings.heavy_timeout),
            LIGHT: Lane(runners[LIGHT], settings.light_timeout, urgent=True),
        }
        self._unfinished: dict[str, LocalJob] = {}
        self._unsaved: dict[str, LocalJob] = {}  # ended, but the disk refused to store it
        self._sent: set[str] = set()  # ids that a ComfyUI may have
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._waiters: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._clock = uploads.clock
        secret = settings.webhook_secret
        self._webhooks = Webhooks(
            self._store, fetcher, secret.get_secret_value() if secret else None, self._clock
        )
        with _disk_errors_logged("stored times could not be moved"):
            self._uploads.move_times(self._store.resume_times(self._clock.now()))
        for job in self._store.unfinished():
            self._unfinished[job.id] = job
            self._sent.add(job.id)
            self.lanes[job.lane].put(job)
        if self._unfinished:
            logger.info("%d jobs from before are unfinished", len(self._unfinished))

    def _comfy_runners(
        self, absences: Mapping[str, Callable[[], ComfyStatus]]
    ) -> dict[str, Runner]:
        heavy = self._settings.comfyui_url
        light = self._settings.comfyui_light_url or heavy
        identity = f"artmancer-{self._store.identity}"
        runner = ComfyRunner(heavy, identity, absences.get(heavy))
        if light == heavy:
            return {HEAVY: runner, LIGHT: runner}
        return {
            HEAVY: runner,
            LIGHT: ComfyRunner(light, f"{identity}-light", absences.get(light)),
        }

    async def submit(
        self, record: JobRecord, graph: dict[str, Any], claim: Claim | None = None
    ) -> Job:
        if claim and (earlier := self._claimed(claim)):
            return earlier
        lane = self.lanes[record.lane]
        status = lane.runner.status()
        if not status.up:
            raise ArtMancerError("comfyui_unavailable", f"{status.reason} Try again in a moment.")
        waiting = [job for job in self._unfinished.values() if job.lane == record.lane]
        from_client = sum(job.record.client == record.client for job in waiting)
        check_queue(len(waiting), from_client, self._settings)
        record = replace(record, created=self._clock.now())
        job = LocalJob(record=record, graph=graph)
        if problem := self._store.problem():
            raise problem
        with disk_errors(self._settings.data):
            check_new_id(self._store.get(record.id) is not None)
            self._store.add(job, claim)
        self._unfinished[job.id] = job
        lane.put(job)
        logs.log_event(logger, "job accepted", job=job.id, workflow=job.workflow, lane=record.lane)
        return job

    async def claimed(self, claim: Claim) -> Job | None:
        return self._claimed(claim)

    def _claimed(self, claim: Claim) -> Job | None:
        known = self._store.claimed(claim.key, self._clock.now() - CLAIM_SECONDS)
        if known is None:
            return None
        fingerprint, job_id = known
        check_claim(claim, fingerprint)
        return self._get(job_id)

    async def get(self, job_id: str) -> Job:
        return self._get(job_id)

    def _get(self, job_id: str) -> LocalJob:
        job = self._unfinished.get(job_id) or self._unsaved.get(job_id) or self._store.get(job_id)
        if job is None:
            raise unknown_job(self._settings.result_hours)
        return job

    async def result_paths(self, job: Job, name: str) -> list[Path]:
        paths = self._results.paths(job, name)
        if not all(path.is_file() for path in paths):
            raise ArtMancerError(
                "not_found", "The result of this job is not kept any more. Send the job again."
            )
        return paths

    def storage_problem(self) -> ArtMancerError | None:
        return self._store.problem()

    async def ready(self) -> None:
        """Wait until every ComfyUI accepts runs."""
        await asyncio.gather(*(runner.ready() for runner in self._runners()))

    def comfy_status(self, lane: LaneName) -> ComfyStatus:
        return self.lanes[lane].runner.status()

    def load(self, lane: LaneName) -> tuple[int, int]:
        return len(self.lanes[lane].queue), len(self.lanes[lane].submitted)

    async def free(self) -> int:
        return sum([await runner.free() for runner in self._runners()])

    def _runners(self) -> set[Runner]:
        return {lane.runner for lane in self.lanes.values()}

    def position(self, job: Job) -> int | None:
        unfinished = self._unfinished.get(job.id)
        return self.lanes[job.lane].position(unfinished) if unfinished else None

    async def follow(self, job_id: str, interval: float) -> AsyncIterator[Job]:
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
                    await within(changed.wait(), interval)
        finally:
            watchers.discard(changed)
            if not watchers:
                self._watchers.pop(job_id, None)

    async def wait(self, job: Job) -> Job:
        """Wait until a job has ended; one that exceeds its lane's timeout fails."""
        if job.ended:
            return job
        lane = self.lanes[job.lane]
        ended = self._waiters.setdefault(job.id, asyncio.Event())
        try:
            await within(ended.wait(), lane.timeout)
        except asyncio.TimeoutError:
            unfinished = self._get(job.id)
            if unfinished.storing:
                await ended.wait()
            else:
                self._fail(unfinished, job_timeout(lane.timeout))
                await lane.runner.cancel(job.id)
        return job

    async def cancel(self, job_id: str) -> bool:
        job = self._get(job_id)
        if job.ended:
            return False
        sent = job.id in self._sent
        job.state = "cancelled"
        self._end(job)
        if sent:
            await self.lanes[job.lane].runner.cancel(job.id)
        if job.id in self._unsaved:
            raise ArtMancerError(
                "storage_full",
                "The job is cancelled, but the disk did not take that. If the gateway restarts "
                "before there is room, cancel the job again.",
            )
        return True

    async def run(self) -> None:
        connections = [runner.connect() for runner in self._runners()]
        lanes = [self._serve(lane) for lane in self.lanes.values()]
        try:
            await asyncio.gather(
                self._watch(), self._keep_tidy(), self._webhooks.run(), *lanes, *connections
            )
        finally:
            for task in self._tasks:
                task.cancel()
            self._save_ends()
            self._see()
            self._store.close()

    async def _serve(self, lane: Lane) -> None:
        """Submit the jobs of a lane, one after the other, IN_FLIGHT at a time."""
        while True:
            while not lane.queue or len(lane.submitted) >= IN_FLIGHT:
                lane.changed.clear()
                await lane.changed.wait()
            await lane.runner.ready()
            if lane.queue:
                job = lane.queue.take()
                await asyncio.wait({self._start_task(job, self._submit(lane, job))})
                for waiting in lane.queue:  # each has moved up
                    self._notify(waiting)

    async def _submit(self, lane: Lane, job: LocalJob) -> None:
        """Submit a job to ComfyUI, unless it has it from before."""
        try:
            run = self._run_of(lane, job)
            if not (job.id in self._sent and await lane.runner.knows(run)):
                if job.ended:
                    return
                self._count_attempt(job)
                await lane.runner.submit(run)
        except RunLost:
            if job.ended:
                # ComfyUI may have it although the answer was lost.
                await lane.runner.cancel(job.id)
            else:
                lane.put(job)
            await asyncio.sleep(_RETRY_SECONDS)
            return
        except ArtMancerError as error:
            self._fail(job, error)
            return
        if job.ended:
            await lane.runner.cancel(job.id)
            return
        collecting = self._start_task(job, self._collect(lane, job, run))
        lane.submitted[job.id] = (job, collecting)
        collecting.add_done_callback(lambda _: lane.collected(job))

    def _run_of(self, lane: Lane, job: LocalJob) -> Run:
        images = {}
        for name in job.record.images:
            upload = job.record.inputs[name]
            path = self._uploads.find(upload)
            if path is None:
                raise ArtMancerError(
                    "not_found",
                    f"The image '{name}' of this job is not kept any more. Send the job again.",
                )
            images[upload] = path
        return Run(job.id, job.graph, images, job.record.results, lane.urgent)

    async def _collect(self, lane: Lane, job: LocalJob, run: Run) -> None:
        """Wait for a submitted job and store its results."""
        try:
            outputs = await lane.runner.outputs(run, lambda step: self._on_step(job, step))
            # From here on the disk is what takes time, not the job.
            job.storing, job.deadline = True, None
            outputs = await finished(job.record, run.images, outputs)
            written = await self._write_results(job, outputs)
            if job.record.context.get("upload"):
                # Outside of this task, so that a slow host holds up no other job.
                self._start_task(job, self._upload(job, written))
            elif not job.ended:
                job.finish(written)
                self._end(job)
        except RunLost:
            if not job.ended:
                logs.log_event(logger, "ComfyUI lost a job", logging.WARNING, job=job.id)
                self._queue_again(job)
                lane.put(job)
        except ArtMancerError as error:
            self._fail(job, error)

    async def _write_results(self, job: LocalJob, outputs: Outputs) -> dict[str, Any]:
        """Write a job's results; see ResultFolder.write. An edit takes minutes, so it is not thrown
        away because the disk is full for a moment.

        Raises
        ------
        ArtMancerError : storage_full; generation_failed where the folder cannot be written
        """
        end = time.monotonic() + _WRITE_RETRY_SECONDS
        while True:
            try:
                with disk_errors(self._results.folder):
                    return await asyncio.to_thread(
                        self._results.write, job.id, outputs.images, outputs.values
                    )
            except ArtMancerError:
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(_WATCH_SECONDS)

    async def _upload(self, job: LocalJob, written: dict[str, Any]) -> None:
        """Send a job's image to the URL of its request, and end the job. It is done even where the
        URL does not take the image, which its answer then holds.
        """
        stored = self._results.folder / job.id / written["image"]["pictures"][0]
        values = await upload_result(self._fetcher, job, stored, lambda: job.ended)
        written |= {name: {"value": value} for name, value in values.items()}
        if not job.ended:
            job.finish(written)
            self._end(job)

    def _start_task(self, job: LocalJob, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(partial(self._on_task_done, job))
        return task

    def _on_task_done(self, job: LocalJob, task: "asyncio.Task[None]") -> None:
        """Fail the job of a task that raised an unexpected error, so that it does not hang."""
        if not task.cancelled() and (error := task.exception()):
            logger.error("job %s", job.id, exc_info=error)
            self._fail(job, unexpected_error())

    def _count_attempt(self, job: LocalJob) -> None:
        """Prepare a job for its submission. One that ComfyUI lost while it ran is retried once.

        Raises
        ------
        ArtMancerError : generation_failed after the last attempt
        """
        if job.attempts >= MAX_ATTEMPTS:
            raise stopped_too_often()
        if job.attempts:
            logs.log_event(
                logger,
                "retrying a job that ComfyUI lost",
                logging.WARNING,
                job=job.id,
            )
        self._queue_again(job)
        job.progress, job.started, job.counted, job.deadline = 0.0, None, False, None
        job.storing = False
        self._sent.add(job.id)

    def _queue_again(self, job: LocalJob) -> None:
        if job.state != "queued":
            job.state, job.step = "queued", Step()
            self._save(job)
            self._notify(job)

    def _save(self, job: LocalJob) -> bool:
        """Store the state of a job; return False if the disk refuses it, and log why, once."""
        try:
            self._store.save(job, make_webhook(job, self._settings.public_url))
        except sqlite3.Error:
            if job.id not in self._unsaved:
                logger.exception("the state of job %s could not be stored", job.id)
            return False
        if job.ended:
            self._webhooks.look()
        return True

    def _on_step(self, job: LocalJob, step: Step) -> None:
        if job.ended:
            return
        starts = job.state == "queued"
        job.advance(step)
        if starts:
            job.attempts += not job.counted
            job.counted = True
            job.started = job.started or self._clock.now()
            self._save(job)  # refused or not, the job runs, and its end is stored again
        if job.deadline is None:
            job.deadline = time.monotonic() + self.lanes[job.lane].timeout
        self._notify(job)

    def _fail(self, job: LocalJob, error: ArtMancerError) -> None:
        if not job.ended:
            job.fail(error)
            self._end(job)

    def _end(self, job: LocalJob) -> None:
        """Store the end of a job and notify everybody who waits for it."""
        job.finished = self._clock.now()
        self._unfinished.pop(job.id, None)
        self._sent.discard(job.id)
        lane = self.lanes[job.lane]
        lane.drop(job)
        _, collecting = lane.submitted.get(job.id, (job, None))
        if collecting and collecting is not asyncio.current_task():
            collecting.cancel()
        if not self._save(job):
            self._unsaved[job.id] = job
        self._notify(job)
        if job.id in self._waiters:
            self._waiters.pop(job.id).set()
        metrics.job_ended(job)
        logs.log_job_ended(logger, job)
        if self._settings.debug and job.record.context.get("debug"):
            with suppress(OSError):
                self._write_debug_session(job)

    def _write_debug_session(self, job: LocalJob) -> None:
        record = job.record
        uploads = {
            name: path
            for name in record.images
            if (path := self._uploads.find(record.inputs[name]))
        }
        results = {name: self._results.paths(job, name) for name in job.outputs or {}}
        self._debug_sessions.write(job, uploads, results)

    def _notify(self, job: LocalJob) -> None:
        for watcher in self._watchers.get(job.id, ()):
            watcher.set()

    async def _watch(self) -> None:
        """Fail jobs that run, or wait for a ComfyUI that is down, longer than their lane's
        timeout; store the ends of jobs that the disk refused.
        """
        last_up = dict.fromkeys(self.lanes, time.monotonic())
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            self._save_ends()
            now = time.monotonic()
            last_up |= {name: now for name, lane in self.lanes.items() if lane.runner.status().up}
            for job in list(self._unfinished.values()):
                lane = self.lanes[job.lane]
                if job.storing:
                    continue
                if job.deadline and now > job.deadline:
                    self._fail(job, job_timeout(lane.timeout))
                    await lane.runner.cancel(job.id)
                elif now - max(job.arrived, last_up[job.lane]) > lane.timeout:
                    reason = str(lane.runner.status().reason)
                    self._fail(job, ArtMancerError("comfyui_unavailable", reason))

    def _save_ends(self) -> None:
        """Store the ends of jobs that the disk refused before."""
        while self._unsaved:
            job_id, job = next(iter(self._unsaved.items()))
            if not self._save(job):
                return
            del self._unsaved[job_id]

    def _see(self) -> None:
        """Store that the gateway is running now."""
        with _disk_errors_logged("the time could not be stored"):
            self._store.see(self._clock.now())

    async def _keep_tidy(self) -> None:
        """Remove results, uploads and files at the ComfyUIs that are old, or too many."""
        settings = self._settings
        max_age, max_bytes = settings.picture_hours * 3600, settings.picture_gigabytes * 2**30
        while True:
            # On a full disk, removing files works, and makes room for the database.
            with _disk_errors_logged("not all old uploads could be removed"):
                await asyncio.to_thread(
                    self._uploads.tidy, self._needed_uploads(), max_age, max_bytes
                )
            with _disk_errors_logged("not all old results could be removed"):
                before = self._clock.now() - settings.result_hours * 3600
                await asyncio.to_thread(self._results.remove, self._store.ended_before(before))
                self._store.forget(before)
                self._store.forget_keys(self._clock.now() - CLAIM_SECONDS)
            self._see()
            for runner in self._runners():
                await runner.tidy(self._needed_uploads(), max_age, int(max_bytes))
            await asyncio.sleep(_TIDY_SECONDS)

    def _needed_uploads(self) -> set[str]:
        """Return the names of the images that unfinished jobs use."""
        return {
            job.record.inputs[name]
            for job in self._unfinished.values()
            for name in job.record.images
        }


@contextmanager
def _disk_errors_logged(message: str) -> Iterator[None]:
    """Log an error of the disk and go on: it may be full for a moment."""
    try:
        yield
    except (OSError, sqlite3.Error):
        logger.exception(message)
