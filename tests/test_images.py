"""Image files: decode, check, save."""

import base64
import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from artmancer import images
from artmancer.errors import ArtMancerError

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
PHOTO = Image.fromarray(PIXELS)

EXIF_DESCRIPTION = 0x010E
"""EXIF tag of a photo's description."""

EXIF_ORIENTATION = 0x0112
"""EXIF tag of a photo's orientation."""

QUARTER_TURN_RIGHT = 6
"""Value of EXIF_ORIENTATION: turn the photo a quarter to the right."""


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def levels(image: torch.Tensor) -> np.ndarray:
    """Return the first image of a batch as uint8 [H, W, 3]."""
    return images.to_uint8(image[0]).numpy()


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "GIF"])
def test_lossless_formats_keep_every_byte(file_format: str) -> None:
    photo = PHOTO.convert("L").convert("RGB") if file_format == "GIF" else PHOTO
    assert (levels(images.decode(encoded(photo, file_format)).image) == np.array(photo)).all()


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
def test_lossy_formats_are_read(file_format: str) -> None:
    orange = Image.new("RGB", (64, 48), (200, 100, 50))
    decoded = levels(images.decode(encoded(orange, file_format)).image)
    assert np.abs(decoded.astype(int) - np.array(orange)).max() < 6


def test_values_equal_those_of_comfyuis_loader() -> None:
    expected = np.array(PHOTO).astype(np.float32) / 255.0
    assert (images.decode(encoded(PHOTO)).image[0].numpy() == expected).all()


def test_alpha_is_laid_over_white_in_an_image_and_over_black_in_a_mask() -> None:
    dark = Image.new("RGBA", (4, 4), (9, 9, 9, 0))
    assert (images.decode(encoded(dark)).image == 1).all()
    white = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    assert (images.decode_mask(encoded(white)) == 0).all()


def test_the_alpha_of_a_cut_out_is_kept() -> None:
    half = Image.new("RGBA", (4, 2), (255, 0, 0, 255))
    half.paste((0, 0, 0, 0), (2, 0, 4, 2))
    alpha = images.decode(encoded(half)).alpha
    assert alpha is not None
    assert alpha.tolist() == [[[1, 1, 0, 0]] * 2]
    assert images.decode(encoded(PHOTO)).alpha is None


def test_a_mask_may_be_painted_in_any_bright_color() -> None:
    assert (images.decode_mask(encoded(Image.new("RGB", (4, 4), "red"))) == 1).all()


def test_a_palette_with_transparency_is_read() -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    assert (levels(images.decode(encoded(palette)).image) == (255, 0, 0)).all()
    assert (levels(images.decode(encoded(palette, transparency=1)).image) == 255).all()


def gray_image(mode: str) -> Image.Image:
    """Return a gray image, 9 pixels wide and 8 high, in one of Pillow's modes."""
    if mode == "F":
        return Image.fromarray(np.full((8, 9), 0.5, np.float32))
    if mode == "I;16":
        return Image.fromarray(np.full((8, 9), 32768, np.uint16))
    return Image.new("L", (9, 8), 128).convert("RGB").convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_any_mode_becomes_rgb(mode: str) -> None:
    # Some versions of Pillow cannot read the YCbCr TIFF that they write.
    data = encoded(gray_image(mode), "JPEG" if mode == "YCbCr" else "TIFF")
    image = images.decode(data).image
    assert image.shape == (1, 8, 9, 3)
    dithered = mode in ("1", "P")
    if not dithered:
        assert (image - 0.5).abs().max() < 0.01
    assert images.decode_mask(data).shape == (1, 8, 9)


def test_a_16_bit_gray_mask_keeps_its_steps() -> None:
    ramp = Image.fromarray((np.arange(256, dtype=np.uint16) * 4)[None])
    mask = images.decode_mask(encoded(ramp))
    assert len(mask.unique()) == 256
    assert mask.max() == pytest.approx(1020 / 65535)


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = QUARTER_TURN_RIGHT
    rotated = images.decode(encoded(PHOTO, "PNG", exif=exif)).image
    assert (levels(rotated) == np.rot90(PIXELS, -1)).all()


def test_the_first_frame_of_an_animation_is_read() -> None:
    black, white = (Image.new("L", (5, 5), value) for value in (0, 255))
    data = encoded(black, "GIF", save_all=True, append_images=[white])
    assert (images.decode(data).image == 0).all()


def test_a_color_profile_is_kept(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo = images.decode(encoded(PHOTO, "PNG", icc_profile=profile))
    images.save(tmp_path / "out.png", photo.image, photo.picture)
    assert Image.open(tmp_path / "out.png").info["icc_profile"] == profile


def png_with_header_size(width: int, height: int) -> bytes:
    """Return a PNG whose header states this size and whose data holds less than a pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        length = struct.pack(">I", len(data))
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return length + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"0"))
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (b"", "invalid_image", "empty"),
        (b"hello", "invalid_image", "not an image"),
        (encoded(PHOTO)[:900], "invalid_image", "cut off"),
        (encoded(PHOTO, "JPEG")[:1500], "invalid_image", "cut off"),
        (encoded(PHOTO)[:30], "invalid_image", "Save it again"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "invalid_image", "PNG, JPEG"),
        (png_with_header_size(30_000, 20), "image_too_large", "30000x20"),
        (png_with_header_size(16_000, 16_000), "image_too_large", "pixels"),
        (png_with_header_size(12_000, 12_000), "image_too_large", "12000x12000"),
    ],
)
def test_bad_bytes_are_refused_with_the_reason(data: bytes, code: str, message: str) -> None:
    for decode in (images.decode, images.decode_mask):
        with pytest.raises(ArtMancerError, match=message) as error:
            decode(data)
        assert error.value.code == code


def test_a_file_longer_than_the_limit_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    (tmp_path / "big.png").write_bytes(bytes(1001))
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("the file was read"))
    with pytest.raises(ArtMancerError) as error:
        images.load(tmp_path / "big.png")
    assert error.value.code == "image_too_large"


def whole_files(file_format: str) -> list[bytes]:
    """Return undamaged files of a format, in several modes, with EXIF if the format supports it."""
    photos = [PHOTO, PHOTO.convert("L")]
    if file_format in ("JPEG", "TIFF"):
        photos.append(PHOTO.convert("CMYK"))
    options = {}
    if file_format in ("PNG", "JPEG", "WEBP"):
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = QUARTER_TURN_RIGHT
        exif[EXIF_DESCRIPTION] = "a photo"
        options["exif"] = exif
    return [encoded(photo, file_format, **options) for photo in photos]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("file_format", images.FORMATS)
def test_damaged_files_give_an_image_or_a_reason_but_no_crash(file_format: str) -> None:
    chance = random.Random(file_format)
    files = whole_files(file_format)
    for _ in range(300):
        data = bytearray(chance.choice(files))
        for _ in range(chance.choice([1, 2, 20])):
            end = min(len(data), chance.choice([64, 400, 10_000]))
            data[chance.randrange(end)] = chance.randrange(256)
        length = chance.choice([len(data), chance.randrange(len(data))])
        try:
            images.decode(bytes(data[:length]))
        except ArtMancerError as error:
            assert error.code in ("invalid_image", "image_too_large")


def test_base64_is_read_with_and_without_a_prefix() -> None:
    text = base64.b64encode(b"bytes").decode()
    assert images.decode_base64(text) == b"bytes"
    assert images.decode_base64(f"data:image/png;base64,{text}") == b"bytes"


@pytest.mark.parametrize(
    "text", ["not base64!", "data:image/png,abc", "data:nothing", "YQ", "YQ==\nYQ=="]
)
def test_invalid_base64_is_refused(text: str) -> None:
    with pytest.raises(ArtMancerError) as error:
        images.decode_base64(text)
    assert error.value.code == "invalid_image"


def test_base64_over_the_limit_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base64, "b64decode", lambda *_, **__: pytest.fail("the text was decoded"))
    with pytest.raises(ArtMancerError) as error:
        images.decode_base64("A" * 10_000, max_bytes=1000)
    assert error.value.code == "image_too_large"


@pytest.mark.parametrize("name", ["out.png", "out.bmp", "out.tif", "out.webp"])
def test_a_saved_image_loads_unchanged(tmp_path: Path, name: str) -> None:
    image = images.decode(encoded(PHOTO)).image
    images.save(tmp_path / name, image)
    assert torch.equal(images.load(tmp_path / name).image, image)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out.png"
    target.write_bytes(b"before")

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(ArtMancerError, match="disk full"):
        images.save(target, torch.zeros(1, 4, 4, 3))
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]


def test_a_format_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        ArtMancerError, match=r"'out\.heic' ends in '\.heic'; expected one of \.png"
    ):
        images.save(tmp_path / "out.heic", torch.zeros(1, 4, 4, 3))


def test_an_image_too_large_for_its_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtMancerError, match="cannot be written"):
        images.save(tmp_path / "wide.webp", torch.zeros(1, 1, 16384, 3))
    assert not list(tmp_path.iterdir())


def test_the_message_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ArtMancerError, match=r"gone.png' does not exist"):
        images.load(tmp_path / "gone.png")
