"""LaMa in a real ComfyUI: Fill Hole, the lama editor, its memory manager, and cancel."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_lama
from support.comfyui import ComfyUI, Event, Run
from support.paths import EXAMPLES, ROOT
from torch import Tensor

from artmancer import images, lama, mask_ops
from artmancer.offload import Offloader
from artmancer.progress import no_progress

pytestmark = pytest.mark.comfyui

PHOTO, MASK = EXAMPLES / "coffee.png", EXAMPLES / "coffee_mask.png"


@pytest.fixture
def folder(comfyui: ComfyUI) -> Iterator[Path]:
    """ComfyUI's folder for LaMa, which is empty again after the test."""
    folder = comfyui.base / "models" / "inpaint"
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    (folder / "big-lama.pt").unlink(missing_ok=True)
    comfyui.free()


def fill_hole(comfyui: ComfyUI, method: str) -> dict[str, Any]:
    """Return a graph that fills the hole of the example photo."""
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": comfyui.upload(PHOTO)}},
        "2": {
            "class_type": "LoadImageMask",
            "inputs": {"image": comfyui.upload(MASK), "channel": "red"},
        },
        "3": {
            "class_type": "ArtMancer_FillHole",
            "inputs": {"image": ["1", 0], "mask": ["2", 0], "method": method},
        },
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
    }


def removal(comfyui: ComfyUI, **values: Any) -> dict[str, Any]:
    """Return the graph of the endpoint generate with these values."""
    graph: dict[str, Any] = json.loads((ROOT / "workflows/api/generate.json").read_text())
    values = {"prompt": "remove it", "seed": 5, "editor": "lama", **values}
    for node in graph.values():
        if (name := node["inputs"].get("name")) in values:
            node["inputs"]["value"] = values[name]
    graph["1"]["inputs"]["image"] = comfyui.upload(PHOTO)
    graph["2"]["inputs"]["image"] = comfyui.upload(MASK)
    return graph


def shown(comfyui: ComfyUI, run: Run, node: str) -> Tensor:
    """Return the image that a node of a successful run shows, [1, H, W, 3]."""
    assert run.outcome == "execution_success", run.events[-1]
    return images.decode(comfyui.view(run.outputs[node]["images"][0])).image


def requests_to_load(comfyui: ComfyUI) -> int:
    """Return how often ComfyUI's memory manager was to load one of the pack's models."""
    return comfyui.log.read_text(errors="replace").count("Requested to load _Holder")


def test_fill_hole_runs_lama_through_comfyuis_memory_manager(
    comfyui: ComfyUI, folder: Path
) -> None:
    path = tiny_lama.save(folder / "big-lama.pt")
    before = requests_to_load(comfyui)
    filled = shown(comfyui, comfyui.run(fill_hole(comfyui, "lama")), "4")
    # One for the network, and one for the object that keeps it.
    assert requests_to_load(comfyui) == before + 2
    photo, hole = images.load(PHOTO).image, images.load_mask(MASK) > 8 / 255
    assert torch.equal(filled[~hole], photo[~hole])
    with tiny_lama.small():
        network = lama.load(path, Offloader("cpu"))
    expected = network.fill(photo[0], hole[0], 0, no_progress)
    # PreviewImage rounds down to 8 bits.
    assert (filled[0] - expected).abs().max() <= 1.0001 / 255
    # auto fills with LaMa too, from the loaded network.
    assert torch.equal(shown(comfyui, comfyui.run(fill_hole(comfyui, "auto")), "4"), filled)
    comfyui.free()
    assert torch.equal(shown(comfyui, comfyui.run(fill_hole(comfyui, "auto")), "4"), filled)
    assert requests_to_load(comfyui) >= before + 4


def test_fill_hole_uses_lama_as_soon_as_its_file_is_there(comfyui: ComfyUI, folder: Path) -> None:
    graph = fill_hole(comfyui, "auto")
    without = shown(comfyui, comfyui.run(graph), "4")
    assert torch.equal(shown(comfyui, comfyui.run(fill_hole(comfyui, "lama")), "4"), without)
    assert "LaMa is not installed" in comfyui.log.read_text(errors="replace")
    tiny_lama.save(folder / "big-lama.pt")
    assert not torch.equal(shown(comfyui, comfyui.run(graph), "4"), without)


def test_the_lama_editor_removes_and_its_report_says_when_patchmatch_did(
    comfyui: ComfyUI, folder: Path
) -> None:
    graph = removal(comfyui)
    run = comfyui.run(graph)
    report = json.loads(run.outputs["15"]["text"][0])
    assert report["editor"] == "draft/removal"
    assert "LaMa is not installed" in report["notes"][0]
    assert comfyui.get("/artmancer/status")["lama"] is False

    tiny_lama.save(folder / "big-lama.pt")
    run = comfyui.run(graph)
    report = json.loads(run.outputs["15"]["text"][0])
    assert report["editor"] == "lama/removal" and report["notes"] == []
    result = shown(comfyui, run, "14")
    outside = mask_ops.feather(images.load_mask(MASK), 16) == 0
    photo = images.load(PHOTO).image
    assert torch.equal(result[outside], photo[outside])
    assert not torch.equal(result, photo)
    status = comfyui.get("/artmancer/status")
    assert status["lama"] is True and status["editors"] == ["auto", "draft", "lama", "qwen"]


def test_a_damaged_file_fails_with_a_sentence(comfyui: ComfyUI, folder: Path) -> None:
    (folder / "big-lama.pt").write_bytes(b"<html>404</html>")
    run = comfyui.run(fill_hole(comfyui, "auto"))
    assert run.outcome == "execution_error"
    error = run.of("execution_error")[0]
    assert error["exception_type"].endswith("generation_failed")
    assert "'big-lama.pt' is not a LaMa, or is damaged" in error["exception_message"]


def test_a_cancel_ends_lama_within_a_layer(comfyui: ComfyUI, folder: Path) -> None:
    tiny_lama.save(folder / "big-lama.pt")

    def cancel(event: Event) -> str | None:
        filling = event["type"] == "progress" and event["data"]["node"] == "3"
        return "/interrupt" if filling else None

    graph = fill_hole(comfyui, "lama")
    # Forty images take seconds, even with a small network.
    graph["5"] = {
        "class_type": "RepeatImageBatch",
        "inputs": {"image": ["1", 0], "amount": 40},
    }
    graph["3"]["inputs"]["image"] = ["5", 0]
    assert comfyui.run(graph, on_event=cancel).outcome == "execution_interrupted"
    assert comfyui.run(fill_hole(comfyui, "lama")).outcome == "execution_success"
