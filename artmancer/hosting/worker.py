"""A worker: a ComfyUI on loopback, and the orders that run in it."""

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
from ..gateway.comfy_runner import ComfyRunner
from ..gateway.debug_sessions import DebugSessions
from ..gateway.fetch import Fetcher
from ..gateway.jobs import MAX_ATTEMPTS, Job, JobRecord, LaneName, job_cancelled, stopped_too_often
from ..gateway.results import finished, result_name
from ..gateway.runner import Outputs, Run, RunLost, Step
from ..gateway.url_upload import upload_result
from . import calls
from .preload import START
from .remote import VOLUME_BYTES, Remote, RetryingRemote, Unavailable, retry
from .shared import SharedUploadStore

logger = logging.getLogger(__name__)

DEBUG_SESSIONS = "debug"
"""Folder of debug sessions on the volume of results."""

_LOCAL_BYTES = 8 * 2**30
"""Limit of uploads on the worker's own disk, in bytes."""

_START_TIMEOUT = 300.0
"""Timeout of ComfyUI's start in seconds."""

_STEP_SECONDS = 0.25
"""Least seconds between two reports of a job's step."""

_POLL_SECONDS = 0.01
"""Seconds between the first two looks for a job's call; each further pause is twice as long."""

_LONGEST_POLL_SECONDS = 0.5
"""Longest pause between two looks for a job's call, in seconds."""

_PUBLISH_SECONDS = 30.0
"""Seconds between two reports of the worker's state."""

_KEEP_SECONDS = 24 * 3600.0
"""Age in seconds at which files are removed."""

_TIDY_SECONDS = 3600.0
"""Seconds between two removals of old files."""


class WorkerLost(Exception):
    """The worker's ComfyUI exited; Modal runs the call again on another worker."""


class Worker:
    """Runs orders in a ComfyUI of its own.

    Parameters
    ----------
    command : starts ComfyUI on `port`: Python, main.py, arguments
    folder : folder for files that are needed as long as the worker runs
    results : folder for large results and debug sessions, which other containers can read
    fetcher : sends results to the URLs of their requests
    sync : makes the files in `results` visible to the other containers
    on_dead : called when ComfyUI has exited; from then on the worker accepts no orders

    Attributes
    ----------
    stages : seconds of the start by stage
    """

    def __init__(
        self,
        lane: LaneName,
        remote: Remote,
        command: list[str],
        port: int,
        folder: Path,
        results: Path,
        *,
        fetcher: Fetcher,
        sync: Callable[[], Awaitable[None]],
        on_dead: Callable[[], Awaitable[None]],
    ) -> None:
        self.lane = lane
        self._port = port
        self._remote = RetryingRemote(remote)
        self._folder = folder
        self._results = results
        self._fetcher = fetcher
        self._sync = sync
        self._on_dead = on_dead
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._dead = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._runner: ComfyRunner
        self._uploads: SharedUploadStore
        self.stages: dict[str, float] = {}

    def prepare(self, *, start_comfyui: bool = False) -> None:
        """Import the packages of ComfyUI and the editor, before a snapshot of memory is taken.

        Parameters
        ----------
        start_comfyui : also start ComfyUI. Only for snapshots that hold the GPU's memory: a ComfyUI
            that starts without a GPU never uses a GPU
        """
        start = time.perf_counter()
        self._open(
            [sys.executable, "-m", "artmancer.hosting.preload", *self._command[1:]],
            subprocess.PIPE,
        )
        assert self._process and self._process.stdout
        # The process closes its output when everything is imported.
        self._process.stdout.read()
        self.stages["imports"] = time.perf_counter() - start
        if start_comfyui:
            self._start_preloaded()
            while self._process.poll() is None and not _is_listening(self._port):
                time.sleep(0.1)
            self.stages["comfyui, ahead"] = time.perf_counter() - start - self.stages["imports"]

    def _start_preloaded(self) -> None:
        assert self._process and self._process.stdin
        # If the process has exited, _watch notices it.
        with suppress(BrokenPipeError):
            self._process.stdin.write(START)
            self._process.stdin.close()

    def _open(self, command: list[str], stdout: int | TextIO) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout)

    async def start(self) -> None:
        """Start ComfyUI, and wait until it accepts runs.

        Raises
        ------
        ArtMancerError : comfyui_unavailable
        """
        start = time.perf_counter()
        if self._process is None:
            self._open(self._command, sys.stderr)
        elif self._process.stdin and not self._process.stdin.closed:
            self._start_preloaded()
        self._uploads = SharedUploadStore(self._folder / "pictures", self._remote)
        self._runner = ComfyRunner(
            f"http://127.0.0.1:{self._port}", f"artmancer-{uuid.uuid4().hex}"
        )
        self._spawn(self._runner.connect())
        self._spawn(self._watch())
        try:
            await asyncio.wait_for(self._ready(), _START_TIMEOUT)
        except asyncio.TimeoutError:
            raise ArtMancerError(
                "comfyui_unavailable",
                f"ComfyUI did not start within {_START_TIMEOUT:g} s. See its log.",
            ) from None
        self.stages["comfyui"] = time.perf_counter() - start
        seconds = {stage: round(value, 2) for stage, value in self.stages.items()}
        logs.log_event(logger, "worker ready", lane=self.lane, seconds=seconds)
        self._spawn(self._publish())
        self._spawn(self._keep_tidy())

    async def stop(self) -> None:
        """Stop ComfyUI."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._process:
            self._process.terminate()
            try:
                await asyncio.to_thread(self._process.wait, 10)
            except subprocess.TimeoutExpired:
                self._process.kill()

    async def edit(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Edit a photo of a batch; see batch.ModalEdits.

        Parameters
        ----------
        order : from modal_jobs.make_order, with the images that it needs in "pictures", bytes by
            name; None: it is on the volume, in the folder "folder"

        Returns
        -------
        As `run`, and "job", the id of the job

        Raises
        ------
        WorkerLost, Unavailable, FileNotFoundError : Modal runs the call again
        """
        for name, data in order["pictures"].items():
            if data is None:
                data = await self._remote.fetch(f"{order['folder']}/{name}")
            await self._uploads.receive(name, data)
        return {"job": order["record"]["id"], **await self.run(order, None)}

    async def run(self, order: Mapping[str, Any], call: str | None) -> dict[str, Any]:
        """Run a filled graph, if this call may; see calls.py.

        Parameters
        ----------
        order : from modal_jobs.make_order
        call : id of this call; None: a batch's, for whose jobs no call is stored

        Returns
        -------
        "started", "finished", and either "values" and "images" by result name, or "error" as in
        Job.error. An image that is in the folder of results is None here.

        Raises
        ------
        WorkerLost, Unavailable : Modal runs the call again
        """
        if self._dead:
            # Modal sent the call before `on_dead` took effect.
            raise WorkerLost("ComfyUI has exited.")
        started = time.time()
        start = time.monotonic()
        job = Job(record=JobRecord.from_dict(order["record"]), started=started)
        admitted = False
        try:
            attempts = await self._admit(job.id, call)
            admitted = True
            outcome = await self._outcome(job, order["graph"], attempts)
        except ArtMancerError as error:
            outcome = {"error": error.as_dict()}
        job.finished = started + time.monotonic() - start
        if order["debug_session"] and admitted:
            try:
                await self._write_debug_session(job, outcome)
            except (OSError, Unavailable):
                logger.exception("the debug session of job %s could not be written", job.id)
        return {"started": started, "finished": job.finished, **outcome}

    async def _outcome(self, job: Job, graph: Mapping[str, Any], attempts: int) -> dict[str, Any]:
        record = job.record
        names = [record.inputs[name] for name in record.images]
        _, paths = await asyncio.gather(
            self._remote.put(f"attempts:{job.id}", attempts + 1),
            asyncio.gather(*map(self._uploads.path, names)),
        )
        run = Run(job.id, graph, dict(zip(names, paths, strict=True)), record.results)
        reporter = _StepReporter(self._remote, job.id)
        try:
            await self._runner.submit(run)
            outputs = await self._runner.outputs(run, reporter.on_step)
        except RunLost:
            await self._retire()
            raise WorkerLost("ComfyUI stopped while the job ran.") from None
        except asyncio.CancelledError:
            await self._runner.cancel(job.id)
            raise
        finally:
            reporter.stop()
        outputs = await finished(record, run.images, outputs)
        values = dict(outputs.values)
        if record.context.get("upload"):
            values |= await self._upload(job, outputs.images["image"][0])
        return {"values": values, "images": await self._images_to_return(job, outputs)}

    async def _upload(self, job: Job, image: bytes) -> dict[str, Any]:
        """Send a job's image to the URL of its request; see url_upload.upload_result."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / result_name("image", 0)
            await asyncio.to_thread(path.write_bytes, image)
            return await upload_result(self._fetcher, job, path)

    async def _admit(self, job_id: str, call: str | None) -> int:
        """Wait until a gateway has stored that this call may run a job; return how often it was
        started before.

        Raises
        ------
        ArtMancerError : it was cancelled, given up, or started too often, or another call runs it
        """
        end = time.monotonic() + calls.STORE_SECONDS
        pause = _POLL_SECONDS
        while True:
            attempts, cancelled, entry, stored = await asyncio.gather(
                *(
                    self._remote.get(f"{name}:{job_id}")
                    for name in ("attempts", "cancelled", "job", "call")
                )
            )
            if cancelled:
                raise job_cancelled()
            # Up to version 0.1.0 the entry held the call.
            stored = stored or (entry or {}).get("call")
            if stored is None and time.monotonic() > end:
                stored = await calls.settle_call(self._remote, job_id, calls.GIVEN_UP)
            if stored == call:
                break
            if stored is not None:
                raise calls.job_not_started()
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_POLL_SECONDS)
        if (attempts or 0) >= MAX_ATTEMPTS:
            raise stopped_too_often()
        return attempts or 0

    async def _images_to_return(self, job: Job, outputs: Outputs) -> dict[str, list[bytes | None]]:
        """Return the images for the call's answer; write large images to the volume instead."""
        small_images: dict[str, list[bytes | None]] = {}
        for name, images in outputs.images.items():
            small_images[name] = [data if len(data) < VOLUME_BYTES else None for data in images]
            for index, data in enumerate(images):
                if len(data) >= VOLUME_BYTES:
                    path = self._results / job.id / result_name(name, index)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    await asyncio.to_thread(path.write_bytes, data)
        if any(None in images for images in small_images.values()):
            await retry(self._sync)
        return small_images

    async def free(self) -> int:
        """Unload ComfyUI's models; return the bytes of memory that were freed."""
        return await self._runner.free()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ready(self) -> None:
        while not self._runner.status().up:
            if self._dead:
                raise ArtMancerError(
                    "comfyui_unavailable", "ComfyUI exited while it started. See its log."
                )
            await asyncio.sleep(0.1)

    async def _watch(self) -> None:
        assert self._process
        while self._process.poll() is None:
            await asyncio.sleep(0.5)
        await self._retire()

    async def _retire(self) -> None:
        """Stop accepting orders."""
        if not self._dead:
            self._dead = True
            logs.log_event(
                logger,
                "ComfyUI has exited; this worker accepts no more orders",
                logging.ERROR,
                lane=self.lane,
            )
            await self._on_dead()

    async def _publish(self) -> None:
        """Keep reporting the worker's state to the gateways."""
        nodes = {name: node.as_data() for name, node in self._runner.status().nodes.items()}
        nodes_stored = False
        while True:
            info = dict(self._runner.status().info)
            with suppress(Unavailable):
                if not nodes_stored:
                    await self._remote.put(f"node_types:{self.lane}", nodes)
                    nodes_stored = True
                await self._remote.put(f"status:{self.lane}", {"at": time.time(), "info": info})
            await asyncio.sleep(_PUBLISH_SECONDS)

    async def _keep_tidy(self) -> None:
        while True:
            oldest = time.time() - _KEEP_SECONDS
            if self._results.is_dir():
                for folder in self._results.iterdir():
                    if folder.name != DEBUG_SESSIONS and folder.stat().st_mtime < oldest:
                        await asyncio.to_thread(rmtree, folder, True)
            await asyncio.to_thread(self._uploads.tidy, (), _KEEP_SECONDS, _LOCAL_BYTES)
            await self._runner.tidy(set(), _KEEP_SECONDS, _LOCAL_BYTES)
            await asyncio.sleep(_TIDY_SECONDS)

    async def _write_debug_session(self, job: Job, outcome: Mapping[str, Any]) -> None:
        record = job.record
        job.state = "error" if "error" in outcome else "done"
        job.error = outcome.get("error")
        job.outputs = {name: {"value": value} for name, value in outcome.get("values", {}).items()}
        uploads = {
            name: path
            for name in record.images
            if (path := self._uploads.find(record.inputs[name]))
        }
        with TemporaryDirectory() as folder:
            results: dict[str, list[Path]] = {}
            for name, images in outcome.get("images", {}).items():
                for index, data in enumerate(images):
                    path = self._results / job.id / result_name(name, index)
                    if data is not None:
                        path = Path(folder) / path.name
                        path.write_bytes(data)
                    results.setdefault(name, []).append(path)
            DebugSessions(self._results / DEBUG_SESSIONS).write(job, uploads, results)
        await retry(self._sync)


def _is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class _StepReporter:
    """Reports the steps of a job to the gateways, at most one each _STEP_SECONDS."""

    def __init__(self, remote: Remote, job_id: str) -> None:
        self._remote = remote
        self._key = f"step:{job_id}"
        self._started: float | None = None
        self._step = Step()
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._report())

    def on_step(self, step: Step) -> None:
        self._started = self._started or time.time()
        self._step = step
        self._changed.set()

    def stop(self) -> None:
        self._task.cancel()

    async def _report(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            with suppress(Unavailable):
                await self._remote.put(
                    self._key, {"started": self._started, "step": asdict(self._step)}
                )
            await asyncio.sleep(_STEP_SECONDS)
