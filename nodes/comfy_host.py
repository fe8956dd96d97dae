"""What the pack asks of the running ComfyUI; the only file that knows its modules."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import folder_paths
import torch
from comfy import latent_formats, model_management, utils
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui
from comfy_execution.utils import get_executing_context
from latent_preview import get_previewer
from server import PromptServer
from torch import Tensor

from ..artmancer import images, mover
from ..artmancer.masks import fastsam
from ..artmancer.progress import Progress, no_progress
from ..artmancer.qwen import pipeline

T = TypeVar("T")

PREVIEW_SIDE = 1536


def _register(name: str, place: str, suffixes: set[str]) -> None:
    """Let ComfyUI list the files of a folder in models/, beside those the user's extra_model_paths.yaml names."""
    known, _ = folder_paths.folder_names_and_paths.get(name, ([], set()))
    path = str(Path(folder_paths.models_dir) / place)
    folder_paths.folder_names_and_paths[name] = (list(dict.fromkeys([*known, path])), suffixes)


_register("artmancer", "artmancer", {".safetensors"})
_register("fastsam", "fastsam", {".pt", ".onnx"})
_register("ultralytics_segm", "ultralytics/segm", {".pt", ".onnx"})  # as the packs that brought this folder call it
_register("rembg", "rembg", {".onnx"})


def progress() -> Progress:
    """Show progress on the node that is running, and its previews; cancel raises out of the call, within one step."""
    bar: utils.ProgressBar | None = None
    previewer = get_previewer(model_management.get_torch_device(), latent_formats.Wan21())
    shown = ""

    def update(done: int, total: int, doing: str, latents: Tensor | None = None) -> None:
        nonlocal bar, shown
        model_management.throw_exception_if_processing_interrupted()
        context = get_executing_context()
        if doing != shown and context:
            server = PromptServer.instance
            server.send_progress_text(doing, context.node_id, server.client_id)
            shown = doing
        bar = bar or utils.ProgressBar(total)
        preview = None
        if previewer and latents is not None:
            preview = previewer.decode_latent_to_preview_image("JPEG", latents)
        bar.update_absolute(done, total, preview)

    return update


def bases() -> dict[str, Path]:
    """The base models in ComfyUI's diffusers folders, and the one that MODEL_PATH names, by the folder's name."""
    found = [path for folder in folder_paths.get_folder_paths("diffusers") for path in sorted(Path(folder).glob("*"))]
    if named := os.environ.get("MODEL_PATH"):
        found.append(Path(named))
    return {path.name: path for path in found if pipeline.is_base(path)}


def loras() -> dict[str, Path]:
    """The safetensors files in models/loras and models/artmancer, by their name there."""
    return {
        name: Path(folder_paths.get_full_path_or_raise(folder, name))
        for folder in ("loras", "artmancer")
        for name in folder_paths.get_filename_list(folder)
        if name.endswith(".safetensors")
    }


def segmenters() -> dict[str, Path]:
    """The models for Smart Mask in models/fastsam and models/ultralytics/segm, by their name there."""
    return {
        name: Path(folder_paths.get_full_path_or_raise(folder, name))
        for folder in ("ultralytics_segm", "fastsam")
        for name in folder_paths.get_filename_list(folder)
        if name.endswith((".pt", ".onnx"))
    }


def load_segmenter(name: str) -> fastsam.FastSAM:
    """The FastSAM of this name, kept until ComfyUI unloads its models."""
    return guest(segmenters()[name], lambda path: fastsam.load(path, ManagedMover(), progress()))


_guests: dict[Path, tuple[Any, "_GuestPatcher"]] = {}


def guest(path: Path, load: Callable[[Path], T]) -> T:
    """What load makes of a file, kept until ComfyUI unloads its models: on /free, or where another needs the memory."""
    if path not in _guests:
        _guests[path] = load(path), _GuestPatcher(path)
    made, patcher = _guests[path]
    model_management.load_models_gpu([patcher])
    kept: T = made
    return kept


def load_base(name: str, precision: str) -> pipeline.Base:
    """The base of this name, which other nodes may share, in the hands of ComfyUI's memory manager."""
    folder = bases()[name]
    return pipeline.shared(folder, precision, lambda: pipeline.load(folder, precision, ManagedMover(), progress()))


class ManagedMover(mover.Mover):
    """Lets ComfyUI's memory manager make room for our models, and take the room back for others."""

    def __init__(self) -> None:
        super().__init__(model_management.get_torch_device())
        self._patchers: dict[torch.nn.Module, WholePatcher] = {}

    def room(self) -> int | None:
        """What is free, and what other models would give back."""
        if self.device.type == "cpu":
            return None
        mine = sum(patcher.loaded_size() for patcher in self._patchers.values())
        others = sum(loaded.model_loaded_memory() for loaded in model_management.current_loaded_models) - mine
        free = int(model_management.get_free_memory(self.device))
        return free + max(0, int(others)) - model_management.extra_reserved_memory()

    def put(self, model: torch.nn.Module, work: int, progress: Progress) -> None:
        patcher = self._patchers.get(model)
        if patcher is None:
            patcher = self._patchers[model] = WholePatcher(model, self.device)
        patcher.size = 0  # A checkpoint may have been attached since it was measured.
        patcher.progress = progress
        model_management.load_models_gpu([patcher], memory_required=work, force_full_load=True)

    def take(self, model: torch.nn.Module) -> None:
        patcher = self._patchers.get(model)
        if patcher is None:
            return
        for loaded in list(model_management.current_loaded_models):
            if loaded.model is patcher:
                loaded.model_unload()
                model_management.current_loaded_models.remove(loaded)

    def empty(self) -> None:
        model_management.soft_empty_cache()


class WholePatcher(ModelPatcher):
    """A model that lies on the device whole or not at all: its layers cannot run from elsewhere, as ComfyUI's can."""

    def __init__(self, model: torch.nn.Module, device: torch.device) -> None:
        # ComfyUI sets attributes on the model, "device" among them, which diffusers' models do not let it.
        holder = _Holder()
        holder.model = model
        super().__init__(holder, load_device=device, offload_device=torch.device("cpu"))
        self.progress = no_progress

    def load(self, device_to: torch.device, *args: object, **kwargs: object) -> None:
        mover.move(self.model, device_to, self.progress)
        super().load(device_to, full_load=True)

    def partially_unload(self, *args: object, **kwargs: object) -> int:
        return 0


class _GuestPatcher(ModelPatcher):
    """Stands for a guest in ComfyUI's list of loaded models, and sends it away when its turn comes."""

    def __init__(self, path: Path) -> None:
        super().__init__(_Holder(), model_management.get_torch_device(), torch.device("cpu"), size=1)
        self.path = path

    def detach(self, unpatch_all: bool = True) -> torch.nn.Module:
        if unpatch_all:
            _guests.pop(self.path, None)
        return super().detach(unpatch_all)


class _Holder(torch.nn.Module):
    """Carries one of our models, or stands for one."""


def save_preview(image: Tensor, name: str) -> ui.SavedResult:
    """Write one IMAGE or MASK into ComfyUI's temporary folder for the browser to show, large enough for a screen."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    file = f"artmancer_{uuid.uuid4().hex[:12]}_{name}"
    picture = images.to_pil(image[0])
    picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    picture.save(folder / file, quality=95)
    return ui.SavedResult(file, "", io.FolderType.temp)


def before_after(before: Tensor, after: Tensor) -> dict[str, list[ui.SavedResult]]:
    """What a node shows for the slider over its first picture."""
    return {
        "artmancer_before": [save_preview(before[:1], "before.jpg")],
        "artmancer_after": [save_preview(after[:1], "after.jpg")],
    }


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
