"""Jobs as calls of Modal's: Modal is the queue, and whichever container is asked finds
a job's state.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from shutil import rmtree
from typing import Any

from ..errors import ArtMancerError
from ..gateway import logs, metrics
from ..gateway.contract import LaneName
from ..gateway.jobs import HEAVY, LIGHT, RETRY_AFTER, Job, too_long
from ..gateway.runner import Host, NodeType, Step
from ..gateway.settings import Settings
from ..gateway.workflows import Workflow
from .pictures import SharedPictures
from .remote import Failed, Remote, TookTooLong, Unfinished

logger = logging.getLogger(__name__)

PATIENCE = 145.0
"""Seconds to wait for a job in one request: Modal ends a web request after 150."""

_POLL, _OBSERVE_EVERY, _TIDY_EVERY, _ALIVE = 0.5, 5.0, 300.0, 90.0
_KNOWN = 200
_RECORDED = ("workflow", "lane", "client", "inputs", "pictures", "asked", "about", "created")


def order(job: Job, session: bool = False) -> dict[str, Any]:
    """What a worker is told of a job, and whether to write a debug session;
    see worker.Worker.run.
    """
    record = {name: getattr(job, name) for name in _RECORDED}
    return {"id": job.id, "graph": job.graph, "job": record, "session": session}


class ModalJobs:
    """Jobs whose records every container shares, and whose state is their call's.

    Parameters
    ----------
    settings : the limits, and a folder for results that were fetched
    known : what is known of a lane's workers before the first one has told of itself
    """

    lanes: tuple[LaneName, ...] = (HEAVY, LIGHT)

    def __init__(
        self,
        settings: Settings,
        pictures: SharedPictures,
        remote: Remote,
        known: Mapping[LaneName, Host],
    ) -> None:
        self._settings = settings
        self._pictures = pictures
        self._remote = remote
        self._hosts = dict(known)
        self._alive: dict[LaneName, bool] = dict.fromkeys(self.lanes, False)
        self._loads: dict[LaneName, tuple[int, int]] = dict.fromkeys(self.lanes, (0, 0))
        self._open: dict[str, set[str]] = {}
        self._calls: OrderedDict[str, str] = OrderedDict()
        self._ended: OrderedDict[str, Job] = OrderedDict()
        self._results = settings.data / "results"

    async def run(self) -> None:
        tidied = 0.0
        while True:
            for lane in self.lanes:
                self._loads[lane] = await self._remote.load(lane)
                await self._observe(lane)
            if time.time() - tidied > _TIDY_EVERY:
                tidied = time.time()
                hours, gigabytes = self._settings.picture_hours, self._settings.picture_gigabytes
                await asyncio.to_thread(self._pictures.tidy, (), hours * 3600, gigabytes * 2**30)
            await asyncio.sleep(_OBSERVE_EVERY)

    async def _observe(self, lane: LaneName) -> None:
        told = await self._remote.get(f"host:{lane}")
        if told is None:
            return
        nodes = await self._remote.get(f"nodes:{lane}") or {}
        self._alive[lane] = time.time() - told["at"] < _ALIVE
        about = {**self._hosts[lane].about, **told["about"]}
        if not self._alive[lane] and about.get("pack"):
            about["pack"] = {**about["pack"], "model_loaded": False}
        self._hosts[lane] = Host(
            True, None, about, {name: NodeType(*kind) for name, kind in nodes.items()}
        )

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
        waiting, _ = self._loads[lane]
        if waiting >= self._settings.max_waiting:
            raise ArtMancerError(
                "queue_full", f"{waiting} jobs are waiting. Try again in {RETRY_AFTER} s."
            )
        if await self._unfinished_of(client) >= self._settings.max_per_client:
            raise ArtMancerError(
                "queue_full",
                f"{self._settings.max_per_client} of your jobs are waiting. Try again in "
                f"{RETRY_AFTER} s.",
            )
        if job_id and await self._remote.get(f"job:{job_id}"):
            raise ArtMancerError(
                "invalid_request",
                "The request_id was used before; expected a new UUID. Choose one.",
            )
        job = Job.new(workflow, lane, inputs, client, include, about, job_id)
        told = order(job, session=bool(self._settings.debug and job.about.get("debug")))
        self._calls[job.id] = await self._remote.spawn(lane, told)
        await self._remote.put(f"job:{job.id}", {**told["job"], "call": self._calls[job.id]})
        self._open.setdefault(client, set()).add(job.id)
        logs.tell(
            logger,
            "job accepted",
            job=job.id,
            workflow=job.workflow,
            lane=lane,
            call=self._calls[job.id],
        )
        return job

    async def _unfinished_of(self, client: str) -> int:
        """Of the jobs that were accepted here; asked in earnest once there may be too many."""
        known = self._open.get(client, set())
        if len(known) >= self._settings.max_per_client:
            for job_id in list(known):
                await self.get(job_id)
        return len(known)

    async def get(self, job_id: str) -> Job:
        if job_id in self._ended:
            return self._ended[job_id]
        record = await self._remote.get(f"job:{job_id}")
        if record is None or time.time() - record["created"] > self._settings.result_hours * 3600:
            raise ArtMancerError(
                "not_found", "There is no job of this id. Jobs are kept for a day."
            )
        self._calls[job_id] = record["call"]
        job = Job(id=job_id, graph={}, **{name: record[name] for name in _RECORDED})
        return await self._look(job, 0)

    async def _look(self, job: Job, patience: float) -> Job:
        """Bring a job up to date; wait for its end for so many seconds."""
        outcome, cancelled, step = await asyncio.gather(
            self._outcome(job, patience),
            self._remote.get(f"cancelled:{job.id}"),
            self._remote.get(f"step:{job.id}"),
        )
        if cancelled:
            job.state, job.finished = "cancelled", cancelled
        elif outcome is not None:
            job.started, job.finished = outcome["started"], outcome["finished"]
            job.error = outcome.get("error")
            if job.error:
                job.state = "error"
            else:
                job.outputs = await asyncio.to_thread(self._write, job, outcome)
                job.state, job.progress = "done", 1.0
        elif step:
            job.started, job.step = step["started"], Step(**step["step"])
            job.state = "loading_pipeline" if job.step.loading else "processing"
            if job.step.total and not job.step.loading:
                job.progress = round(0.95 * job.step.done / job.step.total, 4)
        if job.ended:
            self._end(job)
        return job

    async def _outcome(self, job: Job, patience: float) -> dict[str, Any] | None:
        """What became of a job's call; None: nothing yet."""
        now = time.time()
        try:
            return await self._remote.result(self._calls[job.id], patience)
        except Unfinished:
            return None
        except TookTooLong:
            seconds = (
                self._settings.heavy_timeout if job.lane == HEAVY else self._settings.light_timeout
            )
            error = too_long(seconds)
        except Failed as failure:
            if await self._remote.get(f"cancelled:{job.id}"):
                return None
            logs.tell(logger, "a call failed", logging.ERROR, job=job.id, reason=str(failure))
            error = ArtMancerError(
                "generation_failed", "Its worker stopped while the job ran. Send it again."
            )
        failed = {"error_type": error.code, "detail": str(error), "details": error.details}
        return {"started": job.started or job.created, "finished": now, "error": failed}

    def _write(self, job: Job, outcome: Mapping[str, Any]) -> dict[str, Any]:
        """Keep what came with a call's answer; what did not come is fetched when it
        is asked for.
        """
        folder = self._results / job.id
        folder.mkdir(parents=True, exist_ok=True)
        outputs: dict[str, Any] = {
            name: {"value": value} for name, value in outcome["values"].items()
        }
        for name, pictures in outcome["pictures"].items():
            files = [f"{name}-{index}.png" for index in range(len(pictures))]
            outputs[name] = {"pictures": files}
            for file, data in zip(files, pictures, strict=True):
                if data is not None:
                    (folder / file).write_bytes(data)
        return outputs

    def _end(self, job: Job) -> None:
        self._ended[job.id] = job
        self._calls.pop(job.id, None)
        if len(self._ended) > _KNOWN:
            oldest, _ = self._ended.popitem(last=False)
            rmtree(self._results / oldest, ignore_errors=True)
        mine = self._open.get(job.client, set())
        if job.id in mine:
            mine.discard(job.id)
            metrics.ended(job)
            reason = job.error["error_type"] if job.error else None
            logs.tell(
                logger,
                "job ended",
                job=job.id,
                workflow=job.workflow,
                state=job.state,
                error=reason,
            )

    async def pictures(self, job: Job, name: str) -> list[Path]:
        files = ((job.outputs or {}).get(name) or {}).get("pictures", [])
        paths = [self._results / job.id / file for file in files]
        for path in paths:
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(await self._remote.fetch(f"{job.id}/{path.name}"))
        return paths

    async def follow(self, job_id: str, every: float) -> AsyncIterator[Job]:
        job, shown, told = await self.get(job_id), None, 0.0
        while True:
            now = time.monotonic()
            if (job.state, job.step, job.progress) != shown or now - told >= every:
                shown, told = (job.state, job.step, job.progress), now
                yield job
            if job.ended:
                return
            await asyncio.sleep(_POLL)
            job = await self._look(job, 0)

    async def wait(self, job: Job) -> Job:
        end = time.monotonic() + PATIENCE
        while not job.ended:
            if time.monotonic() > end:
                raise ArtMancerError(
                    "timeout",
                    f"It is not finished after {PATIENCE:g} s, the longest one can wait for here. "
                    f"It goes on: ask for /api/jobs/{job.id}/result.",
                    {"task_id": job.id},
                )
            job = await self._look(job, max(0.0, min(10.0, end - time.monotonic())))
        return job

    async def cancel(self, job_id: str) -> bool:
        job = await self.get(job_id)
        if job.ended:
            return False
        await self._remote.put(f"cancelled:{job_id}", time.time())
        await self._remote.cancel(self._calls[job_id])
        await self._look(job, 0)
        return True

    def position(self, job: Job) -> int | None:
        return None

    def host(self, lane: LaneName) -> Host:
        return self._hosts[lane]

    def load(self, lane: LaneName) -> tuple[int, int]:
        return self._loads[lane]

    async def free(self) -> int:
        """Of workers that run: none is started for it."""
        return sum([await self._remote.free(lane) for lane in self.lanes if self._alive[lane]])
