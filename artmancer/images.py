"""Pictures in and out: the only door for bytes from outside, with the limits they have to pass.

torch is imported where a tensor is made: whoever only looks at pictures, as the gateway does, needs
none of its memory.
"""

from __future__ import annotations

import binascii
import io
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from .errors import ArtMancerError

try:
    from pybase64 import b64decode
except (
    ImportError
):  # It comes with the gateway, and takes a fiftieth of the standard library's time.
    from base64 import b64decode  # type: ignore[assignment]

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
MAX_BYTES = 256 * 2**20
MAX_SIDE = 16384
MAX_PIXELS = 2**27

_SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
_SAVE_OPTIONS: dict[str, dict[str, object]] = {
    "PNG": {"compress_level": 4},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
    "BMP": {},
    "TIFF": {"compression": "tiff_lzw"},
}
LOSSY_SUFFIXES = (".jpg", ".jpeg")

# What Pillow's decoders raise on broken bytes, found by fuzzing every format of FORMATS.
_BROKEN = (OSError, SyntaxError, ValueError, OverflowError, TypeError, struct.error)

# ultralytics, once imported, tries HEIF for what Pillow does not know, and fails to import its
# plugin for it.
_UNKNOWN = (UnidentifiedImageError, ImportError)


@dataclass(frozen=True)
class DecodedImage:
    """A decoded file.

    image : IMAGE [1, H, W, 3]
    alpha : MASK [1, H, W], 1 = opaque; None where the file has no transparency
    icc_profile : the colour profile the numbers are meant in; None means sRGB
    """

    image: Tensor
    alpha: Tensor | None = None
    icc_profile: bytes | None = None


def load(path: str | Path) -> DecodedImage:
    """Read a picture file; see `decode`."""
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


def is_black(path: str | Path) -> bool:
    """Tell whether a mask file is black everywhere, that is, `load_mask` would return zeros only.

    Raises
    ------
    ArtMancerError : as `load_mask`
    """
    picture = _open(_read(path, "mask"), Path(path).name)
    if picture.mode.startswith("I") or picture.mode == "F":
        return not (np.nan_to_num(np.asarray(picture)) > 0).any()
    if picture.has_transparency_data:
        picture = _over(picture, "black")
    return picture.convert("RGB").getbbox() is None


def decode(data: bytes, *, name: str = "the image") -> DecodedImage:
    """Decode PNG, JPEG, WebP, BMP, TIFF or GIF (first frame).

    EXIF rotation is applied, alpha is laid over white, 16-bit values are scaled,
    any mode becomes RGB.

    Parameters
    ----------
    data : the file's bytes, at most MAX_BYTES
    name : what to call the picture in a message

    Raises
    ------
    ArtMancerError : invalid_image, image_too_large
        (judged from the header, before a pixel is decoded)
    """
    picture = _open(data, name)
    profile = picture.info.get("icc_profile") if picture.mode in ("RGB", "RGBA") else None
    if picture.mode.startswith("I") or picture.mode == "F":
        gray = _deep_gray(picture)
        return DecodedImage(gray.unsqueeze(-1).expand(-1, -1, 3).contiguous().unsqueeze(0))
    alpha = None
    if picture.has_transparency_data:
        alpha = _to_float(picture.convert("RGBA").getchannel("A")).unsqueeze(0)
        picture = _over(picture, "white")
    return DecodedImage(_to_float(picture.convert("RGB")).unsqueeze(0), alpha, profile)


def decode_mask(data: bytes, *, name: str = "the mask") -> Tensor:
    """Decode a picture of a mask: white (or any bright colour) = edit, black = keep,
    transparent = keep.

    Returns
    -------
    MASK [1, H, W]

    Raises
    ------
    ArtMancerError : as `decode`
    """
    picture = _open(data, name)
    if picture.mode.startswith("I") or picture.mode == "F":
        return _deep_gray(picture).unsqueeze(0)
    if picture.has_transparency_data:
        picture = _over(picture, "black")
    return _to_float(picture.convert("RGB")).amax(-1).unsqueeze(0)


def inspect(data: bytes, *, name: str = "the image") -> tuple[str, int, int]:
    """The format (one of FORMATS), width and height of a picture, upright, from its header: no
    pixel is decoded.

    Raises
    ------
    ArtMancerError : as `decode`, but for what is broken behind the header
    """
    picture = _header(data, name)
    sideways = False
    # Pillow decodes a PNG that has none to look for it at the file's end.
    if picture.format != "PNG" or "exif" in picture.info:
        with suppress(*_BROKEN):
            sideways = picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    width, height = reversed(picture.size) if sideways else picture.size
    return str(picture.format), width, height


def decode_base64(text: str, *, name: str = "the image", max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes behind base64 text, with or without a `data:...;base64,` prefix.

    Raises
    ------
    ArtMancerError : image_too_large, invalid_image
    """
    if len(text) > max_bytes * 4 // 3 + 1024:
        raise ArtMancerError(
            "image_too_large",
            f"{name} has {len(text):,} characters of base64; at most {max_bytes // 2**20} MB of "
            "picture are read. Send a smaller file.",
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
            "invalid_image", f"{name} is not base64 ({error}). Encode the file's bytes."
        ) from None


def to_uint8(image: Tensor) -> Tensor:
    """Round one picture [H, W, 3] or one mask [H, W] in 0..1 to uint8 0..255;
    values outside are clipped.
    """
    import cv2
    import torch

    values = image.to("cpu", torch.float32).numpy()
    # One pass over the picture; in torch it would be three.
    return torch.from_numpy(cv2.addWeighted(values, 255, values, 0, 0, dtype=cv2.CV_8U))


def to_pil(image: Tensor) -> Image.Image:
    """One picture of an IMAGE [1, H, W, 3] or [H, W, 3], or of a MASK [H, W]."""
    return Image.fromarray(to_uint8(image[0] if image.ndim == 4 else image).numpy())


def save(path: str | Path, image: Tensor, icc_profile: bytes | None = None) -> None:
    """Write an IMAGE [1, H, W, 3] or [H, W, 3], or a MASK [H, W], to a file, all of it or nothing.

    The suffix names the format.

    Raises
    ------
    ArtMancerError : invalid_request for what cannot be written,
        not_found for a folder that is not there
    """
    path = Path(path)
    check_writable(path)
    file_format = _SUFFIXES[path.suffix.lower()]
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            to_pil(image).save(
                file, file_format, icc_profile=icc_profile, **_SAVE_OPTIONS[file_format]
            )
        partial.replace(path)
    except (
        OSError,
        ValueError,
    ) as error:  # ValueError: more pixels a side than the format can hold
        raise ArtMancerError(
            "invalid_request", f"'{path}' cannot be written ({error}). Write elsewhere."
        ) from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Refuse a file name that `save` could not write, before the work is done."""
    if path.is_dir():
        raise ArtMancerError("invalid_request", f"'{path}' is a folder. Name a file in it.")
    if path.suffix.lower() not in _SUFFIXES:
        ending = f"ends in '{path.suffix}'" if path.suffix else "has no ending"
        raise ArtMancerError(
            "invalid_request",
            f"'{path.name}' {ending}; expected one of {', '.join(_SUFFIXES)}. Rename the output.",
        )
    if not path.parent.is_dir():
        raise ArtMancerError(
            "not_found", f"The folder '{path.parent}' does not exist. Make it, or write elsewhere."
        )
    if not os.access(path.parent, os.W_OK):
        raise ArtMancerError(
            "invalid_request", f"The folder '{path.parent}' cannot be written to. Write elsewhere."
        )


def _read(path: str | Path, kind: str) -> bytes:
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "is not there"
        raise ArtMancerError("not_found", f"The {kind} '{path}' {what}. Check the path.")
    _check_length(path.stat().st_size, path.name)
    return path.read_bytes()


def _check_length(length: int, name: str) -> None:
    if length == 0:
        raise ArtMancerError(
            "invalid_image", f"{name} is empty (0 bytes); expected a picture. Save it again."
        )
    if length > MAX_BYTES:
        raise ArtMancerError(
            "image_too_large",
            f"{name} has {length / 2**20:.0f} MB; at most {MAX_BYTES // 2**20} MB are read. Send a "
            "smaller file.",
        )


def _open(data: bytes, name: str) -> Image.Image:
    """The first frame, decoded and turned upright, in the file's own mode."""
    picture = _header(data, name)
    try:
        picture.load()
        return ImageOps.exif_transpose(picture)
    except _BROKEN as error:
        raise ArtMancerError(
            "invalid_image", f"{name} is broken or cut off ({error}). Save or send it again."
        ) from None


def _header(data: bytes, name: str) -> Image.Image:
    """The picture with none of its pixels decoded."""
    _check_length(len(data), name)
    expected = f"expected {', '.join(FORMATS)}. Save it again in one of them."
    try:
        picture: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ArtMancerError(
            "image_too_large", f"{name} is over {MAX_PIXELS:,} pixels. Scale it down."
        ) from None
    except _UNKNOWN:
        raise ArtMancerError(
            "invalid_image", f"{name} is not a picture that can be read; {expected}"
        ) from None
    except _BROKEN as error:
        raise ArtMancerError("invalid_image", f"{name} is broken ({error}); {expected}") from None
    width, height = picture.size
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise ArtMancerError(
            "image_too_large",
            f"{name} is {width}x{height}; at most {MAX_SIDE:,} pixels a side and {MAX_PIXELS:,} in "
            "all are read. Scale it down.",
        )
    if picture.mode == "LAB":
        raise ArtMancerError(
            "invalid_image", f"{name} is in LAB colours, which cannot be read; {expected}"
        )
    return picture


def _deep_gray(picture: Image.Image) -> Tensor:
    """[H, W] in 0..1 of a 16-bit or floating-point gray picture."""
    import torch

    values = np.asarray(picture, dtype=np.float32)
    if picture.mode != "F":
        values = values / np.float32(65535)
    return torch.from_numpy(np.clip(np.nan_to_num(values), 0, 1))


def _over(picture: Image.Image, color: str) -> Image.Image:
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, color), layer)


def _to_float(picture: Image.Image) -> Tensor:
    import torch

    # Dividing (and not multiplying by 1/255) gives the very floats that ComfyUI's own loader gives.
    return torch.from_numpy(np.array(picture)).to(torch.float32).div_(255)
