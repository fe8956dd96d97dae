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
    """

    name: str
    value: float | None
    unit: str
    limit: float | None = None

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
    lines = [machine(), "", f"{'':{width}}  {'measured':>12}  {'limit':>12}"]
    for row in rows:
        value = "not measured" if row.value is None else f"{row.value:.2f} {row.unit}"
        limit = "" if row.limit is None else f"{row.limit:.2f} {row.unit}"
        missed = "  MISSED" if row.ok is False else ""
        lines.append(f"{row.name:{width}}  {value:>12}  {limit:>12}{missed}".rstrip())
    return "\n".join(lines)


def finish(rows: list[Row], as_json: bool) -> int:
    """Print the rows and return the exit code: 1 where a limit is missed."""
    if as_json:
        text = json.dumps([{**asdict(row), "ok": row.ok} for row in rows], indent=1)
    else:
        text = table(rows)
    sys.stdout.write(text + "\n")
    return 1 if any(row.ok is False for row in rows) else 0
