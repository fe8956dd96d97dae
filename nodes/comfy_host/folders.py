"""Model files and input files, by the names ComfyUI lists them under."""

import os
from pathlib import Path

import folder_paths

from ...artmancer import model_sets
from ...artmancer.errors import ArtMancerError
from ...artmancer.folders import (
    LAMA_FILE,
    LAMA_FOLDERS,
    LORA_FOLDERS,
    SEGMENTER_SUFFIXES,
    base_from_environment,
)
from ...artmancer.qwen import checkpoints
from ...artmancer.variants import CHECKPOINT_FILES

_SET_FOLDERS = {
    # The custom nodes ComfyUI-GGUF list their files under names of their own.
    "unet": ("diffusion_models", "unet_gguf"),
    "clip": ("text_encoders", "clip_gguf"),
    "vae": ("vae",),
    "lora": LORA_FOLDERS,
}
"""ComfyUI's names of the folders with the files of model sets, by kind."""

_SEGMENTER_FOLDERS = ("fastsam", "ultralytics_segm")


def _register(name: str, place: str, suffixes: set[str]) -> None:
    """Make ComfyUI list the files of a folder in models/, beside the folders that the user's
    extra_model_paths.yaml names.
    """
    known, others = folder_paths.folder_names_and_paths.get(name, ([], set()))
    path = str(Path(folder_paths.models_dir) / place)
    folder_paths.folder_names_and_paths[name] = (
        list(dict.fromkeys([*known, path])),
        # Other packs share folders, and list other files in them.
        {*others, *suffixes},
    )


_register("artmancer", "artmancer", {".safetensors"})
_register("fastsam", "fastsam", set(SEGMENTER_SUFFIXES))
# The name that other packs have for this folder.
_register("ultralytics_segm", "ultralytics/segm", set(SEGMENTER_SUFFIXES))
_register("rembg", "rembg", {".onnx"})
_register("inpaint", "inpaint", {Path(LAMA_FILE).suffix})


def bases() -> dict[str, Path]:
    """Map the names of base models to their folders: the one that MODEL_PATH names, then those in
    ComfyUI's diffusers folders, the newest release first.
    """
    paths = checkpoints.bases(
        path
        for folder in folder_paths.get_folder_paths("diffusers")
        for path in sorted(Path(folder).glob("*"))
    )
    if path := base_from_environment():
        paths = [*checkpoints.bases([path]), *paths]
    by_name: dict[str, Path] = {}
    for path in paths:
        by_name.setdefault(path.name, path)
    return by_name


def loras() -> dict[str, Path]:
    """Map the names of LoRAs to their safetensors files in ComfyUI's LoRA folders."""
    return _files(LORA_FOLDERS, (".safetensors",))


def lora_times() -> list[tuple[str, float]]:
    """List the names of the LoRAs with the times at which their files were written."""
    return [(name, path.stat().st_mtime) for name, path in loras().items() if path.is_file()]


def find_checkpoint(variant: str) -> Path | None:
    """Return the variant's LoRA: the file that the environment names, or one with the variant's
    own name.
    """
    return checkpoints.find(variant, _files(LORA_FOLDERS, CHECKPOINT_FILES[variant]).values())


def set_paths() -> dict[str, Path]:
    """Map the names of model sets to their files."""
    return model_sets.find(map(Path, folder_paths.get_folder_paths(model_sets.FOLDER)))


def set_files() -> model_sets.Files:
    """List the files that a model set can name."""
    known = folder_paths.folder_names_and_paths
    return {
        kind: {
            name.replace(os.sep, "/"): path
            for name, path in _files(
                tuple(folder for folder in folders if folder in known), model_sets.SUFFIXES
            ).items()
        }
        for kind, folders in _SET_FOLDERS.items()
    }


def set_problems() -> dict[str, str]:
    """Map the names of model sets to the reasons why they cannot be loaded; "": none."""
    files = set_files()
    problems = {}
    for name, path in set_paths().items():
        try:
            model_sets.check_files(model_sets.read(path), files)
            problems[name] = ""
        except ArtMancerError as error:
            problems[name] = str(error)
    return problems


def set_times(name: str) -> list[tuple[str, float]]:
    """List the names of a model set and of its files with the times at which they were written."""
    path = set_paths()[name]
    files = set_files()
    try:
        named = model_sets.read(path).files()
    except ArtMancerError:
        named = []
    paths = [(file.name, files[file.kind].get(file.name)) for file in named]
    return [
        (label, file.stat().st_mtime)
        for label, file in [(name, path), *paths]
        if file and file.is_file()
    ]


def segmenters() -> dict[str, Path]:
    """Map the names of Smart Mask's models to their files."""
    return _files(_SEGMENTER_FOLDERS, SEGMENTER_SUFFIXES)


def lama_file() -> Path | None:
    """Return LaMa's file in ComfyUI's folders; None where there is none."""
    folders = (Path(path) for name in LAMA_FOLDERS for path in folder_paths.get_folder_paths(name))
    paths = (folder / LAMA_FILE for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def lama_time() -> float | None:
    """Return the time of LaMa's file, for a node that is to run again when the file changes.

    ComfyUI writes such a value into the images it saves, so it has no path.
    """
    path = lama_file()
    return path.stat().st_mtime if path else None


def rembg_folders() -> list[Path]:
    """List the folders with rembg's models: the user's own, and models/rembg."""
    return [Path(path) for path in folder_paths.get_folder_paths("rembg")]


def input_images() -> list[str]:
    """List the images in ComfyUI's input folder by name."""
    folder = Path(folder_paths.get_input_directory())
    names = [path.name for path in folder.iterdir() if path.is_file()]
    return sorted(folder_paths.filter_files_content_types(names, ["image"]))


def input_file(name: str) -> Path | None:
    """Return the file behind a name in the input folder; None where there is none.

    A name may end in ComfyUI's " [output]" or " [temp]". A name that leads out of these folders
    finds nothing. (ComfyUI 0.3.64 itself does not look for "..".)
    """
    bare, annotated = folder_paths.annotated_filepath(name)
    folder = Path(annotated or folder_paths.get_input_directory()).resolve()
    path = (folder / bare).resolve()
    return path if path.is_relative_to(folder) and path.is_file() else None


def _files(folders: tuple[str, ...], suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Map names to files in ComfyUI's model folders; a link that leads nowhere is left out.

    Of two files with one name, the one in the later folder is listed as FOLDER/NAME.
    """
    files: dict[str, Path] = {}
    for folder in folders:
        for name in folder_paths.get_filename_list(folder):
            if name.endswith(suffixes) and (path := folder_paths.get_full_path(folder, name)):
                taken = files.get(name, Path(path)) != Path(path)
                files[f"{folder}/{name}" if taken else name] = Path(path)
    return files
