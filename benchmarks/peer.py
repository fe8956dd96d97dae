"""Benchmark of crop and stitch beside those of ComfyUI-Inpaint-CropAndStitch, in one run.

Both get the same photos and masks, with their default settings but for the size of the crop. No
model is run: an edit is noise, the crop as it came, or the photo without what was painted into it,
cropped in the same way. "-": it has no such feature.

Usage: python benchmarks/peer.py [--json] [--peer FOLDER]

--peer : a checkout of ComfyUI-Inpaint-CropAndStitch, measured on the CPU; without it, its column
    says "not measured". It needs ComfyUI's modules, from $COMFYUI_PATH or ~/comfy/ComfyUI

Without --json the table is also written to benchmarks/results/peer.txt.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import islands as marked
import stitch as rings
import torch
from crop_and_stitch import Peer
from report import THREADS, machine
from torch import Tensor

from artmancer import mask_ops, region
from artmancer.conditions import Conditions, prepare
from artmancer.edit import edit
from artmancer.editor import PrecomputedEdit

RESULT = Path(__file__).parent / "results" / "peer.txt"

SCALED_SIDE = 160
"""Longest side of a crop that is scaled down, in pixels."""

CONTEXT = 1.2
"""Context where crops are scaled: the peer's default, so that the scales are alike."""

LINE_SIDE = 512
"""Longest side of the crops of a long thin mask, in pixels."""

ABSENT = "-"
"""Value of a figure of a feature that is not there."""


class Figure(NamedTuple):
    """A figure of both.

    Attributes
    ----------
    name, unit : what was measured
    ours, peers : the values; ABSENT: there is no such feature, None: not measured
    """

    name: str
    unit: str
    ours: float | str | None
    peers: float | str | None


class Result(NamedTuple):
    """A photo that was cropped and stitched.

    Attributes
    ----------
    image : IMAGE [B, H, W, 3]
    sizes : (height, width) of each crop
    scale : pixels of a crop per pixel of the photo, the least of all crops
    seconds : processor time of crop and stitch
    """

    image: Tensor
    sizes: list[tuple[int, int]]
    scale: float
    seconds: float

    @property
    def megapixels(self) -> float:
        """Pixels of all crops, in 2**20."""
        return sum(map(math.prod, self.sizes)) / 2**20


Edit = Callable[[Tensor, Tensor], Tensor]
"""An edit of a crop, from the crop of the photo and that of the truth."""


def theirs(
    peer: Peer, image: Tensor, mask: Tensor, change: Edit, side: int | None, truth: Tensor | None
) -> Result:
    """Crop, edit and stitch with the peer's nodes; see `ours`.

    Parameters
    ----------
    side : side of the square crop in pixels; None: the crop keeps the photo's resolution
    """
    size: dict[str, Any] = {"output_resize_to_target_size": side is not None}
    if side:
        size |= {"output_target_width": side, "output_target_height": side}
    start = time.process_time()
    stitcher, cropped = peer.crop(image, mask, **size)
    seconds = time.process_time() - start
    true_crop = cropped if truth is None else peer.crop(truth, mask, **size)[1]
    edited = change(cropped, true_crop)
    start = time.process_time()
    result = peer.stitch(stitcher, edited)
    seconds += time.process_time() - start
    shape = (cropped.shape[1], cropped.shape[2])
    scale = shape[0] / stitcher["cropped_to_canvas_h"][0]
    return Result(result, [shape], scale, seconds)


def ours(
    image: Tensor,
    mask: Tensor,
    change: Edit,
    *,
    truth: Tensor | None = None,
    **options: Any,
) -> Result:
    """Crop, edit and stitch without the steps that the peer does not have: registration, the match
    of colors, the report.

    Parameters
    ----------
    change : makes the edit
    truth : the photo that the second argument of `change` is a crop of; None: the photo
    options : arguments of conditions.prepare
    """
    start = time.process_time()
    conditions = prepare(image, mask, **options)
    seconds = time.process_time() - start
    edits = _edits(conditions, change, truth)
    start = time.process_time()
    result = image.clone()
    for part, edited in zip(conditions.parts, edits, strict=True):
        target = part.crop.region
        boxes = region.cut_boxes(result, target)
        inside = region.in_boxes(target)
        region.paste_boxes(result, region.stitch(edited, boxes, inside, part.crop.image), target)
    seconds += time.process_time() - start
    return _result(result, conditions, seconds)


def ours_with_all_steps(
    image: Tensor, mask: Tensor, change: Edit, *, truth: Tensor | None = None, **options: Any
) -> Result:
    """Crop, edit and stitch as the pack does; see `ours`. Seconds are 0."""
    conditions = prepare(image, mask, **options)
    editor = PrecomputedEdit(_edits(conditions, change, truth), "removal")
    return _result(edit(editor, conditions, match=False).image, conditions, 0)


def _edits(conditions: Conditions, change: Edit, truth: Tensor | None) -> list[Tensor]:
    edits = []
    for part in conditions.parts:
        crop = part.crop
        true_crop = crop.image if truth is None else region.crop_like(truth, crop.region)
        edits.append(change(crop.image, true_crop))
    return edits


def _result(image: Tensor, conditions: Conditions, seconds: float) -> Result:
    regions = [part.crop.region for part in conditions.parts]
    return Result(
        image, [part.size for part in regions], min(part.scale for part in regions), seconds
    )


def noise(crop: Tensor, truth: Tensor) -> Tensor:
    """Return noise of a crop's size."""
    return torch.rand_like(crop)


def unchanged(crop: Tensor, truth: Tensor) -> Tensor:
    """Return the crop as it came."""
    return crop


def perfect(crop: Tensor, truth: Tensor) -> Tensor:
    """Return the truth."""
    return truth


def measure_islands(peer: Peer | None) -> list[Figure]:
    """Measure marks in the corners of a photo, and in its middle: ours apart, the peer in one crop,
    both at the photo's resolution, and the peer at its default size of 512 pixels.
    """
    figures = []
    for width, height in marked.SIZES:
        image = marked.photo(width, height)
        for count in marked.COUNTS:
            mask = marked.marks(width, height, count)
            name = f"{width}x{height}, {count} of {marked.MARK[width]} px"
            own = ours(image, mask, noise, regions="apart")
            native = peer and theirs(peer, image, mask, noise, None, None)
            small = peer and theirs(peer, image, mask, noise, 512, None)
            apart = ABSENT if peer and count > 1 else _value(native, lambda found: 1)
            figures += [
                Figure(f"{name}: islands in crops of their own", "", len(own.sizes), apart),
                *_both(f"{name}: cropped", "MP", own, native, lambda found: found.megapixels),
                *_both(f"{name}: crop and stitch", "s", own, native, lambda found: found.seconds),
                *_both(
                    f"{name}: crop and stitch, the peer at 512 px",
                    "s",
                    own,
                    small,
                    lambda found: found.seconds,
                ),
                *_both(
                    f"{name}: scale of the crop, the peer at 512 px",
                    "",
                    own,
                    small,
                    lambda found: found.scale,
                ),
            ]
    return figures


def measure_rings(peer: Peer | None) -> list[Figure]:
    """Measure the surroundings of a mask: an object is painted into each photo and removed by a
    perfect edit, whose crop was scaled down; and the crop is stitched back as it came.
    """
    scales: dict[str, list[float]] = {"ours": [], "peers": []}
    kept: dict[str, list[float]] = {"ours": [], "peers": []}
    scaled: dict[str, list[float]] = {"ours": [], "peers": []}
    native: dict[str, list[float]] = {"ours": [], "peers": []}
    for truth in map(rings.photo, rings.PHOTOS):
        mask = rings.masks(*truth.shape[1:3])["disc"]
        image = rings.with_object(truth, mask)
        area = rings.between(mask, *rings.RING)
        sharp = rings.sharpness(truth, area)
        for name in ("ours", "peers"):
            if name == "peers" and peer is None:
                continue
            run = _runner(name, peer)
            result = run(image, mask, perfect, SCALED_SIDE, truth)
            scales[name].append(result.scale)
            kept[name].append(100 * rings.sharpness(result.image, area) / sharp)
            scaled[name].append(
                changed_bytes(image, run(image, mask, unchanged, SCALED_SIDE, None).image, mask)
            )
            native[name].append(
                changed_bytes(image, run(image, mask, unchanged, None, None).image, mask)
            )
    rows = (
        ("a scaled crop: its scale", "", scales, statistics.median),
        ("a scaled crop: sharpness kept 2 to 6 px from the mask", "%", kept, statistics.median),
        ("a scaled crop: the same, least of 8 photos", "%", kept, min),
        ("a scaled crop, unchanged: bytes changed outside the mask, most", "", scaled, max),
        ("a crop at the photo's resolution, unchanged: the same", "", native, max),
    )
    return [
        Figure(name, unit, summary(values["ours"]), summary(values["peers"]) if peer else None)
        for name, unit, values, summary in rows
    ]


Runner = Callable[[Tensor, Tensor, Edit, int | None, Tensor | None], Result]


def _runner(name: str, peer: Peer | None) -> Runner:
    """Return the function that runs ours or the peer's with a crop of a longest side."""
    if name == "peers":
        assert peer
        return partial(theirs, peer)

    def run(
        image: Tensor, mask: Tensor, change: Edit, side: int | None, truth: Tensor | None
    ) -> Result:
        crop = region.crop(image, mask, longest_side=side, context=CONTEXT)
        true_crop = crop.image if truth is None else region.crop_like(truth, crop.region)
        result = region.stitch(change(crop.image, true_crop), image, crop.region, crop.image)
        return Result(result, [crop.region.size], crop.region.scale, 0)

    return run


def changed_bytes(before: Tensor, after: Tensor, mask: Tensor) -> float:
    """Return the number of 8-bit values outside a mask that differ."""
    old, new = ((255 * image).round() for image in (before, after))
    return float((old != new)[mask == 0].sum())


def measure_faint_mask(peer: Peer | None) -> list[Figure]:
    """Measure a mark in a mask whose other values are 1 to 5 of 255, as in a JPEG."""
    width, height = marked.SIZES[0]
    image, mask = marked.photo(width, height), marked.marks(width, height, 1)
    generator = torch.Generator().manual_seed(0)
    faint = torch.randint(1, 6, mask.shape, generator=generator) / 255
    soiled = torch.maximum(mask, faint)
    own = ours(image, soiled, noise)
    other = peer and theirs(peer, image, soiled, noise, None, None)
    blend = peer.settings["mask_blend_pixels"] if peer else 0
    name = f"{width}x{height}, a mark and 1 to 5 of 255 all over"
    far = [
        float((result.image != image).any(-1)[mask_ops.feather(mask, pixels) == 0].sum())
        for result, pixels in ((own, 16), (other, blend))
        if result
    ]
    return [
        *_both(f"{name}: cropped", "MP", own, other, lambda found: found.megapixels),
        Figure(f"{name}: pixels changed outside the blend", "px", *[*far, None][:2]),
    ]


def measure_line(peer: Peer | None) -> list[Figure]:
    """Measure a line of 4 pixels across a photo, removed by a perfect edit at 512 pixels."""
    width, height = marked.LINE_SIZE
    truth, mask = marked.photo(width, height), marked.line(width, height)
    image = rings.with_object(truth, mask)
    area = rings.between(mask, *rings.RING)
    own = ours_with_all_steps(image, mask, perfect, truth=truth, resolution=str(LINE_SIDE))
    other = peer and theirs(peer, image, mask, perfect, LINE_SIDE, truth)
    sharp = rings.sharpness(truth, area)
    name = f"a line across {width}x{height} at {LINE_SIDE} px"
    return [
        Figure(f"{name}: pieces", "", len(own.sizes), ABSENT if peer else None),
        *_both(f"{name}: scale of the crops", "", own, other, lambda found: found.scale),
        *_both(f"{name}: cropped", "MP", own, other, lambda found: found.megapixels),
        *_both(
            f"{name}: sharpness kept {rings.RING[0]} to {rings.RING[1]} px from it",
            "%",
            own,
            other,
            lambda found: 100 * rings.sharpness(found.image, area) / sharp,
        ),
        *_both(
            f"{name}: error on it, in levels of 255",
            "",
            own,
            other,
            lambda found: rings.error(found.image, truth, mask[0] > 0),
        ),
    ]


def _both(
    name: str, unit: str, own: Result, other: Result | None, figure: Callable[[Result], float]
) -> list[Figure]:
    return [Figure(name, unit, figure(own), _value(other, figure))]


def _value(result: Result | None, figure: Callable[[Result], float]) -> float | None:
    return None if result is None else figure(result)


def table(figures: list[Figure], title: str) -> str:
    """Return the figures as a table for a terminal."""
    width = max(len(figure.name) for figure in figures)
    lines = [
        machine(),
        f"peer: {title}",
        "Seconds are processor time of all threads: the machine may have other work.",
        "",
        f"{'':{width}}  {'ours':>14}  {'the peer':>14}",
    ]
    for figure in figures:
        values = "  ".join(f"{_text(value, figure.unit):>14}" for value in figure[2:])
        lines.append(f"{figure.name:{width}}  {values}")
    return "\n".join(lines)


def _text(value: float | str | None, unit: str) -> str:
    if value is None:
        return "not measured"
    return value if isinstance(value, str) else f"{value:,.2f} {unit}".rstrip()


def main() -> int:
    """Run all benchmarks and print their figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--peer", type=Path, help="checkout of ComfyUI-Inpaint-CropAndStitch")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    peer = Peer(options.peer) if options.peer else None
    figures = [
        *measure_rings(peer),
        *measure_faint_mask(peer),
        *measure_line(peer),
        *measure_islands(peer),
    ]
    if options.json:
        rows = [
            {"name": f"{side}, {figure.name}", "value": value, "unit": figure.unit}
            for figure in figures
            for side, value in zip(("ours", "the peer"), figure[2:], strict=True)
        ]
        text = json.dumps([{**row, "limit": None, "ok": True} for row in rows], indent=1)
    else:
        title = peer.title if peer else "ComfyUI-Inpaint-CropAndStitch, not measured"
        text = table(figures, title)
        RESULT.write_text(text + "\n")
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
