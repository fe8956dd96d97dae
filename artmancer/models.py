"""What models there are on this machine, and how the base gets here."""

import os
from dataclasses import dataclass
from pathlib import Path

from .doctor import comfyui_folder
from .errors import ArtMancerError
from .variants import FILES

REPOSITORY = "Qwen/Qwen-Image-Edit-2509"
REVISION = "d3968ef930e841f4c73640fb8afa3b306a78167e"


@dataclass(frozen=True)
class Model:
    """One that was found.

    kind : "base", or the variant a checkpoint is for by its name or the environment, or "lora"
    about : what its file says of itself
    """

    kind: str
    path: Path
    about: str = ""


def found() -> list[Model]:
    """The bases and LoRAs in ComfyUI's folders, and those that MODEL_PATH, MODEL_FILE... name."""
    from .qwen import checkpoints, pipeline

    folders, files = sorted((comfyui_folder() / "models" / "diffusers").glob("*")), _loras()
    if named := os.environ.get("MODEL_PATH"):
        folders.append(Path(named))
    bases = [Model("base", folder) for folder in folders if pipeline.is_base(folder)]
    variants = {checkpoints.find(variant, files): variant for variant in FILES}
    listed = dict.fromkeys([*files, *(path for path in variants if path)])
    return bases + [_lora(path, variants.get(path, "lora")) for path in listed]


def checkpoint(variant: str) -> Path | None:
    """The variant's checkpoint among those that are found."""
    from .qwen import checkpoints

    return checkpoints.find(variant, _loras())


def _loras() -> list[Path]:
    models = comfyui_folder() / "models"
    return sorted(
        path for name in ("artmancer", "loras") for path in (models / name).rglob("*.safetensors")
    )


def _lora(path: Path, kind: str) -> Model:
    from .qwen import checkpoints

    try:
        checkpoint = checkpoints.read(path)
    except ArtMancerError as error:
        return Model(kind, path, str(error))
    said = {"recipe": checkpoint.recipe, "resolution": checkpoint.resolution}
    return Model(kind, path, ", ".join(f"{name} {value}" for name, value in said.items() if value))


def base() -> Path | None:
    """The first base that is found."""
    return next((one.path for one in found() if one.kind == "base"), None)


def default_folder(kind: str) -> Path:
    """Where models of a kind, "diffusers" or "fastsam", are fetched to: ComfyUI's folder for them.

    Raises
    ------
    ArtMancerError : comfyui_unavailable
    """
    comfyui = comfyui_folder()
    if not (comfyui / "main.py").is_file():
        raise ArtMancerError(
            "comfyui_unavailable",
            f"There is no ComfyUI in '{comfyui}' to put models into. Set COMFYUI_PATH to yours, or "
            "name a folder with --folder.",
        )
    return comfyui / "models" / kind


FASTSAM_URL = "https://github.com/ultralytics/assets/releases/download/v8.4.0/FastSAM-s.pt"
FASTSAM_SHA256 = "c9f78716a81c7aff0d608ccc73e1b82ab3aaad86005049f6a92106a0be6d0844"


def fetch_fastsam(folder: Path) -> Path:
    """Download FastSAM-s, 24 MB, into a folder, and check it;
    its file, which is there whole or not at all.

    Raises
    ------
    ArtMancerError : download_failed
    """
    from torch.hub import download_url_to_file

    path = folder / "FastSAM-s.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        download_url_to_file(FASTSAM_URL, str(path), hash_prefix=FASTSAM_SHA256)
    except (OSError, RuntimeError) as error:
        raise ArtMancerError(
            "download_failed",
            f"FastSAM-s.pt could not be fetched ({error}). Run the command again, or download "
            f"{FASTSAM_URL} and put it into '{folder}'.",
        ) from error
    return path


def fetch(folder: Path) -> None:
    """Download the base, about 58 GB, at a pinned revision, and check every file.

    Whole files that are there are kept. One that broke off starts anew in the next run:
    huggingface_hub keeps no part.

    Raises
    ------
    ArtMancerError : download_failed
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        snapshot_download(REPOSITORY, revision=REVISION, local_dir=folder)
        checked = HfApi().verify_repo_checksums(REPOSITORY, revision=REVISION, local_dir=folder)
    except Exception as error:  # Its client's HTTP library changes, and with it what is raised.
        raise ArtMancerError(
            "download_failed",
            f"{REPOSITORY} could not be fetched ({error or type(error).__name__}). Run the command "
            "again: whole files are kept.",
        ) from error
    broken = [*(one["path"] for one in checked.mismatches), *checked.missing_paths]
    if broken:
        raise ArtMancerError(
            "download_failed",
            f"These files in '{folder}' are not what {REPOSITORY} holds: {', '.join(broken)}. "
            "Delete them and run the command again.",
        )
