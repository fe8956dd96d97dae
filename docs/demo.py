"""Make the three edits of the README with the command line, and one contact sheet of them.

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
COLUMNS = {
    "photo": 420,
    "its mask": 200,
    "seen: mask": 200,
    "seen: background": 200,
    "seen: object": 200,
    "draft result": 420,
}
GAP = 20
HEAD = 44
INK = "#1f2328"


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = {task: row(task, files, folder / f"{task}.png") for task, files in EDITS.items()}
    height = sum(HEAD + max(tile.height for tile in tiles) for tiles in rows.values())
    sheet = Image.new(
        "RGB", (GAP + sum(COLUMNS.values()) + len(COLUMNS) * GAP, HEAD + height + GAP), "white"
    )
    draw = ImageDraw.Draw(sheet)
    top = HEAD
    for task, tiles in rows.items():
        draw.text((GAP, top + 8), task.replace("_", " "), INK, ImageFont.load_default(24))
        top += HEAD
        left = GAP
        for (title, width), tile in zip(COLUMNS.items(), tiles, strict=True):
            draw.text((left, 12), title, INK, ImageFont.load_default(18))
            sheet.paste(tile, (left, top))
            left += width + GAP
        top += max(tile.height for tile in tiles)
    sheet.save(folder / "contact-sheet.png", optimize=True)
    sys.stdout.write(f"{folder / 'contact-sheet.png'}\n")


def row(task: str, files: dict[str, str], output: Path) -> list[Image.Image]:
    """The tiles of one edit, which it makes: photo, mask, three conditions, result."""
    given = {option: EXAMPLES / name for option, name in files.items()}
    options = [f"--{option}={path}" for option, path in given.items() if option != "image"]
    if code := cli.main(
        ["edit", str(given["image"]), *options, f"--task={task}", f"--output={output}"]
    ):
        sys.exit(code)
    photo = images.load(given["image"]).image
    conditions = prepare(
        photo,
        images.load_mask(given["mask"]) if "mask" in given else None,
        reference=images.load(given["reference"]).image if "reference" in given else None,
        reference_mask=images.load_mask(given["reference-mask"])
        if "reference-mask" in given
        else None,
    )
    shown = [
        images.to_pil(photo),
        Image.open(given["mask"])
        if "mask" in given
        else Image.new("L", images.to_pil(photo).size, "white"),
        *(images.to_pil(conditions.images[name]) for name in RECIPES[conditions.recipe].conditions),
        Image.open(output),
    ]
    return [tile(picture, width) for picture, width in zip(shown, COLUMNS.values(), strict=True)]


def tile(picture: Image.Image, side: int) -> Image.Image:
    scale = side / max(picture.size)
    picture = picture.convert("RGB").resize(
        (round(picture.width * scale), round(picture.height * scale))
    )
    ImageDraw.Draw(picture).rectangle(
        (0, 0, picture.width - 1, picture.height - 1), outline="#d0d7de"
    )
    return picture


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("build/demo"))
