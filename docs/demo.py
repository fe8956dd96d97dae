"""Make the three edits of the README with the command line, and a contact sheet of them.

Usage: python docs/demo.py [FOLDER]    (default: build/demo)
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from artmancer import cli, images
from artmancer.conditions import prepare
from artmancer.recipes import RECIPES

EXAMPLES = Path(__file__).parents[1] / "workflows" / "examples"
EDITS: dict[str, dict[str, str]] = {
    "removal": {"image": "astronaut.png", "mask": "astronaut_shuttle_mask.png"},
    "insertion": {
        "image": "coffee.png",
        "mask": "coffee_mask.png",
        "reference": "astronaut.png",
        "reference-mask": "astronaut_patch_mask.png",
    },
    "white_balance": {"image": "chelsea.png"},
}
"""Input files of each variant's edit, by the options of `artmancer edit`."""

COLUMNS = {
    "photo": 420,
    "its mask": 200,
    "seen: mask": 200,
    "seen: background": 200,
    "seen: object": 200,
    "draft result": 420,
}
"""Titles of the columns, and the longest side of their tiles in pixels."""

GAP = 20
"""Space between tiles in pixels."""

HEADING = 44
"""Height of a heading in pixels."""

INK = "#1f2328"
FRAME = "#d0d7de"


def main(folder: Path) -> None:
    """Make the edits and the contact sheet in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {
        variant: make_row(variant, files, folder / f"{variant}.png")
        for variant, files in EDITS.items()
    }
    width = GAP + sum(side + GAP for side in COLUMNS.values())
    height = HEADING + sum(HEADING + row_height(tiles) for tiles in rows.values()) + GAP
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    top = HEADING
    for variant, tiles in rows.items():
        pen.text((GAP, top + 8), variant.replace("_", " "), INK, ImageFont.load_default(24))
        top += HEADING
        left = GAP
        for (title, side), tile in zip(COLUMNS.items(), tiles, strict=True):
            pen.text((left, 12), title, INK, ImageFont.load_default(18))
            sheet.paste(tile, (left, top))
            left += side + GAP
        top += row_height(tiles)
    path = folder / "contact-sheet.png"
    sheet.save(path, optimize=True)
    sys.stdout.write(f"{path}\n")


def row_height(tiles: list[Image.Image]) -> int:
    """Return the height of a row of tiles in pixels."""
    return max(tile.height for tile in tiles)


def make_row(variant: str, files: dict[str, str], output: Path) -> list[Image.Image]:
    """Make an edit and return its tiles: photo, mask, three conditions, result."""
    paths = {option: EXAMPLES / name for option, name in files.items()}
    options = [f"--{option}={path}" for option, path in paths.items() if option != "image"]
    command = ["edit", str(paths["image"]), *options, f"--task={variant}", f"--output={output}"]
    if code := cli.main(command):
        sys.exit(code)
    photo = images.load(paths["image"]).image
    mask = images.load_mask(paths["mask"]) if "mask" in paths else None
    reference = images.load(paths["reference"]).image if "reference" in paths else None
    reference_mask = (
        images.load_mask(paths["reference-mask"]) if "reference-mask" in paths else None
    )
    conditions = prepare(photo, mask, reference=reference, reference_mask=reference_mask)
    photo_image = images.to_pil(photo)
    if "mask" in paths:
        mask_image: Image.Image = Image.open(paths["mask"])
    else:
        mask_image = Image.new("L", photo_image.size, "white")
    row = [
        photo_image,
        mask_image,
        *(images.to_pil(conditions.images[name]) for name in RECIPES[conditions.recipe].conditions),
        Image.open(output),
    ]
    return [make_tile(image, side) for image, side in zip(row, COLUMNS.values(), strict=True)]


def make_tile(image: Image.Image, side: int) -> Image.Image:
    """Scale an image so that its longest side has `side` pixels, and frame it."""
    scale = side / max(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    tile = image.convert("RGB").resize(size)
    ImageDraw.Draw(tile).rectangle((0, 0, tile.width - 1, tile.height - 1), outline=FRAME)
    return tile


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("build/demo"))
