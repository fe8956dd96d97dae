"""Draw the templates' thumbnails from the example photos and edits of the draft editor.

Templates that need a model show the photo and what the user gives, and no result.

Usage: python docs/thumbnails.py [NUMBER...]    (default: all templates)
"""

import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, ImageDraw, ImageFont

from artmancer import cli

WORKFLOWS = Path(__file__).parents[1] / "workflows"

SIDE = 480
"""Side of a thumbnail in pixels; ComfyUI shows a square."""

PINK = (255, 64, 160)
"""Color of a mask, as in Smart Mask."""

SHUTTLE = (180, 0, 480, 300)
"""Square around the space shuttle in astronaut.png: left, top, right, bottom."""


def example(name: str) -> Image.Image:
    """Return an example photo or mask."""
    return Image.open(WORKFLOWS / "examples" / f"{name}.png").convert("RGB")


def edited(photo: str, task: str, **options: str | Path) -> Image.Image:
    """Edit an example with the draft editor.

    Parameters
    ----------
    options : further options of `artmancer edit`
    """
    with TemporaryDirectory() as folder:
        output = Path(folder) / "edited.png"
        words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        path = WORKFLOWS / "examples" / f"{photo}.png"
        if code := cli.main(["edit", str(path), f"--task={task}", f"--output={output}", *words]):
            sys.exit(code)
        return Image.open(output).convert("RGB")


def removed(photo: str, mask: Image.Image) -> Image.Image:
    """Remove what a mask covers from an example."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "mask.png"
        mask.save(path)
        return edited(photo, "removal", mask=path)


def square(image: Image.Image) -> Image.Image:
    """Cut the largest square out of the middle of an image, and scale it to a thumbnail."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box)


def divided(before: Image.Image, after: Image.Image) -> Image.Image:
    """Put the left half of one image beside the right half of another."""
    image = square(before)
    half = SIDE // 2
    image.paste(square(after).crop((half, 0, SIDE, SIDE)), (half, 0))
    ImageDraw.Draw(image).line((half, 0, half, SIDE), "white", 3)
    return image


def stacked(before: Image.Image, after: Image.Image) -> Image.Image:
    """Put the middle of one image above the middle of another."""
    half = SIDE // 2
    image = Image.new("RGB", (SIDE, SIDE))
    for index, part in enumerate((before, after)):
        height = part.width // 2
        top = (part.height - height) // 2
        box = (0, top, part.width, top + height)
        strip = part.resize((SIDE, half), Image.Resampling.LANCZOS, box)
        image.paste(strip, (0, index * half))
    ImageDraw.Draw(image).line((0, half, SIDE, half), "white", 3)
    return image


def masked(photo: Image.Image, mask: Image.Image) -> Image.Image:
    """Draw a mask over a photo."""
    tinted = Image.blend(photo, Image.new("RGB", photo.size, PINK), 0.55)
    return Image.composite(tinted, photo, mask.convert("L"))


def with_words(image: Image.Image, words: str) -> Image.Image:
    """Write words into a text box at the bottom of a thumbnail."""
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle((16, SIDE - 68, SIDE - 16, SIDE - 16), 10, "#222222", "#888888", 2)
    pen.text((32, SIDE - 42), words, "white", ImageFont.load_default(24), anchor="lm")
    return image


def coin() -> Image.Image:
    """Return the mask of the coin that the templates click, in coins.png."""
    mask = Image.new("L", example("coins").size)
    ImageDraw.Draw(mask).ellipse((315, 156, 378, 217), fill=255)
    return mask


def remove() -> Image.Image:
    """Draw template 1: the object above, its place without it below."""
    after = removed("astronaut", example("astronaut_shuttle_mask"))
    return stacked(*(image.crop(SHUTTLE) for image in (example("astronaut"), after)))


def remove_with_lama() -> Image.Image:
    """Draw template 2: the object under a mask."""
    return square(masked(example("astronaut"), example("astronaut_shuttle_mask")).crop(SHUTTLE))


def edit_by_words() -> Image.Image:
    """Draw template 3: a masked photo and the prompt."""
    image = masked(example("astronaut"), example("astronaut_shuttle_mask"))
    return with_words(square(image), "remove the space shuttle")


def insert() -> Image.Image:
    """Draw template 4: the result."""
    with TemporaryDirectory() as folder:
        reference = Path(folder) / "coin.png"
        coin().save(reference)
        after = edited(
            "coffee",
            "insertion",
            mask=painted_mask(Path(folder), "coffee_painted"),
            reference=WORKFLOWS / "examples" / "coins.png",
            reference_mask=reference,
        )
    # The right part, where the coin is.
    return square(after.crop((after.width - after.height, 0, *after.size)))


def painted_mask(folder: Path, name: str) -> Path:
    """Write the mask that is painted into an example's alpha, and return its file."""
    alpha = Image.open(WORKFLOWS / "examples" / f"{name}.png").getchannel("A")
    path = folder / "painted.png"
    alpha.point(lambda value: 255 - value).save(path)
    return path


def balance() -> Image.Image:
    """Draw template 5: before and after."""
    return divided(example("chelsea"), edited("chelsea", "white-balance"))


def click() -> Image.Image:
    """Draw template 6: the clicked object above, the result below."""
    after = removed("coins", coin())
    return stacked(masked(example("coins"), coin()), after)


def say_what() -> Image.Image:
    """Draw template 7: the photo and the words."""
    return with_words(square(example("astronaut").crop(SHUTTLE)), "space shuttle")


def many_photos() -> Image.Image:
    """Draw template 8: three photos above, their results below."""
    image = Image.new("RGB", (SIDE, SIDE))
    width = SIDE // 3
    for column, name in enumerate(("coffee", "chelsea", "astronaut")):
        for row, part in enumerate((example(name), edited(name, "white-balance"))):
            tile = square(part).crop((SIDE // 4, 0, SIDE // 4 + SIDE * 2 // 3, SIDE))
            image.paste(tile.resize((width, SIDE // 2)), (column * width, row * SIDE // 2))
    pen = ImageDraw.Draw(image)
    pen.line((0, SIDE // 2, SIDE, SIDE // 2), "white", 3)
    return image


def sample() -> Image.Image:
    """Draw template 9: noisy latents beside the photo."""
    photo = square(example("astronaut"))
    noise = Image.effect_noise((SIDE // 8, SIDE // 8), 160).convert("RGB")
    latents = Image.blend(photo.resize(noise.size), noise, 0.6)
    return divided(latents.resize((SIDE, SIDE), Image.Resampling.NEAREST), photo)


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "1": remove,
    "2": remove_with_lama,
    "3": edit_by_words,
    "4": insert,
    "5": balance,
    "6": click,
    "7": say_what,
    "8": many_photos,
    "9": sample,
}
"""Function that draws a template's thumbnail, by the template's number."""


def main() -> None:
    """Draw the thumbnails."""
    for number in sys.argv[1:] or PICTURES:
        (graph,) = WORKFLOWS.glob(f"{number} *.json")
        PICTURES[number]().save(graph.with_suffix(".jpg"), quality=85, optimize=True)


if __name__ == "__main__":
    main()
