"""What stands between jobs and where they run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Step:
    """Where a running job is.

    loading : a model is being loaded, and no step of the job itself is done yet
    done, total : steps of what is being done; 0 of 0 where it has none
    doing : "sampling"
    """

    loading: bool = False
    done: int = 0
    total: int = 0
    doing: str = ""


@dataclass(frozen=True)
class Task:
    """A filled graph.

    id : a UUID, the job's; a host is never given two tasks of one id at a time
    graph : in API format, where pictures stand by their name in `pictures`
    pictures : their files by name
    results : names of the results by the id of their node
    urgent : it goes before those that wait at the host and are not
    """

    id: str
    graph: Mapping[str, Any]
    pictures: Mapping[str, Path]
    results: Mapping[str, str]
    urgent: bool = False


@dataclass(frozen=True)
class Outputs:
    """What a task gave: by a result's name, PNG files, or one text, number, or yes or no."""

    pictures: Mapping[str, list[bytes]] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NodeType:
    """reads_files : it reads a file that its user names; outputs : their types, "STRING" say"""

    reads_files: bool
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Host:
    """What is known of where tasks run, as of a moment ago.

    up : it takes tasks; reason : why not
    about : version, device, memory, queue, models, as /api/health tells them
    nodes : the types of nodes it has, by name; empty: not known yet
    """

    up: bool
    reason: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    nodes: Mapping[str, NodeType] = field(default_factory=dict)


class Lost(Exception):
    """The host went away, or forgot the task; nobody knows how far the task came."""


class Runner(Protocol):
    """Where tasks run: a ComfyUI, or something like one."""

    async def run(self) -> None:
        """Keep the connection to the host; ends only when cancelled."""
        ...

    async def ready(self) -> None:
        """Wait until the host takes tasks."""
        ...

    def host(self) -> Host:
        """What is known of the host, without asking it."""
        ...

    async def submit(self, task: Task) -> None:
        """Hand a task over; the host runs tasks in this order.

        Raises
        ------
        ArtMancerError : the host refuses it
        Lost
        """
        ...

    async def knows(self, task: Task) -> bool:
        """Whether the host has a task that was handed over before,
        by this process or an earlier one.

        Raises
        ------
        Lost
        """
        ...

    async def outputs(self, task: Task, on_step: Callable[[Step], None]) -> Outputs:
        """Wait for a task that was handed over.

        Parameters
        ----------
        on_step : called when it starts, and at each step

        Raises
        ------
        ArtMancerError : it failed
        Lost
        """
        ...

    async def cancel(self, task_id: str) -> None:
        """Take a task back, waiting or running; one that is not there is no error."""
        ...

    async def free(self) -> int:
        """Unload all models and empty all caches; the bytes of memory that came free."""
        ...

    async def tidy(self, keep: set[str], max_age: float, max_bytes: int) -> None:
        """Remove what tasks left at the host.

        Parameters
        ----------
        keep : names of pictures that unfinished tasks need
        max_age : seconds; what is older goes
        max_bytes : the oldest goes until no more than this is left
        """
        ...
