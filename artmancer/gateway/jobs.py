"""A job, and the `Jobs` interface.

Implementations: local_jobs.LocalJobs (this machine), hosting.modal_jobs.ModalJobs (Modal).
"""

import time
import uuid
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from ..errors import ArtMancerError
from .runner import ComfyStatus, Step
from .workflows import Workflow

LaneName = Literal["heavy", "light"]
"""A queue of jobs: edits are heavy (a GPU, up to minutes), masks and tools are light (seconds).
Each lane has its own queue, so that a click waits at most for the edit that is running; where the
light lane has a ComfyUI of its own, it waits for none.
"""

HEAVY: Final = "heavy"
LIGHT: Final = "light"

JobState = Literal["queued", "loading_pipeline", "processing", "done", "error", "cancelled"]
ENDED = ("done", "error", "cancelled")

MAX_ATTEMPTS = 2
"""Times a job is started when its ComfyUI stops while it runs."""

STEPS_SHARE = 0.95
"""Progress when all steps are done; the rest is for what comes after them."""


@dataclass(frozen=True)
class JobRecord:
    """An accepted job; it never changes.

    Attributes
    ----------
    id : UUID
    workflow : name of the workflow
    lane : the queue it waits in
    client : identifies its sender, for fair queueing
    inputs : values by input name; an image by its name in UploadStore
    images : names of the inputs that are images
    results : names of the results to answer, by node id
    context : what its route needs to build the answer
    created : seconds since the epoch
    """

    id: str
    workflow: str
    lane: LaneName
    client: str
    inputs: dict[str, Any]
    images: list[str]
    results: dict[str, str]
    context: dict[str, Any]
    created: float

    @classmethod
    def create(
        cls,
        workflow: Workflow,
        lane: LaneName,
        inputs: dict[str, Any],
        *,
        client: str = "local",
        include: Collection[str] = (),
        context: dict[str, Any] | None = None,
        job_id: str | None = None,
    ) -> "JobRecord":
        """Make the record of a job that was just sent.

        Parameters
        ----------
        include : optional results to answer
        job_id : a UUID of the caller's choice
        """
        return cls(
            id=job_id or str(uuid.uuid4()),
            workflow=workflow.name,
            lane=lane,
            client=client,
            inputs=inputs,
            images=[
                name for name, value in inputs.items() if value and workflow.inputs[name].is_image
            ],
            results=workflow.wanted_results(include),
            context=context or {},
            created=time.time(),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it for storage."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "JobRecord":
        """Make it from what `as_dict` returned."""
        return cls(**fields)


UPLOADED = "uploaded"
"""Name among a job's outputs: its image was sent to the URL of the request."""

UPLOAD_ERROR = "upload_error"
"""Name among a job's outputs: the reason why it was not."""

CLAIM_SECONDS = 24 * 3600.0
"""Seconds for which a request with the same Idempotency-Key gets the same job."""


@dataclass(frozen=True)
class Claim:
    """The Idempotency-Key of a request, so that the request makes one job however often it comes.

    Attributes
    ----------
    key : hash of the header
    fingerprint : hash of the path and the body
    """

    key: str
    fingerprint: str


@dataclass(eq=False, kw_only=True)
class Job:
    """A job and its state.

    Attributes
    ----------
    started, finished : seconds since the epoch
    outputs : {"pictures": [file names]} or {"value": ...} by result name
    error : ArtMancerError.as_dict of a job that failed
    step : present progress of its run
    progress : 0..1; it never goes back while the job runs
    """

    record: JobRecord
    state: JobState = "queued"
    started: float | None = None
    finished: float | None = None
    outputs: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    step: Step = field(default_factory=Step)
    progress: float = 0.0

    def __post_init__(self) -> None:
        if self.state == "done":
            self.progress = 1.0

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def workflow(self) -> str:
        return self.record.workflow

    @property
    def lane(self) -> LaneName:
        return self.record.lane

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def seconds(self) -> float:
        """Seconds from its start to its end."""
        return round((self.finished or 0) - (self.started or self.record.created), 3)

    def advance(self, step: Step) -> None:
        """Take over the progress of its run."""
        self.step = step
        self.state = "loading_pipeline" if step.loading else "processing"
        if step.total and not step.loading:
            share = round(STEPS_SHARE * step.done / step.total, 4)
            self.progress = max(self.progress, share)

    def finish(self, outputs: dict[str, Any]) -> None:
        """Set it to done."""
        self.outputs, self.state, self.progress = outputs, "done", 1.0

    def fail(self, error: ArtMancerError) -> None:
        """Set it to failed."""
        self.error, self.state = error.as_dict(), "error"

    def result_files(self, name: str) -> list[str]:
        """Return the file names of an image result."""
        files: list[str] = self._output(name).get("pictures", [])
        return files

    def result_value(self, name: str) -> Any:
        """Return the value of a text, number or boolean result."""
        return self._output(name).get("value")

    def _output(self, name: str) -> dict[str, Any]:
        return (self.outputs or {}).get(name) or {}


class Jobs(Protocol):
    """All accepted jobs, until their results are too old.

    Attributes
    ----------
    lanes : the lanes that jobs are accepted for
    """

    @property
    def lanes(self) -> Collection[LaneName]: ...

    async def run(self) -> None:
        """Work until cancelled."""
        ...

    async def submit(
        self, record: JobRecord, graph: dict[str, Any], claim: Claim | None = None
    ) -> Job:
        """Accept a job: when this returns, it outlives this process. Where the key of the claim was
        accepted before, return that job.

        Parameters
        ----------
        graph : the workflow's graph with the inputs in it

        Raises
        ------
        ArtMancerError : queue_full; comfyui_unavailable; invalid_request for an id that is used;
            idempotency_conflict
        """
        ...

    async def claimed(self, claim: Claim) -> Job | None:
        """Return the job that a request with this key made; None: there was no such request.

        Raises
        ------
        ArtMancerError : idempotency_conflict where it was another request; not_found where the job
            is not kept any more
        """
        ...

    async def get(self, job_id: str) -> Job:
        """Return a job.

        Raises
        ------
        ArtMancerError : not_found
        """
        ...

    def follow(self, job_id: str, interval: float) -> AsyncIterator[Job]:
        """Yield the job at once, at each change, and after `interval` seconds without one, until
        it has ended.
        """
        ...

    async def wait(self, job: Job) -> Job:
        """Wait until a job has ended.

        Raises
        ------
        ArtMancerError : timeout where the job goes on and can no longer be waited for
        """
        ...

    async def cancel(self, job_id: str) -> bool:
        """Cancel a job in any state; False: it had ended before.

        Raises
        ------
        ArtMancerError : not_found; storage_full where a restart would undo it
        """
        ...

    async def result_paths(self, job: Job, name: str) -> list[Path]:
        """Return the files of an image result.

        Raises
        ------
        ArtMancerError : not_found where they are not kept any more
        """
        ...

    def position(self, job: Job) -> int | None:
        """Return the position in the queue, 1 = next; None: it does not wait, or it is unknown."""
        ...

    def comfy_status(self, lane: LaneName) -> ComfyStatus:
        """Return the last known state of the ComfyUI that runs a lane's jobs."""
        ...

    def storage_problem(self) -> ArtMancerError | None:
        """Return why jobs that are accepted are not kept; None: they are."""
        ...

    def load(self, lane: LaneName) -> tuple[int, int]:
        """Return how many jobs wait, and how many are submitted to a ComfyUI."""
        ...

    async def free(self) -> int:
        """Unload all models and empty all caches; return the bytes of memory that were freed."""
        ...


def unknown_job(hours: float) -> ArtMancerError:
    """Make the error for a job id that is not known; `hours`: how long jobs are kept."""
    return ArtMancerError(
        "not_found", f"There is no job with this id. Jobs are kept for {hours:g} h."
    )


def job_timeout(seconds: float) -> ArtMancerError:
    """Make the error for a job that ran into its timeout."""
    return ArtMancerError(
        "timeout",
        f"The job took longer than {seconds:g} s. Make the image smaller, or use fewer steps.",
    )


def stopped_too_often() -> ArtMancerError:
    """Make the error for a job whose ComfyUI stopped MAX_ATTEMPTS times."""
    return ArtMancerError(
        "generation_failed",
        f"ComfyUI stopped {MAX_ATTEMPTS} times while this job ran. Try a smaller image, or see its "
        "log.",
    )


def job_cancelled() -> ArtMancerError:
    """Make the error for a job that was cancelled."""
    return ArtMancerError(
        "not_finished", "The job was cancelled, and has no result. Send it again."
    )


def unexpected_error() -> ArtMancerError:
    """Make the error for an exception that nobody expected."""
    return ArtMancerError(
        "generation_failed", "Something went wrong in the gateway. Its log says what."
    )


def check_done(job: Job) -> None:
    """Refuse a job without a result.

    Raises
    ------
    ArtMancerError : what the job failed with; not_finished
    """
    if job.error:
        raise ArtMancerError.from_dict(job.error)
    if job.state == "cancelled":
        raise job_cancelled()
    if job.state != "done":
        raise ArtMancerError(
            "not_finished",
            f"The job is {job.state}, expected done. Request its status until it is done.",
        )
