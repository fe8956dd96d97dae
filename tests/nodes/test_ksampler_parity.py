"""Both ways to sample, compared on the same weights in a real ComfyUI: Edit Sampler, through
diffusers, and the template *native*, with ComfyUI's own nodes and models.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from support import native_base
from support.comfyui import ComfyUI
from support.paths import EXAMPLES, ROOT

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]

TEMPLATE = ROOT / "workflows" / "9 ComfyUI's KSampler.json"

NAME = "tiny-published"

PROMPT = "remove the spoon"

NEGATIVE = "a photograph of a cat on a table, with bright colors, a window, and many books behind"
"""A long one, so that guidance shows."""

PUBLISHED_MAX_SHIFT = 0.5 + 0.4 * (1024 - 256) / (8192 - 256)
"""The published shift (its exponent) at 1024 tokens, which is where LTXVScheduler has its
max_shift: it counts 4 latents where Qwen-Image has a token.
"""


class Difference(NamedTuple):
    """Difference of the photos that both ways make, inside the mask, in levels of 0 to 255."""

    largest: float
    mean: float


@pytest.fixture(scope="module")
def both(comfyui: ComfyUI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    """Provide ComfyUI with a base that both ways read: of the published form, with random weights
    and the published schedule.
    """
    if comfyui.get("/system_stats")["system"]["comfyui_version"].startswith("0.3."):
        pytest.skip("ComfyUI 0.3 encodes prompts otherwise, and its CFGNorm has no pre_cfg")
    base = native_base.save(comfyui, NAME, tmp_path_factory.mktemp("vae"))
    yield comfyui
    # The folders stay: ComfyUI cannot list a folder that is gone.
    for path in base.rglob("*"):
        if not path.is_dir():
            path.unlink()
    comfyui.free()


def template_node(kind: str) -> dict[str, Any]:
    """Return the template's node of a type."""
    nodes: list[dict[str, Any]] = json.loads(TEMPLATE.read_text())["nodes"]
    return next(node for node in nodes if node["type"] == kind)


def widget_values(node: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a drawn node's widgets, by name."""
    names = []
    for entry in node.get("inputs", []):
        if "widget" in entry:
            names.append(entry["name"])
            if entry["name"] in ("seed", "noise_seed"):
                names.append("control_after_generate")
    # The widget for an upload follows the others, and has no value of the graph.
    values = dict(zip(names, node.get("widgets_values") or [], strict=False))
    values.pop("control_after_generate", None)
    return values


def template(comfyui: ComfyUI) -> dict[str, Any]:
    """Return template 9 as a graph to run, by the nodes' types, on a small photo, with
    the small models in the place of its loaders.
    """
    drawn = json.loads(TEMPLATE.read_text())
    types = {node["id"]: node["type"] for node in drawn["nodes"]}
    origins = {link[0]: [types[link[1]], link[2]] for link in drawn["links"]}
    nodes = {}
    for node in drawn["nodes"]:
        linked = {i["name"]: origins[i["link"]] for i in node["inputs"] if i["link"] is not None}
        inputs = {**widget_values(node), **linked}
        nodes[node["type"]] = {"class_type": node["type"], "inputs": inputs}
    for name in ("MarkdownNote", "UNETLoader", "ArtMancer_Report", "SaveImage"):
        del nodes[name]
    folder = str(comfyui.base / "models" / "diffusers" / NAME)
    for name, small in (
        ("LoraLoaderModelOnly", "SmallModel"),
        ("CLIPLoader", "SmallClip"),
        ("VAELoader", "SmallVae"),
    ):
        nodes[name] = {"class_type": small, "inputs": {"folder": folder}}
    photo, mask = (
        Image.open(EXAMPLES / f"{name}.png").resize((150, 100))
        for name in ("coffee", "coffee_mask")
    )
    # Load Image takes what is transparent for the mask, as ComfyUI's mask editor saves it.
    photo.putalpha(ImageOps.invert(mask.convert("L")))
    photo.save(comfyui.base / "coffee.png")
    nodes["LoadImage"]["inputs"]["image"] = comfyui.upload(comfyui.base / "coffee.png")
    nodes["ArtMancer_SplitConditions"]["inputs"]["resolution"] = "native"
    nodes["ArtMancer_EncodeConditions"]["inputs"].update(prompt=PROMPT, negative=NEGATIVE)
    nodes["ArtMancer_Stitch"]["inputs"]["match_colors"] = False
    return nodes


def edit_both_ways(
    comfyui: ComfyUI, nodes: dict[str, Any], folder: Path, condition_megapixels: float | None = None
) -> Difference:
    """Run a graph of the template together with Edit Sampler, which takes its settings."""
    size: dict[str, Any] = {"condition_size": "crop"}
    if condition_megapixels:
        size = {"condition_size": "megapixels", "condition_megapixels": condition_megapixels}
    encode = nodes["ArtMancer_EncodeConditions"]["inputs"]
    encode.update(size)
    sample = nodes.get("SamplerCustom", nodes.get("KSampler"))["inputs"]
    editor = {"editor": NAME, "variant": "removal", "strength": 1.0, "checkpoint": "none"}
    edit = {
        "editor": ["editor", 0],
        **{name: encode[name] for name in ("conditions", "prompt", "negative")},
        **size,
        "seed": sample.get("noise_seed", sample.get("seed")),
        "steps": nodes["LTXVScheduler"]["inputs"]["steps"],
        "cfg": sample["cfg"],
        "match_colors": False,
        "keep_background": True,
    }
    results = {"ours": ["edit", 0], "native": ["ArtMancer_Stitch", 0], "photo": ["LoadImage", 0]}
    saves = {
        f"save {name}": {
            "class_type": "SaveTensor",
            "inputs": {"path": str(folder / name), "image": image},
        }
        for name, image in results.items()
    }
    run = comfyui.run(
        {
            **nodes,
            "editor": {"class_type": "ArtMancer_LoadEditor", "inputs": editor},
            "edit": {"class_type": "ArtMancer_EditSampler", "inputs": edit},
            **saves,
        }
    )
    assert run.outcome == "execution_success", run.events[-1]
    ours, native, photo = (255 * load_file(folder / name)["image"] for name in results)
    inside = (ours != photo).any(-1)
    assert inside.any() and ours[inside].std() > 20, "the edit shows"
    differences = (ours - native)[inside].abs()
    return Difference(differences.max().item(), differences.mean().item())


@pytest.mark.parametrize("steps", [10, 15])
@pytest.mark.parametrize(("side", "shift"), [(512, 1.7), (1024, 1.9)])
def test_the_documented_settings_give_the_published_sigmas(
    comfyui: ComfyUI, tmp_path: Path, side: int, shift: float, steps: int
) -> None:
    scheduler = dict(widget_values(template_node("LTXVScheduler")), steps=steps)
    request = {"side": side // 8, "shift": shift, "scheduler": scheduler}
    native = native_base.call(comfyui, "sigmas", tmp_path / "sigmas.safetensors", request)
    factor = math.exp(0.5 + 0.4 * ((side // 16) ** 2 - 256) / (8192 - 256))
    times = torch.arange(steps, 0, -1, dtype=torch.double) / steps
    sigmas = factor * times / (1 + (factor - 1) * times)
    published = 1 - (1 - sigmas) * (1 - 0.02) / (1 - sigmas[-1])
    published = torch.cat([published, torch.zeros(1)])
    assert (native["scheduler"] - published).abs().max() <= 0.002
    assert (native["ksampler"] - published).abs().max() <= 0.03


@pytest.mark.parametrize(
    ("max_shift", "cfg", "largest", "mean"),
    [
        # Only rounding differs: noise, mask, schedule, images, prompt, transformer, VAE.
        (PUBLISHED_MAX_SHIFT, 1.0, 0.1, 0.01),
        # The template's shift has two decimals.
        (None, 1.0, 1.0, 0.1),
        # CFGNorm rescales each latent, the published pipeline each token of 2 x 2 latents.
        (None, 4.0, 5.0, 0.5),
    ],
    ids=["the published shift", "the template's shift", "guidance"],
)
def test_the_template_makes_the_picture_that_edit_sampler_makes(
    both: ComfyUI,
    tmp_path: Path,
    max_shift: float | None,
    cfg: float,
    largest: float,
    mean: float,
) -> None:
    nodes = template(both)
    nodes["SamplerCustom"]["inputs"]["cfg"] = cfg
    if max_shift:
        nodes["LTXVScheduler"]["inputs"]["max_shift"] = max_shift
    difference = edit_both_ways(both, nodes, tmp_path)
    assert difference.largest <= largest
    assert difference.mean <= mean


def test_without_the_schedule_or_the_norm_the_pictures_differ(
    both: ComfyUI, tmp_path: Path
) -> None:
    nodes = template(both)
    nodes["SamplerCustom"]["inputs"]["model"] = ["LoraLoaderModelOnly", 0]
    assert edit_both_ways(both, nodes, tmp_path).mean > 0.5
    sample = template(both)["SamplerCustom"]["inputs"]
    inputs = {name: sample[name] for name in ("positive", "negative", "latent_image", "model")}
    settings = {"seed": 0, "steps": 10, "cfg": 1.0, "sampler_name": "euler", "denoise": 1.0}
    inputs |= {**settings, "scheduler": "simple"}
    nodes = template(both)
    del nodes["SamplerCustom"]
    nodes["KSampler"] = {"class_type": "KSampler", "inputs": inputs}
    nodes["VAEDecode"]["inputs"]["samples"] = ["KSampler", 0]
    assert edit_both_ways(both, nodes, tmp_path).mean > 1


def test_conditions_larger_than_the_crop_differ_by_the_positions_of_the_prompt_alone(
    both: ComfyUI, tmp_path: Path
) -> None:
    nodes = template(both)
    nodes["SamplerCustom"]["inputs"]["cfg"] = 1.0
    nodes["LTXVScheduler"]["inputs"]["max_shift"] = PUBLISHED_MAX_SHIFT
    # 224 x 224 pixels, 14 tokens a side, beside a crop of 8 tokens a side.
    assert edit_both_ways(both, nodes, tmp_path, condition_megapixels=0.05).mean > 0.3
    inputs = {"model": ["CFGNorm", 0], "start": 14 // 2}
    nodes["MovePrompt"] = {"class_type": "MovePrompt", "inputs": inputs}
    nodes["SamplerCustom"]["inputs"]["model"] = ["MovePrompt", 0]
    assert edit_both_ways(both, nodes, tmp_path, condition_megapixels=0.05).largest <= 0.1
