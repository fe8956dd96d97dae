"""Benchmark of clicks in Smart Mask and of background removal.

They are compared with ultralytics' and rembg's own calls, which run in turns with ours in one
process. FastSAM is the tests' tiny model. rembg's model is u2netp, which the tests download.

Usage: python benchmarks/masks.py [--json] [--rounds N]
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
# ultralytics reads these when it is imported.
os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp()
os.environ["YOLO_VERBOSE"] = "False"
os.environ["YOLO_OFFLINE"] = "True"

import cv2
import numpy as np
import torch
from region import import_time
from report import THREADS, Row, finish
from support import rembg_weights
from support.shapes import scene
from torch.nn import functional

from artmancer import matting
from artmancer.images import load, to_pil, to_uint8
from artmancer.masks import fastsam
from artmancer.masks.clicks import Clicks

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "tests" / "assets" / "tiny_fastsam.pt"

HEIGHT, WIDTH = 2160, 3840
"""Size of the images that are clicked, in pixels."""

SCENE_SEED = 507
"""Seed of a scene whose shapes the tiny FastSAM finds."""

SCENE_SIDE = 1024
"""Side of the scene before it is scaled to that size, in pixels."""


def seconds(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def resize(image: torch.Tensor, size: tuple[int, int], mode: str = "nearest") -> torch.Tensor:
    """Resize an IMAGE [B, H, W, 3] to this (height, width)."""
    return functional.interpolate(image.movedim(-1, 1), size, mode=mode).movedim(1, -1)


def click(model: fastsam.FastSAM, image: torch.Tensor, point: tuple[float, float]) -> torch.Tensor:
    """Return the mask of a click, at full size."""
    everything = model.everything(image)
    return everything.draw(everything.choose(Clicks((point,)))[0])


def clicks(rounds: int) -> Iterator[Row]:
    """Time our first click and the further clicks in an image, and ultralytics' call."""
    from ultralytics import FastSAM

    pixels, shapes = scene(SCENE_SEED, SCENE_SIDE)
    large = resize(torch.from_numpy(pixels).float()[None] / 255, (HEIGHT, WIDTH))
    # Each image is a little darker than the one before, so that no cache holds its result.
    images = [large.mul(1 - index / 1000).contiguous() for index in range(rounds)]
    # Eroded, so that the mean position of a shape's pixels is well inside the shape.
    cores = [cv2.erode(shape.astype(np.uint8), np.ones((61, 61))) for shape in shapes]
    centers = [np.argwhere(core).mean(0) for core in cores]
    points = [(float(x) * WIDTH / SCENE_SIDE, float(y) * HEIGHT / SCENE_SIDE) for y, x in centers]

    def ultralytics_click(image: torch.Tensor) -> None:
        model = FastSAM(WEIGHTS)
        model(
            # ultralytics expects blue, green, red.
            to_uint8(image[0]).numpy()[..., ::-1],
            points=[list(points[0])],
            labels=[1],
            imgsz=256,
            retina_masks=True,
            device="cpu",
            verbose=False,
        )

    # The first call imports libraries and does the work that is done once in a process.
    ultralytics_click(images[0])
    fresh_times: list[float] = []
    first_times: list[float] = []
    further_times: list[float] = []
    for image in images:
        fresh_times.append(seconds(lambda image=image: ultralytics_click(image)))
        first_times.append(
            seconds(lambda image=image: click(fastsam.load(WEIGHTS), image.clone(), points[0]))
        )
        model = fastsam.load(WEIGHTS)
        click(model, image, points[0])
        for point in points:
            start = time.perf_counter()
            mask = click(model, image, point)
            further_times.append(time.perf_counter() - start)
            if not mask.any():
                sys.exit("A click gave an empty mask.")
    size = f"{WIDTH}x{HEIGHT}"
    fresh_ms = 1000 * statistics.median(fresh_times)
    first_ms = 1000 * statistics.median(first_times)
    further_ms = 1000 * statistics.median(further_times)
    yield Row(f"{size}: a fresh ultralytics FastSAM(...)(image, points=...)", fresh_ms, "ms")
    yield Row(f"{size}: our first click, model loaded anew", first_ms, "ms")
    yield Row("first click over ultralytics", first_ms / fresh_ms, "x", 1.1)
    yield Row(f"{size}: each further click, mask at full size", further_ms, "ms", 30)
    yield Row(
        "further click, as many times faster than ultralytics, at least",
        fresh_ms / further_ms,
        "x",
        50,
    )


def many_masks(rounds: int) -> Iterator[Row]:
    """Time clicks among the largest number of masks, at the size of FastSAM's own network."""
    generator = torch.Generator().manual_seed(0)

    def network(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = image.shape[2:]
        coarse = torch.randn(1, 32, 6, 10, generator=generator)
        prototypes = functional.interpolate(coarse, (height // 4, width // 4), mode="bicubic")
        # Twice as many as are kept: non-maximum suppression drops some of them.
        count = 2 * fastsam.MAX_MASKS
        size = torch.tensor([width, height])[:, None]
        centers = torch.rand(1, 2, count, generator=generator) * size
        sides = 60 + 400 * torch.rand(1, 2, count, generator=generator)
        scores = 0.5 + 0.5 * torch.rand(1, 1, count, generator=generator)
        coefficients = torch.randn(1, 32, count, generator=generator)
        return torch.cat([centers, sides, scores, coefficients], 1), prototypes

    everything = fastsam.FastSAM("noise", network, 1024).everything(
        torch.rand(1, HEIGHT, WIDTH, 3, generator=generator)
    )
    times = []
    while len(times) < 20 * rounds:
        x, y = (torch.rand(2, generator=generator) * torch.tensor([WIDTH, HEIGHT])).tolist()
        start = time.perf_counter()
        if choices := everything.choose(Clicks(((x, y),))):
            everything.draw(choices[0])
            times.append(1000 * (time.perf_counter() - start))
    grid = "x".join(str(side) for side in reversed(everything.masks.size))
    name = (
        f"{WIDTH}x{HEIGHT}, {len(everything.boxes)} masks on a grid of {grid}: each further click, "
        "mask at full size"
    )
    yield Row(name, statistics.median(times), "ms", 30)


def backgrounds(rounds: int) -> Iterator[Row]:
    """Time our background removal, and rembg.remove with the same session."""
    from rembg import remove

    folder = rembg_weights.fetch()
    if folder is None:
        yield Row("remove background, warm, over rembg.remove: no weights", None, "x", 1.15)
        return
    path = folder / "u2netp.onnx"
    photo = load(ROOT / "workflows" / "examples" / "astronaut.png").image
    image = resize(photo, (1024, 1024), "bicubic").clamp(0, 1)
    remover = matting.Remover("u2netp", path)
    start = time.perf_counter()
    remover.cut_out(image, decontaminate=False)
    yield Row(
        "remove background, 1024x1024: first call after the start", time.perf_counter() - start, "s"
    )
    session = remover.sessions["auto"]
    pixels = to_pil(image[0])
    our_times: list[float] = []
    rembg_times: list[float] = []
    for _ in range(rounds):
        our_times.append(seconds(lambda: remover.cut_out(image, decontaminate=False)))
        rembg_times.append(seconds(lambda: remove(pixels, session=session)))
    yield Row(
        "remove background, 1024x1024: rembg.remove", 1000 * statistics.median(rembg_times), "ms"
    )
    yield Row("remove background, 1024x1024: ours", 1000 * statistics.median(our_times), "ms")
    ratio = statistics.median(our_times) / statistics.median(rembg_times)
    yield Row("remove background, warm, over rembg.remove with the same session", ratio, "x", 1.15)


def main() -> int:
    """Run all benchmarks and print their rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--rounds", type=int, default=7, help="repetitions; default: %(default)s")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    return finish(
        [
            *clicks(options.rounds),
            *many_masks(options.rounds),
            *backgrounds(3 * options.rounds),
            import_time(),
        ],
        options.json,
    )


if __name__ == "__main__":
    sys.exit(main())
