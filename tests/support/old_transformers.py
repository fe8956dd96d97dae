"""transformers 4.57.6, which computes Qwen2.5-VL's positions in every call, beside the installed
version.

`install` puts it into a folder of its own. Run as a program with that folder on PYTHONPATH, this
file encodes a prompt with it:

    python old_transformers.py BASE TEXT RESULT IMAGE...

BASE is a folder of a base, TEXT is the whole text with the template, RESULT is a safetensors file
for `input_ids`, `pixel_values`, `positions` and `hidden_states`.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

VERSION = "4.57.6"

INSTALL_TIMEOUT = 300.0
"""Longest installation in seconds."""

RUN_TIMEOUT = 600.0
"""Longest run in seconds; on a busy machine the imports take a minute."""


def install(folder: Path) -> str:
    """Install it into a folder, without torch; return why that failed, "" if it did not."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        return "there is no uv"
    command = [uv, "pip", "install", "--python", sys.executable, "--target", str(folder)]
    try:
        done = subprocess.run(
            [*command, f"transformers=={VERSION}"],
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return f"no registry answered in {INSTALL_TIMEOUT:.0f} s"
    return done.stderr[-500:] if done.returncode else ""


def encode(packages: Path, base: Path, text: str, images: list[Path], result: Path) -> Any:
    """Encode a text with images in a process of its own; return the tensors by name.

    Parameters
    ----------
    packages : the folder of `install`
    result : a file to write
    """
    from safetensors.torch import load_file

    done = subprocess.run(
        [sys.executable, __file__, str(base), text, str(result), *map(str, images)],
        env={**os.environ, "PYTHONPATH": str(packages), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return load_file(result)


def main(base: Path, text: str, result: Path, paths: list[str]) -> None:
    """Encode with the transformers that is on the path."""
    import torch
    import transformers
    from PIL import Image
    from safetensors.torch import save_file
    from transformers import (
        Qwen2_5_VLForConditionalGeneration,
        Qwen2TokenizerFast,
        Qwen2VLImageProcessor,
        Qwen2VLImageProcessorFast,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )
    from transformers.utils import is_torchvision_available

    assert transformers.__version__ == VERSION
    folder = base / "processor"
    # Its default: torchvision where there is one, else Pillow. The two round differently.
    fast = is_torchvision_available()
    image_processor = Qwen2VLImageProcessorFast if fast else Qwen2VLImageProcessor
    processor = Qwen2VLProcessor(
        image_processor=image_processor.from_pretrained(folder),
        tokenizer=Qwen2TokenizerFast.from_pretrained(folder),
        video_processor=Qwen2VLVideoProcessor(),
    )
    inputs = processor(
        text=[text], images=[Image.open(path) for path in paths], return_tensors="pt"
    )
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        base / "text_encoder", dtype=torch.float32
    ).eval()
    positions: list[torch.Tensor] = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: positions.append(kwargs["position_ids"]), with_kwargs=True
    )
    with torch.no_grad():
        hidden_states = model(**inputs, output_hidden_states=True).hidden_states[-1]
    save_file(
        {
            "input_ids": inputs["input_ids"],
            "pixel_values": inputs["pixel_values"],
            "positions": positions[0].contiguous(),
            "hidden_states": hidden_states,
        },
        result,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
