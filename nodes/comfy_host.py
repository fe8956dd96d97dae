"""What the pack asks of the running ComfyUI; the only file that knows its modules."""

import gc
import os
import stat
import uuid
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import folder_paths
import torch
from comfy import latent_formats, model_management, utils
from comfy.cli_args import LatentPreviewMethod, args
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui
from comfy_execution.utils import get_executing_context
from latent_preview import Latent2RGBPreviewer
from server import PromptServer
from torch import Tensor

from ..artmancer import images, mover
from ..artmancer.masks import fastsam
from ..artmancer.progress import Progress, no_progress
from ..artmancer.qwen import checkpoints, pipeline
from ..artmancer.variants import FILES

T = TypeVar("T")

PREVIEW_SIDE = 1536

LORAS = ("loras", "artmancer")
SEGMENTERS = (".pt", ".onnx")

UPLOADS, RESULTS = "artmancer", "artmancer_results"
"""Folders in ComfyUI's temporary one: what the gateway uploads,
and what Endpoint Result leaves for it there.
"""

routes = PromptServer.instance.routes


def _register(name: str, place: str, suffixes: set[str]) -> None:
    """Let ComfyUI list the files of a folder in models/, beside those the user's
    extra_model_paths.yaml names.
    """
    known, _ = folder_paths.folder_names_and_paths.get(name, ([], set()))
    path = str(Path(folder_paths.models_dir) / place)
    folder_paths.folder_names_and_paths[name] = (list(dict.fromkeys([*known, path])), suffixes)


_register("artmancer", "artmancer", {".safetensors"})
_register("fastsam", "fastsam", set(SEGMENTERS))
_register(
    "ultralytics_segm", "ultralytics/segm", set(SEGMENTERS)
)  # as the packs that brought this folder call it
_register("rembg", "rembg", {".onnx"})


def progress() -> Progress:
    """Show progress on the node that is running, and its previews; cancel raises out of the call,
    within one step.
    """
    bar: utils.ProgressBar | None = None
    previewer = _previewer()
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


def _previewer() -> Latent2RGBPreviewer | None:
    """Shows latents by a linear map to RGB; None where the user wants no previews.

    ComfyUI's other previews decode with a model, which would push ours off the device in the middle
    of a step.
    """
    if args.preview_method == LatentPreviewMethod.NoPreviews:
        return None
    latents = latent_formats.Wan21()
    return Latent2RGBPreviewer(latents.latent_rgb_factors, latents.latent_rgb_factors_bias)


def bases() -> dict[str, Path]:
    """The base models in ComfyUI's diffusers folders, and the one that MODEL_PATH names, by the
    folder's name.
    """
    found = [
        path
        for folder in folder_paths.get_folder_paths("diffusers")
        for path in sorted(Path(folder).glob("*"))
    ]
    if named := os.environ.get("MODEL_PATH"):
        found.append(Path(named))
    return {path.name: path for path in found if pipeline.is_base(path)}


def loras() -> dict[str, Path]:
    """The safetensors files in models/loras and models/artmancer, by their name there."""
    return _files(LORAS, (".safetensors",))


def checkpoint(variant: str) -> Path | None:
    """The variant's own LoRA, where the environment names one,
    or one lies among the others under its name.
    """
    return checkpoints.find(variant, _files(LORAS, FILES[variant]).values())


def _files(folders: tuple[str, ...], suffixes: tuple[str, ...]) -> dict[str, Path]:
    """The files of ComfyUI's model folders, by their name there;
    a link that leads nowhere is left out.

    Of two that have one name the second is FOLDER/NAME.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        for name in folder_paths.get_filename_list(folder):
            if name.endswith(suffixes) and (path := folder_paths.get_full_path(folder, name)):
                taken = found.get(name, Path(path)) != Path(path)
                found[f"{folder}/{name}" if taken else name] = Path(path)
    return found


def segmenters() -> dict[str, Path]:
    """The models for Smart Mask in models/fastsam and models/ultralytics/segm,
    by their name there.
    """
    return _files(("fastsam", "ultralytics_segm"), SEGMENTERS)


def rembg_folder() -> list[Path]:
    """Where the weights of rembg's models lie: the user's own folders, and models/rembg."""
    return [Path(path) for path in folder_paths.get_folder_paths("rembg")]


def load_segmenter(name: str) -> fastsam.FastSAM:
    """The FastSAM of this name."""
    path = segmenters()[name]
    return guest(path, lambda: fastsam.load(path, ManagedMover(), progress()))


def load_base(name: str, precision: str) -> pipeline.Base:
    """The base of this name, which other nodes may share, in the hands
    of ComfyUI's memory manager.
    """
    folder = bases()[name]
    precision = pipeline.precision_for(model_management.get_torch_device(), precision)
    key = (folder, precision)
    for other in [one for one in _guests if isinstance(one, tuple) and one != key]:
        del _guests[other]

    def load() -> pipeline.Base:
        return pipeline.load(folder, precision, ManagedMover(), progress())

    return guest(key, lambda: pipeline.shared(folder, precision, load))


def holds_base() -> bool:
    """Whether a base is in memory."""
    return any(isinstance(made, pipeline.Base) for made, _ in _guests.values())


def device() -> tuple[str, str]:
    """The kind of the device that models run on, "cuda" or "cpu", and its name."""
    chosen = model_management.get_torch_device()
    return chosen.type, model_management.get_torch_device_name(chosen)


_guests: dict[Hashable, tuple[Any, "_GuestPatcher"]] = {}


def guest(key: Hashable, load: Callable[[], T]) -> T:
    """What load gives, kept until ComfyUI is told to unload its models.

    Without this a change in the node that loads a model would load it anew: ComfyUI drops what a
    node gave before it runs it again.
    """
    if key not in _guests:
        _guests[key] = load(), _GuestPatcher(key)
    made, patcher = _guests[key]
    model_management.load_models_gpu([patcher])
    kept: T = made
    return kept


class ManagedMover(mover.Mover):
    """Lets ComfyUI's memory manager make room for our models, and take the room back for others."""

    def __init__(self) -> None:
        super().__init__(model_management.get_torch_device())
        self._patchers: dict[torch.nn.Module, WholePatcher] = {}

    def room(self) -> int | None:
        """What is free, and what other models would give back."""
        if self.device.type == "cpu":
            return None
        mine = self._patchers.values()
        others = [
            loaded.model.loaded_size()
            for loaded in model_management.current_loaded_models
            if loaded.device == self.device
            and isinstance(loaded.model, ModelPatcher)
            and loaded.model not in mine
            and not isinstance(loaded.model, _GuestPatcher)
        ]
        free = int(model_management.get_free_memory(self.device))
        return free + sum(others) - model_management.extra_reserved_memory()

    def make_room(self, work: int) -> None:
        model_management.free_memory(work + model_management.extra_reserved_memory(), self.device)

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
    """A model that lies on the device whole or not at all: its layers cannot run from elsewhere, as
    ComfyUI's can.
    """

    def __init__(self, model: torch.nn.Module, device: torch.device) -> None:
        # ComfyUI sets attributes on the model, "device" among them,
        # which diffusers' models do not let it.
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
    """Stands for a guest in ComfyUI's list of loaded models,
    and sends it away when all of them are to go.
    """

    def __init__(self, key: Hashable) -> None:
        super().__init__(
            _Holder(), model_management.get_torch_device(), torch.device("cpu"), size=1
        )
        self.key = key

    def loaded_size(self) -> int:
        # More than any model needs, and less than the 1e30 bytes that ComfyUI asks for to unload
        # everything. What the guest has on the device is known to ComfyUI by itself.
        return 10**29

    def partially_unload(
        self, device: torch.device, memory_to_free: int = 0, *args: object, **kwargs: object
    ) -> int:
        return memory_to_free

    def detach(self, unpatch_all: bool = True) -> torch.nn.Module:
        if unpatch_all and self.key in _guests:
            # Its models must not die now: ComfyUI is walking its list of them,
            # and would lose its place.
            loop = PromptServer.instance.loop
            loop.call_soon_threadsafe(loop.call_later, 0.5, _let_go, [_guests.pop(self.key)])
        return super().detach(unpatch_all)


def _let_go(guests: list[Any]) -> None:
    guests.clear()
    # diffusers' hooks make cycles.
    gc.collect()
    model_management.soft_empty_cache()


class _Holder(torch.nn.Module):
    """Carries one of our models, or stands for one."""


def save_preview(image: Tensor, name: str, digest: str = "") -> ui.SavedResult:
    """Write one IMAGE or MASK into ComfyUI's temporary folder for the browser to show, large enough
    for a screen.

    digest : of its content, see cache.digest: what has been written is not written again
    """
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    file = f"artmancer_{(digest or uuid.uuid4().hex)[-12:]}_{name}"
    if not (digest and (folder / file).is_file()):
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
    """The file behind a name in the input folder, which may carry ComfyUI's " [output]" or
    " [temp]"; None: not there.

    A name that leads out of these folders is not there.
    (ComfyUI 0.3.64 itself does not look for "..".)
    """
    bare, annotated = folder_paths.annotated_filepath(name)
    folder = Path(annotated or folder_paths.get_input_directory()).resolve()
    path = (folder / bare).resolve()
    return path if path.is_relative_to(folder) and path.is_file() else None


def save_output(image: Tensor) -> ui.SavedResult:
    """Write one picture [H, W, 3 or 4] or mask [H, W] into ComfyUI's output folder, as the next
    numbered PNG.
    """
    folder = folder_paths.get_output_directory()
    folder, stem, number, subfolder, _ = folder_paths.get_save_image_path("ArtMancer", folder)
    name = f"{stem}_{number:05}_.png"
    images.save(Path(folder) / name, image)
    return ui.SavedResult(name, subfolder, io.FolderType.output)


def save_result(image: Tensor) -> ui.SavedResult:
    """The same into the temporary folder, under a name that no other picture gets,
    also after this one is gone.
    """
    folder = Path(folder_paths.get_temp_directory()) / RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{uuid.uuid4().hex}.png"
    images.save(folder / name, image)
    return ui.SavedResult(name, RESULTS, io.FolderType.temp)


def temp_files() -> Iterator[tuple[Path, os.stat_result]]:
    """The pack's own files in ComfyUI's temporary folder: uploads, results and previews.
    No link is followed.
    """
    temp = Path(folder_paths.get_temp_directory())
    for pattern in ("artmancer_*", f"{UPLOADS}/*", f"{RESULTS}/*"):
        for path in temp.glob(pattern):
            with suppress(FileNotFoundError):  # a result gets its own name once it is written
                about = path.lstat()
                if stat.S_ISREG(about.st_mode) and (
                    path.parent == temp or not path.parent.is_symlink()
                ):
                    yield path, about
