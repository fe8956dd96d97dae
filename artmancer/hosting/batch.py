"""`modal run modal_comfy.py::batch`: edit many photos on Modal's workers.

One Function.map takes all photos. Modal starts workers while photos wait, up to --max-containers,
runs an edit again whose worker died or raised, and returns the results in the order in which they
are ready. The photos are listed, stored and sorted as by `artmancer batch`.
"""

import argparse
import asyncio
import json
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError

from .. import images
from ..batch.photos import Photo
from ..batch.results_file import ResultsFile, RunEnded
from ..batch.run import Edited
from ..client.results import EditResponse
from ..commands.arguments import CommandParser, number, whole_number, write_line
from ..commands.batch import PhotoOptions, add_options, edit_photos
from ..commands.batch_workers import EditRequests
from ..errors import ArtMancerError
from ..gateway.edit_request import WORKFLOW, read_edit
from ..gateway.jobs import HEAVY, JobRecord
from ..gateway.request_errors import request_error
from ..gateway.results import result_name
from ..gateway.schemas import GenerateRequest
from ..gateway.settings import WORKFLOWS
from ..gateway.upload_store import describe
from ..gateway.workflows import WorkflowFolder
from .modal_jobs import make_order
from .remote import VOLUME_BYTES, Remote, RetryingRemote, Unavailable

T = TypeVar("T")

MAX_CONTAINERS = 100
"""Largest value of --max-containers: each adds six threads and the images of six photos."""

_ROUNDS = 2
"""Photos on their way, for each that a worker can take: while it is edited, the next one waits."""

_CHECK_SECONDS = 0.3
"""Seconds between two looks whether the run is stopped."""

_CLOSE_SECONDS = 10.0
"""Longest wait for the end of a map that has returned all results."""

EXAMPLES = """\
example:
  modal run modal_comfy.py::batch --input photos --output edited --task removal

docs/batch.md has the form of the input and of the results. Run the command again, and it edits what
is missing, changed or failed.
"""


class Map(Protocol):
    """`Function.map.aio` of the workers' method `edit`; see worker.Worker.edit."""

    def __call__(
        self,
        orders: AsyncIterator[dict[str, Any]],
        /,
        *,
        order_outputs: bool,
        return_exceptions: bool,
    ) -> AsyncIterator[Any]: ...


def make_parser(
    make_map: Callable[[int], Map],
    make_remote: Callable[[], Remote],
    containers: int,
    edits_per_container: int,
) -> argparse.ArgumentParser:
    """Make the parser of the command's arguments. Its `run` is the command; see `run`.

    Parameters
    ----------
    containers : default of --max-containers
    """
    parser = CommandParser(
        prog="modal run modal_comfy.py::batch",
        description="Edit the photos of a folder, a CSV or a JSONL file on Modal.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(
        run=partial(
            run, make_map=make_map, make_remote=make_remote, edits_per_container=edits_per_container
        )
    )
    parser.add_argument(
        "--input",
        required=True,
        type=Path,
        dest="source",
        metavar="INPUT",
        help="a folder, a .csv or a .jsonl file",
    )
    parser.add_argument(
        "--max-containers",
        type=whole_number(1, MAX_CONTAINERS),
        default=containers,
        help=f"workers that run at a time at most (default {containers}, $ARTMANCER_HEAVY_MAX)",
    )
    parser.add_argument(
        "--price",
        type=number(0, 1e9),
        help="what a worker costs a second, in your currency: the command then says what the run "
        "costs",
    )
    add_options(parser)
    return parser


def run(
    options: argparse.Namespace,
    *,
    make_map: Callable[[int], Map],
    make_remote: Callable[[], Remote],
    edits_per_container: int,
) -> int:
    """Edit all photos that are missing, changed or failed; return the exit code.

    Parameters
    ----------
    make_map : returns the map of workers that run in this many containers at most
    """
    photo_options = PhotoOptions(options)
    requests = EditRequests(options, photo_options)

    def announce(photos: list[Photo], results: ResultsFile) -> None:
        if not options.json:
            write_line(cost_line(_to_edit(photos, results, photo_options), results, options.price))

    jobs = _ROUNDS * edits_per_container * options.max_containers
    with ModalEdits(requests, make_map(options.max_containers), make_remote(), jobs) as worker:
        return edit_photos(options, photo_options, worker, announce)


def _to_edit(photos: Sequence[Photo], results: ResultsFile, photo_options: PhotoOptions) -> int:
    """Count the photos that a run will edit."""
    count = 0
    for photo in photos:
        try:
            parameters = photo_options.parameters(photo)
        except ArtMancerError:
            # A row with a mistake is refused before it costs anything.
            continue
        count += not results.is_current(photo.name, parameters, photo.sources)
    return count


def cost_line(count: int, results: ResultsFile, price: float | None) -> str:
    """Return what a run will cost, in a sentence.

    Parameters
    ----------
    count : photos to edit
    results : those of earlier runs, which have the seconds of each edit
    price : of a second of a worker
    """
    measured = [
        sum(entry["report"]["seconds"].values())
        for entry in results.entries.values()
        if entry["report"]
    ]
    if not measured:
        return (
            f"{count} photos to edit. No edit was measured yet, so the cost is unknown: edit a few "
            "photos first, and the next run into the same folder says it."
        )
    seconds = mean(measured)
    total = count * seconds
    line = (
        f"{count} photos x {seconds:.2f} s (mean of {len(measured)} edits in results.jsonl) = "
        f"{total:,.0f} s of a worker"
    )
    if price is None:
        return f"{line}. With --price, the price of a second, this line has the cost."
    return f"{line}, x {price:g} = {total * price:,.2f}, and the starts of the workers."


class ModalEdits:
    """Edits photos on Modal's workers; a batch.run.Worker, and a context manager.

    Small images are in the order of a call, large ones on the volume of results; the edited photos
    come back in the same way.

    Parameters
    ----------
    map_orders : see Map
    jobs : photos that are sent, and whose results are not here yet
    """

    def __init__(self, requests: EditRequests, map_orders: Map, remote: Remote, jobs: int) -> None:
        self.jobs = jobs
        self._requests = requests
        self._map = map_orders
        self._remote = RetryingRemote(remote)
        self._workflow = WorkflowFolder(WORKFLOWS).get(WORKFLOW)
        self._folder = f"batch-{uuid.uuid4().hex}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        # These belong to the thread of the loop.
        self._orders: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._waiting: dict[str, Future[dict[str, Any]]] = {}
        self._failures: list[BaseException] = []
        self._ended: RunEnded | None = None
        self._receiving: asyncio.Task[None]

    def __enter__(self) -> "ModalEdits":
        self._thread.start()
        self._await(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._await(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        self._receiving = asyncio.create_task(self._receive())

    async def _close(self) -> None:
        self._orders.put_nowait(None)
        # Calls of a run that was stopped end with the app.
        await asyncio.wait({self._receiving}, timeout=0 if self._waiting else _CLOSE_SECONDS)
        self._receiving.cancel()
        await asyncio.wait({self._receiving})

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the thread of the loop.

        Raises
        ------
        RunEnded : Modal does not answer
        """
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result()
        except Unavailable as error:
            raise _no_answer(error) from None

    def prepare(self, photo: Photo, paths: Mapping[str, Path]) -> Any:
        files, fields = self._requests.of(photo, paths)
        contents = {
            field: source if isinstance(source, bytes) else source.read_bytes()
            for field, source in files.items()
        }
        header = images.read_header(contents["input_image"], name="input_image")
        if reference := contents.get("reference_image"):
            matched = images.match_reference(header.profile, reference)
            contents["reference_image"] = matched or reference
        pictures: dict[str, bytes] = {}
        for field, data in contents.items():
            fields[field], _ = describe(data, field)
            pictures[fields[field]] = data
        edit = read_edit(_parse(fields))
        values = {
            name: value
            for name, value in (edit.images | edit.settings).items()
            if value is not None
        }
        context = {"photo": "input_image"}
        record = JobRecord.create(self._workflow, HEAVY, values, client="batch", context=context)
        graph = self._workflow.with_inputs(values, record.results, header.bits)
        order = make_order(record, graph, False)
        order |= {"folder": self._folder, "pictures": dict(pictures)}
        for name, data in pictures.items():
            if len(data) >= VOLUME_BYTES:
                self._await(self._remote.store(f"{self._folder}/{name}", data))
                order["pictures"][name] = None
        return order

    def edit(self, photo: Photo, prepared: Any, check: Callable[[], None]) -> Edited:
        result = self._await(self._send(prepared))
        while not wait([result], _CHECK_SECONDS).done:
            check()
        outcome = result.result()
        if outcome.get("error"):
            raise ArtMancerError.from_dict(outcome["error"])
        job_id = outcome["job"]
        (image,) = outcome["images"]["image"]
        if image is None:
            image = self._await(self._remote.fetch(f"{job_id}/{result_name('image', 0)}"))
        report = json.loads(outcome["values"]["report"])
        seconds = outcome["finished"] - outcome["started"]
        response = EditResponse(job_id, image, seconds, report["editor"], {}, report)
        return Edited(partial(response.save, strip=self._requests.strip), report)

    async def _send(self, order: dict[str, Any]) -> "Future[dict[str, Any]]":
        """Send an order; return the future of its outcome."""
        if self._ended:
            raise self._ended
        future: Future[dict[str, Any]] = Future()
        self._waiting[order["record"]["id"]] = future
        self._orders.put_nowait(order)
        return future

    async def _sent(self) -> AsyncIterator[dict[str, Any]]:
        while (order := await self._orders.get()) is not None:
            yield order

    async def _receive(self) -> None:
        """Run the map, and hand each outcome to the photo that waits for it."""
        try:
            outcomes = self._map(self._sent(), order_outputs=False, return_exceptions=True)
            async for outcome in outcomes:
                self._on_outcome(outcome)
        # Modal's client raises exceptions of many classes.
        except Exception as error:  # noqa: BLE001
            self._ended = _no_answer(error)
            for future in self._waiting.values():
                future.set_exception(self._ended)

    def _on_outcome(self, outcome: Any) -> None:
        if isinstance(outcome, BaseException):
            self._failures.append(outcome)
        # None: its outcome came before.
        elif future := self._waiting.pop(outcome["job"], None):
            future.set_result(outcome)
        # An exception does not say which photo it belongs to. Where as many calls have failed as
        # photos wait, it is these photos.
        if self._failures and len(self._failures) >= len(self._waiting):
            error = _call_failed(self._failures)
            for future in self._waiting.values():
                future.set_exception(error)
            self._waiting.clear()
            self._failures.clear()


def _parse(fields: Mapping[str, Any]) -> GenerateRequest:
    """Read the fields of a request, in which the names of images stand for their base64.

    Raises
    ------
    ArtMancerError : invalid_request
    """
    try:
        return GenerateRequest.model_validate(fields)
    except ValidationError as error:
        mistakes = [{**mistake, "loc": ("body", *mistake["loc"])} for mistake in error.errors()]
        raise request_error(mistakes, "application/json") from None


def _no_answer(error: BaseException) -> RunEnded:
    """Make the error for the run where Modal does not answer."""
    reason = str(error) or type(error).__name__
    return RunEnded(
        ArtMancerError(
            "comfyui_unavailable",
            f"Modal does not answer ({reason}). Run the command again later: it goes on.",
        )
    )


def _call_failed(failures: Sequence[BaseException]) -> ArtMancerError:
    """Make the error for photos whose calls failed in all tries."""
    reasons = sorted({str(failure) or type(failure).__name__ for failure in failures})
    return ArtMancerError(
        "generation_failed",
        f"The worker failed ({'; '.join(reasons)}). Run the command again.",
    )
