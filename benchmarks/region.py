"""What crop and stitch cost, beside the limits that a machine sets: one look at the mask, one copy
of the picture.

Each size is measured in a fresh process, and results are kept alive, as ComfyUI's cache keeps them:
every copy and every stitch pays for memory of its own. The order of the calls is drawn anew in each
round. The rows "in used memory" have no limit: there each result goes where the one before it was
freed, and a copy of a small picture never leaves the processor's cache.

Usage: python benchmarks/region.py [--json] [--rounds N] [--peer FOLDER]

--peer : a checkout of ComfyUI-Inpaint-CropAndStitch, whose nodes are then measured beside ours (in
    ComfyUI's modules, from $COMFYUI_PATH or ~/comfy/ComfyUI), with their own default settings on
    the CPU
"""

import argparse
import importlib.util
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
from typing import Any

import torch
from PIL import Image
from report import THREADS, Row, finish

from artmancer import mask_ops, region
from artmancer.folders import comfyui_folder

ROOT = Path(__file__).parents[1]
SIZES = ((1024, 1024), (3840, 2160), (7680, 4320))
MASK_SIDE = 400
MAX_KEPT = 8 * 2**30


def median_ms(calls: dict[str, Callable[[], object]], rounds: int, keep: bool) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in calls}
    kept = []
    for _ in range(rounds):
        for name in random.sample(list(calls), len(calls)):
            start = time.perf_counter()
            result = calls[name]()
            taken[name].append(1000 * (time.perf_counter() - start))
            kept.append(result if keep else None)
    return {name: statistics.median(values) for name, values in taken.items()}


def crop_and_stitch(width: int, height: int, rounds: int, peer: Path | None) -> list[Row]:
    torch.set_num_threads(THREADS)
    torch.ones(MAX_KEPT // 4)  # a virtual machine gets its memory from its host at the first touch
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
    fresh = median_ms(calls, rounds, keep=True)
    used = median_ms(calls, rounds, keep=False)
    changed = (result != image).any(-1) & (mask_ops.feather(mask, crop.region.feather) == 0)
    size = f"{width}x{height}"
    return [
        Row(f"{size}: one mask.amax(2)", fresh["amax"], "ms"),
        Row(f"{size}: crop", fresh["crop"], "ms", 25 + 3 * fresh["amax"]),
        Row(f"{size}: one image.clone()", fresh["clone"], "ms"),
        Row(f"{size}: stitch", fresh["stitch"], "ms", 1.3 * fresh["clone"]),
        Row(f"{size}: one image.clone() in used memory", used["clone"], "ms"),
        Row(f"{size}: stitch in used memory", used["stitch"], "ms"),
        Row(f"{size}: pixels changed outside the feathered mask", float(changed.sum()), "px", 0),
        *(Peer(peer).rows(size, image, mask) if peer else []),
    ]


class Peer:
    """The nodes of ComfyUI-Inpaint-CropAndStitch, from a checkout."""

    def __init__(self, folder: Path) -> None:
        sys.path.insert(0, str(comfyui_folder()))
        sys.argv[1:] = ["--cpu"]
        importlib.import_module("comfy.options").enable_args_parsing()
        spec = importlib.util.spec_from_file_location("peer", folder / "inpaint_cropandstitch.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.cropper, self.stitcher = module.InpaintCropImproved(), module.InpaintStitchImproved()
        inputs = self.cropper.INPUT_TYPES()["required"]
        self.settings: dict[str, Any] = {
            name: given[1]["default"]
            for name, given in inputs.items()
            if len(given) > 1 and "default" in given[1]
        }
        self.settings["device_mode"] = "cpu (compatible)"

    def rows(self, size: str, image: torch.Tensor, mask: torch.Tensor) -> list[Row]:
        start = time.perf_counter()
        stitcher, cropped, _ = self.cropper.inpaint_crop(image=image, mask=mask, **self.settings)[
            :3
        ]
        middle = time.perf_counter()
        result = self.stitcher.inpaint_stitch(stitcher, torch.rand_like(cropped))[0]
        end = time.perf_counter()
        outside = mask_ops.feather(mask, self.settings["mask_blend_pixels"]) == 0
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
import comfy_api.latest, comfy_config.config_parser, server  # ComfyUI has them by then
start = time.perf_counter()
asyncio.run(nodes.load_custom_node(pack))
print(time.perf_counter() - start)
"""


def import_time() -> Row:
    """The pack's, in a ComfyUI that has started; the best of three."""
    name = "import of the pack in ComfyUI"
    if not (comfyui_folder() / "main.py").is_file():
        return Row(f"{name}: not measured, no ComfyUI", None, "s", 0.1)
    command = [sys.executable, "-c", IMPORT, str(comfyui_folder()), str(ROOT)]
    taken = [
        float(
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
        )
        for _ in range(3)
    ]
    return Row(name, min(taken), "s", 0.1)


def edit_of_24_megapixels() -> list[Row]:
    """Peak memory of `artmancer edit` on a noisy 6000x4000 photo, for each task."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        photo, mask, result = (
            str(Path(folder) / name) for name in ("photo.png", "mask.png", "result.png")
        )
        # Made in little memory: a process starts with the peak of the one that starts it.
        smooth = Image.open(ROOT / "workflows/examples/astronaut.png").resize((6000, 4000))
        noise = Image.effect_noise((6000, 4000), 32).convert("RGB")
        Image.blend(smooth, noise, 0.1).save(photo, compress_level=1)
        hole = Image.new("L", (6000, 4000))
        hole.paste(255, (2500, 1500, 3300, 2100))
        hole.save(mask)
        masked = ["--mask", mask]
        tasks = {
            "removal": masked,
            "insertion": [*masked, "--reference", photo, "--reference-mask", mask],
            "white_balance": [],
            "white_balance, masked": masked,
        }
        for task, options in tasks.items():
            command = [sys.executable, "-m", "artmancer.cli", "edit", photo, *options, "-o", result]
            process = subprocess.Popen(
                [*command, "--task", task.split(",")[0]], stdout=subprocess.DEVNULL
            )
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                sys.exit(f"artmancer edit failed: {task}")
            rows.append(
                Row(f"24 megapixels, {task}: peak memory", usage.ru_maxrss / 2**20, "GB", 2)
            )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--peer", type=Path)
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
