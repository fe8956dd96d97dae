"""The Qwen editor in a real ComfyUI, with a tiny base of random weights."""

import copy
import json
import shutil
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from PIL import Image
from support import tiny_qwen
from support.comfyui import ComfyUI, Event, Run
from support.paths import EXAMPLES, ROOT

from artmancer import images, mask_ops
from artmancer.conditions import prepare
from artmancer.edit import edit
from artmancer.folders import comfyui_folder
from artmancer.options import Sampling
from artmancer.qwen import checkpoints, pipeline
from artmancer.qwen.editor import QwenEditor

pytestmark = pytest.mark.comfyui

GENERATE = json.loads((ROOT / "workflows" / "api" / "generate.json").read_text())


@pytest.fixture(scope="module")
def qwen(comfyui: ComfyUI, tiny_base: Path, loras: list[Path]) -> Iterator[ComfyUI]:
    """ComfyUI with a base, and checkpoints for removal and insertion,
    in the folders users put them in.
    """
    models = comfyui.base / "models"
    shutil.copytree(tiny_base, models / "diffusers" / "tiny-qwen")
    for folder, name, lora in (
        ("artmancer", "removal_cp.safetensors", loras[0]),
        ("loras", "insertion_cp.safetensors", loras[1]),
        ("loras", "fast/lightning-4steps.safetensors", loras[3]),
    ):
        path = models / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(lora, path)
    yield comfyui
    # Or *auto* would choose them in the tests that follow. The folders stay: ComfyUI cannot list
    # one that is gone.
    for folder in ("diffusers", "artmancer", "loras"):
        for path in (models / folder).rglob("*"):
            if not path.is_dir():
                path.unlink()
    comfyui.free()


def graph(comfyui: ComfyUI, steps: int = 2, seed: int = 0, **editor: Any) -> dict[str, Any]:
    """The endpoint generate on a small part of a photo, edited by the tiny base."""
    made = copy.deepcopy(GENERATE)
    for node, name in (("1", "coffee.png"), ("2", "coffee_mask.png")):
        small = comfyui.base / name
        Image.open(EXAMPLES / name).resize((150, 100)).save(small)
        made[node]["inputs"]["image"] = comfyui.upload(small)
    made["6"]["inputs"]["value"] = "take the spoon away"
    made["8"]["inputs"]["value"], made["9"]["inputs"]["value"] = seed, steps
    made["11"]["inputs"].update({"editor": "tiny-qwen", **editor})
    made["12"]["inputs"]["resolution"] = "native"
    return made


def picture(comfyui: ComfyUI, run: Run) -> torch.Tensor:
    assert run.outcome == "execution_success", run.events[-1]
    return images.decode(comfyui.view(run.outputs["14"]["images"][0])).image


def test_the_bases_and_checkpoints_that_lie_there_are_offered(qwen: ComfyUI) -> None:
    inputs = qwen.get("/object_info/ArtMancer_LoadEditor")["ArtMancer_LoadEditor"]["input"]
    offered = {name: inputs[kind][name] for kind in inputs for name in inputs[kind]}
    options = {
        name: value[1]["options"] if value[0] == "COMBO" else value[0]
        for name, value in offered.items()
    }
    assert options["editor"] == ["draft", "auto", "tiny-qwen"]
    files = {
        "removal_cp.safetensors",
        "insertion_cp.safetensors",
        "fast/lightning-4steps.safetensors",
    }
    assert files <= set(options["checkpoint"]) and files <= set(options["acceleration"])


def test_the_graph_edits_as_the_library_does_and_leaves_the_rest(
    qwen: ComfyUI, tiny_base: Path, loras: list[Path]
) -> None:
    run = qwen.run(graph(qwen, seed=3))
    result = picture(qwen, run)
    report = json.loads(run.outputs["15"]["text"][0])
    assert report["editor"] == "qwen-image-edit/removal"
    photo, mask = (
        images.load(qwen.base / "coffee.png").image,
        images.load_mask(qwen.base / "coffee_mask.png"),
    )
    outside = mask_ops.feather(mask, 16) == 0
    assert torch.equal(result[outside], photo[outside])
    editor = QwenEditor(pipeline.load(tiny_base), "removal", checkpoints.read(loras[0]))
    asked = prepare(photo, mask, resolution="native")
    expected = edit(
        editor, asked, prompt="take the spoon away", seed=3, sampling=Sampling(steps=2)
    ).image
    assert (result - expected).abs().max() <= 1.5 / 255


def test_auto_is_the_base_that_lies_there_and_the_status_names_it(qwen: ComfyUI) -> None:
    chosen = picture(qwen, qwen.run(graph(qwen, seed=3, editor="tiny-qwen")))
    assert torch.equal(picture(qwen, qwen.run(graph(qwen, seed=3, editor="auto"))), chosen)
    said = qwen.get("/artmancer/status")
    assert said["bases"] == ["tiny-qwen"] and said["model_loaded"]
    checkpoints = {"insertion": "insertion_cp.safetensors", "removal": "removal_cp.safetensors"}
    assert said["checkpoints"] == {**checkpoints, "white_balance": None}
    qwen.free()
    assert not qwen.get("/artmancer/status")["model_loaded"]


def test_more_pictures_are_shown_to_the_model(qwen: ComfyUI) -> None:
    plain, more = graph(qwen, seed=3), graph(qwen, seed=3)
    more["20"]["inputs"]["image"] = qwen.upload(EXAMPLES / "chelsea.png")
    run = qwen.run(more)
    assert not torch.equal(picture(qwen, run), picture(qwen, qwen.run(plain)))
    assert json.loads(run.outputs["15"]["text"][0])["conditions"] == [
        "mask",
        "background",
        "object",
        "extra 1",
    ]


def test_progress_previews_and_words_show_while_it_runs(qwen: ComfyUI) -> None:
    made = graph(qwen, steps=4, seed=1)
    made["12"]["inputs"]["grow"] = 1  # not from ComfyUI's cache
    run = qwen.run(made)
    assert {"sampling", "encoding", "mask, background, object at native"} <= set(run.texts)
    assert len(run.previews) == 4
    assert max(Image.open(BytesIO(run.previews[-1])).size) == 512
    assert run.of("progress")[-1]["max"] in (1, 4)


def test_cancel_ends_within_a_step_and_the_next_run_is_a_fresh_one(qwen: ComfyUI) -> None:
    expected = picture(qwen, qwen.run(graph(qwen, steps=3, seed=5)))

    def cancel(event: Event) -> str | None:
        sampling = event["type"] == "progress" and event["data"]["max"] == 90
        return "/interrupt" if sampling and event["data"]["value"] == 2 else None

    run = qwen.run(graph(qwen, steps=90, seed=6, variant="insertion"), on_event=cancel)
    assert run.outcome == "execution_interrupted"
    assert run.of("progress")[-1]["value"] <= 6
    changed = graph(qwen, steps=3, seed=5)
    changed["12"]["inputs"]["feather"] = 15  # not from ComfyUI's cache
    qwen.run(changed)
    assert torch.equal(picture(qwen, qwen.run(graph(qwen, steps=3, seed=5))), expected)


def test_loading_can_be_cancelled(qwen: ComfyUI) -> None:
    qwen.free()

    def cancel(event: Event) -> str | None:
        return (
            "/interrupt" if event["type"] == "executing" and event["data"]["node"] == "11" else None
        )

    run = qwen.run(graph(qwen, seed=7), on_event=cancel)
    assert run.outcome == "execution_interrupted" and "13" not in [
        event["node"] for event in run.of("executing")
    ]
    assert qwen.run(graph(qwen, seed=7)).outcome == "execution_success"


def loads_in(comfyui: ComfyUI) -> int:
    """How often the tiny base was loaded, by the log."""
    return comfyui.log.read_text().count(f"Loading {comfyui.base / 'models/diffusers/tiny-qwen'}")


def two_editors(comfyui: ComfyUI) -> dict[str, Any]:
    """One picture edited by two editors on one base, with another checkpoint each."""
    both = graph(comfyui, seed=11)
    for node, of in (("111", "11"), ("113", "13"), ("114", "14"), ("115", "15")):
        both[node] = copy.deepcopy(both[of])
    both["111"]["inputs"] |= {"checkpoint": "insertion_cp.safetensors", "strength": 0.5}
    both["113"]["inputs"]["editor"] = ["111", 0]
    both["114"]["inputs"]["value"], both["115"]["inputs"]["value"] = ["113", 0], ["113", 1]
    return both


def test_two_editors_share_a_base_and_do_not_change_each_other(qwen: ComfyUI) -> None:
    qwen.free()
    loads = loads_in(qwen)
    run = qwen.run(two_editors(qwen))
    first = picture(qwen, run)
    second = images.decode(qwen.view(run.outputs["114"]["images"][0])).image
    assert not torch.equal(first, second)
    assert loads_in(qwen) == loads + 1
    qwen.free()
    assert torch.equal(picture(qwen, qwen.run(graph(qwen, seed=11))), first)
    alone = graph(qwen, seed=11, checkpoint="insertion_cp.safetensors", strength=0.5)
    assert torch.equal(picture(qwen, qwen.run(alone)), second)


def test_a_change_in_load_editor_loads_nothing_anew(qwen: ComfyUI) -> None:
    picture(qwen, qwen.run(graph(qwen, seed=31)))
    loads = loads_in(qwen)
    for change in (
        {"strength": 0.7},
        {"variant": "insertion"},
        {"checkpoint": "none"},
        {"precision": "fp32"},
    ):
        made = graph(qwen, seed=31, **change)
        made["12"]["inputs"]["feather"] = 10 + len(change)  # another node runs first
        picture(qwen, qwen.run(made))
    assert loads_in(qwen) == loads


def test_a_broken_base_in_the_folder_hides_no_node(qwen: ComfyUI) -> None:
    broken = qwen.base / "models" / "diffusers" / "broken"
    broken.mkdir()
    (broken / "model_index.json").write_text("{")
    (qwen.base / "models" / "loras" / "gone.safetensors").symlink_to("nowhere.safetensors")
    assert "ArtMancer_LoadEditor" in qwen.get("/object_info/ArtMancer_LoadEditor")


def test_free_gives_the_memory_back(qwen: ComfyUI) -> None:
    tiny_qwen.save_base(qwen.base / "models" / "diffusers" / "wider-qwen", heads=10, head_dim=128)
    process = psutil.Process(qwen.process.pid)

    def memory() -> int:
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
    for _ in range(5):  # ComfyUI may sleep over being asked
        qwen.free()
        if memory() - before < (weights >> 20) * 0.3:
            break
    assert memory() - before < (weights >> 20) * 0.3


@pytest.fixture
def crowded(tiny_base: Path, tmp_path: Path) -> Iterator[ComfyUI]:
    """A ComfyUI of its own, with a node of another pack that needs the memory,
    see support/foreign_model.py.
    """
    if not (comfyui_folder() / "main.py").is_file():
        pytest.skip("no ComfyUI")
    server = ComfyUI(tmp_path / "crowded")
    try:
        # Before it looks for custom nodes: it imports torch first.
        shutil.copy(ROOT / "tests" / "support" / "foreign_model.py", server.base / "custom_nodes")
        shutil.copytree(tiny_base, server.base / "models" / "diffusers" / "tiny-qwen")
        server.wait()
        yield server
    finally:
        server.stop()


def on_the_device(comfyui: ComfyUI, load: bool = False) -> list[str]:
    """The kinds of ModelPatcher there; load: let the foreign model need all of the memory first."""
    run = comfyui.run({"1": {"class_type": "ForeignModel", "inputs": {"load": load}}})
    assert run.outcome == "execution_success", run.events[-1]
    return list(run.outputs["1"]["text"])


def test_other_models_and_unload_models_get_the_memory_and_ours_come_back(crowded: ComfyUI) -> None:
    plain = {"checkpoint": "none", "seed": 41}
    first = picture(crowded, crowded.run(graph(crowded, **plain)))
    inside = images.load_mask(crowded.base / "coffee_mask.png") == 1

    def again(feather: int) -> torch.Tensor:
        changed = graph(crowded, **plain)
        changed["12"]["inputs"]["feather"] = feather  # not from ComfyUI's cache
        return picture(crowded, crowded.run(changed))[inside]

    crowded.free(free_memory=False)
    assert torch.equal(again(15), first[inside])
    assert loads_in(crowded) == 1, (
        "the graph's outputs keep the base in the computer's memory, as any model's"
    )
    assert on_the_device(crowded).count("WholeModelPatcher") == 2, "the prompt was encoded before"
    assert on_the_device(crowded, load=True) == ["ModelPatcher"]
    assert torch.equal(again(14), first[inside])
    assert set(on_the_device(crowded)) == {"WholeModelPatcher", "_KeptPatcher"}
    assert set(on_the_device(crowded, load=True)) == {"ModelPatcher", "_KeptPatcher"}
    assert torch.equal(again(13), first[inside])
    crowded.free(free_memory=False)
    assert on_the_device(crowded) == []


def test_an_acceleration_lora_and_every_memory_mode_run(qwen: ComfyUI) -> None:
    plain = picture(qwen, qwen.run(graph(qwen, seed=21)))
    for mode in ("all on the GPU", "one model at a time", "group offload"):
        assert (
            picture(qwen, qwen.run(graph(qwen, seed=21, memory=mode))) - plain
        ).abs().max() <= 1.5 / 255
    fast = graph(qwen, seed=21, acceleration="fast/lightning-4steps.safetensors", precision="fp8")
    assert not torch.equal(picture(qwen, qwen.run(fast)), plain)


def test_auto_takes_what_the_checkpoint_was_trained_on(qwen: ComfyUI, tiny_base: Path) -> None:
    metadata = {"artmancer.recipe": "background_mask_fill", "artmancer.resolution": "512"}
    path = qwen.base / "models" / "artmancer" / "trained.safetensors"
    tiny_qwen.save_lora(path, tiny_base, metadata=metadata)
    made = graph(qwen, checkpoint="trained.safetensors", steps=1)
    made["12"]["inputs"] |= {"editor": ["11", 0], "recipe": "auto", "resolution": "auto"}
    report = json.loads(qwen.run(made).outputs["15"]["text"][0])
    assert report["recipe"] == "background_mask_fill" and max(report["crop_size"]) == 512


def test_what_is_missing_or_wrong_is_said_on_the_node(qwen: ComfyUI, tmp_path: Path) -> None:
    missing = qwen.run(graph(qwen, variant="white_balance"))
    assert "expected wb_cp.safetensors in models/artmancer or models/loras" in said(missing)
    broken = qwen.base / "models" / "loras" / "cut.safetensors"
    broken.write_bytes(
        (qwen.base / "models" / "loras" / "insertion_cp.safetensors").read_bytes()[:999]
    )
    assert "'cut.safetensors' is not a whole safetensors file" in said(
        qwen.run(graph(qwen, checkpoint="cut.safetensors"))
    )
    broken.unlink()


def said(run: Run) -> str:
    assert run.outcome == "execution_error"
    return str(run.events[-1]["data"]["exception_message"])


def test_the_log_holds_no_complaint(qwen: ComfyUI) -> None:
    time.sleep(0.1)
    log = qwen.log.read_text()
    assert "memory leak" not in log and "peft_config" not in log
