"""The gateway's service layer: the parts behind the routes, and what routes do with them."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pybase64

from .. import images
from ..errors import ArtMancerError
from .debug_sessions import DebugSessions
from .disk import disk_problem, make_folder
from .fetch import Fetcher
from .image_field import ImageUrl
from .jobs import HEAVY, LIGHT, Claim, Job, JobRecord, Jobs, LaneName, check_done
from .local_jobs import LocalJobs
from .request_errors import invalid
from .results import RESULTS
from .runner import ComfyStatus, NodeType, Runner
from .settings import Settings
from .upload_store import UploadStore
from .workflow_safety import unsafe_reason
from .workflow_validity import invalid_reason
from .workflows import Workflow, WorkflowFolder

logger = logging.getLogger(__name__)

DECODED_AT_A_TIME = 2
"""Photos that the gateway itself decodes at a time: each takes up to a gigabyte."""


@dataclass(frozen=True)
class Sender:
    """Who sent a request.

    Attributes
    ----------
    client : stands for the client in the queue and its limits
    claim : the request's Idempotency-Key
    """

    client: str
    claim: Claim | None = None


@dataclass
class Gateway:
    """The gateway's parts.

    Attributes
    ----------
    workflows : graphs that are served
    uploads : images that were sent
    fetcher : fetches images that came as URLs
    """

    settings: Settings
    workflows: WorkflowFolder
    uploads: UploadStore
    debug_sessions: DebugSessions
    jobs: Jobs
    fetcher: Fetcher
    _problems: dict[str, tuple[Workflow, Mapping[str, NodeType], str | None]] = field(
        default_factory=dict, repr=False
    )
    _decoding: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(DECODED_AT_A_TIME), repr=False
    )

    def lane_of(self, workflow: Workflow) -> LaneName:
        """Return the lane that a workflow's jobs wait in."""
        return HEAVY if workflow.heavy else LIGHT

    def serves(self, lane: LaneName) -> bool:
        """Tell whether this deployment's role has the routes of a lane."""
        return self.settings.role in ("all", lane)

    def refusal_reason(self, workflow: Workflow) -> str | None:
        """Return why a workflow is not served here; None: it is."""
        lane = self.lane_of(workflow)
        if not self.serves(lane):
            return f"it belongs to the {lane} deployment. Send the request there."
        return self._problem(workflow, lane)

    def _problem(self, workflow: Workflow, lane: LaneName) -> str | None:
        """Return why the ComfyUI of a lane cannot or must not run a workflow; None: it may."""
        nodes = self.jobs.comfy_status(lane).nodes
        known = self._problems.get(workflow.name)
        if known is None or known[0] is not workflow or known[1] is not nodes:
            # The classes are not known until the ComfyUI has answered.
            reason = invalid_reason(workflow.graph, nodes) if nodes else None
            if workflow.name not in self.settings.trusted_workflows:
                reason = reason or unsafe_reason(workflow, nodes)
            known = self._problems[workflow.name] = workflow, nodes, reason
        return known[2]

    def _check_model_sets(
        self, workflow: Workflow, values: Mapping[str, Any], lane: LaneName
    ) -> None:
        """Refuse the name of a model set that the ComfyUI of a lane does not have.

        Raises
        ------
        ArtMancerError : invalid_request
        """
        pack = self.jobs.comfy_status(lane).info.get("pack") or {}
        if "model_sets" not in pack:
            # The ComfyUI has not been started yet. It checks the name too.
            return
        sets = [entry["name"] for entry in pack["model_sets"]]
        for name, value in values.items():
            endpoint_input = workflow.inputs.get(name)
            if endpoint_input is None or not endpoint_input.takes_model_sets:
                continue
            expected = [*endpoint_input.choices, *sets]
            if value not in expected:
                raise invalid(name, f"expected one of {', '.join(expected)}", f"'{value}'")

    def storage_problem(self) -> str | None:
        """Return why images, jobs and results cannot be stored; None: they can."""
        data = self.settings.data
        folders = (data, *(path for path in (self.uploads.folder, data / RESULTS) if path.exists()))
        problems = (*map(disk_problem, folders), self.jobs.storage_problem())
        return next((str(problem) for problem in problems if problem), None)

    async def keep(self, field: str, image: str | ImageUrl | None) -> str | None:
        """Store an image that came as base64 or as a URL, and return its name; None stays None.

        Parameters
        ----------
        field : what a message calls the image
        """
        if image is None:
            return None
        if isinstance(image, ImageUrl):
            return await self.uploads.keep(await self.fetcher.get(image.url, field), field)
        return await self.uploads.keep_base64(image, field)

    async def photo_header(self, name: str) -> images.Header:
        """Return the header of a stored photo.

        Raises
        ------
        ArtMancerError : invalid_image where it cannot be edited
        """
        path = await self.uploads.path(name)
        data = await asyncio.to_thread(path.read_bytes)
        return await asyncio.to_thread(images.read_header, data, name="the photo")

    async def match_reference(self, reference: str, profile: bytes | None) -> str:
        """Return the name of a stored reference in a photo's color profile.

        Parameters
        ----------
        reference : its name as it came
        """
        path = await self.uploads.path(reference)
        data = await asyncio.to_thread(path.read_bytes)
        async with self._decoding:
            matched = await asyncio.to_thread(images.match_reference, profile, data)
        return reference if matched is None else await self.uploads.keep(matched, "reference_image")

    async def preview(self, photo: str) -> bytes:
        """Return a stored photo as a JPEG; see images.preview."""
        path = await self.uploads.path(photo)
        async with self._decoding:
            return await asyncio.to_thread(images.preview, path)

    def check_delivery(self, field: str, url: str | None) -> None:
        """Refuse a URL that nothing can be sent to; None is none.

        Raises
        ------
        ArtMancerError : invalid_request
        """
        if url is None:
            return
        self.fetcher.check(url, field)
        if field == "webhook_url" and self.settings.webhook_secret is None:
            raise invalid(field, "expected none: ARTMANCER_WEBHOOK_SECRET is not set", "a URL")

    async def claimed(self, sender: Sender) -> Job | None:
        """Return the job that the same request made before; see Jobs.claimed."""
        return await self.jobs.claimed(sender.claim) if sender.claim else None

    async def submit(
        self,
        name: str,
        inputs: dict[str, Any],
        *,
        sender: Sender,
        include: list[str] | None = None,
        context: dict[str, Any] | None = None,
        job_id: str | None = None,
        bits: int = 8,
    ) -> Job:
        """Submit a run of a workflow; see JobRecord.create and Jobs.submit.

        Parameters
        ----------
        inputs : by name; None keeps the workflow's default
        bits : of a channel of the results that are images
        """
        workflow = self.workflows.get(name)
        lane = self.lane_of(workflow)
        if reason := self._problem(workflow, lane):
            raise ArtMancerError(
                "generation_failed", f"The workflow '{name}' is not served: {reason}"
            )
        values = {key: value for key, value in inputs.items() if value is not None}
        self._check_model_sets(workflow, values, lane)
        if missing := values.keys() - workflow.inputs.keys():
            raise ArtMancerError(
                "generation_failed",
                f"The workflow '{name}' has no input '{min(missing)}'. Add one.",
            )
        record = JobRecord.create(
            workflow,
            lane,
            values,
            client=sender.client,
            include=include or [],
            context=context,
            job_id=job_id,
        )
        graph = workflow.with_inputs(values, record.results, bits)
        return await self.jobs.submit(record, graph, sender.claim)

    async def finish(self, job: Job) -> Job:
        """Wait until a job is done.

        Raises
        ------
        ArtMancerError : what it failed with
        """
        job = await self.jobs.wait(job)
        check_done(job)
        return job

    async def result_base64(self, job: Job, name: str) -> list[str]:
        """Return the images of a result as base64."""
        return [await file_base64(path) for path in await self.jobs.result_paths(job, name)]


def make_fetcher(settings: Settings) -> Fetcher:
    """Make the fetcher of the settings' hosts."""
    return Fetcher(settings.fetch_hosts, settings.max_body)


def local_gateway(
    settings: Settings,
    runners: Mapping[str, Runner] | None = None,
    fetcher: Fetcher | None = None,
    absences: Mapping[str, Callable[[], ComfyStatus]] | None = None,
) -> Gateway:
    """Make a gateway whose jobs wait on this machine.

    Parameters
    ----------
    runners, absences : see LocalJobs
    fetcher : default: of the settings' hosts
    """
    make_folder(settings.data)
    for name in settings.trusted_workflows:
        if not (settings.workflows / f"{name}.json").is_file():
            logger.warning(
                "ARTMANCER_TRUSTED_WORKFLOWS names '%s', and there is no such file", name
            )
    uploads = UploadStore(settings.data / "pictures")
    debug_sessions = DebugSessions(settings.data / "debug")
    fetcher = fetcher or make_fetcher(settings)
    jobs = LocalJobs(settings, uploads, debug_sessions, fetcher, runners, absences)
    workflows = WorkflowFolder(settings.workflows)
    return Gateway(settings, workflows, uploads, debug_sessions, jobs, fetcher)


async def file_base64(path: Path) -> str:
    """Return a file as base64."""
    return pybase64.b64encode_as_string(await asyncio.to_thread(path.read_bytes))
