"""Examination of this machine: installed packages, model files, and the features that run here.

Reads metadata and headers only. No library is imported, which would take seconds.
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

from . import __version__, model_sets, models
from .errors import ArtMancerError
from .folders import (
    LAMA_FILE,
    MODEL_FOLDERS,
    SEGMENTER_FOLDERS,
    SEGMENTER_SUFFIXES,
    comfyui_folder,
)

BASE_PACKAGES = ("torch", "numpy", "Pillow", "opencv-python-headless", "safetensors", "tqdm")
"""Packages that are always needed."""

OPTIONAL_PACKAGES = {
    "pypatchmatch": "for removals by the draft editor; without it OpenCV fills, which smears. "
    "It needs Python 3.11 or newer",
    "spandrel": "loads LaMa; ComfyUI's requirements include it",
}
"""Packages that improve a feature, with their purpose."""

LAMA_PACKAGES = ("spandrel",)
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
"""Packages that serve as well as the named package, by its name."""

_NVIDIA_SMI_TIMEOUT = 10.0
"""Timeout of nvidia-smi in seconds."""


@dataclass(frozen=True)
class Finding:
    """A line of the examination.

    Attributes
    ----------
    name : name of a package, folder or feature
    status : "ok"; "missing": not installed, and always needed; "optional": not installed, and
        needed for one feature only; "empty": a folder without models; "off": a feature that does
        not run here
    found : the version, the path or the reason
    advice : how to install or download what is missing
    """

    name: str
    status: str
    found: str
    advice: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON. "ok" is False where something that is always needed is missing."""
        return {**asdict(self), "ok": self.status != "missing"}


def examine() -> list[Finding]:
    """Examine this machine. Nothing is downloaded or changed."""
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
    """Make the findings on the editors and tools: whether each runs here, or why not."""
    return [
        _feature("editor draft", BASE_PACKAGES, "needs no models and no GPU"),
        _feature("editor lama", (*BASE_PACKAGES, *LAMA_PACKAGES), *_lama()),
        _feature("editor qwen", (*BASE_PACKAGES, *QWEN_PACKAGES), *_base_model()),
        *_model_sets(),
        _feature(
            "Smart Mask, FastSAM",
            FASTSAM_PACKAGES,
            *_weights(SEGMENTER_FOLDERS, SEGMENTER_SUFFIXES, "models fetch fastsam-s"),
        ),
        _feature("Remove Background", REMBG_PACKAGES, *_weights(("rembg",), (".onnx",))),
        _feature("gateway (serve)", GATEWAY_PACKAGES, "needs a running ComfyUI"),
    ]


def _feature(
    name: str, packages: tuple[str, ...], found: str, reason: str = "", advice: str = ""
) -> Finding:
    """Make the finding on a feature.

    Parameters
    ----------
    found : text of the finding where the feature runs
    reason : why the feature does not run with the models here; empty: it does
    advice : what to do then
    """
    reasons = []
    advices = []
    absent = [package for package in packages if _version(package) is None]
    if absent:
        reasons.append(f"{', '.join(absent)} not installed")
        advices.append(f"pip install {' '.join(absent)}")
    if reason:
        reasons.append(reason)
        advices.append(advice)
    if reasons:
        return Finding(name, "off", "; ".join(reasons), "; ".join(filter(None, advices)))
    return Finding(name, "ok", f"runs here: {found}")


def _base_model() -> tuple[str, str, str]:
    """Return `found`, `reason` and `advice` for _feature."""
    folder = models.base()
    if folder is None:
        return "", "no base model", "`artmancer models fetch` downloads one (58 GB)"
    reason = models.base_problem(folder)
    advice = "" if folder in models.base_folders() else "correct or remove MODEL_PATH"
    return str(folder), reason, advice


def _model_sets() -> list[Finding]:
    """Make the findings on the model sets: whether ComfyUI would run each."""
    files = models.set_files()
    findings = []
    for name, path in models.set_paths().items():
        try:
            model_set = model_sets.read(path)
            found, reason = f"{model_set.unet} in ComfyUI", models.set_problem(model_set, files)
        except ArtMancerError as error:
            found, reason = "", str(error)
        advice = f"put what is missing there, or correct {path}"
        findings.append(_feature(f"editor {name}", BASE_PACKAGES, found, reason, advice))
    return findings


def _lama() -> tuple[str, str, str]:
    """Return `found`, `reason` and `advice` for _feature."""
    if path := models.lama():
        return str(path), "", ""
    advice = (
        "`artmancer models fetch big-lama` downloads it (206 MB); until then PatchMatch fills in "
        "its place in ComfyUI and over HTTP, and the report says so"
    )
    return "", f"no {LAMA_FILE}", advice


def _weights(
    folders: tuple[str, ...], suffixes: tuple[str, ...], command: str = ""
) -> tuple[str, str, str]:
    """Return `found`, `reason` and `advice` for _feature.

    Parameters
    ----------
    folders : the folders of its models in ComfyUI's models folder, the preferred one first
    suffixes : endings of a model's file
    command : the command that downloads a model; empty: there is none
    """
    models_folder = comfyui_folder() / "models"
    files = [
        name
        for folder in folders
        for name in _files(models_folder / folder)
        if name.endswith(suffixes)
    ]
    if files:
        return ", ".join(files), "", ""
    advice = (
        f"`artmancer {command}` downloads one"
        if command
        else f"put a model's {suffixes[0]} into {models_folder / folders[0]}"
    )
    return "", f"no model in {' or '.join(f'models/{folder}' for folder in folders)}", advice


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
    """Make the finding on the device that models run on. It does not import torch, which takes
    seconds.
    """
    if gpu := _nvidia_gpu():
        name, free, total = gpu
        if _torch_cuda():
            return Finding("device", "ok", f"{name}, {free} of {total} free")
        return Finding(
            "device", "off", f"{name}, which this torch cannot use", "install torch with CUDA"
        )
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return Finding("device", "ok", "Apple GPU")
    return Finding("device", "ok", "CPU, which is enough for the draft editor")


def _nvidia_gpu() -> tuple[str, str, str] | None:
    """Return the name, free memory and total memory of the first NVIDIA GPU, as nvidia-smi prints
    them; None: it finds none, or does not answer.
    """
    command = which("nvidia-smi")
    if command is None:
        return None
    query = ["--query-gpu=name,memory.free,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(
            [command, *query],
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    if answer.returncode or not answer.stdout.strip():
        return None
    name, free, total = (part.strip() for part in answer.stdout.splitlines()[0].split(","))
    return name, free, total


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
        *(_model_folder(name, folder / "models" / name) for name in MODEL_FOLDERS),
    ]


def _model_folder(name: str, folder: Path) -> Finding:
    name = f"models/{name}"
    files = _files(folder)
    if files:
        return Finding(name, "ok", f"{folder}: {', '.join(files)}")
    return Finding(name, "empty", str(folder) if folder.is_dir() else f"{folder} does not exist")


def _files(folder: Path) -> list[str]:
    """List the models in a folder. ComfyUI's put_..._here files are not models."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("put_"))
