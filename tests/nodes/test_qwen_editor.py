"""The Qwen editor in a real ComfyUI, with a tiny base of random weights."""

import base64
import copy
import json
import re
import shutil
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from support import recipe_edits, recipe_reference, tiny_qwen
from support.comfyui import ComfyUI, Event, Run
from support.gateway import Served, decoded, settings, until
from support.paths import EXAMPLES, ROOT

from artmancer import images, mask_ops
from artmancer.conditions import prepare
from artmancer.edit import edit
from artmancer.options import ONE_MEGAPIXEL, Sampling
from artmancer.qwen import checkpoints, pipeline
from artmancer.qwen.editor import QwenEditor

pytestmark = pytest.mark.comfyui

GENERATE = json.loads((ROOT / "workflows" / "api" / "generate.json").read_text())


@pytest.fixture(scope="module")
def qwen(comfyui: ComfyUI, tiny_base: Path, loras: list[Path]) -> Iterator[ComfyUI]:
    """Provide ComfyUI with a base and with checkpoints for removal and insertion.

    The files are in the folders that users put them in.
    """
    models = comfyui.base / "models"
    shutil.copytree(tiny_base, models / "diffusers" / "tiny-qwen", dirs_exist_ok=True)
    for folder, name, lora in (
        ("artmancer", "removal_cp.safetensors", loras[0]),
        ("loras", "insertion_cp.safetensors", loras[1]),
        ("loras", "fast/lightning-4steps.safetensors", loras[3]),
    ):
        path = models / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(lora, path)
    yield comfyui
    # Otherwise *auto* would choose these files in later tests. The folders stay: ComfyUI cannot
    # list a folder that is gone.
    for folder in ("diffusers", "artmancer", "loras"):
        for path in (models / folder).rglob("*"):
            if not path.is_dir():
                path.unlink()
    comfyui.free()


def graph(comfyui: ComfyUI, steps: int = 2, seed: int = 0, **editor: Any) -> dict[str, Any]:
    """Return the graph of the endpoint generate on a scaled-down photo, edited by the tiny base."""
    nodes = copy.deepcopy(GENERATE)
    for node, name in (("1", "coffee.png"), ("2", "coffee_mask.png")):
        small = comfyui.base / name
        Image.open(EXAMPLES / name).resize((150, 100)).save(small)
        nodes[node]["inputs"]["image"] = comfyui.upload(small)
    nodes["6"]["inputs"]["value"] = "take the spoon away"
    nodes["8"]["inputs"]["value"] = seed
    nodes["9"]["inputs"]["value"] = steps
    nodes["11"]["inputs"].update({"editor": "tiny-qwen", **editor})
    # The recipe of a small and fast edit, whatever the checkpoint's name.
    nodes["30"]["inputs"]["value"] = "mask_background_object"
    nodes["12"]["inputs"]["resolution"] = "native"
    return nodes


def edited_image(comfyui: ComfyUI, run: Run) -> torch.Tensor:
    """Return the image that a successful run shows, [1, H, W, 3]."""
    assert run.outcome == "execution_success", run.events[-1]
    return images.decode(comfyui.view(run.outputs["14"]["images"][0])).image


def test_load_editor_offers_the_bases_and_checkpoints_in_the_folders(qwen: ComfyUI) -> None:
    inputs = qwen.get("/object_info/ArtMancer_LoadEditor")["ArtMancer_LoadEditor"]["input"]
    options = {}
    for group in inputs.values():
        for name, definition in group.items():
            is_combo = definition[0] == "COMBO"
            options[name] = definition[1]["options"] if is_combo else definition[0]
    assert options["editor"] == ["draft", "lama", "auto", "tiny-qwen"]
    files = {
        "removal_cp.safetensors",
        "insertion_cp.safetensors",
        "fast/lightning-4steps.safetensors",
    }
    assert files <= set(options["checkpoint"])
    assert files <= set(options["acceleration"])


def test_the_graph_edits_as_the_library_does_and_changes_nothing_outside_the_mask(
    qwen: ComfyUI, tiny_base: Path, loras: list[Path]
) -> None:
    run = qwen.run(graph(qwen, seed=3))
    result = edited_image(qwen, run)
    report = json.loads(run.outputs["15"]["text"][0])
    assert report["editor"] == "qwen-image-edit/removal"
    photo = images.load(qwen.base / "coffee.png").image
    mask = images.load_mask(qwen.base / "coffee_mask.png")
    outside = mask_ops.feather(mask, 16) == 0
    assert torch.equal(result[outside], photo[outside])
    editor = QwenEditor(pipeline.load(tiny_base), "removal", checkpoints.read(loras[0]))
    conditions = prepare(photo, mask, resolution="native")
    sampling = Sampling(steps=2)
    expected = edit(
        editor, conditions, prompt="take the spoon away", seed=3, sampling=sampling
    ).image
    assert (result - expected).abs().max() <= 1.5 / 255


def test_auto_uses_the_base_in_the_folder_and_the_status_names_it(qwen: ComfyUI) -> None:
    chosen = edited_image(qwen, qwen.run(graph(qwen, seed=3, editor="tiny-qwen")))
    assert torch.equal(edited_image(qwen, qwen.run(graph(qwen, seed=3, editor="auto"))), chosen)
    status = qwen.get("/artmancer/status")
    assert status["bases"] == ["tiny-qwen"]
    assert status["model_loaded"]
    assert status["checkpoints"] == {
        "insertion": "insertion_cp.safetensors",
        "removal": "removal_cp.safetensors",
        "white_balance": None,
    }
    qwen.free()
    assert not qwen.get("/artmancer/status")["model_loaded"]


def test_extra_images_change_the_result_and_are_in_the_report(qwen: ComfyUI) -> None:
    plain = graph(qwen, seed=3)
    extra = graph(qwen, seed=3)
    extra["20"]["inputs"]["image"] = qwen.upload(EXAMPLES / "chelsea.png")
    run = qwen.run(extra)
    assert not torch.equal(edited_image(qwen, run), edited_image(qwen, qwen.run(plain)))
    assert json.loads(run.outputs["15"]["text"][0])["conditions"] == [
        "mask",
        "background",
        "object",
        "extra 1",
    ]


def test_progress_previews_and_stage_texts_are_sent_during_a_run(qwen: ComfyUI) -> None:
    nodes = graph(qwen, steps=4, seed=1)
    # A new value, so that no result comes from ComfyUI's cache.
    nodes["12"]["inputs"]["grow"] = 1
    run = qwen.run(nodes)
    assert {"sampling", "encoding"} <= set(run.texts)
    assert any(re.fullmatch(r"mask, background, object at \d+x\d+", text) for text in run.texts)
    assert len(run.previews) == 4
    assert max(Image.open(BytesIO(run.previews[-1])).size) == 512
    assert run.of("progress")[-1]["max"] in (1, 4)


def test_a_cancel_ends_the_run_within_a_step_and_the_next_run_is_unaffected(qwen: ComfyUI) -> None:
    expected = edited_image(qwen, qwen.run(graph(qwen, steps=3, seed=5)))

    def cancel(event: Event) -> str | None:
        sampling = event["type"] == "progress" and event["data"]["max"] == 90
        return "/interrupt" if sampling and event["data"]["value"] == 2 else None

    run = qwen.run(graph(qwen, steps=90, seed=6, variant="insertion"), on_event=cancel)
    assert run.outcome == "execution_interrupted"
    assert run.of("progress")[-1]["value"] <= 6
    changed = graph(qwen, steps=3, seed=5)
    # A new value, so that no result comes from ComfyUI's cache.
    changed["12"]["inputs"]["feather"] = 15
    qwen.run(changed)
    assert torch.equal(edited_image(qwen, qwen.run(graph(qwen, steps=3, seed=5))), expected)


def test_loading_can_be_canceled(qwen: ComfyUI) -> None:
    qwen.free()

    def cancel(event: Event) -> str | None:
        loading = event["type"] == "executing" and event["data"]["node"] == "11"
        return "/interrupt" if loading else None

    run = qwen.run(graph(qwen, seed=7), on_event=cancel)
    assert run.outcome == "execution_interrupted"
    assert "13" not in [event["node"] for event in run.of("executing")]
    assert qwen.run(graph(qwen, seed=7)).outcome == "execution_success"


def loads_in(comfyui: ComfyUI) -> int:
    """Count the lines in ComfyUI's log that report a load of the tiny base."""
    return comfyui.log.read_text().count(f"Loading {comfyui.base / 'models/diffusers/tiny-qwen'}")


def two_editors(comfyui: ComfyUI) -> dict[str, Any]:
    """Return a graph that edits one photo with two editors: one base, two checkpoints."""
    both = graph(comfyui, seed=11)
    for node in ("11", "13", "14", "15"):
        both[f"1{node}"] = copy.deepcopy(both[node])
    both["111"]["inputs"] |= {"checkpoint": "insertion_cp.safetensors", "strength": 0.5}
    both["113"]["inputs"]["editor"] = ["111", 0]
    both["114"]["inputs"]["value"] = ["113", 0]
    both["115"]["inputs"]["value"] = ["113", 1]
    return both


def test_two_editors_share_a_base_and_do_not_change_each_other(qwen: ComfyUI) -> None:
    qwen.free()
    loads = loads_in(qwen)
    run = qwen.run(two_editors(qwen))
    first = edited_image(qwen, run)
    second = images.decode(qwen.view(run.outputs["114"]["images"][0])).image
    assert not torch.equal(first, second)
    assert loads_in(qwen) == loads + 1
    qwen.free()
    assert torch.equal(edited_image(qwen, qwen.run(graph(qwen, seed=11))), first)
    alone = graph(qwen, seed=11, checkpoint="insertion_cp.safetensors", strength=0.5)
    assert torch.equal(edited_image(qwen, qwen.run(alone)), second)


def test_a_change_in_load_editor_does_not_load_the_base_again(qwen: ComfyUI) -> None:
    edited_image(qwen, qwen.run(graph(qwen, seed=31)))
    loads = loads_in(qwen)
    for change in (
        {"strength": 0.7},
        {"variant": "insertion"},
        {"checkpoint": "none"},
        {"precision": "fp32"},
    ):
        nodes = graph(qwen, seed=31, **change)
        # Another node must run first.
        nodes["12"]["inputs"]["feather"] = 10 + len(change)
        edited_image(qwen, qwen.run(nodes))
    assert loads_in(qwen) == loads


def test_of_two_checkpoints_with_one_name_the_first_is_used_and_the_report_says_so(
    qwen: ComfyUI, loras: list[Path]
) -> None:
    """The folder models/artmancer comes before models/loras."""
    second = qwen.base / "models" / "loras" / "removal_cp.safetensors"
    first_result = edited_image(qwen, qwen.run(graph(qwen, seed=51)))
    shutil.copy(loras[1], second)
    try:
        for checkpoint in ("auto", "removal_cp.safetensors"):
            run = qwen.run(graph(qwen, seed=51, checkpoint=checkpoint))
            assert torch.equal(edited_image(qwen, run), first_result)
            assert (
                "loras/removal_cp.safetensors is not used: "
                "artmancer/removal_cp.safetensors has the same name and comes first."
            ) in json.loads(run.outputs["15"]["text"][0])["notes"]
        nodes = graph(qwen, seed=51, checkpoint="loras/removal_cp.safetensors")
        assert not torch.equal(edited_image(qwen, qwen.run(nodes)), first_result)
    finally:
        second.unlink()


def test_a_broken_base_in_the_folder_hides_no_node(qwen: ComfyUI) -> None:
    broken = qwen.base / "models" / "diffusers" / "broken"
    broken.mkdir()
    (broken / "model_index.json").write_text("{")
    (qwen.base / "models" / "loras" / "gone.safetensors").symlink_to("nowhere.safetensors")
    assert "ArtMancer_LoadEditor" in qwen.get("/object_info/ArtMancer_LoadEditor")


def test_free_returns_the_memory(qwen: ComfyUI) -> None:
    tiny_qwen.save_base(qwen.base / "models" / "diffusers" / "wider-qwen", heads=10, head_dim=128)
    process = psutil.Process(qwen.process.pid)

    def memory() -> int:
        """Return the resident memory of ComfyUI's process in MiB."""
        return int(process.memory_info().rss) >> 20

    qwen.free()
    before = memory()
    run = qwen.run(graph(qwen, steps=1, editor="wider-qwen", checkpoint="none"))
    assert run.outcome == "execution_success"
    loaded = memory()
    weights = sum(
        path.stat().st_size
        for path in (qwen.base / "models/diffusers/wider-qwen").rglob("*.safetensors")
    )
    assert loaded - before > (weights >> 20) * 0.8
    # ComfyUI drops its own outputs and collects garbage within seconds.
    qwen.free()
    until(lambda: memory() - before < (weights >> 20) * 0.3)


@pytest.fixture
def crowded(qwen: ComfyUI) -> Iterator[ComfyUI]:
    """Provide ComfyUI with a small device, on which a node of another pack needs all the memory.

    The nodes are in support/custom_nodes/foreign_model.py.
    """

    def use_small_device(enabled: bool) -> None:
        qwen.free()
        run = qwen.run({"1": {"class_type": "SmallDevice", "inputs": {"enabled": enabled}}})
        assert run.outcome == "execution_success", run.events[-1]

    use_small_device(True)
    yield qwen
    use_small_device(False)


def patchers_on_device(
    comfyui: ComfyUI, load: bool = False, keep_outputs_of: dict[str, Any] | None = None
) -> list[str]:
    """Return the class names of the model patchers on the device.

    Parameters
    ----------
    load : let the foreign model claim all of the memory first
    keep_outputs_of : the last graph, whose outputs stay in ComfyUI's cache; without it, they are
        dropped
    """
    foreign = {"class_type": "ForeignModel", "inputs": {"load": load}}
    run = comfyui.run({**(keep_outputs_of or {}), "foreign": foreign})
    assert run.outcome == "execution_success", run.events[-1]
    return list(run.outputs["foreign"]["text"])


def test_our_models_give_way_to_other_models_and_to_unload_models_and_return(
    crowded: ComfyUI,
) -> None:
    plain = graph(crowded, checkpoint="none", seed=41)
    loads = loads_in(crowded)
    first = edited_image(crowded, crowded.run(plain))
    inside = images.load_mask(crowded.base / "coffee_mask.png") == 1

    def with_feather(feather: int) -> dict[str, Any]:
        """Change a value, so that no result comes from ComfyUI's cache."""
        changed = copy.deepcopy(plain)
        changed["12"]["inputs"]["feather"] = feather
        return changed

    def edited_inside(graph: dict[str, Any]) -> torch.Tensor:
        return edited_image(crowded, crowded.run(graph))[inside]

    crowded.free(keep_outputs_of=plain)
    second = with_feather(15)
    assert torch.equal(edited_inside(second), first[inside])
    assert loads_in(crowded) == loads + 1, "the graph's outputs keep the base in main memory"
    names = patchers_on_device(crowded, keep_outputs_of=second)
    assert names.count("WholeModelPatcher") == 2, "the prompt was encoded before"
    assert patchers_on_device(crowded, load=True) == ["ModelPatcher"]
    assert torch.equal(edited_inside(with_feather(14)), first[inside])
    assert set(patchers_on_device(crowded)) == {"WholeModelPatcher", "_KeptPatcher"}
    assert set(patchers_on_device(crowded, load=True)) == {"ModelPatcher", "_KeptPatcher"}
    assert torch.equal(edited_inside(with_feather(13)), first[inside])
    crowded.free()
    assert patchers_on_device(crowded) == []


def test_an_acceleration_lora_and_every_memory_mode_run(qwen: ComfyUI) -> None:
    plain = edited_image(qwen, qwen.run(graph(qwen, seed=21)))
    for mode in ("all on the GPU", "one model at a time", "group offload"):
        result = edited_image(qwen, qwen.run(graph(qwen, seed=21, memory=mode)))
        assert (result - plain).abs().max() <= 1.5 / 255
    fast = graph(qwen, seed=21, acceleration="fast/lightning-4steps.safetensors", precision="fp8")
    assert not torch.equal(edited_image(qwen, qwen.run(fast)), plain)


def test_auto_uses_the_recipe_and_resolution_of_the_checkpoint(
    qwen: ComfyUI, tiny_base: Path
) -> None:
    metadata = {"artmancer.recipe": "background_mask_fill", "artmancer.resolution": "512"}
    path = qwen.base / "models" / "artmancer" / "trained.safetensors"
    tiny_qwen.save_lora(path, tiny_base, metadata=metadata)
    nodes = graph(qwen, checkpoint="trained.safetensors", steps=1)
    nodes["12"]["inputs"] |= {"editor": ["11", 0], "recipe": "auto", "resolution": "auto"}
    nodes["31"]["inputs"]["value"] = nodes["32"]["inputs"]["value"] = "crop"
    report = json.loads(qwen.run(nodes).outputs["15"]["text"][0])
    assert report["recipe"] == "background_mask_fill"
    assert max(report["crop_size"]) == 512


def test_a_lokr_runs_and_skipped_text_encoder_tensors_are_in_the_report(
    qwen: ComfyUI,
) -> None:
    from safetensors.torch import save_file

    layer = "lycoris_transformer_blocks_0_attn_to_q"
    lokr = {f"{layer}.lokr_w1": torch.ones(4, 4), f"{layer}.lokr_w2": torch.full((16, 16), 0.1)}
    skipped = {"lora_te_q.lora_down.weight": torch.ones(4, 4)}
    file = qwen.base / "models" / "loras" / "lokr.safetensors"
    save_file(lokr | skipped, file)
    run = qwen.run(graph(qwen, checkpoint="lokr.safetensors"))
    report = json.loads(run.outputs["15"]["text"][0])
    assert report["adapters"] == ["lokr.safetensors"]
    assert "1 of 3 tensors of lokr.safetensors are for the text encoder" in report["notes"][0]
    bare = qwen.run(graph(qwen, checkpoint="none"))
    assert not torch.equal(edited_image(qwen, run), edited_image(qwen, bare))
    file.unlink()


@pytest.mark.parametrize(
    ("variant", "name", "recipe"),
    [
        ("insertion", "insertion_cp", "reference_mask_background"),
        ("removal", "removal_cp", "background_mask_fill"),
        ("white_balance", "wb_cp", "image_edges"),
    ],
)
def test_a_checkpoint_without_metadata_gets_what_its_name_says(
    qwen: ComfyUI, loras: list[Path], variant: str, name: str, recipe: str
) -> None:
    """The images that Condition Images shows are those of independent implementations."""
    shutil.copy(loras[0], qwen.base / "models" / "artmancer" / f"{name}.safetensors")
    nodes = graph(qwen, variant=variant)
    nodes["30"]["inputs"]["value"] = "auto"
    # One step without guidance, and of the sizes only white balance's, because it is slow.
    nodes["9"]["inputs"]["value"] = nodes["10"]["inputs"]["value"] = 1
    nodes["32"]["inputs"]["value"] = "recipe" if variant == "white_balance" else "crop"
    nodes["6"]["inputs"]["value"] = ""
    if variant == "insertion":
        nodes["3"]["inputs"]["image"] = qwen.upload(EXAMPLES / "astronaut.png")
        nodes["4"]["inputs"]["image"] = qwen.upload(EXAMPLES / "astronaut_patch_mask.png")
    run = qwen.run(nodes)
    assert run.outcome == "execution_success", run.events[-1]
    report = json.loads(run.outputs["15"]["text"][0])
    assert (report["recipe"], report["recipe_reason"]) == (recipe, "file name")
    assert report["adapters"] == [f"{name}.safetensors"]
    assert report["settings"]["frame"] == "photo"
    assert report["recipe_settings"]["condition_size"] == 1.0
    assert report["settings"]["prompt"] == ("remove object" if variant == "removal" else "")
    assert report["settings"]["cfg"] == 1 and report["recipe_settings"]["cfg"] in (3.3, 4.0)
    if variant == "white_balance":
        assert report["settings"]["condition_size"] == 1.0
    photo = np.asarray(Image.open(qwen.base / "coffee.png").convert("RGB"))
    mask = np.asarray(Image.open(qwen.base / "coffee_mask.png").convert("L"))
    shown = [
        np.asarray(images.decode(qwen.view(file)).image[0].mul(255).round().byte())
        for file in run.outputs["28"]["images"]
    ]
    # The photo of 150x100 is centered in a square of 160.
    assert {plane.shape for plane in shown} == {(160, 160, 3)}
    padding = [plane.copy() for plane in shown]
    for plane in padding:
        plane[30:130, 5:155] = 0
    assert not any(plane.any() for plane in padding)
    expected = _expected_conditions(variant, photo, mask)
    for ours, wanted in zip(shown, expected, strict=True):
        if wanted is not None:
            difference = np.abs(ours[30:130, 5:155].astype(int) - wanted)
            assert difference.max() <= 2


def _expected_conditions(
    variant: str, photo: NDArray[np.uint8], mask: NDArray[np.uint8]
) -> list[NDArray[Any] | None]:
    """Return the conditioning images by independent implementations; None: a random fill."""
    if variant == "white_balance":
        return [photo, recipe_reference.edges(photo)]
    if variant == "removal":
        soft = recipe_edits.cleaned(mask)[..., None]
        return [photo * (1 - soft / 255), np.repeat(soft, 3, 2), None]
    reference = np.asarray(Image.open(EXAMPLES / "astronaut.png").convert("RGB"))
    shape = np.asarray(Image.open(EXAMPLES / "astronaut_patch_mask.png").convert("L")) >= 128
    hidden = recipe_reference.insertion_mask(mask >= 128, shape)
    return [
        recipe_reference.resized(reference, (100, 150)),
        255 * np.repeat(hidden[..., None], 3, 2),
        recipe_reference.insertion_background(photo, mask >= 128, shape),
    ]


@pytest.mark.parametrize("variant", recipe_edits.EDITS)
def test_the_command_and_http_make_the_images_that_the_checkpoints_name_says(
    qwen: ComfyUI, tiny_base: Path, loras: list[Path], tmp_path: Path, variant: str
) -> None:
    recipe_edit = recipe_edits.EDITS[variant]
    name = f"{recipe_edit.checkpoint}.safetensors"
    checkpoint = Path(shutil.copy(loras[0], qwen.base / "models" / "artmancer" / name))
    photo, mask = recipe_edits.write_photos(recipe_edit, tmp_path)
    expected = recipe_edits.expected(variant, photo, mask)

    by_command = recipe_edits.encoded_by_the_command(variant, tiny_base, checkpoint, tmp_path)
    assert {area for _, area in by_command} == {ONE_MEGAPIXEL}

    def file(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    body = {
        "task_type": variant,
        "prompt": "a portrait" if variant == "insertion" else "",
        "input_image": file(tmp_path / "photo.png"),
        "num_inference_steps": 1,
        "true_cfg_scale": 1,
        "mask_tool_type": "brush",
        "enable_debug": True,
    }
    if mask is not None:
        body["mask_image"] = file(tmp_path / "mask.png")
    if variant == "insertion":
        body["reference_image"] = file(recipe_edits.REFERENCE)
        body["reference_mask_R"] = file(recipe_edits.REFERENCE_MASK)
    with Served(settings(tmp_path / "gateway", comfyui_url=qwen.url)) as served:
        answer = served.connected().http.post("/api/generate", json=body).json()
    assert answer["parameters_used"]["recipe_reason"] == "file name"
    assert answer["parameters_used"]["condition_size"] == 1.0
    assert answer["debug_info"]["loaded_adapters"] == [name]
    by_http = [decoded(image) for image in answer["debug_info"]["conditional_images"]]

    for label, (command_image, _), http_image, wanted in zip(
        recipe_edit.labels, by_command, by_http, expected, strict=True
    ):
        assert np.abs(np.asarray(command_image).astype(int) - wanted).max() <= 1, label
        difference = np.abs(np.asarray(http_image.convert("RGB")).astype(int) - wanted)
        if label == "fill":
            # PatchMatch, which draws at random, fills here; beside the hole it changes nothing.
            hole = cv2.dilate(mask, recipe_reference.ellipse(35).astype(np.uint8)) >= 128
            difference = difference[~hole]
        assert difference.max() <= 1, label


def error_message(run: Run) -> str:
    """Return the message of the error that ended the run."""
    assert run.outcome == "execution_error"
    return str(run.events[-1]["data"]["exception_message"])


def test_missing_and_broken_checkpoints_are_reported_on_the_node(qwen: ComfyUI) -> None:
    (qwen.base / "models" / "artmancer" / "wb_cp.safetensors").unlink(missing_ok=True)
    missing = qwen.run(graph(qwen, variant="white_balance"))
    assert "expected wb_cp.safetensors in models/artmancer or models/loras" in error_message(
        missing
    )
    loras = qwen.base / "models" / "loras"
    broken = loras / "cut.safetensors"
    broken.write_bytes((loras / "insertion_cp.safetensors").read_bytes()[:999])
    run = qwen.run(graph(qwen, checkpoint="cut.safetensors"))
    assert "'cut.safetensors' is not a whole safetensors file" in error_message(run)
    broken.unlink()


def test_the_log_has_no_warnings_about_memory_or_adapters(qwen: ComfyUI) -> None:
    # The log is written by another process.
    time.sleep(0.1)
    log = qwen.log.read_text()
    assert "memory leak" not in log
    assert "peft_config" not in log
