"""Benchmark of crop and stitch, of the pack's import, and of the memory of an edit.

The time of a crop is compared with a search of the mask (one amax), the time of a stitch with a
copy of the image (one clone). A crop cannot do less than the first, a stitch not less than the
second.

Each size is measured in a fresh process. Results are kept alive, as in ComfyUI's cache, so that
each copy and each stitch needs new memory. The order of the calls is random in each round. The rows
"in used memory" have no limit: each result is there in the memory of the result before it, and a
copy of a small image never leaves the processor's cache.

Usage: python benchmarks/region.py [--json] [--rounds N] [--peer FOLDER]

--peer : a checkout of ComfyUI-Inpaint-CropAndStitch, whose nodes are then measured for comparison,
    with their default settings on the CPU. They need ComfyUI's modules, from $COMFYUI_PATH or
    ~/comfy/ComfyUI
"""

import argparse
import itertools
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from crop_and_stitch import Peer
from PIL import Image
from report import THREADS, Row, finish

from artmancer import mask_ops, region
from artmancer.folders import comfyui_folder

ROOT = Path(__file__).parents[1]

SIZES = ((1024, 1024), (3840, 2160), (7680, 4320))
"""(width, height) of the images that are cropped, in pixels."""

MASK_SIDE = 400
"""Side of the square mask in pixels."""

MAX_KEPT = 8 * 2**30
"""Largest total size of the results that are kept alive, in bytes."""

CROP_BASE_MS = 25
"""Milliseconds that a crop may take besides three searches of the mask."""

MAX_STITCH_COPIES = 1.3
"""Largest time of a stitch, as a multiple of the time of a copy of the image."""

MAX_IMPORT_SECONDS = 0.1
"""Longest import of the pack in ComfyUI."""

MAX_EDIT_GIGABYTES = 2
"""Largest peak memory of `artmancer edit`."""

PHOTO_SIZE = (6000, 4000)
"""(width, height) of the photo whose edit's memory is measured: 24 megapixels."""

PHOTO_HOLE = (2500, 1500, 3300, 2100)
"""Box of that photo's mask: left, top, right, bottom."""


def median_ms(calls: dict[str, Callable[[], object]], rounds: int, keep: bool) -> dict[str, float]:
    """Measure the median milliseconds of each call.

    Parameters
    ----------
    keep : keep all results alive until the end
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    results = []
    for _ in range(rounds):
        for name in random.sample(list(calls), len(calls)):
            start = time.perf_counter()
            result = calls[name]()
            times[name].append(1000 * (time.perf_counter() - start))
            results.append(result if keep else None)
    return {name: statistics.median(values) for name, values in times.items()}


def crop_and_stitch(width: int, height: int, rounds: int, peer: Path | None) -> list[Row]:
    """Measure crop and stitch at one size of the image."""
    torch.set_num_threads(THREADS)
    # Memory is written once before the measurement: a virtual machine receives it from its host
    # only at the first write.
    torch.ones(MAX_KEPT // 4)
    image = torch.rand(1, height, width, 3)
    mask = torch.zeros(1, height, width)
    top, left = (height - MASK_SIDE) // 2, (width - MASK_SIDE) // 2
    mask[:, top : top + MASK_SIDE, left : left + MASK_SIDE] = 1
    crop = region.crop(image, mask)
    edited = torch.rand_like(crop.image)
    result = region.stitch(edited, image, crop.region)
    calls: dict[str, Callable[[], object]] = {
        "amax": lambda: mask.amax(2),
        "clone": lambda: image.clone(),
        "crop": lambda: region.crop(image, mask),
        "stitch": lambda: region.stitch(edited, image, crop.region),
    }
    rounds = min(rounds, MAX_KEPT // (2 * image.nbytes))
    fresh_memory = median_ms(calls, rounds, keep=True)
    used_memory = median_ms(calls, rounds, keep=False)
    changed = (result != image).any(-1) & (mask_ops.feather(mask, crop.region.feather) == 0)
    size = f"{width}x{height}"
    return [
        Row(f"{size}: one mask.amax(2)", fresh_memory["amax"], "ms"),
        Row(f"{size}: crop", fresh_memory["crop"], "ms", CROP_BASE_MS + 3 * fresh_memory["amax"]),
        Row(f"{size}: one image.clone()", fresh_memory["clone"], "ms"),
        Row(
            f"{size}: stitch",
            fresh_memory["stitch"],
            "ms",
            MAX_STITCH_COPIES * fresh_memory["clone"],
        ),
        Row(f"{size}: one image.clone() in used memory", used_memory["clone"], "ms"),
        Row(f"{size}: stitch in used memory", used_memory["stitch"], "ms"),
        Row(f"{size}: pixels changed outside the feathered mask", float(changed.sum()), "px", 0),
        *(peer_rows(Peer(peer), size, image, mask) if peer else []),
    ]


def peer_rows(peer: Peer, size: str, image: torch.Tensor, mask: torch.Tensor) -> list[Row]:
    """Measure the nodes of ComfyUI-Inpaint-CropAndStitch once."""
    start = time.perf_counter()
    stitcher, cropped = peer.crop(image, mask)
    middle = time.perf_counter()
    result = peer.stitch(stitcher, torch.rand_like(cropped))
    end = time.perf_counter()
    outside = mask_ops.feather(mask, peer.settings["mask_blend_pixels"]) == 0
    changed = (result != image).any(-1) & outside
    return [
        Row(f"{size}: the peer's crop", 1000 * (middle - start), "ms"),
        Row(f"{size}: the peer's stitch", 1000 * (end - middle), "ms"),
        Row(f"{size}: the peer's pixels changed outside its blend", float(changed.sum()), "px"),
    ]


IMPORT = """
import asyncio, logging, sys, time
sys.path.insert(0, sys.argv[1])
pack = sys.argv[2]
sys.argv[1:] = ["--cpu"]
logging.disable()
from comfy import options
options.enable_args_parsing()
import nodes
# ComfyUI has imported these before it loads custom nodes.
import comfy_api.latest, comfy_config.config_parser, server
start = time.perf_counter()
asyncio.run(nodes.load_custom_node(pack))
print(time.perf_counter() - start)
"""
"""A program that prints the seconds of the pack's import. Its arguments are the folders of ComfyUI
and of the pack.
"""


def import_time() -> Row:
    """Measure the pack's import in a ComfyUI that has started, and return the fastest of three."""
    name = "import of the pack in ComfyUI"
    if not (comfyui_folder() / "main.py").is_file():
        return Row(f"{name}: not measured, no ComfyUI", None, "s", MAX_IMPORT_SECONDS)
    command = [sys.executable, "-c", IMPORT, str(comfyui_folder()), str(ROOT)]
    seconds = []
    for _ in range(3):
        process = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds.append(float(process.stdout.split()[-1]))
    return Row(name, min(seconds), "s", MAX_IMPORT_SECONDS)


def edit_of_24_megapixels() -> list[Row]:
    """Measure the peak memory of `artmancer edit` on a noisy photo, for each variant."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        photo, mask, result = (
            str(Path(folder) / name) for name in ("photo.png", "mask.png", "result.png")
        )
        # The photo is made in little memory, because a process inherits the peak of its parent.
        smooth = Image.open(ROOT / "workflows/examples/astronaut.png").resize(PHOTO_SIZE)
        noise = Image.effect_noise(PHOTO_SIZE, 32).convert("RGB")
        Image.blend(smooth, noise, 0.1).save(photo, compress_level=1)
        hole = Image.new("L", PHOTO_SIZE)
        hole.paste(255, PHOTO_HOLE)
        hole.save(mask)
        masked = ["--mask", mask]
        edits = {
            "removal": masked,
            "insertion": [*masked, "--reference", photo, "--reference-mask", mask],
            "white_balance": [],
            "white_balance, masked": masked,
        }
        for name, options in edits.items():
            variant = name.split(",")[0]
            command = [sys.executable, "-m", "artmancer", "edit", photo, *options, "-o", result]
            process = subprocess.Popen([*command, "--task", variant], stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                sys.exit(f"artmancer edit failed: {name}")
            # Linux counts ru_maxrss in kilobytes.
            gigabytes = usage.ru_maxrss / 2**20
            rows.append(
                Row(f"24 megapixels, {name}: peak memory", gigabytes, "GB", MAX_EDIT_GIGABYTES)
            )
    return rows


def main() -> int:
    """Run all benchmarks and print their rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--rounds", type=int, default=31, help="repetitions; default: %(default)s")
    parser.add_argument("--peer", type=Path, help="checkout of ComfyUI-Inpaint-CropAndStitch")
    options = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as fresh_process:
        sizes = [(*size, options.rounds, options.peer) for size in SIZES]
        rows = [
            *itertools.chain(*fresh_process.starmap(crop_and_stitch, sizes, chunksize=1)),
            import_time(),
            *fresh_process.apply(edit_of_24_megapixels),
        ]
    return finish(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
