"""What is installed, which device there is, where models are looked for,
and how to get what is missing.
"""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import __version__

MODEL_FOLDERS = ("diffusers", "loras", "artmancer", "fastsam", "rembg")


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    ok : False where something is missing; advice : how to get it
    """

    name: str
    ok: bool
    found: str
    advice: str = ""


def examine() -> list[Finding]:
    """Look at this machine; nothing is downloaded or changed."""
    return [
        Finding("artmancer", True, __version__),
        Finding("python", True, platform.python_version()),
        _package("torch", "pip install torch"),
        _device(),
        _package("opencv-python-headless", "pip install opencv-python-headless", "opencv-python"),
        _package(
            "pypatchmatch",
            "pip install pypatchmatch (Python 3.11 or newer); until then removal smears",
        ),
        _package(
            "ultralytics",
            "for Smart Mask with FastSAM: pip install ultralytics; until then it is GrabCut",
        ),
        _package("rembg", "for Remove Background: pip install rembg onnxruntime"),
        _package(
            "onnxruntime", "for Remove Background: pip install onnxruntime", "onnxruntime-gpu"
        ),
        *_comfyui(),
        Finding("weights", True, "none needed: the draft editor works without"),
    ]


def comfyui_folder() -> Path:
    """Where ComfyUI is looked for: $COMFYUI_PATH, else comfy-cli's default workspace."""
    return Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")


def _package(name: str, advice: str, *others: str) -> Finding:
    for package in (name, *others):
        try:
            return Finding(name, True, version(package))
        except PackageNotFoundError:
            continue
    return Finding(name, False, "not installed", advice)


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return Finding(
            "device",
            True,
            f"{torch.cuda.get_device_name()}, {free / 2**30:.1f} of {total / 2**30:.1f} GB free",
        )
    if torch.backends.mps.is_available():
        return Finding("device", True, "Apple GPU (mps)")
    return Finding(
        "device", True, f"CPU, {torch.get_num_threads()} threads; the draft editor needs no more"
    )


def _comfyui() -> list[Finding]:
    folder = comfyui_folder()
    if not (folder / "main.py").is_file():
        advice = "set COMFYUI_PATH to your ComfyUI, or install one with comfy-cli: comfy install"
        return [Finding("ComfyUI", False, f"not in {folder}", advice)]
    return [
        Finding("ComfyUI", True, str(folder)),
        *(
            Finding(f"models/{name}", True, _listing(folder / "models" / name))
            for name in MODEL_FOLDERS
        ),
    ]


def _listing(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: not there yet; it is optional"
    files = sorted(path.name for path in folder.iterdir() if not path.name.startswith("put_"))
    return f"{folder}: {', '.join(files) or 'empty'}"
