"""Jobs as Modal function calls: Modal is the queue, and every container can read a job's state."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ArtMancerError
from ..gateway import logs, metrics
from ..gateway.jobs import (
    CLAIM_SECONDS,
    HEAVY,
    LIGHT,
    Claim,
    Job,
    JobRecord,
    LaneName,
    job_timeout,
    unknown_job,
)
from ..gateway.limits import check_claim, check_new_id, check_queue
from ..gateway.results import RESULTS, ResultFolder
from ..gateway.runner import ComfyStatus, NodeType, Step
from ..gateway.settings import Settings
from ..options import JOB_TIMEOUTS
from . import calls
from .remote import CallFailed, CallTimeout, Remote, RetryingRemote, Unavailable, Unfinished
from .shared import SharedUploadStore

logger = logging.getLogger(__name__)

WAIT_SECONDS = 145.0
"""Longest wait for a job in one request: Modal ends a web request after 150 s."""

_POLL_SECONDS = 0.5
"""Seconds between two requests for the state of a job that a client follows."""

_OBSERVE_SECONDS = 5.0
"""Seconds between two requests for the workers' state."""

_SILENCE_SECONDS = 30.0
"""Seconds without an answer from Modal until the gateway is degraded."""

_TIDY_SECONDS = 300.0
"""Seconds between two removals of old files."""

_ALIVE_SECONDS = 90.0
"""Seconds after a worker's last report until it counts as stopped."""

_CACHED_JOBS = 200
"""Number of ended jobs that a container keeps in memory, with their result files."""


def make_order(record: JobRecord, graph: Mapping[str, Any], debug_session: bool) -> dict[str, Any]:
    """Make the argument of a worker's call; see worker.Worker.run.

    Parameters
    ----------
    graph : the workflow's graph with the inputs in it
    debug_session : True if the worker writes a debug session
    """
    return {"record": record.as_dict(), "graph": dict(graph), "debug_session": debug_session}


class ModalJobs:
    """The `Jobs` of a deployment. All containers share the records; the state of a job is the state
    of its call.

    Parameters
    ----------
    settings : the limits, and a folder for downloaded results
    expected : state of each lane's ComfyUI until a worker reports its own
    """

    lanes: tuple[LaneName, ...] = (HEAVY, LIGHT)

    def __init__(
        self,
        settings: Settings,
        uploads: SharedUploadStore,
        remote: Remote,
        expected: Mapping[LaneName, ComfyStatus],
    ) -> None:
        self._settings = settings
        self._uploads = uploads
        self._remote = RetryingRemote(remote)
        self._answered = time.monotonic()
        self._statuses = dict(expected)
        self._alive: dict[LaneName, bool] = dict.fromkeys(self.lanes, False)
        self._loads: dict[LaneName, tuple[int, int]] = dict.fromkeys(self.lanes, (0, 0))
        # Job ids by client.
        self._unfinished: dict[str, set[str]] = {}
        # Call ids by job id.
        self._calls: OrderedDict[str, str] = OrderedDict()
        # Ids of jobs to cancel as soon as Modal answers.
        self._to_cancel: set[str] = set()
        self._ended: OrderedDict[str, Job] = OrderedDict()
        self._results = ResultFolder(settings.data / RESULTS)

    async def run(self) -> None:
        tidied = -_TIDY_SECONDS
        while True:
            try:
                await self._watch()
                if time.monotonic() - tidied > _TIDY_SECONDS:
                    tidied = time.monotonic()
                    max_age = self._settings.picture_hours * 3600
                    max_bytes = self._settings.picture_gigabytes * 2**30
                    await asyncio.to_thread(self._uploads.tidy, (), max_age, max_bytes)
            # The gateway stops where this task stops, so no failed pass may end it.
            except Unavailable:
                pass  # it is logged
            except Exception:
                logger.exception("the state of the workers could not be read")
            await asyncio.sleep(_OBSERVE_SECONDS)

    async def _watch(self) -> None:
        """Cancel what could not be cancelled before, and read the state of the workers."""
        # First, so that no report of a worker keeps a job on a GPU.
        for job_id in list(self._to_cancel):
            with suppress(ArtMancerError):  # it is not known any more
                await self.cancel(job_id)
            self._to_cancel.discard(job_id)
        for lane in self.lanes:
            self._loads[lane] = await self._remote.load(lane)
            self._answered = time.monotonic()
            await self._observe(lane)

    async def _observe(self, lane: LaneName) -> None:
        """Read the last report of a lane's workers; see worker.Worker."""
        report = await self._remote.get(f"status:{lane}")
        if report is None:
            return
        nodes = await self._remote.get(f"node_types:{lane}") or {}
        self._alive[lane] = time.time() - report["at"] < _ALIVE_SECONDS
        info = {**self._statuses[lane].info, **report["info"]}
        if not self._alive[lane] and info.get("pack"):
            info["pack"] = {**info["pack"], "model_loaded": False}
        self._statuses[lane] = ComfyStatus(
            True, None, info, {name: NodeType.from_data(data) for name, data in nodes.items()}
        )

    async def submit(
        self, record: JobRecord, graph: dict[str, Any], claim: Claim | None = None
    ) -> Job:
        if claim and (earlier := await self.claimed(claim)):
            return earlier
        waiting, _ = self._loads[record.lane]
        from_client = await self._unfinished_count(record.client)
        check_queue(waiting, from_client, self._settings)
        if claim:
            record = replace(record, id=await self._claim(claim, record))
        entry = {"record": record.as_dict()}
        if not await self._remote.put_new(f"job:{record.id}", entry):
            # Either the id was used before, or an earlier try stored this entry.
            is_used = await self._remote.get(f"job:{record.id}") != entry
            if claim and is_used:
                # The same request is being accepted in another container.
                return await self.get(record.id)
            check_new_id(is_used)
        debug_session = bool(self._settings.debug and record.context.get("debug"))
        call = await self._start(record, make_order(record, graph, debug_session))
        self._unfinished.setdefault(record.client, set()).add(record.id)
        logs.log_event(
            logger,
            "job accepted",
            job=record.id,
            workflow=record.workflow,
            lane=record.lane,
            call=call,
        )
        return Job(record=record)

    async def claimed(self, claim: Claim) -> Job | None:
        known = await self._remote.get(f"key:{claim.key}")
        if known is None or time.time() - known["created"] > CLAIM_SECONDS:
            return None
        check_claim(claim, known["fingerprint"])
        # A gateway that stopped before it stored the job leaves it to the next request.
        if await self._remote.get(f"job:{known['job']}") is None:
            return None
        return await self.get(known["job"])

    async def _claim(self, claim: Claim, record: JobRecord) -> str:
        """Store a claim, and return the id of the job that answers it: the record's, or that of an
        earlier request.
        """
        key = f"key:{claim.key}"
        entry = {"job": record.id, "fingerprint": claim.fingerprint, "created": record.created}
        if await self._remote.put_new(key, entry):
            return record.id
        known = await self._remote.get(key)
        if record.created - known["created"] > CLAIM_SECONDS:
            await self._remote.put(key, entry)
            return record.id
        check_claim(claim, known["fingerprint"])
        return str(known["job"])

    async def _start(self, record: JobRecord, order: Mapping[str, Any]) -> str:
        """Spawn a call for a stored job, and store which it is; see calls.py."""
        try:
            if record.context.get("webhook"):
                # First: it also tells of a job that this gateway does not start.
                await self._remote.announce(record.id)
            call = await self._remote.spawn(record.lane, order)
            stored = await calls.settle_call(self._remote, record.id, call)
        except Unavailable:
            # Both may have had their effect.
            self._to_cancel.add(record.id)
            raise
        if stored != call:
            # Modal did not answer for so long that the worker gave up.
            raise calls.job_not_started()
        self._calls[record.id] = call
        return call

    async def _unfinished_count(self, client: str) -> int:
        """Count the unfinished jobs of a client that this container accepted. Their states are
        requested from Modal only at the limit.
        """
        job_ids = self._unfinished.get(client, set())
        if len(job_ids) >= self._settings.max_per_client:
            for job_id in list(job_ids):
                await self.get(job_id)
        return len(job_ids)

    async def get(self, job_id: str) -> Job:
        if job_id in self._ended:
            return self._ended[job_id]
        entry, call = await asyncio.gather(
            self._remote.get(f"job:{job_id}"), self._remote.get(f"call:{job_id}")
        )
        hours = self._settings.result_hours
        if entry is None or time.time() - entry["record"]["created"] > hours * 3600:
            raise unknown_job(hours)
        # Up to version 0.1.0 the entry held the call.
        if call := call or entry.get("call"):
            self._calls[job_id] = call
        job = Job(record=JobRecord.from_dict(entry["record"]))
        return await self._update(job, 0)

    async def _update(self, job: Job, timeout: float) -> Job:
        """Update the state of a job; wait up to `timeout` seconds for its end."""
        outcome, cancelled_at, step = await asyncio.gather(
            self._outcome(job, timeout),
            self._remote.get(f"cancelled:{job.id}"),
            self._remote.get(f"step:{job.id}"),
        )
        if cancelled_at:
            job.state = "cancelled"
            job.finished = cancelled_at
        elif outcome is not None:
            job.started = outcome["started"]
            job.finished = outcome["finished"]
            if outcome.get("error"):
                job.fail(ArtMancerError.from_dict(outcome["error"]))
            else:
                outputs = await asyncio.to_thread(
                    self._results.write, job.id, outcome["images"], outcome["values"]
                )
                job.finish(outputs)
        elif step:
            job.started = step["started"]
            job.advance(Step(**step["step"]))
        if job.ended:
            self._on_ended(job)
        return job

    async def _outcome(self, job: Job, timeout: float) -> dict[str, Any] | None:
        """Return the result of a job's call as from worker.Worker.run; None: it has none yet."""
        now = time.time()
        try:
            call = await self._call(job)
            if call is None:
                await asyncio.sleep(min(timeout, _POLL_SECONDS))
                return None
            if call != calls.GIVEN_UP:
                return await self._remote.result(call, timeout)
            error = calls.job_not_started()
        except Unfinished:
            return None
        except CallTimeout:
            # Modal measures it, so the gateway's settings do not apply.
            error = job_timeout(JOB_TIMEOUTS[job.lane])
        except CallFailed as failure:
            if await self._remote.get(f"cancelled:{job.id}"):
                return None
            logs.log_event(logger, "a call failed", logging.ERROR, job=job.id, reason=str(failure))
            error = ArtMancerError(
                "generation_failed", "The worker stopped while this job ran. Send it again."
            )
        started = job.started or job.record.created
        return {"started": started, "finished": now, "error": error.as_dict()}

    async def _call(self, job: Job) -> str | None:
        """Return the id of a job's call, or calls.GIVEN_UP; None: it may still be stored."""
        call = self._calls.get(job.id) or await self._remote.get(f"call:{job.id}")
        if call is None and time.time() - job.record.created > calls.STORE_SECONDS:
            call = await calls.settle_call(self._remote, job.id, calls.GIVEN_UP)
        if call is not None:
            self._calls[job.id] = call
        return call

    def _on_ended(self, job: Job) -> None:
        self._ended[job.id] = job
        self._calls.pop(job.id, None)
        if len(self._ended) > _CACHED_JOBS:
            oldest, _ = self._ended.popitem(last=False)
            self._results.remove([oldest])
        unfinished = self._unfinished.get(job.record.client, set())
        if job.id in unfinished:
            unfinished.discard(job.id)
            metrics.job_ended(job)
            logs.log_job_ended(logger, job)

    async def result_paths(self, job: Job, name: str) -> list[Path]:
        paths = self._results.paths(job, name)
        for path in paths:
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                data = await self._fetch(f"{job.id}/{path.name}")
                # Another request may have fetched it meanwhile, and be sending it.
                if not path.is_file():
                    path.write_bytes(data)
        return paths

    async def _fetch(self, name: str) -> bytes:
        try:
            return await self._remote.fetch(name)
        except FileNotFoundError:
            raise ArtMancerError(
                "not_found", "The result is not kept any more. Send the job again."
            ) from None

    async def follow(self, job_id: str, interval: float) -> AsyncIterator[Job]:
        job = await self.get(job_id)
        last = None
        last_at = 0.0
        while True:
            now = time.monotonic()
            state = (job.state, job.step, job.progress)
            if state != last or now - last_at >= interval:
                last = state
                last_at = now
                yield job
            if job.ended:
                return
            await asyncio.sleep(_POLL_SECONDS)
            # Until Modal answers again, the client gets the last known state.
            with suppress(Unavailable):
                job = await self._update(job, 0)

    async def wait(self, job: Job) -> Job:
        end = time.monotonic() + WAIT_SECONDS
        while not job.ended:
            if time.monotonic() > end:
                raise ArtMancerError(
                    "timeout",
                    f"The job is not finished after {WAIT_SECONDS:g} s, the longest wait of one "
                    "request here. It continues. Read its result later at "
                    f"/api/jobs/{job.id}/result.",
                    {"task_id": job.id},
                )
            with suppress(Unavailable):
                job = await self._update(job, max(0.0, min(10.0, end - time.monotonic())))
        return job

    async def cancel(self, job_id: str) -> bool:
        job = await self.get(job_id)
        if job.ended:
            return False
        try:
            await self._remote.put(f"cancelled:{job_id}", time.time())
            if call := self._calls.get(job_id):
                await self._remote.cancel(call)
        except Unavailable:
            self._to_cancel.add(job_id)
            raise
        with suppress(Unavailable):
            await self._update(job, 0)
        return True

    def position(self, job: Job) -> int | None:
        return None

    def comfy_status(self, lane: LaneName) -> ComfyStatus:
        silence = time.monotonic() - self._answered
        if silence < _SILENCE_SECONDS:
            return self._statuses[lane]
        reason = f"Modal has not answered for {silence:.0f} s. Try again in a moment."
        return replace(self._statuses[lane], up=False, reason=reason)

    def storage_problem(self) -> ArtMancerError | None:
        return None

    def load(self, lane: LaneName) -> tuple[int, int]:
        return self._loads[lane]

    async def free(self) -> int:
        """Free the memory of the running workers; start none for it."""
        return sum([await self._remote.free(lane) for lane in self.lanes if self._alive[lane]])
