"""Model sets: the form of their files, with hostile names, and the files that they name."""

import json
from pathlib import Path
from typing import Any

import pytest

from artmancer import model_sets
from artmancer.errors import ArtMancerError
from artmancer.model_sets import Acceleration, ModelSet

CONTENT: dict[str, Any] = {
    "unet": "edit.safetensors",
    "clip": "encoder.safetensors",
    "vae": "vae.safetensors",
}


def written(folder: Path, content: Any, name: str = "small") -> Path:
    path = folder / f"{name}.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def message(path: Path) -> str:
    """Return the one sentence, and its advice, that a file is refused with."""
    with pytest.raises(ArtMancerError) as caught:
        model_sets.read(path)
    assert caught.value.code == "generation_failed"
    text = str(caught.value)
    assert text.startswith("The model set 'small' ")
    assert text.endswith(".") and "\n" not in text
    return text


def test_a_set_is_read_with_all_its_parts(tmp_path: Path) -> None:
    content = {
        **CONTENT,
        "family": "qwen_image",
        "loras": {"removal": "removal_cp.safetensors", "insertion": "sub/insert.safetensors"},
        "recipes": {"insertion": "reference_mask_background"},
        "acceleration": {"lora": "fast-4steps.safetensors", "steps": 4, "shift": 2.5},
    }
    model_set = model_sets.read(written(tmp_path, content))
    assert model_set.name == "small"
    assert model_set.loras["insertion"] == "sub/insert.safetensors"
    assert model_set.recipes == {"insertion": "reference_mask_background"}
    assert model_set.acceleration == Acceleration("fast-4steps.safetensors", 4, 2.5)
    assert [name for _, name in model_set.files("removal")] == [
        *CONTENT.values(),
        "removal_cp.safetensors",
        "fast-4steps.safetensors",
    ]
    assert len(model_set.files()) == 6
    assert model_set.as_dict() == content


def test_a_model_for_few_steps_needs_no_lora(tmp_path: Path) -> None:
    content = {**CONTENT, "family": "flux2", "acceleration": {"steps": 4}}
    model_set = model_sets.read(written(tmp_path, content))
    assert model_set.acceleration == Acceleration(None, 4, 0.0)
    assert len(model_set.files()) == len(CONTENT)
    again = model_sets.read(model_sets.write(tmp_path / "again", model_set))
    assert again == model_set


def test_only_three_keys_are_needed(tmp_path: Path) -> None:
    model_set = model_sets.read(written(tmp_path, CONTENT))
    assert model_set.family == "qwen_image"
    assert not model_set.loras and not model_set.recipes and model_set.acceleration is None


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd.safetensors",
        "../vae.safetensors",
        "a/../../vae.safetensors",
        "a/./vae.safetensors",
        "a//vae.safetensors",
        "..\\vae.safetensors",
        "sub\\vae.safetensors",
        "C:vae.safetensors",
        "C:/vae.safetensors",
        "\\\\host\\share\\vae.safetensors",
        "http://host/vae.safetensors",
        "vae\0.safetensors",
        "vae\n.safetensors",
        "... /vae.safetensors",
        "~/x/.. /vae.safetensors",
        "",
    ],
)
@pytest.mark.parametrize("place", ["vae", "lora", "acceleration"])
def test_a_path_instead_of_a_name_is_refused(tmp_path: Path, place: str, name: str) -> None:
    content = dict(CONTENT)
    if place == "vae":
        content["vae"] = name
    elif place == "lora":
        content["loras"] = {"removal": name}
    else:
        content["acceleration"] = {"lora": name, "steps": 4}
    assert "a path; expected a name as ComfyUI lists it in models/" in message(
        written(tmp_path, content)
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weights": "x"}, "'weights', an unknown key; expected acceleration, clip, family,"),
        ({"vae": None}, "'vae', not set; expected the name of a file in models/vae"),
        ({"vae": 3}, "'vae', 3; expected the name of a file in models/vae"),
        ({"vae": "vae.pt"}, "'vae', 'vae.pt'; expected a file that ends in .safetensors"),
        ({"family": "sdxl"}, "'family', 'sdxl'; expected one of qwen_image, flux2"),
        ({"family": ["flux2"]}, "'family', ['flux2']; expected one of"),
        ({"loras": []}, "'loras', which is no JSON object"),
        ({"loras": {"cut": "a.safetensors"}}, "'loras.cut', an unknown key; expected insertion"),
        ({"recipes": {"removal": "soup"}}, "'recipes.removal', 'soup'; expected one of"),
        ({"acceleration": {"lora": "a.safetensors"}}, "'acceleration.steps', not set"),
        ({"acceleration": {"lora": "a.safetensors", "steps": True}}, "'acceleration.steps', True"),
        (
            {"acceleration": {"lora": "a.safetensors", "steps": 4.5}},
            "'acceleration.steps', 4.5; expected a whole number from 1 to 100",
        ),
        (
            {"acceleration": {"lora": "a.safetensors", "steps": 4, "shift": -1}},
            "'acceleration.shift', -1; expected a number from 0 to 100",
        ),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    assert sentence in message(written(tmp_path, {**CONTENT, **change}))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1]", "is no JSON object"),
        ("{", "cannot be read"),
        ("\udcff".encode("utf-8", "surrogateescape").decode("latin-1"), "cannot be read"),
        ('{"vae": "a.safetensors", "vae": "b.safetensors"}', "a key occurs twice"),
        ("[" * 100_000, "cannot be read"),
        (" " * 70_000 + "{}", "larger than 64 KB"),
        ('{"unet": NaN}', "'unet', nan"),
    ],
)
def test_a_file_that_is_no_set_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    assert reason in message(written(tmp_path, text))


@pytest.mark.parametrize("name", ["draft", "Auto", "qwen", ".hidden", "a" * 65, "é", "x ", "x."])
def test_a_set_cannot_have_the_name_of_another_editor(tmp_path: Path, name: str) -> None:
    written(tmp_path, CONTENT, name)
    assert model_sets.find([tmp_path]) == {}
    with pytest.raises(ArtMancerError, match="cannot be the name of a model set"):
        model_sets.write(tmp_path, ModelSet(name, **CONTENT))


def test_an_unknown_set_is_refused_with_the_list(tmp_path: Path) -> None:
    written(tmp_path, CONTENT, "fp8")
    written(tmp_path, CONTENT, "q4")
    paths = model_sets.find([tmp_path, tmp_path / "no folder"])
    assert model_sets.get("q4", paths).name == "q4"
    for name in ("q8", "../q4", str(tmp_path / "q4"), "q4.json"):
        with pytest.raises(ArtMancerError, match="there are: fp8, q4") as caught:
            model_sets.get(name, paths)
        assert caught.value.code == "not_found"


def test_missing_files_are_named_with_their_folders(tmp_path: Path) -> None:
    content = {**CONTENT, "unet": "edit.gguf", "loras": {"removal": "away.safetensors"}}
    model_set = model_sets.read(written(tmp_path, content))
    files = {
        "unet": {"edit.gguf": tmp_path},
        "clip": {"encoder.safetensors": tmp_path},
        "vae": {"vae.safetensors": tmp_path},
        "lora": dict[str, Path](),
    }
    model_sets.check_files(model_set, files, "insertion")
    with pytest.raises(ArtMancerError, match=r"'away\.safetensors' in models/artmancer"):
        model_sets.check_files(model_set, files, "removal")
    with pytest.raises(ArtMancerError, match=r"'edit\.gguf' .*install the custom nodes"):
        model_sets.check_files(model_set, {**files, "unet": {}}, "insertion")


def test_a_written_set_is_read_again_and_never_replaced(tmp_path: Path) -> None:
    model_set = ModelSet("my set", **CONTENT, acceleration=Acceleration("fast.safetensors", 8))
    path = model_sets.write(tmp_path / "artmancer", model_set)
    assert model_sets.read(path) == model_set
    with pytest.raises(ArtMancerError, match="already a model set 'my set'"):
        model_sets.write(tmp_path / "artmancer", ModelSet("my set", **CONTENT))
    assert model_sets.read(path) == model_set
    assert [file.name for file in path.parent.iterdir()] == ["my set.json"]
