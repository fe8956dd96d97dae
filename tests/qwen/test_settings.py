"""The settings of the Qwen editor: memory modes, precision, speed; none affects a later edit."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from support import tiny_qwen
from support.paths import EXAMPLES

from artmancer.conditions import Conditions, prepare
from artmancer.edit import edit
from artmancer.errors import ArtMancerError
from artmancer.offload import Offloader, move_model
from artmancer.options import MEMORY_MODES, Sampling
from artmancer.progress import no_progress
from artmancer.qwen import adapters, checkpoints, memory, pipeline, sampler, speed
from artmancer.qwen.editor import QwenEditor

IMAGE = Image.open(EXAMPLES / "coffee.png").convert("RGB").resize((96, 96))
GPU_IS_FULL = torch.OutOfMemoryError("CUDA out of memory.")


@pytest.fixture
def base(tiny_base: Path) -> pipeline.Base:
    return tiny_qwen.load(tiny_base)


def sampled(
    base: pipeline.Base, changes: dict[str, Any] | None = None, **sampling: Any
) -> torch.Tensor:
    """Sample one small image.

    Parameters
    ----------
    changes : fields of the SampleRequest that differ from the usual
    sampling : fields of Sampling
    """
    fields = {"prompt": "x", "conditions": [IMAGE], "height": 96, "width": 96, "seed": 0}
    request = sampler.SampleRequest(**{**fields, **(changes or {})})
    return sampler.sample(base, request, Sampling(**{"steps": 2, **sampling}), no_progress)


def small_conditions(example: Any) -> Conditions:
    """Return conditions of a quarter of the size, for speed."""
    return prepare(example("coffee")[:, ::4, ::4], example("coffee_mask")[:, ::4, ::4], feather=4)


@contextmanager
def counted(module: Any) -> Iterator[list[int]]:
    """Count the calls of a module: the list grows by one item per call."""
    calls: list[int] = []
    hook = module.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    hook.remove()


@pytest.mark.parametrize("mode", MEMORY_MODES[1:])
def test_every_memory_mode_gives_the_same_image_and_can_be_left(
    base: pipeline.Base, loras: list[Path], mode: str
) -> None:
    expected = sampled(base)
    adapters.activate(base, {loras[0]: 1.0})
    with_lora = sampled(base)
    base.cache.clear()
    base.memory.set_mode(mode, 0)
    assert (sampled(base) - with_lora).abs().max() <= 1e-5
    adapters.activate(base, {loras[1]: 1.0})
    assert not torch.allclose(sampled(base), with_lora)
    adapters.activate(base, {})
    assert (sampled(base) - expected).abs().max() <= 1e-5
    base.memory.set_mode(MEMORY_MODES[0], 0)
    base.cache.clear()
    assert torch.equal(sampled(base), expected)


def test_lora_layers_attached_during_group_offload_are_offloaded_too(
    base: pipeline.Base, loras: list[Path]
) -> None:
    base.memory.set_mode("group offload", 0)
    for lora in loras[:2]:
        adapters.activate(base, {lora: 1.0})
        for block in base.pipeline.transformer.transformer_blocks:
            group = block._diffusers_hook.get_hook("group_offloading").group
            assert group.modules == [block]
    base.memory.set_mode(MEMORY_MODES[0], 0)
    hooks = [
        getattr(layer, "_diffusers_hook", None) for layer in base.pipeline.transformer.modules()
    ]
    assert not any(hook and hook.get_hook("group_offloading") for hook in hooks)


@pytest.mark.parametrize(
    ("total", "available", "limit", "pinned"),
    [
        # The transformer has 100 bytes, and 8 GB stay free.
        (2**40, 100 + 8 * 2**30, None, True),
        (2**40, 99 + 8 * 2**30, None, False),
        (199, 100 + 8 * 2**30, None, False),
        # A container's limit.
        (2**40, 2**40, 99 + 8 * 2**30, False),
    ],
)
def test_group_offload_pins_the_transformer_where_the_memory_allows(
    base: pipeline.Base,
    monkeypatch: pytest.MonkeyPatch,
    total: int,
    available: int,
    limit: int | None,
    pinned: bool,
    tmp_path: Path,
) -> None:
    import psutil
    from diffusers.hooks import group_offloading

    options: dict[int, dict[str, Any]] = {}
    computer = SimpleNamespace(total=total, available=available)
    base.memory.offloader.device = torch.device("cuda", 0)
    monkeypatch.setattr(memory, "model_bytes", lambda model: 100)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: computer)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max" if limit is None else str(limit))
    (tmp_path / "memory.current").write_text("0")
    monkeypatch.setattr(
        group_offloading,
        "apply_group_offloading",
        lambda model, device, **changes: options.update({id(model): changes}),
    )
    base.memory.set_mode("group offload", 0)
    encoder, transformer = (options[id(base.memory.parts[name])] for name in memory.PARTS[:2])
    assert encoder["use_stream"] and transformer["use_stream"]
    # Of the transformer, a block is sent while the one before it runs.
    assert (transformer["offload_type"], transformer["num_blocks_per_group"]) == ("block_level", 1)
    assert transformer["low_cpu_mem_usage"] is not pinned
    # The encoder runs once for a prompt.
    assert encoder["low_cpu_mem_usage"] is True


def test_one_model_at_a_time_unloads_the_other_models(base: pipeline.Base) -> None:
    on_device: set[str] = set()
    most = 0
    names = {id(model): name for name, model in base.memory.parts.items()}

    class Watched(Offloader):
        def load(self, model: torch.nn.Module, activations: int, progress: Any) -> None:
            nonlocal most
            on_device.add(names[id(model)])
            most = max(most, len(on_device))

        def unload(self, model: torch.nn.Module) -> None:
            on_device.discard(names[id(model)])

    base.memory.offloader = Watched("cpu")
    base.memory.set_mode("one model at a time", 0)
    sampled(base)
    assert on_device == {"vae"}
    assert most == 1


@pytest.mark.parametrize(
    ("available", "mode", "note"),
    [
        (None, MEMORY_MODES[0], ""),
        (100, MEMORY_MODES[0], ""),
        (12, MEMORY_MODES[1], "Memory 'one model at a time': 'all on the GPU' needs 32, 12 free."),
        (4, MEMORY_MODES[2], "Memory 'group offload': 'one model at a time' needs 12, 4 free."),
    ],
)
def test_auto_uses_the_first_mode_that_fits(
    base: pipeline.Base,
    monkeypatch: pytest.MonkeyPatch,
    available: int | None,
    mode: str,
    note: str,
) -> None:
    set_sizes(monkeypatch)
    base.memory.offloader.available_memory = lambda: available
    base.memory.set_mode("auto", 0)
    assert base.memory.mode == mode
    assert base.memory.note.replace(" and ", " ").replace(" are ", " ") == note


def set_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each part ten bytes of weights and two of activations."""
    monkeypatch.setattr(memory, "model_bytes", lambda model, device=None: 0 if device else 10)
    monkeypatch.setattr(memory, "activation_bytes", lambda name, pixels: 2)
    monkeypatch.setattr(memory, "gigabytes", str)


def test_auto_stays_leaner_after_it_ran_out_of_memory_at_a_size(
    base: pipeline.Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_sizes(monkeypatch)
    base.memory.offloader.available_memory = lambda: 100
    chosen = []
    base.memory.set_mode("auto", 1000)
    base.memory.ran_out()
    for pixels in (1000, 2000, 999):
        base.memory.set_mode("auto", pixels)
        chosen.append(base.memory.mode)
    assert chosen == [MEMORY_MODES[1], MEMORY_MODES[1], MEMORY_MODES[0]]
    base.memory.set_mode("auto", 1000)
    assert base.memory.note == (
        "Memory 'one model at a time': 'all on the GPU' ran out of memory at this size before."
    )


@pytest.mark.parametrize(
    ("loaded", "part", "free", "unloaded"),
    [
        # The decoder fits beside the transformer.
        (("transformer",), "vae", 5, set()),
        # The text encoder needs room that only the transformer has.
        (("transformer", "vae"), "text_encoder", 10, {"transformer"}),
        # The decoder gives enough room.
        (("text_encoder", "vae"), "transformer", 41, {"vae"}),
        (("text_encoder", "vae"), "transformer", 30, {"text_encoder"}),
        (("text_encoder", "vae"), "transformer", 24, {"text_encoder", "vae"}),
        # Nothing else can go.
        (("text_encoder", "vae"), "transformer", 0, {"text_encoder", "vae"}),
    ],
)
def test_one_model_at_a_time_unloads_only_what_has_to_go(
    base: pipeline.Base,
    monkeypatch: pytest.MonkeyPatch,
    loaded: tuple[str, ...],
    part: str,
    free: int,
    unloaded: set[str],
) -> None:
    sizes = {"text_encoder": 16, "transformer": 40, "vae": 1}
    names = {model: name for name, model in base.memory.parts.items()}

    def size_of(model: torch.nn.Module, device: object = None) -> int:
        return sizes[names[model]] if device is None or names[model] in loaded else 0

    monkeypatch.setattr(memory, "model_bytes", size_of)
    monkeypatch.setattr(memory, "activation_bytes", lambda name, pixels: 2)
    gone: set[str] = set()
    base.memory.offloader.available_memory = lambda: free
    base.memory.offloader.unload = lambda model: gone.add(names[model])
    base.memory.offloader.load = lambda *_: None
    base.memory.mode = MEMORY_MODES[1]
    base.memory.load_part(part, 0, no_progress)
    assert gone == unloaded


def test_room_for_the_vae_is_made_for_one_image_and_for_the_transformer_for_all(
    base: pipeline.Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    areas: dict[str, int] = {}
    monkeypatch.setattr(
        base.memory, "load_part", lambda name, pixels, progress: areas.update({name: pixels})
    )
    sampled(base, {"conditions": [IMAGE] * 3})
    assert areas["vae"] == 96 * 96
    assert areas["transformer"] == 4 * 96 * 96


def test_a_canceled_move_is_undone(base: pipeline.Base) -> None:
    transformer = base.pipeline.transformer
    before = {name: value.data_ptr() for name, value in transformer.state_dict().items()}
    stages: list[str] = []

    def cancel(done: int, total: int, stage: str, latents: object = None) -> None:
        stages.append(stage)
        if len(stages) == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        move_model(transformer, torch.device("meta"), cancel)
    assert stages[0] == "moving QwenImageTransformer2DModel to meta"
    assert {name: value.data_ptr() for name, value in transformer.state_dict().items()} == before


def fail_first(base: pipeline.Base, times: int, error: Exception = GPU_IS_FULL) -> None:
    """Let the next calls of the transformer fail: by default it runs out of GPU memory."""
    forward = base.pipeline.transformer.forward
    remaining = times

    def fail_or_forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal remaining
        if remaining:
            remaining -= 1
            raise error
        return forward(*args, **kwargs)

    base.pipeline.transformer.forward = fail_or_forward


def test_after_out_of_memory_one_retry_uses_a_mode_that_needs_less(
    base: pipeline.Base, example
) -> None:
    conditions = small_conditions(example)
    one_step = Sampling(steps=1)
    expected = edit(QwenEditor(base, "removal"), conditions, sampling=one_step).image
    fail_first(base, 1)
    retried = edit(QwenEditor(base, "removal"), conditions, sampling=one_step).image
    assert torch.equal(retried, expected)
    fail_first(base, 2)
    with pytest.raises(ArtMancerError, match="GPU's memory is too small") as error:
        edit(QwenEditor(base, "removal"), conditions, sampling=one_step)
    assert error.value.code == "out_of_memory"
    assert error.value.status == 507
    later = edit(QwenEditor(base, "removal"), conditions, sampling=one_step).image
    assert torch.equal(later, expected)


def test_a_full_main_memory_is_reported(base: pipeline.Base, example) -> None:
    text = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
    fail_first(base, 1, RuntimeError(text))
    with pytest.raises(ArtMancerError, match="This computer's memory is too small") as error:
        edit(QwenEditor(base, "removal"), small_conditions(example), sampling=Sampling(steps=1))
    assert error.value.code == "out_of_memory"


def test_guidance_runs_its_halves_in_turn_if_a_batch_of_both_needs_too_much_memory(
    base: pipeline.Base, example
) -> None:
    editor = QwenEditor(base, "removal", memory="group offload")
    conditions = small_conditions(example)
    with counted(base.pipeline.transformer.proj_out) as calls:
        together = edit(editor, conditions, sampling=Sampling(steps=1)).image
        assert len(calls) == 1
        fail_first(base, 1)
        apart = edit(editor, conditions, sampling=Sampling(steps=1)).image
    assert len(calls) == 3
    assert (apart - together).abs().max() <= 1e-4


def test_guidance_gives_the_same_image_in_a_batch_and_in_turn(base: pipeline.Base) -> None:
    request = {"prompt": "a much longer prompt than the other"}
    apart = sampled(base, request)
    # This mode uses the batch. Without set_mode there are no hooks.
    base.memory.mode = "group offload"
    with counted(base.pipeline.transformer) as calls:
        together = sampled(base, request)
    assert len(calls) == 2
    assert (apart - together).abs().max() <= 1e-4


def test_rounding_to_eight_bits_reports_progress_and_can_be_canceled(tiny_base: Path) -> None:
    def cancel(done: int, total: int, stage: str, latents: object = None) -> None:
        if (done, stage) == (3, "rounding the transformer to 8 bits"):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        pipeline.load(tiny_base, "fp8", progress=cancel)


def test_an_acceleration_lora_stacks_with_the_checkpoint_and_sets_the_schedule(
    base: pipeline.Base, loras: list[Path], example, samplings: list[Sampling]
) -> None:
    plain = QwenEditor(base, "removal", checkpoints.read(loras[0]))
    fast = QwenEditor(base, "removal", checkpoints.read(loras[0]), acceleration=loras[1])
    conditions = small_conditions(example)
    with counted(base.pipeline.transformer) as calls:
        result = edit(fast, conditions, sampling=Sampling(steps=4))
    assert len(calls) == 4
    assert samplings[0].cfg == 1
    assert not torch.equal(result.image, edit(plain, conditions, sampling=Sampling(steps=4)).image)
    sigmas = sampler._scheduler(base.pipeline.scheduler, 4, 1000, 3.0, torch.device("cpu")).sigmas
    expected = torch.tensor([3 * t / (1 + 2 * t) for t in (1, 0.75, 0.5, 0.25)] + [0])
    assert torch.allclose(sigmas, expected, atol=1e-6)


def test_the_background_is_kept_where_the_mask_is_black(base: pipeline.Base) -> None:
    black = torch.zeros(96, 96)
    white = torch.ones(96, 96)
    vae = base.pipeline.vae
    pixels = base.pipeline.image_processor.preprocess(IMAGE, 96, 96).unsqueeze(2)
    decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample[:, :, 0]
    background = (decoded.permute(0, 2, 3, 1) / 2 + 0.5).clamp(0, 1)
    kept = sampled(base, {"background": (IMAGE, black)})
    assert (kept - background).abs().max() <= 1e-5
    assert torch.equal(sampled(base, {"background": (IMAGE, white)}), sampled(base))


def test_the_background_is_kept_outside_the_feathered_mask(base: pipeline.Base, example) -> None:
    conditions = small_conditions(example)
    editor = QwenEditor(base, "removal")
    kept = edit(editor, conditions, sampling=Sampling(steps=2, keep_background=True)).report
    free = edit(editor, conditions, sampling=Sampling(steps=2)).report
    assert kept.outside_psnr == free.outside_psnr
    assert kept.outside_psnr_raw != free.outside_psnr_raw


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "step_cache"), [("first block", 1.0), ("sea", 1.0), ("taylor", 0.5)]
)
def test_a_step_cache_skips_blocks_and_does_not_affect_later_edits(
    base: pipeline.Base, example, kind: str, step_cache: float
) -> None:
    conditions = small_conditions(example)
    editor = QwenEditor(base, "removal")
    last = base.pipeline.transformer.transformer_blocks[-1].img_mlp
    expected = edit(editor, conditions, sampling=Sampling(steps=6)).image

    def cancel(done: int, total: int, stage: str, latents: object = None) -> None:
        if stage == "sampling" and done == 2:
            raise InterruptedError

    cached = Sampling(steps=6, step_cache=step_cache, step_cache_kind=kind)
    with pytest.raises(InterruptedError):
        edit(editor, conditions, sampling=cached, progress=cancel)
    with counted(last) as calls:
        first = edit(editor, conditions, sampling=cached).image
    # Six steps of two halves would be twelve calls.
    assert len(calls) < 12
    assert (first - expected).abs().max() <= 0.05
    assert torch.equal(edit(editor, conditions, sampling=cached).image, first)
    unused = Sampling(steps=6, step_cache=0.001, step_cache_kind=kind)
    assert torch.equal(edit(editor, conditions, sampling=unused).image, expected)
    assert torch.equal(edit(editor, conditions, sampling=Sampling(steps=6)).image, expected)


@pytest.mark.parametrize(
    ("kind", "step_cache"), [("first block", 1.0), ("sea", 1.0), ("taylor", 0.5)]
)
def test_a_step_cache_is_cleared_between_the_images_of_a_batch(
    base: pipeline.Base, example, kind: str, step_cache: float
) -> None:
    photo, mask = example("coffee")[:, ::4, ::4], example("coffee_mask")[:, ::4, ::4]
    cached = Sampling(steps=5, step_cache=step_cache, step_cache_kind=kind)
    editor = QwenEditor(base, "removal")
    batch = prepare(photo.repeat(2, 1, 1, 1), mask, feather=4)
    single = prepare(photo, mask, feather=4)
    both = edit(editor, batch, seed=4, sampling=cached).image
    alone = edit(editor, single, seed=5, sampling=cached).image
    assert torch.equal(both[1:], alone)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_image_and_are_left(
    base: pipeline.Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = sampled(base)
    # The graphs are torch's, and ours to keep whole. Code for the CPU takes a minute to generate.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    # A threshold so small that the cache skips no block.
    for step_cache in (0.0, 0.01):
        with speed.settings(base, Sampling(compile=True, step_cache=step_cache)):
            assert (sampled(base) - expected).abs().max() <= 1e-4
    with speed.settings(base, Sampling()):
        assert torch.equal(sampled(base), expected)


@pytest.mark.parametrize("attention", ["sage", "cudnn"])
def test_attention_that_cannot_run_is_refused_and_does_not_affect_later_edits(
    base: pipeline.Base, example, attention: str
) -> None:
    """Check a library that is not installed and a kernel that the CPU does not have."""
    conditions = small_conditions(example)
    editor = QwenEditor(base, "removal")
    expected = edit(editor, conditions, sampling=Sampling(steps=1)).image
    with pytest.raises(
        ArtMancerError, match=f"attention '{attention}' cannot be used here"
    ) as error:
        edit(editor, conditions, sampling=Sampling(steps=1, attention=attention, step_cache=0.5))
    assert ". " not in str(error.value)
    assert torch.equal(edit(editor, conditions, sampling=Sampling(steps=1)).image, expected)


def quantized(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Round to 8 bits with a sign, with a scale for each slice along a dimension."""
    scale = values.abs().amax(dim, keepdim=True) / 127
    return (values / scale).round() * scale


def kernel(change: Any) -> Any:
    """Return an attention kernel with `change` made to its query, key, value, each
    [1, n, heads, d].
    """

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        query, key, value = change(query, key, value)
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
        return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value)

    return attention


KERNELS = {
    "8 bits for each token": (
        kernel(lambda q, k, v: (quantized(q, -1), quantized(k, -1), quantized(v, 1))),
        True,
    ),
    "8 bits for each head": (
        kernel(lambda q, k, v: (quantized(q.flatten(1), 1).view_as(q), quantized(k, 1), v)),
        True,
    ),
    "float8": (kernel(lambda *qkv: [x.to(torch.float8_e4m3fn).float() for x in qkv]), True),
    "zeros": (lambda query, key, value: torch.zeros_like(query), False),
    "NaN": (lambda query, key, value: torch.full_like(query, torch.nan), False),
    "no scale": (kernel(lambda q, k, v: (q * q.shape[-1] ** 0.5, k, v)), False),
    "values in reverse": (kernel(lambda q, k, v: (q, k, v.flip(1))), False),
    "without the last block": (kernel(lambda q, k, v: (q, k[:, :-72], v[:, :-72])), False),
    "2 bits": (kernel(lambda q, k, v: (q.sign(), k.sign(), v)), False),
}
"""Attention kernels, and whether they compute attention as 8 bits can."""


@pytest.mark.parametrize("name", KERNELS)
def test_an_attention_kernel_is_refused_if_its_result_is_far_from_the_defaults(
    base: pipeline.Base, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from diffusers.models import attention_dispatch
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    attention, is_right = KERNELS[name]

    def sage(query: Any, key: Any, value: Any, **_: Any) -> torch.Tensor:
        result: torch.Tensor = attention(query, key, value)
        return result

    monkeypatch.setattr(
        attention_dispatch, "_check_attention_backend_requirements", lambda backend: None
    )
    monkeypatch.setitem(_AttentionBackendRegistry._backends, AttentionBackendName.SAGE, sage)
    if is_right:
        expected = sampled(base)
        with speed.settings(base, Sampling(attention="sage")):
            image = sampled(base)
        assert 0 < (image - expected).abs().max() <= 0.05
    else:
        with (
            pytest.raises(ArtMancerError, match="'sage' cannot be used here") as error,
            speed.settings(base, Sampling(attention="sage")),
        ):
            pass
        assert error.value.code == "invalid_request"
        assert ". " not in str(error.value)


@pytest.mark.slow
def test_editors_on_one_base_do_not_change_each_others_images(
    base: pipeline.Base, loras: list[Path], example
) -> None:
    conditions = small_conditions(example)
    editors = [
        QwenEditor(base, "removal", checkpoints.read(loras[0])),
        QwenEditor(base, "removal", checkpoints.read(loras[1]), 0.5),
        QwenEditor(base, "removal", acceleration=loras[2], memory="group offload"),
    ]
    samplings = [Sampling(steps=2), Sampling(steps=3, step_cache=1.0), Sampling(steps=2)]

    def edited(index: int) -> torch.Tensor:
        return edit(editors[index], conditions, sampling=samplings[index]).image

    first = [edited(index) for index in range(len(editors))]
    for index in (2, 0, 1, 0, 2, 1):
        assert (edited(index) - first[index]).abs().max() <= 1e-5


class Uniform(QwenEditor):
    """An editor whose result has one value everywhere, its strength, up to rounding."""

    def edit(self, request: Any, progress: Any) -> torch.Tensor:
        image = torch.full_like(request.conditions.crop.image, self.strength)
        image[:, ::2] += 1 / 255
        return image


@pytest.mark.parametrize(
    ("value", "message"),
    [(0.0, "returned a black image"), (0.5, "returned a single color"), (0.9, "a single color")],
)
def test_a_uniform_image_is_reported(
    base: pipeline.Base, example, value: float, message: str
) -> None:
    with pytest.raises(ArtMancerError, match=message) as error:
        edit(Uniform(base, "removal", strength=value), small_conditions(example))
    assert error.value.code == "generation_failed"
    with pytest.raises(ArtMancerError, match=message):
        edit(Uniform(base, "white_balance", strength=value), prepare(example("coffee")))


def test_the_edit_of_a_flat_photo_may_be_uniform(base: pipeline.Base) -> None:
    photo = torch.full((1, 64, 64, 3), 0.5) + 0.02 * torch.rand(1, 64, 64, 3)
    mask = torch.zeros(1, 64, 64)
    mask[:, 24:40, 24:40] = 1
    # What is under the mask is no part of the surroundings.
    photo[:, 24:40, 24:40] = 0.9
    edited = edit(Uniform(base, "removal", strength=0.5), prepare(photo, mask, feather=4)).image
    assert (edited - 0.5).abs().max() < 0.1
    black = edit(Uniform(base, "removal", strength=0.0), prepare(photo * 0.01, mask, feather=4))
    assert black.image.max() < 0.02


def test_progress_carries_latents_for_a_preview(base: pipeline.Base, example) -> None:
    previews: list[tuple[int, torch.Tensor]] = []

    def show(done: int, total: int, stage: str, latents: torch.Tensor | None = None) -> None:
        if latents is not None:
            previews.append((done, latents))

    conditions = small_conditions(example)
    edit(QwenEditor(base, "removal"), conditions, sampling=Sampling(steps=3), progress=show)
    height, width = conditions.crop.region.size
    assert [done for done, _ in previews] == [1, 2, 3]
    assert previews[0][1].shape == (1, 16, height // 8, width // 8)


def test_white_balance_transfers_colors_or_pixels(base: pipeline.Base, example) -> None:
    photo = example("chelsea")[:, :96, :96]
    warm = (photo * torch.tensor([1.0, 0.9, 0.7])).clamp(0, 1)

    class Warm(QwenEditor):
        def edit(self, request: Any, progress: Any) -> torch.Tensor:
            # Rounding loses the texture.
            return warm.round(decimals=1)

    editor = Warm(base, "white_balance")
    conditions = prepare(photo)
    assert torch.equal(edit(editor, conditions, transfer="pixels").image, warm.round(decimals=1))
    assert (edit(editor, conditions).image - warm).abs().mean() < 0.01
