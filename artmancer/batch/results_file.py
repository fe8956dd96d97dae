"""OUT/results.jsonl: a line for each photo, by which a run goes on where the last one stopped."""

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import ArtMancerError
from ..images import DISK_FULL

RESULTS_FILE = "results.jsonl"

WORK_FOLDER = ".artmancer"
"""Folder in OUT for what only the next run needs: the lock and the thumbnails."""

DOWNLOAD = "download-"
"""Start of the names of downloaded images in WORK_FOLDER."""


Entry = dict[str, Any]
"""A line of the file: "photo", "output", "status" ("done" or "failed"), "inputs", "parameters",
"seed", "verdict", "verdict_reasons", "report", "error", "seconds", "finished".
"""


class RunEnded(Exception):
    """No further photo can be edited or stored, for example because the gateway is gone or the disk
    is full.
    """

    def __init__(self, reason: ArtMancerError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class ResultsFile:
    """The results of all runs into one folder. Threads can share it.

    The file is appended to, one whole line at a time. The last line of a photo counts. A line that
    was cut off when the process was killed is dropped at the next start.

    Parameters
    ----------
    folder : the folder of results; it exists

    Raises
    ------
    ArtMancerError : invalid_request where the file is damaged or cannot be written
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / RESULTS_FILE
        self._lock = threading.Lock()
        self.entries: dict[str, Entry] = {}
        data = self._path.read_bytes() if self._path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                entry = json.loads(line)
                self.entries[entry["photo"]] = entry
            except (ValueError, KeyError, TypeError):
                raise ArtMancerError(
                    "invalid_request",
                    f"Line {number} of {RESULTS_FILE} is damaged. Delete the line, and its photo "
                    "is edited again.",
                ) from None
        self.drop_old_lines()

    def drop_old_lines(self) -> None:
        """Leave one line for each photo, as whoever reads the file expects.

        Raises
        ------
        OSError : the disk is full, for example; the file then stays as it is
        """
        data = b"".join(map(_line, self.entries.values()))
        if not self._path.exists() or self._path.read_bytes() == data:
            return
        partial = self._path.with_suffix(".part")
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path)

    def add(self, entry: Entry) -> None:
        """Append a photo's line, and write it to the disk.

        Raises
        ------
        OSError : the disk is full, for example; the file then has no part of the line
        """
        with self._lock, self._path.open("ab") as file:
            end = file.tell()
            try:
                file.write(_line(entry))
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    file.truncate(end)
                raise
            self.entries[entry["photo"]] = entry

    def is_current(
        self, photo: str, parameters: Mapping[str, Any], inputs: Mapping[str, str]
    ) -> bool:
        """Tell whether a photo was edited with these parameters and inputs, and its result is
        there.

        Parameters
        ----------
        parameters : as stored in "parameters"
        inputs : the path or URL of each image, by field
        """
        entry = self.entries.get(photo)
        return (
            entry is not None
            and entry["status"] == "done"
            and entry["parameters"] == parameters
            and entry["inputs"].keys() == inputs.keys()
            and (self.folder / entry["output"]).is_file()
            and all(_is_unchanged(path, entry["inputs"][name]) for name, path in inputs.items())
        )


def fingerprint(path: str, data: bytes | None = None) -> Entry:
    """Describe an input, so that a later run can tell whether it changed.

    Parameters
    ----------
    path : the image's path or URL
    data : the file's bytes, if they are at hand
    """
    file = Path(path)
    entry: Entry = {"path": path}
    if data is None:
        stat = file.stat()
        entry |= {"bytes": stat.st_size, "modified": stat.st_mtime_ns}
        data = file.read_bytes()
    return {**entry, "sha256": hashlib.sha256(data).hexdigest()}


def _is_unchanged(path: str, before: Entry) -> bool:
    """Tell whether an input is what it was. A file that was only copied or touched is; an image at
    a URL counts as unchanged.
    """
    same_path = bool(path == before["path"])
    if "modified" not in before:
        return same_path
    try:
        stat = Path(path).stat()
        same_time = (stat.st_size, stat.st_mtime_ns) == (before["bytes"], before["modified"])
        return (same_time and same_path) or bool(fingerprint(path)["sha256"] == before["sha256"])
    except OSError:
        return False


def _line(entry: Entry) -> bytes:
    return json.dumps(entry, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def now() -> str:
    """Return the time as text, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@contextmanager
def storing(folder: Path) -> Iterator[None]:
    """Let the block write below the folder of results.

    Raises
    ------
    RunEnded : the disk is full, or the folder was removed or made read-only. The block's other
        errors are raised as they are: they belong to one photo
    """
    _check_folder(folder)
    try:
        yield
    except (OSError, ArtMancerError) as error:
        is_full = (
            error.errno in DISK_FULL if isinstance(error, OSError) else error.code == "storage_full"
        )
        if is_full:
            raise _run_ended(
                "storage_full",
                f"The disk of '{folder}' is full. Free some space, and run the command again: it "
                "goes on where it stopped.",
            ) from None
        _check_folder(folder)
        raise


def _check_folder(folder: Path) -> None:
    problem = None
    # Without its own file, a folder of the same name is another one.
    if not (folder / WORK_FOLDER).is_dir():
        problem = "was removed"
    elif not os.access(folder, os.W_OK):
        problem = "cannot be written to any more"
    if problem:
        raise _run_ended(
            "invalid_request",
            f"The folder '{folder}' {problem}. Correct this, and run the command again: it edits "
            "what is missing.",
        )


def _run_ended(code: str, message: str) -> RunEnded:
    return RunEnded(ArtMancerError(code, message))


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Make the folder of results, and keep other runs out of it for the time of the block; return
    the folder for what only the next run needs.

    Raises
    ------
    ArtMancerError : invalid_request where another run is at work, or the folder cannot be written
    """
    work = folder / WORK_FOLDER
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = FileLock(work / "lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise ArtMancerError(
            "invalid_request",
            f"Another run writes into '{folder}'. Wait for its end, or choose another folder.",
        ) from None
    except OSError as error:
        raise ArtMancerError(
            "invalid_request",
            f"The folder '{folder}' cannot be written to ({error}). Choose another folder.",
        ) from None
    with lock:
        _remove_partial_files(folder)
        try:
            yield work
        finally:
            lock.release()


def _remove_partial_files(folder: Path) -> None:
    """Remove files that a killed run was writing; see images.whole_file and downloads."""
    for path in [*folder.rglob(".*.part"), *(folder / WORK_FOLDER).glob(f"{DOWNLOAD}*")]:
        path.unlink(missing_ok=True)
