"""The tags of TIFF files and of EXIF data, which is a TIFF without an image; and TIFF files.

Pillow writes neither 16 bits a channel nor the EXIF data of a compressed TIFF, and reads text as
Latin-1. Here the bytes of a tag stay as they are.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, CHANNELS, ROWS_PER_STRIP, STRIP_LENGTHS = 273, 277, 278, 279
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 282, 283, 296
KIND, ORIENTATION, PREDICTOR, EXTRA_SAMPLES, SAMPLE_FORMAT = 254, 274, 317, 338, 339
XMP, IPTC, PROFILE, DNG_VERSION = 700, 33723, 34675, 50706

WHITE_IS_ZERO = 0
"""Value of PHOTOMETRIC: the largest value is black."""

_STRUCTURE = {
    *(KIND, 255, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, 263, 264, 265, 266, STRIP_OFFSETS),
    *(CHANNELS, ROWS_PER_STRIP, STRIP_LENGTHS, 280, 281, 284, 288, 289, 290, 291, 292, 293, 297),
    *(301, PREDICTOR, 318, 319, 320, 321, 322, 323, 324, 325, 330, 332, 333, 334, 336, 337),
    *(EXTRA_SAMPLES, SAMPLE_FORMAT, 340, 341, 342, 347, *range(512, 522), 529, 530, 531, 532, 559),
    # XMP, IPTC, Photoshop's blocks and the color profile are kept by themselves.
    *(XMP, IPTC, 34377, PROFILE),
}
"""Tags that describe how a file's pixels are stored, and no photo."""

_DIRECTORIES = {34665, 34853, 40965}
"""Tags whose value is another directory: EXIF, GPS, interoperability."""

_LEVELS = 2
"""Levels of directories in the first one: EXIF, and interoperability in it."""

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
"""Bytes of a value by its type."""

_BYTE, _SHORT, _LONG, _RATIONAL, _UNDEFINED = 1, 3, 4, 5, 7

_THUMBNAILS = ((513, 514), (STRIP_OFFSETS, STRIP_LENGTHS))
"""Tags of the place and the length of a thumbnail: JPEG, uncompressed."""

_STRIP_BYTES = 2**18
"""Bytes of a strip before compression, as far as a row is not longer."""

BROKEN = (struct.error, KeyError, IndexError, RecursionError)
"""Exceptions for bytes that are no tags."""


class Tag(NamedTuple):
    """A value of a directory.

    Attributes
    ----------
    kind : the type, a key of _SIZES
    length : number of values
    data : the bytes of the values; of a directory, its tags by number
    """

    kind: int
    length: int
    data: bytes | dict[int, Tag]


def byte_order(data: bytes) -> str:
    """Return the byte order of a TIFF file or of EXIF data, as `struct` names it.

    Raises
    ------
    KeyError : they are neither
    """
    return {b"II*\0": "<", b"MM\0*": ">"}[data[:4]]


def read_tags(data: bytes) -> dict[int, Tag]:
    """Return the tags of the first directory by number.

    Raises
    ------
    one of BROKEN
    """
    order = byte_order(data)
    return _read(data, order, struct.unpack_from(f"{order}L", data, 4)[0], _LEVELS)


def _read(data: bytes, order: str, offset: int, levels: int) -> dict[int, Tag]:
    """Return the tags of the directory at an offset, with those of the directories in it.

    Parameters
    ----------
    levels : levels of directories that are read in it
    """
    (length,) = struct.unpack_from(f"{order}H", data, offset)
    tags, seen, total = {}, set[int](), 0
    for start in range(offset + 2, offset + 2 + 12 * length, 12):
        number, kind, count = struct.unpack_from(f"{order}HHL", data, start)
        size = _SIZES.get(kind, 0) * count
        place: int = struct.unpack_from(f"{order}L", data, start + 8)[0]
        if size == 0 or number in seen:
            continue
        seen.add(number)
        if number in _DIRECTORIES:
            # The rest is kept where one of them is broken.
            with suppress(*BROKEN):
                if levels:
                    tags[number] = Tag(_LONG, 1, _read(data, order, place, levels - 1))
            continue
        total += size
        if total > len(data):
            raise struct.error("values overlap")
        place = start + 8 if size <= 4 else place
        value = data[place : place + size]
        if len(value) == size:
            tags[number] = Tag(kind, count, value)
    return tags


def numbers(tags: Mapping[int, Tag], number: int, order: str) -> tuple[int, ...]:
    """Return the whole numbers of a tag; none where it is missing, or has others."""
    tag = tags.get(number)
    letter = {_BYTE: "B", _SHORT: "H", _LONG: "L"}.get(tag.kind) if tag else None
    if tag is None or letter is None or not isinstance(tag.data, bytes):
        return ()
    return struct.unpack(f"{order}{tag.length}{letter}", tag.data)


def to_exif(data: bytes) -> bytes:
    """Return what a TIFF file says about its photo, as EXIF data.

    Raises
    ------
    one of BROKEN
    """
    order = byte_order(data)
    tags = {number: tag for number, tag in read_tags(data).items() if number not in _STRUCTURE}
    return _header(order, 8) + _pack(tags, order, 8) if tags else b""


def upright(exif: bytes) -> bytes:
    """Return EXIF data for a photo that was turned upright, without a thumbnail. Everything else
    stays in its place, because the notes of some cameras hold places in the data.

    Raises
    ------
    one of BROKEN
    """
    order = byte_order(exif)
    data = bytearray(exif)
    (first,) = struct.unpack_from(f"{order}L", data, 4)
    (length,) = struct.unpack_from(f"{order}H", data, first)
    for start in range(first + 2, first + 2 + 12 * length, 12):
        number, kind, count = struct.unpack_from(f"{order}HHL", data, start)
        if number == ORIENTATION and kind == _SHORT and count == 1:
            struct.pack_into(f"{order}H", data, start + 8, 1)
    end = first + 2 + 12 * length
    # The last directory may end without the place of a next one.
    (second,) = struct.unpack_from(f"{order}L", data, end) if len(data) >= end + 4 else (0,)
    if second:
        struct.pack_into(f"{order}L", data, end, 0)
        tags = _read(exif, order, second, 0)
        for places, lengths in _THUMBNAILS:
            pairs = zip(numbers(tags, places, order), numbers(tags, lengths, order), strict=False)
            for place, size in pairs:
                last = min(place + size, len(data))
                data[place:last] = bytes(max(0, last - place))
                # It is the last value, but for bytes that make the length even.
                if end < place and last >= len(data) - 3:
                    del data[place:]
    return bytes(data)


def _header(order: str, place: int) -> bytes:
    return {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HL", 42, place)


def _pack(tags: Mapping[int, Tag], order: str, place: int) -> bytes:
    """Return a directory that begins at a place of its file, with all values behind it."""
    entries, values = [], bytearray()
    end = place + 2 + 12 * len(tags) + 4
    for number, tag in sorted(tags.items()):
        data = tag.data
        if isinstance(data, dict):
            where = end + len(values)
            values += _pack(data, order, where)
            data = struct.pack(f"{order}L", where)
        elif len(data) > 4:
            where = end + len(values)
            # Values begin at even places.
            values += data + bytes(len(data) % 2)
            data = struct.pack(f"{order}L", where)
        head = struct.pack(f"{order}HHL", number, tag.kind, tag.length)
        entries.append(head + data.ljust(4, b"\0"))
    return struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4) + bytes(values)


def _number_tag(order: str, kind: int, values: Iterable[int]) -> Tag:
    letter = {_SHORT: "H", _LONG: "L"}[kind]
    numbers = list(values)
    return Tag(kind, len(numbers), struct.pack(f"{order}{len(numbers)}{letter}", *numbers))


def _bytes_tag(data: bytes) -> Tag:
    return Tag(_UNDEFINED, len(data), data)


def write(
    pixels: NDArray[np.generic],
    *,
    profile: bytes | None,
    exif: bytes,
    xmp: bytes,
    iptc: bytes,
    dpi: tuple[float, float] | None,
) -> bytes:
    """Return a TIFF file, compressed with Deflate (TIFF 6.0, and Adobe's Technical Notes of 2002).

    Parameters
    ----------
    pixels : uint8 or uint16 [H, W, channels]: gray, gray and alpha, RGB, or RGB and alpha
    exif : as from `upright`; see metadata.Metadata for the others
    """
    order = byte_order(exif) if exif else "<"
    height, width, channels = pixels.shape
    bits = pixels.dtype.itemsize * 8
    rows = max(1, _STRIP_BYTES // (width * channels * pixels.dtype.itemsize))
    strips = [_strip(pixels[top : top + rows], order) for top in range(0, height, rows)]
    places = [8 + sum(map(len, strips[:index])) for index in range(len(strips))]
    described = read_tags(exif) if exif else {}
    tags = {number: tag for number, tag in described.items() if number not in _STRUCTURE}
    shorts = {
        BITS: [bits] * channels,
        COMPRESSION: [8],
        PHOTOMETRIC: [2 if channels > 2 else 1],
        CHANNELS: [channels],
        284: [1],
        PREDICTOR: [2],
        # 2: the colors are not multiplied by the opacity.
        **({EXTRA_SAMPLES: [2]} if channels in (2, 4) else {}),
        SAMPLE_FORMAT: [1] * channels,
    }
    longs = {
        WIDTH: [width],
        HEIGHT: [height],
        STRIP_OFFSETS: places,
        ROWS_PER_STRIP: [rows],
        STRIP_LENGTHS: [len(strip) for strip in strips],
    }
    tags |= {number: _number_tag(order, _SHORT, values) for number, values in shorts.items()}
    tags |= {number: _number_tag(order, _LONG, values) for number, values in longs.items()}
    blocks = {XMP: xmp, IPTC: iptc, PROFILE: profile}
    tags |= {number: _bytes_tag(data) for number, data in blocks.items() if data}
    if dpi:
        tags |= _resolution(order, dpi)
    end = 8 + sum(map(len, strips))
    padding = bytes(end % 2)
    directory = _pack(tags, order, end + len(padding))
    return b"".join([_header(order, end + len(padding)), *strips, padding, directory])


def _strip(rows: NDArray[np.generic], order: str) -> bytes:
    """Return the compressed pixels of some rows, each as its difference from the pixel before."""
    values = rows.copy()
    values[:, 1:] -= rows[:, :-1]
    return zlib.compress(values.astype(values.dtype.newbyteorder(order)).tobytes(), 6)


def _resolution(order: str, dpi: tuple[float, float]) -> dict[int, Tag]:
    rationals = [Fraction(value).limit_denominator(10_000) for value in dpi]
    packed = [
        Tag(_RATIONAL, 1, struct.pack(f"{order}LL", value.numerator, value.denominator))
        for value in rationals
    ]
    inches = _number_tag(order, _SHORT, [2])
    return dict(zip((X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT), (*packed, inches), strict=True))
