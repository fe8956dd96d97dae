"""The runner in a ComfyUI: HTTP for runs and images, one websocket for progress.

Works with ComfyUI 0.3.64 and newer.
"""

import asyncio
import errno
import io
import itertools
import json
import logging
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp

from ..endpoint_protocol import UPLOAD_FOLDER
from ..errors import ArtMancerError
from .comfy_errors import failure, refusal, unavailable, without_paths
from .runner import ComfyStatus, NodeType, Outputs, Run, RunLost, Step
from .waiting import within

logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT = 5.0
"""Seconds to open the websocket."""

_RECONNECT_PAUSE = 0.25
"""Seconds between two attempts to connect."""

_HEARTBEAT = 40.0
"""Seconds between pings; ComfyUI has half of it to answer, since a node can block its event loop.
"""

_CHECK_SECONDS = 4.0
"""Seconds between two checks for runs that ended without an event."""

_SILENT_SECONDS = 9.0
"""Seconds without any answer or event after which ComfyUI counts as down, although it is still
connected: it hangs, or a node blocks it. Its runs go on, and its next answer makes it up again.
"""

_STATUS_CHECKS = 3
"""Checks between two requests for ComfyUI's state."""

_HISTORY_TRIES = 20
"""Requests for a run's history, 0.1 s apart: ComfyUI writes it a moment after the run has ended."""

_FREE_PAUSES = (0.5, 1.5)
"""Seconds after each POST /free. ComfyUI's worker acts on it when it wakes; right after a run it
may miss the first.
"""

_URGENT_NUMBER = -(2**40)
"""Queue number of the first urgent run, before all of ComfyUI's own numbers."""

_REDUNDANT = '{"type": "progress_state"'
"""Beginning of an event that repeats each "progress" with the state of every node; it is skipped
unparsed.
"""

_PROGRESS_TEXT = 3
"""Type of ComfyUI's binary message with the text that a node shows."""

_UNREACHABLE = (aiohttp.ClientError, asyncio.TimeoutError)
_NOT_COMFYUI = (ValueError, KeyError, TypeError, AttributeError)
"""Exceptions that another server's answers lead to."""


@dataclass
class _RunState:
    """State of a run at the ComfyUI.

    Attributes
    ----------
    on_step : called with its progress
    ended : its outputs by node id, or what it failed with
    shown : outputs by node id so far
    accepted : the ComfyUI has it
    misses : checks in a row that did not find it
    """

    on_step: Callable[[Step], None]
    ended: asyncio.Future[dict[str, Any]]
    shown: dict[str, Any] = field(default_factory=dict)
    step: Step = field(default_factory=Step)
    accepted: bool = False
    misses: int = 0


class ComfyRunner:
    """A Runner for the ComfyUI at a URL.

    Parameters
    ----------
    identity : client id; ComfyUI sends a run's progress to the client that submitted it, also after
        the client has restarted
    absence : the state of this ComfyUI while nothing listens at the URL, from who starts it
    """

    def __init__(
        self, url: str, identity: str, absence: Callable[[], ComfyStatus] | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self._identity = identity
        self._absence = absence
        self._http = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(None, sock_connect=2, sock_read=30)
        )
        self._runs: dict[str, _RunState] = {}
        self._current: str | None = None
        self._urgent_count = 0
        self._connected = asyncio.Event()
        self._uploaded: set[str] = set()
        self._nodes: dict[str, NodeType] = {}
        self._info: dict[str, Any] = {}
        self._reason = "ComfyUI has not answered yet."
        self._nothing_listens = True
        self._last_heard = time.monotonic()

    async def connect(self) -> None:
        try:
            while True:
                try:
                    await self._listen()
                    self._on_disconnect("ComfyUI closed the connection.")
                except _UNREACHABLE as error:
                    if _is_refused(error):
                        reason = "ComfyUI does not answer: nothing listens at its address."
                    else:
                        reason = f"ComfyUI does not answer ({type(error).__name__})."
                    self._on_disconnect(reason)
                    self._nothing_listens = _is_refused(error)
                except _NOT_COMFYUI:
                    self._on_disconnect("The server at COMFYUI_URL is not ComfyUI.")
                await asyncio.sleep(_RECONNECT_PAUSE)
        finally:
            await self._http.close()

    async def _listen(self) -> None:
        """Receive events until the connection ends."""
        url = f"{self.url}/ws?clientId={self._identity}"
        connecting = self._http.ws_connect(url, heartbeat=_HEARTBEAT, max_msg_size=0)
        async with await within(connecting, _CONNECT_TIMEOUT) as socket:
            await self._on_connect()
            checking = asyncio.create_task(self._keep_checking(socket))
            try:
                async for message in socket:
                    self._last_heard = time.monotonic()
                    if message.type == aiohttp.WSMsgType.TEXT:
                        self._on_event(message.data)
                    elif message.type == aiohttp.WSMsgType.BINARY:
                        self._on_progress_text(message.data)
            finally:
                checking.cancel()

    async def ready(self) -> None:
        await self._connected.wait()

    def status(self) -> ComfyStatus:
        reason = None if self._connected.is_set() else self._reason
        silent = time.monotonic() - self._last_heard
        if reason is None and silent > _SILENT_SECONDS:
            reason = f"ComfyUI has answered nothing for {silent:.0f} s."
        status = ComfyStatus(reason is None, reason)
        if self._absence and self._nothing_listens:
            status = self._absence()
            if status.starting and self._info:
                reason = (
                    "ComfyUI stopped answering, and is restarted when it exits. Look at its log."
                )
                status = ComfyStatus(False, reason)
        return replace(status, info=self._info, nodes=self._nodes)

    async def submit(self, run: Run) -> None:
        with self._tracked(run) as state:
            try:
                skipped = await self._upload(run)
                status, answer = await self._post_prompt(run)
                if status == 400 and skipped:
                    # The temporary folder may have been emptied since.
                    self._uploaded -= run.images.keys()
                    await self._upload(run)
                    status, answer = await self._post_prompt(run)
            except aiohttp.ClientResponseError as error:
                sentence = f"ComfyUI answered {error.status}. Look at its log."
                raise ArtMancerError("generation_failed", sentence) from error
            except _UNREACHABLE as error:
                raise RunLost from error
            if refused := refusal(status, answer, run):
                await self.cancel(run.id)
                raise refused
            state.accepted = True

    async def knows(self, run: Run) -> bool:
        with self._tracked(run) as state:
            try:
                # Between the queue and the history there is a moment at which a run is in neither.
                for _ in range(2):
                    if await self._is_finished(run.id, state) or await self._is_queued(run.id):
                        state.accepted = True
                        return True
            except _UNREACHABLE as error:
                raise RunLost from error
        self._runs.pop(run.id, None)
        return False

    @contextmanager
    def _tracked(self, run: Run) -> Iterator[_RunState]:
        """Collect a run's events from before it is submitted, so that none is missed; stop where
        the block raises. The run may be cancelled during the block, and is not in `_runs` then.
        """
        ended = asyncio.get_running_loop().create_future()
        ended.add_done_callback(_consume_exception)
        state = self._runs[run.id] = _RunState(lambda step: None, ended)
        try:
            yield state
        # A cancelled task raises a BaseException, and the run must not be waited for then either.
        except BaseException:
            self._runs.pop(run.id, None)
            raise

    async def outputs(self, run: Run, on_step: Callable[[Step], None]) -> Outputs:
        state = self._runs.get(run.id)
        if state is None:
            raise RunLost
        state.on_step = on_step
        if state.step != Step() or self._current == run.id:
            on_step(state.step)
        try:
            shown = await state.ended
            if not run.results.keys() <= shown.keys():
                shown = await self._history_outputs(run)
            return await self._fetch(shown, run.results)
        except aiohttp.ClientResponseError as error:
            # The file of a result is gone. ComfyUI has to forget the run, or `knows` would find it
            # again.
            with suppress(*_UNREACHABLE):
                await self._post("/history", {"delete": [run.id]})
            raise RunLost from error
        except _UNREACHABLE as error:
            raise RunLost from error
        finally:
            self._runs.pop(run.id, None)

    async def cancel(self, run_id: str) -> None:
        self._runs.pop(run_id, None)
        with suppress(*_UNREACHABLE):
            status, _ = await self._post(f"/api/jobs/{run_id}/cancel", {})
            if status in (404, 405):  # before ComfyUI 0.33
                await self._post("/queue", {"delete": [run_id]})
                await self._post("/interrupt", {"prompt_id": run_id})

    async def free(self) -> int:
        before = await self._available_memory()
        for seconds in _FREE_PAUSES:
            try:
                await self._post("/free", {"unload_models": True, "free_memory": True})
            except _UNREACHABLE as error:
                raise unavailable(self._reason) from error
            await asyncio.sleep(seconds)
        return max(0, await self._available_memory() - before)

    async def tidy(self, keep: set[str], max_age: float, max_bytes: int) -> None:
        body = {"max_age": max_age, "max_bytes": max_bytes, "keep": sorted(keep)}
        with suppress(*_UNREACHABLE):
            await self._post("/artmancer/tidy", body)
        self._uploaded &= keep

    async def _get(self, path: str, params: Mapping[str, str] | None = None) -> bytes:
        async with self._http.get(self.url + path, params=params, raise_for_status=True) as answer:
            body = await answer.read()
            self._last_heard = time.monotonic()
            return body

    async def _get_json(self, path: str) -> Any:
        return json.loads(await self._get(path))

    async def _post(self, path: str, body: Mapping[str, Any]) -> tuple[int, bytes]:
        """Return the status, which may be an error's, and the body of the answer."""
        async with self._http.post(self.url + path, json=body) as answer:
            data = await answer.read()
            self._last_heard = time.monotonic()
            return answer.status, data

    async def _on_connect(self) -> None:
        """Read what this ComfyUI is and has; it may be another one than before."""
        self._uploaded.clear()
        nodes = await self._get_json("/object_info")
        self._nodes = {name: NodeType.from_info(info) for name, info in nodes.items()}
        await self._update_info()
        logger.info("ComfyUI %s answers at %s", self._info.get("comfyui_version"), self.url)
        self._nothing_listens = False
        self._connected.set()

    def _on_disconnect(self, reason: str) -> None:
        """Mark every run as lost; the jobs look for them after the next connection."""
        if self._connected.is_set():
            logger.warning("%s %d jobs were under way.", reason, len(self._runs))
        self._connected.clear()
        self._nothing_listens = False
        self._reason = reason
        self._current = None
        for state in self._runs.values():
            if not state.ended.done():
                state.ended.set_exception(RunLost())

    async def _keep_checking(self, socket: "aiohttp.ClientWebSocketResponse[Any]") -> None:
        for check in itertools.count(1):
            await asyncio.sleep(_CHECK_SECONDS)
            with suppress(*_UNREACHABLE, *_NOT_COMFYUI):
                if check % _STATUS_CHECKS == 0:
                    await self._update_info()
                if await self._missed_an_end():
                    logger.warning("ComfyUI sends no events any more; connecting again")
                    await socket.close()

    async def _missed_an_end(self) -> bool:
        """Tell whether a run has ended without an event: ComfyUI drops a client that connects
        before its last connection is seen to be closed. A run that somebody else took out of its
        queue is lost.
        """
        missed = False
        queue = await self._queue()
        for run_id, state in list(self._runs.items()):
            if not state.accepted or run_id in queue:
                continue
            history = await self._get_json(f"/history/{run_id}")
            await asyncio.sleep(0)
            if state.ended.done():
                continue
            missed |= run_id in history
            state.misses += 1
            # The first time it may have been between the queue and the history.
            if run_id not in history and state.misses > 1:
                state.ended.set_exception(RunLost())
        return missed

    async def _update_info(self) -> None:
        stats, queue = await self._get_json("/system_stats"), await self._get_json("/prompt")
        try:
            pack = await self._get_json("/artmancer/status")
        except aiohttp.ClientResponseError:
            pack = None
        system, devices = stats["system"], stats["devices"]
        device = devices[0] if devices else {}
        self._info = {
            "device": device.get("type", "cpu"),
            "device_name": device.get("name"),
            "memory_total": device.get("vram_total"),
            "memory_free": device.get("vram_free"),
            "comfyui_version": system.get("comfyui_version"),
            "queue_length": queue["exec_info"]["queue_remaining"],
            "pack": pack,
        }

    async def _available_memory(self) -> int:
        """Return the free bytes of RAM and of all GPUs."""
        try:
            stats = await self._get_json("/system_stats")
        except (*_UNREACHABLE, ValueError) as error:
            raise unavailable(self._reason) from error
        gpus = [device["vram_free"] for device in stats["devices"] if device["type"] != "cpu"]
        return int(stats["system"]["ram_free"] + sum(gpus))

    async def _upload(self, run: Run) -> bool:
        """Upload the images that the ComfyUI does not have; return whether some were skipped
        because they were uploaded before.
        """
        skipped = False
        for name, path in run.images.items():
            if name in self._uploaded:
                skipped = True
                continue
            data = await asyncio.to_thread(path.read_bytes)
            form = aiohttp.FormData(
                {"type": "temp", "subfolder": UPLOAD_FOLDER, "overwrite": "true"}
            )
            form.add_field(
                "image", io.BytesIO(data), filename=name, content_type=f"image/{path.suffix[1:]}"
            )
            url = f"{self.url}/upload/image"
            async with self._http.post(url, data=form, raise_for_status=True):
                pass
            self._uploaded.add(name)
        return skipped

    async def _post_prompt(self, run: Run) -> tuple[int, Any]:
        """Return the status, 200 or 400, and the answer."""
        body: dict[str, Any] = {
            "prompt": _with_uploads(run),
            "client_id": self._identity,
            "prompt_id": run.id,
        }
        if run.urgent:
            # ComfyUI's own "front" would reverse the order of urgent runs.
            body["number"] = _URGENT_NUMBER + self._urgent_count
            self._urgent_count += 1
        async with self._http.post(f"{self.url}/prompt", json=body) as answer:
            if answer.status != 400:
                answer.raise_for_status()
            return answer.status, json.loads(await answer.read())

    async def _is_finished(self, run_id: str, state: _RunState) -> bool:
        """Tell whether a run is in the history, and set its end."""
        entry = (await self._get_json(f"/history/{run_id}")).get(run_id)
        if entry is None:
            return False
        failures = {
            event: data
            for event, data in entry["status"]["messages"]
            if event in ("execution_error", "execution_interrupted")
        }
        if not state.ended.done():
            if failures:
                state.ended.set_exception(failure(*failures.popitem()))
            else:
                state.ended.set_result(entry["outputs"])
        return True

    async def _history_outputs(self, run: Run) -> dict[str, Any]:
        """Return all outputs of a run; some events may have come while nobody listened."""
        for _ in range(_HISTORY_TRIES):
            entry = (await self._get_json(f"/history/{run.id}")).get(run.id)
            if entry is not None:
                return dict(entry["outputs"])
            await asyncio.sleep(0.1)
        raise RunLost

    async def _is_queued(self, run_id: str) -> bool:
        queue = await self._queue()
        if queue.get(run_id):
            self._current = run_id
        return run_id in queue

    async def _queue(self) -> dict[str, bool]:
        """Return the ids of runs that wait or run, and whether each runs."""
        queue = await self._get_json("/queue")
        return {
            item[1]: part == "queue_running"
            for part in ("queue_pending", "queue_running")
            for item in queue[part]
        }

    def _on_event(self, message: str) -> None:
        if message.startswith(_REDUNDANT):
            return
        event = json.loads(message)
        kind, data = event.get("type"), event.get("data")
        if not isinstance(data, dict):  # another pack's
            return
        run_id = str(data.get("prompt_id"))
        state = self._runs.get(run_id)
        if kind == "execution_start":
            self._current = run_id
        if state is None or state.ended.done():
            return
        if kind == "execution_start":
            state.on_step(state.step)
        elif kind == "progress":
            state.step = Step(state.step.loading, data["value"], data["max"], state.step.stage)
            state.on_step(state.step)
        elif kind == "executed" and data.get("output"):
            state.shown[data["node"]] = data["output"]
        elif kind == "execution_success":
            state.ended.set_result(state.shown)
        elif kind in ("execution_error", "execution_interrupted"):
            state.ended.set_exception(failure(kind, data))

    def _on_progress_text(self, message: bytes) -> None:
        """Read the text that a node shows; it belongs to the current run."""
        if (
            len(message) < 8
            or struct.unpack_from(">I", message)[0] != _PROGRESS_TEXT
            or self._current not in self._runs
        ):
            return
        start = 8 + struct.unpack_from(">I", message, 4)[0]
        stage = without_paths(message[start:].decode(errors="replace"))
        state = self._runs[self._current]
        state.step = Step(stage.startswith(("loading", "moving")), 0, 0, stage)
        state.on_step(state.step)

    async def _fetch(self, shown: Mapping[str, Any], results: Mapping[str, str]) -> Outputs:
        """Fetch the results from a run's outputs by node id."""
        images: dict[str, list[bytes]] = {}
        values: dict[str, Any] = {}
        for node, name in results.items():
            output = shown.get(node, {})
            if "images" in output:
                images[name] = [await self._view(file) for file in output["images"]]
            elif "value" in output:
                values[name] = output["value"][0]
        if missing := set(results.values()) - images.keys() - values.keys():
            raise ArtMancerError(
                "generation_failed",
                f"ComfyUI returned no result '{min(missing)}'. Look at its log.",
            )
        return Outputs(images, values)

    async def _view(self, file: Mapping[str, str]) -> bytes:
        params = {name: file[name] for name in ("filename", "subfolder", "type")}
        return await self._get("/view", params)


def _with_uploads(run: Run) -> dict[str, Any]:
    """Return the run's graph with the paths that its images have at the ComfyUI."""

    def path(value: Any) -> Any:
        is_upload = isinstance(value, str) and value in run.images
        return f"{UPLOAD_FOLDER}/{value} [temp]" if is_upload else value

    return {
        key: {**node, "inputs": {name: path(value) for name, value in node["inputs"].items()}}
        for key, node in run.graph.items()
    }


def _is_refused(error: Exception) -> bool:
    """Tell whether a connection failed because nothing listens at the address."""
    if not isinstance(error, aiohttp.ClientConnectorError):
        return False
    cause = error.os_error
    # Of a name's addresses that failed in different ways, aiohttp keeps only the texts.
    return isinstance(cause, ConnectionRefusedError) or (
        cause.errno is None and f"[Errno {errno.ECONNREFUSED}]" in str(cause)
    )


def _consume_exception(future: asyncio.Future[Any]) -> None:
    """Retrieve a failure that nobody waits for, which asyncio would log."""
    if not future.cancelled():
        future.exception()
