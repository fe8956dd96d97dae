"""Draw docs/quality.png: shadows, spill and registration, each on an image with a known result.

Usage: python docs/quality.py
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from artmancer import images, region
from artmancer.conditions import prepare
from artmancer.edit import edit
from artmancer.editor import PrecomputedEdit
from artmancer.images import to_pil
from artmancer.masks import shadow
from artmancer.registration import Similarity, register, undo
from artmancer.tools import cast_shadow

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "workflows" / "examples"

SIDE = 240
"""Side of a cell's image in pixels."""

GAP = 8
"""Space between cells in pixels."""

CAPTION = 26
"""Height of a cell's caption in pixels."""

BLUE = torch.tensor([0.2, 0.35, 0.6])
"""Color of the ball that is drawn into the photos."""

PINK = torch.tensor([1.0, 0.25, 0.6])
"""Color of a mask that is laid over an image."""

Cell = tuple[str, Tensor]
"""A caption and an IMAGE [1, h, w, 3]."""


def disc(height: int, width: int, y: int, x: int, radius: int) -> Tensor:
    """Draw a disc as a MASK [1, height, width]."""
    rows, columns = torch.arange(height).unsqueeze(1), torch.arange(width).unsqueeze(0)
    return ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2).float().unsqueeze(0)


def paint(image: Tensor, mask: Tensor, color: Tensor) -> Tensor:
    """Blend a color over an IMAGE, as strongly as the MASK says."""
    return torch.lerp(image, color.expand_as(image), mask[..., None])


def shadows() -> list[Cell]:
    """Make the cells of a shadow that Shadow Mask proposes."""
    wood = images.load(EXAMPLES / "coffee.png").image[:, 250:400, 440:600]
    wood = region.resample(wood, (300, 320))
    ball = disc(300, 320, 130, 140, 45)
    photo, _ = cast_shadow(paint(wood, ball, BLUE), ball, (34, 22), 0.5, 5)
    proposal = shadow.propose(photo, ball)
    return [
        ("the object's mask", paint(photo, 0.6 * ball, PINK)),
        ("with its shadow proposed", paint(photo, 0.6 * torch.maximum(ball, proposal), PINK)),
    ]


def spills() -> list[Cell]:
    """Make the cells of an edit that draws a shadow beside its mask."""
    photo = images.load(EXAMPLES / "coffee.png").image
    mask = disc(400, 600, 340, 480, 40)
    shade = disc(400, 600, 352, 524, 32) * (1 - mask)
    conditions = prepare(photo, mask, context=3, feather=4)
    drawn = paint(photo, mask, BLUE) * (1 - 0.5 * shade[..., None])
    editor = PrecomputedEdit([region.crop_like(drawn, conditions.crop.region)], "insertion")
    window = region.Window(270, 400, 400, 590)
    cells = []
    for caption, widen in (("its shadow is cut off", False), ("stitched with widen", True)):
        result = edit(editor, conditions, widen=widen).image
        cells.append((caption, window.view(result[0])[None]))
    return cells


def drifts() -> list[Cell]:
    """Make the cells of an edit that shifted and zoomed the photo."""
    photo = images.load(EXAMPLES / "astronaut.png").image
    moved = undo(photo[0], Similarity(1.01, complex(3.5, -2.5)))
    hole = disc(512, 512, 250, 250, 60)[0] > 0
    registration = register(moved, photo[0], ~hole, hole)
    assert registration
    window = region.Window(60, 160, 200, 300)
    cells = []
    for caption, image in (("an edit that moved", moved), ("moved back", registration.image)):
        difference = (4 * (image - photo[0]).abs()).clamp(0, 1)
        cells.append((f"{caption}: difference x 4", window.view(difference)[None]))
    return cells


def main() -> None:
    """Draw the sheet."""
    cells = [*shadows(), *spills(), *drifts()]
    sheet = Image.new("RGB", (len(cells) * (SIDE + GAP) - GAP, SIDE + CAPTION), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for index, (caption, image) in enumerate(cells):
        x = index * (SIDE + GAP)
        sheet.paste(square(to_pil(image[0])), (x, 0))
        pen.text((x + 2, SIDE + 4), caption, "black", font)
    sheet.save(ROOT / "docs" / "quality.png", optimize=True)


def square(image: Image.Image) -> Image.Image:
    """Scale an image to fill the square of a cell, and crop its longer side."""
    scale = SIDE / min(image.size)
    width, height = (int(np.ceil(side * scale)) for side in image.size)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    scaled = image.resize((width, height), Image.Resampling.LANCZOS)
    return scaled.crop((left, top, left + SIDE, top + SIDE))


if __name__ == "__main__":
    main()
