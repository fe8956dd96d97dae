"""OUT/good, OUT/look and OUT/failed: links to the results, by their verdict."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from ..verdict import VERDICTS

FAILED = VERDICTS[-1]
"""Folder of edits with this verdict, and of photos that could not be edited."""


def sort_into_folders(folder: Path, results: Iterable[tuple[PurePosixPath, str, Path]]) -> None:
    """Make a link for each result in the folder of its verdict, and remove the links of earlier
    runs.

    Parameters
    ----------
    results : (path of the link, verdict, file that it leads to)
    """
    wanted = {folder / verdict / path: target for path, verdict, target in results}
    for verdict in VERDICTS:
        for path in list((folder / verdict).rglob("*")):
            if path not in wanted and _is_link(path):
                path.unlink()
    for link, target in wanted.items():
        _link(link, target)
    for verdict in VERDICTS:
        _remove_empty_folders(folder / verdict)


def _is_link(path: Path) -> bool:
    """Tell whether this module made a file. A person's own file in the folder stays."""
    return path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1)


def _link(link: Path, target: Path) -> None:
    """Make a link to a file; a hard link where the disk or the user may make no symbolic links."""
    link.parent.mkdir(parents=True, exist_ok=True)
    goal = os.path.relpath(target, link.parent)
    if link.is_symlink() and os.readlink(link) == goal:
        return
    if _is_link(link):
        link.unlink()
    elif link.exists():
        return
    try:
        link.symlink_to(goal)
    except OSError:
        os.link(target, link)


def _remove_empty_folders(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):
                path.rmdir()
