"""Metadata: EXIF, XMP, IPTC and the resolution, which a file holds beside its pixels.

Each block is kept as its bytes, which no program of ours understands as well as those that wrote
it; only what a turned photo and a new thumbnail would contradict is changed.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from PIL import Image

from . import tiff

_EXIF_PREFIX = b"Exif\0\0"
"""Bytes before EXIF data in some containers."""

_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation\s*(?:=\s*[\"']|>))\d")

_XMP_THUMBNAILS = b"<xmp:Thumbnails>", b"</xmp:Thumbnails>"

_XMP_MORE = re.compile(rb"\sxmpNote:HasExtendedXMP=(?:\"[^\"]{0,64}\"|'[^']{0,64}')")
"""Announces further blocks in a JPEG, which are not kept. Without bounds, a search of blanks takes
time by the square of their number.
"""

_IPTC_RESOURCE = 0x0404
"""Number of IPTC among Photoshop's resource blocks."""

_RESOURCE = b"8BIM"
"""Beginning of one of Photoshop's resource blocks."""

_PHOTOSHOP = b"Photoshop 3.0\0"
"""Beginning of a JPEG's segment with Photoshop's resource blocks."""

_XMP_NAMESPACE = b"http://ns.adobe.com/xap/1.0/\0"
"""Beginning of a JPEG's segment with XMP."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_INCH = 0.0254
"""Meters in an inch."""

_SEGMENT_BYTES = 65533
"""Most bytes of a JPEG's segment."""

_RAW_IPTC, _RAW_EXIF = "Raw profile type iptc", "Raw profile type exif"
"""Names of the texts of a PNG that hold IPTC and, in older files, EXIF, as ImageMagick, ExifTool
and Exiv2 have them.
"""


@dataclass(frozen=True)
class Metadata:
    """Texts and numbers about a photo.

    Attributes
    ----------
    exif : EXIF data, beginning with its byte order; empty: none
    xmp : an XMP packet
    iptc : IPTC records (IIM)
    dpi : pixels per inch, across and down
    """

    exif: bytes = b""
    xmp: bytes = b""
    iptc: bytes = b""
    dpi: tuple[float, float] | None = None

    def stripped(self) -> Metadata:
        """Return it with the resolution alone: who, when and where are gone."""
        return Metadata(dpi=self.dpi)


def read(image: Image.Image, data: bytes) -> Metadata:
    """Return what a file says about its photo, for the photo turned upright.

    Parameters
    ----------
    image : the opened file, its pixels loaded
    data : the file's bytes
    """
    info = image.info
    exif, xmp, iptc = info.get("exif", b""), info.get("xmp", b""), b""
    if image.format == "TIFF":
        exif, xmp, iptc = _in_tiff(data)
    elif image.format == "PNG":
        xmp = xmp or info.get("XML:com.adobe.xmp", b"")
        exif = exif or _raw_profile(info.get(_RAW_EXIF))
        iptc = _from_resources(_raw_profile(info.get(_RAW_IPTC)))
    elif image.format in ("JPEG", "MPO"):
        xmp = _segments(image, _XMP_NAMESPACE)
        # Pillow's own reading of Photoshop's blocks ends at the first that is broken.
        iptc = _from_resources(_segments(image, _PHOTOSHOP))
    if isinstance(xmp, str):
        xmp = xmp.encode()
    return Metadata(_upright_exif(exif or b""), _upright_xmp(xmp or b""), iptc, _dpi(info))


def _segments(image: Image.Image, prefix: bytes) -> bytes:
    """Return the content of a JPEG's segments that begin with a prefix, joined."""
    segments = [data for _, data in getattr(image, "applist", [])]
    return b"".join(data.removeprefix(prefix) for data in segments if data.startswith(prefix))


def _in_tiff(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Return EXIF, XMP and IPTC of a TIFF file."""
    with suppress(*tiff.BROKEN):
        tags = tiff.read_tags(data)
        blocks = [tags[number].data if number in tags else b"" for number in (tiff.XMP, tiff.IPTC)]
        xmp, iptc = (block if isinstance(block, bytes) else b"" for block in blocks)
        return tiff.to_exif(data), xmp.rstrip(b"\0"), iptc
    return b"", b"", b""


def _upright_exif(exif: bytes) -> bytes:
    """Return EXIF data for the turned photo; none where it is broken."""
    exif = exif.removeprefix(_EXIF_PREFIX)
    with suppress(*tiff.BROKEN):
        turned = tiff.upright(exif)
        tiff.read_tags(turned)
        return turned
    return b""


def _upright_xmp(xmp: bytes) -> bytes:
    xmp = _XMP_ORIENTATION.sub(rb"\g<1>1", xmp)
    start, end = _XMP_THUMBNAILS
    before, _, rest = xmp.partition(start)
    _, is_whole, after = rest.partition(end)
    return _XMP_MORE.sub(b"", before + after if is_whole else xmp)


def _dpi(info: dict[str | tuple[int, int], object]) -> tuple[float, float] | None:
    dpi = info.get("dpi")
    if not isinstance(dpi, tuple) or len(dpi) != 2:
        return None
    try:
        across, down = (float(value) for value in dpi)
    # A TIFF may have text there.
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    # 1 is what Pillow makes of a file that only has an aspect ratio.
    return (across, down) if 1 < across < 1e5 and 1 < down < 1e5 else None


def _raw_profile(text: object) -> bytes:
    """Return the bytes of a raw profile of ImageMagick's: a name, a length, and hexadecimal
    digits.
    """
    digits = "".join(str(text or "").split()[2:])
    with suppress(ValueError):
        return bytes.fromhex(digits)
    return b""


def _from_resources(data: bytes) -> bytes:
    """Return IPTC from Photoshop's resource blocks."""
    offset = 0
    with suppress(struct.error, IndexError):
        while data[offset : offset + 4] == _RESOURCE:
            (number,) = struct.unpack_from(">H", data, offset + 4)
            # The name has its length before it, and both together an even length.
            offset += 6 + (data[offset + 6] // 2 + 1) * 2
            (size,) = struct.unpack_from(">L", data, offset)
            if number == _IPTC_RESOURCE:
                return data[offset + 4 : offset + 4 + size]
            offset += 4 + size + size % 2
    return b""


def _to_resources(iptc: bytes) -> bytes:
    """Return IPTC as one of Photoshop's resource blocks."""
    head = struct.pack(">HHL", _IPTC_RESOURCE, 0, len(iptc))
    return _RESOURCE + head + iptc + bytes(len(iptc) % 2)


def too_large_for_jpeg(metadata: Metadata) -> list[str]:
    """Return the names of the blocks that a JPEG cannot hold."""
    return [
        name for name, (_, block) in _jpeg_segments(metadata).items() if len(block) > _SEGMENT_BYTES
    ]


def add_to_jpeg(jpeg: bytes, metadata: Metadata) -> bytes:
    """Return a JPEG file with EXIF, XMP and IPTC, as far as it can hold them."""
    segments = [
        struct.pack(">BBH", 0xFF, marker, len(block) + 2) + block
        for marker, block in _jpeg_segments(metadata).values()
        if len(block) <= _SEGMENT_BYTES
    ]
    # Behind the start of the image, and behind JFIF's own segment, which is the first if there.
    place = 2
    if jpeg[2:4] == b"\xff\xe0":
        place += 2 + struct.unpack_from(">H", jpeg, 4)[0]
    return jpeg[:place] + b"".join(segments) + jpeg[place:]


def _jpeg_segments(metadata: Metadata) -> dict[str, tuple[int, bytes]]:
    """Return the marker and the content of each segment by name."""
    segments = {}
    if metadata.exif:
        segments["EXIF"] = 0xE1, _EXIF_PREFIX + metadata.exif
    if metadata.xmp:
        segments["XMP"] = 0xE1, _XMP_NAMESPACE + metadata.xmp
    if metadata.iptc:
        segments["IPTC"] = 0xED, _PHOTOSHOP + _to_resources(metadata.iptc)
    return segments


def add_to_png(png: bytes, metadata: Metadata, profile: bytes | None) -> bytes:
    """Return a PNG file with a color profile, the resolution, EXIF, XMP and IPTC, in the place of
    its own.
    """
    chunks = []
    if profile:
        chunks.append(_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(profile)))
    if metadata.dpi:
        per_meter = [round(value / _INCH) for value in metadata.dpi]
        chunks.append(_chunk(b"pHYs", struct.pack(">LLB", *per_meter, 1)))
    if metadata.exif:
        chunks.append(_chunk(b"eXIf", metadata.exif))
    if metadata.xmp:
        # No compression, no language, no translated keyword.
        chunks.append(_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp))
    if metadata.iptc:
        text = _to_raw_profile(_to_resources(metadata.iptc))
        chunks.append(_chunk(b"zTXt", _RAW_IPTC.encode() + b"\0\0" + zlib.compress(text)))
    header, *pixels = _pixel_chunks(png)
    return b"".join([_PNG_SIGNATURE, header, *chunks, *pixels])


def _pixel_chunks(png: bytes) -> Iterator[bytes]:
    """Yield the chunks of a PNG file that hold its pixels, and those at its start and end."""
    place = len(_PNG_SIGNATURE)
    while place < len(png):
        size, kind = struct.unpack_from(">L4s", png, place)
        end = place + 12 + size
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            yield png[place:end]
        place = end


def _to_raw_profile(data: bytes) -> bytes:
    digits = data.hex()
    lines = [digits[start : start + 72] for start in range(0, len(digits), 72)]
    return "\n".join(["", "iptc", f"{len(data):8}", *lines, ""]).encode()


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", checksum)
