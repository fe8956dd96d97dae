"""Read and write image files: the only entry for bytes from outside, with limits on their size.

This package alone decides what of a photo's file comes back with its edit. `read` returns a
Picture: the pixels in the file's own depth, the color profile, and what the file says about the
photo. `decode` makes the IMAGE that is edited. `save` and `finish` put an edit into the Picture:
a pixel that the edit left alone is the file's own.

torch is imported where a tensor is made: code that only inspects images, such as the gateway, does
not need torch's memory.
"""

from __future__ import annotations

import binascii
import errno
import io
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageChops, ImageOps, JpegImagePlugin, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from ..errors import ArtMancerError
from . import deep, jpeg_xl, metadata, profiles, tiff
from .formats import FORMATS as FORMATS
from .formats import NAMES as NAMES
from .formats import PHOTO_SUFFIXES as PHOTO_SUFFIXES
from .formats import is_jpeg_xl, odd_tiff, readable, refusal
from .picture import JpegTables as JpegTables
from .picture import Picture as Picture
from .picture import Pixels, as_floats, eight_bits, quantize
from .writing import encode as encode
from .writing import losses as losses
from .writing import to_pillow

# pybase64 comes with the gateway, and takes a fiftieth of the standard library's time.
try:
    from pybase64 import b64decode
except ImportError:
    # Their signatures differ in parameters that are not used here.
    from base64 import b64decode  # type: ignore[assignment]

if TYPE_CHECKING:
    from torch import Tensor

MAX_BYTES = 256 * 2**20
"""Largest file that is read, in bytes."""

MAX_SIDE = 16384
"""Longest side of an image, in pixels."""

MAX_PIXELS = 2**27
"""Largest area of an image, in pixels."""

LOSSY_SUFFIXES = (".jpg", ".jpeg")
"""Suffixes of files whose pixels change when they are written."""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a disk that is full."""

SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
"""Formats that are written, by suffix."""

_PREVIEW_QUALITY = 90
"""Quality of the JPEG that `preview` makes."""

_SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""

_TURNED = ("HEIF", "JXL")
"""Formats whose decoders turn the image upright, whatever EXIF says."""

_PNG_BITS, _PNG_COLORS, _PNG_GRAY_ALPHA = 24, 25, 4
"""Offsets of the bits of a channel and of the kind of colors in a PNG; the kind gray and alpha."""

_BASE64_PREFIX = 1024
"""Characters that a prefix such as `data:image/png;base64,` may add to base64 text."""

_BROKEN = (
    *(OSError, SyntaxError, ValueError, OverflowError, TypeError, struct.error),
    # The decoders of AVIF, HEIC and JPEG XL.
    *(RuntimeError, EOFError),
)
"""Exceptions that Pillow's decoders raise on broken bytes, found by fuzzing all formats."""

_UNKNOWN = (UnidentifiedImageError, ImportError)
"""Exceptions for bytes in no known format. ImportError: once ultralytics is imported, it tries HEIF
on files that Pillow cannot read, and fails to import its HEIF plugin.
"""


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image file.

    Attributes
    ----------
    image : IMAGE [1, H, W, 3], in the color profile of the file
    alpha : MASK [1, H, W], 1 = opaque; None where the file has no transparency
    picture : the content of the file in its own depth
    """

    image: Tensor
    alpha: Tensor | None
    picture: Picture


def load(path: str | Path) -> DecodedImage:
    """Read an image file; see `decode`."""
    return to_image(load_picture(path))


def load_picture(path: str | Path) -> Picture:
    """Read an image file; see `read`."""
    return read(_read(path, "image"), name=Path(path).name)


def load_reference(path: str | Path, photo: Picture) -> DecodedImage:
    """Read an image file, its colors converted to the color profile of a photo; see `decode`."""
    picture = read(_read(path, "reference"), name=Path(path).name)
    return to_image(in_profile(picture, photo.profile))


def load_mask(path: str | Path) -> Tensor:
    """Read a mask file; see `decode_mask`."""
    return decode_mask(_read(path, "mask"), name=Path(path).name)


def read_size(path: str | Path, kind: str = "image") -> tuple[int, int]:
    """Return the (width, height) of an image file, upright, from its header.

    Parameters
    ----------
    kind : what a message calls the file: "image", "mask"

    Raises
    ------
    ArtMancerError : not_found, invalid_image, image_too_large
    """
    _, width, height = inspect(_read(path, kind), name=Path(path).name)
    return width, height


def brightest(path: str | Path) -> float:
    """Return the largest value of the mask that `load_mask` would return, in 0..1.

    Raises
    ------
    ArtMancerError : as `load_mask`
    """
    image = _open(_read(path, "mask"), Path(path).name)
    if _is_deep_gray(image):
        return float(_gray_values(image).max())
    return float(np.asarray(_mask_layer(image)).max()) / 255


def decode(data: bytes, *, name: str = "the image") -> DecodedImage:
    """Decode an image file, see `read`. Alpha is laid over white, gray becomes RGB, and values of
    any depth become 0..1.
    """
    return to_image(read(data, name=name))


def to_image(picture: Picture) -> DecodedImage:
    """Return the colors of a picture as an IMAGE."""
    import torch

    alpha = None
    if picture.has_alpha:
        alpha = torch.from_numpy(as_floats(picture.pixels[..., -1])).unsqueeze(0)
    return DecodedImage(torch.from_numpy(picture.colors()).unsqueeze(0), alpha, picture)


def read(data: bytes, *, name: str = "the image") -> Picture:
    """Read PNG, JPEG, WebP, BMP, TIFF, GIF, and HEIC, AVIF or JPEG XL where a package for them is
    installed: the first frame, turned upright.

    8 and 16 bits a channel stay as they are, and 10 and 12 become 16. A palette becomes its colors,
    and CMYK is converted through its color profile to sRGB.

    Parameters
    ----------
    data : the file's bytes, at most MAX_BYTES
    name : what a message calls the image

    Raises
    ------
    ArtMancerError : invalid_image; image_too_large, from the header, before a pixel is decoded
    """
    image = _load(data, name)
    _refuse_floats(image, name)
    orientation = _orientation(image)
    said, profile, tables, notes = _beside_pixels(image, data, name)
    pixels = _deep_pixels(image, data, name)
    if pixels is None and (bits := deep.bits(image, data)) > 8:
        notes = (*notes, f"{name} has {bits} bits a channel: it was read in 8.")
    if pixels is None and image.mode == "CMYK":
        image, more = _from_cmyk(image, profile, name)
        profile, tables, notes = None, None, (*notes, *more)
    if pixels is None:
        pixels = _pixels(image)
    return Picture(turn(pixels, orientation), profile, said, tables, notes)


def _beside_pixels(
    image: Image.Image, data: bytes, name: str
) -> tuple[metadata.Metadata, bytes | None, JpegTables | None, tuple[str, ...]]:
    """Return the metadata, the color profile, the compression and the sentences of a Picture."""
    # To count the images of a TIFF, Pillow reads the orientation again, and would turn the pixels.
    counted = _open_header(data, name) if isinstance(image, TiffImageFile) else image
    notes = _frame_notes(counted, name)
    said = metadata.read(image, data)
    if image.info.get("exif") and not said.exif:
        notes = (*notes, f"The EXIF data of {name} is broken: it was left out.")
    return said, image.info.get("icc_profile") or None, _tables(image), notes


class Header(NamedTuple):
    """The header of a photo's file.

    Attributes
    ----------
    profile : as of the Picture that `read` returns
    bits : bits of a channel, 8 or 16
    tables : as of Picture
    """

    profile: bytes | None
    bits: int
    tables: JpegTables | None


def read_header(data: bytes, *, name: str = "the image") -> Header:
    """Return how the pixels of a file are stored, without decoding them.

    Raises
    ------
    ArtMancerError : as `read`, except for damage behind the header
    """
    image = _open_header(data, name)
    _refuse_floats(image, name)
    is_deep = _is_deep_gray(image) or _bits(image, data) == 16 or deep.bits(image, data) > 8
    if image.mode == "CMYK":
        return Header(None, 8, None)
    return Header(image.info.get("icc_profile") or None, 16 if is_deep else 8, _tables(image))


def finish(photo: bytes, edited: bytes, file_format: str) -> tuple[bytes, tuple[str, ...]]:
    """Return the PNG of an edited photo with what the photo's file holds besides colors, and
    sentences for the report; see Picture.edited.

    Parameters
    ----------
    photo : the photo's file
    edited : PNG of the edited photo, in the photo's color profile
    file_format : the format that the result is wanted in, a key of writing.FORMATS; the sentences
        say what it cannot hold

    Raises
    ------
    ArtMancerError : as `read`, except for damage behind the header of a JPEG in colors
    """
    picture = _read_quickly(photo, "the photo")
    notes = (*picture.notes, *losses(picture, file_format))
    if picture.bits == 8 and not (picture.is_gray or picture.has_alpha):
        # Its pixels are right as they are.
        return metadata.add_to_png(edited, picture.metadata, picture.profile), notes
    result = read(edited, name="the result")
    image = result.colors() if result.is_gray or result.has_alpha else result.pixels
    return encode(picture.edited(image), "PNG"), notes


def _read_quickly(data: bytes, name: str) -> Picture:
    """Read an image file; of a JPEG in colors, which has no other depth and no transparency, not
    its pixels: they are black, as the file has them before it is turned, and damage behind the
    header is not noticed.
    """
    image = _open_header(data, name)
    if image.format not in ("JPEG", "MPO") or image.mode != "RGB":
        return read(data, name=name)
    said, profile, tables, notes = _beside_pixels(image, data, name)
    width, height = image.size
    return Picture(np.broadcast_to(np.uint8(0), (height, width, 3)), profile, said, tables, notes)


def preview(path: str | Path) -> bytes:
    """Return a photo as a JPEG in its own size and color profile.

    Raises
    ------
    ArtMancerError : as `read`
    """
    picture = replace(load_picture(path).stripped(), tables=None)
    return encode(picture, "JPEG", _PREVIEW_QUALITY)


def match_reference(profile: bytes | None, reference: bytes) -> bytes | None:
    """Return a reference as a PNG in the color profile of a photo; None: it is in that profile.

    Parameters
    ----------
    profile : of the photo
    reference : the reference's file

    Raises
    ------
    ArtMancerError : as `read`
    """
    name = "reference_image"
    if read_header(reference, name=name).profile == profile:
        return None
    picture = read(reference, name=name)
    matched = in_profile(picture, profile)
    return None if matched.pixels is picture.pixels else encode(matched, "PNG")


def in_profile(picture: Picture, target: bytes | None) -> Picture:
    """Return a picture with its colors converted to another color profile, in 8 bits; the picture
    itself where its colors mean the same in both. A profile of gray counts as sRGB.
    """
    target = target if profiles.color_space(target) == "RGB" else None
    if picture.profile == target:
        return picture
    pixels = eight_bits(picture.pixels)
    colors = to_pillow(pixels[..., :-1] if picture.has_alpha else pixels)
    if profiles.color_space(picture.profile) == "RGB":
        colors = colors.convert("RGB")
    converted = profiles.to_rgb(colors, picture.profile, target)
    if converted is None:
        note = "The color profile of the reference cannot be used: its colors were not converted."
        return replace(picture, notes=(*picture.notes, note))
    if converted is colors:
        return picture
    planes = [np.asarray(converted), *([pixels[..., -1:]] if picture.has_alpha else [])]
    note = "The reference's colors were converted to the photo's color profile."
    return Picture(np.concatenate(planes, -1), target, notes=(*picture.notes, note))


def decode_mask(data: bytes, *, name: str = "the mask") -> Tensor:
    """Decode an image file of a mask: white (or any bright color) = edit, black = keep,
    transparent = keep. Where all colors are black, the mask is the opacity: opaque = edit.

    Returns
    -------
    MASK [1, H, W]

    Raises
    ------
    ArtMancerError : as `decode`
    """
    image = _open(data, name)
    if _is_deep_gray(image):
        return _decode_gray(image).unsqueeze(0)
    return _to_float(_mask_layer(image)).amax(-1).unsqueeze(0)


def inspect(data: bytes, *, name: str = "the image") -> tuple[str, int, int]:
    """Return the format (by Pillow's name), width and height of an image, upright, from its header.
    No pixel is decoded.

    Raises
    ------
    ArtMancerError : as `decode`, except for damage behind the header
    """
    image = _open_header(data, name)
    sideways = False
    # Where a PNG has no EXIF in its header, Pillow would decode the image to search its end.
    if image.format != "PNG" or "exif" in image.info:
        sideways = _orientation(image) in _SIDEWAYS
    size = image.size
    if isinstance(image, TiffImageFile):
        # Newer Pillows turn the size in the header.
        size = image.tag_v2[tiff.WIDTH], image.tag_v2[tiff.HEIGHT]
    width, height = reversed(size) if sideways else size
    # An MPO is a JPEG with more of them behind it.
    return "JPEG" if image.format == "MPO" else str(image.format), width, height


def decode_base64(text: str, *, name: str = "the image", max_bytes: int = MAX_BYTES) -> bytes:
    """Decode base64 text, with or without a `data:...;base64,` prefix.

    Raises
    ------
    ArtMancerError : image_too_large, invalid_image
    """
    # Base64 has four characters for three bytes.
    if len(text) > max_bytes * 4 // 3 + _BASE64_PREFIX:
        raise ArtMancerError(
            "image_too_large",
            f"{name} has {len(text):,} characters of base64; expected an image of at most "
            f"{max_bytes // 2**20} MB. Send a smaller file.",
        )
    if text.startswith("data:"):
        header, comma, text = text.partition(",")
        if not comma or not header.endswith(";base64"):
            raise ArtMancerError(
                "invalid_image",
                f"{name} starts with 'data:' but not with 'data:...;base64,'. Send it as base64.",
            )
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ArtMancerError(
            "invalid_image", f"{name} is not base64 ({error}). Encode the file's bytes as base64."
        ) from None


def to_uint8(image: Tensor) -> Tensor:
    """Round an image [H, W, 3] or a mask [H, W] in 0..1 to uint8 0..255. Values outside 0..1 are
    clipped.
    """
    import cv2
    import torch

    values = image.to("cpu", torch.float32).numpy()
    # One pass over the image; in torch it would be three.
    return torch.from_numpy(cv2.addWeighted(values, 255, values, 0, 0, dtype=cv2.CV_8U))


def to_pil(image: Tensor) -> Image.Image:
    """Convert an IMAGE [1, H, W, 3] or [H, W, 3], or a MASK [H, W], to a Pillow image."""
    return Image.fromarray(to_uint8(image[0] if image.ndim == 4 else image).numpy())


def save(
    path: str | Path,
    image: Tensor | NDArray[Any],
    photo: Picture | None = None,
    *,
    bits: int = 8,
) -> None:
    """Write an image to a file, all of it or nothing. The suffix names the format.

    Parameters
    ----------
    image : IMAGE [1, H, W, 3], an image [H, W, 3 or 4] or a MASK [H, W] in 0..1; or the pixels of
        another file, [H, W, 3]
    photo : the photo that the image is an edit of; see Picture.edited
    bits : without a photo, bits of a channel, 8 or 16

    Raises
    ------
    ArtMancerError : invalid_request where the file cannot be written, not_found where its folder
        does not exist
    """
    path = Path(path)
    values = image if isinstance(image, np.ndarray) else _as_array(image)
    with whole_file(path) as partial:
        if photo is None:
            planes = values if values.ndim == 3 else values[..., None]
            picture = Picture(quantize(planes, np.dtype(f"u{bits // 8}")))
        else:
            picture = photo.edited(values)
        partial.write_bytes(encode(picture, SUFFIXES[path.suffix.lower()]))


def _as_array(image: Tensor) -> NDArray[np.float32]:
    import torch

    values: NDArray[np.float32] = image.to("cpu", torch.float32).numpy()
    return values[0] if values.ndim == 4 else values


def recode(
    source: Path, target: Path, quality: int | None = None, tables: JpegTables | None = None
) -> None:
    """Write an image file in another format, all of it or nothing, with all that the format can
    hold.

    Parameters
    ----------
    target : its suffix names the format
    quality : see `encode`
    tables : of the photo, where it was a JPEG

    Raises
    ------
    ArtMancerError : as `read` and `save`
    """
    picture = replace(load_picture(source), tables=tables)
    with whole_file(target) as partial:
        partial.write_bytes(encode(picture, SUFFIXES[target.suffix.lower()], quality))


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Let the block write a file beside an image file, and rename it at the end, so that the image
    file is written whole or not at all.

    Raises
    ------
    ArtMancerError : as `save`
    """
    check_writable(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    # ValueError: a side is longer than the format can hold.
    try:
        yield partial
        partial.replace(path)
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in DISK_FULL:
            raise ArtMancerError(
                "storage_full", f"The disk of '{path}' is full. Free some space."
            ) from None
        raise ArtMancerError(
            "invalid_request", f"'{path}' cannot be written ({error}). Choose another file."
        ) from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Refuse a file name that `save` could not write, before the work is done.

    Raises
    ------
    ArtMancerError : invalid_request, not_found
    """
    if path.is_dir():
        raise ArtMancerError(
            "invalid_request", f"'{path}' is a folder; expected a file name. Add one to the path."
        )
    if path.suffix.lower() not in SUFFIXES:
        ending = f"ends in '{path.suffix}'" if path.suffix else "has no ending"
        raise ArtMancerError(
            "invalid_request",
            f"'{path.name}' {ending}; expected one of {', '.join(SUFFIXES)}. Rename the output.",
        )
    if not path.parent.is_dir():
        raise ArtMancerError(
            "not_found",
            f"The folder '{path.parent}' does not exist. Create it, or choose another folder.",
        )
    if not os.access(path.parent, os.W_OK):
        raise ArtMancerError(
            "invalid_request",
            f"The folder '{path.parent}' cannot be written to. Choose another folder.",
        )


def _read(path: str | Path, kind: str) -> bytes:
    path = Path(path)
    if not path.is_file():
        reason = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise ArtMancerError("not_found", f"The {kind} '{path}' {reason}. Check the path.")
    _check_length(path.stat().st_size, path.name)
    return path.read_bytes()


def _check_length(length: int, name: str) -> None:
    if length == 0:
        raise ArtMancerError(
            "invalid_image", f"{name} is empty (0 bytes); expected an image. Save it again."
        )
    if length > MAX_BYTES:
        raise ArtMancerError(
            "image_too_large",
            f"{name} has {length / 2**20:.0f} MB; expected at most {MAX_BYTES // 2**20} MB. "
            "Send a smaller file.",
        )


def _open(data: bytes, name: str) -> Image.Image:
    """Decode the first frame and turn it upright, in the file's own mode."""
    image = _load(data, name)
    with _broken_files(name):
        return image if image.format in _TURNED else ImageOps.exif_transpose(image)


def _load(data: bytes, name: str) -> Image.Image:
    """Decode the first frame, in the file's own mode."""
    image = _open_header(data, name)
    with _broken_files(name):
        image.load()
    return image


@contextmanager
def _broken_files(name: str) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise ArtMancerError(
            "invalid_image", f"{name} is broken or cut off ({error}). Save or send it again."
        ) from None


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise ArtMancerError(
            "image_too_large",
            f"{name} is {width}x{height}; expected at most {MAX_SIDE:,} pixels a side and "
            f"{MAX_PIXELS:,} in all. Scale it down.",
        )


def _open_header(data: bytes, name: str) -> Image.Image:
    """Open an image without decoding its pixels, and check its format and size."""
    _check_length(len(data), name)
    expected = f"expected {', '.join(FORMATS)}. Save it again in one of these formats."
    try:
        if is_jpeg_xl(data):
            _check_size(jpeg_xl.size(data), name)
        image: Image.Image = Image.open(io.BytesIO(data), formats=readable())
    except Image.DecompressionBombError:
        raise ArtMancerError(
            "image_too_large",
            f"{name} is larger than {MAX_PIXELS:,} pixels. Scale it down.",
        ) from None
    except (*_UNKNOWN, *_BROKEN) as error:
        if reason := refusal(data) or odd_tiff(data):
            raise ArtMancerError("invalid_image", f"{name} {reason}") from None
        problem = "not an image that can be read"
        if not isinstance(error, _UNKNOWN):
            problem = f"broken ({error})"
        raise ArtMancerError("invalid_image", f"{name} is {problem}; {expected}") from None
    _check_size(image.size, name)
    if image.mode == "LAB":
        raise ArtMancerError(
            "invalid_image", f"{name} is in LAB colors, which cannot be read; {expected}"
        )
    # A mask may be gray in 32 bits, or in floating point.
    if image.format == "TIFF" and image.mode not in ("I", "F") and (reason := refusal(data)):
        raise ArtMancerError("invalid_image", f"{name} {reason}")
    return image


def _refuse_floats(image: Image.Image, name: str) -> None:
    """Refuse a photo with values in floating point; a mask may have them."""
    if image.mode == "F":
        raise ArtMancerError(
            "invalid_image",
            f"{name} has floating-point values; expected 8 or 16 bits a channel. Save it as a PNG "
            "or TIFF with 16 bits.",
        )


def _frame_notes(image: Image.Image, name: str) -> tuple[str, ...]:
    """Return a sentence where a file holds more than one image."""
    frames = 1
    with suppress(*_BROKEN):
        frames = getattr(image, "n_frames", 1)
    return (f"{name} holds {frames} images: the first was edited.",) if frames > 1 else ()


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1..8; 1 = upright."""
    orientation = 1
    if image.format not in _TURNED:
        with suppress(*_BROKEN):
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in range(1, 9) else 1


def turn(pixels: Pixels, orientation: int) -> Pixels:
    """Return pixels turned upright, from an EXIF orientation."""
    if orientation in _SIDEWAYS:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    upright: Pixels = np.ascontiguousarray(pixels)
    return upright


def _tables(image: Image.Image) -> JpegTables | None:
    """Return how a JPEG was compressed; None: it is none, or its tables cannot be written."""
    if image.format not in ("JPEG", "MPO"):
        return None
    quantization = getattr(image, "quantization", {})
    sampling = JpegImagePlugin.get_sampling(image)
    values = [value for table in quantization.values() for value in table]
    # Tables with larger values belong to 12 bits a channel.
    if sorted(quantization) != list(range(len(quantization))) or not all(
        1 <= value <= 255 for value in values
    ):
        return None
    tables = [[*quantization[number]] for number in sorted(quantization)]
    if sampling not in (0, 1, 2) and image.mode != "L":
        return None
    return JpegTables(tables, max(sampling, 0), "progressive" in image.info)


def _deep_pixels(image: Image.Image, data: bytes, name: str) -> Pixels | None:
    """Decode colors with 10 to 16 bits a channel, which Pillow would cut to 8, to 16; None: it has
    others, or they cannot be decoded here.
    """
    pixels: Pixels | None
    if deep.bits(image, data) > 8:
        pixels = deep.pixels(image, data)
        return _straight(pixels) if pixels is not None and image.mode in ("RGBa", "La") else pixels
    if image.mode not in ("RGB", "RGBA") or _bits(image, data) != 16:
        return None
    import cv2

    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None or pixels.dtype != np.uint16 or pixels.shape[:2] != image.size[::-1]:
        raise ArtMancerError(
            "invalid_image",
            f"{name} has 16 bits a channel in a form that cannot be read. Save it as a PNG, or as "
            "a TIFF with interleaved channels.",
        )
    if pixels.ndim == 2:
        return pixels[..., None]
    # OpenCV has blue first.
    channels = [2, 1, 0, 3] if image.mode == "RGBA" and pixels.shape[2] == 4 else [2, 1, 0]
    if image.format == "PNG" and data[_PNG_COLORS] == _PNG_GRAY_ALPHA:
        channels = [0, 3]
    pixels = pixels[..., channels]
    return _straight(pixels) if image.format == "TIFF" and _is_multiplied(image) else pixels


def _bits(image: Image.Image, data: bytes) -> int:
    """Return the bits of a channel as the header has them; 8 for formats with no others."""
    if image.format == "PNG":
        return data[_PNG_BITS]
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(tiff.BITS, (1,))
        return int(max(bits)) if isinstance(bits, tuple) else int(bits)
    return 8


def _is_multiplied(image: Image.Image) -> bool:
    """Tell whether the colors of a TIFF are multiplied by the opacity."""
    return tuple(getattr(image, "tag_v2", {}).get(tiff.EXTRA_SAMPLES, ())) == (1,)


def _straight(pixels: Pixels) -> Pixels:
    """Divide colors by the opacity that they are multiplied by."""
    colors, alpha = pixels[..., :-1].astype(np.float64), pixels[..., -1:].astype(np.float64)
    divided = np.divide(colors * 65535, alpha, out=np.zeros_like(colors), where=alpha > 0)
    straight: Pixels = pixels.copy()
    straight[..., :-1] = np.rint(divided.clip(0, 65535))
    return straight


def _pixels(image: Image.Image) -> Pixels:
    """Return the pixels of an image with 8 bits a channel, or of a gray one with more."""
    if _is_deep_gray(image):
        gray: Pixels = np.asarray(image).clip(0, 65535).astype(np.uint16)
        # Pillow turns such a TIFF around where it has 8 bits.
        if getattr(image, "tag_v2", {}).get(tiff.PHOTOMETRIC) == tiff.WHITE_IS_ZERO:
            gray = 65535 - gray
        return gray[..., None]
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.has_transparency_data:
        mode += "A"
    pixels: Pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _from_cmyk(
    image: Image.Image, profile: bytes | None, name: str
) -> tuple[Image.Image, tuple[str, ...]]:
    """Convert CMYK to sRGB; return sentences on it."""
    converted = profiles.to_rgb(image, profile, None)
    if converted is None:
        note = f"{name} is in CMYK without a usable color profile: its colors are a guess."
        return image.convert("RGB"), (note,)
    return converted, (f"{name} is in CMYK: it was converted through its color profile to sRGB.",)


def _is_deep_gray(image: Image.Image) -> bool:
    """Tell whether an image is gray with more than 8 bits: 16 or 32 bits, or floating point."""
    return image.mode.startswith("I") or image.mode == "F"


def _decode_gray(image: Image.Image) -> Tensor:
    """Convert a 16-bit or floating-point gray image to [H, W] in 0..1."""
    import torch

    return torch.from_numpy(_gray_values(image))


def _gray_values(image: Image.Image) -> NDArray[np.float32]:
    """Return the values of a 16-bit or floating-point gray image, [H, W] in 0..1."""
    values = np.asarray(image, dtype=np.float32)
    if image.mode != "F":
        values = values / np.float32(2**16 - 1)
    return np.clip(np.nan_to_num(values), 0, 1)


def _mask_layer(image: Image.Image) -> Image.Image:
    """Return a mask's image in RGB, laid over black; its opacity where it is black without it."""
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        opacity = layer.getchannel("A")
        is_opaque = ImageChops.invert(opacity).getbbox() is None
        if layer.convert("RGB").getbbox() is None and not is_opaque:
            return opacity.convert("RGB")
        image = _flatten(layer, "black")
    return image.convert("RGB")


def _flatten(image: Image.Image, background: str) -> Image.Image:
    """Lay an image with transparency over a color."""
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, background), layer)


def _to_float(image: Image.Image) -> Tensor:
    import torch

    # Division gives exactly the floats of ComfyUI's own loader; multiplication by 1/255 does not.
    return torch.from_numpy(np.array(image)).to(torch.float32).div_(255)
