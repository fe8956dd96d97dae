"""Files as photographers have them: what comes back with an edit is the photo's own."""

import io
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps
from support import odd_files
from support.odd_files import (
    IPTC,
    PROFILES,
    SIDE,
    THUMBNAIL,
    XMP,
    Content,
    exif,
    exif_tags,
    jpeg,
    photo,
    png,
    tiff,
)

from artmancer import cli, images
from artmancer.errors import ArtMancerError
from artmancer.images import formats

FEATHER = 4

NEAR = 12
"""Pixels around the mask that an edit may change: the feather, and what it is rounded up to."""

_y, _x = np.mgrid[:SIDE, :SIDE] - SIDE // 2
MASK = _y**2 + _x**2 <= 8**2
OUTSIDE = _y**2 + _x**2 > (8 + NEAR) ** 2

Edit = Callable[..., tuple[bytes, dict[str, Any]]]


@pytest.fixture
def edit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Edit:
    """Edit a file with the command, inside of MASK; return the result's bytes and the report."""
    Image.fromarray(MASK.astype(np.uint8) * 255).save(tmp_path / "mask.png")

    def run(data: bytes, name: str, out: str, *options: str) -> tuple[bytes, dict[str, Any]]:
        (tmp_path / name).write_bytes(data)
        task = () if "--task" in options else ("--task", "white-balance")
        command = ["edit", str(tmp_path / name), "--mask", str(tmp_path / "mask.png"), *task]
        command += ["-o", str(tmp_path / out), "--feather", str(FEATHER), "--json", *options]
        code = cli.main(command)
        answer = json.loads(capsys.readouterr().out)
        assert code == 0, answer
        return (tmp_path / out).read_bytes(), answer["report"]

    return run


@pytest.fixture
def retouch(tmp_path: Path) -> Edit:
    """Do as `edit`, with the inside of MASK darkened in the place of an edit, which takes longer.
    The report has the notes alone.
    """

    def run(data: bytes, name: str, out: str) -> tuple[bytes, dict[str, Any]]:
        (tmp_path / name).write_bytes(data)
        photo = images.load(tmp_path / name)
        image = photo.image.clone()
        image[0][MASK] *= 0.7
        images.save(tmp_path / out, image, photo.picture)
        return (tmp_path / out).read_bytes(), {"notes": [*photo.picture.notes]}

    return run


def assert_same_outside(after: Content, pixels: np.ndarray) -> None:
    """Check that an edit changed the pixels inside the mask alone, and not their kind."""
    assert after.pixels.dtype == pixels.dtype and after.pixels.shape == pixels.shape
    assert (after.pixels[OUTSIDE] == pixels[OUTSIDE]).all()
    if pixels.shape[2] > 2:
        assert (after.pixels[MASK] != pixels[MASK]).any()


def profiles_of(channels: int) -> list[str]:
    return ["none", "gray"] if channels < 3 else ["none", "adobe", "p3"]


KINDS = [
    (suffix, channels, bits, profile)
    for suffix in (".png", ".tif")
    for channels in (1, 2, 3, 4)
    for bits in (8, 16)
    for profile in profiles_of(channels)
    # A TIFF in gray and alpha with 16 bits is refused.
    if (suffix, channels, bits) != (".tif", 2, 16)
]
"""38 kinds of files: formats, channels, depths, profiles."""


@pytest.mark.parametrize(("suffix", "channels", "bits", "profile"), KINDS)
def test_outside_the_mask_a_file_is_its_own_in_its_own_depth(
    edit: Edit, retouch: Edit, suffix: str, channels: int, bits: int, profile: str
) -> None:
    pixels = photo(channels, bits)
    make: Any = png if suffix == ".png" else tiff
    edit = edit if profile == "none" else retouch
    data, report = edit(make(pixels, PROFILES[profile], True), f"in{suffix}", f"out{suffix}")
    after = odd_files.READERS[suffix](data)
    if (channels, bits) == (2, 16):
        # They are written as colors.
        assert (after.pixels[..., :1] == after.pixels[..., 1:3]).all()
        after.pixels = after.pixels[..., 2:]
    assert_same_outside(after, pixels)
    assert after.profile == PROFILES[profile]
    assert (after.xmp, after.iptc) == (XMP, IPTC)
    assert after.dpi == pytest.approx((300, 300), abs=0.01)
    assert report["notes"] == []


def lzw(pixels: np.ndarray) -> bytes:
    """Return a TIFF by OpenCV, whose compression is LZW."""
    import cv2

    return bytes(cv2.imencode(".tif", pixels[..., [2, 1, 0, 3][: pixels.shape[2]]])[1])


TIFF_FORMS: dict[str, Callable[[np.ndarray], bytes]] = {
    "big endian": lambda pixels: tiff(pixels, byteorder=">"),
    "deflate": lambda pixels: tiff(pixels, compression="zlib"),
    "tiles": lambda pixels: tiff(pixels, tile=(32, 32)),
    "strips": lambda pixels: tiff(pixels, rowsperstrip=7),
    "lzw": lzw,
}


@pytest.mark.parametrize("form", TIFF_FORMS)
@pytest.mark.parametrize("bits", [8, 16])
def test_any_form_of_a_tiff_is_read_exactly(retouch: Edit, form: str, bits: int) -> None:
    pixels = photo(3, bits)
    data, _ = retouch(TIFF_FORMS[form](pixels), "in.tif", "out.tif")
    assert_same_outside(odd_files.read_tiff(data), pixels)


def test_a_gray_tiff_whose_zero_is_white_comes_back_as_it_looks(retouch: Edit) -> None:
    pixels = photo(1, 16)
    data, _ = retouch(tiff(65535 - pixels, photometric="miniswhite"), "in.tif", "out.tif")
    assert_same_outside(odd_files.read_tiff(data), pixels)


def test_colors_that_are_multiplied_by_the_opacity_are_divided_by_it(retouch: Edit) -> None:
    pixels = photo(4, 16)
    multiplied = pixels.copy()
    opacity = pixels[..., 3:] / 65535
    multiplied[..., :3] = (pixels[..., :3] * opacity).round()
    data, _ = retouch(tiff(multiplied, extrasamples=["assocalpha"]), "in.tif", "out.tif")
    after = odd_files.read_tiff(data).pixels
    visible = OUTSIDE & (pixels[..., 3] > 6553)
    assert (after[..., 3] == pixels[..., 3])[OUTSIDE].all()
    assert np.abs(after.astype(int) - pixels)[visible].max() <= 5


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_exif_stays_but_for_orientation_and_thumbnail(
    retouch: Edit, suffix: str, order: str
) -> None:
    before = exif(order, 6)
    data, _ = retouch(png(photo(3, 8), None, True, before), "in.png", f"out{suffix}")
    after = odd_files.READERS[suffix](data).exif
    assert exif_tags(after) == exif_tags(before)
    parsed = Image.Exif()
    parsed.load(b"Exif\0\0" + after)
    assert parsed[0x112] == 1 and not parsed.get_ifd(1)
    assert THUMBNAIL[2:-2] not in after and len(after) < len(before)
    # The notes of a camera may hold places in the data.
    assert after.index(bytes(range(40))) == before.index(bytes(range(40)))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 16])
def test_exif_goes_into_a_tiff_and_out_of_it(retouch: Edit, bits: int, order: str) -> None:
    before = exif(order, 6)
    data, _ = retouch(png(photo(3, bits), None, True, before), "in.png", "out.tif")
    with Image.open(io.BytesIO(data)) as image:
        parsed = image.getexif()
    expected = exif_tags(before)
    assert parsed[0x112] == 1
    assert {tag: parsed[tag] for tag in expected["main"]} == expected["main"]
    assert dict(parsed.get_ifd(0x8769)) == expected["camera"]
    assert dict(parsed.get_ifd(0x8825)) == expected["place"]
    back, _ = retouch(data, "in.tif", "out.png")
    again = exif_tags(odd_files.read_png(back).exif)
    assert {tag: again["main"][tag] for tag in expected["main"]} == expected["main"]
    assert (again["camera"], again["place"]) == (expected["camera"], expected["place"])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bits", [8, 16])
def test_a_turned_photo_comes_back_upright(retouch: Edit, bits: int, orientation: int) -> None:
    pixels = photo(3, bits)
    data, _ = retouch(png(pixels, None, True, exif(">", orientation)), "in.png", "out.png")
    expected = np.zeros_like(pixels)
    for channel in range(3):
        for byte in range(bits // 8):
            plane = Image.fromarray((pixels[..., channel] >> 8 * byte).astype(np.uint8))
            plane.getexif()[0x112] = orientation
            turned = np.asarray(ImageOps.exif_transpose(plane)).astype(pixels.dtype)
            expected[..., channel] |= turned << 8 * byte
    assert_same_outside(odd_files.read_png(data), expected)


@pytest.mark.parametrize("quality", [60, 92])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_keeps_its_tables_and_subsampling(
    retouch: Edit, quality: int, subsampling: int, progressive: bool
) -> None:
    profile = PROFILES["adobe" if progressive else "none"]
    options = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
    data = jpeg(photo(3, 8), profile, True, **options)
    edited, report = retouch(data, "in.jpg", "out.jpg")
    before, after = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(edited))
    assert after.quantization == before.quantization
    # Kind, and horizontal and vertical sampling of each channel.
    assert [layer[:3] for layer in after.layer] == [layer[:3] for layer in before.layer]
    assert ("progressive" in after.info) == progressive
    read, content = odd_files.read_jpeg(data), odd_files.read_jpeg(edited)
    assert (content.profile, content.dpi) == (profile, (300, 300))
    assert (content.xmp, content.iptc) == (XMP, IPTC)
    assert exif_tags(content.exif) == exif_tags(read.exif)
    assert report["notes"] == []
    error = np.abs(content.pixels.astype(int) - read.pixels)[OUTSIDE].mean()
    assert error < 2.5


def test_a_gray_jpeg_stays_gray(retouch: Edit) -> None:
    data = jpeg(photo(1, 8), PROFILES["gray"], True)
    after = odd_files.read_jpeg(retouch(data, "in.jpg", "out.jpg")[0])
    assert after.pixels.shape == (SIDE, SIDE, 1) and after.profile == PROFILES["gray"]


@pytest.mark.parametrize("out", [".png", ".tif"])
def test_a_jpeg_as_another_file_holds_what_the_jpeg_shows(edit: Edit, out: str) -> None:
    data = jpeg(photo(3, 8), PROFILES["p3"], True)
    after = odd_files.READERS[out](edit(data, "in.jpg", f"out{out}")[0])
    assert_same_outside(after, odd_files.read_jpeg(data).pixels)
    assert (after.profile, after.xmp, after.iptc) == (PROFILES["p3"], XMP, IPTC)
    assert after.dpi == pytest.approx((300, 300), abs=0.01)


@pytest.mark.parametrize("channels", [3, 4])
def test_a_webp_stays_exact_where_it_is_transparent_too(edit: Edit, channels: int) -> None:
    pixels, buffer = photo(channels, 8), io.BytesIO()
    pixels[:5, :5, 3:] = 0
    said = {"icc_profile": PROFILES["adobe"], "exif": exif(), "xmp": XMP}
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, exact=True, **said)
    after = odd_files.read_webp(edit(buffer.getvalue(), "in.webp", "out.webp")[0])
    assert_same_outside(after, pixels)
    assert (after.profile, after.xmp) == (PROFILES["adobe"], XMP)
    assert exif_tags(after.exif) == exif_tags(exif())


@pytest.mark.parametrize("transparent", [False, True])
def test_a_palette_becomes_its_colors_in_its_profile(retouch: Edit, transparent: bool) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (16, 3), dtype=np.uint8)
    indices = np.random.default_rng(1).integers(0, 16, (SIDE, SIDE), dtype=np.uint8)
    image, buffer = Image.fromarray(indices).convert("P"), io.BytesIO()
    image.putpalette(colors.tobytes())
    more = {"transparency": 3} if transparent else {}
    image.save(buffer, "PNG", icc_profile=PROFILES["adobe"], **more)
    after = odd_files.read_png(retouch(buffer.getvalue(), "in.png", "out.png")[0])
    expected = colors[indices]
    if transparent:
        alpha = np.where(indices == 3, 0, 255).astype(np.uint8)
        expected = np.concatenate([expected, alpha[..., None]], -1)
    assert_same_outside(after, expected)
    assert after.profile == PROFILES["adobe"]


@pytest.mark.parametrize("file_format", ["TIFF", "JPEG"])
def test_cmyk_is_converted_through_its_profile(edit: Edit, file_format: str) -> None:
    inks = np.full((SIDE, SIDE, 4), (40, 130, 200, 20), np.uint8)
    inks[:, SIDE // 2 :] = (180, 60, 0, 90)
    buffer, profile = io.BytesIO(), odd_files.cmyk_profile()
    more = {"quality": 100} if file_format == "JPEG" else {}
    Image.fromarray(inks, "CMYK").save(buffer, file_format, icc_profile=profile, **more)
    edited, report = edit(buffer.getvalue(), "in.tif", "out.png")
    after = odd_files.read_png(edited)
    for column in (0, SIDE - 1):
        lab = odd_files.cmyk_lab(inks[0, column] / 255)
        expected = odd_files.lab_to_srgb(lab) * 255
        assert np.abs(after.pixels[0, column] - expected).max() < 6
    assert after.profile is None
    assert "CMYK" in " ".join(report["notes"])


def test_cmyk_without_a_profile_is_said_to_be_a_guess(edit: Edit) -> None:
    buffer = io.BytesIO()
    Image.new("CMYK", (SIDE, SIDE), (10, 90, 20, 0)).save(buffer, "TIFF")
    _, report = edit(buffer.getvalue(), "in.tif", "out.png")
    assert "guess" in " ".join(report["notes"])


def frames(file_format: str) -> bytes:
    """Return a file with three images, the photo first."""
    buffer = io.BytesIO()
    first, second = Image.fromarray(photo(3, 8)), Image.new("RGB", (SIDE, SIDE), "red")
    if file_format == "GIF":
        first = first.convert("L").convert("RGB")
    more = {"lossless": True} if file_format == "WEBP" else {}
    third = Image.new("RGB", (SIDE, SIDE), "blue")
    first.save(buffer, file_format, save_all=True, append_images=[second, third], **more)
    return buffer.getvalue()


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_of_several_images_is_edited_and_that_is_said(
    edit: Edit, file_format: str
) -> None:
    data = frames(file_format)
    edited, report = edit(data, f"in.{file_format.lower()}", "out.png")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert (odd_files.read_png(edited).pixels[OUTSIDE] == expected[OUTSIDE]).all()
    expected_note = f"in.{file_format.lower()} holds 3 images: the first was edited."
    assert expected_note in report["notes"]


@pytest.mark.parametrize(
    ("name", "module"), [("HEIF", "pillow_heif"), ("AVIF", "PIL._avif"), ("JXL", "pillow_jxl")]
)
def test_newer_formats_are_read_where_a_package_is_installed(
    edit: Edit, name: str, module: str
) -> None:
    pytest.importorskip(module)
    assert name in formats.readable()
    buffer, profile = io.BytesIO(), PROFILES["p3"]
    said = {"exif": b"Exif\0\0" + exif(), "icc_profile": profile}
    Image.fromarray(photo(3, 8)).save(buffer, name, quality=90, **said)
    edited, _ = edit(buffer.getvalue(), f"in.{name.lower()}", "out.png")
    after = odd_files.read_png(edited)
    image = Image.open(io.BytesIO(buffer.getvalue()))
    assert_same_outside(after, np.asarray(image.convert("RGB")))
    # Pillow itself changes text that is not ASCII when it writes AVIF.
    assert exif_tags(after.exif) == exif_tags(image.info["exif"])
    if name != "JXL":  # its plugin decodes to the profile, and writes an equal one
        assert after.profile == profile


def deep_file(suffix: str, bits: int, values: np.ndarray) -> bytes:
    """Return values [H, W, 1, 3 or 4] of this many bits as a lossless HEIC or AVIF file."""
    if suffix == "avif":
        order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}[values.shape[2]]
        options = [cv2.IMWRITE_AVIF_QUALITY, 100, cv2.IMWRITE_AVIF_DEPTH, bits]
        try:
            return bytes(cv2.imencode(".avif", values[..., order], options)[1])
        except (cv2.error, AttributeError):
            pytest.skip("this OpenCV writes no AVIF")
    heif = pytest.importorskip("pillow_heif")
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[values.shape[2]]
    height, width = values.shape[:2]
    image = heif.from_bytes(f"{mode};{bits}", (width, height), values.tobytes())
    buffer = io.BytesIO()
    options = {"quality": -1, "chroma": "444", "matrix_coefficients": 0}
    image.save(buffer, bit_depth=bits, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("suffix", "bits", "channels"),
    [
        *(("heic", bits, channels) for bits in (10, 12) for channels in (1, 3, 4)),
        *(("avif", bits, channels) for bits in (10, 12) for channels in (3, 4)),
    ],
)
def test_ten_and_twelve_bits_a_channel_are_kept_in_16(
    edit: Edit, suffix: str, bits: int, channels: int
) -> None:
    highest = 2**bits - 1
    values = photo(channels, 16) >> (16 - bits)
    values[-4:] = highest
    data = deep_file(suffix, bits, np.ascontiguousarray(values))
    edited, report = edit(data, f"in.{suffix}", "out.png")
    expected = np.rint(values / highest * 65535).astype(np.uint16)
    assert_same_outside(odd_files.read_png(edited), expected)
    assert expected.max() == 65535, "white stays white"
    assert report["notes"] == []
    assert images.read_header(data).bits == 16
    _, report = edit(data, f"in.{suffix}", "out.webp")
    assert report["notes"] == [
        "WebP has 8 bits a channel, and the photo has more. Write PNG or TIFF to keep them."
    ]


def test_where_opencv_reads_no_avif_the_report_says_that_bits_are_lost(
    edit: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.ascontiguousarray(photo(3, 16) >> 6)
    data = deep_file("avif", 10, values)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: None)
    edited, report = edit(data, "in.avif", "out.png")
    after = odd_files.read_png(edited).pixels
    assert after.dtype == np.uint8
    assert np.abs(after[OUTSIDE] - values[OUTSIDE] / 1023 * 255).max() <= 1
    assert report["notes"] == ["in.avif has 10 bits a channel: it was read in 8."]


@pytest.mark.parametrize(
    ("start", "package"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "pillow-heif"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0avifmif1miaf", "pillow-avif-plugin"),
        (b"\xff\x0a", "pillow-jxl-plugin"),
    ],
)
def test_a_format_without_its_package_names_the_package(
    monkeypatch: pytest.MonkeyPatch, start: bytes, package: str
) -> None:
    monkeypatch.setattr(formats, "readable", lambda: formats.FORMATS)
    monkeypatch.setattr(images, "readable", lambda: formats.FORMATS)
    for read in (images.inspect, images.read):
        with pytest.raises(ArtMancerError, match=f"pip install {package}") as error:
            read(start + bytes(100))
        assert error.value.code == "invalid_image"


def floating_tiff(channels: int) -> bytes:
    return tiff(photo(channels, 8).astype(np.float32) / 255)


def preview_first() -> bytes:
    """Return a TIFF whose first image is a smaller copy, as raw files have it."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, photo(3, 8), photometric="rgb", subfiletype=1)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (floating_tiff(1), "floating-point"),
        (floating_tiff(3), "floating-point"),
        (tiff(photo(3, 16).astype(np.uint32)), "32 bits"),
        (tiff(photo(2, 16)), "2 channels of 16 bits"),
        (b"v/1\x01" + bytes(200), "OpenEXR"),
        (b"#?RADIANCE\n" + bytes(200), "Radiance"),
        (b"8BPS\0\x01" + bytes(200), "Photoshop"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1" + bytes(200), "raw file"),
        (b"FUJIFILMCCD-RAW 0201" + bytes(200), "raw file"),
        (preview_first(), "preview"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_files_are_refused_with_a_sentence(data: bytes, reason: str) -> None:
    with pytest.raises(ArtMancerError, match=reason) as error:
        images.read(data, name="photo")
    assert error.value.code == "invalid_image"
    assert "TIFF" in str(error.value)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_strip_leaves_out_who_when_and_where(edit: Edit, suffix: str) -> None:
    data = jpeg(photo(3, 8), PROFILES["p3"], True)
    edited, report = edit(data, "in.jpg", f"out{suffix}", "--strip")
    after = odd_files.READERS[suffix](edited)
    assert after.profile == PROFILES["p3"]
    assert not (after.exif or after.xmp or after.iptc)
    for secret in (b"Maker", b"M\xc3\xbcller", b"caf\xc3\xa9", XMP[:30]):
        assert secret not in edited
    assert report["notes"] == []


@pytest.mark.parametrize(
    ("out", "reasons"),
    [
        (".jpg", ["8 bits a channel, and the photo has more", "no transparency"]),
        (".webp", ["8 bits a channel, and the photo has more", "cannot hold IPTC"]),
        (
            ".bmp",
            ["photo has more", "no transparency", "EXIF and XMP and IPTC and the color profile"],
        ),
    ],
)
def test_the_report_names_what_a_format_cannot_hold(
    edit: Edit, out: str, reasons: list[str]
) -> None:
    data = png(photo(4, 16), PROFILES["adobe"], True)
    _, report = edit(data, "in.png", f"out{out}")
    assert len(report["notes"]) == len(reasons)
    for note, reason in zip(report["notes"], reasons, strict=True):
        assert reason in note


def reference(tmp_path: Path, profile: bytes | None = None) -> str:
    """Write a reference that is red, as sRGB (220, 30, 30) where it has no profile."""
    path = tmp_path / "reference.png"
    path.write_bytes(png(np.full((40, 40, 3), (220, 30, 30), np.uint8), profile))
    return str(path)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_reference_is_converted_to_the_photos_profile(
    edit: Edit, tmp_path: Path, bits: int
) -> None:
    data = png(photo(3, bits), PROFILES["adobe"])
    task = ("--task", "insertion", "--reference", reference(tmp_path))
    edited, report = edit(data, "in.png", "out.png", *task)
    middle = odd_files.read_png(edited).pixels[SIDE // 2, SIDE // 2] / (2**bits - 1) * 255
    assert np.abs(middle - odd_files.adobe_rgb((220, 30, 30))).max() < 2
    assert "converted to the photo's color profile" in " ".join(report["notes"])


def test_a_reference_in_the_photos_profile_stays_as_it_is(edit: Edit, tmp_path: Path) -> None:
    data = png(photo(3, 8), PROFILES["adobe"])
    task = ("--task", "insertion", "--reference", reference(tmp_path, PROFILES["adobe"]))
    edited, report = edit(data, "in.png", "out.png", *task)
    middle = odd_files.read_png(edited).pixels[SIDE // 2, SIDE // 2]
    assert middle.tolist() == [220, 30, 30]
    assert "color profile" not in " ".join(report["notes"])


@pytest.mark.parametrize("bits", [8, 16])
def test_an_object_in_a_transparent_place_is_seen(edit: Edit, tmp_path: Path, bits: int) -> None:
    pixels = photo(4, bits)
    pixels[..., 3] = 0
    task = ("--task", "insertion", "--reference", reference(tmp_path))
    edited, _ = edit(png(pixels), "in.png", "out.png", *task)
    after = odd_files.read_png(edited).pixels
    assert (after[OUTSIDE] == pixels[OUTSIDE]).all()
    colors, alpha = np.split(after / (2**bits - 1), [3], -1)
    over_white = (colors * alpha + 1 - alpha)[SIDE // 2, SIDE // 2] * 255
    assert np.abs(over_white - (220, 30, 30)).max() <= 1


def test_what_comfyui_cannot_hold_of_a_file_is_named() -> None:
    note = images.read(png(photo(4, 16), PROFILES["p3"], True)).not_in_comfyui()
    for part in ("transparency", "the color profile", "EXIF", "XMP", "IPTC", "8 bits"):
        assert part in note
    assert images.read(png(photo(3, 8))).not_in_comfyui() == ""


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_result_of_another_size_keeps_depth_profile_and_metadata(
    channels: int, bits: int
) -> None:
    profile = PROFILES["gray" if channels == 1 else "p3"]
    smaller = photo(3, bits)[: SIDE // 2]
    data, _ = images.finish(png(photo(channels, bits), profile, True), png(smaller), "PNG")
    after = odd_files.read_png(data)
    assert after.pixels.shape == (SIDE // 2, SIDE, min(channels, 3))
    assert after.pixels.dtype == smaller.dtype
    if channels > 1:
        assert (after.pixels == smaller).all()
    assert (after.profile, after.xmp, after.iptc) == (profile, XMP, IPTC)


def test_a_gray_photo_stays_gray_with_a_colored_object(edit: Edit, tmp_path: Path) -> None:
    task = ("--task", "insertion", "--reference", reference(tmp_path))
    edited, _ = edit(png(photo(1, 16)), "in.png", "out.png", *task)
    after = odd_files.read_png(edited).pixels
    assert after.shape == (SIDE, SIDE, 1)
    luma = 0.299 * 220 + 0.587 * 30 + 0.114 * 30
    assert after[SIDE // 2, SIDE // 2, 0] / 257 == pytest.approx(luma, abs=1)


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_a_batch_keeps_each_photos_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    deep, shown = photo(3, 16), photo(4, 8)
    (folder / "deep.tif").write_bytes(tiff(deep, PROFILES["p3"], True))
    (folder / "clear.png").write_bytes(png(shown, PROFILES["adobe"], True))
    for name in ("deep", "clear"):
        Image.fromarray(MASK.astype(np.uint8) * 255).save(folder / f"{name}_mask.png")
    task = ["--task", "white-balance", "--masks", "{stem}_mask.*", "--feather", str(FEATHER)]
    assert cli.main(["batch", str(folder), "-o", str(out), *task, "--format", suffix[1:]]) == 0
    for name, pixels, profile in (("deep", deep, "p3"), ("clear", shown, "adobe")):
        data = (out / "edited" / f"{name}{suffix}").read_bytes()
        after = odd_files.READERS[suffix](data)
        assert_same_outside(after, pixels)
        assert (after.profile, after.xmp, after.iptc) == (PROFILES[profile], XMP, IPTC)


def in_format(name: str) -> bytes:
    buffer = io.BytesIO()
    said = {"exif": b"Exif\0\0" + exif(), "icc_profile": PROFILES["p3"]}
    Image.fromarray(photo(3, 8)).save(buffer, name, **said)
    return buffer.getvalue()


WHOLE: dict[str, Callable[[], bytes]] = {
    "png": lambda: png(photo(4, 16), PROFILES["p3"], True),
    "tiff": lambda: tiff(photo(3, 16), PROFILES["p3"], True),
    "jpeg": lambda: jpeg(photo(3, 8), PROFILES["p3"], True),
    **{name: lambda name=name: in_format(name) for name in formats.OPTIONAL},
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", WHOLE)
def test_a_damaged_file_gives_a_picture_that_can_be_written_or_a_reason(name: str) -> None:
    if name in formats.OPTIONAL and name not in formats.readable():
        pytest.skip("there is no package for it")
    chance, whole = random.Random(name), WHOLE[name]()
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(chance.choice([1, 2, 20])):
            end = min(len(data), chance.choice([64, 400, 3000, 100_000]))
            data[chance.randrange(end)] = chance.randrange(256)
        try:
            picture = images.read(bytes(data))
        except ArtMancerError as error:
            assert error.code in ("invalid_image", "image_too_large")
        else:
            for file_format in images.SUFFIXES.values():
                images.encode(picture, file_format)


def test_exif_that_is_broken_is_left_out_and_that_is_said() -> None:
    data = bytearray(exif())
    data[8:10] = b"\xff\xff"
    picture = images.read(png(photo(3, 8), None, True, bytes(data)), name="photo.png")
    assert not picture.metadata.exif and picture.metadata.xmp
    assert picture.notes == ("The EXIF data of photo.png is broken: it was left out.",)


def test_exif_whose_directories_hold_themselves_ends(edit: Edit) -> None:
    entry = struct.pack("<HHLL", 0x8769, 4, 1, 8)
    more = struct.pack("<HHLL", 0x8825, 4, 1, 8) + struct.pack("<HHLL", 0xA005, 4, 1, 8)
    block = b"II*\0" + struct.pack("<LH", 8, 60000) + (entry + more) * 20000 + bytes(4)
    for suffix in (".png", ".tif"):
        edit(png(photo(3, 8), None, True, block), "in.png", f"out{suffix}")


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_turned_tiff_of_several_images_is_turned_once(bits: int, orientation: int) -> None:
    pixels = photo(3, bits)[:, : SIDE // 2]
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for _ in range(2):
            writer.write(pixels, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    turns = {3: 2, 6: -1, 8: 1}[orientation]
    upright = np.rot90(pixels, turns)
    read = images.read(buffer.getvalue())
    assert np.array_equal(read.pixels, upright)
    height, width = upright.shape[:2]
    assert images.inspect(buffer.getvalue()) == ("TIFF", width, height)


@pytest.mark.parametrize(
    "xmp", [b" " * 300_000, b"<xmp:Thumbnails>" * 20_000], ids=["blanks", "thumbnails"]
)
def test_xmp_of_any_content_is_read_at_once(xmp: bytes) -> None:
    # With a search that goes back, this takes minutes.
    images.read(tiff(photo(3, 8), extratags=[(700, 1, len(xmp), xmp, True)]))


def test_a_tiff_with_a_resolution_of_text_has_none() -> None:
    data = tiff(photo(3, 8), metadata=True)
    for tag in (282, 283):
        place = data.index(struct.pack("<HHL", tag, 5, 1))
        text = struct.pack("<HHL", tag, 2, 4) + b"abc\0"
        data = data[:place] + text + data[place + len(text) :]
    assert images.read(data).metadata.dpi is None


@pytest.mark.parametrize("size", [(8, 8), (256, 256), (300, 200), (201, 300), (3000, 7), (64, 48)])
def test_the_size_of_a_jpeg_xl_is_known_from_its_header(size: tuple[int, int]) -> None:
    pytest.importorskip("pillow_jxl")
    from artmancer.images import jpeg_xl

    buffer = io.BytesIO()
    Image.new("RGB", size, (90, 120, 30)).save(buffer, "JXL")
    assert jpeg_xl.size(buffer.getvalue()) == size


def test_a_jpeg_xl_that_declares_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    # SizeHeader: not small, 30 bits for a height of 60,000, no ratio, and the same width.
    bits, place = 0, 0
    for value, count in [(0, 1), (3, 2), (59_999, 30), (0, 3), (3, 2), (59_999, 30)]:
        bits |= value << place
        place += count
    with pytest.raises(ArtMancerError, match="is 60000x60000") as caught:
        images.inspect(b"\xff\x0a" + bits.to_bytes(12, "little"))
    assert caught.value.code == "image_too_large"
