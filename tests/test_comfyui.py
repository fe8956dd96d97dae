"""The nodes in a real ComfyUI, over its own HTTP interface."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui import ComfyUI, Event
from PIL import Image
from places import EXAMPLES, ROOT

from artmancer import cli, images
from artmancer.masks import refine

pytestmark = pytest.mark.comfyui

GENERATE = json.loads((ROOT / "workflows" / "api" / "generate.json").read_text())
NODES = re.findall(r'node_id="(ArtMancer_\w+)"', "".join(path.read_text() for path in (ROOT / "nodes").glob("*.py")))


def generate(comfyui: ComfyUI, **given: Any) -> dict[str, Any]:
    """generate.json with its endpoint inputs set; a Path is uploaded."""
    graph = copy.deepcopy(GENERATE)
    named = {node["inputs"].get("name"): node["inputs"] for node in graph.values()}
    named["prompt"]["value"] = "edit it"
    for name, value in given.items():
        field = "image" if isinstance(value, Path) else "value"
        named[name][field] = comfyui.upload(value) if isinstance(value, Path) else value
    return graph


def result_of(comfyui: ComfyUI, outputs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
    picture = images.decode(comfyui.view(outputs["14"]["images"][0])).image
    return picture, json.loads(outputs["15"]["text"][0])


def removal(comfyui: ComfyUI, **given: Any) -> dict[str, Any]:
    photo, mask = EXAMPLES / "astronaut.png", EXAMPLES / "astronaut_shuttle_mask.png"
    return generate(comfyui, input_image=photo, mask_image=mask, **given)


def test_every_node_is_there_with_a_tooltip_on_every_input(comfyui: ComfyUI) -> None:
    info = comfyui.get("/object_info")
    assert len(NODES) == 18 and set(NODES) <= set(info)
    for name in NODES:
        assert info[name]["description"] and info[name]["display_name"] != name
        for inputs in (info[name]["input"].get(kind, {}) for kind in ("required", "optional")):
            assert all(options["tooltip"] for _, options in inputs.values()), name


def test_the_pack_is_imported_in_under_a_tenth_of_a_second(comfyui: ComfyUI) -> None:
    seconds = re.search(r"([\d.]+) seconds.*custom_nodes/artmancer", comfyui.log.read_text())
    assert seconds and float(seconds[1]) <= 0.1


def test_generate_removes_and_leaves_every_byte_outside_the_mask(comfyui: ComfyUI, example, tmp_path: Path) -> None:
    run = comfyui.run(removal(comfyui, task_type="removal", seed=7))
    assert run.outcome == "execution_success"
    result, report = result_of(comfyui, run.outputs)
    outside = refine.feather(example("astronaut_shuttle_mask"), 16) == 0
    assert torch.equal(result[outside], example("astronaut")[outside])
    assert not torch.equal(result, example("astronaut"))
    assert report["editor"] == "draft/removal" and report["seed"] == 7
    assert run.of("progress"), "progress is shown"

    same = tmp_path / "same.png"
    mask = EXAMPLES / "astronaut_shuttle_mask.png"
    cli.main(["edit", str(EXAMPLES / "astronaut.png"), f"--mask={mask}", "--task=removal", "--seed=7", "-o", str(same)])
    assert torch.equal(images.load(same).image, result), "the command line makes the same picture"


def test_generate_inserts_a_reference(comfyui: ComfyUI) -> None:
    graph = generate(
        comfyui,
        task_type="insertion",
        input_image=EXAMPLES / "coffee.png",
        mask_image=EXAMPLES / "coffee_mask.png",
        reference_image=EXAMPLES / "astronaut.png",
        reference_mask_R=EXAMPLES / "astronaut_patch_mask.png",
    )
    _, report = result_of(comfyui, comfyui.run(graph).outputs)
    assert report["editor"] == "draft/insertion" and report["outside_psnr"] == "infinite"


def test_generate_balances_without_a_mask(comfyui: ComfyUI) -> None:
    graph = generate(comfyui, task_type="white_balance", input_image=EXAMPLES / "chelsea.png")
    result, report = result_of(comfyui, comfyui.run(graph).outputs)
    assert report["editor"] == "draft/white_balance" and result.shape == (1, 300, 451, 3)


def test_an_unchanged_graph_is_not_run_again_and_a_changed_picture_is(comfyui: ComfyUI, tmp_path: Path) -> None:
    photo = tmp_path / "cached.png"
    Image.open(EXAMPLES / "chelsea.png").save(photo)
    graph = generate(comfyui, task_type="white_balance", input_image=photo)
    comfyui.run(graph)
    assert "13" in comfyui.run(graph).of("execution_cached")[0]["nodes"]
    Image.open(EXAMPLES / "coffee.png").save(comfyui.base / "input" / graph["1"]["inputs"]["image"])
    again = comfyui.run(graph)
    assert "13" not in again.of("execution_cached")[0]["nodes"]
    assert result_of(comfyui, again.outputs)[0].shape == (1, 400, 600, 3)


def batch_of(comfyui: ComfyUI, pictures: int) -> dict[str, Any]:
    graph = removal(comfyui, task_type="removal")
    graph["20"] = {"class_type": "RepeatImageBatch", "inputs": {"image": ["1", 0], "amount": pictures}}
    graph["12"]["inputs"]["image"] = ["20", 0]
    return graph


def test_cancel_ends_a_running_edit_within_a_step(comfyui: ComfyUI) -> None:
    def cancel(event: Event) -> str | None:
        return "/interrupt" if event["type"] == "progress" and event["data"]["max"] == 40 else None

    run = comfyui.run(batch_of(comfyui, 40), on_event=cancel)
    assert run.outcome == "execution_interrupted"
    assert run.of("progress")[-1]["value"] <= 1 and run.of("progress")[-1]["max"] == 40
    after = comfyui.run(removal(comfyui, task_type="removal", seed=3))
    assert after.outcome == "execution_success", "the next run is a fresh one"


def test_a_batch_comes_back_as_a_batch(comfyui: ComfyUI) -> None:
    run = comfyui.run(batch_of(comfyui, 2))
    assert len(run.outputs["14"]["images"]) == 2


@pytest.mark.parametrize(
    ("given", "node", "said"),
    [
        ({"num_inference_steps": 1000}, "9", "the value is 1000; expected 1 to 100"),
        ({"true_cfg_scale": 0.1}, "10", "the value is 0.1; expected 0.5 to 20"),
        ({"task_type": "repaint"}, "5", "expected one of: insertion, removal, white_balance"),
        ({"prompt": "a" * 4001}, "6", "4,001 characters; expected at most 4,000"),
        ({"prompt": " "}, "6", "no text was given"),
    ],
)
def test_a_value_out_of_range_is_refused_by_comfyui_with_our_sentence(
    comfyui: ComfyUI, given: dict[str, Any], node: str, said: str
) -> None:
    status, answer = comfyui.queue(removal(comfyui, **given))
    assert status == 400
    assert said in json.dumps(answer["node_errors"][node]["errors"])


@pytest.mark.parametrize("name", ["(none)", "gone.png", "../user/comfyui.db", "/etc/passwd", "../../../etc/passwd"])
def test_a_picture_that_is_not_in_the_input_folder_is_refused(comfyui: ComfyUI, name: str) -> None:
    graph = removal(comfyui)
    graph["1"]["inputs"]["image"] = name
    status, answer = comfyui.queue(graph)
    assert status == 400
    said = json.dumps(answer["node_errors"]["1"]["errors"])
    assert ("no picture was given" if name == "(none)" else "input folder") in said


@pytest.mark.parametrize(
    ("node", "field", "value"), [("8", "value", "abc"), ("10", "value", "four"), ("6", "value", 7)]
)
def test_a_value_of_the_wrong_type_says_so_without_internals(
    comfyui: ComfyUI, node: str, field: str, value: Any
) -> None:
    graph = removal(comfyui)
    graph[node]["inputs"][field] = value
    status, answer = comfyui.queue(graph)
    assert status == 200 or "not supported between" not in json.dumps(answer)


def failure(comfyui: ComfyUI, graph: dict[str, Any]) -> str:
    run = comfyui.run(graph)
    assert run.outcome == "execution_error"
    return str(run.events[-1]["data"]["exception_message"])


def test_a_mistake_fails_the_node_with_our_sentence(comfyui: ComfyUI, tmp_path: Path) -> None:
    coffee = EXAMPLES / "coffee.png"
    black, cut_off = tmp_path / "black.png", tmp_path / "cut-off.png"
    Image.new("L", (600, 400)).save(black)
    cut_off.write_bytes(coffee.read_bytes()[:5000])
    photo = {"task_type": "removal", "input_image": coffee}
    wrong = generate(comfyui, **photo, mask_image=EXAMPLES / "astronaut_shuttle_mask.png")
    assert "The mask is 512x512 but the image is 600x400. Resize the mask" in failure(comfyui, wrong)
    assert "black everywhere" in failure(comfyui, generate(comfyui, **photo, mask_image=black))
    assert "A mask is needed for removal" in failure(comfyui, generate(comfyui, **photo))
    assert "cut off" in failure(comfyui, generate(comfyui, task_type="white_balance", input_image=cut_off))
    nothing = generate(comfyui, **photo)
    nothing["1"]["inputs"]["image"] = None
    assert "No picture was given for 'input_image'" in failure(comfyui, nothing)
    words = generate(comfyui, **{**photo, "task_type": "insertion"}, mask_image=EXAMPLES / "coffee_mask.png")
    assert "cannot draw from words" in failure(comfyui, words)


def test_an_endpoint_result_takes_pictures_masks_words_and_numbers(comfyui: ComfyUI) -> None:
    photo, mask = comfyui.upload(EXAMPLES / "coffee.png"), comfyui.upload(EXAMPLES / "coffee_mask.png")
    about = {"name": "x", "help": ""}
    values = {
        "image": {"class_type": "ArtMancer_EndpointImage", "inputs": {"image": photo, **about, "required": True}},
        "mask": {"class_type": "ArtMancer_EndpointMask", "inputs": {"image": mask, **about, "required": True}},
        "switch": {"class_type": "ArtMancer_EndpointSwitch", "inputs": {"value": True, **about}},
        "integer": {
            "class_type": "ArtMancer_EndpointInteger",
            "inputs": {"value": 2**53 - 1, **about, "minimum": 0, "maximum": 2**53 - 1},
        },
    }
    results = {
        f"{name}-result": {"class_type": "ArtMancer_EndpointResult", "inputs": {"value": [name, 0], **about}}
        for name in values
    }
    outputs = comfyui.run({**values, **results}).outputs
    assert outputs["switch-result"]["text"] == ["True"] and outputs["integer-result"]["text"] == [str(2**53 - 1)]
    assert comfyui.view(outputs["image-result"]["images"][0])[:4] == b"\x89PNG"
    mask_back = images.decode_mask(comfyui.view(outputs["mask-result"]["images"][0]))
    assert torch.equal(mask_back, images.load_mask(EXAMPLES / "coffee_mask.png"))


def test_the_start_is_clean(comfyui: ComfyUI) -> None:
    assert not re.search(
        r"artmancer.*(error|warning|failed)", comfyui.log.read_text().split("Starting server")[0], re.I
    )
