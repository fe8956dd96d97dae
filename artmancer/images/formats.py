"""The formats that are read here, and why others are not."""

from __future__ import annotations

import importlib
import struct
from contextlib import suppress
from functools import cache
from typing import NamedTuple

from . import tiff

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
"""Formats that are read everywhere."""


class Optional(NamedTuple):
    """A format that is read where a package is installed.

    Attributes
    ----------
    name : what messages call it
    module : of the package, which adds the format to Pillow
    package : to install
    """

    name: str
    module: str
    package: str


OPTIONAL = {
    "HEIF": Optional("HEIC", "pillow_heif", "pillow-heif"),
    "AVIF": Optional("AVIF", "pillow_avif", "pillow-avif-plugin"),
    "JXL": Optional("JPEG XL", "pillow_jxl", "pillow-jxl-plugin"),
}
"""Formats that need a package, by Pillow's names."""

NAMES = tuple(name.lower() for name in (*FORMATS, *OPTIONAL))
"""Formats that are read, in lower case."""

PHOTO_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".mpo", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
    *(".heic", ".heif", ".avif", ".jxl"),
)
"""Suffixes of files that are read."""

_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")

_JXL_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")

_REFUSED = (
    (0, b"v/1\x01", "OpenEXR, with floating-point values"),
    (0, b"#?RADIANCE", "Radiance HDR, with floating-point values"),
    (0, b"#?RGBE", "Radiance HDR, with floating-point values"),
    (0, b"8BPS", "a Photoshop document"),
    (4, b"ftypcrx ", "a camera's raw file"),
    (0, b"FUJIFILMCCD-RAW", "a camera's raw file"),
    (0, b"IIRO", "a camera's raw file"),
    (0, b"IIU\0", "a camera's raw file"),
    (8, b"CR\x02\0", "a camera's raw file"),
)
"""Offset, bytes and name of formats that photographers have, and that are not read."""

_FLOATING_POINT = 3
"""Value of a TIFF's sample format."""

_REDUCED = 1
"""Bit of a TIFF's kind of image: a smaller copy of another image in the file."""


@cache
def readable() -> tuple[str, ...]:
    """Return the formats that can be read here, by Pillow's names. Installed packages for more
    formats are made known to Pillow.
    """
    return (*FORMATS, *(name for name in OPTIONAL if _register(name)))


def _register(name: str) -> bool:
    """Make an optional format known to Pillow; tell whether it is."""
    if name == "AVIF":
        with suppress(ImportError):
            plugin = importlib.import_module("PIL.AvifImagePlugin")
            if plugin.SUPPORTED:
                return True
    try:
        module = importlib.import_module(OPTIONAL[name].module)
    except ImportError:
        return False
    if name == "HEIF":
        module.register_heif_opener()
    return True


def refusal(data: bytes) -> str | None:
    """Return why a file is not read, as the end of a sentence; None: nothing is known of it.

    Parameters
    ----------
    data : the file's bytes
    """
    wanted = _optional_format(data)
    if wanted and wanted not in readable():
        _, _, package = row = OPTIONAL[wanted]
        return (
            f"is {row.name}, which needs the package {package}. Install it with: pip install "
            f"{package}; or save the photo as PNG, JPEG or TIFF."
        )
    for offset, start, name in _REFUSED:
        if data.startswith(start, offset):
            return f"is {name}. {_ADVICE}"
    with suppress(*tiff.BROKEN):
        order, tags = tiff.byte_order(data), tiff.read_tags(data)
        kind = tiff.numbers(tags, tiff.KIND, order)
        if tiff.DNG_VERSION in tags or (kind and kind[0] & _REDUCED):
            return f"is a camera's raw file, or holds a preview first. {_ADVICE}"
        if _FLOATING_POINT in tiff.numbers(tags, tiff.SAMPLE_FORMAT, order):
            return f"has floating-point values. {_ADVICE}"
        if max(bits := tiff.numbers(tags, tiff.BITS, order), default=0) > 16:
            return f"has {max(bits)} bits a channel. {_ADVICE}"
    return None


def odd_tiff(data: bytes) -> str | None:
    """Return why a TIFF is not read that Pillow does not know, as the end of a sentence; None: it
    is none.
    """
    with suppress(*tiff.BROKEN):
        bits = tiff.numbers(tiff.read_tags(data), tiff.BITS, tiff.byte_order(data))
        if bits:
            return (
                f"is a TIFF with {len(bits)} channels of {bits[0]} bits in a form that cannot be "
                f"read. {_ADVICE}"
            )
    return None


_ADVICE = "Save or develop it as a TIFF or PNG in gray or RGB, with 8 or 16 bits a channel."


def is_jpeg_xl(data: bytes) -> bool:
    """Tell whether a file is a JPEG XL image, by its first bytes."""
    return data.startswith(_JXL_STARTS)


def _optional_format(data: bytes) -> str | None:
    """Return which optional format a file has by its first bytes; None: none."""
    if is_jpeg_xl(data):
        return "JXL"
    if data[4:8] != b"ftyp":
        return None
    with suppress(struct.error):
        (length,) = struct.unpack_from(">L", data)
        brands = data[8:12] + data[16 : min(length, 256)]
        if b"avif" in brands or b"avis" in brands:
            return "AVIF"
        if any(brand in brands for brand in _HEIF_BRANDS):
            return "HEIF"
    return None
