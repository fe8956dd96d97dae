"""Benchmark of `artmancer batch`: the time that it adds to the edits, how long its editor is idle,
its memory, and what is left after it was killed.

Photos of mixed sizes are made from the examples, with a mark to remove in each. The draft editor
edits every fifth of them alone, one after the other, of which only the edits' own time counts,
before the batch of all and again after it; a sample of them by `artmancer edit`, one process each.
A second batch is killed at random moments.

Usage: python benchmarks/batch.py [--json] [--photos N] [--kills N]
"""

import argparse
import io
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from PIL import Image, ImageDraw
from report import Row, finish
from torch import Tensor

from artmancer import cli
from artmancer.batch.photos import DEFAULT_MASK_PATTERN, read_photos
from artmancer.commands import edit
from artmancer.commands.batch import PhotoOptions
from artmancer.commands.batch_workers import make_worker
from artmancer.draft import DraftEditor
from artmancer.editor import EditRequest
from artmancer.progress import Progress

ROOT = Path(__file__).parents[1]

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png")

SIDES = (640, 900, 1280, 1920)
"""Longest sides of the photos, in pixels."""

MARK = 48
"""Side of a mark to remove, in pixels."""

EVERY = 5
"""Distance of the photos that are edited alone. All sizes and examples are among them."""

SAMPLE = 8
"""Photos that are edited by `artmancer edit`."""

MIN_SHARE = 0.97
"""Least speed of the batch, as a share of that of the edits alone."""

GPU_SECONDS = 0.5
"""Seconds of an edit by the editor that waits; one of Qwen-Image-Edit takes more."""

MAX_GROWTH = 0.1
"""Largest growth of the memory from the first third of the batch to the last, as a share."""

MEMORY_SECONDS = 0.2
"""Seconds between two measurements of the memory."""


def make_photos(folder: Path, count: int) -> None:
    """Write photos and their masks."""
    draw = random.Random(0)
    for number in range(count):
        side = SIDES[number % len(SIDES)]
        with Image.open(ROOT / "workflows/examples" / PHOTOS[number % len(PHOTOS)]) as example:
            scale = side / max(example.size)
            size = tuple(round(length * scale) for length in example.size)
            photo = example.convert("RGB").resize(size)
        mask = Image.new("L", photo.size)
        corner = [draw.randrange(length - MARK) for length in photo.size]
        box = (*corner, corner[0] + MARK, corner[1] + MARK)
        ImageDraw.Draw(mask).ellipse(box, fill=255)
        ImageDraw.Draw(photo).ellipse(box, fill=(250, 40, 200))
        photo.save(folder / f"{number:04}.jpg", quality=95)
        mask.save(folder / f"{number:04}_mask.png")


def start(folder: Path, out: Path) -> "subprocess.Popen[str]":
    """Start a batch that prints its summary as JSON."""
    command = [sys.executable, "-m", "artmancer", "batch", folder, "-o", out]
    return subprocess.Popen(
        [*command, "--task", "removal", "--json"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def entries(out: Path) -> list[dict[str, Any]]:
    """Return the lines of results.jsonl."""
    path = out / "results.jsonl"
    if not path.exists():
        return []
    data = path.read_bytes()
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def watch_memory(process: "subprocess.Popen[str]", bytes_used: list[int]) -> None:
    """Measure the memory of a process until it ends, without the processes that it starts."""
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            bytes_used.append(watched.memory_info().rss)
        except psutil.NoSuchProcess:
            return
        time.sleep(MEMORY_SECONDS)


def own_seconds(folder: Path, count: int) -> float:
    """Return the seconds of the edits of all photos, without files: measured with every fifth photo
    after a first one, and scaled.
    """
    parser = cli.make_parser()
    source = ["batch", str(folder), "-o", str(folder / "none"), "--task", "removal"]
    options = parser.parse_args(source)
    worker = make_worker(options, PhotoOptions(options))
    photos = read_photos(folder, folder / "none", DEFAULT_MASK_PATTERN, ".png")
    seconds = []
    for photo in [photos[0], *photos[::EVERY]]:
        paths = {name: Path(path) for name, path in photo.sources.items()}
        edited = worker.edit(photo, worker.prepare(photo, paths), lambda: None)
        seconds.append(sum(edited.report["seconds"].values()))
    return count * statistics.mean(seconds[1:])


@dataclass
class Batch:
    """Measurements of a batch.

    Attributes
    ----------
    seconds : of the process, from its start to its end
    run_seconds : of the run, from its first photo on
    """

    rows: list[Row]
    seconds: float
    run_seconds: float


def measure_batch(folder: Path, out: Path, count: int) -> Batch:
    """Measure a batch, and the edits alone before it and after it: other programs on the machine
    slow both.
    """
    before = own_seconds(folder, count)
    began = time.perf_counter()
    process = start(folder, out)
    bytes_used: list[int] = []
    watcher = threading.Thread(target=watch_memory, args=(process, bytes_used))
    watcher.start()
    summary = json.loads(process.communicate()[0])
    seconds = time.perf_counter() - began
    watcher.join()
    alone = (before + own_seconds(folder, count)) / 2
    assert summary["edited"] == count, summary
    run_seconds = summary["seconds"]
    third = len(bytes_used) // 3
    first, last = max(bytes_used[third : 2 * third]), max(bytes_used[2 * third :])
    name = f"batch, {count} photos"
    idle = 1 - summary["edit_seconds"] / run_seconds
    rows = [
        Row("the edits alone, one after the other: photos a minute", 60 * count / alone, ""),
        Row(f"{name}: photos a minute", 60 * count / seconds, ""),
        Row(f"{name}: seconds of its start, in these", seconds - run_seconds, "s"),
        Row(f"{name}: speed over the edits alone, on the same cores", alone / seconds, ""),
        Row(f"{name}: the same without its start", alone / run_seconds, ""),
        Row(f"{name}: no edit runs (idle), share of the time", idle, "", 1 - MIN_SHARE),
        Row(f"{name}: memory, the second third of the time", first / 2**20, "MB"),
        Row(f"{name}: memory grows in the last third by", last / first - 1, "", MAX_GROWTH),
    ]
    return Batch(rows, seconds, run_seconds)


class WaitingEditor(DraftEditor):
    """An editor that leaves the processor free: it waits, and paints the mask gray."""

    def edit(self, request: EditRequest, progress: Progress) -> Tensor:
        time.sleep(GPU_SECONDS)
        crop = request.conditions.crop
        return torch.where(crop.mask.unsqueeze(-1) > 0, 0.5, crop.image)


def measure_waiting(folder: Path, out: Path, count: int) -> list[Row]:
    """Measure a batch with an editor that leaves the processor free."""
    load = edit.load_editor
    edit.load_editor = lambda *_: WaitingEditor("removal")
    try:
        alone = own_seconds(folder, count)
        printed = io.StringIO()
        with redirect_stdout(printed):
            cli.main(["batch", str(folder), "-o", str(out), "--task", "removal", "--json"])
    finally:
        edit.load_editor = load
    summary = json.loads(printed.getvalue())
    assert summary["edited"] == count, summary
    speed = alone / summary["seconds"]
    name = "batch, an editor that leaves the processor free: speed over its edits alone, at least"
    return [Row(name, speed, "", MIN_SHARE)]


def measure_single(folder: Path, out: Path, batch_rate: float) -> list[Row]:
    """Measure a process for each photo.

    Parameters
    ----------
    batch_rate : photos a minute of the batch
    """
    out.mkdir()
    began = time.perf_counter()
    for number in range(SAMPLE):
        photo, mask = folder / f"{number:04}.jpg", folder / f"{number:04}_mask.png"
        command = [sys.executable, "-m", "artmancer", "edit", photo, "--mask", mask]
        subprocess.run(
            [*command, "--task", "removal", "-o", out / f"{number}.png"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            check=True,
        )
    rate = 60 * SAMPLE / (time.perf_counter() - began)
    return [
        Row(f"`artmancer edit` for each of {SAMPLE} photos: photos a minute", rate, ""),
        Row("batch, times as fast as that", batch_rate / rate, ""),
    ]


def measure_kills(
    folder: Path, out: Path, undisturbed: Path, kills: int, batch: Batch
) -> list[Row]:
    """Kill a batch at random moments, let it end, and compare its results."""
    draw = random.Random(1)
    done = 0
    # So far apart that the batch is not done before the last one.
    longest = batch.seconds - batch.run_seconds + 1.5 * batch.run_seconds / kills
    while done < kills:
        process = start(folder, out)
        time.sleep(draw.uniform(0, longest))
        if process.poll() is not None:
            break
        process.kill()
        process.communicate()
        done += 1
    start(folder, out).communicate()
    expected = {entry["photo"]: entry["output"] for entry in entries(undisturbed)}
    found = [entry["photo"] for entry in entries(out)]
    differing = sum(
        not (out / output).is_file()
        or (out / output).read_bytes() != (undisturbed / output).read_bytes()
        for output in expected.values()
    )
    files = sum(1 for path in (out / "edited").rglob("*") if path.is_file())
    name = "killed at random moments"
    return [
        Row(f"{name}: kills before it was done, at least", done, "", kills),
        Row(f"{name}: photos lost", len(expected.keys() - set(found)), "", 0),
        Row(f"{name}: photos with two lines", len(found) - len(set(found)), "", 0),
        Row(f"{name}: results with other bytes", differing, "", 0),
        Row(f"{name}: files that are no result", files - len(expected), "", 0),
    ]


def main() -> int:
    """Run all parts and print their rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--photos", type=int, default=200, help="photos of the batch")
    parser.add_argument("--kills", type=int, default=20, help="kills of the second batch")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name, "photos"), Path(name, "out")
        folder.mkdir()
        make_photos(folder, options.photos)
        batch = measure_batch(folder, out, options.photos)
        rows = batch.rows
        rows += measure_waiting(folder, Path(name, "waiting"), options.photos)
        rows += measure_single(folder, Path(name, "single"), 60 * options.photos / batch.seconds)
        rows += measure_kills(folder, Path(name, "killed"), out, options.kills, batch)
    return finish(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
