"""Masks as other programs write them: JPEG, palettes, 16 bits, opacity, other sizes, inverted."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from support.images import disc
from support.paths import EXAMPLES
from torch import Tensor

from artmancer import cli, images, mask_ops, region, tools
from artmancer.conditions import Conditions, cut_out, prepare
from artmancer.edit import edit
from artmancer.editor import EditRequest
from artmancer.errors import ArtMancerError
from artmancer.lama_editor import LamaEditor
from artmancer.progress import Progress

HEIGHT, WIDTH = 240, 320
INNER, OUTER = (130, 90, 190, 150), (96, 56, 224, 184)
"""Boxes in the photo: the disc of the masks, and all that a fade of 16 pixels may change, with a
block of JPEG around it: left, top, right, bottom.
"""


class Inverter:
    """An editor that inverts the whole crop."""

    name = "inverter"
    variant = "insertion"
    adapters = ()
    notes = ()
    keeps_surroundings = False

    def edit(self, request: EditRequest, progress: Progress) -> Tensor:
        return 1 - request.conditions.crop.image


def photo(count: int = 1) -> Tensor:
    """Return an IMAGE [count, HEIGHT, WIDTH, 3] of dark noise, which an inversion changes."""
    noise = torch.rand(count, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0))
    return noise * 0.4


def drawing(mode: str = "L") -> Image.Image:
    """Draw the disc, white on black."""
    image = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(image).ellipse(INNER, fill=255)
    return image.convert(mode)


def values() -> NDArray[np.uint8]:
    return np.asarray(drawing())


def noisy() -> Image.Image:
    noise = np.random.default_rng(0).integers(1, 6, values().shape)
    return Image.fromarray(np.where(values() > 0, 255 - noise, noise).astype(np.uint8))


def smooth() -> Image.Image:
    """Draw the disc with a soft edge."""
    return drawing().resize((WIDTH // 8, HEIGHT // 8), Image.Resampling.BOX).resize((WIDTH, HEIGHT))


def with_palette() -> Image.Image:
    image = Image.fromarray((values() > 0).astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 255, 0, 0])
    return image


def opacity_alone() -> Image.Image:
    image = Image.new("RGBA", (WIDTH, HEIGHT))
    image.putalpha(drawing())
    return image


FILES: dict[str, tuple[Callable[[], Image.Image], dict[str, object]]] = {
    "mask.png": (drawing, {}),
    "one_bit.png": (lambda: drawing("1"), {}),
    "palette.png": (with_palette, {}),
    "palette.gif": (with_palette, {}),
    "colors.png": (lambda: drawing("RGB"), {}),
    "gray_alpha.png": (lambda: drawing("LA"), {}),
    "opacity.png": (opacity_alone, {}),
    "opacity.webp": (opacity_alone, {"lossless": True}),
    "sixteen_bits.png": (lambda: Image.fromarray(values().astype(np.uint16) * 257), {}),
    "sixteen_bits.tif": (lambda: Image.fromarray(values().astype(np.uint16) * 257), {}),
    "float.tif": (lambda: Image.fromarray(values().astype(np.float32) / 255), {}),
    "good.jpg": (drawing, {"quality": 90}),
    "poor.jpg": (drawing, {"quality": 40}),
    "poor_colors.jpg": (lambda: drawing("RGB"), {"quality": 40}),
    "poor.webp": (lambda: drawing("RGB"), {"quality": 40}),
    "noise.png": (noisy, {}),
    "noise.jpg": (noisy, {"quality": 75}),
    "soft.png": (smooth, {}),
    "soft.jpg": (smooth, {"quality": 75}),
    "cmyk.jpg": (lambda: drawing("RGB").convert("CMYK"), {"quality": 90}),
}
"""Files of one mask, by name: a function that draws it, and Pillow's options for writing it."""


def result_of(conditions: Conditions) -> Tensor:
    return edit(Inverter(), conditions, match=False).image


@pytest.mark.parametrize("name", FILES)
def test_a_mask_file_of_any_kind_changes_its_disc_and_nothing_far_from_it(
    tmp_path: Path, name: str
) -> None:
    draw, options = FILES[name]
    draw().save(tmp_path / name, **options)
    image = photo()
    conditions = prepare(image, images.load_mask(tmp_path / name))
    changed = (result_of(conditions) != image).any(-1)[0]
    left, top, right, bottom = OUTER
    far = torch.ones_like(changed)
    far[top:bottom, left:right] = False
    assert not changed[far].any()
    core = disc(HEIGHT, WIDTH, 120, 160, 22)[0] == 1
    assert changed[core].all()
    box_height, box_width = conditions.crop.region.box_size
    assert max(box_height, box_width) <= 192, "the crop is around the disc"
    assert images.brightest(tmp_path / name) > 0.9


def test_a_mask_of_nearly_black_is_refused_with_its_brightest_value() -> None:
    for level in (1, 8):
        with pytest.raises(ArtMancerError, match=f"{level} of 255") as error:
            prepare(photo(), torch.full((1, HEIGHT, WIDTH), level / 255))
        assert error.value.code == "mask_empty"


def test_a_mask_of_zeros_and_ones_is_refused_before_torch_is_loaded(tmp_path: Path, capsys) -> None:
    images.save(tmp_path / "photo.png", photo())
    Image.fromarray((values() > 0).astype(np.uint8)).save(tmp_path / "mask.png")
    options = ["--task=removal", f"--mask={tmp_path / 'mask.png'}"]
    assert cli.main(["edit", str(tmp_path / "photo.png"), *options, f"-o{tmp_path}/out.png"]) == 1
    assert "1 of 255" in capsys.readouterr().err


def test_cleaning_keeps_every_value_between_and_counts_those_it_changed() -> None:
    levels = torch.arange(256).float().div(255).view(1, 1, -1)
    cleaned = mask_ops.clean(levels)[0, 0].mul(255).round().int().tolist()
    assert cleaned == [0] * 9 + list(range(9, 247)) + [255] * 9
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[:, 100:140, 100:140] = 1
    assert prepare(photo(), mask).notes == ()
    mask[:, :2, :50], mask[:, 120, 120:127] = 3 / 255, 250 / 255
    assert prepare(photo(), mask).notes == (), "as few as at an antialiased edge"
    mask[:, :10, :100] = 3 / 255
    (note,) = prepare(photo(), mask).notes
    assert "1,000 and 7 pixels" in note


def test_a_soft_mask_fades_as_it_did() -> None:
    ramp = torch.linspace(0, 1, 200).expand(1, HEIGHT, 200)
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[:, :, 60:260] = ramp
    image = photo()
    result = result_of(prepare(image, mask, feather=0))
    expected = torch.lerp(image, 1 - image, mask.unsqueeze(-1))
    assert (result - expected).abs().max() < 0.04
    between = (mask > 0.04) & (mask < 0.96)
    assert (result - expected)[between].abs().max() < 1e-6


def test_a_reference_and_an_object_are_cut_out_by_a_jpeg_mask(tmp_path: Path) -> None:
    noisy().save(tmp_path / "mask.jpg")
    mask = images.load_mask(tmp_path / "mask.jpg")
    reference = cut_out(photo(), mask)
    assert max(reference.mask.shape[1:]) < 80
    assert torch.equal(
        tools.extract_object(photo(), mask), tools.extract_object(photo(), mask_ops.clean(mask))
    )


@pytest.mark.parametrize("variant", ["insertion", "removal", "white_balance"])
def test_an_empty_frame_stays_and_the_others_are_edited(variant: str) -> None:
    from artmancer.draft import DraftEditor

    image = photo(3)
    mask = torch.cat([torch.zeros(1, HEIGHT, WIDTH), disc(HEIGHT, WIDTH, 120, 160, 9)] * 2)[:3]
    mask[2] = 2 / 255
    options = {"reference": photo(), "recipe": "reference_mask_background"}
    conditions = prepare(image, mask, **(options if variant == "insertion" else {}))
    result = edit(DraftEditor(variant), conditions)
    for index in (0, 2):
        assert torch.equal(result.image[index], image[index])
    assert not torch.equal(result.image[1], image[1])
    assert any("2 of the 3 masks are black" in note for note in result.report.notes)
    alone = prepare(image[1:2], mask[1:2], **(options if variant == "insertion" else {}))
    assert alone.crop.region.box_size == conditions.crop.region.box_size


def test_a_batch_of_empty_masks_is_refused() -> None:
    with pytest.raises(ArtMancerError, match="Every mask of the batch is black") as error:
        prepare(photo(2), torch.zeros(2, HEIGHT, WIDTH))
    assert error.value.code == "mask_empty"


def test_an_inverted_mask_is_questioned() -> None:
    mask = disc(HEIGHT, WIDTH, 120, 160, 40)
    notes = prepare(photo(), 1 - mask).notes
    assert any("may be inverted" in note for note in notes)
    corner = (1 - mask).clone()
    corner[:, :5, :5] = 0
    for other in (mask, corner, torch.ones_like(mask)):
        assert not any("inverted" in note for note in prepare(photo(), other).notes)


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea"])
def test_a_photo_given_as_a_mask_is_questioned(example, name: str) -> None:
    mask = images.load_mask(EXAMPLES / f"{name}.png")
    notes = prepare(example(name), mask).notes
    assert any("Is it a photo?" in note for note in notes)


def test_a_painted_mask_is_not_taken_for_a_photo(example) -> None:
    for mask in (example("coffee_mask"), torch.full((1, 400, 600), 0.5)):
        assert not any("photo?" in note for note in prepare(example("coffee"), mask).notes)


def test_an_image_in_the_place_of_a_mask_is_refused_with_what_to_do() -> None:
    for channels in (3, 4):
        with pytest.raises(ArtMancerError, match="Convert Image to Mask"):
            prepare(photo(), torch.ones(1, HEIGHT, WIDTH, channels))


@pytest.mark.parametrize("scale", [0.5, 2])
def test_a_mask_of_the_same_aspect_ratio_is_scaled(scale: float) -> None:
    mask = disc(HEIGHT, WIDTH, 120, 160, 30)
    size = (round(HEIGHT * scale), round(WIDTH * scale))
    other = disc(*size, 120 * scale, 160 * scale, 30 * scale)
    conditions = prepare(photo(), other)
    placed = region.uncrop(conditions.crop.mask, conditions.crop.region)
    assert ((placed >= 0.5) != (mask == 1)).sum() < 0.06 * mask.sum()
    assert any(f"from {size[1]}x{size[0]} to the photo's 320x240" in n for n in conditions.notes)


@pytest.mark.parametrize(
    ("size", "advice"),
    [((239, 320), "aspect ratios differ"), ((320, 240), "turn the mask by 90 degrees")],
)
def test_a_mask_that_cannot_be_scaled_exactly_is_refused(size: tuple[int, int], advice) -> None:
    with pytest.raises(ArtMancerError, match=advice):
        prepare(photo(), torch.ones(1, *size))


def test_the_mask_that_comfyui_gives_where_there_is_none_is_not_scaled() -> None:
    with pytest.raises(ArtMancerError, match="none was painted"):
        prepare(torch.rand(1, 512, 512, 3), torch.zeros(1, 64, 64))


def test_the_command_and_resize_photo_take_a_mask_of_half_the_size(tmp_path: Path, capsys) -> None:
    images.save(tmp_path / "photo.png", photo())
    drawing().resize((WIDTH // 2, HEIGHT // 2)).save(tmp_path / "mask.png")
    options = ["--task=white-balance", f"--mask={tmp_path / 'mask.png'}"]
    assert cli.main(["edit", str(tmp_path / "photo.png"), *options, f"-o{tmp_path}/out.png"]) == 0
    assert "scaled from 160x120 to the photo's 320x240" in capsys.readouterr().out
    half = images.load_mask(tmp_path / "mask.png")
    same, kept = tools.resize(photo(), half)
    assert torch.equal(same, photo())
    assert kept is not None
    assert torch.equal(kept, half), "Split Conditions scales it, and says so"
    _, scaled = tools.resize(photo(), half, width=80)
    assert scaled is not None
    assert scaled.shape == (1, 60, 80)


def test_the_message_names_grow_where_it_covers_the_whole_photo() -> None:
    mask = disc(HEIGHT, WIDTH, 120, 160, 30)
    conditions = prepare(photo(), mask, grow=300)
    with pytest.raises(ArtMancerError, match=r"grown by 300 pixels .*--grow") as error:
        edit(LamaEditor("removal", None), conditions)
    assert error.value.code == "invalid_request"
    with pytest.raises(ArtMancerError, match="--grow"):
        prepare(photo(), mask, grow=300, recipe="background_mask_fill")
    with pytest.raises(ArtMancerError, match="covers the whole image"):
        edit(LamaEditor("removal", None), prepare(photo(), torch.ones(1, HEIGHT, WIDTH), grow=3))
