"""Insertion without weights: hair, soft edges and hard masks, beside Poisson blending at the rim.

Objects with a known mask and known colors are mixed with one photo, which is the reference, and
inserted into another. The truth is the object mixed with that other photo. "kept" is the share of
an object's difference to the photo that the result shows, where its mask is strongest; CIEDE2000 is
that of the pixels within RIM of the object's edge. "Poisson" lays the object over the photo as the
draft editor did before: blended at the rim (Perez, Gangnet and Blake, 2003), in its own colors
inside. "mask" takes the reference's colors as they are. At the end are hard masks of objects in
other photos: the constants of artmancer/hard_edge.py were set on the first half. The table goes to
benchmarks/results/insertion.txt.

Usage: python benchmarks/insertion.py [--json] [--sheet FILE]

--sheet : also draw the cases: reference, truth, ours, Poisson
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image
from removal import SHAPES
from report import THREADS, Row, finish, machine
from skimage.color import deltaE_ciede2000, rgb2lab

from artmancer.checks import NEAR_BLACK
from artmancer.conditions import prepare
from artmancer.draft import DraftEditor
from artmancer.edit import edit
from artmancer.region import bounds

RESULTS = Path(__file__).parent / "results" / "insertion.txt"

EXAMPLES = Path(__file__).parents[1] / "workflows" / "examples"

SIDE = 240
"""Side of the photos, in pixels."""

RIM = 4
"""Pixels from an object's edge that count as its rim."""

WIDTHS = (1, 2, 3, 4, 8)
"""Widths of strands of hair, in pixels."""

BLURS = (0.5, 1.0, 2.0, 4.0)
"""Standard deviations of the soft edge of a disc, in pixels."""

HAIR = {"dark": (0.16, 0.1, 0.07), "blond": (0.85, 0.7, 0.45)}
"""Colors of strands, in sRGB."""

PHOTOS = {
    "set on": (
        ("coffee.png", "astronaut.png", "chelsea.png"),
        ("gravel.png", "coffee.png", "rocket.jpg"),
        ("camera.png", "chelsea.png", "astronaut.png"),
        ("rocket.jpg", "grass.png", "coffee.png"),
    ),
    "kept aside": (
        ("brick.png", "motorcycle_left.png", "hubble_deep_field.jpg"),
        ("retina.jpg", "moon.png", "grass.png"),
        ("motorcycle_left.png", "brick.png", "ihc.png"),
        ("ihc.png", "coins.png", "motorcycle_left.png"),
    ),
}
"""Photos of skimage.data: an object's texture, its background, and the photo it is put into."""

HEIGHTS = {"person": 0.75, "dog": 0.5}
"""Shapes of the objects, and their heights as a share of SIDE."""

TOO_LARGE = (-1, 0, 1, 2, 3)
"""Pixels by which a hard mask is larger than its object; below 0 it is smaller."""

FINE = 8
"""Pixels that a pixel is drawn with, along each side."""

Array = NDArray[np.float32]


class Case(NamedTuple):
    """An insertion whose result is known.

    Attributes
    ----------
    name : row of the table
    reference : [h, w, 3] in 0..1, the object before its old background
    mask : [h, w] in 0..1, as it is given
    photo : [h, w, 3], the new background
    truth : [h, w, 3]
    colors : [h, w, 3], the object's own
    alpha : [h, w], the object's share of each pixel
    """

    name: str
    reference: Array
    mask: Array
    photo: Array
    truth: Array
    colors: Array
    alpha: Array


def photo(name: str) -> Array:
    """Return the middle of an example [SIDE, SIDE, 3]."""
    image = Image.open(EXAMPLES / f"{name}.png").convert("RGB")
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    return np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), np.float32) / 255


def strands(width: float) -> Array:
    """Draw strands of a width in pixels, bent and crossing."""
    plane = np.zeros((SIDE * FINE, SIDE * FINE), np.uint8)
    steps = np.linspace(0, 1, 60)
    for number in range(7):
        across = 0.15 + 0.1 * number + 0.1 * np.sin(3 * steps + number)
        down = 0.12 + 0.76 * steps
        points = np.stack([across, down], -1) * SIDE * FINE
        cv2.polylines(plane, [points.astype(np.int32)], False, 255, round(width * FINE))
    return np.asarray(cv2.resize(plane, (SIDE, SIDE), interpolation=cv2.INTER_AREA) / 255, "f4")


def disc(blur: float) -> Array:
    """Draw a disc with a soft edge of a standard deviation in pixels."""
    plane = np.zeros((SIDE, SIDE), np.float32)
    cv2.circle(plane, (SIDE // 2, SIDE // 2), SIDE // 4, 1, -1)
    return np.round(255 * cv2.GaussianBlur(plane, (0, 0), blur)).astype(np.float32) / 255


def case(name: str, colors: Array, alpha: Array, mask: Array, *, unmixed: bool = False) -> Case:
    """Make a case; `unmixed` for a reference that has the object's own colors wherever it is."""
    old, new = photo("astronaut"), photo("chelsea")
    share = alpha[..., None]
    # A cutout has its colors where there is anything of it, and the background elsewhere.
    shown = (share > 0).astype(np.float32) if unmixed else share
    reference = shown * colors + (1 - shown) * old
    return Case(name, reference, mask, new, share * colors + (1 - share) * new, colors, alpha)


def cases() -> list[Case]:
    """Make all cases."""
    made = []
    for tone, color in HAIR.items():
        colors = np.broadcast_to(np.array(color, np.float32), (SIDE, SIDE, 3)).copy()
        for width in WIDTHS:
            alpha = strands(width)
            made.append(case(f"{tone} strands, {width} px", colors, alpha, alpha))
        alpha = strands(2)
        made.append(case(f"{tone} strands, 2 px, cut out", colors, alpha, alpha, unmixed=True))
    texture = photo("coffee")
    for blur in BLURS:
        alpha = disc(blur)
        made.append(case(f"disc, edge {blur} px", texture, alpha, alpha))
    alpha = disc(1)
    hard = (alpha >= 0.5).astype(np.float32)
    made.append(case("disc, cut out", texture, alpha, alpha, unmixed=True))
    made.append(case("disc, hard mask", texture, alpha, hard))
    for pixels in (1, 2):
        square = np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)
        for word, change in (("small", cv2.erode), ("large", cv2.dilate)):
            name = f"disc, hard mask, {pixels} px too {word}"
            made.append(case(name, texture, alpha, np.asarray(change(hard, square))))
    return made


def middle(name: str) -> Array:
    """Return the middle of a photo of skimage.data [SIDE, SIDE, 3]."""
    image = Image.open(Path(skimage.data.__file__).parent / name).convert("RGB")
    scale = max(1.2 * SIDE / min(image.size), 0.5)
    if scale < 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)))
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    return np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), np.float32) / 255


def hard_cases(half: str) -> Iterator[tuple[int, Case]]:
    """Make cases with hard masks, each with the pixels by which its mask is too large."""
    for number, names in enumerate(PHOTOS[half]):
        colors, old, new = map(middle, names)
        for shape, height in HEIGHTS.items():
            corners = np.array([point.split(",") for point in SHAPES[shape].split()], float) / 100
            plane = np.zeros((SIDE * FINE, SIDE * FINE), np.uint8)
            place = (corners * height + 0.5) * SIDE * FINE
            cv2.fillPoly(plane, [place.round().astype(np.int32)], (255,))
            sharp = cv2.resize(plane, (SIDE, SIDE), interpolation=cv2.INTER_AREA) / 255
            alpha = np.asarray(cv2.GaussianBlur(sharp, (0, 0), 0.7 + 0.3 * (number % 2)), "f4")
            share, hard = alpha[..., None], (alpha >= 0.5).astype(np.float32)
            reference, truth = (share * colors + (1 - share) * other for other in (old, new))
            for pixels in TOO_LARGE:
                side = 2 * abs(pixels) + 1
                kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
                mask = np.asarray((cv2.dilate if pixels > 0 else cv2.erode)(hard, kernel))
                yield pixels, Case(shape, reference, mask, new, truth, colors, alpha)


def ours(one: Case) -> Array:
    """Insert by the draft editor, into the box that the object has in the reference."""
    shape = torch.from_numpy(one.mask)
    box = torch.zeros(1, SIDE, SIDE)
    # Near-black, as in a JPEG, counts as black.
    bounds(shape, above=NEAR_BLACK).view(box[0]).fill_(1)
    image, reference = (torch.from_numpy(colors)[None] for colors in (one.photo, one.reference))
    conditions = prepare(image, box, reference=reference, reference_mask=shape[None])
    return edit(DraftEditor("insertion"), conditions).image[0].numpy()


def over(one: Case, colors: Array, share: Array) -> Array:
    """Lay colors over the photo by a share [h, w]."""
    return np.asarray(one.photo + share[..., None] * (colors - one.photo), np.float32)


def poisson(one: Case) -> Array:
    """Blend at the rim as the draft editor did before."""
    solid = (one.mask >= 0.5).astype(np.uint8)
    y, x = solid.nonzero()
    center = int(x.min() + x.max() + 1) // 2, int(y.min() + y.max() + 1) // 2
    eight = [np.round(255 * image).astype(np.uint8) for image in (one.reference, one.photo)]
    blended = cv2.seamlessClone(*eight, solid * 255, center, cv2.NORMAL_CLONE) / np.float32(255)
    blended = np.where(solid[..., None] > 0, blended, one.photo)
    depth = cv2.distanceTransform((one.mask > 0).astype(np.uint8), cv2.DIST_L2, 5)
    own = (np.minimum(depth / 3, 1) * one.mask)[..., None]
    return np.asarray(blended + own * (one.reference - blended), np.float32)


METHODS: dict[str, Callable[[Case], Array]] = {
    "ours": ours,
    "Poisson": poisson,
    "mask": lambda one: over(one, one.reference, one.mask),
}


class Error(NamedTuple):
    """Errors of a result.

    Attributes
    ----------
    kept : share of the object's difference to the photo, where its mask is strongest, in percent
    difference : mean CIEDE2000 to the truth near the object's edge
    """

    kept: float
    difference: float


def judge(one: Case, result: Array) -> Error:
    """Measure a result [h, w, 3]."""
    core = one.alpha >= 0.9 * one.alpha.max()
    wanted, got = (image[core] - one.photo[core] for image in (one.truth, result))
    solid = (one.alpha > 0).astype(np.uint8)
    square = np.ones((2 * RIM + 1, 2 * RIM + 1), np.uint8)
    rim = (cv2.dilate(solid, square) > 0) & (cv2.erode((one.alpha > 0.99) * solid, square) == 0)
    lab = [rgb2lab(image.clip(0, 1)) for image in (one.truth, result)]
    return Error(
        float(100 * (wanted * got).sum() / (wanted**2).sum()),
        float(deltaE_ciede2000(*lab)[rim].mean()),
    )


def measure_hard_masks() -> dict[str, dict[str, Error]]:
    """Return the mean errors of hard masks by row of the table and method."""
    means = {}
    for half in PHOTOS:
        found: dict[int, list[list[Error]]] = {pixels: [] for pixels in TOO_LARGE}
        for pixels, one in hard_cases(half):
            found[pixels].append([judge(one, method(one)) for method in METHODS.values()])
        for pixels, errors in found.items():
            word = "small" if pixels < 0 else "large"
            name = f"{half}, {abs(pixels)} px too {word}" if pixels else f"{half}, to the edge"
            mean = [Error(*values) for values in np.mean(errors, 0)]
            means[name] = dict(zip(METHODS, mean, strict=True))
    return means


def text(errors: dict[str, dict[str, Error]]) -> str:
    """Return the table of the errors by case and method."""
    lines = [machine(), "", f"{'':34}" + "".join(f"{name:>20}" for name in METHODS)]
    lines.append(f"{'':34}" + f"{'kept  CIEDE2000':>20}" * len(METHODS))
    for name, by_method in errors.items():
        cells = (f"{error.kept:8.0f} %{error.difference:10.2f}" for error in by_method.values())
        lines.append(f"{name:34}" + "".join(cells))
    return "\n".join(lines) + "\n"


def rows(errors: dict[str, dict[str, Error]]) -> list[Row]:
    """Return the figures with a limit."""
    thin = [by_method["ours"].kept for name, by_method in errors.items() if "strands" in name]
    means = {
        method: float(np.mean([by_method[method].difference for by_method in errors.values()]))
        for method in METHODS
    }
    large = [
        by_method["ours"].difference / by_method["Poisson"].difference
        for name, by_method in errors.items()
        if name.startswith("kept aside") and "large" in name
    ]
    return [
        Row("hard masks that are too large: most of ours over Poisson", max(large), "x", 1.0),
        Row("strands: least kept of their color, at least", min(thin), "%", 90),
        Row("CIEDE2000 at the rim: ours over Poisson", means["ours"] / means["Poisson"], "x", 1.0),
        Row("CIEDE2000 at the rim: ours over mask", means["ours"] / means["mask"], "x", 1.0),
    ]


def draw(all_cases: list[Case], path: Path) -> None:
    """Draw a row for each case."""
    sheet = Image.new("RGB", (4 * SIDE, len(all_cases) * SIDE))
    for row, one in enumerate(all_cases):
        for column, image in enumerate((one.reference, one.truth, ours(one), poisson(one))):
            pixels = np.round(255 * image.clip(0, 1)).astype(np.uint8)
            sheet.paste(Image.fromarray(pixels), (column * SIDE, row * SIDE))
    sheet.save(path)


def main() -> int:
    """Measure, write and print the table, and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--sheet", type=Path, help="draw the cases into this file")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    all_cases = cases()
    errors = {
        one.name: {name: judge(one, method(one)) for name, method in METHODS.items()}
        for one in all_cases
    }
    errors |= measure_hard_masks()
    if options.sheet:
        draw(all_cases, options.sheet)
    table = text(errors)
    RESULTS.write_text(table)
    if not options.json:
        sys.stdout.write(table + "\n")
    return finish(rows(errors), options.json)


if __name__ == "__main__":
    sys.exit(main())
