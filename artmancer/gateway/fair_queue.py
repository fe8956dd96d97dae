"""A fair queue: clients take turns, however many jobs each has sent."""

import heapq
from collections.abc import Iterator

from .job_store import LocalJob


class FairQueue:
    """Jobs that wait, in the order they run: start-time fair queueing (Goyal, Vin and Cheng, 1996)
    with jobs of equal cost.

    Each job gets a turn when it is first put in: one after the last turn of its client, and not
    before the turn that is served now. The lowest turn is served first.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, LocalJob]] = []
        self._turn_served = 0
        self._last_turn: dict[str, int] = {}
        self._turns: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[LocalJob]:
        """Yield the jobs in the order they run."""
        return (job for _, _, job in sorted(self._heap, key=lambda entry: entry[:2]))

    def put(self, job: LocalJob) -> None:
        """Add a job; one that was in the queue before keeps its turn."""
        if job.id not in self._turns:
            client = job.record.client
            turn = max(self._turn_served, self._last_turn.get(client, -1) + 1)
            self._turns[job.id] = self._last_turn[client] = turn
        heapq.heappush(self._heap, (self._turns[job.id], job.number, job))

    def take(self) -> LocalJob:
        """Remove and return the next job."""
        turn, _, job = heapq.heappop(self._heap)
        self._turn_served = max(self._turn_served, turn)
        if not self._heap:
            self._last_turn.clear()
        return job

    def drop(self, job: LocalJob) -> None:
        """Remove a job that has ended, and forget its turn."""
        self._turns.pop(job.id, None)
        self._heap = [entry for entry in self._heap if entry[2] is not job]
        heapq.heapify(self._heap)
