"""OUT/index.html: each photo before and after, sortable; one file that opens from disk."""

import base64
import hashlib
import html
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from PIL import Image, ImageOps

from .results_file import Entry

GALLERY = "index.html"

THUMBNAIL_SIDE = 320
"""Longest side of a thumbnail, in pixels."""

_QUALITY = 60
"""Quality of a thumbnail's WebP. The page holds two of them for each photo."""

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
    with suppress(*_UNREADABLE), Image.open(path) as image:
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
    rows = [_row(work, entry) for entry in entries]
    # Whatever a name holds, it cannot end the script element.
    data = json.dumps(rows, ensure_ascii=True).replace("<", "\\u003c")
    page = _PAGE.read_text(encoding="utf-8")
    page = page.replace("{{title}}", html.escape(folder.resolve().name)).replace("{{rows}}", data)
    path = folder / GALLERY
    partial = path.with_suffix(".part")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path


def _row(work: Path, entry: Entry) -> dict[str, object]:
    """Return what the page shows of a photo."""
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
        **{stage: _data_url(_thumbnail(work, entry["photo"], stage)) for stage in STAGES},
    }


def _thumbnail(folder: Path, photo: str, stage: str) -> Path:
    name = hashlib.sha256(photo.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return folder / "thumbnails" / f"{name}-{stage}.webp"


def _data_url(path: Path) -> str | None:
    if not path.is_file():
        return None
    return f"data:image/webp;base64,{base64.b64encode(path.read_bytes()).decode()}"
