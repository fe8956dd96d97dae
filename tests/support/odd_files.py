"""Photos as photographers have them, and readers for them that share no code with the product's.

Color profiles are written by formula, PNG and JPEG files chunk by chunk, and EXIF data byte by
byte. tifffile writes and reads TIFF files; Pillow's own parser reads EXIF data.
"""

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile
from PIL import Image

SIDE = 64

SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
P3 = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))
"""Chromaticities x, y of red, green and blue; their white is D65."""

_D65 = np.array([0.3127, 0.3290])
_D50 = np.array([0.9642, 1.0, 0.8249])

_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


def to_xyz(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Return the matrix from linear RGB to XYZ with the white D65 (Lindbloom)."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    x, y = _D65
    white = np.array([x / y, 1, (1 - x - y) / y])
    return columns * np.linalg.solve(columns, white)


def _to_d50(matrix: np.ndarray) -> np.ndarray:
    """Return a matrix to XYZ adapted from the white D65 to D50 (Bradford)."""
    cones = _BRADFORD @ matrix.sum(1), _BRADFORD @ _D50
    adapted = np.linalg.inv(_BRADFORD) @ np.diag(cones[1] / cones[0]) @ _BRADFORD
    return adapted @ matrix


def adobe_rgb(srgb: tuple[int, int, int]) -> np.ndarray:
    """Return the levels in Adobe RGB of a color in sRGB, by their definitions."""
    values = np.array(srgb) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return 255 * np.linalg.solve(to_xyz(ADOBE), to_xyz(SRGB) @ linear).clip(0, 1) ** (
        1 / 2.19921875
    )


def _icc(
    space: bytes, tags: dict[bytes, bytes], pcs: bytes = b"XYZ ", kind: bytes = b"mntr"
) -> bytes:
    """Return an ICC profile, version 2.4."""
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">L", 2) + b"t\0" + bytes(78), **tags}
    table, data = struct.pack(">L", len(tags)), b""
    start = 132 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">LL", start + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    head = bytes(4) + b"lcms\x02\x40\0\0" + kind + space + pcs + bytes(12) + b"acsp" + bytes(28)
    head += struct.pack(">3l", *(round(value * 65536) for value in _D50)) + bytes(48)
    profile = head + table + data
    return struct.pack(">L", len(profile)) + profile[4:]


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3l", *(round(value * 65536) for value in values))


def _gamma(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">LH", 1, round(gamma * 256))


def matrix_profile(primaries: tuple[tuple[float, float], ...], gamma: float = 2.19921875) -> bytes:
    """Return the profile of an RGB space with a gamma."""
    matrix = _to_d50(to_xyz(primaries))
    colorants = {f"{name}XYZ".encode(): _xyz(matrix[:, i]) for i, name in enumerate("rgb")}
    curves = {f"{name}TRC".encode(): _gamma(gamma) for name in "rgb"}
    return _icc(b"RGB ", {b"wtpt": _xyz(_D50), **colorants, **curves})


def gray_profile(gamma: float = 2.19921875) -> bytes:
    """Return the profile of a gray with a gamma."""
    return _icc(b"GRAY", {b"wtpt": _xyz(_D50), b"kTRC": _gamma(gamma)})


def cmyk_lab(cmyk: np.ndarray) -> np.ndarray:
    """Return the Lab of inks [..., 4] in 0..1, of a printer that `cmyk_profile` describes."""
    c, m, y, k = np.moveaxis(cmyk, -1, 0)
    light = 100 - 40 * np.minimum(1, c * 0.5 + m * 0.8 + y * 0.2) - 50 * k
    return np.stack([light, (40 * m - 30 * c) * (1 - k), (45 * y - 35 * c) * (1 - k)], -1)


def cmyk_profile() -> bytes:
    """Return the profile of a printer, a table with 3 steps for each ink."""
    steps = np.stack(np.meshgrid(*[np.linspace(0, 1, 3)] * 4, indexing="ij"), -1)
    lab = cmyk_lab(steps).reshape(-1, 3)
    # Lab in 16 bits of version 2: 0xFF00 is 100.
    words = np.stack([lab[:, 0] * 652.8, *((lab[:, 1:] + 128) * 256).T], -1).round()
    head = b"mft2" + bytes(4) + bytes([4, 3, 3, 0])
    head += struct.pack(">9l", *(np.eye(3) * 65536).astype(int).ravel()) + struct.pack(">HH", 2, 2)
    ramp = struct.pack(">HH", 0, 65535)
    table = head + ramp * 4 + words.astype(">u2").tobytes() + ramp * 3
    return _icc(b"CMYK", {b"A2B0": table, b"A2B1": table, b"wtpt": _xyz(_D50)}, b"Lab ", b"prtr")


def lab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """Return sRGB in 0..1 of Lab with the white D50."""
    f = (lab[..., :1] + 16) / 116 + lab[..., 1:] * np.array([1 / 500, -1 / 200])
    f = np.stack([f[..., 0], (lab[..., 0] + 16) / 116, f[..., 1]], -1)
    xyz = np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2) * _D50
    linear = (xyz @ np.linalg.inv(_to_d50(to_xyz(SRGB))).T).clip(0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


PROFILES = {
    "none": None,
    "adobe": matrix_profile(ADOBE),
    "p3": matrix_profile(P3, 2.4),
    "gray": gray_profile(),
}

THUMBNAIL = b"\xff\xd8thumbnail of the old photo\xff\xd9"

ARTIST = "Zoë Müller ©".encode()


def exif(order: str = "<", orientation: int = 1) -> bytes:
    """Return EXIF data with text that is not ASCII, notes of a camera, a place and a thumbnail.

    Parameters
    ----------
    order : of bytes, as struct names it
    """
    pack = struct.pack

    def directory(place: int, entries: list[tuple[int, int, int, bytes]], following: int) -> bytes:
        head = pack(f"{order}H", len(entries))
        values = place + 2 + 12 * len(entries) + 4
        body = b""
        for tag, kind, count, value in entries:
            field = value.ljust(4, b"\0")
            if len(value) > 4:
                field = pack(f"{order}L", values + len(body))
                body += value + bytes(len(value) % 2)
            head += pack(f"{order}HHL", tag, kind, count) + field
        return head + pack(f"{order}L", following) + body

    def short(value: int) -> bytes:
        return pack(f"{order}H", value)

    def long(value: int) -> bytes:
        return pack(f"{order}L", value)

    def rationals(*values: int) -> bytes:
        return pack(
            f"{order}{2 * len(values)}L", *(part for value in values for part in (value, 1))
        )

    notes = bytes(range(40))
    of_camera = [
        (0x829A, 5, 1, pack(f"{order}LL", 1, 125)),
        (0x927C, 7, len(notes), notes),
        (0x9286, 7, 13, b"ASCII\0\0\0hello"),
        (0xA001, 3, 1, short(0xFFFF)),
    ]
    place = [
        (1, 2, 2, b"N\0"),
        (2, 5, 3, rationals(48, 12, 30)),
        (3, 2, 2, b"E\0"),
        (4, 5, 3, rationals(16, 22, 5)),
    ]
    # The places of the directories are chosen with room to spare.
    of_camera_at, place_at, thumbnail_at = 400, 600, 800
    main = [
        (0x010F, 2, 6, b"Maker\0"),
        (0x0112, 3, 1, short(orientation)),
        (0x013B, 2, len(ARTIST) + 1, ARTIST + b"\0"),
        (0x8298, 2, 6, b"\xa92026\0"),
        (0x8769, 4, 1, long(of_camera_at)),
        (0x8825, 4, 1, long(place_at)),
    ]
    small = [(0x0201, 4, 1, long(900)), (0x0202, 4, 1, long(len(THUMBNAIL)))]
    data = bytearray(900)
    data[:8] = {"<": b"II", ">": b"MM"}[order] + pack(f"{order}HL", 42, 8)
    for start, block in (
        (8, directory(8, main, thumbnail_at)),
        (of_camera_at, directory(of_camera_at, of_camera, 0)),
        (place_at, directory(place_at, place, 0)),
        (thumbnail_at, directory(thumbnail_at, small, 0)),
    ):
        data[start : start + len(block)] = block
    return bytes(data) + THUMBNAIL


def exif_tags(data: bytes) -> dict[str, Any]:
    """Return what EXIF data says, as Pillow reads it: without orientation and thumbnail."""
    parsed = Image.Exif()
    parsed.load(b"Exif\0\0" + data.removeprefix(b"Exif\0\0"))
    camera, place = dict(parsed.get_ifd(0x8769)), dict(parsed.get_ifd(0x8825))
    main = {tag: value for tag, value in parsed.items() if tag not in (0x112, 0x8769, 0x8825)}
    return {"main": main, "camera": camera, "place": place}


XMP = (
    b'<?xpacket begin=""?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf='
    b'"http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" xmlns:dc='
    b'"http://purl.org/dc/elements/1.1/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
    b'tiff:Orientation="1"><dc:title>Caf\xc3\xa9</dc:title></rdf:Description></rdf:RDF>'
    b'</x:xmpmeta><?xpacket end="w"?>'
)

IPTC = (
    b"\x1c\x01\x5a\x00\x03\x1b%G"
    + b"\x1c\x02\x78\x00\x0aA caf\xc3\xa9 at"
    + b"\x1c\x02\x74\x00\x04\xc2\xa9 Z"
)

RESOURCES = (
    b"8BIM\x03\xed\x00\x00"
    + struct.pack(">L", 2)
    + b"xx"
    + (b"8BIM\x04\x04\x00\x00" + struct.pack(">L", len(IPTC)) + IPTC + bytes(len(IPTC) % 2))
)
"""Blocks of Photoshop's: one that is broken, and IPTC."""


def photo(channels: int, bits: int, seed: int = 0) -> np.ndarray:
    """Return the pixels of a photo with a blue cast and noise, [SIDE, SIDE, channels]."""
    random = np.random.default_rng(seed)
    highest = 2**bits - 1
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1)
    colors = np.stack([0.25 + 0.3 * x, 0.3 + 0.3 * y, 0.5 + 0.3 * x * y], -1)
    colors = colors + random.uniform(-0.05, 0.05, colors.shape)
    if channels < 3:
        colors = colors.mean(-1, keepdims=True)
    if channels in (2, 4):
        alpha = np.where((x < 0.3) | (x > 0.7), random.uniform(0, 1, x.shape), 1)
        colors = np.concatenate([colors, alpha[..., None]], -1)
    return (colors * highest).round().astype(np.uint8 if bits == 8 else np.uint16)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png(
    pixels: np.ndarray,
    profile: bytes | None = None,
    metadata: bool = False,
    data: bytes | None = None,
) -> bytes:
    """Return a PNG file.

    Parameters
    ----------
    pixels : uint8 or uint16 [height, width, channels]
    metadata : with EXIF, XMP, IPTC and 300 dpi
    data : the EXIF data; None: that of `exif`
    """
    height, width, channels = pixels.shape
    colors = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">LLBBBBB", width, height, pixels.dtype.itemsize * 8, colors, 0, 0, 0)
    rows = pixels.astype(pixels.dtype.newbyteorder(">"))
    parts = [chunk(b"IHDR", header)]
    if profile:
        parts.append(chunk(b"iCCP", b"p\0\0" + zlib.compress(profile)))
    if metadata:
        digits = RESOURCES.hex()
        raw = f"\niptc\n{len(RESOURCES):8}\n{digits[:72]}\n{digits[72:]}\n".encode()
        parts += [
            chunk(b"pHYs", struct.pack(">LLB", 11811, 11811, 1)),
            chunk(b"eXIf", exif() if data is None else data),
            chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
            chunk(b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(raw)),
        ]
    parts.append(chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))))
    return SIGNATURE + b"".join(parts) + chunk(b"IEND", b"")


@dataclass
class Content:
    """The content of a file.

    Attributes
    ----------
    pixels : [height, width, channels]
    """

    pixels: np.ndarray
    profile: bytes | None
    exif: bytes
    xmp: bytes
    iptc: bytes
    dpi: tuple[float, float] | None


def read_png(data: bytes) -> Content:
    """Read a PNG file that is not interlaced."""
    chunks: dict[bytes, bytes] = {}
    place, texts = 8, dict[bytes, bytes]()
    while place < len(data):
        (size,) = struct.unpack_from(">L", data, place)
        kind, value = data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
        assert struct.unpack_from(">L", data, place + 8 + size)[0] == zlib.crc32(kind + value)
        if kind == b"zTXt":
            name, text = value.split(b"\0", 1)
            texts[name] = zlib.decompress(text[1:])
        elif kind == b"iTXt":
            texts[value.split(b"\0", 1)[0]] = value.split(b"\0", 5)[5]
        else:
            chunks[kind] = chunks.get(kind, b"") + value
        place += 12 + size
    width, height, bits, colors, _, _, interlaced = struct.unpack(">LLBBBBB", chunks[b"IHDR"])
    assert not interlaced
    channels = {0: 1, 4: 2, 2: 3, 6: 4}[colors]
    step = channels * bits // 8
    rows = _unfilter(zlib.decompress(chunks[b"IDAT"]), height, width * step, step)
    pixels = np.frombuffer(rows, f">u{bits // 8}").reshape(height, width, channels)
    profile = chunks.get(b"iCCP")
    dpi = struct.unpack(">LLB", chunks[b"pHYs"])[:2] if b"pHYs" in chunks else None
    raw = texts.get(b"Raw profile type iptc", b"")
    return Content(
        pixels.astype(np.uint8 if bits == 8 else np.uint16),
        zlib.decompress(profile.split(b"\0", 1)[1][1:]) if profile else None,
        chunks.get(b"eXIf", b""),
        texts.get(b"XML:com.adobe.xmp", b""),
        _iptc(bytes.fromhex(b"".join(raw.split()[2:]).decode())) if raw else b"",
        tuple(round(value * 0.0254, 2) for value in dpi) if dpi else None,
    )


def _unfilter(data: bytes, height: int, length: int, step: int) -> bytes:
    """Undo the filters of a PNG's rows."""
    before, result = bytearray(length), b""
    for row in range(height):
        kind = data[row * (length + 1)]
        line = bytearray(data[row * (length + 1) + 1 : (row + 1) * (length + 1)])
        for index in range(length):
            left = line[index - step] if index >= step else 0
            up, corner = before[index], before[index - step] if index >= step else 0
            if kind == 1:
                guess = left
            elif kind == 2:
                guess = up
            elif kind == 3:
                guess = (left + up) // 2
            elif kind == 4:
                near = left + up - corner
                guess = min((left, up, corner), key=lambda value: abs(near - value))
            else:
                guess = 0
            line[index] = (line[index] + guess) % 256
        before = line
        result += line
    return result


def _iptc(resources: bytes) -> bytes:
    """Return IPTC from Photoshop's blocks without names."""
    while resources.startswith(b"8BIM"):
        number, _, size = struct.unpack_from(">HHL", resources, 4)
        if number == 0x0404:
            return resources[12 : 12 + size]
        resources = resources[12 + size + size % 2 :]
    return b""


def tiff(
    pixels: np.ndarray, profile: bytes | None = None, metadata: bool = False, **options: Any
) -> bytes:
    """Return a TIFF file by tifffile.

    Parameters
    ----------
    metadata : with texts, XMP, IPTC and 300 dpi
    options : of tifffile.imwrite, and "byteorder"
    """
    buffer = io.BytesIO()
    channels = pixels.shape[2]
    more: dict[str, Any] = {"photometric": "rgb" if channels > 2 else "minisblack"}
    if channels in (2, 4):
        more["extrasamples"] = ["unassalpha"]
    if metadata:
        more["resolution"], more["resolutionunit"] = (300, 300), 2
        more["extratags"] = [
            (315, 2, len(ARTIST) + 1, ARTIST + b"\0", True),
            (700, 1, len(XMP), XMP, True),
            (33723, 7, len(IPTC), IPTC, True),
        ]
    byteorder = options.pop("byteorder", "<")
    with tifffile.TiffWriter(buffer, byteorder=byteorder) as file:
        file.write(
            pixels if channels > 1 else pixels[..., 0],
            iccprofile=profile,
            metadata=None,
            software=False,
            **{**more, **options},
        )
    return buffer.getvalue()


def read_tiff(data: bytes) -> Content:
    """Read a TIFF file by tifffile."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        tags = {tag.code: tag.value for tag in page.tags.values()}
        pixels = page.asarray()
    height, width = pixels.shape[:2]
    dpi = tags.get(282)
    return Content(
        pixels.reshape(height, width, -1),
        tags.get(34675),
        b"",
        bytes(tags.get(700, b"")),
        bytes(tags.get(33723, b"")),
        (dpi[0] / dpi[1],) * 2 if dpi and tags.get(296) == 2 else None,
    )


def jpeg(
    pixels: np.ndarray,
    profile: bytes | None = None,
    metadata: bool = False,
    data: bytes | None = None,
    **options: Any,
) -> bytes:
    """Return a JPEG file by Pillow, EXIF, XMP and IPTC added as segments; see `png`."""
    buffer = io.BytesIO()
    dpi = (300, 300) if metadata else (0, 0)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.save(buffer, "JPEG", icc_profile=profile, dpi=dpi, **{"quality": 88, **options})
    plain = buffer.getvalue()
    if not metadata:
        return plain
    blocks = [
        (0xE1, b"Exif\0\0" + (exif() if data is None else data)),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP),
        (0xED, b"Photoshop 3.0\0" + RESOURCES),
    ]
    segments = [
        struct.pack(">BBH", 0xFF, marker, len(block) + 2) + block for marker, block in blocks
    ]
    return plain[:20] + b"".join(segments) + plain[20:]


def read_jpeg(data: bytes) -> Content:
    """Read a JPEG file: its segments one by one, its pixels by Pillow."""
    place, profile, found = 2, b"", dict[str, bytes]()
    while data[place + 1] != 0xDA:
        marker, size = struct.unpack_from(">xBH", data, place)
        value = data[place + 4 : place + 2 + size]
        for name, prefix in (
            ("exif", b"Exif\0\0"),
            ("xmp", b"http://ns.adobe.com/xap/1.0/\0"),
            ("iptc", b"Photoshop 3.0\0"),
        ):
            if value.startswith(prefix):
                found[name] = value.removeprefix(prefix)
        if marker == 0xE2 and value.startswith(b"ICC_PROFILE\0"):
            profile += value[14:]
        if marker == 0xE0:
            found["dpi"] = value[7:12]
        place += 2 + size
    unit, across, down = struct.unpack(">BHH", found.get("dpi", bytes(5)))
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    return Content(
        pixels.reshape(*pixels.shape[:2], -1),
        profile or None,
        found.get("exif", b""),
        found.get("xmp", b""),
        _iptc(found.get("iptc", b"")),
        (across, down) if unit == 1 else None,
    )


def read_webp(data: bytes) -> Content:
    """Read a WebP file: its chunks one by one, its pixels by OpenCV."""
    import cv2

    chunks, place = dict[bytes, bytes](), 12
    while place < len(data):
        (size,) = struct.unpack_from("<L", data, place + 4)
        chunks[data[place : place + 4]] = data[place + 8 : place + 8 + size]
        place += 8 + size + size % 2
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    order = [2, 1, 0, 3][: pixels.shape[2]]
    return Content(
        pixels[..., order],
        chunks.get(b"ICCP"),
        chunks.get(b"EXIF", b""),
        chunks.get(b"XMP ", b""),
        b"",
        None,
    )


READERS = {".png": read_png, ".tif": read_tiff, ".jpg": read_jpeg, ".webp": read_webp}
"""Readers by suffix."""
