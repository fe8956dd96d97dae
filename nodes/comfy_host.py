"""What the pack asks of the running ComfyUI; the only file that knows its modules."""

from pathlib import Path

import folder_paths
from comfy import model_management, utils
from comfy_api.latest import io, ui
from torch import Tensor

from ..artmancer import images
from ..artmancer.progress import Progress


def progress() -> Progress:
    """Show progress on the node that is running; cancel raises out of the call, within one step."""
    bar: utils.ProgressBar | None = None

    def update(done: int, total: int, doing: str) -> None:
        nonlocal bar
        model_management.throw_exception_if_processing_interrupted()
        bar = bar or utils.ProgressBar(total)
        bar.update_absolute(done, total)

    return update


def input_images() -> list[str]:
    """The pictures in ComfyUI's input folder, by name."""
    folder = Path(folder_paths.get_input_directory())
    names = [path.name for path in folder.iterdir() if path.is_file()]
    return sorted(folder_paths.filter_files_content_types(names, ["image"]))


def input_file(name: str) -> Path | None:
    """The file behind a name in the input folder, which may carry ComfyUI's " [output]" or " [temp]"; None: not there.

    A name that leads out of these folders is not there. (ComfyUI 0.3.64 itself does not look for "..".)
    """
    bare, annotated = folder_paths.annotated_filepath(name)
    folder = Path(annotated or folder_paths.get_input_directory()).resolve()
    path = (folder / bare).resolve()
    return path if path.is_relative_to(folder) and path.is_file() else None


def save_output(image: Tensor) -> ui.SavedResult:
    """Write one picture of an IMAGE or a MASK into ComfyUI's output folder, as the next numbered PNG."""
    folder = folder_paths.get_output_directory()
    folder, stem, number, subfolder, _ = folder_paths.get_save_image_path("ArtMancer", folder)
    name = f"{stem}_{number:05}_.png"
    images.save(Path(folder) / name, image)
    return ui.SavedResult(name, subfolder, io.FolderType.output)
