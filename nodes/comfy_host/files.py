"""Images in ComfyUI's temporary and output folders."""

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui
from torch import Tensor

from ...artmancer import images
from ...artmancer.endpoint_protocol import RESULT_FOLDER, UPLOAD_FOLDER

PREVIEW_SIDE = 1536
"""Longest side of a preview in pixels."""


def save_preview(image: Tensor, name: str, digest: str = "") -> ui.SavedResult:
    """Write the first image of an IMAGE or MASK into the temporary folder, scaled down for the
    browser.

    Parameters
    ----------
    name : end of the file's name, with the suffix
    digest : hash of the content, see cache.digest; a file of the same hash is not written again
    """
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    file = f"artmancer_{(digest or uuid.uuid4().hex)[-12:]}_{name}"
    if not (digest and (folder / file).is_file()):
        preview = images.to_pil(image[0])
        preview.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
        preview.save(folder / file, quality=95)
    return ui.SavedResult(file, "", io.FolderType.temp)


def save_before_after(before: Tensor, after: Tensor) -> dict[str, list[ui.SavedResult]]:
    """Write the first images of two IMAGEs as previews for the node's before/after slider."""
    return {
        "artmancer_before": [save_preview(before[:1], "before.jpg")],
        "artmancer_after": [save_preview(after[:1], "after.jpg")],
    }


def save_output(image: Tensor, bits: int) -> ui.SavedResult:
    """Write one image [H, W, 3 or 4] or mask [H, W] into the output folder as the next numbered
    PNG, with 8 or 16 bits a channel.
    """
    folder = folder_paths.get_output_directory()
    folder, stem, number, subfolder, _ = folder_paths.get_save_image_path("ArtMancer", folder)
    name = f"{stem}_{number:05}_.png"
    images.save(Path(folder) / name, image, bits=bits)
    return ui.SavedResult(name, subfolder, io.FolderType.output)


def save_result(image: Tensor, bits: int) -> ui.SavedResult:
    """Write one image or mask into the temporary folder for the gateway, under a name that is
    never used again; see `save_output`.
    """
    folder = Path(folder_paths.get_temp_directory()) / RESULT_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{uuid.uuid4().hex}.png"
    images.save(folder / name, image, bits=bits)
    return ui.SavedResult(name, RESULT_FOLDER, io.FolderType.temp)


def temp_files() -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the pack's own files in the temporary folder: uploads, results and previews. Links are
    not followed.
    """
    temp = Path(folder_paths.get_temp_directory())
    for pattern in ("artmancer_*", f"{UPLOAD_FOLDER}/*", f"{RESULT_FOLDER}/*"):
        for path in temp.glob(pattern):
            with suppress(FileNotFoundError):  # a result is renamed once it is written
                status = path.lstat()
                if stat.S_ISREG(status.st_mode) and (
                    path.parent == temp or not path.parent.is_symlink()
                ):
                    yield path, status
