"""White balance without weights, over known casts, beside gray world, white patch, shades of gray,
the three methods of OpenCV's xphoto, and doing nothing.

Photos that were chosen by eye as neutral get casts in linear light: the angle between the light
that a method took away and the true one, and CIEDE2000 to the photo without the cast. Each second
photo is for choosing constants; the table is of the others. It goes to
benchmarks/results/balance.txt.

The photos that are not in a wheel are in Debian's packages PACKAGES: `apt-get download`, then
`dpkg-deb -x` each into FOLDER. opencv-contrib replaces OpenCV, and therefore wants an environment
of its own.

Usage: python benchmarks/balance.py FOLDER [--xphoto PYTHON] [--choosing] [--sheet FILE] [--json]

--xphoto : a Python with opencv-contrib-python-headless; without it xphoto is not measured
--choosing : the half that the constants were chosen on
--sheet : also draw the photos of that half with each cast, before and after
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from report import THREADS, Row, finish, machine
from skimage.color import deltaE_ciede2000, rgb2lab

from artmancer.color import LUMINANCE, to_linear, to_srgb
from artmancer.draft import balance

RESULTS = Path(__file__).parent / "results" / "balance.txt"

PACKAGES = (
    "lomiri-wallpapers-16.04",
    "lomiri-wallpapers-20.04",
    "mate-backgrounds",
    "opencv-doc",
    "plasma-workspace-wallpapers",
)

OPENCV = "usr/share/doc/opencv-doc/examples"
UBUNTU = "usr/share/backgrounds"
MATE = "usr/share/backgrounds/mate/nature"
PLASMA = "usr/share/wallpapers/{}/contents/images/2560x1600.jpg"
SKIMAGE = "skimage/data"

PHOTOS = (
    f"{OPENCV}/alphamat/input_images/plant.jpg",
    f"{OPENCV}/hfs/data/000.jpg",
    *(f"{OPENCV}/text/scenetext0{number}.jpg" for number in (3, 4, 5, 6)),
    *(
        f"{OPENCV}/data/{name}.jpg"
        for name in ("baboon", "squirrel_cls", "messi5", "board", "aero1", "leuvenA")
    ),
    f"{OPENCV}/data/chicky_512.png",
    f"{OPENCV}/data/smarties.png",
    f"{UBUNTU}/Bridge_by_Sander_Klootwijk.jpg",
    f"{UBUNTU}/Picture_0B_by_freespace.jpg",
    f"{UBUNTU}/Picture_1A_by_freespace.jpg",
    f"{UBUNTU}/aitzgorri_by_Aitzol_Berasategi.jpg",
    f"{UBUNTU}/free_by_Peter_Nerlich.jpg",
    f"{UBUNTU}/friends_by_Aitzol_Berasategi.jpg",
    f"{UBUNTU}/greentock_by_Peter_Nerlich.jpg",
    f"{UBUNTU}/life_by_Aitzol_Berasategi.jpg",
    f"{UBUNTU}/picosdeeuropa_by_Aitzol_Berasategi.jpg",
    f"{UBUNTU}/Kleiber_by_Lukas_Baubkus.jpg",
    f"{MATE}/Blinds.jpg",
    f"{MATE}/Dune.jpg",
    f"{MATE}/FreshFlower.jpg",
    f"{MATE}/Garden.jpg",
    f"{MATE}/GreenMeadow.jpg",
    f"{MATE}/LadyBird.jpg",
    f"{MATE}/RainDrops.jpg",
    f"{MATE}/TwoWings.jpg",
    f"{MATE}/YellowFlower.jpg",
    *(PLASMA.format(name) for name in ("Grey", "Kite", "OneStandsOut")),
    f"{SKIMAGE}/astronaut.png",
    f"{SKIMAGE}/coffee.png",
    f"{SKIMAGE}/motorcycle_left.png",
    f"{SKIMAGE}/ihc.png",
    "ultralytics/assets/bus.jpg",
    "ultralytics/assets/zidane.jpg",
)
"""Neutral photos, in FOLDER or in the installed packages; some have one color."""

SIDE = 320
"""Longer side of a photo, in pixels."""

CASTS = {
    "none": (1.0, 1.0, 1.0),
    "tungsten": (2.09, 1.0, 0.41),
    "warm lamp": (1.41, 1.0, 0.69),
    "shade": (0.89, 1.0, 1.33),
    "fluorescent": (0.85, 1.12, 0.75),
}
"""Factors of red, green and blue in linear light: 3,200, 4,500 and 9,000 kelvin where 6,500 are
white, and a green lamp.
"""

MIXED = ("warm lamp", "shade")
"""Lights on the left and on the right of a photo with mixed light."""

MIX_STEEPNESS = 6.0
"""Steepness of the passage from one to the other: it takes about the middle third."""

WHITE_PATCH = 99
"""Percentile of each channel that white patch takes for white; the brightest pixel may be noise."""

XPHOTO = """
import sys, cv2, numpy as np
cv2.setNumThreads(1)
makers = {
    "simple": cv2.xphoto.createSimpleWB,
    "gray world": cv2.xphoto.createGrayworldWB,
    "learning": cv2.xphoto.createLearningBasedWB,
}
photos, results = np.load(sys.argv[1]), {}
for key, photo in photos.items():
    name, index = key.split("/")
    method = makers[name]()
    if name == "learning":
        method.setRangeMaxVal(65535)
    results[key] = method.balanceWhite(np.ascontiguousarray(photo[..., ::-1]))[..., ::-1]
np.savez(sys.argv[2], **results)
"""
"""Program that balances photos with xphoto. Simple takes 8 bits, and the two others were better in
linear light than in sRGB, on the photos for choosing.
"""

Array = NDArray[np.float64]


class Case(NamedTuple):
    """A photo with a cast.

    Attributes
    ----------
    photo, cast : names
    truth : [h, w, 3], the photo without the cast, in linear light
    light : [w, 3], the color of the light in each column, with a luminance of 1
    seen : [h, w, 3], sRGB in 0..255, what a method gets
    """

    photo: str
    cast: str
    truth: Array
    light: Array
    seen: NDArray[np.uint8]


class Error(NamedTuple):
    """Errors of a result.

    Attributes
    ----------
    angle : mean angle between the light that was taken away and the true one, in degrees
    difference : mean CIEDE2000 to the truth
    """

    angle: float
    difference: float


def linear(values: Array) -> Array:
    return to_linear(torch.from_numpy(values)).numpy()


def encoded(light: Array) -> Array:
    return to_srgb(torch.from_numpy(light.clip(0, 1))).numpy()


def luminance(light: Array) -> Array:
    return light @ LUMINANCE.double().numpy()


def find(name: str, folder: Path) -> Path:
    """Return the path of one of PHOTOS."""
    import skimage

    site = Path(skimage.__file__).parents[1]
    return next(path for root in (folder, site) if (path := root / name).exists())


def load(path: Path) -> Array:
    """Return a photo in linear light [h, w, 3], SIDE large."""
    image = Image.open(path).convert("RGB")
    image.thumbnail((4 * SIDE, 4 * SIDE))
    pixels = np.asarray(image) / 255
    scale = min(1, SIDE / max(pixels.shape))
    size = round(pixels.shape[1] * scale), round(pixels.shape[0] * scale)
    return np.asarray(cv2.resize(linear(pixels), size, interpolation=cv2.INTER_AREA))


def lights(width: int) -> dict[str, Array]:
    """Return the light of each cast in each column, [width, 3]."""
    single = {}
    for name, factors in CASTS.items():
        color = np.array(factors)
        single[name] = np.broadcast_to(color / luminance(color), (width, 3))
    share = 1 / (1 + np.exp(-MIX_STEEPNESS * np.linspace(-1, 1, width)))[:, None]
    left, right = (single[name] for name in MIXED)
    return {**single, "mixed": left * (1 - share) + right * share}


def cases(folder: Path, half: int) -> Iterator[Case]:
    """Make the cases of each second photo."""
    for name in PHOTOS[half::2]:
        path = find(name, folder)
        truth = load(path)
        for cast, light in lights(truth.shape[1]).items():
            seen = np.round(255 * encoded(truth * light)).astype(np.uint8)
            yield Case(name, cast, truth, light, seen)


def without(seen: NDArray[np.uint8], estimate: Callable[[Array], Array]) -> Array:
    """Return a photo without the light [3] that a function estimates from linear colors [n, 3]."""
    colors = linear(seen / 255)
    light = np.maximum(estimate(colors.reshape(-1, 3)), 1e-4)
    return encoded(colors * luminance(light) / light)


def shades_of_gray(colors: Array) -> Array:
    """Finlayson and Trezzi (2004), by the pixels that are not clipped."""
    kept = colors[colors.max(-1) < 0.99]
    return ((kept if len(kept) else colors) ** 6).mean(0) ** (1 / 6)


def ours(seen: NDArray[np.uint8]) -> Array:
    image = torch.from_numpy(seen / 255).float()[None]
    return balance(image, torch.ones(image.shape[:3]), 1.0)[0].double().numpy()


METHODS: dict[str, Callable[[NDArray[np.uint8]], Array]] = {
    "ours": ours,
    "nothing": lambda seen: seen / 255,
    "gray world": lambda seen: without(seen, lambda colors: colors.mean(0)),
    "white patch": lambda seen: without(seen, lambda colors: np.percentile(colors, WHITE_PATCH, 0)),
    "shades of gray": lambda seen: without(seen, shades_of_gray),
}


def xphoto(python: Path, photos: list[NDArray[np.uint8]]) -> dict[str, list[Array]]:
    """Return what the methods of xphoto make of the photos, each as bright as it was."""
    deep = [np.round(65535 * linear(seen / 255)).astype(np.uint16) for seen in photos]
    given = {"simple": photos, "gray world": deep, "learning": deep}
    named = {
        f"{name}/{index}": photo for name, each in given.items() for index, photo in enumerate(each)
    }
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "before.npz"), Path(folder, "after.npz")
        np.savez(before, **named)
        subprocess.run([python, "-c", XPHOTO, before, after], check=True)
        results = np.load(after)
        balanced: dict[str, list[Array]] = {}
        for name in given:
            balanced[f"xphoto {name}"] = []
            for index, seen in enumerate(photos):
                result = results[f"{name}/{index}"]
                light = result / 65535 if result.dtype == np.uint16 else linear(result / 255)
                own = luminance(linear(seen / 255)).mean()
                light = light * own / max(luminance(light).mean(), 1e-6)
                balanced[f"xphoto {name}"].append(encoded(light))
    return balanced


def judge(case: Case, result: Array) -> Error:
    """Measure a result [h, w, 3] in sRGB."""
    before, after = linear(case.seen / 255), linear(result)
    sure = (case.seen > 8).all(-1) & (case.seen < 250).all(-1)
    sure &= (after > 0.002).all(-1) & (after < 0.97).all(-1)
    removed = np.median(before[sure] / after[sure], 0) if sure.sum() > 50 else np.ones(3)
    cosine = (case.light @ removed) / np.linalg.norm(case.light, axis=-1) / np.linalg.norm(removed)
    # Each second pixel of each second row is enough.
    labs = [rgb2lab(image[::2, ::2]) for image in (encoded(case.truth), result)]
    return Error(
        float(np.degrees(np.arccos(cosine.clip(-1, 1))).mean()),
        float(deltaE_ciede2000(*labs).mean()),
    )


def worst_fourth(values: list[float]) -> float:
    return float(np.mean(sorted(values)[-len(values) // 4 :]))


def text(all_cases: list[Case], errors: dict[str, list[Error]], processor: float) -> str:
    """Return the tables."""
    casts = list(dict.fromkeys(case.cast for case in all_cases))
    lines = [
        machine(),
        "",
        f"{len(all_cases) // len(casts)} neutral photos with {len(casts)} casts each",
        f"ours: {processor:.2f} s of processor time for 1 megapixel",
    ]
    for field, title in (
        ("angle", "angular error of the light, in degrees"),
        ("difference", "CIEDE2000 to the photo without the cast"),
    ):
        head = "".join(f"{name:>13}" for name in (*casts, "mean", "worst fourth"))
        lines += ["", title, "", f"{'':18}{head}"]
        for method, measured in errors.items():
            values = [getattr(error, field) for error in measured]
            by_cast = [
                np.mean(
                    [
                        value
                        for value, case in zip(values, all_cases, strict=True)
                        if case.cast == cast
                    ]
                )
                for cast in casts
            ]
            row = (*by_cast, np.mean(values), worst_fourth(values))
            lines.append(f"{method:18}" + "".join(f"{value:13.2f}" for value in row))
    return "\n".join(lines) + "\n"


def rows(errors: dict[str, list[Error]]) -> list[Row]:
    """Return ours over the best of the others."""
    found = []
    for field, name in (("angle", "angular error"), ("difference", "CIEDE2000")):
        for title, summary in (("mean", np.mean), ("worst fourth", worst_fourth)):
            figures = {
                method: float(summary([getattr(error, field) for error in measured]))
                for method, measured in errors.items()
            }
            own = figures.pop("ours")
            best = min(figures, key=figures.__getitem__)
            found.append(Row(f"{name}, {title}: ours over {best}", own / figures[best], "x", 1.0))
    return found


def draw(all_cases: list[Case], path: Path) -> None:
    """Draw a row for each photo: what was seen over what ours made of it, by cast."""
    width, height = 150, 110
    casts = list(dict.fromkeys(case.cast for case in all_cases))
    sheet = Image.new("RGB", (width * len(casts), 2 * height * (len(all_cases) // len(casts))))
    for index, case in enumerate(all_cases):
        row, column = divmod(index, len(casts))
        result = np.round(255 * ours(case.seen)).astype(np.uint8)
        for line, pixels in enumerate((case.seen, result)):
            small = Image.fromarray(pixels).resize((width, height))
            sheet.paste(small, (column * width, (2 * row + line) * height))
    sheet.save(path)


def seconds() -> float:
    """Return the processor time that ours takes for a photo of 1 megapixel."""
    photo = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    start = time.process_time()
    ours(photo)
    return time.process_time() - start


def main() -> int:
    """Measure, write and print the tables, and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder with the unpacked packages")
    parser.add_argument("--xphoto", type=Path, help="Python with opencv-contrib")
    parser.add_argument("--choosing", action="store_true", help="measure the other half")
    parser.add_argument("--sheet", type=Path, help="draw the results into this file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    all_cases = list(cases(options.folder, 0 if options.choosing else 1))
    results = {name: [method(case.seen) for case in all_cases] for name, method in METHODS.items()}
    if options.xphoto:
        results |= xphoto(options.xphoto, [case.seen for case in all_cases])
    errors = {
        name: [judge(*pair) for pair in zip(all_cases, each, strict=True)]
        for name, each in results.items()
    }
    if options.sheet:
        draw(all_cases, options.sheet)
    tables = text(all_cases, errors, seconds())
    if options.xphoto and not options.choosing:
        RESULTS.write_text(tables)
    if not options.json:
        sys.stdout.write(tables + "\n")
    return finish(rows(errors), options.json)


if __name__ == "__main__":
    sys.exit(main())
