"""Benchmark of `modal run modal_comfy.py::batch` while a tenth of everything fails.

The tests' stand-in takes the place of Modal: one worker, a process of its own with the tests' fake
ComfyUI, which gives each photo back. A tenth of the calls raise, one half before the edit and the
other half after it; a tenth of the requests of the command and of the worker fail; the worker is
killed again and again; every tenth result comes twice. All photos go over the volume, as large ones
do. The command runs until all photos are done.

Usage: python benchmarks/batch_modal.py [--json] [--photos N] [--kills N]
"""

import argparse
import contextlib
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from PIL import Image
from report import Row, finish
from support.fake_modal import FakeModal, RandomFailures
from support.gateway import until

from artmancer import cli
from artmancer.hosting import batch

FAILING = 0.1
"""Share of the calls, and of the requests, that fail."""

CONTAINERS = 4
"""--max-containers: it decides how many photos are on their way at a time."""

MOST_RUNS = 5
"""Runs of the command after which the benchmark gives up."""


def make_photos(folder: Path, count: int) -> None:
    """Write small photos that differ, and their masks."""
    mask = Image.new("L", (48, 32))
    mask.paste(255, (8, 8, 20, 20))
    for number in range(count):
        color = (number % 256, number // 256, 9)
        Image.new("RGB", mask.size, color).save(folder / f"{number:05}.png")
        mask.save(folder / f"{number:05}_mask.png")


class Killer(threading.Thread):
    """Kills the worker at equal distances of the photos that are done, until `stop`."""

    def __init__(self, modal: FakeModal, out: Path, photos: int, kills: int) -> None:
        super().__init__(daemon=True)
        self.killed = 0
        self._modal = modal
        self._results = out / "results.jsonl"
        self._goals = [photos * number // (kills + 1) for number in range(1, kills + 1)]
        self._stopped = False

    def run(self) -> None:
        for goal in self._goals:
            until(lambda goal=goal: self._stopped or self._count() >= goal)
            if self._stopped:
                return
            self._modal.kill("heavy")
            self.killed += 1

    def _count(self) -> int:
        return self._results.read_bytes().count(b"\n") if self._results.exists() else 0

    def stop(self) -> None:
        self._stopped = True
        self.join()


def measure(photos: int, kills: int) -> list[Row]:
    """Run the command until all photos are done."""
    batch.VOLUME_BYTES = 0
    with tempfile.TemporaryDirectory() as name:
        source, out = Path(name, "in"), Path(name, "out")
        source.mkdir()
        make_photos(source, photos)
        with FakeModal(Path(name, "modal"), share=FAILING, call_share=FAILING) as modal:
            failures = RandomFailures(FAILING, 1)
            remote = modal.remote(failures)
            parser = batch.make_parser(lambda _: modal.map, lambda: remote, CONTAINERS, 3)
            arguments = ["--input", str(source), "--output", str(out), "--task", "removal"]
            options = parser.parse_args([*arguments, "--sort", "column", "--json"])
            killer = Killer(modal, out, photos, kills)
            killer.start()
            start = time.perf_counter()
            left = []
            for _ in range(MOST_RUNS):
                # Its summary is no row of the table.
                with contextlib.redirect_stdout(sys.stderr):
                    code = cli.run(options)
                left.append(photos - len(done(out)))
                if code == 0:
                    break
            seconds = time.perf_counter() - start
            killer.stop()
            calls = list(modal.board.calls.values())
            raised = sum(call.raised for call in calls)
        return [
            Row("calls that raised", raised, ""),
            Row("requests of the command that failed", failures.failed, ""),
            Row("workers killed", killer.killed, ""),
            Row("photos left after the first run, each with its reason", left[0], ""),
            Row("runs until all were done", len(left), ""),
            Row("seconds in all", seconds, "s"),
            *compare(source, out, photos),
        ]


def lines(out: Path) -> list[dict[str, object]]:
    """Return the lines of results.jsonl."""
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def done(out: Path) -> set[str]:
    """Return the names of the photos that are done."""
    return {str(line["photo"]) for line in lines(out) if line["status"] == "done"}


def compare(source: Path, out: Path, photos: int) -> list[Row]:
    """Compare the results with the photos, which the fake ComfyUI gives back."""
    counts = Counter(str(line["photo"]) for line in lines(out))
    differing = sum(
        (source / str(line["photo"])).read_bytes() != (out / str(line["output"])).read_bytes()
        for line in lines(out)
        if line["status"] == "done"
    )
    files = sum(1 for path in (out / "edited").rglob("*") if path.is_file())
    name = f"{photos} photos"
    return [
        Row(f"{name}: lost", photos - len(done(out)), "", 0),
        Row(f"{name}: with two lines", sum(count - 1 for count in counts.values()), "", 0),
        Row(f"{name}: files that are no result", files - len(done(out)), "", 0),
        Row(f"{name}: results with other bytes", differing, "", 0),
    ]


def main() -> int:
    """Run the benchmark and print its rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--photos", type=int, default=1000, help="photos of the batch")
    parser.add_argument("--kills", type=int, default=10, help="kills of the worker")
    options = parser.parse_args()
    return finish(measure(options.photos, options.kills), options.json)


if __name__ == "__main__":
    sys.exit(main())
