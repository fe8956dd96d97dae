"""Read and write image files: the only entry for bytes from outside, with limits on their size.

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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageChops, ImageOps, UnidentifiedImageError

from .errors import ArtMancerError

# pybase64 comes with the gateway, and takes a fiftieth of the standard library's time.
try:
    from pybase64 import b64decode
except ImportError:
    # Their signatures differ in parameters that are not used here.
    from base64 import b64decode  # type: ignore[assignment]

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
"""Formats that are read."""

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

SAVE_OPTIONS: dict[str, dict[str, object]] = {
    "PNG": {"compress_level": 4},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
    "BMP": {},
    "TIFF": {"compression": "tiff_lzw"},
}
"""Pillow's options for writing, by format."""

_SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""

_BASE64_PREFIX = 1024
"""Characters that a prefix such as `data:image/png;base64,` may add to base64 text."""

_BROKEN = (OSError, SyntaxError, ValueError, OverflowError, TypeError, struct.error)
"""Exceptions that Pillow's decoders raise on broken bytes, found by fuzzing all FORMATS.
"""

_UNKNOWN = (UnidentifiedImageError, ImportError)
"""Exceptions for bytes in no known format. ImportError: once ultralytics is imported, it tries HEIF
on files that Pillow cannot read, and fails to import its HEIF plugin.
"""


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image file.

    Attributes
    ----------
    image : IMAGE [1, H, W, 3]
    alpha : MASK [1, H, W], 1 = opaque; None where the file has no transparency
    icc_profile : the color profile of the values; None = sRGB
    """

    image: Tensor
    alpha: Tensor | None = None
    icc_profile: bytes | None = None


def load(path: str | Path) -> DecodedImage:
    """Read an image file; see `decode`."""
    return decode(_read(path, "image"), name=Path(path).name)


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
    """Decode PNG, JPEG, WebP, BMP, TIFF or GIF (first frame).

    EXIF rotation is applied, alpha is laid over white, 16-bit values are scaled,
    any mode becomes RGB.

    Parameters
    ----------
    data : the file's bytes, at most MAX_BYTES
    name : what a message calls the image

    Raises
    ------
    ArtMancerError : invalid_image; image_too_large, from the header, before a pixel is decoded
    """
    image = _open(data, name)
    profile = image.info.get("icc_profile") if image.mode in ("RGB", "RGBA") else None
    if _is_deep_gray(image):
        gray = _decode_gray(image)
        return DecodedImage(gray.unsqueeze(-1).expand(-1, -1, 3).contiguous().unsqueeze(0))
    alpha = None
    if image.has_transparency_data:
        alpha = _to_float(image.convert("RGBA").getchannel("A")).unsqueeze(0)
        image = _flatten(image, "white")
    return DecodedImage(_to_float(image.convert("RGB")).unsqueeze(0), alpha, profile)


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
    """Return the format (one of FORMATS), width and height of an image, upright, from its header.
    No pixel is decoded.

    Raises
    ------
    ArtMancerError : as `decode`, except for damage behind the header
    """
    image = _open_header(data, name)
    sideways = False
    # Where a PNG has no EXIF in its header, Pillow would decode the image to search its end.
    if image.format != "PNG" or "exif" in image.info:
        with suppress(*_BROKEN):
            sideways = image.getexif().get(ExifTags.Base.Orientation, 1) in _SIDEWAYS
    width, height = reversed(image.size) if sideways else image.size
    return str(image.format), width, height


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


def save(path: str | Path, image: Tensor, icc_profile: bytes | None = None) -> None:
    """Write an IMAGE [1, H, W, 3] or [H, W, 3], or a MASK [H, W], to a file, all of it or nothing.

    The suffix names the format.

    Raises
    ------
    ArtMancerError : invalid_request where the file cannot be written, not_found where its folder
        does not exist
    """
    path = Path(path)
    with whole_file(path) as partial, partial.open("wb") as file:
        file_format = SUFFIXES[path.suffix.lower()]
        to_pil(image).save(file, file_format, icc_profile=icc_profile, **SAVE_OPTIONS[file_format])


def recode(source: Path, target: Path, quality: int | None = None) -> None:
    """Write an image file in another format, all of it or nothing. Its color profile stays.

    Parameters
    ----------
    target : its suffix names the format
    quality : 1..100, of JPEG, and of WebP, which is lossless without it; None: the best

    Raises
    ------
    ArtMancerError : as `decode` and `save`
    """
    image = _open(_read(source, "image"), source.name)
    file_format = SUFFIXES[target.suffix.lower()]
    options = dict(SAVE_OPTIONS[file_format])
    if quality is not None and file_format in ("JPEG", "WEBP"):
        options |= {"quality": quality, "lossless": False}
    profile = image.info.get("icc_profile")
    if file_format == "JPEG" and image.mode not in ("RGB", "L"):
        image = _flatten(image, "white").convert("RGB")
    with whole_file(target) as partial, partial.open("wb") as file:
        image.save(file, file_format, icc_profile=profile, **options)


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
    image = _open_header(data, name)
    try:
        image.load()
        return ImageOps.exif_transpose(image)
    except _BROKEN as error:
        raise ArtMancerError(
            "invalid_image", f"{name} is broken or cut off ({error}). Save or send it again."
        ) from None


def _open_header(data: bytes, name: str) -> Image.Image:
    """Open an image without decoding its pixels, and check its format and size."""
    _check_length(len(data), name)
    expected = f"expected {', '.join(FORMATS)}. Save it again in one of these formats."
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ArtMancerError(
            "image_too_large",
            f"{name} is larger than {MAX_PIXELS:,} pixels. Scale it down.",
        ) from None
    except _UNKNOWN:
        raise ArtMancerError(
            "invalid_image", f"{name} is not an image that can be read; {expected}"
        ) from None
    except _BROKEN as error:
        raise ArtMancerError("invalid_image", f"{name} is broken ({error}); {expected}") from None
    width, height = image.size
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise ArtMancerError(
            "image_too_large",
            f"{name} is {width}x{height}; expected at most {MAX_SIDE:,} pixels a side and "
            f"{MAX_PIXELS:,} in all. Scale it down.",
        )
    if image.mode == "LAB":
        raise ArtMancerError(
            "invalid_image", f"{name} is in LAB colors, which cannot be read; {expected}"
        )
    return image


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
