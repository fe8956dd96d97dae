"""A tiny base with one part quantized by a package that is not installed here.

With a folder that holds the package on PYTHONPATH, this file is a program:
`python quantized_base.py PACKAGE BASE FOLDER RESULT` quantizes a part of FOLDER, which is a copy of
BASE, and loads it. RESULT is JSON, see `main`.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from support import old_releases
from support.paths import ROOT

PACKAGES = {"torchao": "0.18.0", "bitsandbytes": "0.50.2"}
"""Versions of the packages that are tested."""

PARTS = {"torchao": "transformer", "bitsandbytes": "text_encoder"}
"""The part that each package quantizes: diffusers loads models of bitsandbytes on a GPU only."""

EXTRA = {"transformer": "transformer_blocks.0.attn.to_q.smooth", "text_encoder": "model.smooth"}
"""Name of a weight that the part's model does not have."""


def run(package: str, base: Path, folder: Path, work: Path) -> dict[str, Any]:
    """Run the program with a package that is installed into `work`; return its result.

    Returns
    -------
    see `main`; only "skipped", with the reason, where the package cannot be installed
    """
    packages, result = work / "packages", work / "result.json"
    requirement = f"{package}=={PACKAGES[package]}"
    if reason := old_releases.install(packages, "--no-deps", requirement):
        return {"skipped": f"{requirement} cannot be installed: {reason}"}
    done = subprocess.run(
        [sys.executable, __file__, package, str(base), str(folder), str(result)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (packages, ROOT / "tests", ROOT))),
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        timeout=old_releases.RUN_TIMEOUT,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answer: dict[str, Any] = json.loads(result.read_text())
    return answer


def _quantize_transformer(source: Path, target: Path) -> None:
    import torch
    from diffusers import QwenImageTransformer2DModel, TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig

    model = QwenImageTransformer2DModel.from_pretrained(
        source,
        torch_dtype=torch.bfloat16,
        quantization_config=TorchAoConfig(Int8WeightOnlyConfig()),
    )
    model.save_pretrained(target)


def _quantize_text_encoder(source: Path, target: Path) -> None:
    import torch
    from transformers import BitsAndBytesConfig, Qwen2_5_VLForConditionalGeneration

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        # The tiny vision model's layers are narrower than a block of 64 weights.
        llm_int8_skip_modules=["model.visual", "lm_head"],
    )
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        source, dtype=torch.bfloat16, quantization_config=config
    )
    model.save_pretrained(target)


def _add_weight(path: Path, name: str) -> None:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        # The open file cannot be iterated.
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file({**weights, name: torch.ones(3)}, path, metadata)


def main() -> None:
    """Write the result: "types", the types of the part's weights; "notes" of the base, loaded with
    the precision fp8; "difference", the largest of any pixel from BASE's image, and "deviation" of
    that image; "message", the error with one weight more in the part.
    """
    import torch
    from PIL import Image

    from artmancer.errors import ArtMancerError
    from artmancer.options import Sampling
    from artmancer.progress import no_progress
    from artmancer.qwen import pipeline, sampler

    def sample(loaded: pipeline.Base) -> torch.Tensor:
        request = sampler.SampleRequest("x", [Image.new("RGB", (96, 96), "teal")], 96, 96, 0)
        return sampler.sample(loaded, request, Sampling(steps=2), no_progress)

    package, (base, folder, result) = sys.argv[1], map(Path, sys.argv[2:])
    part = PARTS[package]
    shutil.rmtree(folder / part)
    quantize = {"torchao": _quantize_transformer, "bitsandbytes": _quantize_text_encoder}
    quantize[package](base / part, folder / part)
    loaded = pipeline.load(folder, "fp8")
    model = getattr(loaded.pipeline, part)
    expected = sample(pipeline.load(base, "bf16"))
    difference = (sample(loaded) - expected).abs().max()
    message = ""
    _add_weight(next((folder / part).glob("*.safetensors")), EXTRA[part])
    try:
        pipeline.load(folder)
    except ArtMancerError as error:
        message = str(error)
    answer = {
        "types": sorted({type(weight).__name__ for weight in model.parameters()}),
        "notes": loaded.notes,
        "difference": difference.item(),
        "deviation": expected.std().item(),
        "message": message,
    }
    result.write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
