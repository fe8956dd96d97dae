"""`artmancer models`: list the models on this machine, or download one."""

import argparse
import json
from pathlib import Path

from .. import models
from ..variants import CHECKPOINT_FILES
from .arguments import Subparsers, write_line


def add_parser(commands: Subparsers) -> None:
    """Add `artmancer models` to the parser."""
    parser = commands.add_parser(
        "models",
        help="list the models on this machine; `models fetch` downloads the base",
        description="List the base models and LoRAs in ComfyUI's folders ($COMFYUI_PATH) and those "
        "that MODEL_PATH and MODEL_FILE... name; or download Qwen-Image-Edit-2509 (58 GB) or "
        "FastSAM-s (24 MB, for Smart Mask). A download that breaks off keeps its whole files; the "
        "next run starts the others anew.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("action", nargs="?", choices=("list", "fetch"), default="list")
    parser.add_argument("model", nargs="?", choices=("qwen", "fastsam-s"), default="qwen")
    parser.add_argument(
        "--folder",
        type=Path,
        help="fetch: folder to download into; default: ComfyUI's folder for this kind of model",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """List models, or download one."""
    if options.action == "fetch":
        return _fetch(options)
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
    """Download a model."""
    if options.model == "fastsam-s":
        path = models.fetch_fastsam(options.folder or models.default_folder("fastsam"))
    else:
        path = options.folder or models.default_folder("diffusers") / models.BASE_NAME
        models.fetch_base(path)
    write_line(
        json.dumps({"path": str(path)}) if options.json else f"{path}: complete, every file checked"
    )
    return 0
