"""Import ComfyUI's and the editor's packages ahead, then wait, then become ComfyUI.

    python -m artmancer.hosting.preload MAIN [arguments of ComfyUI]

When everything is imported, the process closes its standard output and waits for START on its
standard input. While it waits, Modal can save its memory as a snapshot. That machine may have no
GPU, so the imports must not look for a GPU.
"""

import importlib
import os
import runpy
import sys
from contextlib import suppress
from pathlib import Path

START = b"start\n"
"""Line on standard input that starts ComfyUI."""

IMPORTS = (
    "torch",
    "torchvision",
    "torchaudio",
    "torchsde",
    "numpy",
    "scipy",
    "PIL.Image",
    "cv2",
    "av",
    "einops",
    "aiohttp.web",
    "alembic",
    "sqlalchemy.orm",
    "pydantic",
    "safetensors.torch",
    "kornia",
    "spandrel",
    "transformers.models.qwen2.tokenization_qwen2",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.qwen2_vl.processing_qwen2_vl",
    "peft",
    "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus",
)
"""Modules of ComfyUI and the editor; those that are not installed are skipped."""


def import_ahead() -> None:
    """Import IMPORTS without looking for a GPU: torch would remember that there was none."""
    import torch

    is_available = torch.accelerator.is_available
    torch.accelerator.is_available = lambda: False
    for name in IMPORTS:
        with suppress(ImportError):
            importlib.import_module(name)
    torch.accelerator.is_available = is_available
    from diffusers.utils.torch_utils import TorchDeviceBackend

    # diffusers looks for a GPU when it is imported, and caches the answer.
    TorchDeviceBackend._detect_device_type.cache_clear()


def main(comfyui: str, *arguments: str) -> None:
    """Preload, wait for START, and run ComfyUI's main.py.

    Parameters
    ----------
    comfyui : path of main.py
    arguments : options of ComfyUI
    """
    import_ahead()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    if sys.stdin.buffer.readline() != START:
        # The parent process is gone.
        return
    sys.argv = [comfyui, *arguments]
    sys.path[0] = str(Path(comfyui).parent)
    runpy.run_path(comfyui, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
