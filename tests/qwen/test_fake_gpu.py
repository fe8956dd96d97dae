"""Our code at the real size on a GPU that is not there: devices, types, shapes, operations, memory.

Fake tensors have no data, so some tests leave out a part, which their names tell. Not here: kernels
of libraries that are not installed.

All 60 blocks of the transformer run where the weights of all have to fit. In other tests there are
BLOCKS, as their operations and activations are alike; and few layers of the text encoder, where its
memory is not measured.
"""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers", reason="diffusers 0.42 needs Python 3.11")

import torch
from diffusers.hooks import group_offloading
from diffusers.hooks.first_block_cache import FBCHeadBlockHook
from diffusers.hooks.group_offloading import ModuleGroup
from diffusers.hooks.sea_cache import SeaCacheSharedState
from PIL import Image
from support import real_size
from support.fake_gpu import DEVICE, FakeGpu, FakeOffloader
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from artmancer.options import MEMORY_MODES, Sampling
from artmancer.progress import no_progress
from artmancer.qwen import adapters, eight_bits, memory, pipeline, sampler, speed

pytestmark = pytest.mark.slow

GB = 2**30
BLOCKS = 4
ONE_STEP = Sampling(steps=1, cfg=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of 2509, whole."""
    return real_size.save_base(tmp_path_factory.mktemp("real") / "2509")


@pytest.fixture(scope="module")
def whole_gpu() -> FakeGpu:
    return FakeGpu()


@pytest.fixture
def gpu(whole_gpu: FakeGpu) -> Iterator[FakeGpu]:
    with whole_gpu:
        yield whole_gpu


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, whole_gpu: FakeGpu) -> pipeline.Base:
    folder = tmp_path_factory.mktemp("real") / "2509"
    return load(real_size.save_base(folder, blocks=BLOCKS, few_layers=True), whole_gpu)


@pytest.fixture(scope="module")
def loaded_with_encoder(
    tmp_path_factory: pytest.TempPathFactory, whole_gpu: FakeGpu
) -> pipeline.Base:
    folder = tmp_path_factory.mktemp("real") / "2509"
    return load(real_size.save_base(folder, blocks=BLOCKS), whole_gpu)


@pytest.fixture
def base(loaded: pipeline.Base, gpu: FakeGpu) -> Iterator[pipeline.Base]:
    """2509 with BLOCKS blocks and few layers of the text encoder in bf16 on a GPU of 80 GB."""
    yield loaded
    clear(loaded, gpu)


@pytest.fixture
def with_encoder(loaded_with_encoder: pipeline.Base, gpu: FakeGpu) -> Iterator[pipeline.Base]:
    """The same with the whole text encoder."""
    yield loaded_with_encoder
    clear(loaded_with_encoder, gpu)


def clear(base: pipeline.Base, gpu: FakeGpu) -> None:
    """Take the LoRAs from a base, and the base from the GPU."""
    adapters.activate(base, {})
    base.memory.offloader = FakeOffloader(gpu, 80 * GB)
    for part in base.memory.parts.values():
        base.memory.offloader.unload(part)


def load(folder: Path, gpu: FakeGpu, gigabytes: int = 80) -> pipeline.Base:
    return pipeline.load(folder, "bf16", FakeOffloader(gpu, gigabytes * GB))


def edit(
    base: pipeline.Base,
    side: int = 512,
    conditions: int = 1,
    sampling: Sampling = ONE_STEP,
    progress: Any = no_progress,
) -> torch.Tensor:
    """Edit a square image of this side, with this number of conditioning images."""
    images = [Image.new("RGB", (side, side), (shade, 99, 1)) for shade in range(conditions)]
    request = sampler.SampleRequest("remove the lamp", images, side, side, seed=0)
    base.memory.set_mode("auto", request.pixels(sampling.condition_pixels))
    with speed.settings(base, sampling):
        return sampler.sample(base, request, sampling, progress)


def token_counts(base: pipeline.Base) -> list[int]:
    """Collect the number of tokens of each pass of the transformer."""
    counts: list[int] = []

    def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        tokens = kwargs["hidden_states"], kwargs["encoder_hidden_states"]
        counts.append(sum(tensor.shape[1] for tensor in tokens))

    block: nn.Module = base.pipeline.transformer.transformer_blocks[0]
    block.register_forward_pre_hook(count, with_kwargs=True)
    return counts


def check_operations(counter: FlopCounterMode, counts: list[int]) -> None:
    """Compare with 13.6 GFLOP a token in the linear layers of 60 blocks, and attention over vectors
    of 3,072.
    """
    expected = sum(13.6e9 * count + 60 * 4 * count**2 * 3072 for count in counts) * BLOCKS / 60
    counted = sum(counter.get_flop_counts()["QwenImageTransformer2DModel"].values())
    assert counted == pytest.approx(expected, rel=0.02)


def test_guidance_with_2511_takes_the_operations_of_two_passes(
    gpu: FakeGpu, tmp_path: Path
) -> None:
    folder = real_size.save_base(tmp_path / "2511", "2511", blocks=BLOCKS, few_layers=True)
    base = load(folder, gpu)
    counts = token_counts(base)
    with FlopCounterMode(display=False) as counter:
        edit(base, sampling=Sampling(steps=1, cfg=4.0))
    assert len(counts) == 2
    check_operations(counter, counts)


def peaks_of_an_edit(
    base: pipeline.Base, gpu: FakeGpu, side: int, conditions: int
) -> dict[str, int]:
    """Return the bytes of the activations by stage: the most at once beside the weights."""
    peaks = {"encoding": 0, "sampling": 0, "decoding": 0}
    stage = "encoding"

    def note(done: int, total: int, new: str, latents: Any = None) -> None:
        nonlocal stage
        peaks[stage] = max(peaks[stage], gpu.peak - gpu.memory)
        gpu.reset_peak()
        stage = new if new in peaks else stage

    for part in memory.PARTS:
        base.memory.load_part(part, 0, no_progress)
    # Models of earlier tests would otherwise leave the device during the edit.
    gc.collect()
    gpu.reset_peak()
    edit(base, side, conditions, progress=note)
    note(0, 0, "")
    return peaks


def check_estimates(peaks: dict[str, int], side: int, conditions: int) -> None:
    """Compare the estimates of memory with the bytes of all tensors that lived at once: the VAE
    works on one image at a time, the transformer on all.
    """
    areas = {"text_encoder": 0, "vae": side**2, "transformer": (1 + conditions) * side**2}
    estimates = {name: memory.activation_bytes(name, area) for name, area in areas.items()}
    assert 0 < peaks["encoding"] <= max(estimates["text_encoder"], estimates["vae"])
    assert 0 < peaks["sampling"] <= estimates["transformer"]
    assert 0 < peaks["decoding"] <= estimates["vae"]


def test_an_edit_with_three_conditions_takes_the_operations_and_the_memory_expected(
    with_encoder: pipeline.Base, gpu: FakeGpu
) -> None:
    counts = token_counts(with_encoder)
    with FlopCounterMode(display=False) as counter:
        peaks = peaks_of_an_edit(with_encoder, gpu, 512, 3)
    # The result and three conditions have 1,024 tokens each; the prompt has the rest.
    assert 4 * 1024 < counts[0] < 5 * 1024
    check_operations(counter, counts)
    check_estimates(peaks, 512, 3)


def test_an_edit_of_1024_pixels_takes_the_memory_expected(
    with_encoder: pipeline.Base, gpu: FakeGpu
) -> None:
    check_estimates(peaks_of_an_edit(with_encoder, gpu, 1024, 1), 1024, 1)


def check_card(base: pipeline.Base, gpu: FakeGpu, gigabytes: int, mode: str) -> None:
    """Edit on a card of this size, of which CUDA takes one gigabyte."""
    base.memory.offloader = FakeOffloader(gpu, (gigabytes - 1) * GB)
    gpu.reset_peak()
    image = edit(base)
    assert (image.shape, image.device.type) == ((1, 512, 512, 3), "cpu")
    for part in base.memory.parts.values():
        base.memory.offloader.unload(part)
    assert base.memory.mode == mode
    assert gpu.peak <= (gigabytes - 1) * GB


def activate_lora(base: pipeline.Base, folder: Path) -> None:
    file = folder / "lora.safetensors"
    real_size.save_zeros(file, real_size.lora(base.pipeline.transformer))
    adapters.activate(base, {file: 1.0})


def test_bf16_with_a_lora_fits_on_cards_of_48_and_80_gb(
    folder: Path, base: pipeline.Base, gpu: FakeGpu, tmp_path: Path
) -> None:
    whole = load(folder, gpu)
    whole.cache = base.cache
    activate_lora(whole, tmp_path)
    check_card(whole, gpu, 48, MEMORY_MODES[1])
    check_card(whole, gpu, 80, MEMORY_MODES[0])


def test_fp8_with_a_lora_fits_on_cards_of_24_and_40_gb(
    folder: Path, base: pipeline.Base, gpu: FakeGpu, tmp_path: Path
) -> None:
    small = load(folder, gpu)
    small.cache = base.cache
    transformer = small.pipeline.transformer
    gpu.to_fake(transformer)
    eight_bits.round_blocks(transformer, torch.bfloat16, no_progress)
    # 20.4 billion weights: the blocks' linear layers have a byte for each, the others two.
    assert memory.model_bytes(transformer) == pytest.approx(20.5e9, rel=0.01)
    activate_lora(small, tmp_path)
    check_card(small, gpu, 24, MEMORY_MODES[1])
    check_card(small, gpu, 40, MEMORY_MODES[0])


def test_cudnn_runs_on_the_gpu_but_for_its_comparison_with_the_default(
    base: pipeline.Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "_attention_error", lambda base: 0.0)
    assert edit(base, sampling=Sampling(steps=1, cfg=1.0, attention="cudnn")).shape[1] == 512


def test_the_step_cache_taylor_runs_on_the_gpu(base: pipeline.Base) -> None:
    cached = Sampling(steps=4, cfg=1.0, step_cache=0.5, step_cache_kind="taylor")
    assert edit(base, sampling=cached).shape[1] == 512


CACHES_THAT_COMPARE: dict[str, tuple[type, str, Any]] = {
    "first block": (
        FBCHeadBlockHook,
        "_should_compute_remaining_blocks",
        lambda hook, _: hook.state_manager.get_state().head_block_residual is None,
    ),
    "sea": (
        SeaCacheSharedState,
        "resolve_gate",
        lambda _, state, metadata, *__: metadata.step_index == 0,
    ),
}
"""Methods of step caches that compare values, and functions in their place: only the first step is
computed, as if the values of all were equal.
"""


@pytest.mark.parametrize("kind", CACHES_THAT_COMPARE)
def test_a_step_cache_runs_on_the_gpu_but_for_its_comparison_of_values(
    base: pipeline.Base, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(*CACHES_THAT_COMPARE[kind])
    blocks = base.pipeline.transformer.transformer_blocks
    calls: list[nn.Module] = []
    blocks[-1].img_mlp.register_forward_hook(lambda module, *_: calls.append(module))
    cached = Sampling(steps=3, cfg=1.0, step_cache=0.5, step_cache_kind=kind)
    assert edit(base, sampling=cached).shape[1] == 512
    assert len(calls) == 1


def test_a_cancel_while_weights_move_leaves_nothing_on_the_gpu(
    base: pipeline.Base, gpu: FakeGpu
) -> None:
    def cancel(done: int, total: int, stage: str, latents: Any = None) -> None:
        if stage.startswith("moving QwenImageTransformer") and done > 1_000:
            raise InterruptedError

    before = gpu.memory
    with pytest.raises(InterruptedError):
        base.memory.load_part("transformer", 0, cancel)
    gc.collect()
    assert gpu.memory <= before
    assert edit(base).shape == (1, 512, 512, 3)


def test_group_offload_with_a_lora_runs_on_the_gpu_but_for_streams_and_pinned_memory(
    base: pipeline.Base, gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = group_offloading.apply_group_offloading
    sent: list[int] = []

    def apply_without_streams(model: nn.Module, device: torch.device, **options: Any) -> None:
        apply(model, device, **{**options, "use_stream": False, "low_cpu_mem_usage": False})

    def send(group: ModuleGroup) -> None:
        sent.append(sum(tensor.nbytes for tensor in gpu.place(tensors(group), DEVICE)))

    def tensors(group: ModuleGroup) -> Iterator[torch.Tensor]:
        for module in group.modules:
            yield from (*module.parameters(), *module.buffers())
        yield from (*group.parameters, *group.buffers)

    monkeypatch.setattr(group_offloading, "apply_group_offloading", apply_without_streams)
    monkeypatch.setattr(ModuleGroup, "onload_", send)
    monkeypatch.setattr(
        ModuleGroup, "offload_", lambda group: gpu.place(tensors(group), torch.device("cpu"))
    )
    activate_lora(base, tmp_path)
    transformer = base.pipeline.transformer
    for streamed in (transformer, base.pipeline.text_encoder):
        gpu.to_fake(streamed)
    # The card holds the VAE and the activations. The prompt is encoded already.
    edit(base)
    base.memory.offloader = FakeOffloader(gpu, 4 * GB)
    image = edit(base)
    assert base.memory.mode == MEMORY_MODES[2]
    base.memory.set_mode(MEMORY_MODES[0], 0)
    assert (image.shape, image.device.type) == ((1, 512, 512, 3), "cpu")
    blocks = [memory.model_bytes(block) for block in transformer.transformer_blocks]
    # diffusers sends what is outside the blocks twice, 0.2 % of all 60.
    assert sorted(sent[1:]) == sorted(blocks)
    assert sent[0] == 2 * (memory.model_bytes(transformer) - sum(blocks))
    assert {weight.device.type for weight in transformer.parameters()} == {"cpu"}
