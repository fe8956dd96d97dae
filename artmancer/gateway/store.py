"""Jobs on disk: what was accepted outlives the gateway."""

import json
import re
import sqlite3
import uuid
from collections.abc import Iterable
from pathlib import Path
from shutil import rmtree
from typing import Any

from ..errors import ArtMancerError
from .jobs import ENDED, Job
from .runner import Outputs

_COLUMNS = (
    "id",
    "workflow",
    "lane",
    "client",
    "graph",
    "inputs",
    "pictures",
    "asked",
    "about",
    "created",
    "number",
    "state",
    "attempts",
    "counted",
    "started",
    "finished",
    "outputs",
    "error",
)
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_JSON = {"graph", "inputs", "pictures", "asked", "about", "counted", "outputs", "error"}


class Store:
    """The job database, and a folder of results beside it.

    Its calls are made in the event loop: each is a fraction of a millisecond, for with WAL only one
    in a thousand pages waits for the disk. What was written outlives the process, and the machine
    but for the last moments.

    Raises
    ------
    ArtMancerError : generation_failed where another gateway has the folder
    """

    def __init__(self, folder: Path) -> None:
        self.results = folder / "results"
        self.results.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(folder / "jobs.sqlite", timeout=1, isolation_level=None)
        try:
            # Exclusive: a second gateway on this folder would run every job again.
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            others = ", ".join(name for name in _COLUMNS if name not in ("number", "id"))
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS jobs "
                f"(number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, {others})"
            )
            self._db.execute("CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT)")
        except sqlite3.OperationalError as error:
            raise ArtMancerError(
                "generation_failed",
                f"The job database cannot be opened ({error}). Stop the gateway that uses it, or "
                "set ARTMANCER_DATA.",
            ) from None
        known = {job_id for (job_id,) in self._db.execute("SELECT id FROM jobs")}
        self.remove_results(
            entry.name
            for entry in self.results.iterdir()
            if _ID.fullmatch(entry.name) and entry.name not in known
        )

    def close(self) -> None:
        self._db.close()

    @property
    def identity(self) -> str:
        """Stays the same from start to start: ComfyUI sends the progress of a job to whom it
        had it from.
        """
        self._db.execute("INSERT OR IGNORE INTO about VALUES ('identity', ?)", (uuid.uuid4().hex,))
        return str(
            self._db.execute("SELECT value FROM about WHERE name = 'identity'").fetchone()[0]
        )

    def add(self, job: Job) -> None:
        names = [name for name in _COLUMNS if name != "number"]
        values = [_pack(job, name) for name in names]
        marks = ", ".join("?" * len(names))
        cursor = self._db.execute(f"INSERT INTO jobs ({', '.join(names)}) VALUES ({marks})", values)
        job.number = int(cursor.lastrowid or 0)

    def save(self, job: Job) -> None:
        names = ("state", "attempts", "counted", "started", "finished", "outputs", "error")
        sets = ", ".join(f"{name} = ?" for name in names)
        self._db.execute(
            f"UPDATE jobs SET {sets} WHERE id = ?", [*(_pack(job, name) for name in names), job.id]
        )

    def get(self, job_id: str) -> Job | None:
        found = self._select("WHERE id = ?", job_id)
        return found[0] if found else None

    def unfinished(self) -> list[Job]:
        """In the order they came."""
        return self._select(f"WHERE state NOT IN {ENDED} ORDER BY number")

    def _select(self, where: str, *values: Any) -> list[Job]:
        rows = self._db.execute(f"SELECT {', '.join(_COLUMNS)} FROM jobs {where}", values)
        jobs = []
        for row in rows:
            found = dict(zip(_COLUMNS, row, strict=True))
            jobs.append(
                Job(
                    **{key: json.loads(found[key]) if key in _JSON else found[key] for key in found}
                )
            )
        return jobs

    def write(self, job: Job, outputs: Outputs) -> dict[str, Any]:
        """Put a job's results into its folder; what goes into Job.outputs."""
        folder = self.results / job.id
        folder.mkdir(exist_ok=True)
        written: dict[str, Any] = {name: {"value": value} for name, value in outputs.values.items()}
        for name, pictures in outputs.pictures.items():
            files = [f"{name}-{index}.png" for index in range(len(pictures))]
            for file, data in zip(files, pictures, strict=True):
                (folder / file).write_bytes(data)
            written[name] = {"pictures": files}
        return written

    def pictures(self, job: Job, name: str) -> list[Path]:
        """The files of a result."""
        return [
            self.results / job.id / file
            for file in ((job.outputs or {}).get(name) or {}).get("pictures", [])
        ]

    def forget(self, before: float) -> list[str]:
        """Remove jobs that ended before this time; their ids."""
        gone = self._db.execute(
            f"DELETE FROM jobs WHERE state IN {ENDED} AND finished < ? RETURNING id", (before,)
        )
        return [job_id for (job_id,) in gone.fetchall()]

    def remove_results(self, job_ids: Iterable[str]) -> None:
        for job_id in job_ids:
            rmtree(self.results / job_id, ignore_errors=True)


def _pack(job: Job, name: str) -> Any:
    value = getattr(job, name)
    return json.dumps(value) if name in _JSON else value
