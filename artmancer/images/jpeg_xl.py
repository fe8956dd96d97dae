"""The size of a JPEG XL image, from its header: Pillow's plugin decodes all pixels to open it."""

import struct

_CODESTREAM = b"\xff\x0a"

_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
"""Ratios of width to height that the header has a number for, from 1."""

_SIDE_BITS = (9, 13, 18, 30)
"""Numbers of bits that a side may be written with."""


def size(data: bytes) -> tuple[int, int]:
    """Return the width and height of a JPEG XL file: SizeHeader of ISO/IEC 18181-1, which is at the
    start of the codestream, alone or in a container of boxes.

    Raises
    ------
    struct.error : the header is cut off or broken
    """
    start = data[:14] if data.startswith(_CODESTREAM) else _codestream(data)
    if not start.startswith(_CODESTREAM):
        raise struct.error("no codestream of JPEG XL")
    bits = int.from_bytes(start[2:], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    is_small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if is_small else 1 + take(_SIDE_BITS[take(2)])

    height, ratio = side(), take(3)
    if not ratio:
        return side(), height
    across, down = _RATIOS[ratio - 1]
    return height * across // down, height


def _codestream(data: bytes) -> bytes:
    """Return the first bytes of the codestream in a container."""
    place = 0
    while True:
        length, kind = struct.unpack_from(">L4s", data, place)
        head = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, place + 8)
            head = 16
        if kind in (b"jxlc", b"jxlp"):
            # A part of a codestream begins with its number.
            begin = place + head + (4 if kind == b"jxlp" else 0)
            return data[begin : begin + 14]
        if length < head:
            raise struct.error("no codestream of JPEG XL")
        place += length
