"""Starts ComfyUI in a process that has imported what takes long before it is told to start.

    python -m artmancer.hosting.launch MAIN [arguments of ComfyUI]

When it has imported, it closes its standard output, waits for a line on its standard input, and
becomes ComfyUI. By then its memory may have been kept as a snapshot that was taken without a GPU:
nothing it imports may ask for one.
"""

import importlib
import os
import runpy
import sys
from contextlib import suppress
from pathlib import Path

GO = b"go\n"
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
"""Of ComfyUI and of the editor; one that is not installed is left out."""


def import_ahead() -> None:
    """Import, and let nothing ask for a GPU: torch would remember for good that there was none."""
    import torch

    is_available = torch.accelerator.is_available
    torch.accelerator.is_available = lambda: False
    for name in IMPORTS:
        with suppress(ImportError):
            importlib.import_module(name)
    torch.accelerator.is_available = is_available
    from diffusers.utils.torch_utils import TorchDeviceBackend

    # diffusers asks as it is imported, and remembers, too
    TorchDeviceBackend._detect_device_type.cache_clear()


def main(comfyui: str, *arguments: str) -> None:
    import_ahead()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    if sys.stdin.buffer.readline() != GO:
        return  # who started it is gone
    sys.argv = [comfyui, *arguments]
    sys.path[0] = str(Path(comfyui).parent)
    runpy.run_path(comfyui, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
