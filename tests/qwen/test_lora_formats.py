"""LoRA files in all formats: the changes of the base's layers, compared with the formulas."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import lora_formats, tiny_qwen
from support.comfyui import comfyui_folder
from support.lora_formats import FORMATS, REFUSED, Array, Draw, LoraFile, Weights
from support.paths import ROOT

from artmancer.errors import ArtMancerError
from artmancer.hosting import model_volume
from artmancer.qwen import adapters, checkpoints, pipeline


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> pipeline.Base:
    """A base that all tests share, so that each also sees what others left behind."""
    return tiny_qwen.load(tiny_base)


@pytest.fixture(scope="module")
def weights(base: pipeline.Base) -> Weights:
    """The weights of the base before any file was attached."""
    return {
        name: value.detach().double().numpy().copy()
        for name, value in base.pipeline.transformer.named_parameters()
    }


def effective(transformer: Any, name: str, dtype: torch.dtype) -> Array:
    """Return what a parameter of the base amounts to now, with all adapters; `dtype` is the
    transformer's, which takes long to find.
    """
    layer, _, kind = name.rpartition(".")
    module = transformer.get_submodule(layer)
    if not hasattr(module, "in_features"):
        return transformer.get_parameter(name).detach().double().numpy()
    with torch.no_grad():
        inputs = torch.eye(module.in_features, dtype=dtype)
        bias = module(torch.zeros_like(inputs[:1]))
        if kind == "bias":
            return bias[0].double().numpy()
        return (module(inputs) - bias).T.double().numpy()


def check(
    base: pipeline.Base, weights: Weights, deltas: dict[str, Array], tolerance: float = 2e-5
) -> None:
    """Compare every parameter of the base with its weight plus its delta."""
    transformer = base.pipeline.transformer
    dtype = transformer.dtype
    for name, weight in weights.items():
        expected = weight + deltas.get(name, 0.0)
        error = np.abs(effective(transformer, name, dtype) - expected).max()
        assert error <= tolerance * max(1.0, np.abs(expected).max()), name


def scaled(deltas: Weights, strength: float) -> Weights:
    return {name: strength * delta for name, delta in deltas.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_changes_the_layers_by_its_formula(
    base: pipeline.Base, weights: Weights, tmp_path: Path, name: str
) -> None:
    file = FORMATS[name][1](weights, Draw())
    path = file.save(tmp_path / "lora.safetensors")
    assert len(file.deltas) >= 6
    for strength in (1.0, 0.6):
        adapters.activate(base, {path: strength})
        check(base, weights, scaled(file.deltas, strength))
    assert min(np.abs(delta).max() for delta in file.deltas.values()) > 0.01
    adapters.activate(base, {path: 0.0})
    check(base, weights, {}, 1e-6)
    adapters.activate(base, {})
    check(base, weights, {}, 1e-6)


def refusal(base: pipeline.Base, folder: Path, name: str) -> str:
    """Return the message that refuses a format."""
    path = LoraFile(REFUSED[name]).save(folder / "lora.safetensors")
    with pytest.raises(ArtMancerError) as error:
        adapters.activate(base, {path: 1.0})
    assert error.value.code == "generation_failed"
    return str(error.value)


OF_ANOTHER_MODEL = {"FLUX", "Wan", "another width"}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_loaded_is_refused_for_what_it_is(
    base: pipeline.Base, weights: Weights, tmp_path: Path, name: str
) -> None:
    message = refusal(base, tmp_path, name)
    assert "'lora.safetensors'" in message
    assert ("Choose a LoRA for Qwen-Image-Edit" in message) == (name in OF_ANOTHER_MODEL)
    assert ("ComfyUI's own LoraLoader" in message) == (name in COMFYUI_TAKES | UNKNOWN)
    adapters.activate(base, {})
    check(base, weights, {}, 1e-6)


COMFYUI_TAKES = set(lora_formats.COMFYUI_TAKES)
UNKNOWN = {"a format that is not known"}


def test_the_page_has_every_format_and_every_message(base: pipeline.Base, tmp_path: Path) -> None:
    """Expect docs/loras.md as docs/lora_formats.py writes it."""
    table = lora_formats.table({name: refusal(base, tmp_path, name) for name in REFUSED})
    assert table in (ROOT / "docs" / "loras.md").read_text("utf-8")


@pytest.mark.comfyui
def test_comfyui_takes_the_formats_that_its_loader_is_named_for(
    base: pipeline.Base, weights: Weights, tmp_path: Path
) -> None:
    """Load every format with ComfyUI's own code. Where it takes the format, its changes agree with
    the formulas too, except for two: it does not read PEFT's metadata, and in a DoRA it divides by
    the norms of W and not of W + delta.
    """
    from safetensors.torch import load_file, save_file

    if not (comfyui_folder() / "comfy").is_dir():
        pytest.skip(f"no ComfyUI in {comfyui_folder()} (set COMFYUI_PATH)")
    weights_file = tmp_path / "weights"
    save_file({name: torch.tensor(value).float() for name, value in weights.items()}, weights_file)
    folder = tmp_path / "loras"
    folder.mkdir()
    files = {name: make(weights, Draw()) for name, (_, make) in FORMATS.items()}
    names = dict(enumerate([*files, *REFUSED]))
    for index, name in names.items():
        file = files.get(name) or LoraFile(REFUSED[name])
        file.save(folder / f"{index}.safetensors")
    script = ROOT / "tests" / "support" / "comfyui_loras.py"
    output = subprocess.run(
        [sys.executable, script, comfyui_folder(), weights_file, folder],
        capture_output=True,
        check=True,
    ).stdout
    results = json.loads(output)
    agree = []
    for index, name in names.items():
        changed = {
            parameter: value.double().numpy() - weights[parameter]
            for parameter, value in load_file(folder / f"{index}.changed").items()
        }
        if name in REFUSED:
            takes = any(np.abs(delta).max() > 0 for delta in changed.values())
            takes = takes and not results[str(index)]
            assert takes == (name in COMFYUI_TAKES), name
            continue
        file = files[name]
        if file.metadata or "DoRA" in name or changed.keys() != file.deltas.keys():
            continue
        for parameter, delta in file.deltas.items():
            assert np.abs(changed[parameter] - delta).max() <= 1e-4, (name, parameter)
        agree.append(name)
    assert len(agree) >= 15


def test_peft_has_the_same_formulas(tiny_base: Path, weights: Weights, tmp_path: Path) -> None:
    """Load what ComfyUI computes otherwise with diffusers and PEFT alone, at strength 1."""
    for name in ("DoRA, diffusers", "LoRA, diffusers, alpha in the metadata, rank-stabilized"):
        file = FORMATS[name][1](weights, Draw())
        path = file.save(tmp_path / "lora.safetensors")
        loaded = tiny_qwen.load(tiny_base)
        # Without use_safetensors diffusers does not read the metadata.
        loaded.pipeline.transformer.load_lora_adapter(str(path), use_safetensors=True)
        check(loaded, weights, file.deltas, 1e-4)


STACKS = (
    ("LoRA, diffusers", "DoRA, diffusers"),
    ("LoKr, both factors whole", "DoRA with biases"),
    ("DoRA, PEFT", "LoHa with norms"),
    ("LoHa", "LoKr, both factors decomposed", "differences"),
    ("extracted", "LoHa with norms"),
)


def stack(
    weights: Weights, folder: Path, names: tuple[str, ...]
) -> tuple[dict[Path, float], Weights]:
    """Return the strengths of files, and the sum of their changes."""
    strengths: dict[Path, float] = {}
    total: Weights = {}
    for index, name in enumerate(names):
        key = next(key for key in FORMATS if name in key)
        file = FORMATS[key][1](weights, Draw(index))
        path = file.save(folder / f"{index}.safetensors")
        strengths[path] = (1.0, 0.5, 0.8)[index]
        for parameter, delta in file.deltas.items():
            total[parameter] = total.get(parameter, 0) + strengths[path] * delta
    return strengths, total


@pytest.mark.parametrize("in_slots", [False, True], ids=["attached", "in slots"])
@pytest.mark.parametrize("names", STACKS, ids=" + ".join)
def test_the_changes_of_stacked_files_add_up(
    base: pipeline.Base, weights: Weights, tmp_path: Path, names: tuple[str, ...], in_slots: bool
) -> None:
    strengths, total = stack(weights, tmp_path, names)
    adapters.activate(base, strengths, in_slots)
    check(base, weights, total)
    last = list(strengths)[-1]
    adapters.activate(base, {last: 1.0}, in_slots)
    adapters.activate(base, strengths, in_slots)
    check(base, weights, total)
    adapters.activate(base, {}, in_slots)
    check(base, weights, {}, 1e-6)


@pytest.mark.parametrize(
    ("names", "in_slots"),
    [
        (("LoHa with norms", "differences", "DoRA, PEFT"), False),
        (("DoRA with biases", "extracted"), True),
    ],
    ids=["attached", "in slots"],
)
@pytest.mark.parametrize("mode", ["group offload", "one model at a time"])
def test_every_format_works_in_the_memory_modes(
    base: pipeline.Base,
    weights: Weights,
    tmp_path: Path,
    mode: str,
    names: tuple[str, ...],
    in_slots: bool,
) -> None:
    strengths, total = stack(weights, tmp_path, names)
    base.memory.set_mode(mode, 0)
    try:
        adapters.activate(base, strengths, in_slots)
        check(base, weights, total)
        adapters.activate(base, {}, in_slots)
        check(base, weights, {}, 1e-6)
    finally:
        base.memory.set_mode("all on GPU", 0)


def test_every_format_works_on_a_base_in_eight_bits(tiny_base: Path, tmp_path: Path) -> None:
    loaded = pipeline.load(tiny_base, "fp8")
    scales = dict(loaded.pipeline.transformer.named_buffers())
    rounded = {
        name: value.detach().float().double().numpy()
        * float(scales.get(name.replace(".weight", ".scale"), 1))
        for name, value in loaded.pipeline.transformer.named_parameters()
    }
    for name in ("DoRA with biases", "LoKr, first", "LoHa with norms", "differences"):
        strengths, total = stack(rounded, tmp_path, (name,))
        for in_slots in (False, True):
            adapters.activate(loaded, strengths, in_slots)
            # bfloat16 has 8 bits of precision.
            check(loaded, rounded, total, 2e-2)


def test_skipped_tensors_for_the_text_encoder_are_a_note_in_the_report(
    weights: Weights, tmp_path: Path
) -> None:
    name = "LoRA with tensors for the text encoder"
    path = FORMATS[name][1](weights, Draw()).save(tmp_path / "lora.safetensors")
    (note,) = checkpoints.notes(path, [path])
    assert "2 of 23 tensors of lora.safetensors are for the text encoder" in note
    assert "lora_te_model_layers_0_mlp_up_proj" in note and "not used" in note
    plain = FORMATS["LoRA, diffusers"][1](weights, Draw()).save(tmp_path / "plain.safetensors")
    assert checkpoints.notes(plain, [plain]) == ()
    assert checkpoints.notes(tmp_path / "gone.safetensors", []) == ()


def test_the_alpha_is_read_from_the_folder_that_peft_saves(
    tiny_base: Path, base: pipeline.Base, weights: Weights, tmp_path: Path
) -> None:
    from diffusers import QwenImageTransformer2DModel
    from peft import LoraConfig, get_peft_model

    transformer = QwenImageTransformer2DModel.from_pretrained(tiny_base, subfolder="transformer")
    config = LoraConfig(
        r=4, lora_alpha=6, use_dora=True, target_modules=["to_q"], init_lora_weights=False
    )
    torch.manual_seed(0)
    get_peft_model(transformer, config).save_pretrained(tmp_path)
    deltas: Weights = {}
    for block in ("transformer_blocks.0", "transformer_blocks.1"):
        layer = transformer.get_submodule(f"{block}.attn.to_q")
        up, down, magnitude = (
            value.detach().double().numpy()
            for value in (
                layer.lora_B["default"].weight,
                layer.lora_A["default"].weight,
                layer.lora_magnitude_vector["default"].weight,
            )
        )
        name = f"{block}.attn.to_q.weight"
        deltas[name] = lora_formats.decomposed_weight(weights[name], 6 / 4 * up @ down, magnitude)
        assert np.abs(deltas[name]).max() > 0.01
    adapters.activate(base, {tmp_path / "adapter_model.safetensors": 0.5})
    check(base, weights, scaled(deltas, 0.5))


def test_every_format_may_be_uploaded(weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    for name, (_, make) in FORMATS.items():
        make(weights, Draw()).save(path)
        problem = model_volume.lora_problem([path.read_bytes()], path.stat().st_size)
        assert problem is None, name
    for name in ("a whole model", "Wan"):
        LoraFile(REFUSED[name]).save(path)
        assert model_volume.lora_problem([path.read_bytes()], path.stat().st_size), name
