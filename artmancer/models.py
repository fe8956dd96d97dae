"""Inventory of the models on this machine, and their downloads.

Reads only the headers of files, and imports torch only for a download.
"""

from dataclasses import dataclass
from pathlib import Path

from . import model_sets, recipes
from .errors import ArtMancerError
from .folders import (
    LAMA_FILE,
    LAMA_FOLDERS,
    LORA_FOLDERS,
    SEGMENTER_FOLDERS,
    SEGMENTER_SUFFIXES,
    base_from_environment,
    comfyui_folder,
)
from .qwen import base_folder, checkpoints
from .variants import CHECKPOINT_FILES


@dataclass(frozen=True)
class BaseDownload:
    """A base model to download.

    Attributes
    ----------
    repository : its Hugging Face repository
    revision : commit of the repository that is downloaded
    size : its files together, in gigabytes
    """

    repository: str
    revision: str
    size: float


BASES = {
    "qwen-2511": BaseDownload(
        "Qwen/Qwen-Image-Edit-2511", "6f3ccc0b56e431dc6a0c2b2039706d7d26f22cb9", 57.7
    ),
    "qwen-2509": BaseDownload(
        "Qwen/Qwen-Image-Edit-2509", "d3968ef930e841f4c73640fb8afa3b306a78167e", 57.7
    ),
}
"""Base models by the name that `artmancer models fetch` takes."""

DEFAULT_BASE = "qwen-2511"

FASTSAM_URL = "https://github.com/ultralytics/assets/releases/download/v8.4.0/FastSAM-s.pt"
FASTSAM_SHA256 = "c9f78716a81c7aff0d608ccc73e1b82ab3aaad86005049f6a92106a0be6d0844"

LAMA_URL = "https://github.com/Sanster/models/releases/download/add_big_lama/big-lama.pt"
LAMA_SHA256 = "344c77bbcb158f17dd143070d1e789f38a66c04202311ae3a258ef66667a9ea9"
"""Hash of the file as several projects publish it that download it from LAMA_URL."""


@dataclass(frozen=True)
class FoundModel:
    """A model on this machine.

    Attributes
    ----------
    kind : "base"; "set"; the variant that a checkpoint is used for, by its file name or the
        environment; or "lora"
    path : its file, or its folder for a base
    note : metadata of its file, or what is wrong with it
    """

    kind: str
    path: Path
    note: str = ""


def inventory() -> list[FoundModel]:
    """List the bases and LoRAs in ComfyUI's folders, and those that MODEL_PATH and MODEL_FILE...
    name.
    """
    files = lora_files()
    variants = {checkpoints.find(variant, files): variant for variant in CHECKPOINT_FILES}
    hidden = checkpoints.hidden_files(files)
    # A checkpoint from the environment may be outside ComfyUI's folders.
    paths = dict.fromkeys([*files, *(path for path in variants if path)])
    # MODEL_PATH may name a folder that is no base: its note says what is wrong.
    folders = dict.fromkeys([*filter(None, [base_from_environment()]), *base_folders()])
    inventory = [FoundModel("base", folder, base_problem(folder)) for folder in folders]
    if path := lama():
        inventory.append(FoundModel("lama", path))
    inventory += [FoundModel("set", path, set_note(path)) for path in set_paths().values()]
    for path in paths:
        # The environment may name a file that the order of the folders hides.
        if path in hidden and path not in variants:
            note = checkpoints.hidden_note(path, hidden[path])
            inventory.append(FoundModel("lora", path, note))
        else:
            inventory.append(_describe(path, variants.get(path, "lora")))
    return inventory


def set_note(path: Path) -> str:
    """Describe a model set: its files with their sizes, and what is missing, or wrong with it."""
    try:
        model_set = model_sets.read(path)
    except ArtMancerError as error:
        return str(error)
    files = set_files()
    parts = [
        f"{file.name} {files[file.kind][file.name].stat().st_size / 1e9:.1f} GB"
        for file in model_set.files()
        if file.name in files[file.kind]
    ]
    return "; ".join([", ".join(parts), set_problem(model_set, files)]).strip("; ")


def _describe(path: Path, kind: str) -> FoundModel:
    try:
        checkpoint = checkpoints.read(path)
    except ArtMancerError as error:
        return FoundModel(kind, path, str(error))
    metadata = {
        "recipe": checkpoint.recipe,
        "resolution": checkpoint.resolution,
        "prompt": checkpoint.prompt,
    }
    parts = [f"{name} {value}" for name, value in metadata.items() if value]
    choice = recipes.choose(None, checkpoint.recipe, path.name)
    if choice.reason == "file name":
        parts.insert(0, f"recipe {choice.name} by its file name")
    return FoundModel(kind, path, ", ".join(parts))


def base_folders() -> list[Path]:
    """List the folders of base models: the one that MODEL_PATH names, then ComfyUI's, the newest
    release first.
    """
    folders = checkpoints.bases(sorted((comfyui_folder() / "models" / "diffusers").glob("*")))
    if path := base_from_environment():
        folders = [*checkpoints.bases([path]), *folders]
    return list(dict.fromkeys(folders))


def base() -> Path | None:
    """Return the folder of the base model to use: MODEL_PATH, even where it holds no base model, or
    the first in ComfyUI's folders.
    """
    return base_from_environment() or next(iter(base_folders()), None)


def base_problem(folder: Path) -> str:
    """Return why a folder cannot be loaded as a base, as the loader says it; "" where its files and
    their headers show no reason.
    """
    try:
        base_folder.check(folder)
    except ArtMancerError as error:
        return str(error)
    return ""


def checkpoint(variant: str) -> tuple[Path | None, tuple[str, ...]]:
    """Return the variant's checkpoint on this machine, and notes on files it hides."""
    files = lora_files()
    path = checkpoints.find(variant, files)
    return path, checkpoints.notes(path, files)


def lora_files() -> list[Path]:
    """List the safetensors files in ComfyUI's LoRA folders, in the folders' order."""
    models = comfyui_folder() / "models"
    return [
        path for name in LORA_FOLDERS for path in sorted((models / name).rglob("*.safetensors"))
    ]


def lama() -> Path | None:
    """Return LaMa's file in ComfyUI's folders."""
    models = comfyui_folder() / "models"
    paths = (models / folder / LAMA_FILE for folder in LAMA_FOLDERS)
    return next((path for path in paths if path.is_file()), None)


def require_lama() -> Path:
    """Return LaMa's file in ComfyUI's folders.

    Raises
    ------
    ArtMancerError : checkpoint_missing
    """
    if path := lama():
        return path
    expected = comfyui_folder() / "models" / LAMA_FOLDERS[0] / LAMA_FILE
    raise ArtMancerError(
        "checkpoint_missing",
        f"The lama editor needs '{expected}', which `artmancer models fetch big-lama` downloads "
        "(206 MB); --editor draft needs no file.",
    )


def segmenter() -> Path | None:
    """Return the first of Smart Mask's models in ComfyUI's folders."""
    models = comfyui_folder() / "models"
    paths = (
        path
        for folder in SEGMENTER_FOLDERS
        for path in sorted((models / folder).glob("*"))
        if path.suffix in SEGMENTER_SUFFIXES
    )
    return next(paths, None)


def set_paths(comfyui: Path | None = None) -> dict[str, Path]:
    """Map the names of model sets to their files.

    Parameters
    ----------
    comfyui : folder with the folder models; None: ComfyUI's
    """
    return model_sets.find([(comfyui or comfyui_folder()) / "models" / model_sets.FOLDER])


def set_files() -> model_sets.Files:
    """List the files in ComfyUI's folders that a model set can name."""
    models = comfyui_folder() / "models"
    files: dict[str, dict[str, Path]] = {}
    for kind, folders in model_sets.FILE_FOLDERS.items():
        named = files[kind] = {}
        for folder in folders:
            for path in sorted((models / folder).rglob("*")):
                if path.suffix in model_sets.SUFFIXES and path.is_file():
                    named.setdefault(path.relative_to(models / folder).as_posix(), path)
    return files


def set_problem(model_set: model_sets.ModelSet, files: model_sets.Files) -> str:
    """Return why a set does not run with ComfyUI's files on this machine; "": it does."""
    if absent := model_sets.missing(model_set, files):
        return f"missing: {model_sets.describe(absent)}"
    gguf = [file.name for file in model_set.files() if file.name.endswith(model_sets.GGUF)]
    packs = (comfyui_folder() / "custom_nodes").glob("*")
    if gguf and not any("gguf" in pack.name.lower() for pack in packs):
        return f"no loader for '{gguf[0]}': {model_sets.GGUF_ADVICE}"
    return ""


def default_folder(kind: str) -> Path:
    """Return ComfyUI's folder for models of a kind: "diffusers", "fastsam" or "inpaint".

    Raises
    ------
    ArtMancerError : comfyui_unavailable
    """
    comfyui = comfyui_folder()
    if not (comfyui / "main.py").is_file():
        raise ArtMancerError(
            "comfyui_unavailable",
            f"There is no ComfyUI in '{comfyui}' to download models to. Set COMFYUI_PATH to the "
            "folder of your ComfyUI, or choose a folder with --folder.",
        )
    return comfyui / "models" / kind


def fetch_fastsam(folder: Path) -> Path:
    """Download FastSAM-s (24 MB) into a folder; see `_fetch_file`."""
    return _fetch_file(folder / "FastSAM-s.pt", FASTSAM_URL, FASTSAM_SHA256)


def fetch_lama(folder: Path) -> Path:
    """Download big-LaMa (206 MB) into a folder; see `_fetch_file`."""
    return _fetch_file(folder / LAMA_FILE, LAMA_URL, LAMA_SHA256)


def _fetch_file(path: Path, url: str, sha256: str) -> Path:
    """Download a file and check its hash. A failure leaves no file.

    Returns
    -------
    path of the file

    Raises
    ------
    ArtMancerError : download_failed
    """
    from torch.hub import download_url_to_file

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        download_url_to_file(url, str(path), hash_prefix=sha256)
    except (OSError, RuntimeError) as error:
        raise ArtMancerError(
            "download_failed",
            f"{path.name} could not be downloaded ({error}). Run the command again, or download "
            f"{url} and put it into '{path.parent}'.",
        ) from error
    return path


def fetch_base(folder: Path, name: str = DEFAULT_BASE) -> None:
    """Download a base model at a pinned revision, and check the hash of every file.

    Whole files are kept. A file whose download broke off starts anew in the next run:
    huggingface_hub keeps no part of it.

    Parameters
    ----------
    name : a key of BASES

    Raises
    ------
    ArtMancerError : download_failed
    """
    from huggingface_hub import HfApi, snapshot_download

    repository, revision = BASES[name].repository, BASES[name].revision
    try:
        snapshot_download(repository, revision=revision, local_dir=folder)
        result = HfApi().verify_repo_checksums(repository, revision=revision, local_dir=folder)
    # All exceptions, because huggingface_hub's HTTP library changes between releases.
    except Exception as error:
        raise ArtMancerError(
            "download_failed",
            f"{repository} could not be downloaded ({error or type(error).__name__}). Run the "
            "command again: whole files are kept.",
        ) from error
    broken = [*(file["path"] for file in result.mismatches), *result.missing_paths]
    if broken:
        raise ArtMancerError(
            "download_failed",
            f"These files in '{folder}' differ from {repository}: {', '.join(broken)}. "
            "Delete them and run the command again.",
        )
