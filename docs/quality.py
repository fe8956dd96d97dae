"""Draw docs/quality.png: what an edit is held to, on pictures whose truth is known.

Usage: python docs/quality.py
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from artmancer import images, region
from artmancer.conditions import prepare
from artmancer.drift import drift, realign
from artmancer.edit import edit
from artmancer.editor import PrecomputedEdit
from artmancer.images import to_pil
from artmancer.masks import shadow
from artmancer.tools import cast_shadow

ROOT = Path(__file__).parents[1]
SIDE, GAP, TEXT = 240, 8, 26


def disc(height: int, width: int, y: int, x: int, radius: int) -> Tensor:
    rows, columns = torch.arange(height).unsqueeze(1), torch.arange(width).unsqueeze(0)
    return ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2).float().unsqueeze(0)


def over(image: Tensor, mask: Tensor) -> Tensor:
    return torch.lerp(image, torch.tensor([1.0, 0.25, 0.6]).expand_as(image), 0.6 * mask[..., None])


def shadows() -> list[tuple[str, Tensor]]:
    wood = images.load(ROOT / "workflows" / "examples" / "coffee.png").image[:, 250:400, 440:600]
    wood = region.resample(wood, (300, 320))
    ball = disc(300, 320, 130, 140, 45)
    picture = torch.lerp(wood, torch.tensor([0.2, 0.35, 0.6]).expand_as(wood), ball[..., None])
    picture, _ = cast_shadow(picture, ball, (34, 22), 0.5, 5)
    found = shadow.propose(picture, ball)
    return [
        ("the object's mask", over(picture, ball)),
        ("with its shadow proposed", over(picture, torch.maximum(ball, found))),
    ]


def spills() -> list[tuple[str, Tensor]]:
    photo = images.load(ROOT / "workflows" / "examples" / "coffee.png").image
    mask, shade = disc(400, 600, 340, 480, 40), disc(400, 600, 352, 524, 32)
    conditions = prepare(photo, mask, context=3, feather=4)
    ball = torch.lerp(photo, torch.tensor([0.2, 0.35, 0.6]).expand_as(photo), mask[..., None])
    drawn = ball * (1 - 0.5 * (shade * (1 - mask))[..., None])
    edited = PrecomputedEdit(region.crop_like(drawn, conditions.crop.region), "insertion")
    both = [edit(edited, conditions, widen=widen).image for widen in (False, True)]
    view = region.Window(270, 400, 400, 590)
    return [
        (name, view.of(image[0])[None])
        for name, image in zip(("its shadow is cut off", "stitched with widen"), both, strict=True)
    ]


def drifts() -> list[tuple[str, Tensor]]:
    photo = images.load(ROOT / "workflows" / "examples" / "astronaut.png").image
    moved = realign(photo[0], (-2.5, 3.5))
    outside = disc(512, 512, 250, 250, 60) == 0
    (shift,) = drift(moved[None], photo, outside)
    assert shift
    pictures = (("an edit that moved", moved), ("moved back", realign(moved, shift)))
    view = region.Window(60, 160, 200, 300)
    return [
        (f"{name}: difference x 4", view.of((4 * (one - photo[0]).abs()).clamp(0, 1))[None])
        for name, one in pictures
    ]


def main() -> None:
    cells = [*shadows(), *spills(), *drifts()]
    sheet = Image.new("RGB", (len(cells) * (SIDE + GAP) - GAP, SIDE + TEXT), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for index, (name, image) in enumerate(cells):
        x = index * (SIDE + GAP)
        picture = to_pil(image[0])
        scale = SIDE / min(picture.size)
        size = tuple(int(np.ceil(side * scale)) for side in picture.size)
        left, top = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
        picture = picture.resize(size, Image.Resampling.LANCZOS)
        sheet.paste(picture.crop((left, top, left + SIDE, top + SIDE)), (x, 0))
        pen.text((x + 2, SIDE + 4), name, "black", font)
    sheet.save(ROOT / "docs" / "quality.png", optimize=True)


if __name__ == "__main__":
    main()
