"""A worker: a ComfyUI on loopback, and the orders it runs in it."""

import asyncio
import logging
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any, TextIO

from ..errors import ArtMancerError
from ..gateway import logs
from ..gateway.comfy_client import ComfyRunner
from ..gateway.contract import LaneName
from ..gateway.jobs import Job
from ..gateway.runner import Lost, Outputs, Step, Task
from ..gateway.sessions import Sessions
from .launch import GO
from .pictures import SharedPictures
from .remote import Remote

logger = logging.getLogger(__name__)

LARGE = 4 * 2**20
"""Bytes of a picture from which it goes to the volume, and not into the call's answer."""

SESSIONS = "debug"
"""The folder of debug sessions among the results."""

_LOCAL_BYTES = 8 * 2**30
_ATTEMPTS = 2
_START_SECONDS, _TELL_EVERY, _PUBLISH_EVERY, _KEEP_SECONDS = 300.0, 0.25, 30.0, 24 * 3600.0


class WorkerLost(Exception):
    """ComfyUI went away; Modal runs the call again, elsewhere."""


class Worker:
    """Runs orders in a ComfyUI of its own.

    Parameters
    ----------
    start : the command that starts ComfyUI on `port`: Python, main.py, arguments
    folder : for what it keeps while it lives
    results : a folder that other containers can read from: large results and debug sessions
    sync : makes what lies in `results` visible to them
    on_sick : told when ComfyUI has ended, and no more orders can be run
    """

    def __init__(
        self,
        lane: LaneName,
        remote: Remote,
        start: list[str],
        port: int,
        folder: Path,
        results: Path,
        *,
        sync: Callable[[], Awaitable[None]],
        on_sick: Callable[[], Awaitable[None]],
    ) -> None:
        self.lane = lane
        self._port = port
        self._remote = remote
        self._folder = folder
        self._results = results
        self._sync = sync
        self._on_sick = on_sick
        self._command = start
        self._process: subprocess.Popen[bytes] | None = None
        self._sick = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._runner: ComfyRunner
        self._pictures: SharedPictures
        self.stages: dict[str, float] = {}

    def prepare(self, *, go: bool = False) -> None:
        """What may be done before a snapshot of memory is taken:
        import what ComfyUI and the editor need.

        Parameters
        ----------
        go : start ComfyUI, too; for snapshots that hold the GPU's memory,
            without which it has no GPU for good
        """
        begun = time.perf_counter()
        self._open(
            [sys.executable, "-m", "artmancer.hosting.launch", *self._command[1:]], subprocess.PIPE
        )
        assert self._process and self._process.stdout
        self._process.stdout.read()  # until it has imported
        self.stages["imports"] = time.perf_counter() - begun
        if go:
            self._tell_to_go()
            while self._process.poll() is None and not _answers(self._port):
                time.sleep(0.1)
            self.stages["comfyui, ahead"] = time.perf_counter() - begun - self.stages["imports"]

    def _tell_to_go(self) -> None:
        assert self._process and self._process.stdin
        with suppress(BrokenPipeError):  # it has ended, which _watch sees
            self._process.stdin.write(GO)
            self._process.stdin.close()

    def _open(self, start: list[str], stdout: int | TextIO) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(start, stdin=subprocess.PIPE, stdout=stdout)

    async def start(self) -> None:
        """Start ComfyUI, and wait until it takes orders.

        Raises
        ------
        ArtMancerError : comfyui_unavailable
        """
        begun = time.perf_counter()
        if self._process is None:
            self._open(self._command, sys.stderr)
        elif self._process.stdin and not self._process.stdin.closed:
            self._tell_to_go()
        self._pictures = SharedPictures(self._folder / "pictures", self._remote)
        self._runner = ComfyRunner(
            f"http://127.0.0.1:{self._port}", f"artmancer-{uuid.uuid4().hex}"
        )
        self._go(self._runner.run())
        self._go(self._watch())
        try:
            await asyncio.wait_for(self._ready(), _START_SECONDS)
        except asyncio.TimeoutError:
            raise ArtMancerError(
                "comfyui_unavailable",
                f"ComfyUI did not start within {_START_SECONDS:g} s. See its log.",
            ) from None
        self.stages["comfyui"] = time.perf_counter() - begun
        seconds = {stage: round(value, 2) for stage, value in self.stages.items()}
        logs.tell(logger, "worker ready", lane=self.lane, seconds=seconds)
        self._go(self._publish())
        self._go(self._keep_tidy())

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._process:
            self._process.terminate()
            try:
                await asyncio.to_thread(self._process.wait, 10)
            except subprocess.TimeoutExpired:
                self._process.kill()

    async def run(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Run a filled graph, and give what became of it.

        Parameters
        ----------
        order : see jobs.order

        Returns
        -------
        started, finished, and either values and pictures by a result's name, where None stands for
        a picture that is in the folder of results, or an error as in Job.error

        Raises
        ------
        WorkerLost
        """
        begun = time.time()
        job = Job(id=order["id"], graph=order["graph"], **order["job"])
        try:
            outcome = await self._outcome(job)
        except ArtMancerError as error:
            outcome = {
                "error": {"error_type": error.code, "detail": str(error), "details": error.details}
            }
        finished = time.time()
        if order["session"]:
            await self._write_session(job, outcome, begun, finished)
        return {"started": begun, "finished": finished, **outcome}

    async def _outcome(self, job: Job) -> dict[str, Any]:
        if self._sick:  # Modal had given it already
            raise WorkerLost("ComfyUI has ended.")
        attempts, cancelled = await asyncio.gather(
            self._remote.get(f"attempts:{job.id}"), self._remote.get(f"cancelled:{job.id}")
        )
        if cancelled:
            raise ArtMancerError(
                "not_finished", "The job was cancelled, and has no result. Send it again."
            )
        if (attempts or 0) >= _ATTEMPTS:
            raise ArtMancerError(
                "generation_failed",
                "ComfyUI stopped twice while this job ran. Try a smaller picture, or see its log.",
            )
        names = [job.inputs[name] for name in job.pictures]
        _, paths = await asyncio.gather(
            self._remote.put(f"attempts:{job.id}", (attempts or 0) + 1),
            asyncio.gather(*map(self._pictures.path, names)),
        )
        task = Task(job.id, job.graph, dict(zip(names, paths, strict=True)), job.asked)
        telling = _Telling(self._remote, job.id)
        try:
            await self._runner.submit(task)
            outputs = await self._runner.outputs(task, telling.hear)
        except Lost:
            await self._fall_sick()
            raise WorkerLost("ComfyUI stopped while the job ran.") from None
        except asyncio.CancelledError:
            await self._runner.cancel(job.id)
            raise
        finally:
            telling.stop()
        return {"values": dict(outputs.values), "pictures": await self._kept(job, outputs)}

    async def _kept(self, job: Job, outputs: Outputs) -> dict[str, list[bytes | None]]:
        """The pictures that go with the answer; those that are too large for it are laid down."""
        kept: dict[str, list[bytes | None]] = {}
        for name, pictures in outputs.pictures.items():
            kept[name] = [data if len(data) < LARGE else None for data in pictures]
            for index, data in enumerate(pictures):
                if len(data) >= LARGE:
                    path = self._results / job.id / f"{name}-{index}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    await asyncio.to_thread(path.write_bytes, data)
        if any(None in pictures for pictures in kept.values()):
            await self._sync()
        return kept

    async def free(self) -> int:
        """Unload ComfyUI's models; the bytes that came free."""
        return await self._runner.free()

    def _go(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ready(self) -> None:
        while not self._runner.host().up:
            if self._sick:
                raise ArtMancerError(
                    "comfyui_unavailable", "ComfyUI ended while it started. See its log."
                )
            await asyncio.sleep(0.1)

    async def _watch(self) -> None:
        assert self._process
        while self._process.poll() is None:
            await asyncio.sleep(0.5)
        await self._fall_sick()

    async def _fall_sick(self) -> None:
        if not self._sick:
            self._sick = True
            logs.tell(
                logger,
                "ComfyUI has ended; this worker takes no more orders",
                logging.ERROR,
                lane=self.lane,
            )
            await self._on_sick()

    async def _publish(self) -> None:
        """Tell the gateways what is known of this worker."""
        host = self._runner.host()
        nodes = {name: (kind.reads_files, kind.outputs) for name, kind in host.nodes.items()}
        await self._remote.put(f"nodes:{self.lane}", nodes)
        while True:
            await self._remote.put(
                f"host:{self.lane}", {"at": time.time(), "about": dict(self._runner.host().about)}
            )
            await asyncio.sleep(_PUBLISH_EVERY)

    async def _keep_tidy(self) -> None:
        while True:
            old = time.time() - _KEEP_SECONDS
            if self._results.is_dir():
                for folder in self._results.iterdir():
                    if folder.name != SESSIONS and folder.stat().st_mtime < old:
                        await asyncio.to_thread(rmtree, folder, True)
            await asyncio.to_thread(self._pictures.tidy, (), _KEEP_SECONDS, _LOCAL_BYTES)
            await self._runner.tidy(set(), _KEEP_SECONDS, _LOCAL_BYTES)
            await asyncio.sleep(3600)

    async def _write_session(
        self, job: Job, outcome: Mapping[str, Any], begun: float, finished: float
    ) -> None:
        job.state, job.started, job.finished = (
            ("error" if "error" in outcome else "done"),
            begun,
            finished,
        )
        job.error = outcome.get("error")
        job.outputs = {name: {"value": value} for name, value in outcome.get("values", {}).items()}
        sent = {
            name: path for name in job.pictures if (path := self._pictures.find(job.inputs[name]))
        }
        with TemporaryDirectory() as folder:
            results: dict[str, list[Path]] = {}
            for name, pictures in outcome.get("pictures", {}).items():
                for index, data in enumerate(pictures):
                    path = self._results / job.id / f"{name}-{index}.png"
                    if data is not None:
                        path = Path(folder) / path.name
                        path.write_bytes(data)
                    results.setdefault(name, []).append(path)
            Sessions(self._results / SESSIONS).write(job, sent, results)
        await self._sync()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class _Telling:
    """Puts the step a job is at where the gateways look; the latest, where they come fast."""

    def __init__(self, remote: Remote, job_id: str) -> None:
        self._remote = remote
        self._key = f"step:{job_id}"
        self._started: float | None = None
        self._step = Step()
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._tell())

    def hear(self, step: Step) -> None:
        self._started = self._started or time.time()
        self._step = step
        self._changed.set()

    def stop(self) -> None:
        self._task.cancel()

    async def _tell(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._remote.put(
                self._key, {"started": self._started, "step": asdict(self._step)}
            )
            await asyncio.sleep(_TELL_EVERY)
