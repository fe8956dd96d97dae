"""The photos of a batch: from a folder, a CSV, or a JSONL file."""

import csv
import fnmatch
import glob
import json
import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import ArtMancerError
from ..images import PHOTO_SUFFIXES

IMAGE_FIELDS = ("input_image", "mask_image", "reference_image", "reference_mask_R")
"""Fields of a row that name an image: its path, relative to the list, or its URL."""

EDITED = "edited"
"""Folder of the results in OUT."""

DEFAULT_MASK_PATTERN = "{stem}_mask.*"
"""File name of a photo's mask in a folder."""


@dataclass(frozen=True)
class Photo:
    """A photo to edit.

    Attributes
    ----------
    name : its path relative to the folder, or its row in the list; no other photo has it
    output : path of the result, relative to the folder of results
    fields : fields of POST /api/generate; images are paths or URLs. A value is text in a CSV
    """

    name: str
    output: PurePosixPath
    fields: Mapping[str, Any]

    @property
    def sources(self) -> dict[str, str]:
        """The path or URL of each image, by field."""
        return {name: str(self.fields[name]) for name in IMAGE_FIELDS if name in self.fields}


def read_photos(source: Path, out: Path, mask_pattern: str | None, suffix: str) -> list[Photo]:
    """List the photos of a folder, a CSV or a JSONL file.

    Parameters
    ----------
    out : the folder of results; if it is in the folder of photos, its files are no photos
    mask_pattern : file name of a photo's mask beside it, as a glob pattern in which {stem} is the
        photo's name without its suffix; None: the photos have no masks
    suffix : suffix of the results, such as ".png"

    Raises
    ------
    ArtMancerError : not_found, invalid_request
    """
    rows: Iterable[tuple[str, dict[str, Any]]]
    if source.is_dir():
        rows = _folder_rows(source, out, mask_pattern)
    elif not source.is_file():
        raise ArtMancerError(
            "not_found", f"'{source}' does not exist. Name a folder, a CSV or a JSONL file."
        )
    elif source.suffix.lower() == ".csv":
        rows = _numbered(source, _csv_rows(source))
    elif source.suffix.lower() in (".jsonl", ".ndjson"):
        rows = _numbered(source, _jsonl_rows(source))
    else:
        raise ArtMancerError(
            "invalid_request",
            f"'{source.name}' is no folder, .csv or .jsonl file. To edit one photo, use "
            "`artmancer edit`.",
        )
    return _with_outputs(rows, suffix)


def _folder_rows(
    folder: Path, out: Path, mask_pattern: str | None
) -> list[tuple[str, dict[str, Any]]]:
    """Return (name, fields) of each photo in a folder and the folders below it."""
    results = out.resolve()
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in PHOTO_SUFFIXES
        and results not in path.resolve().parents
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    find = _Masks(mask_pattern).of if mask_pattern else None
    masks = {path: find(path) for path in files} if find else {}
    is_mask = {mask for mask in masks.values() if mask}
    return [
        (
            path.relative_to(folder).as_posix(),
            {
                "input_image": str(path),
                **({"mask_image": str(mask)} if (mask := masks.get(path)) else {}),
            },
        )
        for path in files
        if path not in is_mask
    ]


class _Masks:
    """The masks beside photos. Each folder is listed once.

    Parameters
    ----------
    pattern : see read_photos
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._prefix = pattern.partition("{stem}")[0]
        self._names: dict[Path, list[str]] = {}

    def of(self, photo: Path) -> Path | None:
        """Return the mask of a photo, or None.

        Raises
        ------
        ArtMancerError : invalid_request
        """
        # What a malformed pattern raises, in str.format and in Path.glob.
        try:
            pattern = self._pattern.format(stem=glob.escape(photo.stem))
            if "/" in pattern:
                paths = list(photo.parent.glob(pattern))
            else:
                names = fnmatch.filter(self._candidates(photo), pattern)
                paths = [photo.with_name(name) for name in names]
        except (KeyError, IndexError, ValueError, NotImplementedError):
            raise ArtMancerError(
                "invalid_request",
                f"'{self._pattern}' is no pattern of a mask's file name; expected one such as "
                f"'{DEFAULT_MASK_PATTERN}'. Correct --masks.",
            ) from None
        found = sorted(
            path for path in paths if path.suffix.lower() in PHOTO_SUFFIXES and path != photo
        )
        return found[0] if found else None

    def _candidates(self, photo: Path) -> list[str]:
        """Return the files beside a photo whose names begin as its mask's does."""
        folder = photo.parent
        if folder not in self._names:
            self._names[folder] = sorted(os.listdir(folder), key=os.path.normcase)
        names = self._names[folder]
        if "{stem}" not in self._pattern or glob.has_magic(self._prefix):
            return names
        prefix = os.path.normcase(self._prefix + photo.stem)
        first = bisect_left(names, prefix, key=os.path.normcase)
        last = first
        while last < len(names) and os.path.normcase(names[last]).startswith(prefix):
            last += 1
        return names[first:last]


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    # Excel writes a byte order mark.
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                if None in row:
                    raise ArtMancerError(
                        "invalid_request",
                        f"{path.name} has a row with more cells than its first row has names: "
                        f"'{row[None][0]}'. Put a text with commas in quotes.",
                    )
                # An empty cell is a field that was not given.
                yield {name: value for name, value in row.items() if value}
    except (csv.Error, UnicodeDecodeError) as error:
        raise _unreadable(path, "CSV in UTF-8", error) from None


def _jsonl_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise _unreadable(path, f"JSON in line {number}", error) from None
            if not isinstance(row, dict):
                raise _unreadable(path, f"an object in line {number}", type(row).__name__)
            yield {name: value for name, value in row.items() if value is not None}


def _unreadable(path: Path, expected: str, problem: object) -> ArtMancerError:
    return ArtMancerError(
        "invalid_request", f"{path.name} cannot be read: expected {expected}, got: {problem}."
    )


def _numbered(source: Path, rows: Iterable[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name each row after its photo, and resolve its paths against the list's folder."""
    seen: Counter[str] = Counter()
    for number, fields in enumerate(rows, 1):
        # As in a request over HTTP.
        row = {name: _by_url(value) for name, value in fields.items()}
        photo = row.get("input_image")
        if not isinstance(photo, str):
            raise ArtMancerError(
                "invalid_request",
                f"Row {number} of {source.name} has no input_image; expected the path or URL of a "
                "photo.",
            )
        seen[photo] += 1
        name = photo if seen[photo] == 1 else f"{photo} ({seen[photo]})"
        yield (
            name,
            {
                field: _resolve(source.parent, value) if field in IMAGE_FIELDS else value
                for field, value in row.items()
            },
        )


def _by_url(value: Any) -> Any:
    """Return the URL of {"url": URL}; any other value stays as it is."""
    return value["url"] if isinstance(value, dict) and value.keys() == {"url"} else value


def _resolve(folder: Path, image: Any) -> Any:
    """Return the path of an image relative to a folder; a URL stays as it is."""
    return image if not isinstance(image, str) or is_url(image) else str(folder / image)


def is_url(image: str) -> bool:
    """Tell whether an image is named by its URL."""
    return image.startswith(("https://", "http://"))


def _with_outputs(rows: Iterable[tuple[str, dict[str, Any]]], suffix: str) -> list[Photo]:
    """Choose a path below the folder of results for each photo."""
    taken: set[str] = set()
    photos = []
    for name, fields in rows:
        path = _relative(name)
        output = path.with_suffix(suffix)
        # Some disks do not tell a.png from A.png.
        number = 1
        while str(output).lower() in taken:
            number += 1
            output = path.with_name(f"{path.name} ({number}){suffix}")
        taken.add(str(output).lower())
        photos.append(Photo(name, output, fields))
    return photos


def _relative(name: str) -> PurePosixPath:
    """Return a photo's name as a path that stays below EDITED."""
    path = PurePosixPath(name.partition("://")[2].partition("?")[0] if is_url(name) else name)
    parts = [part for part in path.parts if part not in ("/", "..", ".")]
    return PurePosixPath(EDITED, *(parts or ["photo"]))
