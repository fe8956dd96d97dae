"""Benchmark of edits of several islands of a mask: each in a crop of its own, and all in one crop.

The draft editor removes square marks from a noisy photo, in the corners and in the middle. Each
case runs twice, in turn with the other cases; the faster run counts. The rows "without the
draft" are of an editor that returns the crop a little darker: the cost of all other steps. The last
rows are of a line across a photo, edited at 512 pixels, the size that many checkpoints were trained
at.

Seconds are processor time of all threads and of the processes that PatchMatch runs in, so that
other work on the machine does not count.

Usage: python benchmarks/islands.py [--json] [--rounds N]

Without --json the table is also written to benchmarks/results/islands.txt.
"""

import argparse
import math
import os
import random
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from report import THREADS, Row, finish, table
from torch import Tensor

from artmancer.conditions import Conditions, prepare
from artmancer.draft import DraftEditor
from artmancer.edit import edit
from artmancer.editor import Editor, EditorWithoutCheckpoint, EditRequest
from artmancer.progress import Progress

ROOT = Path(__file__).parents[1]

RESULT = Path(__file__).parent / "results" / "islands.txt"

SIZES = ((1024, 1024), (7680, 4320))
"""(width, height) of the photos, in pixels."""

MARK = {1024: 60, 7680: 200}
"""Side of a mark in pixels, by the photo's width."""

COUNTS = (1, 2, 5)
"""Numbers of marks."""

MARGIN = 0.05
"""Distance of the marks in the corners from the photo's edges, as a share of its sides."""

PLACES = ((0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.5, 0.5))
"""Places of the marks, as shares of the free height and width."""

MAX_RATIO = 2.1
"""Longest edit of two marks apart, as a multiple of the edit of one."""

LINE_SIZE = (2560, 1600)
"""(width, height) of the photo with a line."""


def photo(width: int, height: int) -> Tensor:
    """Return a photo with noise, IMAGE [1, height, width, 3]."""
    smooth = Image.open(ROOT / "workflows/examples/astronaut.png").convert("RGB")
    noise = Image.effect_noise((width, height), 32).convert("RGB")
    pixels = np.asarray(Image.blend(smooth.resize((width, height)), noise, 0.1))
    return torch.from_numpy(pixels.astype(np.float32) / 255)[None]


def marks(width: int, height: int, count: int) -> Tensor:
    """Return a MASK [1, height, width] with this number of square marks."""
    mask, side = torch.zeros(1, height, width), MARK[width]
    for down, right in PLACES[:count]:
        top = round(height * MARGIN + down * (height * (1 - 2 * MARGIN) - side))
        left = round(width * MARGIN + right * (width * (1 - 2 * MARGIN) - side))
        mask[:, top : top + side, left : left + side] = 1
    return mask


def line(width: int, height: int) -> Tensor:
    """Return a MASK [1, height, width] of a line of 4 pixels from one side to the other."""
    mask = np.zeros((height, width), np.uint8)
    cv2.line(mask, (0, height // 8), (width, height // 4), 1, 4)
    return torch.from_numpy(mask).float()[None]


def cropped(conditions: Conditions) -> float:
    """Return the megapixels of all crops."""
    return sum(math.prod(part.crop.region.size) for part in conditions.parts) / 2**20


class Darker(EditorWithoutCheckpoint):
    """An editor that costs nothing."""

    name = "darker"
    variant = "removal"
    keeps_surroundings = False

    def edit(self, request: EditRequest, progress: Progress) -> Tensor:
        """Return the crop, a little darker; see Editor.edit."""
        return request.conditions.crop.image * 0.9


def processor_time() -> float:
    """Return the seconds of all threads of this process, and of its processes that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure(width: int, height: int, rounds: int) -> list[Row]:
    """Measure all numbers of marks at one size of the photo."""
    image = photo(width, height)
    editors: dict[str, Editor] = {
        "an edit": DraftEditor("removal"),
        "an edit without the draft": Darker(),
    }
    cases = [
        (count, regions, name)
        for count in COUNTS
        for regions in ("apart", "together")
        for name in editors
    ]
    masks = {count: marks(width, height, count) for count in COUNTS}
    seconds: dict[tuple[int, str, str], list[float]] = {case: [] for case in cases}
    pixels: dict[tuple[int, str], float] = {}
    for _ in range(rounds):
        for case in random.sample(cases, len(cases)):
            count, regions, editor = case
            start = processor_time()
            conditions = prepare(image, masks[count], regions=regions)
            edit(editors[editor], conditions)
            seconds[case].append(processor_time() - start)
            pixels[count, regions] = cropped(conditions)
    fastest = {case: min(values) for case, values in seconds.items()}
    rows = []
    for count, regions in pixels:
        name = f"{width}x{height}, {count} of {MARK[width]} px, {regions}"
        rows.append(Row(f"{name}: cropped", pixels[count, regions], "MP"))
        rows += [
            Row(f"{name}: {editor}", fastest[count, regions, editor], "s") for editor in editors
        ]
    for editor in editors:
        name = f"{width}x{height}, {editor}: two apart, over one"
        ratio = fastest[2, "apart", editor] / fastest[1, "apart", editor]
        rows.append(Row(name, ratio, "", MAX_RATIO))
    return sorted(rows, key=lambda row: row.name)


def measure_line() -> list[Row]:
    """Measure a line at 512 pixels: the scale of its crops, and their number."""
    image, mask = photo(*LINE_SIZE), line(*LINE_SIZE)
    rows = []
    for regions in ("auto", "together"):
        start = processor_time()
        conditions = prepare(image, mask, resolution="512", regions=regions)
        edit(DraftEditor("removal"), conditions)
        name = f"a line across {LINE_SIZE[0]}x{LINE_SIZE[1]} at 512 px, {regions}"
        scale = min(part.crop.region.scale for part in conditions.parts)
        rows.append(Row(f"{name}: crops", len(conditions.parts), ""))
        rows.append(Row(f"{name}: pixels of a crop per pixel of the photo", scale, ""))
        rows.append(Row(f"{name}: an edit", processor_time() - start, "s"))
    return rows


def main() -> int:
    """Run all benchmarks and print their rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each case")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    rows = [row for size in SIZES for row in measure(*size, options.rounds)]
    rows += measure_line()
    if not options.json:
        head = "Seconds are processor time of all threads and of PatchMatch's processes."
        RESULT.write_text(f"{head}\n{table(rows)}\n")
    return finish(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
