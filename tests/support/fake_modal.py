"""A stand-in for Modal: calls that any process can ask after, workers that come, die and are
replaced, a shared Dict.

As Modal does, it answers a spawn at once, keeps results by the call's id, runs a call again whose
worker died, tries one that raised some times more, ends one at its time limit, and gives a worker
several calls at a time.
"""

import asyncio
import itertools
import os
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

from artmancer.hosting.remote import CallFailed, CallTimeout, Unfinished
from artmancer.hosting.web import web_app

from .gateway import Served, settings
from .paths import FAKE_COMFYUI
from .processes import ForkedProcess

KEY = b"a test's"
AT_ONCE = {"heavy": 3, "light": 20}
RETRIES = 3
RUN_FAKE_COMFYUI = (sys.executable, str(FAKE_COMFYUI), "{port}", "{folder}/told.log")


@dataclass
class Call:
    lane: str
    order: dict[str, Any]
    state: str = "waiting"
    worker: str = ""
    value: Any = None
    reason: str = ""
    raised: int = 0
    deadline: float = 0.0
    ended: threading.Event = field(default_factory=threading.Event)


class Board:
    """What Modal's servers know."""

    def __init__(self, timeouts: Mapping[str, float]) -> None:
        self.timeouts = timeouts
        self.calls: dict[str, Call] = {}
        self.shared: dict[str, Any] = {}
        self.lock = threading.Condition()
        self.starts: list[str] = []
        self.dead: set[str] = set()

    def spawn(self, lane: str, order: dict[str, Any]) -> str:
        call_id = f"fc-{uuid.uuid4().hex}"
        with self.lock:
            self.calls[call_id] = Call(lane, order)
            self.lock.notify_all()
        return call_id

    def result(self, call_id: str, timeout: float) -> tuple[str, Any]:
        call = self.calls[call_id]
        call.ended.wait(timeout)
        return (call.state, call.value if call.state == "done" else call.reason)

    def cancel(self, call_id: str) -> None:
        with self.lock:
            self._end(self.calls[call_id], "failed", "cancelled")

    def load(self, lane: str) -> tuple[int, int]:
        states = [call.state for call in self.calls.values() if call.lane == lane]
        return states.count("waiting"), states.count("running")

    def get(self, key: str) -> Any:
        return self.shared.get(key)

    def put(self, key: str, value: Any) -> None:
        self.shared[key] = value

    def take(self, lane: str, worker: str, patience: float) -> tuple[str, dict[str, Any]] | None:
        """For a worker: the next call, and its order."""
        end = time.monotonic() + patience
        with self.lock:
            while worker not in self.dead:
                for call_id, call in self.calls.items():
                    if call.lane == lane and call.state == "waiting":
                        call.state, call.worker = "running", worker
                        call.deadline = time.monotonic() + self.timeouts[lane]
                        self.starts.append(call.order["record"]["id"])
                        return call_id, call.order
                if (left := end - time.monotonic()) <= 0:
                    return None
                self.lock.wait(left)
            return None

    def finish(self, call_id: str, worker: str, value: Any) -> None:
        with self.lock:
            call = self.calls[call_id]
            if call.worker == worker and call.state == "running":
                call.value = value
                self._end(call, "done")

    def fail(self, call_id: str, worker: str, reason: str) -> None:
        """It raised: again, some times."""
        with self.lock:
            call = self.calls[call_id]
            if call.worker != worker or call.state != "running":
                return
            call.raised += 1
            if call.raised > RETRIES:
                self._end(call, "failed", reason)
            else:
                self._again(call)

    def dropped(self, worker: str) -> list[str]:
        """Calls that a worker has to drop: cancelled, or at their time limit."""
        with self.lock:
            for call in self.calls.values():
                if call.state == "running" and time.monotonic() > call.deadline:
                    self._end(call, "late")
            return [
                key
                for key, call in self.calls.items()
                if call.worker == worker and call.state in ("failed", "late")
            ]

    def gone(self, worker: str) -> None:
        """A container died: what it ran is run again, however often."""
        with self.lock:
            self.dead.add(worker)  # it may still be waiting in take
            for call in self.calls.values():
                if call.worker == worker and call.state == "running":
                    self._again(call)

    def all_starts(self) -> list[str]:
        return list(self.starts)

    def _again(self, call: Call) -> None:
        call.state, call.worker = "waiting", ""
        self.lock.notify_all()

    def _end(self, call: Call, state: str, reason: str = "") -> None:
        if call.state in ("waiting", "running"):
            call.state, call.reason = state, reason
            call.ended.set()


class Server(BaseManager):
    pass


class Client(BaseManager):
    pass


class StandIn:
    """artmancer.hosting.remote.Remote over a board."""

    def __init__(self, board: Any, results: Path) -> None:
        self.board = board
        self.results = results
        self.frees = 0

    async def spawn(self, lane: str, order: Mapping[str, Any]) -> str:
        return str(await asyncio.to_thread(self.board.spawn, lane, dict(order)))

    async def result(self, call_id: str, timeout: float) -> dict[str, Any]:
        state, value = await asyncio.to_thread(self.board.result, call_id, timeout)
        if state in ("waiting", "running"):
            raise Unfinished
        if state == "late":
            raise CallTimeout
        if state == "failed":
            raise CallFailed(value)
        return dict(value)

    async def cancel(self, call_id: str) -> None:
        await asyncio.to_thread(self.board.cancel, call_id)

    async def load(self, lane: str) -> tuple[int, int]:
        return tuple(await asyncio.to_thread(self.board.load, lane))  # type: ignore[return-value]

    async def free(self, lane: str) -> int:
        self.frees += 1
        return 0

    async def get(self, key: str) -> Any:
        return await asyncio.to_thread(self.board.get, key)

    async def put(self, key: str, value: Any) -> None:
        await asyncio.to_thread(self.board.put, key, value)

    async def fetch(self, name: str) -> bytes:
        return await asyncio.to_thread((self.results / name).read_bytes)


class FakeModal:
    """The board behind a port, and a worker a lane: one that ends is replaced.

    Parameters
    ----------
    command : what starts a worker's ComfyUI, where {port} and {folder} stand for its own
    prepare : let workers do what comes before a snapshot of memory, too, which takes long
    """

    def __init__(
        self,
        folder: Path,
        command: Sequence[str] = RUN_FAKE_COMFYUI,
        timeouts: Mapping[str, float] | None = None,
        prepare: bool = False,
    ) -> None:
        self.folder, self.command, self.prepare = folder, list(command), prepare
        self.results = folder / "results"
        self.board = Board(timeouts or {"heavy": 600, "light": 300})
        Server.register("board", callable=lambda: self.board)
        self.server = Server(("127.0.0.1", 0), KEY).get_server()
        self.port = int(self.server.address[1])
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.workers: dict[str, ForkedProcess] = {}
        self.numbers = itertools.count()
        self.closing = False
        for lane in AT_ONCE:
            threading.Thread(target=self._keep_one, args=(lane,), daemon=True).start()

    def remote(self) -> StandIn:
        return StandIn(self.board, self.results)

    def gateway(self, folder: Path, **options: Any) -> Served:
        """Serve a container of the gateway.

        Parameters
        ----------
        options : settings of the gateway
        """
        made = settings(folder, **options)
        checkpoints = folder / "checkpoints"
        app = web_app(self.remote(), checkpoints, self.results, _nothing, _nothing, made)
        return Served(made, app)

    def _keep_one(self, lane: str) -> None:
        while not self.closing:
            name = f"{lane}-{next(self.numbers)}"
            folder = self.folder / name
            folder.mkdir(parents=True)
            worker = ForkedProcess(
                run_worker,
                lane,
                self.port,
                folder,
                self.results,
                self.prepare,
                self.command,
                log=folder / "worker.log",
            )
            self.workers[lane] = worker
            worker.wait()
            worker.kill()  # what it left running
            self.board.gone(str(worker.pid))

    def kill(self, lane: str) -> None:
        """SIGKILL the container of a lane, and all that runs in it."""
        self.workers[lane].kill()

    def __enter__(self) -> "FakeModal":
        return self

    def __exit__(self, *_: object) -> None:
        self.closing = True
        for worker in self.workers.values():
            worker.kill()


async def _nothing() -> None:
    pass


def run_worker(
    lane: str, port: int, folder: Path, results: Path, prepare: bool, command: list[str]
) -> None:
    """Run a worker in this process."""
    asyncio.run(work(lane, port, folder, results, prepare, command))


async def work(
    lane: str, port: int, folder: Path, results: Path, prepare: bool, command: list[str]
) -> None:
    from artmancer.hosting.worker import Worker

    from .comfyui import free_port

    Client.register("board")
    manager = Client(("127.0.0.1", port), KEY)
    manager.connect()
    remote = StandIn(manager.board(), results)  # type: ignore[attr-defined]
    name, sick = str(os.getpid()), asyncio.Event()

    async def nothing() -> None:
        pass

    async def on_dead() -> None:
        sick.set()

    own = free_port()
    start = [part.format(port=own, folder=folder) for part in command]
    worker = Worker(lane, remote, start, own, folder, results, sync=nothing, on_dead=on_dead)  # type: ignore[arg-type]
    if prepare:
        worker.prepare()
    await worker.start()
    running: dict[str, asyncio.Task[None]] = {}

    async def run(call_id: str, order: dict[str, Any]) -> None:
        (value,) = await asyncio.gather(worker.run(order), return_exceptions=True)
        if isinstance(value, BaseException):
            await asyncio.to_thread(remote.board.fail, call_id, name, repr(value))
        else:
            await asyncio.to_thread(remote.board.finish, call_id, name, value)

    async def drop() -> None:
        while True:
            for call_id in await asyncio.to_thread(remote.board.dropped, name):
                if call_id in running:
                    running[call_id].cancel()
            await asyncio.sleep(0.05)

    dropping = asyncio.create_task(drop())
    while not sick.is_set():
        if len(running) >= AT_ONCE[lane]:
            await asyncio.wait(running.values(), return_when=asyncio.FIRST_COMPLETED)
            continue
        taken = await asyncio.to_thread(remote.board.take, lane, name, 0.2)
        if taken:
            task = running[taken[0]] = asyncio.create_task(run(*taken))
            task.add_done_callback(lambda _, key=taken[0]: running.pop(key, None))
    await asyncio.gather(*running.values(), return_exceptions=True)
    dropping.cancel()
    await worker.stop()
