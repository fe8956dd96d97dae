"""Folders that are no whole base, or another kind of base: each is refused with its own sentence,
before any weights are read. Folders that a package quantized are loaded with it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support import quantized_base, tiny_qwen
from support.paths import EXAMPLES

from artmancer import cli, doctor, models
from artmancer.errors import ArtMancerError
from artmancer.offload import Offloader
from artmancer.options import PRECISIONS
from artmancer.qwen import base_folder, checkpoints, pipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"
"""Name of the transformer's weights."""


@pytest.fixture
def folder(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base, to be changed."""
    return tiny_qwen.copy_base(tiny_base, tmp_path / "base")


def refusal(folder: Path, code: str = "generation_failed") -> str:
    """Return the sentence that the loader refuses a folder with."""
    with pytest.raises(ArtMancerError) as error:
        pipeline.load(folder)
    assert error.value.code == code
    return str(error.value)


def set_config(folder: Path, part: str, **changes: Any) -> None:
    """Change the config.json of a part."""
    path = folder / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_weights(
    path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    """Rewrite a safetensors file; its metadata stay."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(change(load_file(path)), path, metadata)


@pytest.fixture
def no_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test where a part of diffusers or transformers is loaded."""
    import diffusers
    import transformers

    def load(*args: object, **options: object) -> None:
        pytest.fail("a part was loaded")

    for part_class in (
        transformers.Qwen2_5_VLForConditionalGeneration,
        diffusers.AutoencoderKLQwenImage,
        diffusers.QwenImageTransformer2DModel,
    ):
        monkeypatch.setattr(part_class, "from_pretrained", load)


@pytest.mark.usefixtures("no_weights_are_read")
@pytest.mark.parametrize("part", ["text_encoder", "transformer"])
@pytest.mark.parametrize(
    ("config", "package"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "torchao", "quant_type": {}}, "torchao"),
    ],
)
def test_the_package_that_a_quantized_base_needs_is_named(
    folder: Path,
    part: str,
    config: dict[str, Any],
    package: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_config(folder, part, quantization_config=config)
    monkeypatch.setattr(base_folder, "find_spec", lambda name: None)
    message = refusal(folder)
    assert f"The {part} of the base in '{folder}' is quantized with {package}" in message
    assert f"`pip install {package}`" in message


@pytest.mark.usefixtures("no_weights_are_read")
def test_an_unknown_quantization_is_refused_with_the_ways_that_work(folder: Path) -> None:
    set_config(folder, "transformer", quantization_config={"quant_method": "gptq"})
    message = refusal(folder)
    assert "quantized with gptq; expected bitsandbytes or torchao" in message
    assert "artmancer models fetch" in message and "template 9" in message


def test_a_quantized_base_that_its_package_refuses_is_not_to_be_downloaded_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    def load(*args: object, **options: object) -> None:
        raise ImportError("No GPU was found.")

    set_config(folder, "text_encoder", quantization_config={"quant_method": "bitsandbytes"})
    monkeypatch.setattr(base_folder, "find_spec", lambda name: object())
    monkeypatch.setattr(transformers.Qwen2_5_VLForConditionalGeneration, "from_pretrained", load)
    message = refusal(folder)
    assert "is quantized with bitsandbytes and cannot be loaded here (No GPU was found.)" in message
    assert "Download it again" not in message and "template 9" in message


@pytest.mark.parametrize("choice", PRECISIONS)
def test_the_precision_of_a_quantized_base_is_that_of_its_file_and_the_user_is_told(
    folder: Path, choice: str
) -> None:
    set_config(folder, "text_encoder", quantization_config={"quant_method": "torchao"})
    precision, notes = pipeline.precision_for(folder, choice, Offloader("cpu"))
    assert precision == "bf16"
    assert len(notes) == (choice in ("fp8", "fp32"))
    for note in notes:
        assert f"The precision {choice} is not used" in note
        assert "text_encoder (torchao)" in note


@pytest.mark.usefixtures("no_weights_are_read")
@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_weights_that_the_model_does_not_have_are_refused_before_any_are_read(
    folder: Path, part: str
) -> None:
    extra = {"transformer_blocks.0.attn.to_q.smooth": torch.ones(3)}
    change_weights(folder / part / WEIGHTS, lambda weights: {**weights, **extra})
    message = refusal(folder)
    assert f"The {part} of the base in '{folder}' has weights that this model does not" in message
    assert "transformer_blocks.0.attn.to_q.smooth" in message
    assert "artmancer models fetch" in message and "template 9" in message


def test_weights_that_the_text_encoder_does_not_have_are_refused(folder: Path) -> None:
    extra = {"model.layers.0.self_attn.q_proj.smooth": torch.ones(3)}
    change_weights(
        folder / "text_encoder" / "model.safetensors", lambda weights: {**weights, **extra}
    )
    message = refusal(folder)
    assert "The text_encoder" in message and "self_attn.q_proj.smooth" in message


@pytest.mark.usefixtures("no_weights_are_read")
def test_the_names_of_comfyui_in_a_folder_of_diffusers_are_refused(folder: Path) -> None:
    change_weights(
        folder / "transformer" / WEIGHTS,
        lambda weights: {f"model.diffusion_model.{name}": value for name, value in weights.items()},
    )
    message = refusal(folder)
    assert "model.diffusion_model." in message and "template 9" in message


def test_extra_weights_that_the_caller_loads_itself_are_accepted(folder: Path) -> None:
    from diffusers import QwenImageTransformer2DModel

    extra = {"scaled_fp8": torch.ones(1)}
    change_weights(folder / "transformer" / WEIGHTS, lambda weights: {**weights, **extra})
    base_folder.check_keys(folder, "transformer", QwenImageTransformer2DModel, {"scaled_fp8"})
    base_folder.check_weights(folder, "transformer", [], ["scaled_fp8"], {"scaled_fp8"})
    with pytest.raises(ArtMancerError, match="scaled_fp8"):
        base_folder.check_keys(folder, "transformer", QwenImageTransformer2DModel)


@pytest.mark.usefixtures("no_weights_are_read")
@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "pytorch_model.bin"])
def test_bin_weights_are_refused(folder: Path, name: str) -> None:
    (folder / "transformer" / WEIGHTS).rename(folder / "transformer" / name)
    message = refusal(folder)
    assert f"has '{name}'; expected '{WEIGHTS}'" in message
    assert "safetensors" in message and "artmancer models fetch" in message


def test_a_variant_of_the_file_name_is_refused_and_loads_when_renamed(folder: Path) -> None:
    path = folder / "transformer" / WEIGHTS
    variant = path.rename(path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    message = refusal(folder)
    assert f"has '{variant.name}'; expected '{WEIGHTS}'" in message
    assert "Rename it" in message
    variant.rename(path)
    pipeline.load(folder)


def test_a_variant_in_several_files_is_refused_and_loads_when_its_index_is_renamed(
    tiny_base: Path, folder: Path
) -> None:
    from diffusers import QwenImageTransformer2DModel

    transformer = QwenImageTransformer2DModel.from_pretrained(tiny_base / "transformer")
    (folder / "transformer" / WEIGHTS).unlink()
    transformer.save_pretrained(folder / "transformer", variant="fp16", max_shard_size="200KB")
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    message = refusal(folder)
    index = next((folder / "transformer").glob("*.index*.json"))
    assert f"has '{index.name}'; expected '{WEIGHTS}.index.json'" in message
    index.rename(index.with_name(f"{WEIGHTS}.index.json"))
    pipeline.load(folder)
    # One of the files is not there.
    next((folder / "transformer").glob("*.safetensors")).unlink()
    assert "is not a whole safetensors file" in refusal(folder)


@pytest.mark.usefixtures("no_weights_are_read")
def test_a_part_without_weights_or_config_is_refused(folder: Path) -> None:
    (folder / "vae" / WEIGHTS).unlink()
    assert "The vae" in (message := refusal(folder, "checkpoint_missing"))
    assert f"has no weights; expected '{WEIGHTS}'" in message
    (folder / "vae" / f"{WEIGHTS}.index.json").write_text("{}")
    assert f"'{WEIGHTS}.index.json' lists no files" in refusal(folder)
    (folder / "text_encoder" / "config.json").write_text("[]")
    assert "has no config.json that can be read" in refusal(folder, "checkpoint_missing")


@pytest.mark.usefixtures("no_weights_are_read")
@pytest.mark.parametrize("suffix", ["safetensors", "gguf"])
def test_a_single_file_is_refused_as_a_base_with_the_template_that_takes_it(
    tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"qwen_image_edit_2511_bf16.{suffix}"
    file.write_bytes(b"")
    for chosen in (file, tmp_path):
        message = refusal(chosen)
        assert f"'{file}' is a single file" in message
        assert "template 9" in message and "artmancer models fetch" in message


def test_the_only_snapshot_of_a_hub_cache_is_loaded(tiny_base: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--Qwen--Qwen-Image-Edit-2511"
    (cache / "snapshots").mkdir(parents=True)
    (cache / "refs").mkdir()
    assert not checkpoints.is_base(cache)
    assert "0 snapshots; expected one" in refusal(cache, "checkpoint_missing")
    # The hub's cache holds links to files in blobs/.
    blobs = tiny_qwen.copy_base(tiny_base, cache / "blobs")
    snapshot = cache / "snapshots" / ("a" * 40)
    for path in blobs.rglob("*"):
        if path.is_file():
            link = snapshot / path.relative_to(blobs)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    assert checkpoints.is_base(cache)
    loaded, expected = (pipeline.load(place).pipeline for place in (cache, tiny_base))
    weights = loaded.transformer.state_dict()
    for name, weight in expected.transformer.state_dict().items():
        assert torch.equal(weights[name], weight)
    tiny_qwen.copy_base(tiny_base, cache / "snapshots" / ("b" * 40))
    message = refusal(cache, "checkpoint_missing")
    assert "2 snapshots; expected one" in message and str(snapshot) in message


def test_models_and_doctor_have_the_loaders_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(folder.parent))
    monkeypatch.setenv("MODEL_PATH", str(folder))

    def notes() -> tuple[str, str]:
        finding = {each.name: each for each in doctor.examine()}["editor qwen"]
        note = next(model.note for model in models.inventory() if model.kind == "base")
        return note, finding.found

    assert notes() == ("", f"runs here: {folder}")
    set_config(folder, "transformer", quantization_config={"quant_method": "gptq"})
    message = refusal(folder)
    assert notes() == (message, message)
    (folder / "model_index.json").unlink()
    message = refusal(folder, "checkpoint_missing")
    assert notes() == (message, message)


@pytest.mark.slow
def test_the_report_names_a_precision_that_is_not_used(
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # No package here can load a base that is really quantized.
    choice = pipeline.PrecisionChoice("fp32", ("fp8 is not used",))
    monkeypatch.setattr(pipeline, "precision_for", lambda *_: choice)
    for name in ("coffee", "coffee_mask"):
        Image.open(EXAMPLES / f"{name}.png").resize((150, 100)).save(tmp_path / f"{name}.png")
    command = [
        *("edit", str(tmp_path / "coffee.png"), f"--mask={tmp_path / 'coffee_mask.png'}"),
        *("--task=removal", "--editor=qwen", f"--base={tiny_base}", "--precision=fp8"),
        *("--resolution=native", "--steps=1", "--cfg=1", "--condition-megapixels=0.05"),
        *("--json", f"--output={tmp_path / 'out.png'}"),
    ]
    assert cli.main(command) == 0
    assert "fp8 is not used" in json.loads(capsys.readouterr().out)["report"]["notes"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "weight"), [("torchao", "Int8Tensor"), ("bitsandbytes", "Params4bit")]
)
def test_a_quantized_base_edits_nearly_like_the_base_and_drops_no_weights(
    tiny_base: Path, folder: Path, tmp_path: Path, package: str, weight: str
) -> None:
    result = quantized_base.run(package, tiny_base, folder, tmp_path)
    if "skipped" in result:
        pytest.skip(result["skipped"])
    part = quantized_base.PARTS[package]
    assert weight in result["types"]
    assert "fp8 is not used" in result["notes"][0] and f"{part} ({package})" in result["notes"][0]
    assert 0 < result["difference"] < result["deviation"]
    # diffusers drops such a weight, or only logs it.
    assert quantized_base.EXTRA[part] in result["message"]
