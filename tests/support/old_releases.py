"""Older releases of transformers and diffusers beside the installed ones, as a reference.

transformers 4.57.6 computes Qwen2.5-VL's positions in every call. diffusers 0.36.0 is the first
release with QwenImageEditPlusPipeline; on that transformers its results have right positions.

`install` puts both into a folder. With that folder on PYTHONPATH, this file is a program that
answers requests: `python old_releases.py REQUESTS.json`.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[2]
"""The repository."""

TRANSFORMERS = "4.57.6"
DIFFUSERS = "0.36.0"

INSTALL_TIMEOUT = 300.0
"""Longest installation in seconds."""

RUN_TIMEOUT = 600.0
"""Longest run in seconds; on a busy machine the imports take a minute."""


def install(folder: Path, *packages: str) -> str:
    """Install packages into a folder; return why that failed, "" if it did not.

    Parameters
    ----------
    packages : arguments of `uv pip install`; default: the two older releases, without torch
    """
    packages = packages or (f"transformers=={TRANSFORMERS}", f"diffusers=={DIFFUSERS}")
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        return "there is no uv"
    command = [uv, "pip", "install", "--python", sys.executable, "--target", str(folder)]
    try:
        done = subprocess.run(
            [*command, *packages],
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return f"no registry answered in {INSTALL_TIMEOUT:.0f} s"
    return done.stderr[-500:] if done.returncode else ""


def run(packages: Path, function: str, folder: Path, requests: list[dict[str, Any]]) -> Any:
    """Call `encode` or `sample` for each request in one process; return their tensors by name.

    Parameters
    ----------
    packages : the folder of `install`
    folder : receives the requests and a safetensors file for each result
    requests : the function's arguments
    """
    from safetensors.torch import load_file

    results = [str(folder / f"old-{index}.safetensors") for index in range(len(requests))]
    path = folder / "requests.json"
    path.write_text(json.dumps({"function": function, "requests": requests, "results": results}))
    done = subprocess.run(
        [sys.executable, __file__, str(path)],
        env={
            **os.environ,
            "PYTHONPATH": f"{packages}{os.pathsep}{ROOT}",
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [load_file(result) for result in results]


def _processor(base: Path) -> Any:
    from transformers import (
        Qwen2TokenizerFast,
        Qwen2VLImageProcessor,
        Qwen2VLImageProcessorFast,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )
    from transformers.utils import is_torchvision_available

    folder = base / "processor"
    # The default: torchvision where there is one, else Pillow. The two round differently.
    fast = is_torchvision_available()
    image_processor = Qwen2VLImageProcessorFast if fast else Qwen2VLImageProcessor
    return Qwen2VLProcessor(
        image_processor=image_processor.from_pretrained(folder),
        tokenizer=Qwen2TokenizerFast.from_pretrained(folder),
        video_processor=Qwen2VLVideoProcessor(),
    )


def _text_encoder(base: Path) -> Any:
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration.from_pretrained(
        base / "text_encoder", dtype=torch.float32
    ).eval()


def encode(base: str, template: str, text: str, prompt: str, images: list[str]) -> dict[str, Any]:
    """Encode a text and images, and the same prompt by our own function.

    Parameters
    ----------
    template : the template of the system prompt
    text : what is put into it: the prompt with the text for each image before it
    prompt : the prompt alone
    """
    import torch
    from PIL import Image

    from artmancer.qwen import prompt as ours

    processor, model = _processor(Path(base)), _text_encoder(Path(base))
    pictures = [Image.open(path) for path in images]
    inputs = processor(text=[template.format(text)], images=pictures, return_tensors="pt")
    positions: list[torch.Tensor] = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: positions.append(kwargs["position_ids"]), with_kwargs=True
    )
    pipeline = SimpleNamespace(
        processor=processor,
        text_encoder=model,
        prompt_template_encode=template,
        prompt_template_encode_start_idx=0,
    )
    with torch.no_grad():
        hidden_states = model(**inputs, output_hidden_states=True).hidden_states[-1]
        our_embeds = ours.encode(pipeline, prompt, pictures, torch.device("cpu"))
    return {
        "input_ids": inputs["input_ids"],
        "pixel_values": inputs["pixel_values"],
        "positions": positions[0],
        "hidden_states": hidden_states,
        "our embeds": our_embeds,
    }


def sample(base: str, images: list[str], condition_pixels: int, seed: int, **call: Any) -> Any:
    """Edit an image with diffusers' pipeline.

    Parameters
    ----------
    call : further arguments of the pipeline
    """
    import diffusers
    import torch
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as module
    from PIL import Image

    assert diffusers.__version__ == DIFFUSERS
    module.VAE_IMAGE_SIZE = condition_pixels
    folder = Path(base)
    processor = _processor(folder)
    pipeline = module.QwenImageEditPlusPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        vae=diffusers.AutoencoderKLQwenImage.from_pretrained(folder / "vae"),
        text_encoder=_text_encoder(folder),
        tokenizer=processor.tokenizer,
        processor=processor,
        transformer=diffusers.QwenImageTransformer2DModel.from_pretrained(folder / "transformer"),
    )
    output = pipeline(
        image=[Image.open(path) for path in images],
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
        **call,
    )
    return {"image": output.images.permute(0, 2, 3, 1)}


def main() -> None:
    """Answer the requests in the file that the command line names."""
    import transformers
    from safetensors.torch import save_file

    assert transformers.__version__ == TRANSFORMERS
    job = json.loads(Path(sys.argv[1]).read_text())
    function = {"encode": encode, "sample": sample}[job["function"]]
    for request, result in zip(job["requests"], job["results"], strict=True):
        tensors = function(**request)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, result)


if __name__ == "__main__":
    main()
