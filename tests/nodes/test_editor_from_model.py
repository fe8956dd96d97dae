"""Editor from Model in a real ComfyUI, compared with the diffusers way on the same weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image
from safetensors.torch import load_file
from support import native_base
from support.comfyui import ComfyUI, Run
from support.paths import EXAMPLES
from torch import Tensor

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]

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
        "steps": 4,
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
    models: ComfyUI, tmp_path: Path, release: str, settings: dict[str, Any]
) -> None:
    diffusers = {
        "editor": NAMES[release],
        "variant": "removal",
        "strength": 1.0,
        "checkpoint": "none",
    }
    nodes = {
        **graph(models, release),
        "diffusers": node("ArtMancer_LoadEditor", **diffusers),
        "theirs": edit("diffusers", **settings),
        "ours": edit("editor", **settings),
    }
    images, _ = run(models, nodes, tmp_path, "ours", "theirs", "photo")
    ours, theirs, photo = (images[name] for name in ("ours", "theirs", "photo"))
    inside = (ours != photo).any(-1)
    assert inside.any() and ours[inside].std() > 20, "the edit shows"
    difference = (ours - theirs)[inside].abs()
    # Only rounding differs, in levels of 0 to 255.
    assert difference.max() <= 0.2
    assert difference.mean() <= 0.01
