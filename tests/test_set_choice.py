"""`artmancer models set`: the files of a model set, chosen by their headers."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from artmancer import cli, model_sets
from artmancer.model_headers import file_kind

QWEN = {"txt_norm.weight": [3584], "proj_out.weight": [64, 3072]}
QWEN_2511 = {**QWEN, "__index_timestep_zero__": [0]}
ENCODER = {"model.layers.0.self_attn.k_proj.bias": [512], "visual.blocks.0.norm1.weight": [1280]}
VAE = {"decoder.middle.0.residual.0.gamma": [384, 1, 1, 1], "decoder.conv1.weight": [384, 16, 3, 3]}
LORA = {"transformer_blocks.0.img_mlp.net.0.proj.lora_A.weight": [4, 3072]}


def save(path: Path, shapes: dict[str, Any], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, by its published form, with tensors of these shapes: its content
    is empty, as if each tensor had no elements.
    """
    entries: dict[str, Any] = {
        name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]}
        for name, shape in shapes.items()
    }
    if metadata:
        entries["__metadata__"] = metadata
    header = json.dumps(entries).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def save_gguf(path: Path, architecture: str) -> None:
    """Write the start of a GGUF file, by its published form."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    values = text("general.quantization_version") + struct.pack("<II", 4, 2)
    values += text("general.architecture") + struct.pack("<I", 8) + text(architecture)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + values)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder models of a ComfyUI without models."""
    (tmp_path / "main.py").touch()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    for name in ("MODEL_PATH", "MODEL_FILE", "MODEL_FILE_REMOVAL", "MODEL_FILE_WHITE_BALANCE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "models"


def test_files_are_chosen_by_their_headers_and_named(models: Path, capsys: Any) -> None:
    # The names of the first two lie.
    save(models / "diffusion_models" / "qwen_image_edit_2511_a.safetensors", ENCODER)
    save(models / "diffusion_models" / "newest.safetensors", QWEN_2511)
    save(models / "unet" / "qwen_image_edit_2509.safetensors", QWEN)
    save(models / "diffusion_models" / "qwen_image.safetensors", QWEN)
    save(models / "text_encoders" / "clip_l.safetensors", {"text_model.embeddings": [1]})
    save(models / "clip" / "eyes.safetensors", ENCODER)
    save(models / "vae" / "ae.safetensors", {"decoder.conv_in.weight": [512, 16, 3, 3]})
    save(models / "vae" / "qwen_image_vae.safetensors", VAE)
    save(models / "vae" / "wan_2.1_vae.safetensors", VAE)
    save(models / "artmancer" / "removal_cp.safetensors", LORA)
    metadata = {"artmancer.recipe": "image_edges"}
    save(models / "loras" / "mine" / "balance.safetensors", LORA, metadata)
    flux = {"single_transformer_blocks.0.attn.to_q.lora_A.weight": [4, 3072]}
    save(models / "loras" / "insertion_cp.safetensors", flux)
    for name in ("Edit-2509-Lightning-4steps", "Edit-2511-Lightning-8steps", "Lightning-4steps"):
        save(models / "loras" / f"Qwen-Image-{name}.safetensors", LORA)
    assert cli.main(["models", "set", "home"]) == 0
    text = capsys.readouterr().out
    model_set = model_sets.read(models / "artmancer" / "home.json")
    assert model_set.unet == "newest.safetensors"
    assert model_set.clip == "eyes.safetensors"
    assert model_set.vae == "qwen_image_vae.safetensors"
    assert model_set.loras == {
        "removal": "removal_cp.safetensors",
        "white_balance": "mine/balance.safetensors",
    }
    assert model_set.acceleration is not None
    assert model_set.acceleration.lora == "Qwen-Image-Edit-2511-Lightning-8steps.safetensors"
    assert (model_set.acceleration.steps, model_set.acceleration.shift) == (8, 3)
    assert "Qwen-Image-Edit-2511 by its header" in text
    assert "others: qwen_image.safetensors, qwen_image_edit_2509.safetensors" in text
    assert "others: wan_2.1_vae.safetensors" in text
    assert cli.main(["models", "set", "home"]) == 1
    assert "already a model set" in capsys.readouterr().err


def test_gguf_files_are_chosen_and_the_list_says_what_loads_them(models: Path, capsys: Any) -> None:
    save_gguf(models / "unet" / "Qwen-Image-Edit-2511-Q4_K_M.gguf", "qwen_image")
    save_gguf(models / "clip" / "Qwen2.5-VL-7B.gguf", "qwen2vl")
    save_gguf(models / "unet" / "flux-Q4.gguf", "flux")
    save(models / "vae" / "qwen_image_vae.safetensors", VAE)
    assert cli.main(["models", "set", "q4"]) == 0
    model_set = model_sets.read(models / "artmancer" / "q4.json")
    assert model_set.unet == "Qwen-Image-Edit-2511-Q4_K_M.gguf"
    capsys.readouterr()

    def row() -> str:
        assert cli.main(["models", "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        return next(str(row["about"]) for row in rows if row["kind"] == "set")

    def finding() -> dict[str, Any]:
        cli.main(["doctor", "--json"])
        findings = json.loads(capsys.readouterr().out)
        return next(dict(entry) for entry in findings if entry["name"] == "editor q4")

    assert "install the custom nodes ComfyUI-GGUF" in row()
    assert finding()["status"] == "off"
    (models.parent / "custom_nodes" / "ComfyUI-GGUF").mkdir(parents=True)
    assert row() == (
        "Qwen-Image-Edit-2511-Q4_K_M.gguf 0.0 GB, Qwen2.5-VL-7B.gguf 0.0 GB, "
        "qwen_image_vae.safetensors 0.0 GB"
    )
    assert finding()["status"] == "ok"
    assert "Qwen-Image-Edit-2511-Q4_K_M.gguf in ComfyUI" in finding()["found"]
    (models / "vae" / "qwen_image_vae.safetensors").unlink()
    assert "missing: 'qwen_image_vae.safetensors' in models/vae" in row()
    assert "missing" in finding()["found"]
    (models / "artmancer" / "q4.json").write_text("{")
    assert "cannot be read" in row()
    assert "cannot be read" in finding()["found"]


def test_missing_files_are_named_and_nothing_is_written(models: Path, capsys: Any) -> None:
    save(models / "diffusion_models" / "edit.safetensors", QWEN)
    save(models / "text_encoders" / "blind.safetensors", dict(list(ENCODER.items())[:1]))
    assert cli.main(["models", "set", "home"]) == 1
    text = capsys.readouterr().err
    assert "Qwen2.5-VL 7B with its vision part in models/text_encoders" in text
    assert "the VAE of Qwen-Image in models/vae" in text
    assert not (models / "artmancer").exists()


def test_a_set_needs_a_name_that_is_no_path(models: Path, capsys: Any) -> None:
    save(models / "diffusion_models" / "edit.safetensors", QWEN)
    save(models / "text_encoders" / "eyes.safetensors", ENCODER)
    save(models / "vae" / "vae.safetensors", VAE)
    for name in ("../out", "qwen", "a/b"):
        assert cli.main(["models", "set", name]) == 1
        assert "cannot be the name of a model set" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["models", "set"])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF",
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60) + struct.pack("<Q", 2**62),
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"[]",
    ],
)
@pytest.mark.parametrize("suffix", [".gguf", ".safetensors"])
def test_a_broken_file_is_nothing(tmp_path: Path, data: bytes, suffix: str) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(data)
    assert file_kind(path) is None


def test_a_part_of_a_file_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "edit.safetensors"
    entry = {"dtype": "BF16", "shape": [3584], "data_offsets": [0, 7168]}
    header = json.dumps({"txt_norm.weight": entry}).encode()
    start = struct.pack("<Q", len(header)) + header
    path.write_bytes(start + bytes(7168))
    assert file_kind(path) is not None
    path.write_bytes(start + bytes(7000))
    assert file_kind(path) is None
