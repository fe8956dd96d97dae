"""Whose turn it is."""

import asyncio
import heapq
from dataclasses import dataclass, field

from .jobs import Job
from .runner import Runner


@dataclass
class Lane:
    """The jobs of one kind, which wait for each other.

    timeout : seconds a job may run
    urgent : its jobs go before those of other lanes that wait at the same host
    """

    runner: Runner
    timeout: float
    urgent: bool = False
    waiting: list[tuple[int, int, Job]] = field(default_factory=list)
    at_host: dict[str, tuple[Job, "asyncio.Task[None]"]] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _turn: int = 0
    _last: dict[str, int] = field(default_factory=dict)
    _turns: dict[str, int] = field(default_factory=dict)

    def put(self, job: Job) -> None:
        """Start-time fair queueing: a client's next job is one turn after its last, whatever others
        have waiting.
        """
        if job.id not in self._turns:
            self._turns[job.id] = self._last[job.client] = max(
                self._turn, self._last.get(job.client, -1) + 1
            )
        heapq.heappush(self.waiting, (self._turns[job.id], job.number, job))
        self.changed.set()

    def take(self) -> Job:
        turn, _, job = heapq.heappop(self.waiting)
        self._turn = max(self._turn, turn)
        if not self.waiting:
            self._last.clear()
        return job

    def drop(self, job: Job) -> None:
        self._turns.pop(job.id, None)
        self.waiting = [entry for entry in self.waiting if entry[2] is not job]
        heapq.heapify(self.waiting)
        self.changed.set()

    def leave_host(self, job: Job) -> None:
        self.at_host.pop(job.id, None)
        self.changed.set()

    def position(self, job: Job) -> int | None:
        """1 = the next to run; None: it runs, or has ended."""
        if job.state != "queued":
            return None
        ahead = [one for one, _ in self.at_host.values() if one.state == "queued"]
        ahead += [entry[2] for entry in sorted(self.waiting)]
        return ahead.index(job) + 1 if job in ahead else 1  # it is being handed over
