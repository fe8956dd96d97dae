"""`artmancer models`: list the models on this machine, or download one."""

import argparse
import json
import sys
from pathlib import Path

from .. import model_sets, models
from ..options import RESOLUTIONS
from ..qwen.tagging import tag
from ..recipes import RECIPES
from ..set_choice import choose
from ..variants import CHECKPOINT_FILES
from .arguments import Subparsers, not_a_choice, write_line

_DOWNLOADS = (*models.BASES, "fastsam-s", "big-lama")
"""Models that can be downloaded."""

_QWEN = "qwen"
"""Another name for the default base."""


def add_parser(commands: Subparsers) -> None:
    """Add `artmancer models` to the parser."""
    parser = commands.add_parser(
        "models",
        help="list the models on this machine; `models fetch` downloads the base, `models set` "
        "writes a model set, `models tag` writes a recipe into a checkpoint",
        description="List the base models, model sets and LoRAs in ComfyUI's folders "
        "($COMFYUI_PATH) and those that MODEL_PATH and MODEL_FILE... name; or download "
        "Qwen-Image-Edit-2511 or 2509 (58 GB each), FastSAM-s (24 MB, for Smart Mask) or big-LaMa "
        "(206 MB, for removals). A download that breaks off keeps its whole files; the next run "
        "starts the others anew. `tag FILE --recipe R` writes how a checkpoint was trained into "
        "its metadata, in place or into a copy; its weights do not change. `set NAME` writes "
        "models/artmancer/NAME.json, a model set: an editor of ComfyUI's own files for "
        "Qwen-Image-Edit (fp8, GGUF). It looks for the diffusion model, the text encoder, the VAE "
        "and the LoRAs in ComfyUI's folders, by their headers, and prints its choice.",
    )
    parser.set_defaults(run=run, error=parser.error)
    parser.add_argument(
        "action", nargs="?", choices=("list", "fetch", "set", "tag"), default="list"
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help=f"fetch: {' or '.join(_DOWNLOADS)} (default {models.DEFAULT_BASE}); tag: the "
        "checkpoint's file; set: the name of the model set",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="fetch: folder to download into; default: ComfyUI's folder for this kind of model",
    )
    parser.add_argument("--recipe", choices=tuple(RECIPES), help="tag: how it was trained")
    parser.add_argument(
        "--resolution", choices=tuple(RESOLUTIONS), help="tag: the size it was trained at"
    )
    parser.add_argument("--prompt", help="tag: prompt of an edit that brings none")
    parser.add_argument(
        "-o", "--output", type=Path, help="tag: write a copy, and leave the file as it is"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """List models, download one, or tag a checkpoint."""
    if options.action == "fetch":
        return _fetch(options)
    if options.action == "tag":
        return _tag(options)
    if options.action == "set":
        return _set(options)
    inventory = models.inventory()
    if options.json:
        rows = [
            {"kind": model.kind, "path": str(model.path), "about": model.note}
            for model in inventory
        ]
        write_line(json.dumps(rows))
        return 0
    for model in inventory:
        write_line(f"{model.kind:<18}{model.path}{f'  ({model.note})' if model.note else ''}")
    kinds = {model.kind for model in inventory}
    if "base" not in kinds:
        write_line(f"{'no base':<18}`artmancer models fetch` downloads one")
    for variant, (name, *_) in CHECKPOINT_FILES.items():
        if variant not in kinds:
            write_line(f"{f'no {variant}':<18}its LoRA would be models/artmancer/{name}")
    return 0


def _fetch(options: argparse.Namespace) -> int:
    """Download a model. Its size comes first, on standard error."""
    if options.model not in (None, _QWEN, *_DOWNLOADS):
        options.error(f"argument MODEL: {not_a_choice(options.model, _DOWNLOADS)}")
    if options.model == "fastsam-s":
        folder = options.folder or models.default_folder("fastsam")
        _announce("FastSAM-s (24 MB)", folder)
        path = models.fetch_fastsam(folder)
    elif options.model == "big-lama":
        folder = options.folder or models.default_folder("inpaint")
        _announce("big-LaMa (206 MB)", folder)
        path = models.fetch_lama(folder)
    else:
        name = models.DEFAULT_BASE if options.model in (None, _QWEN) else options.model
        base = models.BASES[name]
        path = options.folder or models.default_folder("diffusers") / base.repository.split("/")[1]
        _announce(f"{base.repository} ({base.size} GB, revision {base.revision})", path)
        models.fetch_base(path, name)
    write_line(
        json.dumps({"path": str(path)}) if options.json else f"{path}: complete, every file checked"
    )
    return 0


def _announce(model: str, folder: Path) -> None:
    sys.stderr.write(f"Downloading {model} into '{folder}'.\n")


def _set(options: argparse.Namespace) -> int:
    """Write a model set for the files in ComfyUI's folders."""
    if options.model is None:
        options.error("set needs the name of the model set")
    folder = models.default_folder(model_sets.FOLDER)
    model_set, chosen = choose(options.model, models.set_files())
    path = model_sets.write(folder, model_set)
    if options.json:
        write_line(json.dumps({"path": str(path), "set": model_set.as_dict()}))
        return 0
    write_line(f"{path}: `artmancer edit --editor '{model_set.name}'`, or Load Editor")
    for choice in chosen:
        others = f"others: {', '.join(choice.others)}" if choice.others else ""
        notes = "; ".join(filter(None, (choice.note, others)))
        write_line(f"{choice.part:<22}{choice.name}{f'  ({notes})' if notes else ''}")
    return 0


def _tag(options: argparse.Namespace) -> int:
    """Write the recipe into a checkpoint's metadata."""
    if options.model is None or options.recipe is None:
        options.error("tag needs the checkpoint's file and --recipe")
    values = {
        name: getattr(options, name)
        for name in ("recipe", "resolution", "prompt")
        if getattr(options, name) is not None
    }
    path = tag(Path(options.model), values, options.output)
    if options.json:
        write_line(json.dumps({"path": str(path), "metadata": values}))
    else:
        texts = ", ".join(f"{name} {value}" for name, value in values.items())
        write_line(f"{path}: {texts}; the weights are unchanged")
    return 0
