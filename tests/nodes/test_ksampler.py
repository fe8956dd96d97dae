"""Encode Conditions and Stitch around ComfyUI's own KSampler,
with models in ComfyUI's own format.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pytest
import torch
from PIL import Image
from support.comfyui import ComfyUI
from support.paths import EXAMPLES, ROOT

from artmancer import images, mask_ops
from artmancer.folders import comfyui_folder

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    """A ComfyUI of its own, with small models in its folders, see support/native_models.py."""
    if not (comfyui_folder() / "main.py").is_file():
        pytest.skip("no ComfyUI")
    server = ComfyUI(tmp_path_factory.mktemp("native"))
    try:
        script = ROOT / "tests" / "support" / "native_models.py"
        shutil.copy(script, server.base / "custom_nodes")
        command = [sys.executable, script, comfyui_folder(), server.base / "models"]
        subprocess.run(command, check=True, capture_output=True)
        server.wait()
        yield server
    finally:
        server.stop()


def graph(comfyui: ComfyUI, **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "photo": {
            "class_type": "LoadImage",
            "inputs": {"image": comfyui.upload(EXAMPLES / "coffee.png")},
        },
        "mask": {
            "class_type": "LoadImageMask",
            "inputs": {"image": comfyui.upload(EXAMPLES / "coffee_mask.png"), "channel": "red"},
        },
        "split": {
            "class_type": "ArtMancer_SplitConditions",
            "inputs": {
                "image": ["photo", 0],
                "mask": ["mask", 0],
                "recipe": "auto",
                "resolution": "auto",
                "context": 1.5,
                "grow": 0,
                "feather": 8,
                "fill_holes": False,
            },
        },
        "model": {
            "class_type": "UNETLoader",
            "inputs": {"unet_name": "one-block.safetensors", "weight_dtype": "default"},
        },
        "clip": {"class_type": "StandInClip", "inputs": {}},
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "narrow.safetensors"}},
        "encode": {
            "class_type": "ArtMancer_EncodeConditions",
            "inputs": {
                "clip": ["clip", 0],
                "vae": ["vae", 0],
                "conditions": ["split", 3],
                "prompt": "remove the spoon",
                "negative": " ",
            },
        },
        "sample": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["model", 0],
                "positive": ["encode", 0],
                "negative": ["encode", 1],
                "latent_image": ["encode", 2],
                "seed": 7,
                "steps": 1,
                "cfg": 2.0,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        },
        "decode": {
            "class_type": "VAEDecode",
            "inputs": {"samples": ["sample", 0], "vae": ["vae", 0]},
        },
        "stitch": {
            "class_type": "ArtMancer_Stitch",
            "inputs": {
                "conditions": ["split", 3],
                "edited": ["decode", 0],
                "variant": "removal",
                "match_colors": True,
                "transfer": "colors",
            },
        },
        "result": {
            "class_type": "ArtMancer_EndpointResult",
            "inputs": {"value": ["stitch", 0], "name": "image", "help": ""},
        },
        "report": {
            "class_type": "ArtMancer_EndpointResult",
            "inputs": {"value": ["stitch", 1], "name": "report", "help": ""},
        },
        "told": {
            "class_type": "TellConditioning",
            "inputs": {"conditioning": ["encode", 0], "latent": ["encode", 2]},
        },
    }
    for name, value in changes.items():
        node, _, field = name.partition("__")
        made[node]["inputs"][field] = value
    return made


def test_ksampler_edits_the_crop_and_every_other_pixel_stays(native: ComfyUI) -> None:
    run = native.run(graph(native))
    assert run.outcome == "execution_success", run.events[-1]
    told = json.loads(run.outputs["told"]["text"][0])
    report = json.loads(run.outputs["report"]["text"][0])
    height, width = report["crop_size"]
    assert (
        told["latent"] == [height // 8, width // 8] and told["references"] == [told["latent"]] * 3
    )
    assert all(
        abs(h * w / 384**2 - 1) < 0.1 and h % 32 == w % 32 == 0 for _, h, w, _ in told["seen"]
    )
    assert told["text"].count("<|image_pad|>") == 3 and "Picture 3: " in told["text"]
    assert told["text"].index("remove the spoon") > told["text"].index("Picture 3: ")
    assert 0 < told["mask"] < 1 and "edit" not in report["seconds"]
    before = images.load(EXAMPLES / "coffee.png").image
    after = images.decode(native.view(run.outputs["result"]["images"][0])).image
    outside = mask_ops.feather(images.load_mask(EXAMPLES / "coffee_mask.png"), 8) == 0
    assert torch.equal(after[outside], before[outside]) and not torch.equal(after, before)


def test_white_balance_needs_no_mask_and_keeps_texture(native: ComfyUI) -> None:
    made = graph(native, stitch__variant="white_balance", split__resolution="512")
    del made["split"]["inputs"]["mask"]
    run = native.run(made)
    assert run.outcome == "execution_success", run.events[-1]
    assert json.loads(run.outputs["told"]["text"][0])["mask"] is None
    shown = Image.open(BytesIO(native.view(run.outputs["result"]["images"][0])))
    assert shown.size == (600, 400)


def test_what_is_no_edit_of_the_crop_is_refused(native: ComfyUI) -> None:
    run = native.run(graph(native, stitch__edited=["photo", 0]))
    assert run.outcome == "execution_error"
    assert (
        "The edited crop has shape [1, 400, 600, 3]; expected [1, "
        in run.events[-1]["data"]["exception_message"]
    )
    made = graph(native, split__image=["batch", 0])
    made["batch"] = {
        "class_type": "RepeatImageBatch",
        "inputs": {"image": ["photo", 0], "amount": 2},
    }
    run = native.run(made)
    assert "got a batch of 2 photos" in run.events[-1]["data"]["exception_message"]
