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


def encoded(picture: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def levels(image: torch.Tensor) -> np.ndarray:
    return images.to_uint8(image[0]).numpy()


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "GIF"])
def test_lossless_formats_keep_every_byte(file_format: str) -> None:
    photo = PHOTO.convert("L").convert("RGB") if file_format == "GIF" else PHOTO
    assert (levels(images.decode(encoded(photo, file_format)).image) == np.array(photo)).all()


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
def test_lossy_formats_are_read(file_format: str) -> None:
    gray = Image.new("RGB", (64, 48), (200, 100, 50))
    assert (
        np.abs(
            levels(images.decode(encoded(gray, file_format)).image).astype(int) - np.array(gray)
        ).max()
        < 6
    )


def test_values_are_those_of_comfyuis_own_loader() -> None:
    expected = np.array(PHOTO).astype(np.float32) / 255.0
    assert (images.decode(encoded(PHOTO)).image[0].numpy() == expected).all()


def test_alpha_is_laid_over_white_in_an_image_and_over_black_in_a_mask() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    assert (images.decode(encoded(Image.new("RGBA", (4, 4), (9, 9, 9, 0)))).image == 1).all()
    assert (images.decode_mask(encoded(clear)) == 0).all()


def test_the_alpha_of_a_cut_out_is_kept() -> None:
    half = Image.new("RGBA", (4, 2), (255, 0, 0, 255))
    half.paste((0, 0, 0, 0), (2, 0, 4, 2))
    alpha = images.decode(encoded(half)).alpha
    assert alpha is not None and alpha.tolist() == [[[1, 1, 0, 0]] * 2]
    assert images.decode(encoded(PHOTO)).alpha is None


def test_a_mask_may_be_painted_in_any_bright_colour() -> None:
    assert (images.decode_mask(encoded(Image.new("RGB", (4, 4), "red"))) == 1).all()


def test_a_palette_with_transparency_is_read() -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    assert (levels(images.decode(encoded(palette)).image) == (255, 0, 0)).all()
    assert (levels(images.decode(encoded(palette, transparency=1)).image) == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "F"])
def test_any_mode_becomes_rgb(mode: str) -> None:
    if mode in ("I;16", "F"):
        values = np.full(
            (8, 9), 0.5 if mode == "F" else 32768, np.float32 if mode == "F" else np.uint16
        )
        picture = Image.fromarray(values)
    else:
        picture = Image.new("L", (9, 8), 128).convert("RGB").convert(mode)
    # Some versions of Pillow cannot read the YCbCr TIFF that they write.
    data = encoded(picture, "JPEG" if mode == "YCbCr" else "TIFF")
    image = images.decode(data).image
    assert image.shape == (1, 8, 9, 3)
    if mode not in ("1", "P"):  # dithered
        assert (image - 0.5).abs().max() < 0.01
    assert images.decode_mask(data).shape == (1, 8, 9)


def test_sixteen_bit_gray_keeps_its_steps() -> None:
    ramp = Image.fromarray((np.arange(256, dtype=np.uint16) * 4)[None])
    values = images.decode_mask(encoded(ramp))
    assert len(values.unique()) == 256 and values.max() == pytest.approx(1020 / 65535)


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter to the right
    turned = images.decode(encoded(PHOTO, "PNG", exif=exif)).image
    assert (levels(turned) == np.rot90(PIXELS, -1)).all()


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("L", (5, 5), value) for value in (0, 255)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (images.decode(data).image == 0).all()


def test_a_colour_profile_is_kept(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = images.decode(encoded(PHOTO, "PNG", icc_profile=profile))
    images.save(tmp_path / "out.png", picture.image, picture.icc_profile)
    assert Image.open(tmp_path / "out.png").info["icc_profile"] == profile


def one_pixel_png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises this size, and whose data would never fill it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"0"))
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        (b"", "invalid_image", "empty"),
        (b"hello", "invalid_image", "not an image"),
        (encoded(PHOTO)[:900], "invalid_image", "cut off"),
        (encoded(PHOTO, "JPEG")[:1500], "invalid_image", "cut off"),
        (encoded(PHOTO)[:30], "invalid_image", "Save it again"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "invalid_image", "PNG, JPEG"),
        (one_pixel_png_of(30_000, 20), "image_too_large", "30000x20"),
        (one_pixel_png_of(16_000, 16_000), "image_too_large", "pixels"),
        (one_pixel_png_of(12_000, 12_000), "image_too_large", "12000x12000"),
    ],
)
def test_bad_bytes_are_refused_with_the_reason(data: bytes, code: str, said: str) -> None:
    for decode in (images.decode, images.decode_mask):
        with pytest.raises(ArtMancerError, match=said) as caught:
            decode(data)
        assert caught.value.code == code


def test_a_file_over_the_length_cap_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    (tmp_path / "big.png").write_bytes(bytes(1001))
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("read"))
    with pytest.raises(ArtMancerError) as caught:
        images.load(tmp_path / "big.png")
    assert caught.value.code == "image_too_large"


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("file_format", images.FORMATS)
def test_damaged_files_give_a_picture_or_a_reason_never_a_crash(file_format: str) -> None:
    chance = random.Random(file_format)
    pictures = [PHOTO, PHOTO.convert("L")] + (
        [PHOTO.convert("CMYK")] if file_format in ("JPEG", "TIFF") else []
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a photo"
    whole = [
        encoded(
            picture,
            file_format,
            **({"exif": exif} if file_format in ("PNG", "JPEG", "WEBP") else {}),
        )
        for picture in pictures
    ]
    for _ in range(300):
        data = bytearray(chance.choice(whole))
        for _ in range(chance.choice([1, 2, 20])):
            data[chance.randrange(min(len(data), chance.choice([64, 400, 10_000])))] = (
                chance.randrange(256)
            )
        try:
            images.decode(bytes(data[: chance.choice([len(data), chance.randrange(len(data))])]))
        except ArtMancerError as error:
            assert error.code in ("invalid_image", "image_too_large")


def test_base64_is_read_with_and_without_a_prefix() -> None:
    text = base64.b64encode(b"bytes").decode()
    assert images.decode_base64(text) == b"bytes"
    assert images.decode_base64(f"data:image/png;base64,{text}") == b"bytes"


@pytest.mark.parametrize(
    "text", ["not base64!", "data:image/png,abc", "data:nothing", "YQ", "YQ==\nYQ=="]
)
def test_what_is_not_base64_is_refused(text: str) -> None:
    with pytest.raises(ArtMancerError) as caught:
        images.decode_base64(text)
    assert caught.value.code == "invalid_image"


def test_base64_is_capped_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base64, "b64decode", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(ArtMancerError) as caught:
        images.decode_base64("A" * 10_000, max_bytes=1000)
    assert caught.value.code == "image_too_large"


@pytest.mark.parametrize("name", ["out.png", "out.bmp", "out.tif", "out.webp"])
def test_saved_pictures_come_back_the_same(tmp_path: Path, name: str) -> None:
    image = images.decode(encoded(PHOTO)).image
    images.save(tmp_path / name, image)
    assert torch.equal(images.load(tmp_path / name).image, image)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_save_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.png"
    target.write_bytes(b"before")

    def fails(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fails)
    with pytest.raises(ArtMancerError, match="disk full"):
        images.save(target, torch.zeros(1, 4, 4, 3))
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]


def test_a_format_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        ArtMancerError, match=r"'out\.heic' ends in '\.heic'; expected one of \.png"
    ):
        images.save(tmp_path / "out.heic", torch.zeros(1, 4, 4, 3))


def test_a_picture_too_large_for_its_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtMancerError, match="cannot be written"):
        images.save(tmp_path / "wide.webp", torch.zeros(1, 1, 16384, 3))
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtMancerError, match=r"gone.png' does not exist"):
        images.load(tmp_path / "gone.png")
