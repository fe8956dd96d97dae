"""Model sets in a real ComfyUI, with small models that its own loaders read: by Load Editor, over
HTTP and from the command line the same picture as by Editor from Model.
"""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.comfyui import ComfyUI
from support.gateway import GRAPHS, Served, error, settings
from support.paths import EXAMPLES, ROOT
from torch import Tensor

from artmancer import images
from artmancer.model_headers import file_kind

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]

CONTENT: dict[str, Any] = {
    "unet": "one-block.safetensors",
    "clip": "stand-in.safetensors",
    "vae": "narrow.safetensors",
    "loras": {"removal": "sub/mine.safetensors"},
    "recipes": {"removal": "mask_background_object"},
}

FAST = {"lora": "fast.safetensors", "steps": 2, "shift": 3}

FLUX2: dict[str, dict[str, Any]] = {
    f"{model}{speed}": {
        "family": "flux2",
        "unet": f"small-{model}.safetensors",
        "clip": "small-klein.safetensors",
        "vae": "small-flux2.safetensors",
        "recipes": {"removal": "mask_background_object"},
        **({"acceleration": {"steps": 4}} if speed else {}),
    }
    for model in ("klein", "dev")
    for speed in ("", "-fast")
}
"""Model sets for a small FLUX.2."""

WIDTH = 3072


def save_lora(path: Path, seed: int) -> None:
    """Write a LoRA for the small transformer, in the form of trainers."""
    random = torch.Generator().manual_seed(seed)
    name = "transformer.transformer_blocks.0.attn.to_v.lora_{}.weight"
    weights = {
        name.format("A"): torch.randn(4, WIDTH, generator=random) / WIDTH**0.5,
        name.format("B"): torch.randn(WIDTH, 4, generator=random),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path)


@pytest.fixture(scope="module")
def sets(comfyui: ComfyUI) -> Iterator[ComfyUI]:
    """Provide ComfyUI with small models, a model set for them, and the same with acceleration."""
    models = comfyui.base / "models"
    run = comfyui.run({"1": {"class_type": "SaveSmallModels", "inputs": {}}})
    assert run.outcome == "execution_success", run.events[-1]
    save_lora(models / "loras" / "sub" / "mine.safetensors", 1)
    save_lora(models / "loras" / "fast.safetensors", 2)
    write(comfyui, "small", CONTENT)
    write(comfyui, "small-fast", {**CONTENT, "acceleration": FAST})
    yield comfyui
    for folder in ("diffusion_models", "vae", "text_encoders", "loras", "artmancer"):
        for path in (models / folder).rglob("*"):
            if not path.is_dir():
                path.unlink()
    comfyui.free()


def write(comfyui: ComfyUI, name: str, content: Any) -> Path:
    path = comfyui.base / "models" / "artmancer" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def small(name: str, folder: Path) -> Path:
    """Return an example, scaled down."""
    path = folder / f"{name}.png"
    Image.open(EXAMPLES / f"{name}.png").resize((96, 64)).save(path)
    return path


def graph(comfyui: ComfyUI, editor: str, **inputs: Any) -> dict[str, Any]:
    """Return the graph of the endpoint generate on a small photo; `inputs` are Load Editor's."""
    nodes: dict[str, Any] = json.loads((GRAPHS / "generate.json").read_text())
    for node, name in (("1", "coffee"), ("2", "coffee_mask")):
        nodes[node]["inputs"]["image"] = comfyui.upload(small(name, comfyui.base))
    nodes["6"]["inputs"]["value"] = "take the spoon away"
    nodes["8"]["inputs"]["value"] = 7
    nodes["11"]["inputs"].update({"editor": editor, **inputs})
    nodes["12"]["inputs"]["resolution"] = "native"
    return nodes


def by_editor_from_model(
    comfyui: ComfyUI, *loras: str, content: dict[str, Any] = CONTENT, **inputs: Any
) -> dict[str, Any]:
    """Return the same graph with ComfyUI's own loaders and Editor from Model."""
    nodes = graph(comfyui, "")
    nodes["unet"] = {
        "class_type": "UNETLoader",
        "inputs": {"unet_name": content["unet"], "weight_dtype": "default"},
    }
    model = "unet"
    for lora in loras:
        nodes[lora] = {
            "class_type": "LoraLoaderModelOnly",
            "inputs": {"model": [model, 0], "lora_name": lora, "strength_model": 1.0},
        }
        model = lora
    nodes["clip"] = {
        "class_type": "CLIPLoader",
        "inputs": {"clip_name": content["clip"], "type": content.get("family", "qwen_image")},
    }
    nodes["vae"] = {"class_type": "VAELoader", "inputs": {"vae_name": content["vae"]}}
    nodes["11"] = {
        "class_type": "ArtMancer_EditorFromModel",
        "inputs": {
            "model": [model, 0],
            "clip": ["clip", 0],
            "vae": ["vae", 0],
            "variant": "removal",
            "recipe": "mask_background_object",
            **inputs,
        },
    }
    return nodes


def result(comfyui: ComfyUI, nodes: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Run a graph; return its image and its report."""
    run = comfyui.run(nodes)
    assert run.outcome == "execution_success", run.events[-1]
    image = images.decode(comfyui.view(run.outputs["14"]["images"][0])).image
    return image, json.loads(run.outputs["15"]["value"][0])


def refusal(comfyui: ComfyUI, nodes: dict[str, Any]) -> str:
    """Run a graph that fails; return the message."""
    run = comfyui.run(nodes)
    assert run.outcome == "execution_error"
    data = run.events[-1]["data"]
    assert "artmancer.errors" in data["exception_type"], data
    return str(data["exception_message"]).strip()


def steps(nodes: dict[str, Any], count: int, cfg: float = 2.0) -> dict[str, Any]:
    nodes["9"]["inputs"]["value"] = count
    nodes["10"]["inputs"]["value"] = cfg
    return nodes


def test_a_set_gives_the_picture_of_editor_from_model(sets: ComfyUI) -> None:
    expected, _ = result(sets, steps(by_editor_from_model(sets, "sub/mine.safetensors"), 2))
    image, report = result(sets, steps(graph(sets, "small"), 2))
    assert torch.equal(image, expected)
    assert report["editor"] == "small/removal"
    assert report["adapters"] == ["mine.safetensors"]
    bare, report = result(sets, steps(graph(sets, "small", checkpoint="none"), 2))
    assert report["adapters"] == []
    assert not torch.equal(bare, expected)
    expected, _ = result(sets, steps(by_editor_from_model(sets), 2))
    assert torch.equal(bare, expected)


def test_acceleration_brings_its_steps_its_shift_and_no_guidance(sets: ComfyUI) -> None:
    loras = ("sub/mine.safetensors", "fast.safetensors")
    reference = by_editor_from_model(sets, *loras, shift=3.0)
    expected, _ = result(sets, steps(reference, FAST["steps"], 1.0))
    image, report = result(sets, steps(graph(sets, "small-fast"), 0, 4.0))
    assert torch.equal(image, expected)
    assert report["settings"]["steps"] == FAST["steps"]
    assert report["adapters"] == ["mine.safetensors", "fast.safetensors"]


def test_a_model_for_few_steps_is_sampled_so_without_a_lora(sets: ComfyUI) -> None:
    path = write(sets, "few", {**CONTENT, "acceleration": {"steps": 2}})
    reference = by_editor_from_model(sets, "sub/mine.safetensors", shift=3.0)
    expected, _ = result(sets, steps(reference, 2, 1.0))
    image, report = result(sets, steps(graph(sets, "few"), 0, 4.0))
    assert torch.equal(image, expected)
    assert report["settings"]["steps"] == 2
    path.unlink()


@pytest.fixture(scope="module")
def flux2(sets: ComfyUI) -> ComfyUI:
    """Provide ComfyUI with a small FLUX.2 klein and dev, and model sets for them."""
    if sets.get("/system_stats")["system"]["comfyui_version"].startswith("0.3."):
        pytest.skip("ComfyUI 0.3 does not know FLUX.2")
    run = sets.run({"1": {"class_type": "SaveSmallFlux2", "inputs": {}}})
    assert run.outcome == "execution_success", run.events[-1]
    for name, content in FLUX2.items():
        write(sets, name, content)
    return sets


@pytest.mark.parametrize("name", ["klein", "dev"])
def test_a_set_for_flux2_gives_the_picture_of_editor_from_model(flux2: ComfyUI, name: str) -> None:
    reference = by_editor_from_model(flux2, content=FLUX2[name])
    expected, _ = result(flux2, steps(reference, 2))
    image, report = result(flux2, steps(graph(flux2, name), 2))
    assert torch.equal(image, expected)
    assert report["editor"] == f"{name}/removal"
    other = steps(graph(flux2, name), 2)
    other["6"]["inputs"]["value"] = "a cat"
    assert not torch.equal(result(flux2, other)[0], image), "its text encoder reads the prompt"


def test_a_klein_set_with_acceleration_has_the_published_shift_and_no_guidance(
    flux2: ComfyUI,
) -> None:
    reference = by_editor_from_model(flux2, content=FLUX2["klein"])
    expected, _ = result(flux2, steps(reference, 4, 1.0))
    image, report = result(flux2, steps(graph(flux2, "klein-fast"), 0, 4.0))
    assert torch.equal(image, expected)
    assert report["settings"]["steps"] == 4


def test_acceleration_leaves_dev_the_guidance_that_it_reads(flux2: ComfyUI) -> None:
    """FLUX.2 dev reads the guidance itself, with or without a LoRA for few steps."""
    images = [
        result(flux2, steps(nodes, 2, cfg))[0]
        for nodes, cfg in (
            (graph(flux2, "dev-fast"), 4.0),
            (by_editor_from_model(flux2, content=FLUX2["dev"]), 4.0),
            (by_editor_from_model(flux2, content=FLUX2["dev"]), 1.0),
        )
    ]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[1], images[2])


def test_a_changed_set_or_file_runs_again(sets: ComfyUI) -> None:
    nodes = steps(graph(sets, "changing"), 1)
    path = write(sets, "changing", CONTENT)
    first, _ = result(sets, nodes)
    again = sets.run(nodes)
    assert "11" in [node for event in again.of("execution_cached") for node in event["nodes"]]
    path.write_text(json.dumps({**CONTENT, "loras": {}}))
    os.utime(path, (1, 1))
    second, report = result(sets, nodes)
    assert report["adapters"] == [] and not torch.equal(first, second)
    path.write_text(json.dumps(CONTENT))
    save_lora(sets.base / "models" / "loras" / "sub" / "mine.safetensors", 5)
    third, _ = result(sets, nodes)
    assert not torch.equal(first, third) and not torch.equal(second, third)
    save_lora(sets.base / "models" / "loras" / "sub" / "mine.safetensors", 1)
    path.unlink()


def test_load_editor_and_the_status_list_the_sets(sets: ComfyUI) -> None:
    path = write(sets, "broken", {**CONTENT, "vae": "gone.safetensors"})
    inputs = sets.get("/object_info/ArtMancer_LoadEditor")["ArtMancer_LoadEditor"]["input"]
    assert {"small", "small-fast", "broken"} <= set(inputs["required"]["editor"][1]["options"])
    status = sets.get("/artmancer/status")
    entries = {entry["name"]: entry for entry in status["model_sets"]}
    assert entries["small"] == {"name": "small", "complete": True, "reason": None}
    assert not entries["broken"]["complete"]
    assert "'gone.safetensors' in models/vae" in entries["broken"]["reason"]
    assert "'gone.safetensors' in models/vae" in refusal(sets, graph(sets, "broken"))
    path.unlink()


def test_the_name_of_no_editor_is_refused(sets: ComfyUI) -> None:
    for name in ("../small", "small.json", str(sets.base), "qwen-image"):
        nodes = graph(sets, ["name", 0])  # type: ignore[arg-type]  # a link
        inputs = {"value": name, "name": "x", "help": "", "choices": name}
        nodes["name"] = {"class_type": "ArtMancer_EndpointChoice", "inputs": inputs}
        message = refusal(sets, nodes)
        assert message.startswith("There is no editor '") and "small-fast" in message


def test_gguf_files_load_where_a_loader_for_them_is_installed(sets: ComfyUI) -> None:
    models = sets.base / "models"
    data = (models / "diffusion_models" / CONTENT["unet"]).read_bytes()
    (models / "diffusion_models" / "small.gguf").write_bytes(data)
    path = write(sets, "gguf", {**CONTENT, "unet": "small.gguf"})
    image, _ = result(sets, steps(graph(sets, "gguf"), 1))
    expected, _ = result(sets, steps(graph(sets, "small"), 1))
    assert torch.equal(image, expected)
    (models / "text_encoders" / "eyes.gguf").write_bytes(b"GGUF")
    path.write_text(json.dumps({**CONTENT, "clip": "eyes.gguf"}))
    assert "install the custom nodes ComfyUI-GGUF" in refusal(sets, graph(sets, "gguf"))
    path.unlink()


def test_a_lora_for_another_model_is_refused(sets: ComfyUI) -> None:
    path = sets.base / "models" / "loras" / "other.safetensors"
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(2, 2)}, path)
    message = refusal(sets, graph(sets, "small", checkpoint="other.safetensors"))
    assert "'other.safetensors' changes nothing in the model" in message
    path.unlink()


def test_the_small_files_are_told_apart_by_their_headers(sets: ComfyUI) -> None:
    models = sets.base / "models"
    for folder, kind in (("diffusion_models", "unet"), ("text_encoders", "clip"), ("vae", "vae")):
        found = file_kind(models / folder / CONTENT[kind])
        assert found is not None and found.kind == kind


def body(comfyui: ComfyUI, **more: Any) -> dict[str, Any]:
    """Return the request of the edit that `graph` makes."""
    photos = {
        field: base64.b64encode(small(name, comfyui.base).read_bytes()).decode()
        for field, name in (("input_image", "coffee"), ("mask_image", "coffee_mask"))
    }
    return {
        "prompt": "take the spoon away",
        "seed": 7,
        "num_inference_steps": 2,
        "true_cfg_scale": 2.0,
        "resolution": "native",
        "editor": "small",
        **photos,
        **more,
    }


def test_a_set_is_chosen_over_http(sets: ComfyUI, tmp_path: Path) -> None:
    path = write(sets, "broken", {**CONTENT, "vae": "gone.safetensors"})
    expected, _ = result(sets, steps(by_editor_from_model(sets, "sub/mine.safetensors"), 2))
    with Served(settings(tmp_path, comfyui_url=sets.url)) as served:
        served.connected()
        info = served.http.get("/api/health").json()["device_info"]
        assert {"small", "small-fast", "broken"} <= set(info["editors"])
        answer = served.http.post("/api/generate", json=body(sets))
        assert answer.status_code == 200, answer.text
        image = images.decode(base64.b64decode(answer.json()["image"])).image
        assert torch.equal(image, expected)
        assert answer.json()["model_used"] == "small/removal"
        assert answer.json()["parameters_used"]["editor"] == "small"
        answer = served.http.post("/api/generate", json=body(sets, editor="broken"))
        assert error(answer) == (503, "checkpoint_missing")
        assert "'gone.safetensors' in models/vae" in answer.json()["detail"]
        answer = served.http.post("/api/generate", json=body(sets, editor="qwen"))
        assert error(answer) == (503, "checkpoint_missing")
        answer = served.http.post("/api/generate", json=body(sets, editor="none"))
        assert error(answer) == (422, "invalid_request")
    path.unlink()


@pytest.mark.parametrize("way", ["running", "started"])
def test_a_set_is_chosen_on_the_command_line(sets: ComfyUI, tmp_path: Path, way: str) -> None:
    expected, _ = result(sets, steps(by_editor_from_model(sets, "sub/mine.safetensors"), 2))
    where = ["--comfyui-url", sets.url]
    if way == "started":
        where = ["--comfyui-base", str(sets.base), "--cpu"]
    photo, mask = small("coffee", tmp_path), small("coffee_mask", tmp_path)
    output = tmp_path / "out.png"
    process = subprocess.run(
        [
            *(sys.executable, "-m", "artmancer", "edit", str(photo), "--task", "removal"),
            *("--mask", str(mask), "--prompt", "take the spoon away", "--seed", "7"),
            *("--steps", "2", "--cfg", "2", "--resolution", "native", "-o", str(output)),
            *("--editor", "small", *where),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert torch.equal(images.load(output).image, expected)
    assert "small/removal with mine.safetensors" in process.stdout
