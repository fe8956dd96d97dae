"""The runner in a ComfyUI: its HTTP routes for tasks and pictures, and one websocket for progress.

Works with ComfyUI 0.3.64 and newer.
"""

import asyncio
import io
import itertools
import json
import logging
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from ..errors import CODES, ArtMancerError
from .runner import Host, Lost, NodeType, Outputs, Step, Task

logger = logging.getLogger(__name__)

FOLDER = "artmancer"
"""Where pictures lie in ComfyUI's temporary folder."""

_HEARTBEAT = 40.0
"""Seconds between pings; ComfyUI has half of it to answer,
for a node can hold its event loop up.
"""

_CHECK_EVERY = 4.0
_OBSERVE_EVERY = 3  # checks
_SAID_TWICE = '{"type": "progress_state"'  # with the state of every node, after each "progress"
_TEXT = 3  # of ComfyUI's binary messages, the one that says what a node is doing
_UNREACHABLE = (aiohttp.ClientError, asyncio.TimeoutError)
_NOT_COMFYUI = (ValueError, KeyError, TypeError, AttributeError)
"""What it comes to when the answers are another server's."""

_FILES = r"(?:Image|Mask|Latent|Video|Audio|Text|3D|Dataset)"
_READS_FILES = re.compile(
    rf"Load[\w\s]*{_FILES}|{_FILES}s?[\s_]*Load|{_FILES}[\w\s]*From[\w\s]*(?:Path|Url|Dir|Folder)",
    re.I,
)
_QUOTED_PATH = re.compile(
    r"""(?<=['"])(?:file:/*)?(?:[A-Za-z]:)?[/\\][^'"]*[/\\](?=[^'"/\\]*['"])"""
)
_HOST_PATH = re.compile(
    r"(?<![\w./\\])(?<!\w:)(?:file:/*)?(?:[A-Za-z]:[/\\]|\\\\|/)"
    r"(?:[^\s'\":;,()/\\]+[/\\])*(?=[^\s'\":;,()/\\])"
    r"|(?<=\w:)/(?!/)(?:[^\s'\":;,()/\\]+/)*(?=[^\s'\":;,()/\\])"
)


@dataclass
class _Run:
    """A task at ComfyUI, as far as it was heard of; there: ComfyUI has it;
    unseen: checks that did not find it.
    """

    on_step: Callable[[Step], None]
    ended: asyncio.Future[dict[str, Any]]
    shown: dict[str, Any] = field(default_factory=dict)
    step: Step = field(default_factory=Step)
    there: bool = False
    unseen: int = 0


class ComfyRunner:
    """Runs tasks in the ComfyUI at a URL.

    Parameters
    ----------
    identity : its client id; ComfyUI sends the progress of a task to the client it had it from,
        also after a restart
    """

    def __init__(self, url: str, identity: str) -> None:
        self.url = url.rstrip("/")
        self._identity = identity
        self._http = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(None, sock_connect=2, sock_read=30)
        )
        self._runs: dict[str, _Run] = {}
        self._current: str | None = None
        self._urgent = 0
        self._connected = asyncio.Event()
        self._uploaded: set[str] = set()
        self._nodes: dict[str, NodeType] = {}
        self._about: dict[str, Any] = {}
        self._reason = "ComfyUI has not answered yet."

    async def run(self) -> None:
        try:
            while True:
                try:
                    await self._listen()
                    self._leave("ComfyUI closed the connection.")
                except _UNREACHABLE as error:
                    self._leave(f"ComfyUI does not answer ({type(error).__name__}).")
                except _NOT_COMFYUI:
                    self._leave("What answers at COMFYUI_URL does not speak as ComfyUI does.")
                await asyncio.sleep(0.25)
        finally:
            await self._http.close()

    async def _listen(self) -> None:
        """Until the connection ends."""
        url = f"{self.url}/ws?clientId={self._identity}"
        connecting = self._http.ws_connect(url, heartbeat=_HEARTBEAT, max_msg_size=0)
        async with await asyncio.wait_for(connecting, 5) as socket:
            await self._greet()
            observing = asyncio.create_task(self._keep_observing(socket))
            try:
                async for message in socket:
                    if message.type == aiohttp.WSMsgType.TEXT:
                        self._hear(message.data)
                    elif message.type == aiohttp.WSMsgType.BINARY:
                        self._hear_text(message.data)
            finally:
                observing.cancel()

    async def ready(self) -> None:
        await self._connected.wait()

    def host(self) -> Host:
        up = self._connected.is_set()
        return Host(up, None if up else self._reason, self._about, self._nodes)

    async def submit(self, task: Task) -> None:
        with self._forgotten_on_failure(task):
            try:
                sent_before = await self._upload(task, anew=False)
                status, said = await self._post_prompt(task)
                if status == 400 and sent_before:
                    # Somebody may have emptied the temporary folder.
                    await self._upload(task, anew=True)
                    status, said = await self._post_prompt(task)
            except aiohttp.ClientResponseError as error:
                sentence = f"ComfyUI answered {error.status}. Look at its log."
                raise ArtMancerError("generation_failed", sentence) from error
            except _UNREACHABLE as error:
                raise Lost from error
            if refusal := _refusal(status, said, task):
                await self.cancel(task.id)
                raise refusal
            self._runs[task.id].there = True

    async def knows(self, task: Task) -> bool:
        with self._forgotten_on_failure(task):
            try:
                # Between the queue and the history there is a moment at which a task is in neither.
                for _ in range(2):
                    if await self._finished(task.id) or await self._queued(task.id):
                        self._runs[task.id].there = True
                        return True
            except _UNREACHABLE as error:
                raise Lost from error
        self._runs.pop(task.id, None)
        return False

    @contextmanager
    def _forgotten_on_failure(self, task: Task) -> Iterator[None]:
        """Listen to a task from before it is handed over, so that no word of it is missed."""
        run = self._runs[task.id] = _Run(
            lambda step: None, asyncio.get_running_loop().create_future()
        )
        run.ended.add_done_callback(_seen)
        try:
            yield
        except BaseException:
            self._runs.pop(task.id, None)
            raise

    async def outputs(self, task: Task, on_step: Callable[[Step], None]) -> Outputs:
        run = self._runs.get(task.id)
        if run is None:
            raise Lost
        run.on_step = on_step
        if run.step != Step() or self._current == task.id:
            on_step(run.step)
        try:
            shown = await run.ended
            if not task.results.keys() <= shown.keys():
                shown = await self._history(task)
            return await self._fetch(shown, task.results)
        except aiohttp.ClientResponseError as error:
            # The file of a result is gone. ComfyUI has to forget the task, or would be taken for
            # having it still.
            with suppress(*_UNREACHABLE):
                await self._post("/history", {"delete": [task.id]})
            raise Lost from error
        except _UNREACHABLE as error:
            raise Lost from error
        finally:
            self._runs.pop(task.id, None)

    async def cancel(self, task_id: str) -> None:
        self._runs.pop(task_id, None)
        with suppress(*_UNREACHABLE):
            status, _ = await self._post(f"/api/jobs/{task_id}/cancel", {})
            if status in (404, 405):  # before 0.33
                await self._post("/queue", {"delete": [task_id]})
                await self._post("/interrupt", {"prompt_id": task_id})

    async def free(self) -> int:
        before = await self._free_memory()
        # ComfyUI's worker does it when it wakes, and says nothing; asked just after a run, it may
        # sleep over it.
        for seconds in (0.5, 1.5):
            try:
                await self._post("/free", {"unload_models": True, "free_memory": True})
            except _UNREACHABLE as error:
                raise _unavailable(self._reason) from error
            await asyncio.sleep(seconds)
        return max(0, await self._free_memory() - before)

    async def tidy(self, keep: set[str], max_age: float, max_bytes: int) -> None:
        with suppress(*_UNREACHABLE):
            await self._post(
                "/artmancer/tidy",
                {"max_age": max_age, "max_bytes": max_bytes, "keep": sorted(keep)},
            )
        self._uploaded &= keep

    async def _get(self, path: str, params: Mapping[str, str] | None = None) -> bytes:
        async with self._http.get(self.url + path, params=params, raise_for_status=True) as answer:
            return await answer.read()

    async def _get_json(self, path: str) -> Any:
        return json.loads(await self._get(path))

    async def _post(self, path: str, body: Mapping[str, Any]) -> tuple[int, bytes]:
        """The status, which may be an error's, and the answer."""
        async with self._http.post(self.url + path, json=body) as answer:
            return answer.status, await answer.read()

    async def _greet(self) -> None:
        """Learn what this ComfyUI is; it may be another than before."""
        self._uploaded.clear()
        info = await self._get_json("/object_info")
        self._nodes = {
            kind: NodeType(_reads_files(kind, about), tuple(map(str, about["output"])))
            for kind, about in info.items()
        }
        await self._observe()
        logger.info("Ready: ComfyUI %s answers at %s", self._about.get("comfyui_version"), self.url)
        self._connected.set()

    async def _keep_observing(self, socket: "aiohttp.ClientWebSocketResponse[Any]") -> None:
        for check in itertools.count(1):
            await asyncio.sleep(_CHECK_EVERY)
            with suppress(*_UNREACHABLE, *_NOT_COMFYUI):
                if check % _OBSERVE_EVERY == 0:
                    await self._observe()
                if await self._missed_an_end():
                    logger.warning("ComfyUI says nothing to us any more; connecting again")
                    await socket.close()

    async def _missed_an_end(self) -> bool:
        """Whether a task has ended without a word of it: ComfyUI drops a client that connects
        before its last connection is seen to be closed. One that was taken out of its queue by
        somebody else's hand is lost.
        """
        missed = False
        waiting = await self._in_queue()
        for task_id, run in list(self._runs.items()):
            if not run.there or task_id in waiting:
                continue
            entry = await self._get_json(f"/history/{task_id}")
            await asyncio.sleep(0)
            if run.ended.done():
                continue
            missed |= task_id in entry
            run.unseen += 1
            if (
                task_id not in entry and run.unseen > 1
            ):  # at first it may have been between the queue and the history
                run.ended.set_exception(Lost())
        return missed

    async def _observe(self) -> None:
        stats, queue = await self._get_json("/system_stats"), await self._get_json("/prompt")
        try:
            pack = await self._get_json("/artmancer/status")
        except aiohttp.ClientResponseError:
            pack = None
        system, devices = stats["system"], stats["devices"]
        device = devices[0] if devices else {}
        self._about = {
            "device": device.get("type", "cpu"),
            "device_name": device.get("name"),
            "memory_total": device.get("vram_total"),
            "memory_free": device.get("vram_free"),
            "comfyui_version": system.get("comfyui_version"),
            "queue_length": queue["exec_info"]["queue_remaining"],
            "pack": pack,
        }

    async def _free_memory(self) -> int:
        try:
            stats = await self._get_json("/system_stats")
        except (*_UNREACHABLE, ValueError) as error:
            raise _unavailable(self._reason) from error
        graphics = [device["vram_free"] for device in stats["devices"] if device["type"] != "cpu"]
        return int(stats["system"]["ram_free"] + sum(graphics))

    def _leave(self, reason: str) -> None:
        """The connection is gone: what was under way is lost until it is found again."""
        if self._connected.is_set():
            logger.warning("%s %d jobs were under way.", reason, len(self._runs))
        self._connected.clear()
        self._reason = reason
        self._current = None
        for run in self._runs.values():
            if not run.ended.done():
                run.ended.set_exception(Lost())

    async def _upload(self, task: Task, anew: bool) -> bool:
        """Send the pictures that ComfyUI does not have;
        whether there are some that it was said to have.
        """
        sent_before = False
        for name, path in task.pictures.items():
            if name in self._uploaded and not anew:
                sent_before = True
                continue
            data = await asyncio.to_thread(path.read_bytes)
            form = aiohttp.FormData({"type": "temp", "subfolder": FOLDER, "overwrite": "true"})
            form.add_field(
                "image", io.BytesIO(data), filename=name, content_type=f"image/{path.suffix[1:]}"
            )
            async with self._http.post(
                f"{self.url}/upload/image", data=form, raise_for_status=True
            ):
                pass
            self._uploaded.add(name)
        return sent_before

    async def _post_prompt(self, task: Task) -> tuple[int, Any]:
        """The status, 200 or 400, and the answer."""
        graph = {
            key: {
                **node,
                "inputs": {
                    name: f"{FOLDER}/{value} [temp]"
                    if isinstance(value, str) and value in task.pictures
                    else value
                    for name, value in node["inputs"].items()
                },
            }
            for key, node in task.graph.items()
        }
        body: dict[str, Any] = {"prompt": graph, "client_id": self._identity, "prompt_id": task.id}
        if task.urgent:
            # ComfyUI's own "front" would turn the order of urgent tasks round.
            self._urgent += 1
            body["number"] = self._urgent - 2**40
        async with self._http.post(f"{self.url}/prompt", json=body) as answer:
            if answer.status != 400:
                answer.raise_for_status()
            return answer.status, json.loads(await answer.read())

    async def _finished(self, task_id: str) -> bool:
        entry = (await self._get_json(f"/history/{task_id}")).get(task_id)
        if entry is None:
            return False
        run = self._runs[task_id]
        failures = {
            kind: data
            for kind, data in entry["status"]["messages"]
            if kind in ("execution_error", "execution_interrupted")
        }
        if not run.ended.done():
            if failures:
                run.ended.set_exception(_failure(*failures.popitem()))
            else:
                run.ended.set_result(entry["outputs"])
        return True

    async def _history(self, task: Task) -> dict[str, Any]:
        """All that a task has shown; some of it may have come while nobody listened."""
        for _ in range(20):  # ComfyUI writes it a moment after it says that the task has ended
            entry = (await self._get_json(f"/history/{task.id}")).get(task.id)
            if entry is not None:
                return dict(entry["outputs"])
            await asyncio.sleep(0.1)
        raise Lost

    async def _queued(self, task_id: str) -> bool:
        waiting = await self._in_queue()
        if waiting.get(task_id):
            self._current = task_id
        return task_id in waiting

    async def _in_queue(self) -> dict[str, bool]:
        """The tasks that wait or run, and which of them runs."""
        queue = await self._get_json("/queue")
        return {
            item[1]: part == "queue_running"
            for part in ("queue_pending", "queue_running")
            for item in queue[part]
        }

    def _hear(self, message: str) -> None:
        if message.startswith(_SAID_TWICE):
            return
        event = json.loads(message)
        kind, data = event.get("type"), event.get("data")
        if not isinstance(data, dict):  # another pack's
            return
        task_id = str(data.get("prompt_id"))
        run = self._runs.get(task_id)
        if kind == "execution_start":
            self._current = task_id
        if run is None or run.ended.done():
            return
        if kind == "execution_start":
            run.on_step(run.step)
        elif kind == "progress":
            run.step = Step(run.step.loading, data["value"], data["max"], run.step.doing)
            run.on_step(run.step)
        elif kind == "executed" and data.get("output"):
            run.shown[data["node"]] = data["output"]
        elif kind == "execution_success":
            run.ended.set_result(run.shown)
        elif kind in ("execution_error", "execution_interrupted"):
            run.ended.set_exception(_failure(kind, data))

    def _hear_text(self, message: bytes) -> None:
        """What a node is doing, in words; it belongs to the task that runs."""
        if (
            len(message) < 8
            or struct.unpack_from(">I", message)[0] != _TEXT
            or self._current not in self._runs
        ):
            return
        start = 8 + struct.unpack_from(">I", message, 4)[0]
        doing = without_paths(message[start:].decode(errors="replace"))
        run = self._runs[self._current]
        run.step = Step(doing.startswith(("loading", "moving")), 0, 0, doing)
        run.on_step(run.step)

    async def _fetch(self, shown: Mapping[str, Any], results: Mapping[str, str]) -> Outputs:
        pictures: dict[str, list[bytes]] = {}
        values: dict[str, Any] = {}
        for node, name in results.items():
            output = shown.get(node, {})
            if "images" in output:
                pictures[name] = [await self._view(picture) for picture in output["images"]]
            elif "value" in output:
                values[name] = output["value"][0]
        if missing := set(results.values()) - pictures.keys() - values.keys():
            raise ArtMancerError(
                "generation_failed", f"ComfyUI gave no result '{min(missing)}'. Look at its log."
            )
        return Outputs(pictures, values)

    async def _view(self, picture: Mapping[str, str]) -> bytes:
        return await self._get(
            "/view", {name: picture[name] for name in ("filename", "subfolder", "type")}
        )


def _seen(future: asyncio.Future[Any]) -> None:
    """Take note of a failure nobody waits for, which asyncio would complain about."""
    if not future.cancelled():
        future.exception()


def _reads_files(kind: str, info: Mapping[str, Any]) -> bool:
    """Whether a node reads a file that its user names, other than a model."""
    if _READS_FILES.search(kind):
        return True
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    settings = [spec[1] for spec in inputs.values() if len(spec) > 1 and isinstance(spec[1], dict)]
    return any(
        name.endswith("_upload") or name == "image_folder"
        for setting in settings
        for name in setting
    )


def _unavailable(reason: str) -> ArtMancerError:
    return ArtMancerError("comfyui_unavailable", f"{reason} Start ComfyUI, or check COMFYUI_URL.")


def _refusal(status: int, said: Any, task: Task) -> ArtMancerError | None:
    """Why ComfyUI refuses a graph; also where it would run a part of it."""
    for node, found in (said.get("node_errors") or {}).items():
        first = found["errors"][0]
        name = (
            task.graph.get(node, {})
            .get("inputs", {})
            .get("name", f"node {node}, {found['class_type']}")
        )
        detail = first["details"].partition(" - ")[2] or f"{first['message']}: {first['details']}"
        said_of = without_paths(detail)
        details = {"field": name, "expected": said_of, "got": "another value"}
        return ArtMancerError("invalid_request", f"{name}: {said_of}", details)
    if status == 400:
        return ArtMancerError(
            "generation_failed", f"ComfyUI refuses the graph: {without_paths(_message(said))}"
        )
    return None


def _message(said: Mapping[str, Any]) -> str:
    error = said.get("error")
    return str(error.get("message") if isinstance(error, dict) else error)


def _failure(kind: str, data: Mapping[str, Any]) -> ArtMancerError:
    """What went wrong in a run; the pack's own errors say their code as the exception's class."""
    if kind == "execution_interrupted":
        return ArtMancerError(
            "generation_failed", "The job was interrupted in ComfyUI. Send it again."
        )
    said = str(data.get("exception_message", "")).strip().splitlines()
    sentence = without_paths(said[0]) if said else "It did not say why."
    module, _, name = str(data.get("exception_type", "")).rpartition(".")
    if name in CODES and module.endswith("artmancer.errors"):
        return ArtMancerError(name, sentence)
    if "OutOfMemory" in name:
        return ArtMancerError(
            "out_of_memory", f"The device's memory is too small. {CODES['out_of_memory'].hint}"
        )
    logger.error("%s failed: %s: %s", data.get("node_type"), data.get("exception_type"), said[:1])
    return ArtMancerError("generation_failed", f"{data.get('node_type')} failed: {sentence}")


def without_paths(text: str) -> str:
    """A sentence with the host's folders taken out of it; names of files stay."""
    return _HOST_PATH.sub("", _QUOTED_PATH.sub("", text))
