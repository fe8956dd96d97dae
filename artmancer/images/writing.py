"""Image files from pictures: what each format can hold, and what it cannot."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from . import metadata, tiff
from .picture import Picture, colors, eight_bits, quantize

QUALITY = 95
"""Quality of a JPEG of a photo that was none, where none is set."""

_COMPRESSION = 4
"""Compression of PNG, 0..9. The strategy of run lengths is beside it: of a photo the file is no
larger than with zlib's own, in half the time.
"""


class Format(NamedTuple):
    """The limits of a format.

    Attributes
    ----------
    name : what messages call it
    bits : most bits of a channel
    alpha : transparency
    metadata : "EXIF", "XMP" and "IPTC", as far as it holds them
    profile : a color profile
    """

    name: str
    bits: int
    alpha: bool
    metadata: tuple[str, ...]
    profile: bool = True


FORMATS = {
    "PNG": Format("PNG", 16, True, ("EXIF", "XMP", "IPTC")),
    "JPEG": Format("JPEG", 8, False, ("EXIF", "XMP", "IPTC")),
    "WEBP": Format("WebP", 8, True, ("EXIF", "XMP")),
    "BMP": Format("BMP", 8, False, (), profile=False),
    "TIFF": Format("TIFF", 16, True, ("EXIF", "XMP", "IPTC")),
}
"""Formats that are written, by Pillow's names."""


def losses(picture: Picture, file_format: str) -> tuple[str, ...]:
    """Return a sentence for what a format cannot hold of a picture."""
    target = FORMATS[file_format]
    notes = []
    if picture.bits > target.bits:
        notes.append(
            f"{target.name} has {target.bits} bits a channel, and the photo has more. "
            "Write PNG or TIFF to keep them."
        )
    if picture.has_alpha and not target.alpha:
        notes.append(
            f"{target.name} has no transparency: the photo was laid over white. Write PNG, WebP or "
            "TIFF to keep it."
        )
    said = picture.metadata
    blocks = {"EXIF": said.exif, "XMP": said.xmp, "IPTC": said.iptc}
    lost = [name for name, data in blocks.items() if data and name not in target.metadata]
    if file_format == "JPEG":
        lost += metadata.too_large_for_jpeg(said)
    if picture.profile and not target.profile:
        lost.append("the color profile")
    if lost:
        notes.append(f"{target.name} cannot hold {' and '.join(lost)} of the photo.")
    return tuple(notes)


def encode(picture: Picture, file_format: str, quality: int | None = None) -> bytes:
    """Return a picture as a file.

    Parameters
    ----------
    file_format : a key of FORMATS
    quality : 1..100, of JPEG, and of WebP, which is lossless without it; None: the photo's own
        compression where it was a JPEG, else the best

    Raises
    ------
    OSError, ValueError : the format cannot hold a picture of this size
    """
    target = FORMATS[file_format]
    pixels = picture.pixels
    if picture.has_alpha and not target.alpha:
        pixels = quantize(colors(pixels), pixels.dtype)
    if picture.bits > target.bits:
        pixels = eight_bits(pixels)
    return _ENCODERS[file_format](picture, pixels, quality)


def to_pillow(pixels: Any) -> Image.Image:
    """Return uint8 pixels [H, W, channels] as a Pillow image."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _encode_png(picture: Picture, pixels: Any, quality: int | None) -> bytes:
    if pixels.dtype == np.uint8:
        png = _save(to_pillow(pixels), "PNG", compress_level=_COMPRESSION, compress_type=zlib.Z_RLE)
    else:
        png = _encode_deep_png(pixels)
    return metadata.add_to_png(png, picture.metadata, picture.profile)


def _encode_deep_png(pixels: Any) -> bytes:
    """Return uint16 pixels as a PNG. Pillow writes no 16-bit colors."""
    import cv2

    # OpenCV writes no gray with alpha, and has blue first.
    order = {1: [0], 2: [0, 0, 0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[pixels.shape[2]]
    options = [cv2.IMWRITE_PNG_COMPRESSION, _COMPRESSION]
    options += [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    _, data = cv2.imencode(".png", np.ascontiguousarray(pixels[..., order]), options)
    return bytes(data)


def _encode_jpeg(picture: Picture, pixels: Any, quality: int | None) -> bytes:
    tables, options = picture.tables, dict[str, Any]()
    if quality is None and tables:
        options["qtables"] = [list(table) for table in tables.quantization]
        options["progressive"] = tables.progressive
        if not picture.is_gray:
            options["subsampling"] = tables.subsampling
    else:
        options = {"quality": quality or QUALITY, "subsampling": 0}
    jpeg = _save(
        to_pillow(pixels),
        "JPEG",
        icc_profile=picture.profile,
        dpi=picture.metadata.dpi or (0, 0),
        **options,
    )
    return metadata.add_to_jpeg(jpeg, picture.metadata)


def _encode_webp(picture: Picture, pixels: Any, quality: int | None) -> bytes:
    # exact: the colors of transparent pixels are kept, too.
    options = {"lossless": True, "exact": True} if quality is None else {"quality": quality}
    said = picture.metadata
    return _save(
        to_pillow(pixels),
        "WEBP",
        icc_profile=picture.profile,
        exif=said.exif,
        xmp=said.xmp,
        **options,
    )


def _encode_bmp(picture: Picture, pixels: Any, quality: int | None) -> bytes:
    return _save(to_pillow(pixels), "BMP", dpi=picture.metadata.dpi or (96, 96))


def _encode_tiff(picture: Picture, pixels: Any, quality: int | None) -> bytes:
    said, profile = picture.metadata, picture.profile
    if pixels.dtype == np.uint16 and pixels.shape[2] == 2:
        # Few programs read gray with alpha in 16 bits. A profile of gray does not fit RGB.
        pixels, profile = pixels[..., [0, 0, 0, 1]], None
    return tiff.write(
        pixels,
        profile=profile,
        exif=said.exif,
        xmp=said.xmp,
        iptc=said.iptc,
        dpi=said.dpi,
    )


def _save(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


_ENCODERS: dict[str, Callable[[Picture, Any, int | None], bytes]] = {
    "PNG": _encode_png,
    "JPEG": _encode_jpeg,
    "WEBP": _encode_webp,
    "BMP": _encode_bmp,
    "TIFF": _encode_tiff,
}
"""The functions that make a file of pixels in the format's depth, by format."""
