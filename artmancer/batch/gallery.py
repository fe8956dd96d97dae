"""OUT/index.html: each photo before and after, sortable; one file that opens from disk."""

import base64
import hashlib
import html
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from PIL import Image, ImageOps

from ..images.formats import readable
from .results_file import Entry

GALLERY = "index.html"

THUMBNAIL_SIDE = 320
"""Longest side of a thumbnail, in pixels."""

_QUALITY = 60
"""Quality of a thumbnail's WebP. The page holds two of them for each photo: 25 kB."""

MANY_PHOTOS = 1000
"""Photos from which the thumbnails in the page are smaller, 5 kB a photo, so that a browser opens
it.
"""

_SMALL_SIDE, _SMALL_QUALITY = 96, 40
"""Longest side and quality of these thumbnails."""

_PAGE = Path(__file__).with_name("gallery.html")

STAGES = ("before", "after")

_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""Exceptions of Pillow for a file that is no image, or a broken one."""


def save_thumbnail(folder: Path, photo: str, stage: str, path: Path) -> None:
    """Store a thumbnail of a photo, for the gallery of this run and of later ones. A file that
    cannot be read gets none.

    Parameters
    ----------
    stage : one of STAGES
    """
    with suppress(*_UNREADABLE), Image.open(path, formats=readable()) as image:
        # A JPEG is decoded at a smaller size: quicker.
        image.draft("RGB", (THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        small = ImageOps.exif_transpose(image)
        small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        thumbnail = _thumbnail(folder, photo, stage)
        thumbnail.parent.mkdir(exist_ok=True)
        small.convert("RGB").save(thumbnail, "WEBP", quality=_QUALITY)


def write_gallery(folder: Path, work: Path, entries: Iterable[Entry]) -> Path:
    """Write the gallery of all results into the folder of results; return its path.

    Parameters
    ----------
    work : the folder of the thumbnails
    """
    entries = list(entries)
    encode = _small_data_url if len(entries) > MANY_PHOTOS else _data_url
    rows = [_row(work, entry, encode) for entry in entries]
    # Whatever a name holds, it cannot end the script element.
    data = json.dumps(rows, ensure_ascii=True).replace("<", "\\u003c")
    page = _PAGE.read_text(encoding="utf-8")
    page = page.replace("{{title}}", html.escape(folder.resolve().name)).replace("{{rows}}", data)
    path = folder / GALLERY
    partial = path.with_suffix(".part")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path


def _row(work: Path, entry: Entry, encode: Callable[[Path], str | None]) -> dict[str, object]:
    """Return what the page shows of a photo.

    Parameters
    ----------
    encode : returns the URL of a thumbnail in the page; None: there is none
    """
    report = entry["report"] or {}
    reasons = [*entry["verdict_reasons"]] or [*(report.get("notes") or [])]
    return {
        "name": entry["photo"],
        "link": quote(entry["output"]) if entry["status"] == "done" else None,
        "verdict": entry["verdict"] or "error",
        "text": entry["error"]["detail"] if entry["error"] else " ".join(reasons),
        "drift": report.get("drift_px"),
        "spill": report.get("spill"),
        "seconds": entry.get("seconds"),
        **{stage: encode(_thumbnail(work, entry["photo"], stage)) for stage in STAGES},
    }


def _thumbnail(folder: Path, photo: str, stage: str) -> Path:
    name = hashlib.sha256(photo.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return folder / "thumbnails" / f"{name}-{stage}.webp"


def _data_url(path: Path) -> str | None:
    if not path.is_file():
        return None
    return f"data:image/webp;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _small_data_url(path: Path) -> str | None:
    """Return the URL of a smaller thumbnail, which later runs find beside the other."""
    small_path = path.with_suffix(".small.webp")
    if path.is_file() and not _is_newer(small_path, path):
        with suppress(*_UNREADABLE), Image.open(path) as image:
            small = image.convert("RGB")
            small.thumbnail((_SMALL_SIDE, _SMALL_SIDE))
            small.save(small_path, "WEBP", quality=_SMALL_QUALITY)
    return _data_url(small_path)


def _is_newer(path: Path, other: Path) -> bool:
    return path.is_file() and path.stat().st_mtime_ns >= other.stat().st_mtime_ns
