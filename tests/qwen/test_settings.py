"""What an edit with the Qwen editor may ask for: memory modes, precision, speed;
and that nothing of it stays.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.paths import EXAMPLES

from artmancer.conditions import prepare
from artmancer.edit import edit
from artmancer.errors import ArtMancerError
from artmancer.offload import Offloader, move_model
from artmancer.options import MEMORY_MODES, Sampling
from artmancer.progress import no_progress
from artmancer.qwen import adapters, checkpoints, memory, pipeline, sampler
from artmancer.qwen.editor import QwenEditor

PICTURE = Image.open(EXAMPLES / "coffee.png").convert("RGB").resize((96, 96))


GPU_IS_FULL = torch.OutOfMemoryError("CUDA out of memory.")


@pytest.fixture
def base(tiny_base: Path) -> pipeline.Base:
    return pipeline.load(tiny_base)


def picture(
    base: pipeline.Base, task: dict[str, Any] | None = None, **sampling: Any
) -> torch.Tensor:
    asked = sampler.SampleRequest(
        **{
            "prompt": "x",
            "conditions": [PICTURE],
            "height": 96,
            "width": 96,
            "seed": 0,
            **(task or {}),
        }
    )
    return sampler.sample(base, asked, Sampling(**{"steps": 2, **sampling}), no_progress)


def conditions(example: Any) -> Any:
    """A small one, for speed."""
    return prepare(example("coffee")[:, ::4, ::4], example("coffee_mask")[:, ::4, ::4], feather=4)


@contextmanager
def counted(module: Any) -> Iterator[list[int]]:
    calls: list[int] = []
    hook = module.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    hook.remove()


@pytest.mark.parametrize("mode", MEMORY_MODES[1:])
def test_every_memory_mode_gives_the_same_picture_and_can_be_left(
    base: pipeline.Base, loras: list[Path], mode: str
) -> None:
    expected = picture(base)
    adapters.activate(base, {loras[0]: 1.0})
    with_lora = picture(base)
    base.cache.clear()
    base.memory.set_mode(mode, 0)
    assert (picture(base) - with_lora).abs().max() <= 1e-5
    adapters.activate(base, {loras[1]: 1.0})
    assert not torch.allclose(picture(base), with_lora)
    adapters.activate(base, {})
    assert (picture(base) - expected).abs().max() <= 1e-5
    base.memory.set_mode(MEMORY_MODES[0], 0)
    base.cache.clear()
    assert torch.equal(picture(base), expected)


def test_layers_that_are_attached_while_weights_are_streamed_are_streamed_too(
    base: pipeline.Base, loras: list[Path]
) -> None:
    base.memory.set_mode("group offload", 0)
    for lora in loras[:2]:
        adapters.activate(base, {lora: 1.0})
        for name, layer in base.pipeline.transformer.named_modules():
            if isinstance(layer, torch.nn.Linear):
                assert layer._diffusers_hook.get_hook("group_offloading"), name
    base.memory.set_mode(MEMORY_MODES[0], 0)
    hooks = [
        getattr(layer, "_diffusers_hook", None) for layer in base.pipeline.transformer.modules()
    ]
    assert not any(hook and hook.get_hook("group_offloading") for hook in hooks)


def test_one_model_at_a_time_takes_the_others_off_the_device(base: pipeline.Base) -> None:
    there: set[str] = set()
    most = 0
    names = {id(model): name for name, model in base.memory.parts.items()}

    class Watched(Offloader):
        def load(self, model: torch.nn.Module, activations: int, progress: Any) -> None:
            nonlocal most
            there.add(names[id(model)])
            most = max(most, len(there))

        def unload(self, model: torch.nn.Module) -> None:
            there.discard(names[id(model)])

    base.memory.offloader = Watched("cpu")
    base.memory.set_mode("one model at a time", 0)
    picture(base)
    assert there == {"vae"} and most == 1


@pytest.mark.parametrize(
    ("room", "mode"),
    [(None, MEMORY_MODES[0]), (100, MEMORY_MODES[0]), (12, MEMORY_MODES[1]), (4, MEMORY_MODES[2])],
)
def test_auto_takes_the_first_mode_that_fits(
    base: pipeline.Base, monkeypatch: pytest.MonkeyPatch, room: int | None, mode: str
) -> None:
    monkeypatch.setattr(memory, "model_bytes", lambda model, device=None: 0 if device else 10)
    monkeypatch.setattr(memory, "activation_bytes", lambda name, pixels: 2)
    base.memory.offloader.available_memory = lambda: room
    base.memory.set_mode("auto", 0)
    assert base.memory.mode == mode


def test_a_cancelled_move_goes_back(base: pipeline.Base) -> None:
    transformer = base.pipeline.transformer
    told, back = [], []
    transformer.to = back.append

    def cancel(done: int, total: int, stage: str, latents: object = None) -> None:
        told.append(stage)
        if len(told) == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        move_model(transformer, torch.device("meta"), cancel)
    assert told[0] == "moving QwenImageTransformer2DModel to meta"
    assert back == ["cpu"]


def fails_first(base: pipeline.Base, times: int, error: Exception = GPU_IS_FULL) -> None:
    """Let the transformer run out of memory this many times."""
    forward, left = base.pipeline.transformer.forward, [times]

    def spent(*args: Any, **kwargs: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise error
        return forward(*args, **kwargs)

    base.pipeline.transformer.forward = spent


def test_out_of_memory_is_tried_once_more_in_a_leaner_mode(base: pipeline.Base, example) -> None:
    asked = conditions(example)
    expected = edit(QwenEditor(base, "removal"), asked, sampling=Sampling(steps=1)).image
    fails_first(base, 1)
    assert torch.equal(
        edit(QwenEditor(base, "removal"), asked, sampling=Sampling(steps=1)).image, expected
    )
    fails_first(base, 2)
    with pytest.raises(ArtMancerError, match="GPU's memory is too small") as caught:
        edit(QwenEditor(base, "removal"), asked, sampling=Sampling(steps=1))
    assert caught.value.code == "out_of_memory" and caught.value.status == 507
    assert torch.equal(
        edit(QwenEditor(base, "removal"), asked, sampling=Sampling(steps=1)).image, expected
    )


def test_a_full_main_memory_is_said(base: pipeline.Base, example) -> None:
    fails_first(
        base,
        1,
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    )
    with pytest.raises(ArtMancerError, match="This computer's memory is too small") as caught:
        edit(QwenEditor(base, "removal"), conditions(example), sampling=Sampling(steps=1))
    assert caught.value.code == "out_of_memory"


def test_where_a_batch_of_both_halves_is_too_much_they_go_in_turn(
    base: pipeline.Base, example
) -> None:
    editor, asked = QwenEditor(base, "removal", memory="group offload"), conditions(example)
    with counted(base.pipeline.transformer.proj_out) as calls:
        together = edit(editor, asked, sampling=Sampling(steps=1)).image
        assert len(calls) == 1
        fails_first(base, 1)
        apart = edit(editor, asked, sampling=Sampling(steps=1)).image
    assert len(calls) == 3 and (apart - together).abs().max() <= 1e-4


def test_a_batch_of_both_halves_gives_what_they_give_in_turn(base: pipeline.Base) -> None:
    apart = picture(base, {"prompt": "a much longer prompt than the other"})
    base.memory.mode = "group offload"  # which asks for the batch, without its hooks
    with counted(base.pipeline.transformer) as calls:
        together = picture(base, {"prompt": "a much longer prompt than the other"})
    assert len(calls) == 2 and (apart - together).abs().max() <= 1e-4


def test_eight_bits_are_stored_and_computed_with_in_sixteen(
    tiny_base: Path, loras: list[Path]
) -> None:
    stored = pipeline.load(tiny_base, "fp8")
    weight = stored.pipeline.transformer.transformer_blocks[0].attn.to_q.weight
    assert weight.dtype == torch.float8_e4m3fn
    rounded = pipeline.load(tiny_base, "bf16")
    for ours, plain in zip(
        stored.pipeline.transformer.parameters(),
        rounded.pipeline.transformer.parameters(),
        strict=True,
    ):
        plain.data = ours.data.to(torch.bfloat16)
    assert torch.equal(picture(stored), picture(rounded))
    for base in (stored, rounded):
        adapters.activate(base, {loras[0]: 1.0})
    assert (picture(stored) - picture(rounded)).abs().max() <= 1e-2


def test_rounding_to_eight_bits_is_told_and_can_be_cancelled(tiny_base: Path) -> None:
    told = []

    def cancel(done: int, total: int, stage: str, latents: object = None) -> None:
        told.append((done, stage))
        if told[-1] == (3, "rounding the transformer to 8 bits"):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        pipeline.load(tiny_base, "fp8", progress=cancel)


def test_auto_is_the_precision_it_stands_for() -> None:
    assert pipeline.precision_for(torch.device("cpu"), "auto") == "fp32"
    assert pipeline.precision_for(torch.device("cuda", 0), "auto") == "bf16"
    assert pipeline.precision_for(torch.device("cpu"), "fp8") == "fp8"


def test_an_acceleration_lora_stacks_and_brings_its_schedule(
    base: pipeline.Base, loras: list[Path], example, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    sample = sampler.sample
    monkeypatch.setattr(
        sampler,
        "sample",
        lambda base, task, sampling, *rest: (
            seen.append(sampling) or sample(base, task, sampling, *rest)
        ),
    )
    plain = QwenEditor(base, "removal", checkpoints.read(loras[0]))
    fast = QwenEditor(base, "removal", checkpoints.read(loras[0]), acceleration=loras[1])
    asked = conditions(example)
    with counted(base.pipeline.transformer) as calls:
        result = edit(fast, asked, sampling=Sampling(steps=4))
    assert len(calls) == 4 and seen[0].cfg == 1
    assert not torch.equal(result.image, edit(plain, asked, sampling=Sampling(steps=4)).image)
    sigmas = sampler._scheduler(base.pipeline.scheduler, 4, 1000, 3.0, torch.device("cpu")).sigmas
    expected = torch.tensor([3 * t / (1 + 2 * t) for t in (1, 0.75, 0.5, 0.25)] + [0])
    assert torch.allclose(sigmas, expected, atol=1e-6)


def test_the_background_is_kept_where_the_mask_is_black(base: pipeline.Base) -> None:
    nowhere, everywhere = torch.zeros(96, 96), torch.ones(96, 96)
    vae, processor = base.pipeline.vae, base.pipeline.image_processor
    pixels = processor.preprocess(PICTURE, 96, 96).unsqueeze(2)
    still = (
        vae.decode(vae.encode(pixels).latent_dist.mode()).sample[:, :, 0].permute(0, 2, 3, 1) / 2
        + 0.5
    )
    kept = picture(base, {"background": (PICTURE, nowhere)})
    assert (kept - still.clamp(0, 1)).abs().max() <= 1e-5
    assert torch.equal(picture(base, {"background": (PICTURE, everywhere)}), picture(base))


def test_the_background_is_kept_outside_the_feathered_mask(base: pipeline.Base, example) -> None:
    asked, editor = conditions(example), QwenEditor(base, "removal")
    kept = edit(editor, asked, sampling=Sampling(steps=2, keep_background=True)).report
    free = edit(editor, asked, sampling=Sampling(steps=2)).report
    assert kept.outside_psnr == free.outside_psnr and kept.outside_psnr_raw != free.outside_psnr_raw


@pytest.mark.parametrize(("kind", "much"), [("first block", 1.0), ("sea", 1.0), ("taylor", 0.5)])
def test_a_step_cache_saves_blocks_and_leaves_nothing(
    base: pipeline.Base, example, kind: str, much: float
) -> None:
    asked, editor = conditions(example), QwenEditor(base, "removal")
    last = base.pipeline.transformer.transformer_blocks[-1].img_mlp
    expected = edit(editor, asked, sampling=Sampling(steps=6)).image

    def cancel(done: int, total: int, stage: str, latents: object = None) -> None:
        if stage == "sampling" and done == 2:
            raise InterruptedError

    cached = Sampling(steps=6, step_cache=much, step_cache_kind=kind)
    with pytest.raises(InterruptedError):
        edit(editor, asked, sampling=cached, progress=cancel)
    with counted(last) as calls:
        first = edit(editor, asked, sampling=cached).image
    assert len(calls) < 12 and (first - expected).abs().max() <= 0.02
    assert torch.equal(edit(editor, asked, sampling=cached).image, first)
    hardly = Sampling(steps=6, step_cache=0.001, step_cache_kind=kind)
    assert torch.equal(edit(editor, asked, sampling=hardly).image, expected)
    assert torch.equal(edit(editor, asked, sampling=Sampling(steps=6)).image, expected)


@pytest.mark.parametrize(("kind", "much"), [("first block", 1.0), ("sea", 1.0), ("taylor", 0.5)])
def test_a_step_cache_forgets_between_the_pictures_of_a_batch(
    base: pipeline.Base, example, kind: str, much: float
) -> None:
    photo, mask = example("coffee")[:, ::4, ::4], example("coffee_mask")[:, ::4, ::4]
    cached, editor = (
        Sampling(steps=5, step_cache=much, step_cache_kind=kind),
        QwenEditor(base, "removal"),
    )
    both = edit(
        editor, prepare(photo.repeat(2, 1, 1, 1), mask, feather=4), seed=4, sampling=cached
    ).image
    alone = edit(editor, prepare(photo, mask, feather=4), seed=5, sampling=cached).image
    assert torch.equal(both[1:], alone)


def test_compiled_blocks_give_the_same_picture_and_are_left(base: pipeline.Base) -> None:
    from artmancer.qwen import speed

    expected = picture(base)
    with speed.settings(base, Sampling(compile=True)):
        assert (picture(base) - expected).abs().max() <= 1e-4
    with speed.settings(base, Sampling(compile=True, step_cache=0.01)):
        assert (picture(base) - expected).abs().max() <= 1e-4, (
            "nothing to skip, and hooks that leave the graph"
        )
    with speed.settings(base, Sampling()):
        assert torch.equal(picture(base), expected)


@pytest.mark.parametrize("attention", ["sage", "cudnn"])
def test_attention_that_cannot_run_here_is_refused_and_nothing_stays(
    base: pipeline.Base, example, attention: str
) -> None:
    """One is not installed, the other has no kernel for the CPU."""
    asked, editor = conditions(example), QwenEditor(base, "removal")
    expected = edit(editor, asked, sampling=Sampling(steps=1)).image
    with pytest.raises(ArtMancerError, match=f"attention '{attention}' cannot be used here"):
        edit(editor, asked, sampling=Sampling(steps=1, attention=attention, step_cache=0.5))
    assert torch.equal(edit(editor, asked, sampling=Sampling(steps=1)).image, expected)


def test_editors_on_one_base_do_not_change_each_others_pictures(
    base: pipeline.Base, loras: list[Path], example
) -> None:
    asked = conditions(example)
    editors = [
        (QwenEditor(base, "removal", checkpoints.read(loras[0])), Sampling(steps=2)),
        (
            QwenEditor(base, "removal", checkpoints.read(loras[1]), 0.5),
            Sampling(steps=3, step_cache=1.0),
        ),
        (
            QwenEditor(base, "removal", acceleration=loras[2], memory="group offload"),
            Sampling(steps=2),
        ),
    ]
    first = [edit(editor, asked, sampling=sampling).image for editor, sampling in editors]
    for index in (2, 0, 1, 0, 2, 1):
        editor, sampling = editors[index]
        assert (edit(editor, asked, sampling=sampling).image - first[index]).abs().max() <= 1e-5


def test_a_black_picture_is_said(base: pipeline.Base, example) -> None:
    class Black(QwenEditor):
        def edit(self, request: Any, progress: Any) -> torch.Tensor:
            return torch.zeros_like(request.conditions.crop.image)

    with pytest.raises(ArtMancerError, match="returned a black image"):
        edit(Black(base, "removal"), conditions(example))


def test_progress_carries_a_picture_of_where_it_is_heading(base: pipeline.Base, example) -> None:
    shown = []

    def show(done: int, total: int, stage: str, latents: torch.Tensor | None = None) -> None:
        if latents is not None:
            shown.append((done, latents))

    asked = conditions(example)
    edit(QwenEditor(base, "removal"), asked, sampling=Sampling(steps=3), progress=show)
    height, width = asked.crop.region.size
    assert [done for done, _ in shown] == [1, 2, 3]
    assert shown[0][1].shape == (1, 16, height // 8, width // 8)


def test_white_balance_takes_colours_or_pixels(base: pipeline.Base, example) -> None:
    photo = example("chelsea")[:, :96, :96]
    warm = (photo * torch.tensor([1.0, 0.9, 0.7])).clamp(0, 1)

    class Warm(QwenEditor):
        def edit(self, request: Any, progress: Any) -> torch.Tensor:
            return warm.round(decimals=1)  # texture lost

    editor, asked = Warm(base, "white_balance"), prepare(photo)
    assert torch.equal(edit(editor, asked, transfer="pixels").image, warm.round(decimals=1))
    assert (edit(editor, asked).image - warm).abs().mean() < 0.01
