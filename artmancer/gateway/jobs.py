"""Jobs as the routes know them; who keeps and runs them is another's affair."""

import time
import uuid
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from ..errors import ArtMancerError
from .contract import LaneName
from .runner import Host, Step
from .workflows import Workflow

HEAVY: Final = "heavy"
LIGHT: Final = "light"
RETRY_AFTER = 10
"""Seconds after which one that was refused may try again."""

State = Literal["queued", "loading_pipeline", "processing", "done", "error", "cancelled"]
ENDED = ("done", "error", "cancelled")


@dataclass(eq=False)
class Job:
    """One run of one workflow.

    number : in the order of arrival
    graph : the workflow's, filled, as it was when the job came
    inputs : by name; a picture by its name in Pictures
    pictures : the names of the inputs that are pictures
    asked : the names of the results that are answered, by node
    about : what the route that took it needs to answer
    attempts : how often it began to run; counted : the present run among them
    deadline : when the present run has taken too long
    outputs : by a result's name, {"pictures": [file names]} or {"value": ...}
    error : {"error_type": a code, "detail": a sentence, "details": {...}}
    """

    id: str
    workflow: str
    lane: LaneName
    client: str
    graph: dict[str, Any]
    inputs: dict[str, Any]
    pictures: list[str]
    asked: dict[str, str]
    about: dict[str, Any]
    created: float
    number: int = 0
    state: State = "queued"
    attempts: int = 0
    counted: bool = False
    started: float | None = None
    finished: float | None = None
    outputs: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    step: Step = field(default_factory=Step)
    progress: float = 0.0
    deadline: float | None = None

    def __post_init__(self) -> None:
        if self.state == "done":
            self.progress = 1.0

    @classmethod
    def new(
        cls,
        workflow: Workflow,
        lane: LaneName,
        inputs: dict[str, Any],
        client: str,
        include: list[str],
        about: dict[str, Any],
        job_id: str | None,
    ) -> "Job":
        """One that just came; see Jobs.submit."""
        asked = workflow.asked(include)
        return cls(
            id=job_id or str(uuid.uuid4()),
            workflow=workflow.name,
            lane=lane,
            client=client,
            graph=workflow.fill(inputs, asked),
            inputs=inputs,
            pictures=[
                name for name, value in inputs.items() if value and workflow.inputs[name].picture
            ],
            asked=asked,
            about=about,
            created=time.time(),
        )

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def seconds(self) -> float:
        return round((self.finished or 0) - (self.started or self.created), 3)


class Jobs(Protocol):
    """Every job that was accepted, until its result is a day old.

    lanes : those that jobs are taken for
    """

    @property
    def lanes(self) -> Collection[LaneName]: ...

    async def run(self) -> None:
        """Work until cancelled."""
        ...

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
        """Accept a job: it outlives this process when this returns.

        Parameters
        ----------
        inputs : by name; a picture by its name in Pictures, which has been kept
        client : who sends it
        include : results on request that are asked for
        about : kept for the route's answer
        job_id : a UUID of the caller's choice

        Raises
        ------
        ArtMancerError : queue_full; comfyui_unavailable; invalid_request for an id that is taken
        """
        ...

    async def get(self, job_id: str) -> Job:
        """Raises ArtMancerError: not_found."""
        ...

    def follow(self, job_id: str, every: float) -> AsyncIterator[Job]:
        """The job at once, at each change, and after so many seconds without one;
        ends with the job.
        """
        ...

    async def wait(self, job: Job) -> Job:
        """A job when it has ended.

        Raises
        ------
        ArtMancerError : timeout, where it goes on and the answer cannot be waited for
        """
        ...

    async def cancel(self, job_id: str) -> bool:
        """End a job in whatever state it is; False: it had ended before."""
        ...

    async def pictures(self, job: Job, name: str) -> list[Path]:
        """The files of a result."""
        ...

    def position(self, job: Job) -> int | None:
        """In the queue, 1 = next; None: it does not wait, or nobody knows."""
        ...

    def host(self, lane: LaneName) -> Host:
        """What is known of where a lane's jobs run, without asking."""
        ...

    def load(self, lane: LaneName) -> tuple[int, int]:
        """How many jobs wait, and how many are where they run."""
        ...

    async def free(self) -> int:
        """Unload all models and empty all caches; the bytes that came free."""
        ...


def too_long(seconds: float) -> ArtMancerError:
    return ArtMancerError(
        "timeout",
        f"The job took longer than {seconds:g} s. "
        "Make the picture smaller, or ask for fewer steps.",
    )
