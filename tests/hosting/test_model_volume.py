"""The volume with the checkpoints: upload, check, setup."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import yaml

from artmancer.hosting import model_volume


def lora(
    path: Path, name: str = "transformer_blocks.0.attn.to_q.lora_A.weight", cut: int = 0
) -> Path:
    """Write a safetensors file with one tensor, without its last `cut` bytes; return its path."""
    header = json.dumps({name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(16)
    path.write_bytes(data[: len(data) - cut])
    return path


def test_checkpoints_are_checked_and_uploaded(tmp_path: Path) -> None:
    local, remote = tmp_path / "checkpoints", tmp_path / "volume"
    local.mkdir()
    remote.mkdir()
    lora(local / "insertion_cp.safetensors")
    lora(local / "another.safetensors")
    lora(local / "removal_cp.safetensors", cut=3)
    lora(local / "wb_cp.safetensors", name="lora_unet_down_blocks_0.lora_down.weight")
    (local / "page.safetensors").write_text("<html>Not found</html>")
    uploads: dict[str, Path] = {}

    def put(files: Any) -> None:
        uploads.update(files)
        for name, path in files.items():
            shutil.copy(path, remote / name)

    lines, complete = model_volume.upload(local, model_volume.LocalVolume(remote), put)
    text = "\n".join(lines)
    assert set(uploads) == {"insertion_cp.safetensors", "another.safetensors"} and not complete
    assert "not uploaded: removal_cp.safetensors has" in text and "Copy it again" in text
    assert "not uploaded: wb_cp.safetensors is not a LoRA for Qwen-Image-Edit" in text
    assert "not uploaded: page.safetensors is not a safetensors file" in text
    assert "insertion      insertion_cp.safetensors" in text and "removal        missing" in text


def test_an_incomplete_upload_is_reported(tmp_path: Path) -> None:
    local, remote = tmp_path / "checkpoints", tmp_path / "volume"
    local.mkdir()
    remote.mkdir()
    lora(local / "insertion_cp.safetensors")
    lines, complete = model_volume.upload(
        local,
        model_volume.LocalVolume(remote),
        lambda files: (remote / "insertion_cp.safetensors").touch() or None,
    )
    assert "incomplete on the volume: insertion_cp.safetensors. Upload it again" in lines
    assert not complete


def test_an_empty_folder_is_reported(tmp_path: Path) -> None:
    lines, complete = model_volume.upload(
        tmp_path, model_volume.LocalVolume(tmp_path), lambda files: None
    )
    assert not complete and "There is no .safetensors file" in lines[0]


def test_uploads_to_an_older_folder_are_found(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    lora(tmp_path / "checkpoints" / "removal_cp.safetensors")
    inventory = model_volume.take_inventory(model_volume.LocalVolume(tmp_path))
    assert inventory.checkpoints["removal"] == "checkpoints/removal_cp.safetensors"


def test_a_base_without_one_of_its_files_is_missing(tmp_path: Path) -> None:
    base = tmp_path / model_volume.BASE
    (base / "transformer").mkdir(parents=True)
    (base / "model_index.json").write_text("{}")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (base / "transformer" / "model.safetensors.index.json").write_text(json.dumps(index))
    (base / "transformer" / "model-1.safetensors").touch()
    inventory = model_volume.take_inventory(model_volume.LocalVolume(tmp_path))
    assert not inventory.base
    assert "base_model/transformer/model-2.safetensors" in inventory.missing[0]
    (base / "transformer" / "model-2.safetensors").touch()
    assert model_volume.take_inventory(model_volume.LocalVolume(tmp_path)).base


def test_setup_downloads_only_missing_models(tmp_path: Path) -> None:
    downloads: list[str] = []

    def download(folder: Path) -> None:
        downloads.append(folder.name)
        folder.mkdir(parents=True, exist_ok=True)
        names = {model_volume.BASE: "model_index.json", model_volume.LAMA: "big-lama.pt"}
        name = names.get(folder.name, "model.onnx")
        (folder / name).write_text("{}")

    models = tuple(model_volume.DOWNLOADS)
    functions = dict.fromkeys(models, download)
    (tmp_path / model_volume.LAMA).mkdir()
    # A download that was killed left this.
    (tmp_path / model_volume.LAMA / "big-lama.pt.1a2b.partial").touch()
    assert model_volume.setup(tmp_path, False, model_volume.LAMA, functions)[1]
    assert downloads == [model_volume.LAMA]
    downloads.clear()
    (tmp_path / model_volume.LAMA / "big-lama.pt").unlink()
    model_volume.setup(tmp_path, False, "", functions)
    assert downloads == list(models)
    assert "kept: fastsam" in model_volume.setup(tmp_path, False, "", functions)[0]
    lines, success = model_volume.setup(tmp_path, False, "lama", functions)
    assert not success and "--only is 'lama'; expected one of base_model, inpaint" in lines[0]
    assert len(downloads) == len(models)
    # The second argument downloads every model again.
    model_volume.setup(tmp_path, True, "", functions)
    assert len(downloads) == 2 * len(models)


def model_set(folder: Path, name: str, **changes: Any) -> None:
    """Write a model set into a folder."""
    content = {"unet": "edit.safetensors", "clip": "qwen.safetensors", "vae": "vae.safetensors"}
    (folder / f"{name}.json").write_text(json.dumps({**content, **changes}))


def test_the_model_sets_of_the_volume_are_listed_with_what_they_lack(tmp_path: Path) -> None:
    for path in ("diffusion_models/edit", "clip/qwen", "vae/vae", "loras/sub/mine", "unet/edit-q4"):
        file = tmp_path / f"{path}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "unet" / "edit.gguf").touch()
    lora(tmp_path / "removal_cp.safetensors")
    loras = {"removal": "removal_cp.safetensors", "insertion": "sub/mine.safetensors"}
    model_set(tmp_path, "home", loras=loras)
    model_set(tmp_path, "flux", family="flux2", unet="edit-q4.safetensors")
    model_set(tmp_path, "gguf", unet="edit.gguf")
    model_set(tmp_path, "gone", vae="gone.safetensors")
    model_set(tmp_path, "wrong", vae="../vae.safetensors")
    model_set(tmp_path, "draft")
    volume = model_volume.LocalVolume(tmp_path)
    problems = model_volume.take_inventory(volume).model_sets
    assert {name for name, problem in problems.items() if not problem} == {"home", "flux"}
    assert "'edit.gguf' in models/diffusion_models" in problems["gguf"]
    assert "'gone.safetensors' in models/vae" in problems["gone"]
    assert "a path" in problems["wrong"]
    assert "draft" not in problems, "the name of another editor"
    lines = "\n".join(model_volume.take_inventory(volume).lines())
    assert "model sets     " in lines and "home" in lines
    assert "broken: The model set 'gone' needs" in lines


def test_model_sets_are_uploaded_beside_the_checkpoints(tmp_path: Path) -> None:
    local, remote = tmp_path / "checkpoints", tmp_path / "volume"
    local.mkdir()
    remote.mkdir()
    model_set(local, "home")
    model_set(local, "wrong", clip=3)

    def put(files: Any) -> None:
        for name, path in files.items():
            shutil.copy(path, remote / name)

    lines, complete = model_volume.upload(local, model_volume.LocalVolume(remote), put)
    assert [path.name for path in remote.iterdir()] == ["home.json"] and not complete
    assert any(line.startswith("not uploaded: wrong.json. The model set 'wrong'") for line in lines)
    assert any(line.startswith("uploaded: home.json, ") for line in lines)


def test_comfyui_can_read_the_model_paths(tmp_path: Path) -> None:
    paths = yaml.safe_load(model_volume.PATHS.format(root=tmp_path))["artmancer"]
    assert paths["artmancer"].split() == [".", "checkpoints"]
    assert paths["diffusion_models"].split() == ["diffusion_models", "unet"]
    assert paths["text_encoders"].split() == ["text_encoders", "clip"]
    assert (paths["vae"], paths["loras"]) == ("vae", "loras")
    assert paths["base_path"] == str(tmp_path)
