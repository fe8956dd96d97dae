"""Inventory of the model volume: list, verify, upload, download.

    base_model/                   Qwen-Image-Edit, in diffusers format
    insertion_cp.safetensors ...  the variants' checkpoints, here or in checkpoints/
    fastsam/  rembg/              the light worker's models

Standard library only: `modal run` runs it on the deployer's machine, which need not have more.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .. import models
from ..safetensors_header import file_parts, read_header
from ..variants import CHECKPOINT_FILES

BASE, FASTSAM, REMBG = "base_model", "fastsam", "rembg"
"""Folders on the volume."""

OLD_CHECKPOINTS = "checkpoints"
"""Folder that earlier uploads put checkpoints into."""

PATHS = f"""\
artmancer:
    base_path: {{root}}
    diffusers: .
    artmancer: |
        .
        {OLD_CHECKPOINTS}
    fastsam: {FASTSAM}
    rembg: {REMBG}
"""
"""ComfyUI's extra_model_paths.yaml for the volume."""

_LORA_KEYS = ("lora_A", "lora_down", "lora.down")
"""Parts of a tensor's name, one of which every LoRA has."""


class Volume(Protocol):
    """The volume, mounted or remote."""

    def sizes(self) -> dict[str, int]:
        """Return every file's size in bytes, by path."""
        ...

    def read(self, path: str) -> Iterable[bytes]:
        """Yield a file's content in parts, so that its beginning can be read alone."""
        ...


class LocalVolume:
    """A mounted volume, or a folder in its place."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def sizes(self) -> dict[str, int]:
        files = (path for path in self.root.rglob("*") if path.is_file())
        return {path.relative_to(self.root).as_posix(): path.stat().st_size for path in files}

    def read(self, path: str) -> Iterable[bytes]:
        with (self.root / path).open("rb") as file:
            yield from file_parts(file)


@dataclass(frozen=True)
class Inventory:
    """The models on the volume.

    Attributes
    ----------
    base : the base model is complete
    checkpoints : path of each variant's checkpoint, or None
    fastsam, rembg : file names
    missing : what is missing, and the command that brings it
    broken : files that are not whole, and why
    """

    base: bool
    checkpoints: Mapping[str, str | None]
    fastsam: tuple[str, ...]
    rembg: tuple[str, ...]
    missing: tuple[str, ...]
    broken: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return it as lines of text for a person."""
        table = {
            "base": BASE if self.base else None,
            **self.checkpoints,
            "fastsam": ", ".join(self.fastsam) or None,
            "rembg": ", ".join(self.rembg) or None,
        }
        width = max(map(len, table))
        heavy = "edits with Qwen-Image-Edit" if self.base else "edits with the draft editor"
        light = "FastSAM" if self.fastsam else "the draft (GrabCut)"
        return [
            *(f"{name.ljust(width)}  {file or 'missing'}" for name, file in table.items()),
            *(f"broken: {line}" for line in self.broken),
            *(f"missing: {line}" for line in self.missing),
            f"heavy {heavy}; light finds objects with {light}",
        ]


def take_inventory(volume: Volume) -> Inventory:
    """List the models on the volume and check the checkpoints' headers."""
    sizes = volume.sizes()
    checkpoints = {
        variant: _first_there([path for name in names for path in _checkpoint_paths(name)], sizes)
        for variant, names in CHECKPOINT_FILES.items()
    }
    broken = [
        f"{path} {problem}"
        for path in checkpoints.values()
        if path and (problem := lora_problem(volume.read(path), sizes[path]))
    ]
    missing_base = _missing_base_files(volume, sizes)
    missing = []
    if missing_base:
        is_partial = f"{BASE}/model_index.json" in sizes
        files = f" (without {', '.join(missing_base[:3])})" if is_partial else ""
        missing.append(f"{BASE}{files}: modal run modal_comfy.py::setup")
    for variant, path in checkpoints.items():
        if path is None:
            missing.append(
                f"{' or '.join(CHECKPOINT_FILES[variant])}: "
                "modal run modal_comfy.py::upload --dir FOLDER"
            )
    light = {
        folder: tuple(
            sorted(path.partition("/")[2] for path in sizes if path.startswith(f"{folder}/"))
        )
        for folder in (FASTSAM, REMBG)
    }
    missing += [
        f"{folder}: modal run modal_comfy.py::setup" for folder, files in light.items() if not files
    ]
    return Inventory(
        not missing_base,
        checkpoints,
        light[FASTSAM],
        light[REMBG],
        tuple(missing),
        tuple(broken),
    )


def _checkpoint_paths(name: str) -> tuple[str, str]:
    return name, f"{OLD_CHECKPOINTS}/{name}"


def _first_there(paths: Iterable[str], sizes: Mapping[str, int]) -> str | None:
    return next((path for path in paths if path in sizes), None)


def _missing_base_files(volume: Volume, sizes: Mapping[str, int]) -> list[str]:
    """List the files of the base that are not there, by its own index files."""
    needed = {f"{BASE}/model_index.json"}
    for path in sizes:
        if path.startswith(f"{BASE}/") and path.endswith(".safetensors.index.json"):
            files = json.loads(b"".join(volume.read(path)))["weight_map"].values()
            needed |= {f"{path.rpartition('/')[0]}/{name}" for name in files}
    return sorted(needed - sizes.keys())


def lora_problem(parts: Iterable[bytes], size: int) -> str | None:
    """Return why a file is not a whole LoRA for Qwen-Image-Edit, by its header and its size; None:
    it is one.

    Parameters
    ----------
    parts : the file's content from its beginning; no more is read than the header
    """
    try:
        header = read_header(parts)
        names = header.tensors
        first = min(names)
    except ValueError:
        return "is no safetensors file. Export it again"
    if size != header.file_size:
        return f"has {size:,} bytes, but by its header {header.file_size:,}. Copy it again"
    if not any(
        "transformer_blocks" in name and any(key in name for key in _LORA_KEYS) for name in names
    ):
        return f"is no LoRA for Qwen-Image-Edit (it has {first!r}). Choose another file"
    return None


def upload(
    folder: Path, volume: Volume, put: Callable[[Mapping[str, Path]], None]
) -> tuple[list[str], bool]:
    """Upload the checkpoints of a folder to the volume and verify what arrived.

    Parameters
    ----------
    put : uploads files, by their path on the volume

    Returns
    -------
    lines of text for a person, and whether everything is well
    """
    lines, good, source = [], {}, LocalVolume(folder)
    for path in sorted(folder.glob("*.safetensors")):
        if problem := lora_problem(source.read(path.name), path.stat().st_size):
            lines.append(f"not sent: {path.name} {problem}")
        else:
            good[path.name] = path
    if not good and not lines:
        lines.append(f"There is no .safetensors file in '{folder}'. Name the folder with --dir.")
    put(good)
    sizes = volume.sizes()
    all_well = bool(good) and not lines
    for name, path in good.items():
        size = path.stat().st_size
        arrived = sizes.get(name) == size and not lora_problem(volume.read(name), size)
        lines.append(
            f"sent: {name}, {size:,} bytes"
            if arrived
            else f"did not arrive whole: {name}. Send it again"
        )
        all_well &= arrived
    return [*lines, *take_inventory(volume).lines()], all_well


def setup(root: Path, force: bool, downloads: Mapping[str, Callable[[Path], object]]) -> list[str]:
    """Download the models that are missing; return lines of text for a person.

    Parameters
    ----------
    root : folder where the volume is mounted
    force : also download what is there
    downloads : a function for each folder, as in DOWNLOADS
    """
    lines = []
    for name, download in downloads.items():
        inventory = take_inventory(LocalVolume(root))
        present = {
            BASE: inventory.base,
            FASTSAM: bool(inventory.fastsam),
            REMBG: bool(inventory.rembg),
        }[name]
        if present and not force:
            lines.append(f"kept: {name}")
        else:
            download(root / name)
            lines.append(f"fetched: {name}")
    return [*lines, *take_inventory(LocalVolume(root)).lines()]


def fetch_rembg(folder: Path) -> None:
    """Download u2net, whose license lets everybody use it; rembg checks its checksum."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["U2NET_HOME"] = str(folder)
    from rembg.sessions.u2net import U2netSession

    U2netSession.download_models()


DOWNLOADS: Mapping[str, Callable[[Path], object]] = {
    BASE: models.fetch_base,
    FASTSAM: models.fetch_fastsam,
    REMBG: fetch_rembg,
}
"""Functions that download each model into its folder, pinned and checked."""
