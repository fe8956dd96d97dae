"""The nodes in a real ComfyUI, over its own HTTP interface."""

import io
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from support.comfyui import ComfyUI, Event, Run
from support.paths import EXAMPLES, NODES, ROOT
from support.shapes import scene

from artmancer import __version__, cli, images, mask_ops
from artmancer.folders import comfyui_folder

pytestmark = pytest.mark.comfyui

COFFEE, COFFEE_MASK = EXAMPLES / "coffee.png", EXAMPLES / "coffee_mask.png"


def endpoint(comfyui: ComfyUI, workflow: str, **given: Any) -> dict[str, Any]:
    """A graph of workflows/api with its endpoint inputs set; a Path is uploaded."""
    graph: dict[str, Any] = json.loads(
        (ROOT / "workflows" / "api" / f"{workflow}.json").read_text()
    )
    kinds = [(node["class_type"], node["inputs"]) for node in graph.values()]
    named = {
        inputs.get("name"): inputs for kind, inputs in kinds if kind != "ArtMancer_EndpointResult"
    }
    for name, value in given.items():
        field = "image" if isinstance(value, Path) else "value"
        named[name][field] = comfyui.upload(value) if isinstance(value, Path) else value
    return graph


def generate(comfyui: ComfyUI, **given: Any) -> dict[str, Any]:
    return endpoint(comfyui, "generate", **{"prompt": "edit it", **given})


def answers(comfyui: ComfyUI, graph: dict[str, Any]) -> dict[str, Any]:
    """What a run gives under each result's name: pictures as Pillow has them, or a value."""
    run = comfyui.run(graph)
    assert run.outcome == "execution_success", run.events[-1]
    results = {
        key: node["inputs"]["name"]
        for key, node in graph.items()
        if "EndpointResult" in node["class_type"]
    }
    return {
        name: pictures(comfyui, run, key) or run.outputs[key]["value"][0]
        for key, name in results.items()
    }


def pictures(comfyui: ComfyUI, run: Run, node: str) -> list[Image.Image]:
    return [
        Image.open(io.BytesIO(comfyui.view(file))) for file in run.outputs[node].get("images", [])
    ]


def result_of(comfyui: ComfyUI, outputs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
    picture = images.decode(comfyui.view(outputs["14"]["images"][0])).image
    return picture, json.loads(outputs["15"]["text"][0])


def removal(comfyui: ComfyUI, **given: Any) -> dict[str, Any]:
    photo, mask = EXAMPLES / "astronaut.png", EXAMPLES / "astronaut_shuttle_mask.png"
    return generate(comfyui, input_image=photo, mask_image=mask, **given)


def test_every_node_is_there_with_a_tooltip_on_every_input_and_output(
    comfyui: ComfyUI,
) -> None:
    info = comfyui.get("/object_info")
    assert set(NODES) <= set(info)
    for name in NODES:
        assert info[name]["description"] and info[name]["display_name"] != name
        for inputs in (info[name]["input"].get(kind, {}) for kind in ("required", "optional")):
            assert all(options["tooltip"] for _, options in inputs.values()), name
        assert all(info[name]["output_tooltips"]), name


def test_generate_removes_and_leaves_every_byte_outside_the_mask(
    comfyui: ComfyUI, example, tmp_path: Path
) -> None:
    run = comfyui.run(removal(comfyui, task_type="removal", seed=7))
    assert run.outcome == "execution_success"
    result, report = result_of(comfyui, run.outputs)
    outside = mask_ops.feather(example("astronaut_shuttle_mask"), 16) == 0
    assert torch.equal(result[outside], example("astronaut")[outside])
    assert not torch.equal(result, example("astronaut"))
    assert report["editor"] == "draft/removal" and report["seed"] == 7
    assert run.of("progress"), "progress is shown"

    same = tmp_path / "same.png"
    mask = EXAMPLES / "astronaut_shuttle_mask.png"
    cli.main(
        [
            "edit",
            str(EXAMPLES / "astronaut.png"),
            f"--mask={mask}",
            "--task=removal",
            "--seed=7",
            "-o",
            str(same),
        ]
    )
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


def test_generate_scales_and_shows_the_editor_what_else_it_is_given(comfyui: ComfyUI) -> None:
    given = {"input_image": COFFEE, "mask_image": COFFEE_MASK, "width": 300, "grow_mask": 8}
    more = {"extra_1": EXAMPLES / "chelsea.png", "extra_3": EXAMPLES / "astronaut.png"}
    answered = answers(comfyui, generate(comfyui, **given, **more))
    assert [picture.size for picture in answered["image"]] == [(300, 200)]
    labels = ["mask", "background", "object", "extra 1", "extra 2"]
    assert (
        json.loads(answered["condition_labels"])
        == json.loads(answered["report"])["conditions"]
        == labels
    )
    assert (
        len({picture.size for picture in answered["conditions"]}) == 1
        and len(answered["conditions"]) == 5
    )
    small = answers(
        comfyui, generate(comfyui, input_image=COFFEE, mask_image=COFFEE_MASK, max_megapixels=0.05)
    )
    assert small["image"][0].size == (280, 186)


def test_smart_mask_takes_clicks_and_tells_how_sure_it_is(comfyui: ComfyUI) -> None:
    clicked = {"image": COFFEE, "prompt": json.dumps({"points": [[270, 60]]})}
    first = answers(comfyui, endpoint(comfyui, "smart-mask", **clicked))
    assert first["mask"][0].mode == "L" and first["mask"][0].size == (600, 400)
    assert 0 <= first["score"] <= 1 and first["candidates"] == 3
    wider = answers(comfyui, endpoint(comfyui, "smart-mask", **clicked, grow=20, feather=8))[
        "mask"
    ][0]
    assert sum(wider.histogram()[128:]) > sum(first["mask"][0].histogram()[128:])
    assert wider.histogram()[64], "a soft edge"
    painted = answers(comfyui, endpoint(comfyui, "smart-mask", image=COFFEE, brush=COFFEE_MASK))
    assert painted["candidates"] == 1 and painted["mask"][0].getbbox()[0] > 300


def smart_mask(comfyui: ComfyUI, photo: Path = COFFEE, **given: Any) -> dict[str, Any]:
    """A photo, Smart Mask on it, and its masks."""
    asked = {
        "model": "draft",
        "prompt": '{"points": [[270, 60]]}',
        "candidate": 0,
        "grow": 0,
        "smooth": 0,
    }
    asked |= {"feather": 0, "drop_specks": 0, "fill_holes": True, "keep_largest": False}
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": comfyui.upload(photo)}},
        "2": {"class_type": "ArtMancer_SmartMask", "inputs": {"image": ["1", 0], **asked, **given}},
        "3": {
            "class_type": "ArtMancer_EndpointResult",
            "inputs": {"value": ["2", 0], "name": "mask", "help": ""},
        },
    }


def test_a_photo_is_shown_from_one_file_however_often_it_is_clicked(comfyui: ComfyUI) -> None:
    def shown(graph: dict[str, Any]) -> tuple[str, str]:
        outputs = comfyui.run(graph).outputs["2"]
        return tuple(
            outputs[name][0]["filename"] for name in ("artmancer_picture", "artmancer_mask")
        )

    (first, mask), (again, other_mask) = (
        shown(smart_mask(comfyui, candidate=number)) for number in (0, 1)
    )
    assert first == again and mask != other_mask
    assert shown(smart_mask(comfyui, EXAMPLES / "chelsea.png"))[0] != first
    (comfyui.base / "temp" / first).unlink()
    assert (
        shown(smart_mask(comfyui, candidate=2))[0] == first
        and (comfyui.base / "temp" / first).is_file()
    )


def test_each_photo_of_a_batch_has_its_own_brush(comfyui: ComfyUI) -> None:
    graph = smart_mask(comfyui, image=["batch", 0], brush=["brushes", 0], prompt="")
    masks = [EXAMPLES / "coffee_mask.png", ROOT / "tests" / "assets" / "masks" / "coffee_cup.png"]
    graph |= {
        f"mask {number}": {"class_type": "LoadImage", "inputs": {"image": comfyui.upload(path)}}
        for number, path in enumerate(masks)
    }
    graph |= {
        "batch": {"class_type": "RepeatImageBatch", "inputs": {"image": ["1", 0], "amount": 2}},
        "painted": {
            "class_type": "ImageBatch",
            "inputs": {"image1": ["mask 0", 0], "image2": ["mask 1", 0]},
        },
        "brushes": {
            "class_type": "ImageToMask",
            "inputs": {"image": ["painted", 0], "channel": "red"},
        },
    }
    run = comfyui.run(graph)
    for found, path in zip(pictures(comfyui, run, "3"), masks, strict=True):
        assert overlap(found, Image.open(path)) >= 0.5
    graph["batch"]["inputs"]["amount"] = 3
    assert "There are 2 brush masks for 3 photos. Connect one mask" in failure(comfyui, graph)


def overlap(one: Image.Image, other: Image.Image) -> float:
    """Intersection over union."""
    first, second = (np.asarray(picture.convert("L")) >= 128 for picture in (one, other))
    return float((first & second).sum() / (first | second).sum())


def test_what_is_transparent_is_laid_over_white(comfyui: ComfyUI) -> None:
    by_hand = {"automatic": 0.0, "temperature": 0.0, "tint": 0.0}
    graph = smart_mask(comfyui, image=["cut", 0]) | {
        "alpha": {
            "class_type": "LoadImageMask",
            "inputs": {"image": comfyui.upload(COFFEE_MASK), "channel": "red"},
        },
        "cut": {
            "class_type": "JoinImageWithAlpha",
            "inputs": {"image": ["1", 0], "alpha": ["alpha", 0]},
        },
        "white": {
            "class_type": "ArtMancer_WhiteBalance",
            "inputs": {"image": ["cut", 0], **by_hand},
        },
        "compare": {
            "class_type": "ArtMancer_Compare",
            "inputs": {"before": ["cut", 0], "after": ["white", 0], "at": 0.5},
        },
        "4": {
            "class_type": "ArtMancer_EndpointResult",
            "inputs": {"value": ["compare", 0], "name": "x", "help": ""},
        },
    }
    run = comfyui.run(graph)
    assert run.outcome == "execution_success", run.events[-1]
    assert pictures(comfyui, run, "3")[0].size == (600, 400)
    clear = images.load_mask(COFFEE_MASK)[0] == 1
    assert (images.decode(comfyui.view(run.outputs["4"]["images"][0])).image[0][clear] > 0.99).all()


def test_fastsam_is_kept_until_memory_is_freed_and_files_of_one_name_are_told_apart(
    comfyui: ComfyUI, tmp_path: Path
) -> None:
    Image.fromarray(scene(507)[0]).save(tmp_path / "scene.png")
    files = [
        comfyui.base / "models" / folder / "one.pt" for folder in ("fastsam", "ultralytics/segm")
    ]
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "tests" / "assets" / "tiny_fastsam.pt", files[0])
    files[1].write_bytes(b"another")
    try:
        assert comfyui.get("/artmancer/status")["segmenters"] == [
            "one.pt",
            "ultralytics_segm/one.pt",
        ]
        photo = tmp_path / "scene.png"
        first = smart_mask(comfyui, photo, model="one.pt", prompt="")
        assert comfyui.run(first).outcome == "execution_success"
        other = smart_mask(comfyui, photo, model="ultralytics_segm/one.pt", prompt="")
        assert "'one.pt' is not a FastSAM" in failure(comfyui, other)
        files[0].write_bytes(b"no longer a model")
        again = smart_mask(comfyui, photo, model="one.pt", prompt="", candidate=1)
        assert comfyui.run(again).outcome == "execution_success", "it is not loaded anew"
        comfyui.free()
        assert "'one.pt' is not a FastSAM" in failure(comfyui, again), "it is"
    finally:
        for path in files:
            path.unlink()


def test_an_object_is_extracted_and_gets_a_shadow_without_a_mask(comfyui: ComfyUI) -> None:
    cut = answers(comfyui, endpoint(comfyui, "extract-object", image=COFFEE, mask=COFFEE_MASK))[
        "image"
    ][0]
    assert cut.size == (512, 512)
    photo = comfyui.base / "extracted.png"
    cut.save(photo)
    shadow = answers(comfyui, endpoint(comfyui, "add-shadow-preview", image=photo, offset_x=40))[
        "image"
    ][0]
    darker = ImageChops.subtract(cut, shadow).convert("L")
    assert sum(darker.histogram()[10:]) > 1000
    masked = endpoint(comfyui, "add-shadow-preview", image=COFFEE, mask=COFFEE_MASK)
    assert answers(comfyui, masked)["image"][0].size == (600, 400)


def test_white_balance_by_itself_and_by_hand(comfyui: ComfyUI) -> None:
    photo = Image.open(COFFEE).convert("RGB")
    still = answers(comfyui, endpoint(comfyui, "white-balance", image=COFFEE, automatic=0.0))[
        "image"
    ][0]
    assert still.tobytes() == photo.tobytes()
    for given in (
        {},
        {"temperature": 40.0},
        {"automatic": 0.0, "tint": -20.0},
        {"mask": COFFEE_MASK},
    ):
        changed = answers(comfyui, endpoint(comfyui, "white-balance", image=COFFEE, **given))[
            "image"
        ][0]
        assert changed.size == (600, 400) and changed.tobytes() != photo.tobytes()
    wrong = endpoint(
        comfyui, "white-balance", image=COFFEE, mask=EXAMPLES / "astronaut_shuttle_mask.png"
    )
    assert "The mask is 512x512 but the image is 600x400. Resize the mask" in failure(
        comfyui, wrong
    )


def test_remove_background_asks_for_its_weights(comfyui: ComfyUI) -> None:
    if comfyui.get("/artmancer/status")["rembg"]:
        pytest.skip("another test has put weights there")
    graph = endpoint(comfyui, "remove-background", image=COFFEE)
    run = comfyui.run(graph)
    assert run.events[-1]["data"]["exception_type"].endswith("errors.checkpoint_missing")
    assert "There is no u2net.onnx" in run.events[-1]["data"]["exception_message"]


def in_temp(comfyui: ComfyUI, path: Path, name: str) -> str:
    """Upload a picture as the gateway does; what Endpoint Image calls it."""
    sent = comfyui.upload(path, name, type="temp", subfolder="artmancer", overwrite="true")
    return f"artmancer/{sent} [temp]"


def test_uploads_in_the_temporary_folder_are_read_and_cached_and_results_made_anew(
    comfyui: ComfyUI,
) -> None:
    graph = generate(comfyui, task_type="removal")
    graph["1"]["inputs"]["image"] = in_temp(comfyui, COFFEE, "a" * 64 + ".png")
    graph["2"]["inputs"]["image"] = in_temp(comfyui, COFFEE_MASK, "b" * 64 + ".png")
    graph["14"]["inputs"]["folder"] = "temp"
    del graph["28"], graph["29"]
    first, second = comfyui.run(graph), comfyui.run(graph)
    cached = second.of("execution_cached")[0]["nodes"]
    assert {"1", "2", "13", "15"} <= set(cached) and "14" not in cached
    files = [run.outputs["14"]["images"][0] for run in (first, second)]
    assert all(
        file["type"] == "temp" and file["subfolder"] == "artmancer_results" for file in files
    )
    assert files[0]["filename"] != files[1]["filename"] and comfyui.view(files[0]) == comfyui.view(
        files[1]
    )
    for name in (
        "artmancer/gone.png [temp]",
        "../input/coffee.png [temp]",
        "artmancer/../../input/coffee.png [temp]",
    ):
        graph["1"]["inputs"]["image"] = name
        assert comfyui.queue(graph)[0] == 400


def test_an_unchanged_graph_is_not_run_again_and_a_changed_picture_is(
    comfyui: ComfyUI, tmp_path: Path
) -> None:
    photo = tmp_path / "cached.png"
    Image.open(EXAMPLES / "chelsea.png").save(photo)
    graph = generate(comfyui, task_type="white_balance", input_image=photo)
    comfyui.run(graph)
    assert "13" in comfyui.run(graph).of("execution_cached")[0]["nodes"]
    Image.open(EXAMPLES / "coffee.png").save(comfyui.base / "input" / graph["1"]["inputs"]["image"])
    again = comfyui.run(graph)
    assert "13" not in again.of("execution_cached")[0]["nodes"]
    assert result_of(comfyui, again.outputs)[0].shape == (1, 400, 600, 3)


def test_before_and_after_are_shown_again_where_nothing_is_run_again(comfyui: ComfyUI) -> None:
    if "HAS_INTERMEDIATE_OUTPUT" not in (comfyui_folder() / "execution.py").read_text():
        pytest.skip("this ComfyUI shows what output nodes have in the cache, and no others")
    graph = generate(
        comfyui, task_type="white_balance", input_image=EXAMPLES / "coffee.png", seed=31
    )
    first, again = comfyui.run(graph), comfyui.run(graph)
    assert "13" in again.of("execution_cached")[0]["nodes"]
    assert again.outputs["13"]["artmancer_after"] == first.outputs["13"]["artmancer_after"]


def batch_of(comfyui: ComfyUI, pictures: int) -> dict[str, Any]:
    graph = removal(comfyui, task_type="removal")
    graph["batch"] = {
        "class_type": "RepeatImageBatch",
        "inputs": {"image": ["1", 0], "amount": pictures},
    }
    graph["23"]["inputs"]["image"] = ["batch", 0]
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
        ({"prompt": " "}, "6", "has no text"),
    ],
)
def test_a_value_out_of_range_is_refused_by_comfyui_with_our_sentence(
    comfyui: ComfyUI, given: dict[str, Any], node: str, said: str
) -> None:
    graph = removal(comfyui, **given)
    for on_request in ("28", "29"):
        del graph[on_request]  # ComfyUI would run the part of the graph that is right
    status, answer = comfyui.queue(graph)
    assert status == 400
    assert said in json.dumps(answer["node_errors"][node]["errors"])


@pytest.mark.parametrize(
    "name", ["(none)", "gone.png", "../user/comfyui.db", "/etc/passwd", "../../../etc/passwd"]
)
def test_a_picture_that_is_not_in_the_input_folder_is_refused(comfyui: ComfyUI, name: str) -> None:
    graph = removal(comfyui)
    graph["1"]["inputs"]["image"] = name
    status, answer = comfyui.queue(graph)
    assert status == 400
    said = json.dumps(answer["node_errors"]["1"]["errors"])
    assert ("has no image" if name == "(none)" else "input folder") in said


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
    assert "The mask is 512x512 but the image is 600x400. Resize the mask" in failure(
        comfyui, wrong
    )
    assert "black everywhere" in failure(comfyui, generate(comfyui, **photo, mask_image=black))
    assert "A mask is needed for removal" in failure(comfyui, generate(comfyui, **photo))
    assert "cut off" in failure(
        comfyui, generate(comfyui, task_type="white_balance", input_image=cut_off)
    )
    nothing = generate(comfyui, **photo)
    nothing["1"]["inputs"]["image"] = None
    assert "'input_image' is required and has no image" in failure(comfyui, nothing)
    words = generate(
        comfyui, **{**photo, "task_type": "insertion"}, mask_image=EXAMPLES / "coffee_mask.png"
    )
    assert "cannot draw from words" in failure(comfyui, words)


def test_an_endpoint_result_takes_pictures_masks_words_and_numbers(comfyui: ComfyUI) -> None:
    photo, mask = (
        comfyui.upload(EXAMPLES / "coffee.png"),
        comfyui.upload(EXAMPLES / "coffee_mask.png"),
    )
    about = {"name": "x", "help": ""}
    values = {
        "image": {
            "class_type": "ArtMancer_EndpointImage",
            "inputs": {"image": photo, **about, "required": True},
        },
        "mask": {
            "class_type": "ArtMancer_EndpointMask",
            "inputs": {"image": mask, **about, "required": True},
        },
        "switch": {"class_type": "ArtMancer_EndpointSwitch", "inputs": {"value": True, **about}},
        "integer": {
            "class_type": "ArtMancer_EndpointInteger",
            "inputs": {"value": 2**53 - 1, **about, "minimum": 0, "maximum": 2**53 - 1},
        },
    }
    results = {
        f"{name}-result": {
            "class_type": "ArtMancer_EndpointResult",
            "inputs": {"value": [name, 0], **about},
        }
        for name in values
    }
    outputs = comfyui.run({**values, **results}).outputs
    assert outputs["switch-result"]["text"] == ["True"] and outputs["integer-result"]["text"] == [
        str(2**53 - 1)
    ]
    assert comfyui.view(outputs["image-result"]["images"][0])[:4] == b"\x89PNG"
    saved = comfyui.view(outputs["mask-result"]["images"][0])
    assert torch.equal(images.decode_mask(saved), images.load_mask(COFFEE_MASK))
    assert Image.open(io.BytesIO(saved)).mode == "L"


def test_an_endpoint_result_keeps_transparency(comfyui: ComfyUI) -> None:
    graph = endpoint(comfyui, "extract-object", image=COFFEE, mask=COFFEE_MASK)
    graph["join"] = {
        "class_type": "JoinImageWithAlpha",
        "inputs": {"image": ["1", 0], "alpha": ["2", 0]},
    }
    (result,) = [
        node["inputs"]
        for node in graph.values()
        if node["class_type"] == "ArtMancer_EndpointResult"
    ]
    result["value"] = ["join", 0]
    picture = answers(comfyui, graph)["image"][0]
    assert picture.mode == "RGBA" and picture.getchannel("A").getextrema() == (0, 255)
    assert picture.convert("RGB").tobytes() == Image.open(COFFEE).convert("RGB").tobytes()


def test_the_status_is_told_by_names_alone_and_at_once(comfyui: ComfyUI) -> None:
    comfyui.get("/artmancer/status")
    start = time.perf_counter()
    said = comfyui.get("/api/artmancer/status")
    assert time.perf_counter() - start < 0.2
    assert said["version"] == __version__ and said["device"] == said["device_name"] == "cpu"
    assert said["expected"]["removal"] == ["removal_cp.safetensors"]
    assert set(said["checkpoints"]) == {"insertion", "removal", "white_balance"}
    assert all(isinstance(said[name], list) for name in ("bases", "segmenters", "rembg"))
    assert str(comfyui.base) not in json.dumps(said)


def tidy(
    comfyui: ComfyUI, max_age: float = 1e6, max_bytes: int = 10**12, keep: tuple[str, ...] = ()
) -> dict[str, Any]:
    body = {"max_age": max_age, "max_bytes": max_bytes, "keep": keep}
    status, answer = comfyui.post("/artmancer/tidy", json=body)
    assert status == 200
    return answer


def test_tidying_removes_old_files_of_ours_and_nothing_else(
    comfyui: ComfyUI, tmp_path: Path
) -> None:
    tidy(comfyui, max_age=0)
    temp, outside = comfyui.base / "temp", tmp_path / "outside.png"
    others = [
        temp / "ComfyUI_temp_1.png",
        temp / "artmancer" / "deeper" / "a.png",
        comfyui.base / "input" / "x.png",
    ]
    mine = [
        temp / "artmancer_12_mask.png",
        temp / "artmancer" / "up.png",
        temp / "artmancer_results" / "r.png",
    ]
    for age, path in enumerate([*others, outside, *mine]):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
        os.utime(path, (time.time() - 100 * age, time.time() - 100 * age))
    link = temp / "artmancer" / "link.png"
    link.symlink_to(outside)
    assert tidy(comfyui, max_age=1000) == {"files": 0, "bytes": 0}
    assert tidy(comfyui, max_age=550, keep=("r.png", "../../../outside.png")) == {
        "files": 0,
        "bytes": 0,
    }
    assert tidy(comfyui, max_age=550) == {"files": 1, "bytes": 1000} and not mine[2].exists()
    assert tidy(comfyui, max_bytes=1500) == {"files": 1, "bytes": 1000} and not mine[1].exists()
    assert tidy(comfyui, max_bytes=0, keep=("artmancer_12_mask.png",)) == {"files": 0, "bytes": 0}
    assert tidy(comfyui, max_bytes=0) == {"files": 1, "bytes": 1000}
    assert link.is_symlink() and all(path.is_file() for path in [*others, outside])


def test_a_folder_that_is_a_link_is_not_tidied(comfyui: ComfyUI, tmp_path: Path) -> None:
    (tmp_path / "precious.png").write_bytes(b"1")
    folder = comfyui.base / "temp" / "artmancer_results"
    moved = folder.rename(folder.with_name("moved"))
    folder.symlink_to(tmp_path)
    assert tidy(comfyui, max_age=0)["files"] == 0 and (tmp_path / "precious.png").exists()
    folder.unlink()
    moved.rename(folder)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"data": "{"}, "The body is not a JSON object"),
        ({"json": [1]}, "The body is not a JSON object"),
        (
            {"json": {"max_age": "1", "max_bytes": 1, "keep": []}},
            "max_age is '1'; expected seconds",
        ),
        (
            {"json": {"max_age": True, "max_bytes": 1, "keep": []}},
            "max_age is True; expected seconds",
        ),
        (
            {"json": {"max_age": 1, "max_bytes": 1.5, "keep": []}},
            "max_bytes is 1.5; expected bytes",
        ),
        ({"json": {"max_age": 1, "max_bytes": -1, "keep": []}}, "max_bytes is -1; expected bytes"),
        (
            {"json": {"max_age": 1, "max_bytes": 1, "keep": [1]}},
            "keep is [1]; expected names of files",
        ),
        ({"json": {"max_age": 1, "max_bytes": 1}}, "keep is None; expected names of files"),
    ],
)
def test_tidying_refuses_what_it_cannot_read(
    comfyui: ComfyUI, body: dict[str, Any], said: str
) -> None:
    status, answer = comfyui.post("/artmancer/tidy", **body)
    assert status == 400 and said in answer["error"]


def test_the_start_is_clean(comfyui: ComfyUI) -> None:
    assert not re.search(
        r"artmancer.*(error|warning|failed)",
        comfyui.log.read_text().split("Starting server")[0],
        re.I,
    )
