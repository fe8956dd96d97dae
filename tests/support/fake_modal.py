"""A fake Modal: calls whose results any process can read, workers that are replaced when they die,
and a shared Dict.

As Modal does, it answers a spawn at once and keeps results by the call's id. It runs a call again
when its worker died, retries a call that raised, ends a call at its timeout, and gives a worker
several calls at a time.
"""

import asyncio
import itertools
import os
import random
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI
from grpclib.exceptions import StreamTerminatedError
from modal import exception

from artmancer.gateway.fetch import Fetcher
from artmancer.gateway.jobs import HEAVY
from artmancer.gateway.settings import Settings
from artmancer.hosting import calls
from artmancer.hosting.remote import CallFailed, CallTimeout, Unfinished
from artmancer.hosting.web import web_app

from .gateway import Served, settings, until
from .paths import FAKE_COMFYUI
from .processes import ForkedProcess

AUTH_KEY = b"a test's"
"""Key of the connections between the board and the workers."""

MAX_CALLS = {"heavy": 3, "light": 20}
"""Calls that a worker runs at a time, by lane; as in modal_comfy.py."""

RETRIES = 3
"""Retries of a call that raised; as in modal_comfy.py."""

RUN_FAKE_COMFYUI = (sys.executable, str(FAKE_COMFYUI), "{port}", "{folder}/events.log")
"""Command that starts a worker's ComfyUI, unless a test needs a real one."""

_DROP_SECONDS = 0.05
"""Seconds between two checks of a worker for calls to drop."""

_OUTPUT_SECONDS = 0.01
"""Seconds between two looks of a map for the end of a call."""

_TAKE_TIMEOUT = 0.2
"""Longest wait of a worker for its next call, in seconds."""


@dataclass
class Call:
    """A call of a worker's method.

    Attributes
    ----------
    state : "waiting", "running", "done", "failed" or "late" (ended at its timeout)
    worker : name of the worker that runs it
    value : its result
    reason : message of its failure
    raised : runs of it that raised
    deadline : end of its time, on the clock of time.monotonic()
    ended : set when it has a result or has failed
    """

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
    """The state of Modal's servers.

    Attributes
    ----------
    calls : all calls by id, in order
    shared : the shared Dict
    starts : job ids in the order in which their calls started
    dead : names of the workers that died
    announced : (job id, call id) of the calls that send webhooks. Tests run them
    """

    def __init__(self, timeouts: Mapping[str, float]) -> None:
        self.timeouts = timeouts
        self.calls: dict[str, Call] = {}
        self.shared: dict[str, Any] = {}
        self.lock = threading.Condition()
        self.starts: list[str] = []
        self.dead: set[str] = set()
        self.announced: list[tuple[str, str]] = []

    def spawn(self, lane: str, order: dict[str, Any]) -> str:
        call_id = f"fc-{uuid.uuid4().hex}"
        with self.lock:
            self.calls[call_id] = Call(lane, order)
            self.lock.notify_all()
        return call_id

    def announce(self, job_id: str) -> None:
        self.announced.append((job_id, f"fc-{uuid.uuid4().hex}"))

    def result(self, call_id: str, timeout: float) -> tuple[str, Any]:
        call = self.calls[call_id]
        call.ended.wait(timeout)
        return (call.state, call.value if call.state == "done" else call.reason)

    def cancel(self, call_id: str) -> None:
        with self.lock:
            self._end(self.calls[call_id], "failed", "cancelled")

    def load(self, lane: str) -> tuple[int, int]:
        """Return the number of waiting and of running calls."""
        states = [call.state for call in self.calls.values() if call.lane == lane]
        return states.count("waiting"), states.count("running")

    def get(self, key: str) -> Any:
        return self.shared.get(key)

    def put(self, key: str, value: Any) -> None:
        self.shared[key] = value

    def put_new(self, key: str, value: Any) -> bool:
        with self.lock:
            is_new = key not in self.shared
            self.shared.setdefault(key, value)
            return is_new

    def take(self, lane: str, worker: str, timeout: float) -> tuple[str, dict[str, Any]] | None:
        """Start the next call on a worker; return its id and order, None at the timeout."""
        end = time.monotonic() + timeout
        with self.lock:
            while worker not in self.dead:
                for call_id, call in self.calls.items():
                    if call.lane == lane and call.state == "waiting":
                        call.state = "running"
                        call.worker = worker
                        call.deadline = time.monotonic() + self.timeouts[lane]
                        self.starts.append(call.order["record"]["id"])
                        return call_id, call.order
                if (seconds := end - time.monotonic()) <= 0:
                    return None
                self.lock.wait(seconds)
            return None

    def finish(self, call_id: str, worker: str, value: Any) -> None:
        with self.lock:
            call = self.calls[call_id]
            if call.worker == worker and call.state == "running":
                call.value = value
                self._end(call, "done")

    def fail(self, call_id: str, worker: str, reason: str) -> None:
        """Retry a call that raised, or end it after the last retry."""
        with self.lock:
            call = self.calls[call_id]
            if call.worker != worker or call.state != "running":
                return
            call.raised += 1
            if call.raised > RETRIES:
                self._end(call, "failed", reason)
            else:
                self._requeue(call)

    def dropped(self, worker: str) -> list[str]:
        """Return the calls that a worker has to drop: cancelled, or at their timeout."""
        with self.lock:
            for call in self.calls.values():
                if call.state == "running" and time.monotonic() > call.deadline:
                    self._end(call, "late")
            return [
                key
                for key, call in self.calls.items()
                if call.worker == worker and call.state in ("failed", "late")
            ]

    def lose(self, worker: str) -> None:
        """Run the calls of a worker that died again, without a limit."""
        with self.lock:
            # The worker may still wait in `take`.
            self.dead.add(worker)
            for call in self.calls.values():
                if call.worker == worker and call.state == "running":
                    self._requeue(call)

    def all_starts(self) -> list[str]:
        return list(self.starts)

    def _requeue(self, call: Call) -> None:
        call.state = "waiting"
        call.worker = ""
        self.lock.notify_all()

    def _end(self, call: Call, state: str, reason: str = "") -> None:
        if call.state in ("waiting", "running"):
            call.state = state
            call.reason = reason
            call.ended.set()


class Server(BaseManager):
    """The manager in the test's process, which owns the board."""


class Client(BaseManager):
    """The manager in a worker's process."""


class Failures(Protocol):
    """Decides which requests to a StandIn fail."""

    def before(self) -> None:
        """Raise where the request fails without its effect."""
        ...

    def after(self) -> None:
        """Raise where the request has its effect, but its answer is lost."""
        ...


class NoFailures:
    """Lets no request fail."""

    def before(self) -> None:
        pass

    def after(self) -> None:
        pass


class RandomFailures:
    """Lets requests fail at random with the exceptions that Modal's client raises: one half before
    they have their effect, the other half after it.

    Parameters
    ----------
    share : part of the requests that fail, 0..1
    """

    exceptions: Sequence[Callable[[], Exception]] = (
        lambda: exception.ServiceError("Deadline exceeded"),
        lambda: exception.ConnectionError("Could not connect to the Modal server."),
        lambda: exception.InternalError("an internal error"),
        lambda: exception.ResourceExhaustedError("a rate limit"),
        lambda: exception.ClientClosed("the client is closed"),
        lambda: StreamTerminatedError("Connection lost"),
        lambda: ConnectionResetError("Connection reset by peer"),
        TimeoutError,
        asyncio.TimeoutError,
        # modal/_functions.py raises this one where it could not spawn a call.
        lambda: Exception("Could not create function call - the input queue seems to be full"),
    )

    def __init__(self, share: float, seed: int) -> None:
        self.share = share
        self.failed = 0
        self._random = random.Random(seed)

    def before(self) -> None:
        self._raise(self.share / 2)

    def after(self) -> None:
        self._raise(self.share / 2 / (1 - self.share / 2))

    def _raise(self, share: float) -> None:
        if self._random.random() < share:
            self.failed += 1
            raise self._random.choice(self.exceptions)()


class StandIn:
    """An artmancer.hosting.remote.Remote that uses a board.

    Parameters
    ----------
    board : a Board, or a proxy of a Board in another process
    results : folder that stands for the volume of results
    """

    def __init__(self, board: Any, results: Path, failures: Failures | None = None) -> None:
        self.board = board
        self.results = results
        self.failures = failures or NoFailures()
        self.frees = 0

    async def _request(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """Run a method of the board, or of the volume, as a request that may fail."""
        self.failures.before()
        answer = await asyncio.to_thread(method, *arguments)
        self.failures.after()
        return answer

    async def spawn(self, lane: str, order: Mapping[str, Any]) -> str:
        return str(await self._request(self.board.spawn, lane, dict(order)))

    async def result(self, call_id: str, timeout: float) -> dict[str, Any]:
        state, value = await self._request(self.board.result, call_id, timeout)
        if state in ("waiting", "running"):
            raise Unfinished
        if state == "late":
            raise CallTimeout
        if state == "failed":
            raise CallFailed(value)
        return dict(value)

    async def announce(self, job_id: str) -> None:
        await self._request(self.board.announce, job_id)

    async def cancel(self, call_id: str) -> None:
        await self._request(self.board.cancel, call_id)

    async def load(self, lane: str) -> tuple[int, int]:
        waiting, running = await self._request(self.board.load, lane)
        return waiting, running

    async def free(self, lane: str) -> int:
        return int(await self._request(self._free))

    def _free(self) -> int:
        self.frees += 1
        return 0

    async def get(self, key: str) -> Any:
        return await self._request(self.board.get, key)

    async def put(self, key: str, value: Any) -> None:
        await self._request(self.board.put, key, value)

    async def put_new(self, key: str, value: Any) -> bool:
        return bool(await self._request(self.board.put_new, key, value))

    async def fetch(self, name: str) -> bytes:
        return bytes(await self._request((self.results / name).read_bytes))

    async def store(self, name: str, data: bytes) -> None:
        path = self.results / name
        path.parent.mkdir(parents=True, exist_ok=True)
        await self._request(path.write_bytes, data)


def connect(port: int, results: Path, failures: Failures) -> StandIn:
    """Return a StandIn that uses the board behind a port."""
    Client.register("board")
    manager = Client(("127.0.0.1", port), AUTH_KEY)
    manager.connect()
    # `register` adds this method.
    return StandIn(manager.board(), results, failures)  # type: ignore[attr-defined]


def gateway_app(remote: StandIn, gateway_settings: Settings) -> FastAPI:
    """Make the app of a container of the gateway."""
    checkpoints = gateway_settings.data / "checkpoints"

    async def sync() -> None:
        remote.failures.before()
        remote.failures.after()

    return web_app(remote, checkpoints, remote.results, sync, sync, gateway_settings)


class FakeModal:
    """A board behind a port, and one worker for each lane. A worker that ends is replaced.

    Parameters
    ----------
    command : starts a worker's ComfyUI; {port} and {folder} stand for the worker's own
    timeouts : timeout of a call in seconds, by lane
    prepare : let workers also prepare for a snapshot of memory, which takes long
    share : part of the requests of gateways and workers that fail, 0..1
    call_share : part of the calls that raise, 0..1: one half before they run, the other half
        after it
    seed : seed of these failures; each gateway and each worker adds a number of its own
    store_seconds : calls.STORE_SECONDS of the workers

    Attributes
    ----------
    failures : random failures of each gateway, and of each worker at its start
    """

    def __init__(
        self,
        folder: Path,
        command: Sequence[str] = RUN_FAKE_COMFYUI,
        timeouts: Mapping[str, float] | None = None,
        prepare: bool = False,
        share: float = 0.0,
        call_share: float = 0.0,
        seed: int = 0,
        store_seconds: float = calls.STORE_SECONDS,
    ) -> None:
        self.folder = folder
        self.share = share
        self.call_share = call_share
        self.failures: list[RandomFailures] = []
        self.seeds = itertools.count(seed)
        self.store_seconds = store_seconds
        self.command = list(command)
        self.prepare = prepare
        self.results = folder / "results"
        self.board = Board(timeouts or {"heavy": 600, "light": 300})
        Server.register("board", callable=lambda: self.board)
        self.server = Server(("127.0.0.1", 0), AUTH_KEY).get_server()
        self.port = int(self.server.address[1])
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.workers: dict[str, ForkedProcess] = {}
        self.numbers = itertools.count()
        self.closing = False
        for lane in MAX_CALLS:
            threading.Thread(target=self._keep_worker, args=(lane,), daemon=True).start()

    def remote(self, failures: Failures | None = None) -> StandIn:
        return StandIn(self.board, self.results, failures or self._random_failures())

    def _random_failures(self) -> RandomFailures:
        self.failures.append(RandomFailures(self.share, next(self.seeds)))
        return self.failures[-1]

    def gateway(self, folder: Path, failures: Failures | None = None, **options: Any) -> Served:
        """Serve a container of the gateway.

        Parameters
        ----------
        failures : of its requests; default: random ones, as of all
        options : settings of the gateway
        """
        gateway_settings = settings(folder, **options)
        return Served(gateway_settings, gateway_app(self.remote(failures), gateway_settings))

    async def map(
        self,
        orders: AsyncIterator[dict[str, Any]],
        /,
        *,
        order_outputs: bool,
        return_exceptions: bool,
    ) -> AsyncIterator[Any]:
        """Run the workers' method `edit` for each order, as Function.map.aio does. Every tenth
        output comes twice.
        """
        assert not order_outputs and return_exceptions
        outputs: asyncio.Queue[Any] = asyncio.Queue()

        async def call(order: dict[str, Any]) -> None:
            entry = self.board.calls[self.board.spawn(HEAVY, order)]
            while not entry.ended.is_set():
                await asyncio.sleep(_OUTPUT_SECONDS)
            is_done = entry.state == "done"
            outputs.put_nowait(
                entry.value if is_done else RuntimeError(entry.reason or entry.state)
            )

        async def feed() -> None:
            calls = [asyncio.create_task(call(order)) async for order in orders]
            await asyncio.gather(*calls)
            outputs.put_nowait(None)

        feeding = asyncio.create_task(feed())
        number = 0
        while (output := await outputs.get()) is not None:
            number += 1
            yield output
            if number % 10 == 0 and not isinstance(output, Exception):
                yield output
        await feeding

    def _keep_worker(self, lane: str) -> None:
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
                self._random_failures(),
                RandomFailures(self.call_share, next(self.seeds)),
                self.store_seconds,
                log=folder / "worker.log",
            )
            self.workers[lane] = worker
            worker.wait()
            # It may have left its ComfyUI running.
            worker.kill()
            self.board.lose(str(worker.pid))

    def kill(self, lane: str) -> None:
        """SIGKILL the worker of a lane, and all processes that it started. Its first one may still
        have to start.
        """
        until(lambda: lane in self.workers)
        self.workers[lane].kill()

    def __enter__(self) -> "FakeModal":
        return self

    def __exit__(self, *_: object) -> None:
        self.closing = True
        for worker in self.workers.values():
            worker.kill()


def run_worker(
    lane: str,
    port: int,
    folder: Path,
    results: Path,
    prepare: bool,
    command: list[str],
    failures: RandomFailures,
    call_failures: RandomFailures,
    store_seconds: float,
) -> None:
    """Run a worker in this process."""
    calls.STORE_SECONDS = store_seconds
    asyncio.run(work(lane, port, folder, results, prepare, command, failures, call_failures))


async def work(
    lane: str,
    port: int,
    folder: Path,
    results: Path,
    prepare: bool,
    command: list[str],
    failures: RandomFailures,
    call_failures: RandomFailures,
) -> None:
    """Take calls from the board behind a port until the worker's ComfyUI has exited."""
    from artmancer.hosting.worker import Worker

    from .comfyui import free_port

    remote = connect(port, results, failures)
    name = str(os.getpid())
    dead = asyncio.Event()

    async def on_dead() -> None:
        dead.set()

    async def sync() -> None:
        failures.before()
        failures.after()

    comfyui_port = free_port()
    worker = Worker(
        # A process's arguments are plain strings.
        lane,  # type: ignore[arg-type]
        remote,
        [part.format(port=comfyui_port, folder=folder) for part in command],
        comfyui_port,
        folder,
        results,
        fetcher=Fetcher([], 0),
        sync=sync,
        on_dead=on_dead,
    )
    if prepare:
        worker.prepare()
    await worker.start()
    running: dict[str, asyncio.Task[None]] = {}

    async def call_method(call_id: str, order: dict[str, Any]) -> dict[str, Any]:
        call_failures.before()
        # A call of a batch has its images in it.
        value = await (worker.edit(order) if "pictures" in order else worker.run(order, call_id))
        call_failures.after()
        return value

    async def run(call_id: str, order: dict[str, Any]) -> None:
        (value,) = await asyncio.gather(call_method(call_id, order), return_exceptions=True)
        if isinstance(value, BaseException):
            await asyncio.to_thread(remote.board.fail, call_id, name, repr(value))
        else:
            await asyncio.to_thread(remote.board.finish, call_id, name, value)

    async def drop() -> None:
        while True:
            for call_id in await asyncio.to_thread(remote.board.dropped, name):
                if call_id in running:
                    running[call_id].cancel()
            await asyncio.sleep(_DROP_SECONDS)

    dropping = asyncio.create_task(drop())
    while not dead.is_set():
        if len(running) >= MAX_CALLS[lane]:
            await asyncio.wait(running.values(), return_when=asyncio.FIRST_COMPLETED)
            continue
        call = await asyncio.to_thread(remote.board.take, lane, name, _TAKE_TIMEOUT)
        if call:
            call_id, order = call
            task = running[call_id] = asyncio.create_task(run(call_id, order))
            task.add_done_callback(lambda _, key=call_id: running.pop(key, None))
    await asyncio.gather(*running.values(), return_exceptions=True)
    dropping.cancel()
    await worker.stop()
