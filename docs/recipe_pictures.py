"""Draw the conditioning images that reach the encoder, for each checkpoint's name, beside those of
independent implementations, with the difference.

Usage: python docs/recipe_pictures.py [FOLDER]    (default: docs)

A tiny base with random weights edits; the images do not depend on the weights.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support import recipe_edits, tiny_qwen

TILE = 256
GAP = 12
INK = "#1f2328"


def main(folder: Path) -> None:
    """Draw an image for each variant, and print the differences."""
    with TemporaryDirectory() as name:
        work = Path(name)
        base = tiny_qwen.save_base(work / "base")
        for variant in recipe_edits.EDITS:
            draw(variant, base, work, folder)


def draw(variant: str, base: Path, work: Path, folder: Path) -> None:
    """Edit with the command, and draw what reached the encoder."""
    edit = recipe_edits.EDITS[variant]
    lora = tiny_qwen.save_lora(work / f"{edit.checkpoint}.safetensors", base)
    photo, mask = recipe_edits.write_photos(edit, work)
    seen = recipe_edits.encoded_by_the_command(variant, base, lora, work)
    rows = []
    for label, (image, area), wanted in zip(
        edit.labels, seen, recipe_edits.expected(variant, photo, mask), strict=True
    ):
        ours = np.asarray(image).astype(int)
        difference = np.abs(ours - wanted)
        title = f"{label}: difference at most {difference.max():.1f} of 255"
        sys.stdout.write(f"{edit.checkpoint}: {title}; encoded at {area} pixels\n")
        rows.append((title, [ours, wanted, difference * 64]))
    sheet(rows).save(folder / f"recipe-{variant.replace('_', '-')}.png", optimize=True)


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
