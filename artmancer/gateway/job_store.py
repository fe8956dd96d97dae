"""The job database: accepted jobs outlive the gateway's process."""

import json
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ArtMancerError
from .jobs import ENDED, Claim, Job, JobRecord

_RECORD_COLUMNS = {
    "id": "id",
    "workflow": "workflow",
    "lane": "lane",
    "client": "client",
    "inputs": "inputs",
    "pictures": "images",
    "asked": "results",
    "about": "context",
    "created": "created",
}
"""Columns of the database with the fields of JobRecord; the columns keep their first names."""

_STATE_COLUMNS = ("state", "attempts", "counted", "started", "finished", "outputs", "error")
"""Columns that change while a job lives, named as the fields of LocalJob."""

_COLUMNS = (*_RECORD_COLUMNS, "graph", "number", *_STATE_COLUMNS)
_JSON = {"graph", "inputs", "pictures", "asked", "about", "counted", "outputs", "error"}


@dataclass(eq=False, kw_only=True)
class LocalJob(Job):
    """A job that waits and runs on this machine.

    Attributes
    ----------
    graph : the workflow's graph with the inputs in it, as it was when the job came
    number : position in the order of arrival
    attempts : how often it has started to run
    counted : the present run is among the attempts
    deadline : time at which the present run has timed out, by time.monotonic
    arrived : when this process got it, by time.monotonic
    storing : it has run, and its results are being written
    """

    graph: dict[str, Any]
    number: int = 0
    attempts: int = 0
    counted: bool = False
    deadline: float | None = None
    arrived: float = field(default_factory=time.monotonic)
    storing: bool = False


@dataclass(frozen=True)
class Webhook:
    """A webhook that was not taken yet; see webhooks.py.

    Attributes
    ----------
    id : the same for each try
    body : JSON text
    created : time of the job's end
    attempts : tries so far
    due : time of the next try
    """

    id: str
    url: str
    body: str
    created: float
    attempts: int
    due: float


class JobStore:
    """Jobs in an SQLite database.

    It is called in the event loop: a call takes a fraction of a millisecond, since with WAL only
    one in a thousand pages waits for the disk. A crash of the process loses nothing; a crash of
    the machine loses the last moments.

    Raises
    ------
    ArtMancerError : generation_failed where another gateway uses the folder
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "jobs.sqlite"
        self._db = sqlite3.connect(self._file, timeout=1, isolation_level=None)
        try:
            # Exclusive: a second gateway with this folder would run every job again.
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            others = ", ".join(name for name in _COLUMNS if name not in ("number", "id"))
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS jobs "
                f"(number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, {others})"
            )
            self._db.execute("CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT)")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS keys "
                "(key TEXT PRIMARY KEY, fingerprint TEXT, job TEXT, created REAL)"
            )
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS webhooks (id TEXT PRIMARY KEY, url TEXT, body TEXT, "
                "created REAL, attempts INTEGER, due REAL)"
            )
        except sqlite3.OperationalError as error:
            raise ArtMancerError(
                "generation_failed",
                f"The job database cannot be opened ({error}). Stop the gateway that uses it, or "
                "set ARTMANCER_DATA.",
            ) from None
        self._opened = self._file.stat()

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def problem(self) -> ArtMancerError | None:
        """Return why jobs that are stored are not kept; None: they are. SQLite goes on writing to a
        file that was removed or replaced.
        """
        try:
            if os.path.samestat(self._file.stat(), self._opened):
                return None
            reason = "another file is in its place"
        except OSError as error:
            reason = error.strerror or str(error)
        return ArtMancerError(
            "generation_failed",
            f"The job database that the gateway opened is no longer at '{self._file}' ({reason}), "
            "so no job can be kept. Restart the gateway.",
        )

    @property
    def identity(self) -> str:
        """Client id at ComfyUI, the same after a restart: ComfyUI sends a job's progress to the
        client that submitted it.
        """
        self._db.execute("INSERT OR IGNORE INTO about VALUES ('identity', ?)", (uuid.uuid4().hex,))
        row = self._db.execute("SELECT value FROM about WHERE name = 'identity'").fetchone()
        return str(row[0])

    def ids(self) -> set[str]:
        """Return the ids of all jobs."""
        return {job_id for (job_id,) in self._db.execute("SELECT id FROM jobs")}

    def add(self, job: LocalJob, claim: Claim | None = None) -> None:
        """Store a new job, with the claim that it answers, and set its number."""
        names = [name for name in _COLUMNS if name != "number"]
        values = [_value(job, name) for name in names]
        marks = ", ".join("?" * len(names))
        with self._transaction():
            cursor = self._db.execute(
                f"INSERT INTO jobs ({', '.join(names)}) VALUES ({marks})", values
            )
            job.number = int(cursor.lastrowid or 0)
            if claim:
                self._db.execute(
                    "INSERT OR REPLACE INTO keys VALUES (?, ?, ?, ?)",
                    (claim.key, claim.fingerprint, job.id, job.record.created),
                )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Store all that the block stores, or nothing."""
        self._db.execute("BEGIN")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            # SQLite itself has rolled back where the disk was full.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def claimed(self, key: str, since: float) -> tuple[str, str] | None:
        """Return the fingerprint and the job id that a key was stored with; None: it was not since
        this time.
        """
        row = self._db.execute(
            "SELECT fingerprint, job FROM keys WHERE key = ? AND created >= ?", (key, since)
        ).fetchone()
        return row and (str(row[0]), str(row[1]))

    def save(self, job: LocalJob, webhook: Webhook | None = None) -> None:
        """Store the state of a job, and with its end the webhook that tells it."""
        assignments = ", ".join(f"{name} = ?" for name in _STATE_COLUMNS)
        with self._transaction():
            self._db.execute(
                f"UPDATE jobs SET {assignments} WHERE id = ?",
                [*(_value(job, name) for name in _STATE_COLUMNS), job.id],
            )
            if webhook:
                self._db.execute(
                    "INSERT OR IGNORE INTO webhooks VALUES (?, ?, ?, ?, ?, ?)", astuple(webhook)
                )

    def webhooks(self) -> list[Webhook]:
        """Return the webhooks that were not taken, first those that are due first."""
        rows = self._db.execute("SELECT * FROM webhooks ORDER BY due, created LIMIT 1000")
        return [Webhook(*row) for row in rows]

    def retry_webhook(self, webhook_id: str, due: float) -> None:
        """Store that a webhook was not taken, and when it is sent again."""
        self._db.execute(
            "UPDATE webhooks SET attempts = attempts + 1, due = ? WHERE id = ?", (due, webhook_id)
        )

    def remove_webhook(self, webhook_id: str) -> None:
        """Remove a webhook."""
        self._db.execute("DELETE FROM webhooks WHERE id = ?", (webhook_id,))

    def get(self, job_id: str) -> LocalJob | None:
        """Return a job; None: it is not known."""
        jobs = self._select("WHERE id = ?", job_id)
        return jobs[0] if jobs else None

    def unfinished(self) -> list[LocalJob]:
        """Return the jobs that have not ended, in the order they came."""
        return self._select(f"WHERE state NOT IN {ENDED} ORDER BY number")

    def ended_before(self, before: float) -> list[str]:
        """Return the ids of the jobs that ended before this time."""
        rows = self._db.execute(
            f"SELECT id FROM jobs WHERE state IN {ENDED} AND finished < ?", (before,)
        )
        return [job_id for (job_id,) in rows.fetchall()]

    def forget(self, before: float) -> None:
        """Remove the jobs that ended before this time."""
        self._db.execute(f"DELETE FROM jobs WHERE state IN {ENDED} AND finished < ?", (before,))

    def forget_keys(self, before: float) -> None:
        """Remove the keys that came before this time."""
        self._db.execute("DELETE FROM keys WHERE created < ?", (before,))

    def see(self, now: float) -> None:
        """Store that the gateway was running at this time."""
        self._db.execute("INSERT OR REPLACE INTO about VALUES ('seen', ?)", (now,))

    def resume_times(self, now: float) -> float:
        """Move all stored times as if no time had passed since the gateway was last running, and
        return by how much. Nothing ages while no gateway runs, and a clock that was set in the
        meantime makes nothing older or younger.
        """
        (last,) = self._db.execute(
            "SELECT max(t) FROM (SELECT CAST(value AS REAL) AS t FROM about WHERE name = 'seen' "
            "UNION ALL SELECT max(created) FROM jobs UNION ALL SELECT max(started) FROM jobs "
            "UNION ALL SELECT max(finished) FROM jobs)"
        ).fetchone()
        if last is None:
            return 0.0
        moved = now - float(last)
        self._db.execute(
            "UPDATE jobs SET created = created + ?1, started = started + ?1, "
            "finished = finished + ?1",
            (moved,),
        )
        self._db.execute("UPDATE keys SET created = created + ?", (moved,))
        self._db.execute("UPDATE webhooks SET created = created + ?1, due = due + ?1", (moved,))
        self.see(now)
        return moved

    def _select(self, condition: str, *values: Any) -> list[LocalJob]:
        rows = self._db.execute(f"SELECT {', '.join(_COLUMNS)} FROM jobs {condition}", values)
        return [_job(dict(zip(_COLUMNS, row, strict=True))) for row in rows]


def _value(job: LocalJob, column: str) -> Any:
    """Return what is stored in a column."""
    if column in _RECORD_COLUMNS:
        value = getattr(job.record, _RECORD_COLUMNS[column])
    else:
        value = getattr(job, column)
    return json.dumps(value) if column in _JSON else value


def _job(row: dict[str, Any]) -> LocalJob:
    values = {
        column: json.loads(value) if column in _JSON else value for column, value in row.items()
    }
    record = {field: values.pop(column) for column, field in _RECORD_COLUMNS.items()}
    return LocalJob(record=JobRecord.from_dict(record), **values)
