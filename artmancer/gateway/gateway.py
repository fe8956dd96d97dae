"""What the routes work with."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pybase64

from ..errors import ArtMancerError
from .contract import LaneName
from .jobs import HEAVY, LIGHT, Job, Jobs
from .local_jobs import LocalJobs
from .pictures import Pictures
from .runner import Runner
from .sessions import Sessions
from .settings import Settings
from .workflows import Folder, Workflow, check


@dataclass
class Gateway:
    """The gateway's parts."""

    settings: Settings
    workflows: Folder
    pictures: Pictures
    sessions: Sessions
    jobs: Jobs

    def lane_of(self, workflow: Workflow) -> LaneName:
        return HEAVY if workflow.heavy else LIGHT

    def serves(self, lane: LaneName) -> bool:
        """Whether this deployment's role has the routes of a lane."""
        return self.settings.role in ("all", lane)

    def unservable(self, workflow: Workflow) -> str | None:
        """Why a workflow is not served here; None: it is."""
        lane = self.lane_of(workflow)
        if not self.serves(lane):
            return f"it belongs to the {lane} deployment. Ask there."
        return check(workflow, self.jobs.host(lane).nodes)

    async def keep(self, field: str, text: str | None) -> str | None:
        """Store a picture that came as base64; its name. A mistake in it names the field."""
        if text is None:
            return None
        return await self.pictures.keep_base64(text, field)

    async def submit(
        self,
        name: str,
        inputs: dict[str, Any],
        *,
        client: str,
        include: list[str] | None = None,
        about: dict[str, Any] | None = None,
        job_id: str | None = None,
    ) -> Job:
        """Queue a run of a workflow; see Jobs.submit.
        Inputs that are None are left at their defaults.
        """
        workflow = self.workflows.get(name)
        lane = self.lane_of(workflow)
        if reason := check(workflow, self.jobs.host(lane).nodes):
            raise ArtMancerError(
                "generation_failed", f"The workflow '{name}' is not served: {reason}"
            )
        given = {key: value for key, value in inputs.items() if value is not None}
        if missing := given.keys() - workflow.inputs.keys():
            raise ArtMancerError(
                "generation_failed",
                f"The workflow '{name}' has no input '{min(missing)}'. Add one.",
            )
        return await self.jobs.submit(
            workflow,
            lane,
            given,
            client=client,
            include=include or [],
            about=about or {},
            job_id=job_id,
        )

    async def finish(self, job: Job) -> Job:
        """Wait for a job.

        Raises
        ------
        ArtMancerError : what it failed with
        """
        job = await self.jobs.wait(job)
        check_done(job)
        return job

    async def base64(self, job: Job, name: str) -> list[str]:
        """The pictures of a result."""
        return [await encoded(path) for path in await self.jobs.pictures(job, name)]

    def value(self, job: Job, name: str) -> Any:
        return ((job.outputs or {}).get(name) or {}).get("value")


def local_gateway(settings: Settings, runners: Mapping[str, Runner] | None = None) -> Gateway:
    """A gateway whose jobs wait on this machine; `runners` as LocalJobs takes them."""
    settings.data.mkdir(parents=True, exist_ok=True)
    workflows, pictures = Folder(settings.workflows), Pictures(settings.data / "pictures")
    sessions = Sessions(settings.data / "debug")
    jobs = LocalJobs(settings, pictures, sessions, runners)
    return Gateway(settings, workflows, pictures, sessions, jobs)


def check_done(job: Job) -> None:
    """Raises ArtMancerError: what the job failed with; not_finished where it has no result."""
    if job.error:
        raise ArtMancerError(job.error["error_type"], job.error["detail"], job.error["details"])
    if job.state == "cancelled":
        raise ArtMancerError(
            "not_finished", "The job was cancelled, and has no result. Send it again."
        )
    if job.state != "done":
        raise ArtMancerError(
            "not_finished", f"The job is {job.state}, expected done. Ask for its status, and wait."
        )


async def encoded(path: Path) -> str:
    """A file as base64."""
    return pybase64.b64encode_as_string(await asyncio.to_thread(path.read_bytes))
