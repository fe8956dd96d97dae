"""Inventory of the model volume: list, verify, upload, download.

    base_model/                   Qwen-Image-Edit, in diffusers format
    insertion_cp.safetensors ...  the variants' checkpoints, here or in checkpoints/
    home.json ...                 model sets, and in the folders of ComfyUI's names their files:
    diffusion_models/  text_encoders/  vae/  loras/
    inpaint/                      LaMa, for removals
    fastsam/  rembg/              the light worker's models

Standard library only: `modal run` uses it on the deployer's machine, where nothing else has to be
installed.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from .. import model_sets, models
from ..errors import ArtMancerError
from ..folders import LAMA_FILE
from ..safetensors_header import file_parts, read_header
from ..variants import CHECKPOINT_FILES

BASE, LAMA, FASTSAM, REMBG = "base_model", "inpaint", "fastsam", "rembg"
"""Folders on the volume: the heavy worker's base model and LaMa, and the light worker's models."""

OLD_CHECKPOINTS = "checkpoints"
"""Folder on the volume that earlier versions uploaded checkpoints to."""

PATHS = f"""\
artmancer:
    base_path: {{root}}
    diffusers: .
    artmancer: |
        .
        {OLD_CHECKPOINTS}
    diffusion_models: |
        diffusion_models
        unet
    text_encoders: |
        text_encoders
        clip
    vae: vae
    loras: loras
    inpaint: {LAMA}
    fastsam: {FASTSAM}
    rembg: {REMBG}
"""
"""ComfyUI's extra_model_paths.yaml for the volume."""

_LORA_KEYS = ("lora_", "lora.down", "lokr_", "hada_", ".diff")
"""Parts of tensor names; every LoRA, LoKr, LoHa and difference has tensors with one of them."""


class Volume(Protocol):
    """The model volume, mounted or remote."""

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every file, by path."""
        ...

    def read(self, path: str) -> Iterable[bytes]:
        """Yield a file's content in parts, so that a caller can read only its beginning."""
        ...


class LocalVolume:
    """A mounted volume, or any other local folder."""

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
    base : True if the base model is complete
    checkpoints : path of each variant's checkpoint; None if it is missing
    lama, fastsam, rembg : file names in the folders LAMA, FASTSAM and REMBG
    model_sets : by name of a model set the reason why it cannot be loaded; "": none
    missing : a line of text for each missing model, with the command that adds it
    broken : a line of text for each checkpoint that cannot be used, with the reason
    """

    base: bool
    checkpoints: Mapping[str, str | None]
    lama: tuple[str, ...]
    fastsam: tuple[str, ...]
    rembg: tuple[str, ...]
    model_sets: Mapping[str, str]
    missing: tuple[str, ...]
    broken: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the inventory as lines of text for a person."""
        table = {
            "base": BASE if self.base else None,
            **self.checkpoints,
            "lama": ", ".join(self.lama) or None,
            "fastsam": ", ".join(self.fastsam) or None,
            "rembg": ", ".join(self.rembg) or None,
            "model sets": ", ".join(self.model_sets) or "none",
        }
        width = max(map(len, table))
        editor = "Qwen-Image-Edit" if self.base else "the draft editor"
        segmenter = "FastSAM" if self.fastsam else "GrabCut"
        return [
            *(f"{name.ljust(width)}  {file or 'missing'}" for name, file in table.items()),
            *(f"broken: {line}" for line in self.broken),
            *(f"broken: {problem}" for problem in self.model_sets.values() if problem),
            *(f"missing: {line}" for line in self.missing),
            f"Edits are made by {editor}. Objects are found by {segmenter}.",
        ]


def take_inventory(volume: Volume) -> Inventory:
    """List the models on the volume and check the headers of the checkpoints."""
    sizes = volume.sizes()
    checkpoints = {
        variant: _find_checkpoint(names, sizes) for variant, names in CHECKPOINT_FILES.items()
    }
    broken = [
        f"{path} {problem}"
        for path in checkpoints.values()
        if path and (problem := lora_problem(volume.read(path), sizes[path]))
    ]
    missing_base = _missing_base_files(volume, sizes)
    names_by_folder = {folder: _file_names(folder, sizes) for folder in (LAMA, FASTSAM, REMBG)}
    # A download that was killed leaves a part under another name.
    names_by_folder[LAMA] = tuple(name for name in names_by_folder[LAMA] if name == LAMA_FILE)
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
    for folder, names in names_by_folder.items():
        if not names:
            missing.append(f"{folder}: modal run modal_comfy.py::setup")
    return Inventory(
        base=not missing_base,
        checkpoints=checkpoints,
        lama=names_by_folder[LAMA],
        fastsam=names_by_folder[FASTSAM],
        rembg=names_by_folder[REMBG],
        model_sets=_set_problems(volume, sizes),
        missing=tuple(missing),
        broken=tuple(broken),
    )


def _set_problems(volume: Volume, sizes: Mapping[str, int]) -> dict[str, str]:
    """Map the names of the model sets on the volume to the reasons why they cannot be loaded; "":
    none.
    """
    files = {
        kind: {
            name: Path(folder, name)
            for folder in folders
            # Workers have no loader for GGUF files.
            for name in _set_file_names(folder, sizes)
            if not name.endswith(model_sets.GGUF)
        }
        for kind, folders in model_sets.FILE_FOLDERS.items()
    }
    problems = {}
    for path, name in _set_names(sizes).items():
        try:
            model_set = model_sets.parse(name, b"".join(volume.read(path)))
            model_sets.check_files(model_set, files)
            problems[name] = ""
        except ArtMancerError as error:
            problems[name] = str(error)
    return problems


def _set_names(paths: Iterable[str]) -> dict[str, str]:
    """Map the paths of the model sets on the volume to their names."""
    names = {path: path.removesuffix(".json") for path in paths if path.endswith(".json")}
    return {path: name for path, name in names.items() if model_sets.is_name(name)}


def _set_file_names(folder: str, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """List the files that a set can name in a folder of ComfyUI's models."""
    if folder == model_sets.FOLDER:
        checkpoints = _file_names(OLD_CHECKPOINTS, sizes)
        return (*(path for path in sizes if "/" not in path), *checkpoints)
    return _file_names(folder, sizes)


def _find_checkpoint(names: Iterable[str], sizes: Mapping[str, int]) -> str | None:
    """Return the path of the first of these files that is on the volume."""
    for name in names:
        for path in (name, f"{OLD_CHECKPOINTS}/{name}"):
            if path in sizes:
                return path
    return None


def _file_names(folder: str, sizes: Mapping[str, int]) -> tuple[str, ...]:
    prefix = f"{folder}/"
    return tuple(sorted(path.removeprefix(prefix) for path in sizes if path.startswith(prefix)))


def _missing_base_files(volume: Volume, sizes: Mapping[str, int]) -> list[str]:
    """List the missing files of the base model. Its index files list all files."""
    needed = {f"{BASE}/model_index.json"}
    for path in sizes:
        if path.startswith(f"{BASE}/") and path.endswith(".safetensors.index.json"):
            files = json.loads(b"".join(volume.read(path)))["weight_map"].values()
            needed |= {f"{path.rpartition('/')[0]}/{name}" for name in files}
    return sorted(needed - sizes.keys())


def lora_problem(parts: Iterable[bytes], size: int) -> str | None:
    """Return why a file is not a complete LoRA for Qwen-Image-Edit; None: it is one.

    Only the header and the size of the file are checked.

    Parameters
    ----------
    parts : content of the file from its beginning; only the header is read
    size : size of the file in bytes
    """
    try:
        header = read_header(parts)
        names = header.tensors
        first = min(names)
    except ValueError:
        return "is not a safetensors file. Export it again"
    if size != header.file_size:
        return f"has {size:,} bytes, but its header says {header.file_size:,}. Copy it again"
    if not any(
        "transformer_blocks" in name and any(key in name for key in _LORA_KEYS) for name in names
    ):
        return f"is not a LoRA for Qwen-Image-Edit (it has {first!r}). Choose another file"
    return None


def upload(
    folder: Path, volume: Volume, put: Callable[[Mapping[str, Path]], None]
) -> tuple[list[str], bool]:
    """Upload the checkpoints and the model sets of a folder to the volume and verify them there.

    Parameters
    ----------
    folder : local folder with .safetensors files, and model sets
    put : uploads local files, by their path on the volume

    Returns
    -------
    lines of text for a person, and whether every file was uploaded
    """
    lines = []
    checkpoints = {}
    source = LocalVolume(folder)
    for path in sorted(folder.glob("*.safetensors")):
        if problem := lora_problem(source.read(path.name), path.stat().st_size):
            lines.append(f"not uploaded: {path.name} {problem}")
        else:
            checkpoints[path.name] = path
    sets = {}
    for path in model_sets.find([folder]).values():
        try:
            model_sets.read(path)
            sets[path.name] = path
        except ArtMancerError as error:
            lines.append(f"not uploaded: {path.name}. {error}")
    files = {**checkpoints, **sets}
    if not files and not lines:
        lines.append(
            f"There is no .safetensors file and no model set in '{folder}'. Choose the folder with "
            "--dir."
        )
    put(files)
    sizes = volume.sizes()
    success = bool(files) and not lines
    for name, path in files.items():
        size = path.stat().st_size
        problem = lora_problem(volume.read(name), size) if name in checkpoints else None
        if sizes.get(name) == size and not problem:
            lines.append(f"uploaded: {name}, {size:,} bytes")
        else:
            lines.append(f"incomplete on the volume: {name}. Upload it again")
            success = False
    return [*lines, *take_inventory(volume).lines()], success


def setup(
    root: Path, force: bool, only: str, downloads: Mapping[str, Callable[[Path], object]]
) -> tuple[list[str], bool]:
    """Download the models that are missing.

    Parameters
    ----------
    root : folder where the volume is mounted
    force : also download the models that are there
    only : the one folder to download; empty: all
    downloads : as DOWNLOADS

    Returns
    -------
    lines of text for a person, and whether `only` is a folder's name
    """
    if only and only not in downloads:
        return [f"--only is '{only}'; expected one of {', '.join(downloads)}."], False
    lines = []
    for name, download in downloads.items():
        if only not in ("", name):
            continue
        inventory = take_inventory(LocalVolume(root))
        present = {
            BASE: inventory.base,
            LAMA: bool(inventory.lama),
            FASTSAM: bool(inventory.fastsam),
            REMBG: bool(inventory.rembg),
        }[name]
        if present and not force:
            lines.append(f"kept: {name}")
        else:
            download(root / name)
            lines.append(f"downloaded: {name}")
    return [*lines, *take_inventory(LocalVolume(root)).lines()], True


def fetch_rembg(folder: Path) -> None:
    """Download u2net, whose license allows everybody to use it. rembg verifies its checksum."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["U2NET_HOME"] = str(folder)
    from rembg.sessions.u2net import U2netSession

    U2netSession.download_models()


DOWNLOADS: Mapping[str, Callable[[Path], object]] = {
    # Another base would change the results of deployments that are set up again.
    BASE: partial(models.fetch_base, name="qwen-2509"),
    LAMA: models.fetch_lama,
    FASTSAM: models.fetch_fastsam,
    REMBG: fetch_rembg,
}
"""Function that downloads each model into its folder: a pinned version, verified."""
