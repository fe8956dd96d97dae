"""Editor from Model in a real ComfyUI, compared with the diffusers way on the same weights."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from support import native_base, tiny_qwen
from support.comfyui import ComfyUI, Event, Run
from support.paths import EXAMPLES
from torch import Tensor

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]

ROUNDING = 0.2
"""Largest difference, of 255 levels, of two runs of one sampling: sums are rounded otherwise where
the weights lie elsewhere in memory, or on a busy machine.
"""

NAMES = {"2509": "model-2509", "2511": "model-2511"}
"""Folders of the tiny bases, by release."""

Graph = dict[str, Any]


@pytest.fixture(scope="module")
def models(comfyui: ComfyUI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    """Provide ComfyUI with bases that both ways read, like 2509 and 2511."""
    for release, name in NAMES.items():
        folder = tmp_path_factory.mktemp("base")
        native_base.save(comfyui, name, folder, zero_cond_t=release == "2511")
    yield comfyui
    # The folders stay: ComfyUI cannot list a folder that is gone.
    for name in NAMES.values():
        for path in (comfyui.base / "models" / "diffusers" / name).rglob("*"):
            if not path.is_dir():
                path.unlink()
    comfyui.free()


def is_old(comfyui: ComfyUI) -> bool:
    """Tell whether ComfyUI is of the versions 0.3, which know neither Qwen-Image-Edit-2511 nor
    FLUX.2.
    """
    version = comfyui.get("/system_stats")["system"]["comfyui_version"]
    return bool(version.startswith("0.3."))


@pytest.fixture
def new_models(models: ComfyUI) -> ComfyUI:
    """As `models`, in a ComfyUI that samples as the published models do."""
    if is_old(models):
        pytest.skip("ComfyUI 0.3 encodes prompts otherwise, and does not know 2511 and FLUX.2")
    return models


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def graph(comfyui: ComfyUI, release: str = "2509", **editor: Any) -> Graph:
    """Return a graph with a photo, its conditions and Editor from Model on a tiny base.

    Parameters
    ----------
    editor : inputs of Editor from Model
    """
    uploads = {}
    for picture in ("coffee", "coffee_mask"):
        path = comfyui.base / f"{picture}.png"
        Image.open(EXAMPLES / f"{picture}.png").resize((150, 100)).save(path)
        uploads[picture] = comfyui.upload(path)
    folder = str(comfyui.base / "models" / "diffusers" / NAMES[release])
    return {
        "photo": node("LoadImage", image=uploads["coffee"]),
        "mask": node("LoadImageMask", image=uploads["coffee_mask"], channel="red"),
        "split": node(
            "ArtMancer_SplitConditions",
            image=["photo", 0],
            mask=["mask", 0],
            recipe="mask_background_object",
            resolution="native",
            context=1.5,
            grow=0,
            feather=16,
            fill_holes=False,
        ),
        "model": node("SmallModel", folder=folder),
        "clip": node("SmallClip", folder=folder),
        "vae": node("SmallVae", folder=folder),
        "editor": node(
            "ArtMancer_EditorFromModel",
            model=["model", 0],
            clip=["clip", 0],
            vae=["vae", 0],
            **{"variant": "removal", **editor},
        ),
    }


def edit(editor: str = "editor", **inputs: Any) -> dict[str, Any]:
    """Return Edit Sampler."""
    settings = {
        "editor": [editor, 0],
        "conditions": ["split", 3],
        "prompt": "remove the spoon",
        "negative": "a photograph of a cat on a table, with bright colors and many books behind",
        "seed": 7,
        "steps": 3,
        "cfg": 4.0,
        "match_colors": False,
        "condition_size": "crop",
    }
    return node("ArtMancer_EditSampler", **{**settings, **inputs})


class Results(NamedTuple):
    """Images by the names of their nodes, in levels of 0 to 255, and the run."""

    images: dict[str, Tensor]
    run: Run


def run(comfyui: ComfyUI, nodes: Graph, folder: Path, *names: str) -> Results:
    """Run a graph; return the images of these nodes."""
    saves = {
        f"save {name}": node("SaveTensor", path=str(folder / name), image=[name, 0])
        for name in names
    }
    result = comfyui.run({**nodes, **saves})
    assert result.outcome == "execution_success", result.events[-1]
    return Results({name: 255 * load_file(folder / name)["image"] for name in names}, result)


def error_message(comfyui: ComfyUI, nodes: Graph) -> str:
    """Return the message of the error that ends the run of a graph."""
    nodes = {**nodes, "preview": node("PreviewImage", images=["edit", 0])}
    result = comfyui.run(nodes)
    assert result.outcome == "execution_error", result.events[-1]
    assert result.last_texts.get("edit", "failed") == "failed", "not a stage"
    return str(result.events[-1]["data"]["exception_message"])


@pytest.mark.parametrize("release", NAMES)
@pytest.mark.parametrize(
    "settings",
    [
        {"cfg": 4.0},
        {"cfg": 1.0, "keep_background": True},
        # 224 x 224 pixels, beside a crop of 128 x 128.
        {"cfg": 2.0, "condition_size": "megapixels", "condition_megapixels": 0.05},
    ],
    ids=["guidance", "keep background", "large conditions"],
)
def test_the_edit_is_that_of_diffusers_on_the_same_weights(
    new_models: ComfyUI, tmp_path: Path, release: str, settings: dict[str, Any]
) -> None:
    nodes = {
        **graph(new_models, release),
        "diffusers": diffusers_editor(release),
        "theirs": edit("diffusers", **settings),
        "ours": edit("editor", **settings),
    }
    images, _ = run(new_models, nodes, tmp_path, "ours", "theirs", "photo")
    ours, theirs = inside(images, "ours", "theirs")
    difference = (ours - theirs).abs()
    # Only rounding differs, in levels of 0 to 255.
    assert difference.max() <= ROUNDING
    assert difference.mean() <= 0.01


def diffusers_editor(release: str = "2509", checkpoint: str = "none") -> dict[str, Any]:
    """Return Load Editor on the same weights."""
    return node(
        "ArtMancer_LoadEditor",
        editor=NAMES[release],
        variant="removal",
        strength=1.0,
        checkpoint=checkpoint,
    )


def with_lora(name: str, model: str = "model") -> dict[str, Any]:
    """Return Load LoRA."""
    return node(
        "LoraLoader",
        model=[model, 0],
        clip=["clip", 0],
        lora_name=name,
        strength_model=1.0,
        strength_clip=1.0,
    )


@pytest.fixture(scope="module")
def lora_names(models: ComfyUI) -> list[str]:
    """Names of two LoRAs in ComfyUI's folder."""
    base = models.base / "models" / "diffusers" / NAMES["2509"]
    folder = models.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    names = ["first.safetensors", "second.safetensors"]
    for seed, name in enumerate(names):
        tiny_qwen.save_lora(folder / name, base, style="ai-toolkit", seed=seed)
    return names


def editor_node(model: str, **inputs: Any) -> dict[str, Any]:
    """Return Editor from Model on a node's MODEL."""
    links = {"model": [model, 0], "clip": ["clip", 0], "vae": ["vae", 0], "variant": "removal"}
    return node("ArtMancer_EditorFromModel", **{**links, **inputs})


def inside(images: dict[str, Tensor], *names: str) -> list[Tensor]:
    """Return the images where the first one differs from the photo, [n, 3]."""
    area = (images[names[0]] != images["photo"]).any(-1)
    assert area.any() and images[names[0]][area].std() > 20, "the edit shows"
    return [images[name][area] for name in names]


def test_two_editors_with_their_own_loras_are_those_of_diffusers_and_switch(
    new_models: ComfyUI, lora_names: list[str], tmp_path: Path
) -> None:
    models, nodes, fast = new_models, graph(new_models), {"steps": 2, "cfg": 1.0}
    for name in lora_names:
        nodes[f"lora {name}"] = with_lora(name)
        nodes[f"editor {name}"] = editor_node(f"lora {name}")
        nodes[f"ours {name}"] = edit(f"editor {name}", **fast)
        nodes[f"diffusers {name}"] = diffusers_editor(checkpoint=name)
        nodes[f"theirs {name}"] = edit(f"diffusers {name}", **fast)
    names = [f"{who} {name}" for name in lora_names for who in ("ours", "theirs")]
    images, _ = run(models, nodes, tmp_path, *names, "photo")
    first, first_theirs, second, second_theirs = inside(images, *names)
    assert (first - first_theirs).abs().max() <= ROUNDING
    assert (second - second_theirs).abs().max() <= ROUNDING
    assert (first - second).abs().mean() > 2
    # The first LoRA again, after the second and after none.
    for lora in (lora_names[0], lora_names[1], None, lora_names[0]):
        nodes = {**graph(models), "ours": edit(**fast)}
        if lora:
            nodes |= {"lora": with_lora(lora), "editor": editor_node("lora")}
        images, _ = run(models, nodes, tmp_path, "ours", "photo")
    (again,) = inside(images, "ours")
    assert (again - first).abs().max() <= ROUNDING


def test_a_lora_with_guidance_is_that_of_diffusers(
    new_models: ComfyUI, lora_names: list[str], tmp_path: Path
) -> None:
    guided = {"steps": 2, "cfg": 3.0}
    nodes = {
        **graph(new_models),
        "lora": with_lora(lora_names[0]),
        "editor": editor_node("lora"),
        "ours": edit(**guided),
        "diffusers": diffusers_editor(checkpoint=lora_names[0]),
        "theirs": edit("diffusers", **guided),
        "bare editor": editor_node("model"),
        "bare": edit("bare editor", **guided),
    }
    images, _ = run(new_models, nodes, tmp_path, "ours", "theirs", "bare", "photo")
    ours, theirs, bare = inside(images, "ours", "theirs", "bare")
    assert (ours - theirs).abs().max() <= ROUNDING
    assert (ours - bare).abs().mean() > 2, "the LoRA counts"


def test_islands_apart_are_the_edits_of_each_island_with_the_next_seed(
    models: ComfyUI, tmp_path: Path
) -> None:
    nodes = graph(models)
    # Wide enough for two crops side by side.
    nodes["wide"] = node(
        "ImageScale",
        image=["photo", 0],
        upscale_method="bilinear",
        width=450,
        height=100,
        crop="disabled",
    )
    nodes["split"]["inputs"]["image"] = ["wide", 0]
    left, right = (42, 42, 58, 58), (392, 42, 408, 58)
    for name, marks in {"left": [left], "right": [right], "both": [left, right]}.items():
        mask = Image.new("L", (450, 100))
        for mark in marks:
            ImageDraw.Draw(mask).ellipse(mark, fill=255)
        path = tmp_path / f"{name}.png"
        mask.save(path)
        upload = models.upload(path)
        nodes[f"mask {name}"] = node("LoadImageMask", image=upload, channel="red")
        split = {**nodes["split"]["inputs"], "mask": [f"mask {name}", 0], "regions": "apart"}
        nodes[f"split {name}"] = node("ArtMancer_SplitConditions", **split)
    seeds = {"both": 7, "left": 7, "right": 8}
    for name, seed in seeds.items():
        nodes[name] = edit(conditions=[f"split {name}", 3], seed=seed, steps=2, cfg=2.0)
    images, _ = run(models, nodes, tmp_path, *seeds, "wide")
    changed = {name: (images[name] != images["wide"]).any(-1) for name in seeds}
    assert not (changed["left"] & changed["right"]).any()
    assert torch.equal(changed["both"], changed["left"] | changed["right"]), "nothing else"
    for name in ("left", "right"):
        assert images[name][changed[name]].std() > 20, "the edit shows"
        difference = images["both"][changed[name]] - images[name][changed[name]]
        # Only how the sampling is summed differs.
        assert difference.abs().max() <= 0.01


@pytest.mark.parametrize(
    ("form", "same"), [("int8", "int8 rounded"), ("fp8", "fp8 rounded"), ("streamed", "as it is")]
)
def test_other_loaders_models_edit_as_the_same_numbers_in_32_bits_do(
    models: ComfyUI, lora_names: list[str], tmp_path: Path, form: str, same: str
) -> None:
    nodes = graph(models)
    for name, kind in (("ours", form), ("plain", same)):
        nodes[f"{name} model"] = node("ChangeModel", model=["model", 0], form=kind)
        nodes[f"{name} lora"] = with_lora(lora_names[0], f"{name} model")
        # A LoRA in weights of fp8 is rounded with them.
        source = "model" if form == "fp8" else "lora"
        nodes[f"{name} editor"] = editor_node(f"{name} {source}")
        nodes[name] = edit(f"{name} editor", steps=2, cfg=1.0)
    images, _ = run(models, nodes, tmp_path, "ours", "plain", "photo")
    ours, plain = inside(images, "ours", "plain")
    assert (ours - plain).abs().max() <= ROUNDING


def loaded(comfyui: ComfyUI, nodes: Graph | None = None) -> dict[str, int]:
    """Return the bytes on the device of the models in ComfyUI's list by kind, and the number of
    models that are alive.

    Parameters
    ----------
    nodes : the last graph, whose outputs stay in the cache
    """
    result = comfyui.run({**(nodes or {}), "loaded": node("LoadedModels")})
    assert result.outcome == "execution_success", result.events[-1]
    return {kind: int(size) for kind, size in map(str.split, result.outputs["loaded"]["text"])}


def test_comfyui_knows_the_models_and_free_drops_them(models: ComfyUI, tmp_path: Path) -> None:
    models.free()
    assert loaded(models) == {"alive": 0}
    nodes = {**graph(models), "ours": edit()}
    first, _ = run(models, nodes, tmp_path, "ours", "photo")
    known = loaded(models, nodes)
    transformer = models.base / "models" / "diffusers" / NAMES["2509"] / "transformer"
    size = sum(path.stat().st_size for path in transformer.glob("*.safetensors"))
    assert known["QwenImage"] == pytest.approx(size, rel=0.05)
    assert {"QwenImageTEModel", "WanVAE"} <= known.keys()
    models.free()
    assert loaded(models) == {"alive": 0}
    again, _ = run(models, nodes, tmp_path, "ours", "photo")
    assert (again["ours"] - first["ours"]).abs().max() <= ROUNDING


def test_a_cancel_ends_the_edit_within_a_step_and_the_next_edit_is_unaffected(
    models: ComfyUI, tmp_path: Path
) -> None:
    nodes = {**graph(models), "ours": edit(seed=5)}
    expected, _ = run(models, nodes, tmp_path, "ours")

    def cancel(event: Event) -> str | None:
        sampling = event["type"] == "progress" and event["data"]["max"] == 90
        return "/interrupt" if sampling and event["data"]["value"] == 2 else None

    long = {
        **nodes,
        "ours": edit(seed=6, steps=90),
        "show": node("PreviewImage", images=["ours", 0]),
    }
    canceled = models.run(long, on_event=cancel)
    assert canceled.outcome == "execution_interrupted"
    assert canceled.of("progress")[-1]["value"] <= 6
    run(models, {**nodes, "ours": edit(seed=7)}, tmp_path, "ours")
    again, _ = run(models, nodes, tmp_path, "ours")
    assert (again["ours"] - expected["ours"]).abs().max() <= ROUNDING


def test_previews_progress_and_the_report_are_edit_samplers(
    models: ComfyUI, lora_names: list[str]
) -> None:
    nodes = {
        **graph(models),
        "lora": with_lora(lora_names[0]),
        "editor": editor_node("lora"),
        "edit": edit(seed=8),
        "show": node("PreviewImage", images=["edit", 0]),
        "report": node("PreviewAny", source=["edit", 1]),
    }
    nodes["split"]["inputs"] |= {"editor": ["editor", 0], "recipe": "auto"}
    result = models.run(nodes)
    assert result.outcome == "execution_success", result.events[-1]
    assert {"encoding", "sampling", "decoding"} <= set(result.texts)
    assert len(result.previews) == 3
    report = json.loads(result.outputs["report"]["text"][0])
    assert report["editor"] == "qwen-image-edit/removal"
    assert (report["recipe"], report["recipe_reason"]) == ("background_mask_fill", "default")
    assert report["conditions"] == ["background", "mask", "fill"]
    notes = " ".join(report["notes"])
    assert "default for removal: the names of the model's LoRAs are not known" in notes
    assert "ComfyUI sampled with euler and the published schedule." in notes
    assert "LoRAs change 8 of the model's weights." in notes
    assert ("samples a file of Qwen-Image-Edit-2511 as 2509" in notes) == is_old(models)


def test_each_photo_of_a_batch_is_edited_with_the_next_seed(
    models: ComfyUI, tmp_path: Path
) -> None:
    nodes = graph(models)
    nodes["batch"] = node("RepeatImageBatch", image=["photo", 0], amount=2)
    nodes["split"]["inputs"]["image"] = ["batch", 0]
    nodes |= {"ours": edit(seed=7), "single": edit("editor", seed=8)}
    alone = {**nodes["split"]["inputs"], "image": ["photo", 0]}
    nodes["alone"] = node("ArtMancer_SplitConditions", **alone)
    nodes["single"]["inputs"]["conditions"] = ["alone", 3]
    images, _ = run(models, nodes, tmp_path, "ours", "single", "photo")
    # Only how a batch is summed differs.
    assert (images["ours"][1] - images["single"][0]).abs().max() <= 0.01
    assert not torch.equal(images["ours"][0], images["ours"][1])


def test_shift_sampler_and_scheduler_are_comfyuis(models: ComfyUI, tmp_path: Path) -> None:
    """The same picture as SamplerCustom's or KSampler's of these names, after
    ModelSamplingAuraFlow.
    """
    nodes = graph(models, sampler="dpmpp_2m", scheduler="beta", shift=3.0)
    nodes |= {
        "ours": edit(cfg=1.0, keep_background=True),
        "encode": node(
            "ArtMancer_EncodeConditions",
            clip=["clip", 0],
            vae=["vae", 0],
            conditions=["split", 3],
            prompt="remove the spoon",
            negative=" ",
            condition_size="crop",
        ),
        "shift": node("ModelSamplingAuraFlow", model=["model", 0], shift=3.0),
        "sample": node(
            "KSampler",
            model=["shift", 0],
            positive=["encode", 0],
            negative=["encode", 1],
            latent_image=["encode", 2],
            seed=7,
            steps=3,
            cfg=1.0,
            sampler_name="dpmpp_2m",
            scheduler="beta",
            denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["vae", 0]),
        "native": node(
            "ArtMancer_Stitch",
            conditions=["split", 3],
            edited=["decode", 0],
            variant="removal",
            match_colors=False,
            transfer="colors",
        ),
    }
    images, _ = run(models, nodes, tmp_path, "ours", "native", "photo")
    ours, native = inside(images, "ours", "native")
    assert (ours - native).abs().max() <= ROUNDING


@pytest.mark.parametrize("dev", [False, True], ids=["klein", "dev"])
def test_flux2_edits_as_comfyuis_own_nodes_do(
    new_models: ComfyUI, tmp_path: Path, dev: bool
) -> None:
    nodes = graph(new_models)
    nodes |= {
        "model": node("SmallFlux2", dev=dev),
        "clip": node("SmallFlux2Clip", width=48),
        "vae": node("SmallFlux2Vae"),
        "ours": edit(cfg=3.0, negative="cat"),
        "positive": node("CLIPTextEncode", clip=["clip", 0], text="remove the spoon"),
        "negative": node("CLIPTextEncode", clip=["clip", 0], text="cat"),
        "guided": node("FluxGuidance", conditioning=["positive", 0], guidance=3.0),
        "sigmas": node("Flux2Scheduler", steps=3, width=128, height=128),
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "empty": node("EmptyFlux2LatentImage", width=128, height=128, batch_size=1),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["vae", 0]),
        "native": node(
            "ArtMancer_Stitch",
            conditions=["split", 3],
            edited=["decode", 0],
            variant="removal",
            match_colors=False,
            transfer="colors",
        ),
    }
    ends = {"positive": "guided" if dev else "positive", "negative": "negative"}
    for slot in range(3):
        nodes[f"latent {slot}"] = node("VAEEncode", pixels=["split", slot], vae=["vae", 0])
        for side, end in ends.items():
            name = f"{side} {slot}"
            nodes[name] = node(
                "ReferenceLatent", conditioning=[end, 0], latent=[f"latent {slot}", 0]
            )
            ends[side] = name
    nodes["sample"] = node(
        "SamplerCustom",
        model=["model", 0],
        add_noise=True,
        noise_seed=7,
        cfg=1.0 if dev else 3.0,
        positive=[ends["positive"], 0],
        negative=[ends["negative"], 0],
        sampler=["euler", 0],
        sigmas=["sigmas", 0],
        latent_image=["empty", 0],
    )
    images, _ = run(new_models, nodes, tmp_path, "ours", "native", "photo")
    ours, native = inside(images, "ours", "native")
    # ComfyUI's own nodes take the conditioning images before they are rounded to 8 bits.
    assert (ours - native).abs().mean() <= 0.5


def test_a_model_vae_clip_or_setting_that_does_not_fit_is_refused(models: ComfyUI) -> None:
    nodes = {**graph(models), "edit": edit()}
    changes: list[tuple[Graph, str]] = [
        ({"vae": node("SmallFlux2Vae")}, "The VAE makes latents of 128 channels"),
        ({"clip": node("SmallFlux2Clip", width=48)}, "embeddings of width 48; the model takes 256"),
        ({"edit": edit(attention="sage")}, "which attention of Edit Sampler is not for"),
        ({"edit": edit(step_cache=0.2)}, "which step_cache of Edit Sampler is not for"),
    ]
    for change, message in changes:
        assert message in error_message(models, {**nodes, **change})
    unknown = node("ChangeModel", model=["model", 0], form="unknown")
    message = error_message(models, {**nodes, "other": unknown, "editor": editor_node("other")})
    assert "expected Qwen-Image-Edit 2509 and 2511 or FLUX.2 dev and klein" in message
