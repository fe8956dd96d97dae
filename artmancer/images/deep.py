"""HEIC and AVIF files with 10 or 12 bits a channel, which Pillow's plugins cut to 8."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from .picture import Pixels

_CONFIGURATION = b"av1C"
"""Name of the box with AVIF's depth; its third byte has the flags (AV1 in ISOBMFF, 2.3.3)."""

_MORE_THAN_8, _TWELVE = 0x40, 0x20
"""Flags of the box."""


def bits(image: Image.Image, data: bytes) -> int:
    """Return the bits of a channel of an opened HEIC or AVIF file: 8, 10 or 12; 8 for others."""
    if image.format == "HEIF":
        return int(image.info.get("bit_depth", 8))
    place = data.find(_CONFIGURATION) if image.format == "AVIF" else -1
    if place < 0:
        return 8
    flags = data[place + len(_CONFIGURATION) + 2]
    if not flags & _MORE_THAN_8:
        return 8
    return 12 if flags & _TWELVE else 10


def pixels(image: Image.Image, data: bytes) -> Pixels | None:
    """Decode the main image of a HEIC or AVIF file with more than 8 bits, and scale its values to
    16.

    Returns
    -------
    uint16 [H, W, channels], turned as Pillow turns it; None where OpenCV reads no AVIF
    """
    values = _heif_values(data) if image.format == "HEIF" else _avif_values(data)
    if values is None or values.dtype != np.uint16 or values.shape[:2] != image.size[::-1]:
        return None
    highest = 2 ** bits(image, data) - 1
    # In 16 bits, both libraries would leave white below 65535. A table needs less memory than a
    # product of the whole image.
    table = np.rint(np.arange(highest + 1) * (65535 / highest)).astype(np.uint16)
    scaled: Pixels = table.take(values, mode="clip")
    return scaled if scaled.ndim == 3 else scaled[..., None]


def _heif_values(data: bytes) -> Pixels:
    import pillow_heif

    file = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False, hdr_to_16bit=False)
    values: Pixels = np.asarray(file[file.primary_index])
    return values


def _avif_values(data: bytes) -> Pixels | None:
    import cv2

    try:
        values: Pixels | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if values is None or values.ndim == 2:
        return values
    # OpenCV has blue first.
    return values[..., [2, 1, 0, 3] if values.shape[2] == 4 else [2, 1, 0]]
