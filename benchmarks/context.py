"""Benchmark of the context: how much of the photo around its mask the draft editor should see.

A disturbance, a piece of another photo, is painted into a photo and removed again, so that the
truth is known. Rows give, for each context, the mean PSNR inside the mask, its mean difference from
that of REFERENCE with the standard error of this mean, and the mean processor time of an edit.
Every second photo is for the choice of the default; the others show what it gives. Photos are those
of scikit-image. Both time and PSNR are of the method that fills without weights.

Usage: python benchmarks/context.py [--json] [--places N]

The table is also written to benchmarks/results/context.txt.
"""

import argparse
import math
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import torch
from report import THREADS, Row, finish, table
from torch import Tensor

from artmancer import fill, images
from artmancer.conditions import prepare
from artmancer.draft import DraftEditor
from artmancer.edit import edit

CONTEXTS = (1.25, 1.5, 2.0, 2.5, 3.0, 4.0)

PHOTOS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "brick.png",
    "grass.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "gravel.png",
    "coins.png",
    "retina.jpg",
    "hubble_deep_field.jpg",
)

RADII = (24, 64)
"""Radii of the ellipses that are removed, in pixels; an ellipse is up to twice as long as wide."""

MARGIN = 8
"""Least distance of an ellipse from the photo's edge, in pixels."""

MIN_ERROR = 1e-6
"""Mean square error that counts as none: 60 dB."""

REFERENCE = 1.5
"""Context that the others are compared with, case by case."""

RESULTS = Path(__file__).parent / "results" / "context.txt"


class Case(NamedTuple):
    """A photo with a disturbance.

    Attributes
    ----------
    truth, photo : IMAGE [1, H, W, 3] without and with the disturbance
    mask : MASK [1, H, W], 1 on the disturbance
    """

    truth: Tensor
    photo: Tensor
    mask: Tensor


def photos() -> dict[str, Tensor]:
    """Return scikit-image's photos by name."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise SystemExit("scikit-image is not installed: it has the photos.")
    folder = Path(spec.origin).parent / "data"
    return {name: images.load(folder / name).image for name in PHOTOS}


def ellipse(size: tuple[int, int], radius: int, generator: torch.Generator) -> Tensor:
    """Return a MASK [1, H, W] of a turned ellipse at a random place, away from the photo's edge."""
    height, width = size
    place = torch.rand(4, generator=generator)
    length = min(radius * (1 + float(place[3])), min(size) / 2 - MARGIN)
    y = length + float(place[0]) * (height - 2 * length)
    x = length + float(place[1]) * (width - 2 * length)
    angle = math.pi * float(place[2])
    rows, columns = torch.arange(height).view(-1, 1) - y, torch.arange(width).view(1, -1) - x
    along = columns * math.cos(angle) + rows * math.sin(angle)
    across = rows * math.cos(angle) - columns * math.sin(angle)
    return ((along / length) ** 2 + (across / radius) ** 2 <= 1).float().unsqueeze(0)


def cases(name: str, all_photos: dict[str, Tensor], places: int) -> Iterator[Case]:
    """Yield the cases of one photo: `places` for each radius."""
    generator = torch.Generator().manual_seed(PHOTOS.index(name))
    other = all_photos[PHOTOS[(PHOTOS.index(name) + 1) % len(PHOTOS)]]
    truth = all_photos[name]
    height, width = truth.shape[1:3]
    for radius in RADII * places:
        mask = ellipse((height, width), radius, generator)
        rows, columns = torch.arange(height) % other.shape[1], torch.arange(width) % other.shape[2]
        disturbance = other[:, rows][:, :, columns]
        yield Case(truth, torch.where(mask.unsqueeze(-1) == 1, disturbance, truth), mask)


def processor_seconds() -> float:
    """Return the processor time of this process and its ended children: nearly the same on a busy
    machine.
    """
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def remove(case: Case, context: float) -> tuple[float, float]:
    """Remove the disturbance; return the PSNR inside the mask in dB, and processor seconds."""
    start = processor_seconds()
    conditions = prepare(case.photo, case.mask, context=context)
    result = edit(DraftEditor("removal"), conditions, seed=1).image
    seconds = processor_seconds() - start
    error = (result - case.truth)[case.mask == 1].square().mean()
    return -10 * math.log10(max(float(error), MIN_ERROR)), seconds


def measure(places: int) -> list[Row]:
    """Return the rows of both halves of the photos."""
    all_photos = photos()
    rows = []
    for half, names in (("to choose", PHOTOS[::2]), ("to show", PHOTOS[1::2])):
        some = [case for name in names for case in cases(name, all_photos, places)]
        results = {context: [remove(case, context) for case in some] for context in CONTEXTS}
        for context, values in results.items():
            name = f"{half}, {len(some)} cases, context {context:g}"
            rows.append(Row(f"{name}: PSNR in the mask", mean(psnr for psnr, _ in values), "dB"))
            gains = [
                psnr - other
                for (psnr, _), (other, _) in zip(values, results[REFERENCE], strict=True)
            ]
            error = stdev(gains) / math.sqrt(len(gains))
            rows.append(Row(f"{name}: over that of context {REFERENCE:g}", mean(gains), "dB"))
            rows.append(Row(f"{name}: standard error of this mean", error, "dB"))
            rows.append(Row(f"{name}: processor time", mean(time for _, time in values), "s"))
    return rows


def main() -> int:
    """Run the benchmark, print its rows and write them to RESULTS."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--places", type=int, default=1, help="places for each photo and radius")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    rows = measure(options.places)
    RESULTS.write_text(f"{table(rows)}\n\nThe holes were filled with {fill.method()}.\n")
    return finish(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
