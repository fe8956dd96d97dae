"""Draw the conditioning images that reach the encoder, for each checkpoint's name, beside those of
independent implementations, with the difference.

Usage: python docs/recipe_pictures.py [FOLDER]    (default: docs)

A tiny base with random weights edits; the images do not depend on the weights. OpenCV fills the
hole, because PatchMatch draws at random.
"""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support import recipe_reference, tiny_qwen

from artmancer import cli
from artmancer import fill as filling
from artmancer.qwen import sampler

EXAMPLES = Path(__file__).parents[1] / "workflows" / "examples"
SIDE = 1024
"""Longest side of the photos in pixels: nothing is resampled, so the images are equal exactly."""

TILE = 256
GAP = 12
INK = "#1f2328"

EDITS = {
    "insertion": ("insertion_cp", "coffee", "coffee_mask", ["reference", "mask", "background"]),
    "removal": (
        "removal_cp",
        "astronaut",
        "astronaut_shuttle_mask",
        ["background", "mask", "fill"],
    ),
    "white_balance": ("wb_cp", "chelsea", None, ["photo", "edges"]),
}
"""Checkpoint, photo, mask and labels by variant."""


def main(folder: Path) -> None:
    """Draw an image for each variant, and print the differences."""
    with TemporaryDirectory() as name:
        work = Path(name)
        base = tiny_qwen.save_base(work / "base")
        for variant in EDITS:
            draw(variant, base, work, folder)


def draw(variant: str, base: Path, work: Path, folder: Path) -> None:
    """Edit with the command, and draw what reached the encoder."""
    checkpoint, photo_name, mask_name, labels = EDITS[variant]
    lora = tiny_qwen.save_lora(work / f"{checkpoint}.safetensors", base)
    photo = enlarge(photo_name, work / "photo.png")
    arguments = ["edit", str(work / "photo.png"), f"--task={variant}", f"--base={base}"]
    arguments += ["--editor=qwen", "--steps=1", "--cfg=1", f"--output={work / 'out.png'}"]
    mask = None
    if mask_name:
        mask = enlarge(mask_name, work / "mask.png")[..., 0]
        arguments += [f"--mask={work / 'mask.png'}"]
    if variant == "insertion":
        arguments += [f"--reference={EXAMPLES / 'astronaut.png'}"]
        arguments += [f"--reference-mask={EXAMPLES / 'astronaut_patch_mask.png'}"]
    if variant == "removal":
        arguments += ["--brush-mask"]
    encode = sampler._encode_image
    seen: list[tuple[Image.Image, int | None]] = []

    def spy(base: Any, image: Image.Image, area: int | None, load_part: Any) -> Any:
        seen.append((image, area))
        return encode(base, image, area, load_part)

    variables = {"insertion": "MODEL_FILE", "removal": "MODEL_FILE_REMOVAL"}
    environment = {variables.get(variant, "MODEL_FILE_WHITE_BALANCE"): str(lora)}
    with (
        mock.patch.object(sampler, "_encode_image", spy),
        # What the transformer makes of them does not matter here.
        mock.patch.object(sampler, "_denoise", lambda base, inputs, *_: inputs.noise),
        mock.patch.object(filling, "method", lambda: "telea"),
        mock.patch.dict(os.environ, environment),
    ):
        if code := cli.main(arguments):
            sys.exit(code)
    rows = []
    for label, (image, area), wanted in zip(
        labels, seen, expected(variant, photo, mask), strict=True
    ):
        ours = np.asarray(image).astype(int)
        difference = np.abs(ours - padded(wanted))
        title = f"{label}: difference at most {difference.max():.1f} of 255"
        sys.stdout.write(f"{checkpoint}: {title}; encoded at {area} pixels\n")
        rows.append((title, [ours, padded(wanted), difference * 64]))
    sheet(rows).save(folder / f"recipe-{variant.replace('_', '-')}.png", optimize=True)


def enlarge(name: str, path: Path) -> NDArray[np.uint8]:
    """Scale an example so that its longest side is SIDE; write and return it."""
    image = Image.open(EXAMPLES / f"{name}.png").convert("RGB")
    scale = SIDE / max(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    is_mask = name.endswith("_mask")
    filter_ = Image.Resampling.NEAREST if is_mask else Image.Resampling.BICUBIC
    image = image.resize(size, filter_)
    image.save(path)
    return np.asarray(image)


def expected(
    variant: str, photo: NDArray[np.uint8], mask: NDArray[np.uint8] | None
) -> list[NDArray[Any]]:
    """Return the conditioning images by the independent implementations."""
    if mask is None:
        return [photo, recipe_reference.edges(photo)]
    if variant == "removal":
        return [
            photo * (1 - mask[..., None] / 255),
            np.repeat(mask[..., None], 3, 2),
            recipe_reference.removal_fill(photo, mask >= 128, brushed=True),
        ]
    area = mask >= 128
    reference = np.asarray(Image.open(EXAMPLES / "astronaut.png").convert("RGB"))
    shape = np.asarray(Image.open(EXAMPLES / "astronaut_patch_mask.png").convert("L")) >= 128
    hidden = recipe_reference.insertion_mask(area, shape)
    return [
        recipe_reference.resized(reference, photo.shape[:2]),
        np.repeat(255 * hidden[..., None].astype(int), 3, 2),
        recipe_reference.insertion_background(photo, area, shape),
    ]


def padded(image: NDArray[Any]) -> NDArray[Any]:
    """Center an image in a black square."""
    height, width = image.shape[:2]
    square = np.zeros((SIDE, SIDE, 3))
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    square[top : top + height, left : left + width] = image
    return square


def sheet(rows: list[tuple[str, list[NDArray[Any]]]]) -> Image.Image:
    """Draw rows of tiles under their titles."""
    heading = 28
    columns = ["reached the encoder", "independent", "difference x 64"]
    width = GAP + len(columns) * (TILE + GAP)
    image = Image.new("RGB", (width, heading + len(rows) * (heading + TILE + GAP)), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    for column, title in enumerate(columns):
        pen.text((GAP + column * (TILE + GAP), 8), title, INK, font)
    for row, (title, tiles) in enumerate(rows):
        top = heading + row * (heading + TILE + GAP)
        pen.text((GAP, top + 6), title, INK, font)
        for column, tile in enumerate(tiles):
            pixels = Image.fromarray(tile.clip(0, 255).round().astype(np.uint8))
            left = GAP + column * (TILE + GAP)
            image.paste(pixels.resize((TILE, TILE)), (left, top + heading))
    return image


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
