"""The nodes Encode Conditions and Stitch with ComfyUI's KSampler and models in its own format."""

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.comfyui import ComfyUI
from support.paths import EXAMPLES

from artmancer import images, mask_ops

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module")
def native(comfyui: ComfyUI) -> Iterator[ComfyUI]:
    """Provide ComfyUI with the small models of support/custom_nodes/native_models.py."""
    models = comfyui.base / "models"
    run = comfyui.run({"1": {"class_type": "SaveSmallModels", "inputs": {}}})
    assert run.outcome == "execution_success", run.events[-1]
    yield comfyui
    for path in (*models.glob("diffusion_models/*"), *models.glob("vae/*")):
        path.unlink()
    comfyui.free()


def graph(comfyui: ComfyUI, **changes: Any) -> dict[str, Any]:
    """Return a graph that removes the spoon from coffee.png.

    Parameters
    ----------
    changes : values of inputs, by `node__input`
    """
    nodes: dict[str, Any] = {
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
        "inspect": {
            "class_type": "ShowConditioning",
            "inputs": {"conditioning": ["encode", 0], "latent": ["encode", 2]},
        },
    }
    for name, value in changes.items():
        node, _, field = name.partition("__")
        nodes[node]["inputs"][field] = value
    return nodes


@pytest.mark.parametrize(
    ("changes", "megapixels"),
    [
        ({"encode__condition_size": "megapixels", "encode__condition_megapixels": 0.1}, 0.1),
        ({"split__recipe": "background_mask_fill", "split__resolution": "512"}, 1.0),
    ],
    ids=["asked", "the recipe's"],
)
def test_conditions_are_encoded_at_the_condition_size(
    native: ComfyUI, changes: dict[str, Any], megapixels: float
) -> None:
    nodes = graph(native, **changes)
    kept = ("photo", "mask", "split", "clip", "vae", "encode", "inspect")
    run = native.run({name: nodes[name] for name in kept})
    assert run.outcome == "execution_success", run.events[-1]
    inputs = json.loads(run.outputs["inspect"]["text"][0])
    latent_height, latent_width = inputs["latent"]
    assert len(inputs["references"]) == 3
    for height, width in inputs["references"]:
        # Sides of images are multiples of 32 pixels, sides of latents multiples of 4.
        assert height % 4 == width % 4 == 0
        assert abs(height * width * 64 / (megapixels * 2**20) - 1) < 0.1
        assert abs(width / height / (latent_width / latent_height) - 1) < 0.15


def test_ksampler_edits_the_crop_and_changes_no_other_pixel(native: ComfyUI) -> None:
    run = native.run(graph(native))
    assert run.outcome == "execution_success", run.events[-1]
    inputs = json.loads(run.outputs["inspect"]["text"][0])
    report = json.loads(run.outputs["report"]["text"][0])
    height, width = report["crop_size"]
    assert inputs["latent"] == [height // 8, width // 8]
    assert inputs["references"] == [inputs["latent"]] * 3
    for _, encoder_height, encoder_width, _ in inputs["seen"]:
        assert abs(encoder_height * encoder_width / 384**2 - 1) < 0.1
        # What ComfyUI's encoder does not resize again.
        assert encoder_height % 28 == encoder_width % 28 == 0
    assert inputs["text"].count("<|image_pad|>") == 3
    assert "Picture 3: " in inputs["text"]
    assert inputs["text"].index("remove the spoon") > inputs["text"].index("Picture 3: ")
    assert 0 < inputs["mask"] < 1
    assert "edit" not in report["seconds"]
    before = images.load(EXAMPLES / "coffee.png").image
    after = images.decode(native.view(run.outputs["result"]["images"][0])).image
    outside = mask_ops.feather(images.load_mask(EXAMPLES / "coffee_mask.png"), 8) == 0
    assert torch.equal(after[outside], before[outside])
    assert not torch.equal(after, before)


def test_each_island_is_sampled_and_stitched(native: ComfyUI, tmp_path: Path) -> None:
    mask = Image.new("L", Image.open(EXAMPLES / "coffee.png").size)
    boxes = (
        (20, 20, 60, 60),
        (mask.width - 70, mask.height - 60, mask.width - 20, mask.height - 20),
    )
    for box in boxes:
        mask.paste(255, box)
    mask.save(tmp_path / "islands.png")
    nodes = graph(native, mask__image=native.upload(tmp_path / "islands.png"), split__feather=0)
    nodes["parts"] = {"class_type": "PreviewImage", "inputs": {"images": ["split", 0]}}
    run = native.run(nodes)
    assert run.outcome == "execution_success", run.events[-1]
    assert len(run.outputs["parts"]["images"]) == 2
    (text,) = run.outputs["report"]["text"]
    rows = json.loads(text)["regions"]
    assert [row["seed"] for row in rows] == [None, None]
    before = images.load(EXAMPLES / "coffee.png").image
    (result,) = run.outputs["result"]["images"]
    after = images.decode(native.view(result)).image
    changed = (before != after).any(-1)[0]
    for left, top, right, bottom in boxes:
        assert changed[top:bottom, left:right].float().mean() > 0.9
        changed[top:bottom, left:right] = False
    assert not changed.any()


def test_several_edits_of_one_crop_are_stitched_each(native: ComfyUI) -> None:
    nodes = graph(native)
    for seed in (1, 2):
        nodes[f"sample{seed}"] = {**nodes["sample"], "inputs": {**nodes["sample"]["inputs"]}}
        nodes[f"sample{seed}"]["inputs"]["seed"] = seed
        nodes[f"decode{seed}"] = {
            "class_type": "VAEDecode",
            "inputs": {"samples": [f"sample{seed}", 0], "vae": ["vae", 0]},
        }
    nodes["list"] = {
        "class_type": "RebatchImages",
        "inputs": {"images": ["both", 0], "batch_size": 1},
    }
    nodes["both"] = {
        "class_type": "ImageBatch",
        "inputs": {"image1": ["decode1", 0], "image2": ["decode2", 0]},
    }
    nodes["stitch"]["inputs"]["edited"] = ["list", 0]
    nodes["shown"] = {"class_type": "PreviewImage", "inputs": {"images": ["stitch", 0]}}
    kept = {"photo", "mask", "split", "model", "clip", "vae", "encode", "list", "both", "stitch"}
    kept |= {"shown", "sample1", "sample2", "decode1", "decode2"}
    run = native.run({name: node for name, node in nodes.items() if name in kept})
    assert run.outcome == "execution_success", run.events[-1]
    assert len(run.outputs["shown"]["images"]) == 2


def test_white_balance_needs_no_mask(native: ComfyUI, tmp_path: Path) -> None:
    nodes = graph(native, stitch__variant="white_balance", sample__cfg=1.0)
    Image.open(EXAMPLES / "coffee.png").resize((240, 160)).save(tmp_path / "small.png")
    nodes["photo"]["inputs"]["image"] = native.upload(tmp_path / "small.png")
    del nodes["split"]["inputs"]["mask"]
    run = native.run(nodes)
    assert run.outcome == "execution_success", run.events[-1]
    assert json.loads(run.outputs["inspect"]["text"][0])["mask"] is None
    result = Image.open(BytesIO(native.view(run.outputs["result"]["images"][0])))
    assert result.size == (240, 160)


def test_an_image_of_another_size_and_a_batch_are_refused(native: ComfyUI) -> None:
    run = native.run(graph(native, stitch__edited=["photo", 0]))
    assert run.outcome == "execution_error"
    message = run.events[-1]["data"]["exception_message"]
    assert "The edited crop has shape [1, 400, 600, 3]; expected [1, " in message
    nodes = graph(native, split__image=["batch", 0])
    nodes["batch"] = {
        "class_type": "RepeatImageBatch",
        "inputs": {"image": ["photo", 0], "amount": 2},
    }
    run = native.run(nodes)
    assert "got a batch of 2 photos" in run.events[-1]["data"]["exception_message"]
