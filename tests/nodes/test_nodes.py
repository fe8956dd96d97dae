"""The nodes in a real ComfyUI, through its own HTTP interface."""

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
from support import rembg_weights
from support.comfyui import ComfyUI, Event, Run
from support.images import disc
from support.odd_files import PROFILES, png, read_png
from support.odd_files import photo as deep_photo
from support.paths import EXAMPLES, NODES, ROOT
from support.shapes import scene

from artmancer import __version__, cli, images, mask_ops
from artmancer.folders import comfyui_folder

pytestmark = pytest.mark.comfyui

COFFEE = EXAMPLES / "coffee.png"
COFFEE_MASK = EXAMPLES / "coffee_mask.png"
ASTRONAUT_MASK = EXAMPLES / "astronaut_shuttle_mask.png"


def endpoint(comfyui: ComfyUI, workflow: str, **values: Any) -> dict[str, Any]:
    """Return a graph of workflows/api with values for its endpoint inputs.

    Parameters
    ----------
    workflow : file name without the extension
    values : values by the names of the inputs; a Path is uploaded
    """
    path = ROOT / "workflows" / "api" / f"{workflow}.json"
    graph: dict[str, Any] = json.loads(path.read_text())
    inputs_by_name = {
        node["inputs"].get("name"): node["inputs"]
        for node in graph.values()
        if node["class_type"] != "ArtMancer_EndpointResult"
    }
    for name, value in values.items():
        if isinstance(value, Path):
            inputs_by_name[name]["image"] = comfyui.upload(value)
        else:
            inputs_by_name[name]["value"] = value
    return graph


def generate(comfyui: ComfyUI, **values: Any) -> dict[str, Any]:
    return endpoint(comfyui, "generate", **{"prompt": "edit it", **values})


def results_of(comfyui: ComfyUI, graph: dict[str, Any]) -> dict[str, Any]:
    """Run a graph; return the images (Pillow) or the value of each result by its name."""
    run = comfyui.run(graph)
    assert run.outcome == "execution_success", run.events[-1]
    results = {}
    for key, node in graph.items():
        if "EndpointResult" in node["class_type"]:
            images_or_value = shown_images(comfyui, run, key) or run.outputs[key]["value"][0]
            results[node["inputs"]["name"]] = images_or_value
    return results


def shown_images(comfyui: ComfyUI, run: Run, node: str) -> list[Image.Image]:
    """Return the images that a node shows after a run."""
    return [
        Image.open(io.BytesIO(comfyui.view(file))) for file in run.outputs[node].get("images", [])
    ]


def image_and_report(
    comfyui: ComfyUI, outputs: dict[str, Any]
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return the edited image [1, H, W, 3] and the report of the workflow generate."""
    image = images.decode(comfyui.view(outputs["14"]["images"][0])).image
    return image, json.loads(outputs["15"]["text"][0])


def removal(comfyui: ComfyUI, **values: Any) -> dict[str, Any]:
    photo = EXAMPLES / "astronaut.png"
    return generate(comfyui, input_image=photo, mask_image=ASTRONAUT_MASK, **values)


def test_every_node_has_a_tooltip_on_every_input_and_output(comfyui: ComfyUI) -> None:
    info = comfyui.get("/object_info")
    assert set(NODES) <= set(info)
    for name in NODES:
        assert info[name]["description"]
        assert info[name]["display_name"] != name
        for inputs in (info[name]["input"].get(kind, {}) for kind in ("required", "optional")):
            assert all(options["tooltip"] for _, options in inputs.values()), name
        assert all(info[name]["output_tooltips"]), name


def test_generate_removes_an_object_and_changes_no_byte_outside_the_mask(
    comfyui: ComfyUI, example, tmp_path: Path
) -> None:
    run = comfyui.run(removal(comfyui, task_type="removal", seed=7))
    assert run.outcome == "execution_success"
    result, report = image_and_report(comfyui, run.outputs)
    outside = mask_ops.feather(example("astronaut_shuttle_mask"), 16) == 0
    assert torch.equal(result[outside], example("astronaut")[outside])
    assert not torch.equal(result, example("astronaut"))
    assert report["editor"] == "draft/removal"
    assert report["seed"] == 7
    assert run.of("progress"), "progress is shown"
    assert re.fullmatch(r"mask, background, object at \d+x\d+", run.last_texts["12"])
    assert re.fullmatch(r"draft/removal: \d+\.\d s", run.last_texts["13"])

    output = tmp_path / "output.png"
    command = ["edit", str(EXAMPLES / "astronaut.png"), f"--mask={ASTRONAUT_MASK}"]
    cli.main([*command, "--task=removal", "--seed=7", f"--output={output}"])
    assert torch.equal(images.load(output).image, result), "the command line gives the same image"


def test_generate_inserts_a_reference(comfyui: ComfyUI) -> None:
    graph = generate(
        comfyui,
        task_type="insertion",
        input_image=COFFEE,
        mask_image=COFFEE_MASK,
        reference_image=EXAMPLES / "astronaut.png",
        reference_mask_R=EXAMPLES / "astronaut_patch_mask.png",
    )
    _, report = image_and_report(comfyui, comfyui.run(graph).outputs)
    assert report["editor"] == "draft/insertion"
    assert report["outside_psnr"] == "infinite"


def test_generate_corrects_the_white_balance_without_a_mask(comfyui: ComfyUI) -> None:
    graph = generate(comfyui, task_type="white_balance", input_image=EXAMPLES / "chelsea.png")
    result, report = image_and_report(comfyui, comfyui.run(graph).outputs)
    assert report["editor"] == "draft/white_balance"
    assert result.shape == (1, 300, 451, 3)


def test_generate_scales_the_image_and_passes_extra_images_to_the_editor(
    comfyui: ComfyUI,
) -> None:
    usual = {"input_image": COFFEE, "mask_image": COFFEE_MASK, "width": 300, "grow_mask": 8}
    extra = {"extra_1": EXAMPLES / "chelsea.png", "extra_3": EXAMPLES / "astronaut.png"}
    results = results_of(comfyui, generate(comfyui, **usual, **extra))
    assert [image.size for image in results["image"]] == [(300, 200)]
    labels = ["mask", "background", "object", "extra 1", "extra 2"]
    assert json.loads(results["condition_labels"]) == labels
    assert json.loads(results["report"])["conditions"] == labels
    assert len(results["conditions"]) == 5
    assert len({image.size for image in results["conditions"]}) == 1
    limited = generate(comfyui, input_image=COFFEE, mask_image=COFFEE_MASK, max_megapixels=0.05)
    assert results_of(comfyui, limited)["image"][0].size == (280, 186)


def test_smart_mask_accepts_clicks_and_returns_a_mask_and_a_score(comfyui: ComfyUI) -> None:
    clicks = {"image": COFFEE, "prompt": json.dumps({"points": [[270, 60]]})}
    first = results_of(comfyui, endpoint(comfyui, "smart-mask", **clicks))
    mask = first["mask"][0]
    assert mask.mode == "L"
    assert mask.size == (600, 400)
    assert 0 <= first["score"] <= 1
    assert 1 < first["candidates"] <= 3
    graph = endpoint(comfyui, "smart-mask", **clicks, grow=20, feather=8)
    wider = results_of(comfyui, graph)["mask"][0]
    assert sum(wider.histogram()[128:]) > sum(mask.histogram()[128:])
    assert wider.histogram()[64], "a soft edge"
    painted = results_of(comfyui, endpoint(comfyui, "smart-mask", image=COFFEE, brush=COFFEE_MASK))
    assert painted["candidates"] == 1
    assert painted["mask"][0].getbbox()[0] > 300


def test_birefnet_refines_the_mask_where_it_is_installed(comfyui: ComfyUI, tmp_path: Path) -> None:
    # A ring, whose hole only BiRefNet sees.
    ring = disc(200, 260, 100, 130, 60) - disc(200, 260, 100, 130, 20)
    alpha = mask_ops.feather(ring, 8)
    colors = torch.tensor([[0.1, 0.8, 0.1], [0.9, 0.1, 0.1]])
    photo = torch.lerp(colors[0].expand(1, 200, 260, 3), colors[1], alpha.unsqueeze(-1))
    path = tmp_path / "red_disc.png"
    images.save(path, photo)
    click = {"image": path, "prompt": json.dumps({"points": [[130, 60]]}), "model": "birefnet"}
    without = results_of(comfyui, endpoint(comfyui, "smart-mask", **click))
    assert json.loads(without["report"]) == {
        "model": "draft",
        "refined_by": None,
        "note": "There is no BiRefNet model in models/rembg to refine the mask.",
    }
    weights = comfyui.base / "models" / "rembg" / "birefnet-general.onnx"
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(rembg_weights.onnx("Identity", side=1024))
    try:
        refined = results_of(comfyui, endpoint(comfyui, "smart-mask", **click))
        weights.write_bytes(b"not a model")
        comfyui.free()
        broken = results_of(comfyui, endpoint(comfyui, "smart-mask", **click, grow=1))
    finally:
        weights.unlink()
    report = json.loads(refined["report"])
    assert (report["model"], report["refined_by"]) == ("draft", "birefnet-general")
    assert json.loads(broken["report"])["refined_by"] is None
    assert "birefnet-general could not refine the mask." in json.loads(broken["report"])["note"]

    def error(mask: Image.Image) -> float:
        return float((torch.from_numpy(np.array(mask)) / 255 - alpha[0]).abs().max())

    assert error(refined["mask"][0]) < 0.1 < 0.4 < error(without["mask"][0])


def smart_mask(comfyui: ComfyUI, photo: Path = COFFEE, **values: Any) -> dict[str, Any]:
    """Return a graph of a photo (1), Smart Mask (2) and its masks as a result (3).

    Parameters
    ----------
    values : inputs of Smart Mask that differ from the usual
    """
    inputs = {
        "image": ["1", 0],
        "model": "draft",
        "prompt": '{"points": [[270, 60]]}',
        "candidate": 0,
        "grow": 0,
        "smooth": 0,
        "feather": 0,
        "drop_specks": 0,
        "fill_holes": True,
        "keep_largest": False,
    }
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": comfyui.upload(photo)}},
        "2": {"class_type": "ArtMancer_SmartMask", "inputs": {**inputs, **values}},
        "3": {
            "class_type": "ArtMancer_EndpointResult",
            "inputs": {"value": ["2", 0], "name": "mask", "help": ""},
        },
    }


def test_the_photo_for_the_widget_is_saved_once_for_any_number_of_clicks(comfyui: ComfyUI) -> None:
    def file_names(graph: dict[str, Any]) -> tuple[str, str]:
        """Return the file names of the photo and of the mask that Smart Mask shows."""
        outputs = comfyui.run(graph).outputs["2"]
        photo = outputs["artmancer_picture"][0]["filename"]
        return photo, outputs["artmancer_mask"][0]["filename"]

    photo, mask = file_names(smart_mask(comfyui, candidate=0))
    same_photo, other_mask = file_names(smart_mask(comfyui, candidate=1))
    assert same_photo == photo
    assert other_mask != mask
    assert file_names(smart_mask(comfyui, EXAMPLES / "chelsea.png"))[0] != photo
    saved = comfyui.base / "temp" / photo
    saved.unlink()
    assert file_names(smart_mask(comfyui, candidate=2))[0] == photo
    assert saved.is_file()


def test_each_photo_of_a_batch_has_its_own_brush(comfyui: ComfyUI) -> None:
    graph = smart_mask(comfyui, image=["batch", 0], brush=["brushes", 0], prompt="")
    masks = [COFFEE_MASK, ROOT / "tests" / "assets" / "masks" / "coffee_cup.png"]
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
    for mask, path in zip(shown_images(comfyui, run, "3"), masks, strict=True):
        assert overlap(mask, Image.open(path)) >= 0.5
    graph["batch"]["inputs"]["amount"] = 3
    assert "There are 2 brush masks for 3 photos. Connect one mask" in failure(comfyui, graph)


def overlap(mask: Image.Image, other: Image.Image) -> float:
    """Return the intersection over union of two masks."""
    first = np.asarray(mask.convert("L")) >= 128
    second = np.asarray(other.convert("L")) >= 128
    return float((first & second).sum() / (first | second).sum())


def test_transparent_pixels_become_white(comfyui: ComfyUI) -> None:
    unchanged = {"automatic": 0.0, "temperature": 0.0, "tint": 0.0}
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
            "inputs": {"image": ["cut", 0], **unchanged},
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
    assert shown_images(comfyui, run, "3")[0].size == (600, 400)
    clear = images.load_mask(COFFEE_MASK)[0] == 1
    result = images.decode(comfyui.view(run.outputs["4"]["images"][0])).image[0]
    assert (result[clear] > 0.99).all()


def test_fastsam_stays_loaded_until_memory_is_freed_and_equal_file_names_are_distinguished(
    comfyui: ComfyUI, tmp_path: Path
) -> None:
    Image.fromarray(scene(507)[0]).save(tmp_path / "scene.png")
    model = comfyui.base / "models" / "fastsam" / "one.pt"
    broken = comfyui.base / "models" / "ultralytics" / "segm" / "one.pt"
    for path in (model, broken):
        path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "tests" / "assets" / "tiny_fastsam.pt", model)
    broken.write_bytes(b"another")
    try:
        segmenters = comfyui.get("/artmancer/status")["segmenters"]
        assert segmenters == ["one.pt", "ultralytics_segm/one.pt"]
        photo = tmp_path / "scene.png"
        first = smart_mask(comfyui, photo, model="one.pt", prompt="")
        assert comfyui.run(first).outcome == "execution_success"
        other = smart_mask(comfyui, photo, model="ultralytics_segm/one.pt", prompt="")
        assert "'one.pt' is not a FastSAM" in failure(comfyui, other)
        model.write_bytes(b"no longer a model")
        again = smart_mask(comfyui, photo, model="one.pt", prompt="", candidate=1)
        assert comfyui.run(again).outcome == "execution_success", "the file is not read again"
        comfyui.free()
        assert "'one.pt' is not a FastSAM" in failure(comfyui, again)
    finally:
        for path in (model, broken):
            path.unlink()


def test_an_object_is_extracted_and_gets_a_shadow_without_a_mask(comfyui: ComfyUI) -> None:
    extraction = endpoint(comfyui, "extract-object", image=COFFEE, mask=COFFEE_MASK)
    cut_out = results_of(comfyui, extraction)["image"][0]
    assert cut_out.size == (512, 512)
    path = comfyui.base / "extracted.png"
    cut_out.save(path)
    shadow = endpoint(comfyui, "add-shadow-preview", image=path, offset_x=40)
    shaded = results_of(comfyui, shadow)["image"][0]
    darkening = ImageChops.subtract(cut_out, shaded).convert("L")
    assert sum(darkening.histogram()[10:]) > 1000
    masked = endpoint(comfyui, "add-shadow-preview", image=COFFEE, mask=COFFEE_MASK)
    assert results_of(comfyui, masked)["image"][0].size == (600, 400)


def test_white_balance_is_automatic_or_manual(comfyui: ComfyUI) -> None:
    photo = Image.open(COFFEE).convert("RGB")
    neutral = endpoint(comfyui, "white-balance", image=COFFEE, automatic=0.0)
    assert results_of(comfyui, neutral)["image"][0].tobytes() == photo.tobytes()
    for values in (
        {},
        {"temperature": 40.0},
        {"automatic": 0.0, "tint": -20.0},
        {"mask": COFFEE_MASK},
    ):
        graph = endpoint(comfyui, "white-balance", image=COFFEE, **values)
        changed = results_of(comfyui, graph)["image"][0]
        assert changed.size == (600, 400)
        assert changed.tobytes() != photo.tobytes()
    wrong = endpoint(comfyui, "white-balance", image=COFFEE, mask=ASTRONAUT_MASK)
    message = failure(comfyui, wrong)
    assert "The mask is 512x512 but the image is 600x400. Resize the mask" in message


def test_remove_background_reports_missing_weights(comfyui: ComfyUI) -> None:
    graph = endpoint(comfyui, "remove-background", image=COFFEE)
    run = comfyui.run(graph)
    assert run.events[-1]["data"]["exception_type"].endswith("errors.checkpoint_missing")
    assert "There is no u2net.onnx" in run.events[-1]["data"]["exception_message"]


def in_temp(comfyui: ComfyUI, path: Path, name: str) -> str:
    """Upload an image as the gateway does; return its name for Endpoint Image."""
    saved = comfyui.upload(path, name, type="temp", subfolder="artmancer", overwrite="true")
    return f"artmancer/{saved} [temp]"


def test_uploads_in_the_temporary_folder_are_cached_and_results_are_saved_again(
    comfyui: ComfyUI,
) -> None:
    graph = generate(comfyui, task_type="removal")
    graph["1"]["inputs"]["image"] = in_temp(comfyui, COFFEE, "a" * 64 + ".png")
    graph["2"]["inputs"]["image"] = in_temp(comfyui, COFFEE_MASK, "b" * 64 + ".png")
    graph["14"]["inputs"]["folder"] = "temp"
    del graph["28"], graph["29"]
    first = comfyui.run(graph)
    second = comfyui.run(graph)
    cached = second.of("execution_cached")[0]["nodes"]
    assert {"1", "2", "13", "15"} <= set(cached)
    assert "14" not in cached
    files = [run.outputs["14"]["images"][0] for run in (first, second)]
    for file in files:
        assert file["type"] == "temp"
        assert file["subfolder"] == "artmancer_results"
    assert files[0]["filename"] != files[1]["filename"]
    assert comfyui.view(files[0]) == comfyui.view(files[1])
    for name in (
        "artmancer/gone.png [temp]",
        "../input/coffee.png [temp]",
        "artmancer/../../input/coffee.png [temp]",
    ):
        graph["1"]["inputs"]["image"] = name
        assert comfyui.queue(graph)[0] == 400


def test_an_unchanged_graph_comes_from_the_cache_and_a_changed_image_is_edited_again(
    comfyui: ComfyUI, tmp_path: Path
) -> None:
    photo = tmp_path / "cached.png"
    Image.open(EXAMPLES / "chelsea.png").save(photo)
    graph = generate(comfyui, task_type="white_balance", input_image=photo)
    comfyui.run(graph)
    assert "13" in comfyui.run(graph).of("execution_cached")[0]["nodes"]
    Image.open(COFFEE).save(comfyui.base / "input" / graph["1"]["inputs"]["image"])
    again = comfyui.run(graph)
    assert "13" not in again.of("execution_cached")[0]["nodes"]
    assert image_and_report(comfyui, again.outputs)[0].shape == (1, 400, 600, 3)


def test_before_and_after_are_shown_again_if_the_result_comes_from_the_cache(
    comfyui: ComfyUI,
) -> None:
    if "HAS_INTERMEDIATE_OUTPUT" not in (comfyui_folder() / "execution.py").read_text():
        pytest.skip("this ComfyUI shows cached results of output nodes only")
    graph = generate(comfyui, task_type="white_balance", input_image=COFFEE, seed=31)
    first = comfyui.run(graph)
    again = comfyui.run(graph)
    assert "13" in again.of("execution_cached")[0]["nodes"]
    assert again.outputs["13"]["artmancer_after"] == first.outputs["13"]["artmancer_after"]


def batch_of(comfyui: ComfyUI, amount: int) -> dict[str, Any]:
    """Return a graph that removes the object from a batch of equal photos."""
    graph = removal(comfyui, task_type="removal")
    graph["batch"] = {
        "class_type": "RepeatImageBatch",
        "inputs": {"image": ["1", 0], "amount": amount},
    }
    graph["23"]["inputs"]["image"] = ["batch", 0]
    return graph


def test_a_cancel_ends_a_running_edit_within_a_step(comfyui: ComfyUI) -> None:
    def cancel(event: Event) -> str | None:
        editing = event["type"] == "progress" and event["data"]["max"] == 40
        return "/interrupt" if editing else None

    run = comfyui.run(batch_of(comfyui, 40), on_event=cancel)
    assert run.outcome == "execution_interrupted"
    progress = run.of("progress")[-1]
    assert progress["value"] <= 1
    assert progress["max"] == 40
    assert run.last_texts["13"] == "cancelled"
    after = comfyui.run(removal(comfyui, task_type="removal", seed=3))
    assert after.outcome == "execution_success", "the next run is not affected"


def test_a_batch_of_photos_gives_a_batch_of_results(comfyui: ComfyUI) -> None:
    run = comfyui.run(batch_of(comfyui, 2))
    assert len(run.outputs["14"]["images"]) == 2


def test_context_mask_and_blend_mask_set_what_is_seen_and_what_shows(
    comfyui: ComfyUI, tmp_path: Path
) -> None:
    corner = Image.new("L", (600, 400))
    corner.paste(255, (20, 20, 60, 60))
    corner.save(tmp_path / "corner.png")
    graph = generate(comfyui, task_type="white_balance", input_image=COFFEE, mask_image=COFFEE_MASK)
    graph["60"] = {
        "class_type": "ArtMancer_EndpointMask",
        "inputs": {
            "image": comfyui.upload(tmp_path / "corner.png"),
            "name": "corner",
            "help": "",
            "required": True,
        },
    }
    graph["12"]["inputs"]["context_mask"] = ["60", 0]
    graph["12"]["inputs"]["feather"] = 4
    graph["13"]["inputs"]["blend_mask"] = ["60", 0]
    result, report = image_and_report(comfyui, comfyui.run(graph).outputs)
    top, left, height, width = report["box"]
    assert max(top, left) <= 20, "the crop shows the corner"
    assert top + height > 270
    assert left + width > 470
    changed = (result != images.load(COFFEE).image).any(-1)[0]
    assert changed[30:50, 30:50].float().mean() > 0.5
    changed[16:64, 16:64] = False
    assert not changed.any()


def test_fill_hole_takes_the_noise_of_a_jpeg_mask_for_black(
    comfyui: ComfyUI, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(1, 6, (400, 600)).astype(np.uint8)
    noise[270:370, 470:570] = 255
    Image.fromarray(noise).save(tmp_path / "noise.png")
    graph = endpoint(comfyui, "extract-object", image=COFFEE, mask=tmp_path / "noise.png")
    (key,) = (key for key, node in graph.items() if node["class_type"].endswith("ExtractObject"))
    links = {name: graph[key]["inputs"][name] for name in ("image", "mask")}
    graph[key] = {"class_type": "ArtMancer_FillHole", "inputs": {**links, "method": "telea"}}
    (result,) = next(iter(results_of(comfyui, graph).values()))
    photo = Image.open(COFFEE).convert("RGB")
    left, top, right, bottom = ImageChops.difference(result.convert("RGB"), photo).getbbox()
    assert (left, top) >= (470, 270)
    assert (right, bottom) <= (570, 370)


def test_a_jpeg_mask_and_an_empty_frame_work_in_a_graph(comfyui: ComfyUI, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(1, 6, (400, 600)).astype(np.uint8)
    noise[270:370, 470:570] = 255
    Image.fromarray(noise).save(tmp_path / "noisy.jpg", quality=75)
    Image.new("L", (600, 400), 3).save(tmp_path / "empty.png")
    graph = generate(comfyui, task_type="white_balance", input_image=COFFEE)
    graph["2"]["inputs"]["image"] = comfyui.upload(tmp_path / "noisy.jpg")
    graph["61"] = {"class_type": "ImageBatch", "inputs": {"image1": ["1", 0], "image2": ["1", 0]}}
    mask = graph["2"]["inputs"]
    graph["62"] = {
        "class_type": "ArtMancer_EndpointMask",
        "inputs": {**mask, "name": "empty", "image": comfyui.upload(tmp_path / "empty.png")},
    }
    for key, node in (("63", "2"), ("64", "62")):
        graph[key] = {"class_type": "MaskToImage", "inputs": {"mask": [node, 0]}}
    graph["65"] = {"class_type": "ImageBatch", "inputs": {"image1": ["63", 0], "image2": ["64", 0]}}
    graph["66"] = {"class_type": "ImageToMask", "inputs": {"image": ["65", 0], "channel": "red"}}
    graph["23"]["inputs"]["image"], graph["23"]["inputs"]["mask"] = ["61", 0], ["66", 0]
    run = comfyui.run(graph)
    assert run.outcome == "execution_success", run.events[-1]
    edited, empty = (
        images.decode(comfyui.view(file)).image[0] for file in run.outputs["14"]["images"]
    )
    photo = images.load(COFFEE).image[0]
    assert torch.equal(empty, photo)
    assert torch.equal(edited[:200], photo[:200])
    assert not torch.equal(edited[300:340, 500:540], photo[300:340, 500:540])
    notes = json.loads(run.outputs["15"]["text"][0])["notes"]
    assert any("1 of the 2 masks are black" in note for note in notes)


@pytest.mark.parametrize(
    ("values", "node", "message"),
    [
        ({"num_inference_steps": 1000}, "9", "the value is 1000; expected 0 to 100"),
        ({"true_cfg_scale": -0.1}, "10", "the value is -0.1; expected 0.0 to 20"),
        ({"task_type": "repaint"}, "5", "expected one of: insertion, removal, white_balance"),
        ({"prompt": "a" * 4001}, "6", "4,001 characters; expected at most 4,000"),
    ],
)
def test_a_value_out_of_range_is_refused_with_our_message(
    comfyui: ComfyUI, values: dict[str, Any], node: str, message: str
) -> None:
    graph = removal(comfyui, **values)
    # Without these outputs the whole graph is refused. ComfyUI would run the valid part.
    for output in ("28", "29"):
        del graph[output]
    status, answer = comfyui.queue(graph)
    assert status == 400
    assert message in json.dumps(answer["node_errors"][node]["errors"])


@pytest.mark.parametrize(
    "name", ["(none)", "gone.png", "../user/comfyui.db", "/etc/passwd", "../../../etc/passwd"]
)
def test_an_image_outside_the_input_folder_is_refused(comfyui: ComfyUI, name: str) -> None:
    graph = removal(comfyui)
    graph["1"]["inputs"]["image"] = name
    status, answer = comfyui.queue(graph)
    assert status == 400
    expected = "has no image" if name == "(none)" else "input folder"
    assert expected in json.dumps(answer["node_errors"]["1"]["errors"])


@pytest.mark.parametrize(
    ("node", "field", "value"), [("8", "value", "abc"), ("10", "value", "four"), ("6", "value", 7)]
)
def test_the_error_for_a_value_of_the_wrong_type_shows_no_internals(
    comfyui: ComfyUI, node: str, field: str, value: Any
) -> None:
    graph = removal(comfyui)
    graph[node]["inputs"][field] = value
    status, answer = comfyui.queue(graph)
    assert status == 200 or "not supported between" not in json.dumps(answer)


def failure(comfyui: ComfyUI, graph: dict[str, Any]) -> str:
    """Run a graph that must fail; return the error message."""
    run = comfyui.run(graph)
    assert run.outcome == "execution_error"
    return str(run.events[-1]["data"]["exception_message"])


def test_wrong_inputs_fail_the_node_with_our_message(comfyui: ComfyUI, tmp_path: Path) -> None:
    black = tmp_path / "black.png"
    cut_off = tmp_path / "cut-off.png"
    Image.new("L", (600, 400)).save(black)
    cut_off.write_bytes(COFFEE.read_bytes()[:5000])
    photo = {"task_type": "removal", "input_image": COFFEE}
    wrong_size = generate(comfyui, **photo, mask_image=ASTRONAUT_MASK)
    message = failure(comfyui, wrong_size)
    assert "The mask is 512x512 but the image is 600x400. Resize the mask" in message
    assert "black everywhere" in failure(comfyui, generate(comfyui, **photo, mask_image=black))
    assert "A mask is needed for removal" in failure(comfyui, generate(comfyui, **photo))
    truncated = generate(comfyui, task_type="white_balance", input_image=cut_off)
    assert "cut off" in failure(comfyui, truncated)
    no_image = generate(comfyui, **photo)
    no_image["1"]["inputs"]["image"] = None
    assert "'input_image' is required and has no image" in failure(comfyui, no_image)
    insertion = {"task_type": "insertion", "input_image": COFFEE, "mask_image": COFFEE_MASK}
    no_reference = generate(comfyui, **insertion)
    assert "cannot draw from words" in failure(comfyui, no_reference)


def test_an_endpoint_result_accepts_images_masks_switches_and_numbers(comfyui: ComfyUI) -> None:
    photo = comfyui.upload(COFFEE)
    mask = comfyui.upload(COFFEE_MASK)
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
    assert outputs["switch-result"]["text"] == ["True"]
    assert outputs["integer-result"]["text"] == [str(2**53 - 1)]
    assert comfyui.view(outputs["image-result"]["images"][0])[:4] == b"\x89PNG"
    saved = comfyui.view(outputs["mask-result"]["images"][0])
    assert torch.equal(images.decode_mask(saved), images.load_mask(COFFEE_MASK))
    assert Image.open(io.BytesIO(saved)).mode == "L"


def test_an_endpoint_image_says_what_of_its_file_comfyui_does_not_hold(
    comfyui: ComfyUI, tmp_path: Path
) -> None:
    (tmp_path / "deep.png").write_bytes(png(deep_photo(4, 16), PROFILES["p3"], True))
    about = {"name": "image", "help": ""}
    image = {"image": comfyui.upload(tmp_path / "deep.png"), **about, "required": True}
    run = comfyui.run(
        {
            "image": {"class_type": "ArtMancer_EndpointImage", "inputs": image},
            "result": {
                "class_type": "ArtMancer_EndpointResult",
                "inputs": {"value": ["image", 0], **about, "bits": "16"},
            },
        }
    )
    for part in ("transparency", "the color profile", "EXIF", "8 bits"):
        assert part in run.last_texts["image"]
    saved = comfyui.view(run.outputs["result"]["images"][0])
    assert read_png(saved).pixels.dtype == np.uint16


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
    image = results_of(comfyui, graph)["image"][0]
    assert image.mode == "RGBA"
    assert image.getchannel("A").getextrema() == (0, 255)
    assert image.convert("RGB").tobytes() == Image.open(COFFEE).convert("RGB").tobytes()


def test_the_status_contains_no_paths(comfyui: ComfyUI) -> None:
    status = comfyui.get("/api/artmancer/status")
    assert status["version"] == __version__
    assert status["device"] == status["device_name"] == "cpu"
    assert status["expected"]["removal"] == ["removal_cp.safetensors"]
    assert set(status["checkpoints"]) == {"insertion", "removal", "white_balance"}
    assert all(isinstance(status[name], list) for name in ("bases", "segmenters", "rembg"))
    assert str(comfyui.base) not in json.dumps(status)


def tidy(
    comfyui: ComfyUI, max_age: float = 1e6, max_bytes: int = 10**12, keep: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Request a cleanup of the temporary files; return the numbers of removed files and bytes.

    Parameters
    ----------
    max_age : seconds
    keep : file names that must stay
    """
    body = {"max_age": max_age, "max_bytes": max_bytes, "keep": keep}
    status, answer = comfyui.post("/artmancer/tidy", json=body)
    assert status == 200
    return answer


def test_tidying_removes_only_old_files_of_this_pack(comfyui: ComfyUI, tmp_path: Path) -> None:
    tidy(comfyui, max_age=0)
    temp = comfyui.base / "temp"
    outside = tmp_path / "outside.png"
    others = [
        temp / "ComfyUI_temp_1.png",
        temp / "artmancer" / "deeper" / "a.png",
        comfyui.base / "input" / "x.png",
    ]
    mask = temp / "artmancer_12_mask.png"
    upload = temp / "artmancer" / "up.png"
    result = temp / "artmancer_results" / "r.png"
    # Each file is 100 seconds older than the file before it.
    for age, path in enumerate([*others, outside, mask, upload, result]):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
        os.utime(path, (time.time() - 100 * age, time.time() - 100 * age))
    link = temp / "artmancer" / "link.png"
    link.symlink_to(outside)
    no_file = {"files": 0, "bytes": 0}
    one_file = {"files": 1, "bytes": 1000}
    assert tidy(comfyui, max_age=1000) == no_file
    assert tidy(comfyui, max_age=550, keep=("r.png", "../../../outside.png")) == no_file
    assert tidy(comfyui, max_age=550) == one_file
    assert not result.exists()
    assert tidy(comfyui, max_bytes=1500) == one_file
    assert not upload.exists()
    assert tidy(comfyui, max_bytes=0, keep=("artmancer_12_mask.png",)) == no_file
    assert tidy(comfyui, max_bytes=0) == one_file
    assert link.is_symlink()
    assert all(path.is_file() for path in [*others, outside])


def test_a_folder_that_is_a_link_is_not_tidied(comfyui: ComfyUI, tmp_path: Path) -> None:
    precious = tmp_path / "precious.png"
    precious.write_bytes(b"1")
    folder = comfyui.base / "temp" / "artmancer_results"
    moved = folder.rename(folder.with_name("moved"))
    folder.symlink_to(tmp_path)
    assert tidy(comfyui, max_age=0)["files"] == 0
    assert precious.exists()
    folder.unlink()
    moved.rename(folder)


@pytest.mark.parametrize(
    ("body", "message"),
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
def test_tidying_refuses_a_wrong_body(comfyui: ComfyUI, body: dict[str, Any], message: str) -> None:
    status, answer = comfyui.post("/artmancer/tidy", **body)
    assert status == 400
    assert message in answer["error"]


def test_the_start_logs_no_errors_or_warnings(comfyui: ComfyUI) -> None:
    log = comfyui.log.read_text().split("Starting server")[0]
    assert not re.search(r"artmancer.*(error|warning|failed)", log, re.IGNORECASE)
