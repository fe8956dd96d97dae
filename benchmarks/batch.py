"""Benchmark of `artmancer batch`: the time that it adds to the edits, its memory, and what is left
after it was killed.

Photos of mixed sizes are made from the examples, with a mark to remove in each. The draft editor
edits them in one batch; a sample of them is edited by `artmancer edit`, one process each; and a
second batch is killed at random moments until it is done.

Usage: python benchmarks/batch.py [--json] [--photos N] [--kills N]
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from PIL import Image, ImageDraw
from report import Row, finish

ROOT = Path(__file__).parents[1]

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png")

SIDES = (640, 900, 1280, 1920)
"""Longest sides of the photos, in pixels."""

MARK = 48
"""Side of a mark to remove, in pixels."""

SAMPLE = 8
"""Photos that are edited by `artmancer edit`."""

MIN_SHARE = 0.97
"""Least share of the batch's time that is the edits' own."""

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


def measure_batch(folder: Path, out: Path, count: int) -> list[Row]:
    """Measure a batch from its start as a process to its end."""
    began = time.perf_counter()
    process = start(folder, out)
    bytes_used: list[int] = []
    watcher = threading.Thread(target=watch_memory, args=(process, bytes_used))
    watcher.start()
    summary = json.loads(process.communicate()[0])
    seconds = time.perf_counter() - began
    watcher.join()
    assert summary["edited"] == count, summary
    own = sum(sum(entry["report"]["seconds"].values()) for entry in entries(out))
    third = len(bytes_used) // 3
    first, last = max(bytes_used[third : 2 * third]), max(bytes_used[2 * third :])
    name = f"batch, {count} photos"
    return [
        Row(f"{name}: photos a minute", 60 * count / seconds, ""),
        Row(f"{name}: the edits' own time, share of all, at least", own / seconds, "", MIN_SHARE),
        Row(f"{name}: an edit runs, share of all", summary["edit_seconds"] / seconds, ""),
        Row(f"{name}: memory, the second third of the time", first / 2**20, "MB"),
        Row(f"{name}: memory grows in the last third by", last / first - 1, "", MAX_GROWTH),
    ]


def measure_single(folder: Path, out: Path) -> list[Row]:
    """Measure a process for each photo."""
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
    return [Row(f"`artmancer edit` for each of {SAMPLE} photos: photos a minute", rate, "")]


def measure_kills(folder: Path, out: Path, undisturbed: Path, kills: int) -> list[Row]:
    """Kill a batch at random moments, let it end, and compare its results."""
    draw = random.Random(1)
    done = 0
    while done < kills:
        process = start(folder, out)
        time.sleep(draw.uniform(1, 8))
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
    name = f"killed {done} times"
    return [
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
        rows = measure_batch(folder, out, options.photos)
        rows += measure_single(folder, Path(name, "single"))
        rows += measure_kills(folder, Path(name, "killed"), out, options.kills)
    return finish(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
