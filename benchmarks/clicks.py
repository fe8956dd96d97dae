"""Benchmark of Smart Mask without weights: single clicks on objects whose masks were drawn by hand.

Each object is clicked at five places: deep inside, and as far from each other as possible. The mask
of the first candidate, and the best of three, are compared with the hand-made mask by intersection
over union. The seconds are processor time, of the first click on a photo and of a later one; a
candidate's number is no click. The last line of a table is the time that passed in a later click:
it is true where two cores are free.

"before" is the method of version 0.1: GrabCut at 400 pixels, five iterations, from a disc around
the click; its three candidates are discs of three radii.

The radii, the sizes and the score were chosen on the photos of the first table. Those of the second
were kept aside for another method, and looked at once then. Those of the third were kept aside
until this method was finished.

The photos are scikit-image's, and those of Debian's packages opencv-doc, lomiri-wallpapers-16.04
and mate-backgrounds; what is not installed is left out. The masks are polygons in thousandths of
the photo's longer side (click_masks.json), or PNGs of the tests.

Usage: python benchmarks/clicks.py [--root DIR] [--table fitted|seen|kept] [--skip-before]
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import cv2
import numpy as np
import skimage
import torch
from numpy.typing import NDArray
from PIL import Image
from support.paths import EXAMPLES, ROOT

from artmancer.errors import ArtMancerError
from artmancer.masks.clicks import Clicks
from artmancer.masks.grabcut import GrabCut

SIDE = 1000
"""Longest side of the photos, in pixels."""

CLICKS = 5
"""Clicks on each object."""

SKIMAGE = Path(skimage.__file__).parent / "data"
OPENCV = "usr/share/doc/opencv-doc/examples/data"
LOMIRI = "usr/share/backgrounds"
MATE = "usr/share/backgrounds/mate/nature"

FITTED = {
    "astronaut": SKIMAGE / "astronaut.png",
    "patch": SKIMAGE / "astronaut.png",
    "shuttle": SKIMAGE / "astronaut.png",
    "coffee": EXAMPLES / "coffee.png",
    "coffee_cup": EXAMPLES / "coffee.png",
    "chelsea_eye": EXAMPLES / "chelsea.png",
    "butterfly": f"{OPENCV}/butterfly.jpg",
    "fruits": f"{OPENCV}/fruits.jpg",
    "lime": f"{OPENCV}/fruits.jpg",
    "kiwi": f"{OPENCV}/fruits.jpg",
    "lemon": f"{OPENCV}/fruits.jpg",
    "dog": f"{OPENCV}/chicky_512.png",
    "motorcycle": SKIMAGE / "motorcycle_left.png",
    "headlight": SKIMAGE / "motorcycle_left.png",
    "aloe": f"{OPENCV}/aloeL.jpg",
    "bottle": f"{LOMIRI}/Wine_by_Jakkub_Mede.jpg",
    "glass": f"{LOMIRI}/Wine_by_Jakkub_Mede.jpg",
    "drum": f"{LOMIRI}/Wine_by_Jakkub_Mede.jpg",
}
"""The photo of each object that the score was fitted on; a relative path is in the root folder."""

SEEN = {
    "messi": f"{OPENCV}/messi5.jpg",
    "squirrel": f"{OPENCV}/squirrel_cls.jpg",
    "rocket": SKIMAGE / "rocket.jpg",
    "brush": f"{LOMIRI}/Picture_1A_by_freespace.jpg",
    "bird": f"{LOMIRI}/free_by_Peter_Nerlich.jpg",
    "camera": SKIMAGE / "camera.png",
    "lighter": f"{OPENCV}/stuff.jpg",
    "ladybird": f"{MATE}/LadyBird.jpg",
}
"""The photo of each object that was kept aside for another method, and looked at once."""

KEPT = {
    "spaniel": f"{LOMIRI}/friends_by_Aitzol_Berasategi.jpg",
    "man": f"{OPENCV}/basketball1.png",
    "palace": f"{OPENCV}/home.jpg",
    "orange": f"{OPENCV}/orange.jpg",
    "whale": f"{OPENCV}/rubberwhale2.png",
}
"""The photo of each object that was kept aside."""

TABLES = {"fitted": FITTED, "seen": SEEN, "kept": KEPT}
"""The tables, by name."""

MASK_FILES = {
    "astronaut": ROOT / "tests" / "assets" / "masks" / "astronaut_body.png",
    "coffee": ROOT / "tests" / "assets" / "masks" / "coffee_set.png",
    "coffee_cup": ROOT / "tests" / "assets" / "masks" / "coffee_cup.png",
    "chelsea_eye": ROOT / "tests" / "assets" / "masks" / "chelsea_eye.png",
    "patch": EXAMPLES / "astronaut_patch_mask.png",
    "shuttle": EXAMPLES / "astronaut_shuttle_mask.png",
}
"""The masks that are not polygons."""

POLYGONS = json.loads((Path(__file__).parent / "click_masks.json").read_text())

Mask = NDArray[np.bool_]
Point = tuple[float, float]


def load(name: str, photo: Path) -> tuple[NDArray[np.uint8], Mask]:
    """Return the photo [H, W, 3], and the hand-made mask of its object."""
    image = Image.open(photo).convert("RGB")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    mask = np.zeros(image.size[::-1], np.uint8)
    if name in MASK_FILES:
        mask = np.asarray(Image.open(MASK_FILES[name]).convert("L")) // 128
    for polygon in POLYGONS.get(name, []):
        corners = np.round(np.array(polygon) * max(image.size) / 1000).astype(np.int32)
        cv2.fillPoly(mask, [corners], 1)
    return np.asarray(image), mask > 0


def places(mask: Mask) -> list[Point]:
    """Return the places to click: the deepest in the mask, then those farthest from the others
    among the places that are at least a third as deep.
    """
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    rows, columns = np.nonzero(depth >= 0.35 * depth.max())
    first = np.unravel_index(depth.argmax(), depth.shape)
    chosen = [(float(first[1]), float(first[0]))]
    distance = np.full(len(rows), np.inf)
    while len(chosen) < CLICKS:
        x, y = chosen[-1]
        distance = np.minimum(distance, np.hypot(columns - x, rows - y))
        farthest = distance.argmax()
        chosen.append((float(columns[farthest]), float(rows[farthest])))
    return chosen


def before(pixels: NDArray[np.uint8], point: Point, candidate: int) -> Mask:
    """Return the mask that GrabCut finds from a disc around the click."""
    height, width = pixels.shape[:2]
    ratio = min(1.0, 400 / max(height, width))
    size = round(width * ratio), round(height * ratio)
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    labels = np.full(small.shape[:2], cv2.GC_PR_BGD, np.uint8)
    labels[[0, -1], :] = cv2.GC_BGD
    labels[:, [0, -1]] = cv2.GC_BGD
    center = round(point[0] * ratio), round(point[1] * ratio)
    radius = round((0.2, 0.1, 0.4)[candidate] * float(np.hypot(*size)))
    cv2.circle(labels, center, radius, cv2.GC_PR_FGD, -1)
    cv2.circle(labels, center, max(1, round(0.01 * max(size))), cv2.GC_FGD, -1)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)
    cv2.grabCut(small, labels, (0, 0, 1, 1), *models, 5, cv2.GC_INIT_WITH_MASK)
    inside = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
    _, parts = cv2.connectedComponents(inside)
    part = (parts == parts[center[1], center[0]]).astype(np.float32)
    return np.asarray(cv2.resize(part, (width, height)) > 0.5)


def ours(pixels: NDArray[np.uint8], points: list[Point]) -> Iterator[Callable[[int], Mask | None]]:
    """Return for each click the function from a candidate's number to its mask, None after the
    last.
    """
    image = torch.from_numpy(pixels.copy()).float()[None] / 255
    draft = GrabCut()

    def mask(point: Point, candidate: int) -> Mask | None:
        try:
            selection = draft.select(image, Clicks((point,)), candidate)
        except ArtMancerError:
            return None
        return selection.mask[0].numpy() > 0.5 if candidate < selection.count else None

    for point in points:
        yield partial(mask, point)


def measure(masks: Callable[[int], Mask | None], truth: Mask) -> tuple[float, float, float, float]:
    """Return the overlap of the first candidate, that of the best of three, and for the first the
    seconds of processor time and those that passed.
    """
    overlaps = []
    start, passed_start = time.process_time(), time.perf_counter()
    for candidate in range(3):
        mask = masks(candidate)
        if candidate == 0:
            seconds, passed = time.process_time() - start, time.perf_counter() - passed_start
        overlaps.append(0.0 if mask is None else (mask & truth).sum() / (mask | truth).sum())
    return overlaps[0], max(overlaps), seconds, passed


def table(title: str, objects: dict[str, str | Path], root: Path, pool: Executor | None) -> None:
    """Print the table of some photos; without a pool, without the method of before."""
    columns = "first  best of 3  seconds"
    write(f"\n{title:16}before: {columns}    now: {columns}, later")
    rows, passed = [], []
    for name, photo in objects.items():
        if not (root / photo).is_file():
            write(f"{name:16}no photo")
            continue
        pixels, truth = load(name, root / photo)
        points = places(truth)
        old = [(np.nan,) * 4] * len(points)
        if pool:
            clicks = [partial(before, pixels, point) for point in points]
            old = list(pool.map(measure, clicks, repeat(truth)))
        new = [measure(masks, truth) for masks in ours(pixels, points)]
        later = np.mean([seconds for _, _, seconds, _ in new[1:]])
        passed += [seconds for *_, seconds in new[1:]]
        rows.append([*np.mean(old, 0)[:3], *np.mean(new, 0)[:2], new[0][2], later])
        print_row(name, rows[-1])
    print_row("mean", list(np.mean(rows, 0)))
    write(
        "seconds that passed in a later click: median {:.2f}, 90 % below {:.2f}, "
        "longest {:.2f}".format(*np.quantile(passed, (0.5, 0.9, 1)))
    )


def write(line: str) -> None:
    """Write a line at once: the table takes minutes."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def print_row(name: str, values: list[float]) -> None:
    """Print one row of the table."""
    cells = "{:13.2f}{:11.2f}{:9.2f} {:10.2f}{:11.2f}{:9.2f}{:7.2f}".format(*values)
    write(f"{name:16}{cells}")


def one_core() -> None:
    """Let the libraries use one core: processor time is measured, not waiting for other threads."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path("/"), help="where the packages lie")
    parser.add_argument("--table", choices=list(TABLES), help="one of the tables")
    parser.add_argument("--skip-before", action="store_true", help="our own method alone: fast")
    options = parser.parse_args()
    one_core()
    # The method of before takes minutes, and one core.
    processes = partial(ProcessPoolExecutor, mp_context=get_context("spawn"), initializer=one_core)
    with nullcontext() if options.skip_before else processes() as pool:
        for name, objects in TABLES.items():
            if options.table in (None, name):
                table(name, objects, options.root, pool)
    return 0


if __name__ == "__main__":
    sys.exit(main())
