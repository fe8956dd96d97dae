"""The rows of a benchmark, their table, and the exit code."""

import datetime
import json
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

THREADS = 2
"""Threads of torch in every benchmark."""


@dataclass(frozen=True)
class Row:
    """A figure of a benchmark.

    Attributes
    ----------
    name : name of the figure
    value : its value; None: not measured
    unit : unit of the value and of the limit
    limit : largest value, or the smallest where the name says "at least"; None: no limit
    note : why it was not measured
    """

    name: str
    value: float | None
    unit: str
    limit: float | None = None
    note: str = ""

    @property
    def ok(self) -> bool | None:
        """Result of the comparison with the limit; True without a limit, None: not measured."""
        if self.value is None:
            return None
        if self.limit is None:
            return True
        return self.value >= self.limit if "at least" in self.name else self.value <= self.limit


def machine() -> str:
    """Return the processor, GPU, threads and torch version of this machine, and the date."""
    processor = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        if models:
            processor = models[0].split(":")[1].strip()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    today = datetime.date.today()
    return f"{processor}{gpu}, {THREADS} threads, torch {torch.__version__}, {today}"


def table(rows: list[Row]) -> str:
    """Return the rows as a table for a terminal."""
    width = max(len(row.name) for row in rows)
    return "\n".join([heading(width), *(line(row, width) for row in rows)])


def heading(width: int) -> str:
    """Return the lines above the rows, for names of this width."""
    return f"{machine()}\n\n{'':{width}}  {'measured':>12}  {'limit':>12}"


def line(row: Row, width: int) -> str:
    """Return a row as a line of the table, its name padded to this width."""
    if row.value is None:
        value = f"not measured{': ' if row.note else ''}{row.note}"
    else:
        value = f"{row.value:.2f} {row.unit}"
    limit = "" if row.limit is None else f"{row.limit:.2f} {row.unit}"
    missed = "  MISSED" if row.ok is False else ""
    return f"{row.name:{width}}  {value:>12}  {limit:>12}{missed}".rstrip()


def finish(rows: list[Row], as_json: bool) -> int:
    """Print the rows and return the exit code: 1 where a limit is missed."""
    if as_json:
        fields = [{**asdict(row), "ok": row.ok} for row in rows]
        for row in fields:
            if not row["note"]:
                del row["note"]
        text = json.dumps(fields, indent=1)
    else:
        text = table(rows)
    sys.stdout.write(text + "\n")
    return 1 if any(row.ok is False for row in rows) else 0


def private_memory() -> int | None:
    """Return the bytes that only this process holds, without those of mapped files; None: this
    system does not tell.
    """
    path = Path("/proc/self/smaps_rollup")
    if not path.exists():
        return None
    lines = path.read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("Private_Dirty")).split()[1])
