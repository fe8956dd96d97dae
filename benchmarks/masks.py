"""What a click in Smart Mask and a removed background cost,
beside ultralytics' and rembg's own calls.

Side by side in one process, in turn. FastSAM is the tests' tiny one; rembg's model is u2netp, as
the tests fetch it.

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


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def clicks(rounds: int) -> Iterator[Row]:
    from ultralytics import FastSAM

    pixels, shapes = scene(507, 1024)
    picture = torch.from_numpy(pixels).float()[None] / 255
    images = [
        functional.interpolate(picture.movedim(-1, 1), (HEIGHT, WIDTH))
        .movedim(1, -1)
        .mul(1 - index / 1000)
        .contiguous()
        for index in range(rounds)
    ]
    middles = [
        np.argwhere(cv2.erode(shape.astype(np.uint8), np.ones((61, 61)))).mean(0)
        for shape in shapes
    ]
    points = [(float(x) * WIDTH / 1024, float(y) * HEIGHT / 1024) for y, x in middles]

    def theirs(image: torch.Tensor) -> None:
        pixels = to_uint8(image[0]).numpy()[..., ::-1]
        model = FastSAM(WEIGHTS)
        model(
            pixels,
            points=[list(points[0])],
            labels=[1],
            imgsz=256,
            retina_masks=True,
            device="cpu",
            verbose=False,
        )

    def click(
        model: fastsam.FastSAM, image: torch.Tensor, point: tuple[float, float]
    ) -> torch.Tensor:
        everything = model.everything(image)
        return everything.draw(everything.choose(Clicks((point,)))[0])

    theirs(images[0])  # imports, and what is made ready once a process
    fresh, first, second = [], [], []
    for image in images:
        fresh.append(seconds(lambda image=image: theirs(image)))
        first.append(
            seconds(lambda image=image: click(fastsam.load(WEIGHTS), image.clone(), points[0]))
        )
        model = fastsam.load(WEIGHTS)
        click(model, image, points[0])
        for point in points:
            start = time.perf_counter()
            mask = click(model, image, point)
            second.append(time.perf_counter() - start)
            if not mask.any():
                sys.exit("A click gave an empty mask.")
    size = f"{WIDTH}x{HEIGHT}"
    fresh_time, first_time, second_time = (
        1000 * statistics.median(one) for one in (fresh, first, second)
    )
    yield Row(f"{size}: a fresh ultralytics FastSAM(...)(image, points=...)", fresh_time, "ms")
    yield Row(f"{size}: our first click, model loaded anew", first_time, "ms")
    yield Row("first click over ultralytics", first_time / fresh_time, "x", 1.1)
    yield Row(f"{size}: each further click, mask at full size", second_time, "ms", 30)
    yield Row(
        "further click, as many times faster than ultralytics, at least",
        fresh_time / second_time,
        "x",
        50,
    )


def many(rounds: int) -> Iterator[Row]:
    """Clicks among as many masks as there can be, of the size that FastSAM's own network makes."""
    noise = torch.Generator().manual_seed(0)

    def network(picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = picture.shape[2:]
        coarse = torch.randn(1, 32, 6, 10, generator=noise)
        prototypes = functional.interpolate(coarse, (height // 4, width // 4), mode="bicubic")
        count = 2 * fastsam.MOST
        places = torch.rand(1, 2, count, generator=noise) * torch.tensor([width, height])[:, None]
        sides = 60 + 400 * torch.rand(1, 2, count, generator=noise)
        scores = 0.5 + 0.5 * torch.rand(1, 1, count, generator=noise)
        coefficients = torch.randn(1, 32, count, generator=noise)
        return torch.cat([places, sides, scores, coefficients], 1), prototypes

    everything = fastsam.FastSAM("noise", network, 1024).everything(
        torch.rand(1, HEIGHT, WIDTH, 3, generator=noise)
    )
    took = []
    while len(took) < 20 * rounds:
        x, y = (torch.rand(2, generator=noise) * torch.tensor([WIDTH, HEIGHT])).tolist()
        start = time.perf_counter()
        if choices := everything.choose(Clicks(((x, y),))):
            everything.draw(choices[0])
            took.append(1000 * (time.perf_counter() - start))
    grid = "x".join(str(side) for side in reversed(everything.masks.size))
    what = (
        f"{WIDTH}x{HEIGHT}, {len(everything.boxes)} masks on a grid of {grid}: each further click, "
        "mask at full size"
    )
    yield Row(what, statistics.median(took), "ms", 30)


def backgrounds(rounds: int) -> Iterator[Row]:
    from rembg import remove

    folder = rembg_weights.fetch()
    if folder is None:
        yield Row(
            "remove background, warm, over rembg.remove: no weights to be had", None, "x", 1.15
        )
        return
    path = folder / "u2netp.onnx"
    photo = load(ROOT / "workflows" / "examples" / "astronaut.png").image
    image = (
        functional.interpolate(photo.movedim(-1, 1), (1024, 1024), mode="bicubic")
        .movedim(1, -1)
        .clamp(0, 1)
    )
    remover = matting.Remover("u2netp", path)
    start = time.perf_counter()
    remover.cut_out(image, decontaminate=False)
    yield Row(
        "remove background, 1024x1024: first call after the start", time.perf_counter() - start, "s"
    )
    session = next(iter(remover._sessions.values()))
    pixels = to_pil(image[0])
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(seconds(lambda: remover.cut_out(image, decontaminate=False)))
        theirs.append(seconds(lambda: remove(pixels, session=session)))
    yield Row("remove background, 1024x1024: rembg.remove", 1000 * statistics.median(theirs), "ms")
    yield Row("remove background, 1024x1024: ours", 1000 * statistics.median(ours), "ms")
    ratio = statistics.median(ours) / statistics.median(theirs)
    yield Row("remove background, warm, over rembg.remove with the same session", ratio, "x", 1.15)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    return finish(
        [
            *clicks(options.rounds),
            *many(options.rounds),
            *backgrounds(3 * options.rounds),
            import_time(),
        ],
        options.json,
    )


if __name__ == "__main__":
    sys.exit(main())
