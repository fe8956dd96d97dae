"""What the benchmarks share: rows, their table, and the exit code."""

import datetime
import json
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

THREADS = 2


@dataclass(frozen=True)
class Row:
    """One figure.

    value : None: not measured
    limit : a maximum, or a minimum where the name says "at least"; None: a figure without one
    """

    name: str
    value: float | None
    unit: str
    limit: float | None = None

    @property
    def ok(self) -> bool | None:
        """Whether the limit is kept; None: not measured."""
        if self.value is None:
            return None
        if self.limit is None:
            return True
        return self.value >= self.limit if "at least" in self.name else self.value <= self.limit


def machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.exists()
        else []
    )
    name = names[0].split(":")[1].strip() if names else platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}{gpu}, {THREADS} threads, torch {torch.__version__}, {datetime.date.today()}"


def table(rows: list[Row]) -> str:
    width = max(len(one.name) for one in rows)
    lines = [machine(), "", f"{'':{width}}  {'measured':>12}  {'limit':>12}"]
    for one in rows:
        value = "not measured" if one.value is None else f"{one.value:.2f} {one.unit}"
        limit = "" if one.limit is None else f"{one.limit:.2f} {one.unit}"
        missed = "  MISSED" if one.ok is False else ""
        lines.append(f"{one.name:{width}}  {value:>12}  {limit:>12}{missed}".rstrip())
    return "\n".join(lines)


def finish(rows: list[Row], as_json: bool) -> int:
    """Print the rows; the exit code."""
    text = (
        json.dumps([{**asdict(one), "ok": one.ok} for one in rows], indent=1)
        if as_json
        else table(rows)
    )
    sys.stdout.write(text + "\n")
    return 1 if any(one.ok is False for one in rows) else 0
