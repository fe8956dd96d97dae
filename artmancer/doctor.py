"""Examine this machine: what is installed, which editors and tools run here, what is missing.

Reads metadata and headers only: no library is imported, so that the answer comes at once.
"""

import platform
import re
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

from . import __version__, models
from .folders import MODEL_FOLDERS, comfyui_folder

BASE_PACKAGES = ("torch", "numpy", "Pillow", "opencv-python-headless", "safetensors", "tqdm")
"""Packages that everything needs."""

OPTIONAL_PACKAGES = {
    "pypatchmatch": "for removals by the draft editor; without it OpenCV fills, and smears. "
    "It needs Python 3.11 or newer",
    "spandrel": "loads LaMa; ComfyUI's requirements bring it",
}
"""Packages that make something better, and what."""

QWEN_PACKAGES = ("diffusers", "transformers", "accelerate", "peft")
FASTSAM_PACKAGES = ("ultralytics",)
REMBG_PACKAGES = ("rembg", "onnxruntime")
GATEWAY_PACKAGES = (
    "aiohttp",
    "fastapi",
    "httptools",
    "httpx",
    "prometheus-client",
    "pybase64",
    "pydantic",
    "pydantic-settings",
    "python-multipart",
    "uvicorn",
)

_ALTERNATIVES = {
    "opencv-python-headless": ("opencv-python", "opencv-contrib-python"),
    "onnxruntime": ("onnxruntime-gpu",),
}
"""Packages that serve as well as the one named."""


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes
    ----------
    name : of a package, folder or feature
    status : "ok"; "missing": needed and not there; "optional": not there, and needed for one
        feature only; "empty": a folder without models; "off": a feature that does not run here
    found : the version, path or reason
    advice : how to get what is missing
    """

    name: str
    status: str
    found: str
    advice: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON; "ok" is False where something needed is missing."""
        return {**asdict(self), "ok": self.status != "missing"}


def examine() -> list[Finding]:
    """List what is on this machine; nothing is downloaded or changed."""
    return [
        Finding("artmancer", "ok", __version__),
        Finding("python", "ok", platform.python_version()),
        *(_package(name) for name in BASE_PACKAGES),
        *(_package(name, purpose) for name, purpose in OPTIONAL_PACKAGES.items()),
        _device(),
        *_comfyui(),
        *_features(),
    ]


def _features() -> list[Finding]:
    """Say for each editor and tool whether it would run here, and why not."""
    return [
        _feature("editor draft", BASE_PACKAGES, "needs no models and no GPU"),
        _feature("editor qwen", (*BASE_PACKAGES, *QWEN_PACKAGES), *_base_model()),
        _feature(
            "Smart Mask, FastSAM", FASTSAM_PACKAGES, *_weights("fastsam", "models fetch fastsam-s")
        ),
        _feature("Remove Background", REMBG_PACKAGES, *_weights("rembg")),
        _feature("gateway (serve)", GATEWAY_PACKAGES, "needs a running ComfyUI"),
    ]


def _feature(
    name: str, packages: tuple[str, ...], found: str, reason: str = "", advice: str = ""
) -> Finding:
    """Make the finding on a feature.

    Parameters
    ----------
    found : what to say where it runs
    reason, advice : why its models do not let it run, and what to do; empty: they do
    """
    absent = [package for package in packages if _version(package) is None]
    reasons = [f"{', '.join(absent)} not installed"] if absent else []
    advices = [f"pip install {' '.join(absent)}"] if absent else []
    if reason:
        reasons.append(reason)
        advices.append(advice)
    if reasons:
        return Finding(name, "off", "; ".join(reasons), "; ".join(filter(None, advices)))
    return Finding(name, "ok", f"runs here: {found}")


def _base_model() -> tuple[str, str, str]:
    if folder := models.base():
        return str(folder), "", ""
    return "", "no base model", "`artmancer models fetch` downloads one (58 GB)"


def _weights(kind: str, command: str = "") -> tuple[str, str, str]:
    folder = comfyui_folder() / "models" / kind
    files = _files(folder)
    if files:
        return ", ".join(files), "", ""
    advice = f"`artmancer {command}` downloads one" if command else f"put its .onnx into {folder}"
    return "", f"no model in models/{kind}", advice


def _package(name: str, purpose: str = "") -> Finding:
    installed = _version(name)
    if installed:
        return Finding(name, "ok", installed)
    if purpose:
        return Finding(name, "optional", "not installed", f"{purpose}: pip install {name}")
    return Finding(name, "missing", "not installed", f"pip install {name}")


def _version(name: str) -> str | None:
    for package in (name, *_ALTERNATIVES.get(name, ())):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def _device() -> Finding:
    """Name the device that models would run on, without asking torch, which takes seconds."""
    cuda = _torch_cuda()
    if command := which("nvidia-smi"):
        query = ["--query-gpu=name,memory.free,memory.total", "--format=csv,noheader"]
        answer = subprocess.run(
            [command, *query], capture_output=True, text=True, timeout=10, check=False
        )
        if answer.returncode == 0 and answer.stdout.strip():
            name, free, total = (part.strip() for part in answer.stdout.splitlines()[0].split(","))
            if cuda:
                return Finding("device", "ok", f"{name}, {free} of {total} free")
            return Finding(
                "device", "off", f"{name}, which this torch cannot use", "install torch with CUDA"
            )
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return Finding("device", "ok", "Apple GPU")
    return Finding("device", "ok", "CPU; the draft editor needs no more")


def _torch_cuda() -> str | None:
    """Return the CUDA version that torch was built for, read from its version file."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = Path(spec.origin).with_name("version.py").read_text("utf-8")
    match = re.search(r"^cuda[^=\n]*= '([\d.]+)'", text, re.M)
    return match[1] if match else None


def _comfyui() -> list[Finding]:
    folder = comfyui_folder()
    if not (folder / "main.py").is_file():
        advice = "set COMFYUI_PATH to your ComfyUI, or install one with comfy-cli: comfy install"
        return [Finding("ComfyUI", "missing", f"not in {folder}", advice)]
    return [
        Finding("ComfyUI", "ok", str(folder)),
        *(_model_folder(folder / "models" / name) for name in MODEL_FOLDERS),
    ]


def _model_folder(folder: Path) -> Finding:
    name, files = f"models/{folder.name}", _files(folder)
    if files:
        return Finding(name, "ok", f"{folder}: {', '.join(files)}")
    return Finding(name, "empty", str(folder) if folder.is_dir() else f"{folder} is not there")


def _files(folder: Path) -> list[str]:
    """List a model folder; ComfyUI's put_..._here files are not models."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("put_"))
