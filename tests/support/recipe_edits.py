"""An edit for each of the three checkpoint names, and the conditioning images that independent
implementations make for it.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from artmancer import cli
from artmancer import fill as filling
from artmancer.qwen import sampler

from . import recipe_reference
from .paths import EXAMPLES

SIDE = 1024
"""Longest side of the photos in pixels: nothing is resampled, so the images are equal exactly."""

REFERENCE, REFERENCE_MASK = EXAMPLES / "astronaut.png", EXAMPLES / "astronaut_patch_mask.png"
"""The object of the insertion."""


@dataclass(frozen=True)
class RecipeEdit:
    """An edit whose checkpoint's name says the recipe.

    Attributes
    ----------
    checkpoint : file name without the suffix
    variable : environment variable that names the checkpoint
    photo, mask : names of examples; "" for no mask
    labels : what each conditioning image shows
    """

    checkpoint: str
    variable: str
    photo: str
    mask: str
    labels: tuple[str, ...]


EDITS = {
    "insertion": RecipeEdit(
        checkpoint="insertion_cp",
        variable="MODEL_FILE",
        photo="coffee",
        mask="coffee_mask",
        labels=("reference", "mask", "background"),
    ),
    "removal": RecipeEdit(
        checkpoint="removal_cp",
        variable="MODEL_FILE_REMOVAL",
        photo="astronaut",
        mask="astronaut_shuttle_mask",
        labels=("background", "mask", "fill"),
    ),
    "white_balance": RecipeEdit(
        checkpoint="wb_cp",
        variable="MODEL_FILE_WHITE_BALANCE",
        photo="chelsea",
        mask="",
        labels=("photo", "edges"),
    ),
}
"""Edits by variant."""


def write_photos(
    edit: RecipeEdit, folder: Path
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Write photo.png and mask.png, whose longest side is SIDE; return both."""
    photo = _enlarge(edit.photo, folder / "photo.png")
    mask = _enlarge(edit.mask, folder / "mask.png")[..., 0] if edit.mask else None
    return photo, mask


def _enlarge(name: str, path: Path) -> NDArray[np.uint8]:
    image = Image.open(EXAMPLES / f"{name}.png").convert("RGB")
    scale = SIDE / max(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    is_mask = name.endswith("_mask")
    image = image.resize(size, Image.Resampling.NEAREST if is_mask else Image.Resampling.BICUBIC)
    image.save(path)
    return np.asarray(image)


def encoded_by_the_command(
    variant: str, base: Path, checkpoint: Path, folder: Path
) -> list[tuple[Image.Image, int | None]]:
    """Edit the photo of `write_photos` with the command; return the images that reached the
    encoder, and the area in pixels that each is encoded at.

    OpenCV fills the hole, because PatchMatch draws at random.
    """
    arguments = ["edit", str(folder / "photo.png"), f"--task={variant}", f"--base={base}"]
    arguments += ["--editor=qwen", "--steps=1", "--cfg=1", f"--output={folder / 'out.png'}"]
    if EDITS[variant].mask:
        arguments += [f"--mask={folder / 'mask.png'}"]
    if variant == "insertion":
        arguments += [f"--reference={REFERENCE}", f"--reference-mask={REFERENCE_MASK}"]
    if variant == "removal":
        arguments += ["--brush-mask"]
    encode = sampler._encode_image
    seen: list[tuple[Image.Image, int | None]] = []

    def spy(base: Any, image: Image.Image, area: int | None, load_part: Any) -> Any:
        seen.append((image, area))
        # The latents are not used below, and those of a megapixel take seconds.
        return encode(base, image, 64 * 64, load_part)

    with (
        mock.patch.object(sampler, "_encode_image", spy),
        # What the transformer makes of them does not matter here.
        mock.patch.object(sampler, "_denoise", lambda base, inputs, *_: inputs.noise),
        mock.patch.object(filling, "method", lambda: "telea"),
        mock.patch.dict(os.environ, {EDITS[variant].variable: str(checkpoint)}),
    ):
        assert cli.main(arguments) == 0
    return seen


def expected(
    variant: str, photo: NDArray[np.uint8], mask: NDArray[np.uint8] | None
) -> list[NDArray[Any]]:
    """Return the conditioning images by the independent implementations, in black squares."""
    return [_padded(image) for image in _unpadded(variant, photo, mask)]


def _unpadded(
    variant: str, photo: NDArray[np.uint8], mask: NDArray[np.uint8] | None
) -> list[NDArray[Any]]:
    if mask is None:
        return [photo, recipe_reference.edges(photo)]
    if variant == "removal":
        soft = cleaned(mask)[..., None]
        return [
            photo * (1 - soft / 255),
            np.repeat(soft, 3, 2),
            recipe_reference.removal_fill(photo, mask >= 128, brushed=True),
        ]
    area = mask >= 128
    reference = np.asarray(Image.open(REFERENCE).convert("RGB"))
    shape = np.asarray(Image.open(REFERENCE_MASK).convert("L")) >= 128
    hidden = recipe_reference.insertion_mask(area, shape)
    return [
        recipe_reference.resized(reference, photo.shape[:2]),
        np.repeat(255 * hidden[..., None].astype(int), 3, 2),
        recipe_reference.insertion_background(photo, area, shape),
    ]


def cleaned(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a mask with the values within 8 levels of black or white as black or white."""
    return np.where(mask <= 8, 0, np.where(mask >= 247, 255, mask)).astype(np.uint8)


def _padded(image: NDArray[Any]) -> NDArray[Any]:
    height, width = image.shape[:2]
    square = np.zeros((SIDE, SIDE, 3))
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    square[top : top + height, left : left + width] = image
    return square
