"""Editors from model sets, whose files ComfyUI's own loaders read."""

import importlib
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from comfy import sd, utils

from ...artmancer import model_sets
from ...artmancer.errors import ArtMancerError
from ...artmancer.model_sets import Acceleration, Files, ModelSet, NamedFile
from ...artmancer.qwen import checkpoints
from ...artmancer.qwen.checkpoints import NO_CHECKPOINT, Checkpoint
from ...artmancer.recipes import RecipeChoice, choose
from ...artmancer.variants import CHECKPOINT_FILES
from . import folders
from .comfy_editor import ModelEditor
from .memory import keep_loaded, keep_only

_LOADERS = {
    # kind: (node class, its function, its further arguments), and the same for a GGUF file
    "unet": (("UNETLoader", "load_unet", ("default",)), ("UnetLoaderGGUF", "load_unet", ())),
    "clip": (("CLIPLoader", "load_clip", ()), ("CLIPLoaderGGUF", "load_clip", ())),
    "vae": (("VAELoader", "load_vae", ()), ("VaeGGUF", "load_vae", ())),
}


class _Key(NamedTuple):
    """Key of a loaded file in ComfyUI's memory; see memory.keep_loaded."""

    kind: str
    path: Path
    time: float
    family: str = ""


@dataclass(frozen=True, eq=False)
class SetEditor(ModelEditor):
    """The editor of a model set.

    Attributes
    ----------
    set_name : name of the set
    reason : reason of the recipe, see RecipeChoice
    """

    set_name: str = ""
    reason: str = "default"

    @property
    def name(self) -> str:
        return f"{self.set_name}/{self.variant}"

    @property
    def recipe_reason(self) -> str:
        return self.reason


def load_set(
    name: str,
    variant: str,
    strength: float,
    checkpoint: str | None,
    acceleration: str | None,
) -> SetEditor:
    """Load the editor of a model set.

    Parameters
    ----------
    strength : of the variant's LoRA
    checkpoint : name of the variant's LoRA in place of the set's; "" for none; None: the set's
    acceleration : name of a LoRA for few steps in place of the set's; None: the set's

    Raises
    ------
    ArtMancerError : see model_sets.get and model_sets.check_files; generation_failed where a LoRA
        is for another model
    """
    model_set = model_sets.get(name, folders.set_paths())
    files = folders.set_files()
    model_sets.check_files(model_set, files, variant)
    lora = model_set.loras.get(variant) if checkpoint is None else checkpoint
    fast = model_set.acceleration
    if acceleration:
        steps = fast.steps if fast else None
        fast = Acceleration(acceleration, steps or 0)
    named = [NamedFile(kind, getattr(model_set, kind)) for kind in ("unet", "clip", "vae")]
    loras = [file for file in (lora, fast.lora if fast else None) if file]
    paths = [files["lora"][file] for file in loras]
    keys = [_key(file, model_set, files) for file in named]
    keep_only([*keys, *(_lora_key(path) for path in paths)])
    model, clip, vae = (
        keep_loaded(key, partial(_load, file, model_set))
        for key, file in zip(keys, named, strict=True)
    )
    strengths = [strength if file == lora else 1.0 for file in loras]
    for path, value in zip(paths, strengths, strict=True):
        model = _with_lora(model, path, value)
    trained = checkpoints.read(paths[0]) if lora else NO_CHECKPOINT
    choice = _recipe(model_set, variant, trained)
    return SetEditor(
        model,
        clip,
        vae,
        variant,
        choice.name,
        shift=fast.shift if fast else 0.0,
        adapters=tuple(PurePosixPath(file).name for file in loras),
        accelerated=fast is not None,
        resolution=trained.resolution,
        default_prompt=trained.prompt,
        steps=fast.steps or None if fast else None,
        set_name=name,
        reason=choice.reason,
    )


def _recipe(model_set: ModelSet, variant: str, checkpoint: Checkpoint) -> RecipeChoice:
    """Return the recipe: the set's, else that of the LoRA, else the default for the variant."""
    if checkpoint.path is None:
        own = choose(None, None, CHECKPOINT_FILES[variant][0])
        default = RecipeChoice(own.name, "default")
    else:
        default = choose(None, checkpoint.recipe, checkpoint.path.name)
    recipe = model_set.recipes.get(variant)
    return default if recipe is None else choose(recipe, None, None)


def _key(file: NamedFile, model_set: ModelSet, files: Files) -> _Key:
    path = files[file.kind][file.name]
    family = model_set.family if file.kind == "clip" else ""
    return _Key(file.kind, path, path.stat().st_mtime, family)


def _lora_key(path: Path) -> _Key:
    return _Key("lora", path, path.stat().st_mtime)


def _load(file: NamedFile, model_set: ModelSet) -> Any:
    """Load a model with ComfyUI's node for it, or with that of an installed GGUF loader.

    Raises
    ------
    ArtMancerError : checkpoint_missing where no GGUF loader is installed
    """
    is_gguf = file.name.endswith(model_sets.GGUF)
    node, function, arguments = _LOADERS[file.kind][is_gguf]
    classes = importlib.import_module("nodes").NODE_CLASS_MAPPINGS
    if node not in classes:
        raise ArtMancerError(
            "checkpoint_missing",
            f"The model set '{model_set.name}' names '{file.name}', a GGUF file, and this ComfyUI "
            f"has no loader for it: {model_sets.GGUF_ADVICE}.",
        )
    if file.kind == "clip":
        arguments = (model_set.family,)
    name = file.name.replace("/", os.sep)
    return getattr(classes[node](), function)(name, *arguments)[0]


def _with_lora(model: Any, path: Path, strength: float) -> Any:
    """Return a copy of a model with a LoRA on it.

    Raises
    ------
    ArtMancerError : generation_failed where the LoRA changes nothing of the model
    """
    weights = keep_loaded(_lora_key(path), lambda: utils.load_torch_file(str(path), safe_load=True))
    patched, _ = sd.load_lora_for_models(model, None, weights, strength, 0)
    if _patches(patched) == _patches(model):
        raise ArtMancerError(
            "generation_failed",
            f"'{path.name}' changes nothing in the model: it is for another model. Choose a LoRA "
            "for the model in the set.",
        )
    return patched


def _patches(model: Any) -> int:
    return sum(map(len, model.patches.values()))
