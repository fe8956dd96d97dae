"""Models under the control of ComfyUI's memory manager."""

import gc
from collections.abc import Callable, Collection, Hashable
from typing import Any, TypeVar

import torch
from comfy import model_management
from comfy.model_patcher import ModelPatcher
from server import PromptServer

from ...artmancer import lama, matting, offload
from ...artmancer.masks import fastsam
from ...artmancer.progress import Progress, no_progress
from ...artmancer.qwen import base_folder, pipeline
from . import folders
from .progress import node_progress

T = TypeVar("T")

_RELEASE_SECONDS = 0.5
"""Seconds until an object is dropped after Unload Models: ComfyUI walks its list of models until
then.
"""

_kept: dict[Hashable, tuple[Any, "_KeptPatcher"]] = {}
"""Objects that are kept loaded, by key."""


def keep_loaded(key: Hashable, load: Callable[[], T]) -> T:
    """Return the object that `load` returned for this key, kept until ComfyUI's Unload Models.

    Without this, a change in the node that loads a model would load it anew: ComfyUI drops the
    outputs of a node before it runs it again.
    """
    if key not in _kept:
        _kept[key] = load(), _KeptPatcher(key)
    value, patcher = _kept[key]
    model_management.load_models_gpu([patcher])
    result: T = value
    return result


def keep_only(keys: Collection[Hashable]) -> None:
    """Drop the kept bases and the kept files of model sets whose keys, tuples, are not among
    these.
    """
    for other in [other for other in _kept if isinstance(other, tuple) and other not in keys]:
        del _kept[other]


def load_base(base: str, precision: str) -> pipeline.Base:
    """Load the base model with this name. Nodes share it; a second base takes its place."""
    folder = base_folder.check(folders.bases()[base])
    name = pipeline.precision_for(folder, precision, ComfyOffloader()).name
    key = (folder, name)
    keep_only([key])

    def load() -> pipeline.Base:
        with node_progress() as progress:
            loaded = pipeline.load(folder, precision, ComfyOffloader(), progress)
            progress(1, 1, f"loaded {base}")
        return loaded

    return keep_loaded(key, lambda: pipeline.shared(folder, name, load))


def load_segmenter(name: str) -> fastsam.FastSAM:
    """Load Smart Mask's model with this name."""
    path = folders.segmenters()[name]

    def load() -> fastsam.FastSAM:
        with node_progress() as progress:
            segmenter = fastsam.load(path, ComfyOffloader(), progress)
            progress(1, 1, f"loaded {name}")
        return segmenter

    return keep_loaded(path, load)


def load_remover(name: str) -> matting.Remover:
    """Load rembg's model with this name."""
    path = matting.find(folders.rembg_folders(), name)
    return keep_loaded(path, lambda: matting.Remover(name, path))


def load_lama() -> lama.Lama | None:
    """Load LaMa; None where its file is not there."""
    path = folders.lama_file()
    if path is None:
        return None
    return keep_loaded(path, lambda: lama.load(path, ComfyOffloader()))


def is_base_loaded() -> bool:
    """Tell whether a base model, or the files of a model set, are in memory."""
    return pipeline.is_any_loaded() or any(isinstance(key, tuple) for key in _kept)


def device() -> tuple[str, str]:
    """Return the type of the device that models run on, "cuda" or "cpu", and its name."""
    torch_device = model_management.get_torch_device()
    return torch_device.type, model_management.get_torch_device_name(torch_device)


class ComfyOffloader(offload.Offloader):
    """An Offloader that lets ComfyUI's memory manager make room for our models, and take it back
    for others.
    """

    def __init__(self) -> None:
        super().__init__(model_management.get_torch_device())
        self._patchers: dict[torch.nn.Module, WholeModelPatcher] = {}

    def total_memory(self) -> int | None:
        if self.device.type == "cpu":
            return None
        total = int(model_management.get_total_memory(self.device))
        return int(total - model_management.extra_reserved_memory())

    def available_memory(self) -> int | None:
        """Return the bytes that are free, and that other models would free."""
        if self.device.type == "cpu":
            return None
        own = self._patchers.values()
        others = [
            loaded.model.loaded_size()
            for loaded in model_management.current_loaded_models
            if loaded.device == self.device
            and isinstance(loaded.model, ModelPatcher)
            and loaded.model not in own
            and not isinstance(loaded.model, _KeptPatcher)
        ]
        free = int(model_management.get_free_memory(self.device))
        return int(free + sum(others) - model_management.extra_reserved_memory())

    def free_memory(self, size: int) -> None:
        model_management.free_memory(size + model_management.extra_reserved_memory(), self.device)

    def load(self, model: torch.nn.Module, activations: int, progress: Progress) -> None:
        patcher = self._patchers.get(model)
        if patcher is None:
            patcher = self._patchers[model] = WholeModelPatcher(model, self.device)
        patcher.size = 0  # measured anew: a checkpoint may have been attached since
        patcher.progress = progress
        model_management.load_models_gpu(
            [patcher], memory_required=activations, force_full_load=True
        )

    def unload(self, model: torch.nn.Module) -> None:
        patcher = self._patchers.get(model)
        if patcher is None:
            return
        for loaded in list(model_management.current_loaded_models):
            if loaded.model is patcher:
                loaded.model_unload()
                model_management.current_loaded_models.remove(loaded)

    def empty_cache(self) -> None:
        model_management.soft_empty_cache()


class WholeModelPatcher(ModelPatcher):
    """A model that is on the device whole or not at all: unlike ComfyUI's own, its layers cannot
    run from elsewhere.
    """

    def __init__(self, model: torch.nn.Module, device: torch.device) -> None:
        # ComfyUI sets attributes on the model, "device" among them, which diffusers' models refuse.
        holder = _Holder()
        holder.model = model
        super().__init__(holder, load_device=device, offload_device=torch.device("cpu"))
        self.progress = no_progress

    def load(self, device_to: torch.device, *args: object, **kwargs: object) -> None:
        offload.move_model(self.model, device_to, self.progress)
        super().load(device_to, full_load=True)

    def partially_unload(self, *args: object, **kwargs: object) -> int:
        return 0

    def unpatch_model(
        self, device_to: torch.device | None = None, unpatch_weights: bool = True
    ) -> None:
        if unpatch_weights and device_to is not None and device_to.type == "cpu":
            # Before ComfyUI's own way, which would copy all weights back.
            offload.unload_model(self.model)
        super().unpatch_model(device_to, unpatch_weights)


class _KeptPatcher(ModelPatcher):
    """Stands for a kept object in ComfyUI's list of loaded models, and drops it when all models
    are unloaded.
    """

    def __init__(self, key: Hashable) -> None:
        super().__init__(
            _Holder(), model_management.get_torch_device(), torch.device("cpu"), size=1
        )
        self.key = key

    def loaded_size(self) -> int:
        # More than any model needs, and less than the 1e30 bytes that ComfyUI asks for to unload
        # everything. The object's own models on the device are in ComfyUI's list themselves.
        return 10**29

    def partially_unload(
        self, device: torch.device, memory_to_free: int = 0, *args: object, **kwargs: object
    ) -> int:
        return memory_to_free

    def detach(self, unpatch_all: bool = True) -> torch.nn.Module:
        if unpatch_all and self.key in _kept:
            # Its models must not be freed now: ComfyUI is walking its list of them, and would lose
            # its place.
            loop = PromptServer.instance.loop
            loop.call_soon_threadsafe(
                loop.call_later, _RELEASE_SECONDS, _release, [_kept.pop(self.key)]
            )
        model: torch.nn.Module = super().detach(unpatch_all)
        return model


def _release(objects: list[Any]) -> None:
    objects.clear()
    gc.collect()  # diffusers' hooks make reference cycles
    model_management.soft_empty_cache()


class _Holder(torch.nn.Module):
    """Carries one of our models, or stands for one."""
