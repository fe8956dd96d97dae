"""Benchmark of removals without weights: the truth that a fill finds, and what it costs.

Holes of the shapes of objects are cut into untouched photos, and each method fills them: PSNR and
SSIM of the hole against the photo, and processor time on one thread. The rim that the draft editor
fills as well was chosen on the first photos; the others were kept aside.

Then another photo's texture is pasted into each hole as an object, with an edge as soft as a
camera's, and the draft editor removes it with a mask that ends at its edge, and with one that ends
2 pixels inside. What is measured is the result within 8 pixels of the object.

The photos that are not in scikit-image's package are in Debian's packages opencv-doc,
lomiri-wallpapers-16.04 and mate-backgrounds: `apt-get download`, then `dpkg -x` into the folder of
--photos. Holes in photos that are not there are not measured.

Usage: python benchmarks/removal.py [--json] [--photos FOLDER] [--sheet FILE]

With all photos, and without --json, the table is also written to benchmarks/results/removal.txt.

--photos : a folder with more photos, in it and in its folders
--sheet : a picture of all holes and fills to write
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from report import Row, finish, table
from skimage.metrics import structural_similarity
from skimage.restoration import inpaint_biharmonic

from artmancer import fill, images
from artmancer.conditions import prepare
from artmancer.draft import DraftEditor
from artmancer.edit import edit
from artmancer.progress import no_progress

Pixels = NDArray[np.uint8]
Plane = NDArray[np.bool_]

RESULT = Path(__file__).parent / "results" / "removal.txt"

SIDE = 512
"""Longest side of the photos, in pixels."""

NEAR = 8
"""Width of the surroundings of an object whose result is measured, in pixels."""

SHORT = 2
"""Pixels by which the tight mask falls short of the object."""

EDGE = 0.7
"""Standard deviation of the Gaussian that softens the edge of a pasted object, in pixels."""

SHAPES: dict[str, str] = {
    "person": "0,-50 6,-48 8,-43 6,-37 4,-35 13,-31 16,-20 20,-2 17,2 12,-12 11,5 12,30 13,47 "
    "17,50 6,50 5,30 1,10 -2,30 -4,50 -14,50 -11,46 -11,20 -12,0 -13,-10 -20,3 -23,-1 -17,-20 "
    "-13,-31 -4,-35 -7,-39 -8,-44 -5,-49",
    "bottle": "-5,-50 5,-50 5,-28 10,-18 13,-10 13,47 10,50 -10,50 -13,47 -13,-10 -10,-18 -5,-28",
    "bird": "-70,-35 -40,-30 -10,-8 5,-15 30,-50 75,-50 50,-20 30,10 10,25 10,40 -10,50 -10,25 "
    "-30,15 -55,-10",
    "dog": "-75,-10 -70,-30 -55,-45 -50,-50 -42,-42 -35,-20 30,-20 45,-25 65,-50 70,-45 55,-10 "
    "55,10 60,50 48,50 42,15 -20,15 -22,50 -35,50 -38,10 -45,-2 -65,2",
}
"""Corners of the holes' shapes around their center, in percent of their height; a ball is a
circle.
"""


class Hole(NamedTuple):
    """A hole in a photo; its center and height in thousandths of the photo's longest side."""

    photo: str
    shape: str
    x: int
    y: int
    height: int


CHOSEN_ON = (
    Hole("coffee.png", "ball", 880, 110, 140),
    Hole("coffee.png", "bottle", 330, 570, 160),
    Hole("camera.png", "dog", 760, 800, 170),
    Hole("camera.png", "ball", 650, 470, 140),
    Hole("gravel.png", "person", 500, 500, 420),
    Hole("astronaut.png", "bottle", 95, 330, 260),
    Hole("astronaut.png", "ball", 395, 205, 80),
    Hole("building.jpg", "person", 330, 270, 230),
    Hole("building.jpg", "ball", 640, 270, 150),
    Hole("building.jpg", "dog", 250, 620, 70),
    Hole("leuvenA.jpg", "person", 560, 570, 230),
    Hole("leuvenA.jpg", "ball", 150, 330, 110),
    Hole("sunset_by_Aitzol_Berasategi.jpg", "bird", 250, 120, 110),
    Hole("sunset_by_Aitzol_Berasategi.jpg", "dog", 250, 560, 100),
    Hole("Storm.jpg", "person", 520, 500, 200),
    Hole("friends_by_Aitzol_Berasategi.jpg", "ball", 450, 880, 110),
    Hole("stuff.jpg", "bottle", 800, 300, 260),
    Hole("fruits.jpg", "ball", 560, 330, 130),
)
"""Holes on which the width of the rim was chosen."""

KEPT_ASIDE = (
    Hole("brick.png", "person", 500, 500, 420),
    Hole("brick.png", "ball", 250, 300, 160),
    Hole("grass.png", "dog", 500, 500, 260),
    Hole("motorcycle_left.png", "ball", 240, 90, 130),
    Hole("motorcycle_left.png", "bottle", 60, 560, 150),
    Hole("chelsea.png", "ball", 300, 250, 110),
    Hole("chelsea.png", "bottle", 560, 180, 200),
    Hole("home.jpg", "person", 700, 560, 220),
    Hole("home.jpg", "bird", 250, 400, 110),
    Hole("coins.png", "ball", 160, 400, 130),
    Hole("aitzgorri_by_Aitzol_Berasategi.jpg", "person", 480, 470, 200),
    Hole("aitzgorri_by_Aitzol_Berasategi.jpg", "ball", 640, 230, 110),
    Hole("Bridge_by_Sander_Klootwijk.jpg", "ball", 560, 280, 130),
    Hole("picosdeeuropa_by_Aitzol_Berasategi.jpg", "dog", 450, 560, 120),
    Hole("Dune.jpg", "ball", 560, 370, 140),
    Hole("pexels_double_decker_bus.jpg", "ball", 640, 560, 120),
    Hole("baboon.jpg", "ball", 620, 430, 140),
    Hole("Blinds.jpg", "person", 500, 310, 260),
    Hole("board.jpg", "bottle", 400, 450, 160),
    Hole("LadyBird.jpg", "bird", 200, 500, 140),
    Hole("graf1.png", "ball", 250, 600, 140),
    Hole("messi5.jpg", "bird", 700, 430, 110),
    Hole("box_in_scene.png", "ball", 300, 600, 140),
    Hole("Wine_by_Jakkub_Mede.jpg", "bottle", 300, 850, 160),
    Hole("seeding_by_Clements_Engelhardt.jpg", "dog", 550, 400, 120),
    Hole("Garden.jpg", "ball", 400, 330, 140),
    Hole("Dragonfly_by_Bolly.jpg", "ball", 300, 400, 140),
    Hole("GreenMeadow.jpg", "person", 500, 450, 250),
    Hole("Wood.jpg", "person", 500, 400, 250),
    Hole("rocket.jpg", "ball", 450, 480, 110),
    Hole("detect_test1.jpg", "ball", 700, 520, 130),
    Hole("greentock_by_Peter_Nerlich.jpg", "person", 300, 350, 200),
    Hole("newspaper.jpg", "ball", 850, 300, 130),
    Hole("life_by_Aitzol_Berasategi.jpg", "person", 500, 350, 220),
)
"""Holes that nothing was chosen on."""


def ours(method: str) -> Callable[[Pixels, Plane], Pixels]:
    """Return a method of fill.py as a function of an image and its hole."""

    def fill_hole(image: Pixels, hole: Plane) -> Pixels:
        planes = torch.tensor(image).float()[None] / 255
        mask = torch.from_numpy(hole).float()[None]
        return images.to_uint8(fill.fill(planes, mask, 0, no_progress, method=method)[0]).numpy()

    return fill_hole


def opencv(flag: int) -> Callable[[Pixels, Plane], Pixels]:
    """Return a method of OpenCV as a function of an image and its hole."""
    return lambda image, hole: np.asarray(
        cv2.inpaint(image, hole.astype(np.uint8), 3, flag), dtype=np.uint8
    )


def biharmonic(image: Pixels, hole: Plane) -> Pixels:
    """Fill with scikit-image's biharmonic equation."""
    filled = inpaint_biharmonic(image, hole, channel_axis=2)
    return np.asarray((255 * filled).round().clip(0, 255), dtype=np.uint8)


METHODS: dict[str, Callable[[Pixels, Plane], Pixels]] = {
    "patchmatch": ours("patchmatch"),
    "telea": ours("telea"),
    "navier-stokes": opencv(cv2.INPAINT_NS),
    "biharmonic": biharmonic,
}
"""The methods, as functions of an image and its hole. The first is the draft editor's."""


class Case(NamedTuple):
    """A hole in its photo.

    Attributes
    ----------
    title : its photo and shape
    photo : [h, w, 3]
    opacity : [h, w] in 0..1, the share of each pixel that is in the hole
    """

    title: str
    photo: Pixels
    opacity: NDArray[np.float32]

    @property
    def hole(self) -> Plane:
        return np.asarray(self.opacity > 0.5)


def find(name: str, folder: Path | None) -> Path | None:
    """Return the path of a photo; None where it is not there."""
    own = Path(skimage.data.__file__).parent / name
    if own.exists() or folder is None:
        return own if own.exists() else None
    return next(iter(sorted(folder.rglob(name))), None)


def load(hole: Hole, path: Path) -> Case:
    """Load a photo, scaled to SIDE, and draw its hole, four times as large."""
    with Image.open(path) as file:
        file.draft("RGB", (2 * SIDE, 2 * SIDE))
        image = file.convert("RGB")
    if max(image.size) > SIDE:
        scale = SIDE / max(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
    unit = max(image.size) / 1000
    if hole.shape == "ball":
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        corners = np.stack([np.cos(angles), np.sin(angles)], 1) / 2
    else:
        points = [point.split(",") for point in SHAPES[hole.shape].split()]
        corners = np.array(points, dtype=float) / 100
    corners = (corners * hole.height + (hole.x, hole.y)) * unit
    large = np.zeros((image.height * 4, image.width * 4), np.uint8)
    cv2.fillPoly(large, [(corners * 4).round().astype(np.int32)], (255,))
    opacity = cv2.resize(large, image.size, interpolation=cv2.INTER_AREA) / np.float32(255)
    return Case(f"{path.stem.split('_by_')[0]} {hole.shape}", np.asarray(image), opacity)


def processor_time() -> float:
    """Return the seconds of this process and of PatchMatch's processes, which have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def around(hole: Plane) -> tuple[slice, slice]:
    """Return the rows and columns around a hole that the editor's crop would show."""
    y, x = np.nonzero(hole)
    margin = max(48, int(np.ptp(y)), int(np.ptp(x)))
    rows = slice(max(0, y.min() - margin), y.max() + 1 + margin)
    return rows, slice(max(0, x.min() - margin), x.max() + 1 + margin)


def psnr(image: Pixels, truth: Pixels, place: Plane) -> float:
    """Return the PSNR of a place, in dB."""
    error = np.square(image[place].astype(float) - truth[place]).mean()
    return float(10 * np.log10(255**2 / max(error, 0.05)))


def ssim(image: Pixels, truth: Pixels, place: Plane) -> float:
    """Return the mean structural similarity (Wang et al., 2004) of a place."""
    options: dict[str, Any] = {"gaussian_weights": True, "use_sample_covariance": False}
    _, similarity = structural_similarity(image, truth, channel_axis=2, full=True, **options)
    return float(similarity.mean(2)[place].mean())


def measure_fills(cases: list[Case], methods: list[str], tiles: list[list[Pixels]]) -> list[Row]:
    """Fill the holes by each method; add the photo, the hole and the fills of each to `tiles`."""
    figures = np.zeros((len(cases), len(methods), 3))
    for case, results in zip(cases, figures, strict=True):
        box = around(case.hole)
        truth, hole = np.ascontiguousarray(case.photo[box]), np.ascontiguousarray(case.hole[box])
        fills = []
        for result, method in zip(results, methods, strict=True):
            start = processor_time()
            filled = METHODS[method](truth, hole)
            seconds = processor_time() - start
            fills.append(np.where(hole[..., None], filled, truth))
            result[:] = psnr(fills[-1], truth, hole), ssim(fills[-1], truth, hole), seconds
        tiles.append([truth, np.where(hole[..., None], np.uint8([255, 0, 255]), truth), *fills])
    rows = []
    for index, method in enumerate(methods):
        levels, similarities, seconds = figures[:, index].mean(0)
        rows += [
            Row(f"{method}: PSNR", levels, "dB"),
            Row(f"{method}: SSIM", similarities, ""),
            Row(f"{method}: processor time of a hole", seconds, "s"),
        ]
    for case, results in zip(cases, figures, strict=True):
        rows.append(Row(f"{case.title}, {methods[0]}: PSNR", results[0, 0], "dB"))
    return rows


def measure_rims(cases: list[Case]) -> Iterator[Row]:
    """Remove pasted objects with the draft editor, by masks that end at and inside their edge."""
    levels: dict[str, list[float]] = {
        "no object": [],
        "mask to the object's edge": [],
        f"mask {SHORT} px short": [],
    }
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * SHORT + 1, 2 * SHORT + 1))
    circle = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * NEAR + 1, 2 * NEAR + 1))
    for index, case in enumerate(cases):
        height, width = case.opacity.shape
        other = cases[(index + len(cases) // 2) % len(cases)].photo
        texture = cv2.resize(other, (width, height))[::-1]
        soft = cv2.GaussianBlur(case.opacity, (0, 0), EDGE)[..., None]
        pasted = (case.photo * (1 - soft) + texture * soft).round().astype(np.uint8)
        whole = case.hole.astype(np.uint8)
        near = cv2.dilate(whole, circle) > 0
        masks = (whole, whole, cv2.erode(whole, kernel))
        photos = (case.photo, pasted, pasted)
        for (_, values), photo, mask in zip(levels.items(), photos, masks, strict=True):
            planes = torch.tensor(photo).float()[None] / 255
            conditions = prepare(planes, torch.from_numpy(mask).float()[None])
            result = edit(DraftEditor("removal"), conditions).image[0]
            values.append(psnr(images.to_uint8(result).numpy(), case.photo, near))
    for name, values in levels.items():
        yield Row(f"draft editor, {name}: PSNR within {NEAR} px", float(np.mean(values)), "dB")


def draw(tiles: list[list[Pixels]], titles: list[str], path: Path) -> None:
    """Write a picture with a row for each hole."""
    side, heading = 170, 20
    sheet = Image.new("RGB", (side * len(titles), heading + side * len(tiles)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        pen.text((column * side + 4, 4), title, "black")
        for row, line in enumerate(tiles):
            tile = Image.fromarray(line[column])
            scale = (side - 4) / max(tile.size)
            size = (round(tile.width * scale), round(tile.height * scale))
            place = (column * side, heading + row * side)
            sheet.paste(tile.resize(size, Image.Resampling.LANCZOS), place)
    sheet.save(path)


def main() -> int:
    """Run the benchmark and print its rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--photos", type=Path, help="a folder with more photos")
    parser.add_argument("--sheet", type=Path, help="a picture of all fills to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    methods, tiles = list(METHODS), list[list[Pixels]]()
    rows = [Row("lama", None, "", note="its weights are not here")]
    complete = True
    for half, holes in (("chosen on", CHOSEN_ON), ("kept aside", KEPT_ASIDE)):
        paths = {hole: find(hole.photo, options.photos) for hole in holes}
        complete &= all(paths.values())
        cases = [load(hole, path) for hole, path in paths.items() if path]
        prefix = f"{half}, {len(cases)} of {len(holes)} holes: "
        measured = [*measure_fills(cases, methods, tiles), *measure_rims(cases)]
        rows += [replace(row, name=prefix + row.name) for row in measured]
    if options.sheet:
        draw(tiles, ["photo", "hole", *methods], options.sheet)
    if complete and not options.json:
        RESULT.write_text(table(rows) + "\n")
    return finish(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
