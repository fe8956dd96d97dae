"""Benchmark of what stitching keeps and adds: the photo's sharpness around the mask, the details of
an edit that was moved back, values above 1 and soft gradients in a filled hole, and the grain that
match_grain adds. It needs no weights.

The photos are scikit-image's. An object with one color is painted into each; the edit is the photo
without it, scaled to the crop: the best that an editor of that size could make. The photo without
the object is the truth.

Usage: python benchmarks/stitch.py [--json]

Without --json the table is also written to benchmarks/results/stitch.txt.
"""

import argparse
import cmath
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from report import THREADS, Row, finish, table
from torch import Tensor

from artmancer import fill, mask_ops, region, registration
from artmancer.conditions import prepare
from artmancer.draft import DraftEditor
from artmancer.edit import edit
from artmancer.grain import match_grain
from artmancer.progress import no_progress

RESULT = Path(__file__).parent / "results" / "stitch.txt"

PHOTOS = ("astronaut", "brick", "chelsea", "coffee", "grass", "gravel", "retina", "rocket")
"""Photos of skimage.data that are inside its package."""

SIDE = 600
"""Longest side of a photo, in pixels; larger photos are cut."""

SCALES = (0.75, 0.6, 0.4, 0.25)
"""Scales of the crops, in pixels of the crop for each of the photo's."""

MOVED_SCALES = (0.4, 0.6, 1, 1.5)
"""Scales of the crops of an edit that moved."""

MOVEMENT = registration.Similarity(cmath.rect(1.012, 0.006), 1.3 - 0.8j)
"""Movement of such an edit, in pixels of the crop."""

RING = (2, 6)
"""Distances from the mask, in pixels, between which the sharpness is measured."""

LINE_PHOTO = (1600, 2560)
"""(height, width) of the photo that a power line crosses."""

DEVIATIONS = (3, 6, 12)
"""Standard deviations of the noise, in levels of 255."""


def photo(name: str) -> Tensor:
    """Return a photo, an IMAGE [1, H, W, 3]."""
    from skimage import data

    pixels = np.atleast_3d(getattr(data, name)())[:SIDE, :SIDE]
    image = torch.from_numpy(pixels.copy()).float().div_(255)
    return image.expand(*image.shape[:2], 3).contiguous().unsqueeze(0)


def masks(height: int, width: int) -> dict[str, Tensor]:
    """Return a disc and a line of 4 pixels, each a MASK [1, H, W]."""
    disc, line = np.zeros((2, height, width), np.uint8)
    cv2.circle(disc, (round(0.45 * width), height // 2), round(0.2 * height), 1, -1)
    cv2.line(line, (10, height // 4), (width - 10, 3 * height // 4), 1, 4)
    return {
        name: torch.from_numpy(plane).float().unsqueeze(0)
        for name, plane in (("disc", disc), ("line", line))
    }


def with_object(image: Tensor, mask: Tensor) -> Tensor:
    """Return the image with the mask painted in the color farthest from its mean."""
    color = 1 - image.mean((1, 2), keepdim=True).round()
    return torch.where(mask.unsqueeze(-1) > 0, color, image)


def between(mask: Tensor, low: float, high: float) -> Tensor:
    """Return the pixels whose distance from the mask is in this range, bool [H, W]."""
    distance = mask_ops.distance(mask[0])
    return (distance > low) & (distance <= high)


def sharpness(image: Tensor, area: Tensor) -> float:
    """Return the energy of the Laplacian of the brightness in an area."""
    laplacian = cv2.Laplacian(image[0].mean(-1).numpy(), cv2.CV_32F)
    return float(torch.from_numpy(laplacian)[area].square().sum())


def error(image: Tensor, truth: Tensor, area: Tensor) -> float:
    """Return the root mean square error in an area, in levels of 255."""
    return 255 * float((image - truth)[0][area].square().mean().sqrt())


def rings() -> Iterator[Row]:
    """Measure the surroundings of the mask, pasted as before and with the change added."""
    for scale in SCALES:
        kept: dict[str, list[float]] = {"the edit pasted": [], "the change added": []}
        errors: dict[str, list[float]] = {name: [] for name in kept}
        near: dict[str, list[float]] = {name: [] for name in kept}
        for truth in map(photo, PHOTOS):
            for mask in masks(*truth.shape[1:3]).values():
                image = with_object(truth, mask)
                whole = region.crop(image, mask).region
                side = round(scale * max(whole.box_size))
                crop = region.crop(image, mask, longest_side=side)
                edited = region.crop_like(truth, crop.region)
                area, rim = between(mask, *RING), between(mask, 0, RING[0])
                for name, before in zip(kept, (None, crop.image), strict=True):
                    result = region.stitch(edited, image, crop.region, before)
                    kept[name].append(100 * sharpness(result, area) / sharpness(truth, area))
                    errors[name].append(error(result, truth, area))
                    near[name].append(error(result, truth, rim))
        for name in kept:
            new = name == "the change added"
            title = f"crop at {scale:g}, {name}"
            at_least = ", at least" if new else ""
            yield Row(
                f"{title}: sharpness kept {RING[0]} to {RING[1]} px from the mask{at_least}",
                statistics.median(kept[name]),
                "%",
                95 if new else None,
            )
            yield Row(f"{title}: error there", statistics.mean(errors[name]), "levels")
            yield Row(f"{title}: error nearer", statistics.mean(near[name]), "levels")


def moved_back() -> Iterator[Row]:
    """Measure the error inside the mask of an edit that moved and is moved back by the known
    movement: resampled once, from its own pixels to the photo's; and twice, moved back at the
    crop's size, then scaled. Pillow moves it, at twice the crop's size.
    """
    for scale in MOVED_SCALES:
        errors: dict[str, list[float]] = {"once": [], "twice": []}
        for truth in map(photo, PHOTOS):
            mask = masks(*truth.shape[1:3])["disc"]
            image = with_object(truth, mask)
            side = None if scale == 1 else round(scale * max(region.crop(image, mask).region.size))
            crop = region.crop(image, mask, longest_side=side)
            height, width = crop.region.size
            large = region.resample(
                region.crop_like(truth, crop.region), (2 * height, 2 * width), "bicubic"
            )
            came = region.resample(move(large, MOVEMENT), (height, width), "bicubic")[0]
            back = registration.undo(came, MOVEMENT)
            registered = registration.Registration(back, MOVEMENT, applied=True, came=came)
            for name, registrations in (("once", [registered]), ("twice", [])):
                result = region.stitch(
                    back[None], image, crop.region, crop.image, registrations=registrations
                )
                errors[name].append(error(result, truth, mask[0] > 0))
        name = f"crop at {scale:g}, moved back: error inside the mask, resampled"
        for times, values in errors.items():
            limit = statistics.mean(errors["twice"]) if times == "once" else None
            yield Row(f"{name} {times}", statistics.mean(values), "levels", limit)


def move(image: Tensor, movement: registration.Similarity) -> Tensor:
    """Move an IMAGE [1, h, w, 3] of twice the crop's size by a movement of the crop, by Pillow."""
    height, width = image.shape[1:3]
    inverse = 1 / movement.factor
    # Pillow maps from the result to the source, and counts from the corner of a pixel.
    center = complex(width, height) / 2
    start = center - inverse * (center + 2 * movement.shift)
    matrix = (inverse.real, -inverse.imag, start.real, inverse.imag, inverse.real, start.imag)
    planes = [
        np.asarray(
            Image.fromarray(plane.numpy()).transform(
                (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
            )
        )
        for plane in image[0].movedim(-1, 0).contiguous()
    ]
    return torch.from_numpy(np.stack(planes, -1)).unsqueeze(0)


def power_line() -> Iterator[Row]:
    """Measure the draft's removal of a line across a large photo."""
    height, width = LINE_PHOTO
    grass = photo("grass")[0, :512, :512]
    tile = torch.cat([grass, grass.flip(1)], 1)
    tile = torch.cat([tile, tile.flip(0)], 0)
    truth = tile.repeat(2, 3, 1)[None, :height, :width].contiguous()
    plane = np.zeros((height, width), np.uint8)
    cv2.line(plane, (0, height // 3), (width - 1, 2 * height // 3), 1, 4)
    mask = torch.from_numpy(plane).float().unsqueeze(0)
    image = with_object(truth, mask)
    area = between(mask, *RING)
    for name, options in {
        "crop of 1536 px": {"resolution": "1536"},
        "native": {"any_size": True},
    }.items():
        start = time.perf_counter()
        result = edit(DraftEditor("removal"), prepare(image, mask, **options))
        seconds = time.perf_counter() - start
        kept = 100 * sharpness(result.image, area) / sharpness(truth, area)
        title = f"line across {width}x{height}, draft, {name}"
        yield Row(f"{title}: sharpness kept, at least", kept, "%", 95)
        yield Row(f"{title}: sharpness on the line", line_sharpness(result.image, truth, mask), "%")
        yield Row(f"{title}: crop, edit and stitch", seconds, "s")


def line_sharpness(image: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Return the sharpness inside a mask, in percent of the truth's."""
    inside = mask[0] > 0
    return 100 * sharpness(image, inside) / sharpness(truth, inside)


def ranges() -> Iterator[Row]:
    """Measure values above 1, and the steps of a soft gradient, in a filled hole."""
    y, x = np.mgrid[:240, :300]
    glow = 0.2 + 7.8 * np.exp(-((y - 120) ** 2 + (x - 150) ** 2) / 3200)
    slope = 0.25 + x / 2550 + 0 * y
    hole = np.zeros((240, 300), np.uint8)
    cv2.circle(hole, (185, 120), 14, 1, -1)
    mask = torch.from_numpy(hole).float().unsqueeze(0)
    inside = mask[0] > 0
    for method in ("patchmatch", "telea"):
        filled = []
        for values in (glow, slope):
            image = torch.from_numpy(values).float()[None, ..., None].repeat(1, 1, 1, 3)
            image[mask > 0] = 0
            filled.append(fill.fill(image, mask, 0, no_progress, method=method)[0])
        stops = (filled[0][inside] / torch.from_numpy(glow).float()[inside].unsqueeze(-1)).log2()
        row = 255 * filled[1][120, 171:200, 0]
        still = (row.round().diff() == 0).float().mean(), (row.diff() == 0).float().mean()
        yield Row(
            f"lamp of 8, {method}: brightest value filled", float(filled[0][inside].max()), ""
        )
        yield Row(f"lamp of 8, {method}: median error", float(stops.abs().median()), "stops")
        yield Row(f"soft gradient, {method}: pixels equal to their neighbor", 100 * still[1], "%")
        yield Row(f"soft gradient, {method}: if it was rounded to 8 bits", 100 * still[0], "%")


def grain() -> Iterator[Row]:
    """Measure the noise that match_grain adds to a clean edit of a noisy photo."""
    for deviation in DEVIATIONS:
        ratios, seconds = [], []
        for name in PHOTOS:
            clean = photo(name)
            mask = masks(*clean.shape[1:3])["disc"]
            generator = torch.Generator().manual_seed(deviation)
            noisy = clean + deviation / 255 * torch.randn(clean.shape, generator=generator)
            crop = region.crop(noisy, mask)
            edited = region.crop_like(clean, crop.region)
            result = region.stitch(edited, noisy, crop.region, crop.image)
            start = time.perf_counter()
            grained = match_grain(result, noisy, edited, crop.region, 0)
            seconds.append(time.perf_counter() - start)
            ratios.append(error(grained.image, clean, mask[0] > 0) / deviation)
        name = f"noise of {deviation} levels"
        yield Row(f"{name}: added, median of {len(PHOTOS)}", 100 * statistics.median(ratios), "%")
        yield Row(f"{name}: added, least", 100 * min(ratios), "%")
        yield Row(f"{name}: added, most", 100 * max(ratios), "%")
        yield Row(f"{name}: seconds of match_grain", statistics.median(seconds), "s")


def sharpening() -> Iterator[Row]:
    """Measure the error inside the mask of an enlarged edit before and after match_grain."""
    for scale in SCALES:
        before, after = [], []
        for truth in map(photo, PHOTOS):
            mask = masks(*truth.shape[1:3])["disc"]
            image = with_object(truth, mask)
            side = round(scale * max(region.crop(image, mask).region.box_size))
            crop = region.crop(image, mask, longest_side=side)
            edited = region.crop_like(truth, crop.region)
            result = region.stitch(edited, image, crop.region, crop.image)
            grained = match_grain(result, image, edited, crop.region, 0)
            inside = mask[0] > 0
            before.append(100 * sharpness(result, inside) / sharpness(truth, inside))
            after.append(100 * sharpness(grained.image, inside) / sharpness(truth, inside))
        name = f"crop at {scale:g}, energy of details inside the mask"
        yield Row(f"{name}: as stitched", statistics.median(before), "%")
        yield Row(f"{name}: with match_grain", statistics.median(after), "%")


def main() -> int:
    """Run all benchmarks, print their rows, and store the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    rows = [*rings(), *moved_back(), *power_line(), *ranges(), *grain(), *sharpening()]
    if not options.json:
        RESULT.write_text(table(rows) + "\n")
    return finish(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
