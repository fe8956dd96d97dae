"""Weights in 8 bits: their rounding, their files, and which precision "auto" chooses."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from support import tiny_qwen
from support.paths import EXAMPLES

from artmancer.offload import Offloader
from artmancer.options import Sampling
from artmancer.progress import no_progress
from artmancer.qwen import adapters, eight_bits, pipeline, sampler

IMAGE = Image.open(EXAMPLES / "coffee.png").convert("RGB").resize((96, 96))
GB = 2**30


def sampled(base: pipeline.Base) -> torch.Tensor:
    request = sampler.SampleRequest("x", [IMAGE], height=96, width=96, seed=0)
    return sampler.sample(base, request, Sampling(steps=2), no_progress)


def nearest_e4m3(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round to the nearest number of 4 exponent and 3 fraction bits, ties to even ("FP8 Formats for
    Deep Learning", Micikevicius et al. 2022).
    """
    with np.errstate(divide="ignore"):
        exponent = np.maximum(np.floor(np.log2(np.abs(values))), -6)
    step = 2.0 ** (exponent - 3)
    return np.asarray(np.round(values / step) * step)


@pytest.mark.parametrize("deviation", [1e-4, 0.02, 3.0, 2000.0])
def test_a_weight_is_the_nearest_multiple_of_its_layers_scale(deviation: float) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 32)
    with torch.no_grad():
        layer.weight.normal_(0, deviation)
    exact = layer.weight.detach().double().numpy()
    rounded = eight_bits.rounded(layer, torch.float32)
    # The smallest power of two that brings the largest weight below the largest number, 448.
    scale = 2.0 ** np.ceil(np.log2(np.abs(exact).max() / 448))
    assert rounded.scale == scale
    expected = nearest_e4m3(exact / scale) * scale
    assert np.array_equal(rounded.dequantized().detach().double().numpy(), expected)
    error = np.linalg.norm(expected - exact) / np.linalg.norm(exact)
    # Half a step of 3 fraction bits, on average.
    assert error < 0.03


def test_a_layer_of_zeros_stays_zero() -> None:
    layer = torch.nn.Linear(4, 4, bias=False)
    torch.nn.init.zeros_(layer.weight)
    result = eight_bits.rounded(layer, torch.bfloat16)(torch.ones(1, 4).bfloat16())
    assert not result.any()


def test_the_blocks_are_stored_in_eight_bits_and_computed_in_sixteen(
    tiny_base: Path, loras: list[Path]
) -> None:
    stored = pipeline.load(tiny_base, "fp8")
    weight = stored.pipeline.transformer.transformer_blocks[0].attn.to_q.weight
    assert weight.dtype == torch.float8_e4m3fn
    plain = pipeline.load(tiny_base, "bf16")
    for name, module in stored.pipeline.transformer.named_modules():
        if isinstance(module, eight_bits.EightBitLinear):
            value = module.weight.float() * module.scale.float()
            plain.pipeline.transformer.get_submodule(name).weight.data = value.bfloat16()
    assert torch.equal(sampled(stored), sampled(plain))
    for base in (stored, plain):
        adapters.activate(base, {loras[0]: 1.0})
    assert (sampled(stored) - sampled(plain)).abs().max() <= 1e-2


def test_small_weights_are_more_exact_with_a_scale() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(256, 256, bias=False)
    torch.nn.init.normal_(layer.weight, 0, 0.005)
    exact = layer.weight.detach()
    with_scale = eight_bits.rounded(layer, torch.float32).dequantized()
    without = exact.to(torch.float8_e4m3fn).float()
    assert (with_scale - exact).norm() < 0.5 * (without - exact).norm()


def save_in_eight_bits(base: Path, folder: Path, scale_key: str) -> Path:
    """Write a base whose transformer has scaled 8-bit weights, and a marker as ComfyUI's files have
    it; return the folder.
    """
    tiny_qwen.copy_base(base, folder)
    (file,) = (folder / "transformer").glob("*.safetensors")
    weights = load_file(file)
    for name in [name for name in weights if name.startswith("transformer_blocks.")]:
        value = weights[name]
        if name.endswith(".weight") and value.ndim == 2:
            scale = value.abs().amax() / 448
            weights[name] = (value / scale).to(torch.float8_e4m3fn)
            weights[name.replace("weight", scale_key)] = scale
    weights["scaled_fp8"] = torch.empty(2).to(torch.float8_e4m3fn)
    save_file(weights, file)
    return folder


@pytest.mark.parametrize("scale_key", ["scale_weight", "weight_scale"])
def test_files_in_eight_bits_are_loaded_with_their_scales(
    tiny_base: Path, tmp_path: Path, scale_key: str
) -> None:
    folder = save_in_eight_bits(tiny_base, tmp_path / "base", scale_key)
    stored = pipeline.load(folder)
    weight = stored.pipeline.transformer.transformer_blocks[0].attn.to_q.weight
    assert weight.dtype == torch.float8_e4m3fn
    assert stored.notes == ("Precision fp8: the base's files have it.",)
    exact = pipeline.load(tiny_base, "bf16")
    # The rounded weights change the image a little, and without scales it would be another one.
    assert (sampled(stored) - sampled(exact)).abs().mean() < 0.01
    as_bf16 = pipeline.load(folder, "bf16")
    restored = as_bf16.pipeline.transformer.transformer_blocks[0].attn.to_q.weight
    assert restored.dtype == torch.bfloat16
    assert (sampled(as_bf16) - sampled(stored)).abs().max() <= 1e-2


def test_a_file_that_the_loader_does_not_use_is_not_read(tiny_base: Path, tmp_path: Path) -> None:
    folder = save_in_eight_bits(tiny_base, tmp_path / "base", "scale_weight")
    expected = sampled(pipeline.load(folder))
    (file,) = (folder / "transformer").glob("*.safetensors")
    stale = {name: torch.zeros_like(value) for name, value in load_file(file).items()}
    save_file(stale, folder / "transformer" / "old.safetensors")
    assert torch.equal(sampled(pipeline.load(folder)), expected)


@pytest.mark.slow
def test_a_block_in_eight_bits_is_one_graph(tiny_base: Path) -> None:
    base = pipeline.load(tiny_base, "fp8")
    compiled = [0]

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        compiled[0] += 1
        return graph.forward

    torch._dynamo.reset()
    block = base.pipeline.transformer.transformer_blocks[0]
    block.compile(backend=count, fullgraph=True)
    sampled(base)
    # The prompt and the negative prompt have other lengths, which the second graph takes both.
    assert 1 <= compiled[0] <= 2


def save_headers(folder: Path, bf16_bytes: int) -> Path:
    """Write a base folder with nothing but a transformer's weights of this size, all zeros."""
    for part in ("transformer", "text_encoder", "vae"):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text("{}")
    entry = {"dtype": "BF16", "shape": [bf16_bytes // 2], "data_offsets": [0, bf16_bytes]}
    header = json.dumps({"transformer_blocks.0.attn.to_q.weight": entry}).encode()
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(header)) + header)
        # A hole, which takes no room.
        opened.truncate(8 + len(header) + bf16_bytes)
    return folder


class Gpu(Offloader):
    """An offloader that stands for a GPU of this size, in bytes."""

    def __init__(self, size: int) -> None:
        self.device = torch.device("cuda", 0)
        self.size = size

    def total_memory(self) -> int:
        return self.size


@pytest.mark.parametrize(
    ("gigabytes", "precision"),
    [(8, "fp8"), (24, "fp8"), (32, "fp8"), (40, "bf16"), (48, "bf16"), (80, "bf16")],
)
def test_auto_takes_bf16_where_the_transformer_fits_and_else_fp8(
    tmp_path: Path, gigabytes: int, precision: str
) -> None:
    folder = save_headers(tmp_path / "base", round(38.1 * GB))
    choice = pipeline.precision_for(folder, "auto", Gpu(gigabytes * GB))
    assert choice.name == precision
    if precision == "fp8":
        assert choice.notes == (
            "Precision fp8: in bf16 the transformer needs 39.4 GB with its activations, and the "
            f"GPU has {gigabytes}.0 GB.",
        )
    else:
        assert choice.notes == ()


def test_auto_is_fp32_on_the_cpu_and_a_chosen_precision_is_kept(tmp_path: Path) -> None:
    folder = save_headers(tmp_path / "base", 38 * GB)
    assert pipeline.precision_for(folder, "auto", Offloader("cpu")).name == "fp32"
    assert pipeline.precision_for(folder, "bf16", Gpu(8 * GB)) == ("bf16", ())
    assert pipeline.precision_for(folder, "fp8", Offloader("cpu")) == ("fp8", ())
