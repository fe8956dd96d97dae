"""Compiled blocks stay compiled when checkpoints are switched and sizes change."""

import functools
import logging
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support import tiny_qwen
from support.lora_formats import FORMATS, LAYERS, Draw, Weights
from support.paths import EXAMPLES

from artmancer.options import Sampling
from artmancer.progress import no_progress
from artmancer.qwen import adapters, checkpoints, pipeline, sampler, speed
from artmancer.qwen.editor import QwenEditor

PHOTO = Image.open(EXAMPLES / "coffee.png").convert("RGB")
STRENGTHS = (1.0, 0.6)


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> pipeline.Base:
    return tiny_qwen.load(tiny_base)


@pytest.fixture(scope="module")
def plain(tiny_base: Path) -> pipeline.Base:
    """A second base, whose blocks are never compiled."""
    return tiny_qwen.load(tiny_base)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Count the graphs that torch compiles, in `frame_count`, and run them as they are."""
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    yield counter
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def weights(plain: pipeline.Base) -> Weights:
    return {
        name: value.detach().double().numpy().copy()
        for name, value in plain.pipeline.transformer.named_parameters()
    }


def save_format(folder: Path, name: str, weights: Weights, seed: int) -> Path:
    """Write a file in one of the formats; return its path."""
    return FORMATS[name][1](weights, Draw(seed)).save(folder / f"{name} {seed}.safetensors")


def save_lora(folder: Path, rank: int, weights: Weights) -> Path:
    """Write a LoRA of this rank for the layers that all formats change; return its path."""
    random = torch.Generator().manual_seed(rank)
    tensors = {}
    for layer in LAYERS:
        height, width = weights[f"{layer}.weight"].shape
        tensors[f"{layer}.lora_A.weight"] = torch.randn(rank, width, generator=random) * 0.1
        tensors[f"{layer}.lora_B.weight"] = torch.randn(height, rank, generator=random) * 0.1
    path = folder / f"rank {rank}.safetensors"
    save_file(tensors, path)
    return path


def sampled(
    base: pipeline.Base, height: int = 64, width: int = 64, prompt: str = "x", conditions: int = 1
) -> torch.Tensor:
    """Sample one small image in one step with guidance."""
    images = [PHOTO.resize((width, height))] * conditions
    request = sampler.SampleRequest(prompt, images, height, width, seed=0)
    return sampler.sample(base, request, Sampling(steps=1), no_progress)


def compiled(base: pipeline.Base, strengths: dict[Path, float]) -> torch.Tensor:
    adapters.activate(base, strengths, in_slots=True)
    with speed.settings(base, Sampling(compile=True)):
        return sampled(base)


def eager(base: pipeline.Base, strengths: dict[Path, float]) -> torch.Tensor:
    adapters.activate(base, strengths)
    return sampled(base)


@pytest.mark.slow
def test_switching_among_five_loras_and_two_accelerations_compiles_nothing_anew(
    base: pipeline.Base, plain: pipeline.Base, weights: Weights, tmp_path: Path, graphs: Any
) -> None:
    loras = [
        save_lora(tmp_path, 8, weights),
        save_format(tmp_path, "LoRA, PEFT with biases", weights, 1),
        save_format(tmp_path, "DoRA, diffusers", weights, 2),
        save_lora(tmp_path, 16, weights),
        save_format(tmp_path, "LoRA, kohya and musubi-tuner", weights, 3),
    ]
    accelerations = [save_format(tmp_path, "LoRA, Lightning", weights, seed) for seed in (4, 5)]
    images = []
    for switch in range(21):
        strengths = {loras[switch % 5]: STRENGTHS[switch % 2]}
        if switch % 3:
            strengths[accelerations[switch % 3 - 1]] = 1.0
        image = compiled(base, strengths)
        assert graphs.frame_count == 1
        assert (image - eager(plain, strengths)).abs().max() <= 1e-4
        images.append(image)
    assert min((one - two).abs().max() for one, two in pairwise(images)) > 1e-3
    compiled(base, {})
    assert graphs.frame_count == 1


@pytest.mark.slow
def test_ten_sizes_need_at_most_three_graphs(base: pipeline.Base, graphs: Any) -> None:
    """Begin with as many tokens as the transformer is wide, which torch could mistake for it."""
    sizes = [(64, 64), (96, 96), (128, 96), (96, 160), (64, 256), (160, 160), (112, 96), (48, 48)]
    for index, (height, width) in enumerate([*sizes, (192, 128), (80, 208)]):
        settings = {"prompt": "longer " * index, "conditions": 3 - index % 3}
        adapters.activate(base, {})
        expected = sampled(base, height, width, **settings)
        with speed.settings(base, Sampling(compile=True)):
            image = sampled(base, height, width, **settings)
        assert (image - expected).abs().max() <= 1e-4
    assert 1 <= graphs.frame_count <= 3


@pytest.mark.slow
def test_a_larger_rank_than_any_before_compiles_once(
    tiny_base: Path, weights: Weights, tmp_path: Path, graphs: Any
) -> None:
    loaded = tiny_qwen.load(tiny_base)
    small, large = (save_lora(tmp_path, rank, weights) for rank in (8, 40))
    fresh = {path: eager(tiny_qwen.load(tiny_base), {path: 1.0}) for path in (small, large)}
    # Beyond this number torch compiles nothing more, where it is not raised.
    config: Any = torch._dynamo.config
    with config.patch(recompile_limit=1):
        for path, count in ((small, 1), (large, 2), (small, 2), (large, 2)):
            assert (compiled(loaded, {path: 1.0}) - fresh[path]).abs().max() <= 1e-4
            assert graphs.frame_count == count
    # Slots that were left are as large as before.
    assert (eager(loaded, {small: 1.0}) - fresh[small]).abs().max() <= 1e-5
    assert (compiled(loaded, {small: 1.0}) - fresh[small]).abs().max() <= 1e-4
    assert graphs.frame_count == 2


@pytest.mark.slow
def test_a_file_that_fits_no_slot_runs_without_compilation(
    base: pipeline.Base,
    plain: pipeline.Base,
    weights: Weights,
    tmp_path: Path,
    graphs: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lora = save_lora(tmp_path, 8, weights)
    lokr = save_format(tmp_path, "LoKr, both factors decomposed", weights, 1)
    norms = save_format(tmp_path, "LoHa with norms", weights, 2)
    first = compiled(base, {lora: 1.0})
    for path in (lokr, norms):
        strengths = {path: 0.8, lora: 1.0}
        with caplog.at_level(logging.WARNING):
            image = compiled(base, strengths)
        assert f"With {path.name} and {lora.name} the blocks are not compiled" in caplog.text
        assert (image - eager(plain, strengths)).abs().max() <= 1e-4
    assert torch.equal(compiled(base, {lora: 1.0}), first)
    assert graphs.frame_count == 1


@pytest.mark.slow
def test_an_edit_with_compilation_uses_slots(
    base: pipeline.Base, plain: pipeline.Base, loras: list[Path], graphs: Any
) -> None:
    from artmancer.conditions import prepare
    from artmancer.edit import edit

    photo = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 64, 64)
    mask[:, 24:40, 24:40] = 1
    conditions = prepare(photo, mask, feather=4)
    for checkpoint, acceleration in ((0, None), (1, 3), (2, 3), (0, None)):
        images = [
            edit(
                QwenEditor(
                    loaded,
                    "removal",
                    checkpoints.read(loras[checkpoint]),
                    acceleration=loras[acceleration] if acceleration else None,
                ),
                conditions,
                sampling=Sampling(steps=1, compile=loaded is base),
            ).image
            for loaded in (base, plain)
        ]
        assert (images[0] - images[1]).abs().max() <= 1e-4
        assert graphs.frame_count == 1


def test_a_file_that_changed_is_read_anew_into_the_slots(
    base: pipeline.Base, plain: pipeline.Base, weights: Weights, tmp_path: Path
) -> None:
    path = tmp_path / "changing.safetensors"
    for rank in (8, 24):
        save_lora(tmp_path, rank, weights).replace(path)
        adapters.activate(base, {path: 1.0}, in_slots=True)
        expected = eager(plain, {path: 1.0})
        assert (sampled(base) - expected).abs().max() <= 1e-5
    path.unlink()
    adapters.activate(base, {}, in_slots=True)
    adapters.activate(base, {path: 1.0}, in_slots=True)
    assert (sampled(base) - expected).abs().max() <= 1e-5
