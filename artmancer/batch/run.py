"""The edits of one run: some photos at a time, each result stored whole before the next is counted.

A photo has three stages: its files are decoded, it is edited, and the result is encoded and
written. Each photo has a thread for all three, and `Worker.jobs` photos at a time may be in the
second: while one is edited, the next is decoded and the last is written, so that the GPU waits for
no file.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..errors import ArtMancerError
from .downloads import download
from .gallery import save_thumbnail
from .photos import Photo, is_url
from .results_file import (
    DOWNLOAD,
    RESULTS_FILE,
    Entry,
    ResultsFile,
    RunEnded,
    fingerprint,
    now,
    storing,
)

logger = logging.getLogger(__name__)

WAITING_PHOTOS = 2
"""Photos that are decoded or written while others are edited."""


_POLL_SECONDS = 0.5


class Stopped(Exception):
    """The run is stopped: this photo is not edited."""


@dataclass(frozen=True)
class Edited:
    """An edited photo.

    Attributes
    ----------
    save : writes the result to a path, all of it or nothing
    report : the report on the edit; see report.Report
    """

    save: Callable[[Path], None]
    report: Mapping[str, Any]


class Worker(Protocol):
    """The place where photos are edited.

    Attributes
    ----------
    jobs : photos edited at a time
    """

    jobs: int

    def prepare(self, photo: Photo, paths: Mapping[str, Path]) -> Any:
        """Read a photo's files, `paths` by field; return what `edit` needs.

        Raises
        ------
        ArtMancerError : the photo cannot be edited
        """

    def edit(self, photo: Photo, prepared: Any, check: Callable[[], None]) -> Edited:
        """Edit a photo.

        Parameters
        ----------
        check : call it several times a second; it raises Stopped where the edit is to end

        Raises
        ------
        ArtMancerError : the edit failed
        Stopped : from `check`
        RunEnded : no photo can be edited
        """


@dataclass
class Tally:
    """The counts of a run.

    Attributes
    ----------
    counts : edited photos by verdict
    errors : photos that could not be edited
    left : photos that were not edited because the run was stopped
    current : photos that were edited before, and did not change
    edit_seconds : time for which at least one photo was being edited
    """

    counts: dict[str, int] = field(default_factory=dict)
    errors: int = 0
    left: int = 0
    current: int = 0
    edit_seconds: float = 0.0


class Run:
    """The edits of one run.

    Parameters
    ----------
    work : a folder for downloads and thumbnails, see results_file.locked
    parameters : returns what a photo's result depends on besides its images, as JSON has it
    on_photo : called with each new line of the file, or None for a photo that was edited before,
        and the Tally
    """

    def __init__(
        self,
        worker: Worker,
        results: ResultsFile,
        work: Path,
        parameters: Callable[[Photo], dict[str, Any]],
        on_photo: Callable[[Entry | None, Tally], None],
    ) -> None:
        self._worker = worker
        self._results = results
        self._work = work
        self._parameters = parameters
        self._on_photo = on_photo
        self._editing = threading.Semaphore(worker.jobs)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._stop_now = threading.Event()
        self._busy = _BusyTime()
        self.tally = Tally()

    def stop(self) -> None:
        """Start no further edit; those that run are finished. A second call ends them too."""
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    def edit(self, photos: Iterable[Photo]) -> None:
        """Edit all photos that were not edited before, or changed since.

        Raises
        ------
        ArtMancerError : no photo can be edited, or no result can be stored
        """
        threads = self._worker.jobs + WAITING_PHOTOS
        running: set[Future[None]] = set()
        with ThreadPoolExecutor(threads, "photo") as pool:
            try:
                for photo in photos:
                    if self._stop.is_set():
                        self.tally.left += 1
                        continue
                    running.add(pool.submit(self._edit_photo, photo))
                    while len(running) >= threads:
                        running = _ended(running)
                while running:
                    running = _ended(running)
            except BaseException:
                self.stop()
                self.stop()
                raise
        self.tally.edit_seconds = self._busy.seconds

    def _edit_photo(self, photo: Photo) -> None:
        entry: Entry = {"photo": photo.name, "output": str(photo.output)}
        start = time.monotonic()
        with _Files(photo, self._work) as files:
            try:
                parameters = self._parameters(photo)
                if self._results.is_current(photo.name, parameters, photo.sources):
                    with self._lock:
                        self.tally.current += 1
                        self._on_photo(None, self.tally)
                    return
                entry |= {"parameters": parameters, "seed": parameters.get("seed")}
                self._start_edit(photo, files, entry)
            except (Stopped, RunEnded) as stopped:
                with self._lock:
                    self.tally.left += 1
                if not isinstance(stopped, Stopped):
                    raise
                return
            # Also a fault of a library with one odd photo ends that photo, and not the run.
            except Exception as error:  # noqa: BLE001
                self._fail(entry, error)
            entry |= {"seconds": round(time.monotonic() - start, 3), "finished": now()}
            with storing(self._results.folder):
                self._results.add(entry)
        with self._lock:
            self._count(entry)
            self._on_photo(entry, self.tally)

    def _start_edit(self, photo: Photo, files: "_Files", entry: Entry) -> None:
        """Edit a photo and store its result; add to its line of the results file."""
        with storing(self._results.folder):
            paths = files.open()
        entry["inputs"] = files.fingerprints()
        save_thumbnail(self._work, photo.name, "before", paths["input_image"])
        prepared = self._worker.prepare(photo, paths)
        with self._editing:
            if self._stop.is_set():
                raise Stopped
            with self._busy:
                edited = self._worker.edit(photo, prepared, self._check)
        target = self._results.folder / photo.output
        with storing(self._results.folder):
            target.parent.mkdir(parents=True, exist_ok=True)
            edited.save(target)
        save_thumbnail(self._work, photo.name, "after", target)
        report = dict(edited.report)
        entry |= {
            "status": "done",
            "verdict": report["verdict"],
            "verdict_reasons": list(report["verdict_reasons"]),
            "report": report,
            "error": None,
        }

    def _check(self) -> None:
        if self._stop_now.is_set():
            raise Stopped

    def _fail(self, entry: Entry, error: Exception) -> None:
        if isinstance(error, ArtMancerError):
            reason = error.as_dict()
        else:
            logger.exception("%s could not be edited", entry["photo"])
            reason = {"error_type": "generation_failed", "detail": str(error), "details": {}}
        entry |= {
            "status": "failed",
            "inputs": entry.get("inputs", {}),
            "parameters": entry.get("parameters", {}),
            "seed": entry.get("seed"),
            "verdict": None,
            "verdict_reasons": [],
            "report": None,
            "error": reason,
        }

    def _count(self, entry: Entry) -> None:
        if entry["status"] == "failed":
            self.tally.errors += 1
        else:
            verdict = entry["verdict"]
            self.tally.counts[verdict] = self.tally.counts.get(verdict, 0) + 1


class _Files:
    """The files of a photo's images. URLs are downloaded when they are opened, and removed at the
    end of the block.
    """

    def __init__(self, photo: Photo, folder: Path) -> None:
        self._sources = photo.sources
        self._folder = folder
        self._downloads: list[Path] = []
        self._paths: dict[str, Path] = {}

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *_: object) -> None:
        for path in self._downloads:
            with suppress(OSError):
                path.unlink()

    def open(self) -> dict[str, Path]:
        """Return the path of each image, by field.

        Raises
        ------
        ArtMancerError : not_found, download_failed, image_too_large
        """
        for name, source in self._sources.items():
            path = Path(source)
            if is_url(source):
                path = self._folder / f"{DOWNLOAD}{threading.get_ident()}-{name}"
                self._downloads.append(path)
                download(source, path)
            elif not path.is_file():
                raise ArtMancerError(
                    "not_found", f"The file '{path}' of {name} does not exist. Check the path."
                )
            self._paths[name] = path
        return self._paths

    def fingerprints(self) -> dict[str, Entry]:
        """Describe each image, by field; see results_file.fingerprint."""
        return {
            name: fingerprint(source, path.read_bytes() if is_url(source) else None)
            for (name, source), path in zip(
                self._sources.items(), self._paths.values(), strict=True
            )
        }


class _BusyTime:
    """A context manager that adds up the time in which at least one thread is in it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._inside = 0
        self._since = 0.0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._since = time.monotonic()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self.seconds += time.monotonic() - self._since


def _ended(running: set[Future[None]]) -> set[Future[None]]:
    """Wait a moment for a photo to end. Return those that still run; raise an error that ends the
    run.
    """
    # Without a timeout, Windows would not deliver Ctrl-C.
    done, left = wait(running, _POLL_SECONDS, FIRST_COMPLETED)
    for future in done:
        try:
            future.result()
        except RunEnded as error:
            raise error.reason from None
        except OSError as error:
            raise ArtMancerError(
                "invalid_request", f"{RESULTS_FILE} cannot be written ({error}). Look at its disk."
            ) from None
    return left
