"""Benchmark of the methods that fill a hole: LaMa, PatchMatch and Telea; seconds and memory.

Each method fills the same square hole in the middle of a noisy photo, in a fresh process. LaMa has
its real size and random weights, which take the time of the real ones. Its rows at 2048 pixels are
of a hole that is filled at half the scale, with the textures of its surroundings. The limit of its
memory is that which ComfyUI is told to leave free.

Usage: python benchmarks/fill.py [--json] [--lama FILE]

--lama : the file of the real weights, big-lama.pt
"""

import argparse
import itertools
import multiprocessing
import os
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from report import THREADS, Row, finish

from artmancer import fill, lama
from artmancer.offload import Offloader
from artmancer.progress import no_progress

ROOT = Path(__file__).parents[1]

SIDES = (512, 1024)
"""Sides of the square photos, in pixels. LaMa sees all of them."""

LARGE_SIDE = 2048
"""Side of a photo that LaMa fills at half the scale. PatchMatch would take minutes."""

HOLE_SHARE = 0.5
"""Side of the hole, as a share of the photo's side."""

METHODS = ("lama", "patchmatch", "telea")


def photo_and_mask(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a photo with noise [1, side, side, 3] and the mask of its hole."""
    smooth = Image.open(ROOT / "workflows/examples/astronaut.png").convert("RGB")
    noise = Image.effect_noise((side, side), 32).convert("RGB")
    pixels = Image.blend(smooth.resize((side, side)), noise, 0.1).tobytes()
    photo = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(1, side, side, 3) / 255
    mask = torch.zeros(1, side, side)
    start, end = round(side * (1 - HOLE_SHARE) / 2), round(side * (1 + HOLE_SHARE) / 2)
    mask[:, start:end, start:end] = 1
    return photo, mask


def load_lama(path: Path | None) -> lama.Lama:
    """Load the real LaMa, or one with random weights."""
    if path:
        return lama.load(path)
    from spandrel.architectures.LaMa import LaMa

    torch.manual_seed(0)
    return lama.Lama(LaMa(in_nc=4, out_nc=3).eval().requires_grad_(False), Offloader())


def measure(method: str, side: int, path: Path | None) -> list[Row]:
    """Measure a method at one size, in this process."""
    torch.set_num_threads(THREADS)
    photo, mask = photo_and_mask(side)
    network = load_lama(path) if method == "lama" else None
    device = network.offloader.device.type if network else "cpu"
    if network:
        # The first run of a network prepares the library under it.
        network.fill(photo[0, :64, :64], torch.eye(64) > 0, 0, no_progress)
    before = peak_bytes(device)
    used_before = processor_seconds()
    start = time.perf_counter()
    filled = fill.fill(photo, mask, 0, no_progress, method=method, lama=network)
    seconds = time.perf_counter() - start
    used = processor_seconds() - used_before
    pixels = min(side * side, lama.MAX_PIXELS)
    limit = lama.ACTIVATION_BYTES * pixels / 2**20 if method == "lama" else None
    changed = (filled != photo).any(-1) & (mask == 0)
    name = f"{side}x{side}: {method} on {device}"
    return [
        Row(name, seconds, "s"),
        Row(f"{name}: processor time", used, "s"),
        Row(f"{name}: memory beside the photo and the weights", after(before, device), "MB", limit),
        Row(f"{name}: pixels changed outside the hole", float(changed.sum()), "px", 0),
    ]


def processor_seconds() -> float:
    """Return the processor time of this process and its ended children.

    Unlike the time on the clock, it is nearly the same on a busy machine.
    """
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def peak_bytes(device: str) -> int:
    """Return the most bytes that this process, its ended children or the GPU have used."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource

    own, children = (
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    # Linux counts in kilobytes.
    return (own + children) * 1024


def after(before: int, device: str) -> float:
    """Return the megabytes by which the peak has risen."""
    return (peak_bytes(device) - before) / 2**20


def main() -> int:
    """Run all benchmarks and print their rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--lama", type=Path, help="big-lama.pt; default: random weights")
    options = parser.parse_args()
    cases = [(method, side, options.lama) for side in SIDES for method in METHODS]
    cases.append(("lama", LARGE_SIDE, options.lama))
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as fresh_process:
        rows = itertools.chain(*fresh_process.starmap(measure, cases, chunksize=1))
        return finish(list(rows), options.json)


if __name__ == "__main__":
    sys.exit(main())
