"""The Qwen editor on a tiny base with random weights, against the stock pipeline."""

import gc
import json
import math
import os
import re
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support import tiny_qwen
from support.paths import EXAMPLES

from artmancer import cli, images, mask_ops
from artmancer.cache import Cache
from artmancer.conditions import Conditions, prepare, with_extra
from artmancer.edit import edit
from artmancer.editor import EditRequest
from artmancer.errors import ArtMancerError
from artmancer.options import ONE_MEGAPIXEL, Sampling
from artmancer.progress import no_progress
from artmancer.qwen import adapters, checkpoints, pipeline, sampler
from artmancer.qwen.editor import QwenEditor

TWO_STEPS = Sampling(steps=2)
PICTURES = [
    Image.open(EXAMPLES / name).convert("RGB")
    for name in ("astronaut.png", "coffee.png", "chelsea.png")
]


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> pipeline.Base:
    return pipeline.load(tiny_base)


def ask(
    conditions: list[Image.Image],
    size: tuple[int, int] = (96, 96),
    prompt: str = "x",
    seed: int = 0,
    task: dict[str, Any] | None = None,
    **sampling: Any,
) -> tuple[sampler.SampleRequest, Sampling]:
    return sampler.SampleRequest(prompt, conditions, *size, seed, **task or {}), Sampling(
        **{"steps": 2, **sampling}
    )


def ours(loaded: pipeline.Base, task: sampler.SampleRequest, sampling: Sampling) -> torch.Tensor:
    return sampler.sample(loaded, task, sampling, no_progress)


@pytest.mark.parametrize(
    ("size", "steps", "cfg", "count"),
    [
        ((128, 192), 3, 4.0, 3),
        ((192, 128), 2, 1.0, 1),
        ((96, 320), 4, 2.5, 2),
        ((160, 160), 2, 7.0, 4),
    ],
)
def test_at_equal_condition_size_the_result_is_the_stock_pipelines(
    base: pipeline.Base,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    steps: int,
    cfg: float,
    count: int,
) -> None:
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as module

    monkeypatch.setattr(module, "VAE_IMAGE_SIZE", 256 * 256)
    conditions = (PICTURES * 2)[:count]
    asked = ask(
        conditions, size, "remove it", count, steps=steps, cfg=cfg, condition_pixels=256 * 256
    )
    assert (ours(base, *asked) - tiny_qwen.stock(base.pipeline, *asked)).abs().max() <= 1e-4


def test_at_one_megapixel_the_result_is_the_stock_pipelines(base: pipeline.Base) -> None:
    asked = ask(PICTURES[1:2], (128, 128), "a lamp", 5, cfg=1.0, condition_pixels=ONE_MEGAPIXEL)
    assert (ours(base, *asked) - tiny_qwen.stock(base.pipeline, *asked)).abs().max() <= 1e-4


def test_qwen_image_edit_2511_is_the_same_pipeline(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as module

    monkeypatch.setattr(module, "VAE_IMAGE_SIZE", 128 * 128)
    newer = pipeline.load(tiny_qwen.save_base(tmp_path / "2511", zero_cond_t=True))
    asked = ask(PICTURES[:2], prompt="remove it", seed=1, condition_pixels=128 * 128)
    assert (ours(newer, *asked) - tiny_qwen.stock(newer.pipeline, *asked)).abs().max() <= 1e-4


def test_a_single_step_is_sampled(base: pipeline.Base) -> None:
    result = ours(base, *ask(PICTURES[:1], steps=1, cfg=1.0, condition_pixels=96 * 96))
    assert result.isfinite().all()


def test_conditions_are_encoded_at_the_crops_own_size(
    base: pipeline.Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    base.cache.clear()
    encode = base.pipeline.vae.encode
    monkeypatch.setattr(
        base.pipeline.vae,
        "encode",
        lambda picture: sizes.append(picture.shape[-2:]) or encode(picture),
    )
    crop = PICTURES[0].resize((192, 128))
    ours(base, *ask([crop], (128, 192), steps=1, cfg=1.0))
    assert sizes == [(128, 192)]


def test_a_seed_has_the_same_noise_in_every_precision(tiny_base: Path) -> None:
    seen = []
    for precision in ("fp32", "bf16"):
        loaded = pipeline.load(tiny_base, precision)
        loaded.pipeline.transformer.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["hidden_states"][:, :36]),
            with_kwargs=True,
        )
        ours(loaded, *ask(PICTURES[:1], steps=1, cfg=1.0, condition_pixels=96 * 96))
    assert torch.equal(seen[0].to(torch.bfloat16), seen[1])


def test_every_pass_of_an_encoder_and_the_decoder_can_be_cancelled(
    base: pipeline.Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def tell(done: int, total: int, stage: str, latents: object = None) -> None:
        events.append("told")

    for module, name in ((base.pipeline.vae, "encode"), (base.pipeline.vae, "decode")):
        call = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, call=call, **k: events.append("vae") or call(*a, **k)
        )
    hook = base.pipeline.text_encoder.register_forward_pre_hook(lambda *_: events.append("text"))
    base.cache.clear()
    task, sampling = ask([picture.resize((96, 96)) for picture in PICTURES], steps=1)
    sampler.sample(base, task, sampling, tell)
    hook.remove()
    assert (events.count("text"), events.count("vae")) == (2, 4)
    assert all(before == "told" for before, event in pairwise(events) if event != "told")


def test_a_narrow_picture_is_encoded_at_any_budget(base: pipeline.Base) -> None:
    strip = PICTURES[0].resize((512, 16))
    assert ours(base, *ask([strip], steps=1, cfg=1.0, condition_pixels=4096)).isfinite().all()


def test_another_seed_encodes_nothing_again(
    base: pipeline.Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"vae": 0, "text": 0}
    encode, forward = base.pipeline.vae.encode, base.pipeline.text_encoder.forward

    def count(name: str, call: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return call(*args, **kwargs)

        return counted

    monkeypatch.setattr(base.pipeline.vae, "encode", count("vae", encode))
    monkeypatch.setattr(base.pipeline.text_encoder, "forward", count("text", forward))
    crops = [picture.resize((128, 128)) for picture in PICTURES]
    base.cache.clear()
    first = ours(base, *ask(crops, (128, 128), seed=0))
    assert calls == {"vae": 3, "text": 2}
    second = ours(base, *ask(crops, (128, 128), seed=1))
    assert calls == {"vae": 3, "text": 2}
    assert not torch.equal(first, second)
    base.cache.clear()
    again = ours(base, *ask(crops, (128, 128), seed=0))
    assert torch.equal(first, again), "what is kept gives what is made anew"


def test_the_cache_keeps_to_its_limit_and_drops_what_was_used_least_recently() -> None:
    cache = Cache(limit=100)
    for name in "abc":
        cache.get(name, lambda: torch.zeros(10))
    assert cache.size == 80
    kept = cache.get("b", lambda: torch.ones(10))
    assert kept.sum() == 0 and cache.get("a", lambda: torch.ones(10)).sum() == 10


def pictures(base: pipeline.Base, *paths: Path, strength: float = 1.0) -> torch.Tensor:
    adapters.activate(base, dict.fromkeys(paths, strength))
    crop = PICTURES[0].resize((96, 96))
    return ours(base, *ask([crop]))


def test_after_any_switching_a_variant_is_what_a_fresh_load_gives(
    tiny_base: Path, loras: list[Path]
) -> None:
    fresh = {lora: pictures(pipeline.load(tiny_base), lora) for lora in loras}
    bare = pictures(pipeline.load(tiny_base))
    shared = pipeline.load(tiny_base)
    for lora in [loras[0], loras[1], None, loras[0], loras[2], loras[2], None, loras[1]]:
        result = pictures(shared, *([lora] if lora else []))
        assert torch.equal(result, fresh[lora] if lora else bare)
    assert not torch.equal(fresh[loras[0]], bare) and not torch.equal(
        fresh[loras[0]], fresh[loras[1]]
    )


def test_the_alphas_of_a_lightning_lora_count(tiny_base: Path, tmp_path: Path) -> None:
    """Its alpha of 8 at rank 4 is a strength of 2."""
    loaded = pipeline.load(tiny_base)
    plain = tiny_qwen.save_lora(tmp_path / "plain.safetensors", tiny_base)
    scaled = tiny_qwen.save_lora(tmp_path / "scaled.safetensors", tiny_base, style="lightning")
    assert (pictures(loaded, scaled) - pictures(loaded, plain, strength=2.0)).abs().max() <= 1e-5


def test_a_lora_of_diffusers_acts_as_strongly_as_in_diffusers(
    tiny_base: Path, tmp_path: Path
) -> None:
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig, get_peft_model_state_dict

    stock = pipeline.load(tiny_base)
    bare, transformer = pictures(stock), stock.pipeline.transformer
    first = "transformer_blocks.0.attn.to_q"
    transformer.add_adapter(
        LoraConfig(
            r=4,
            lora_alpha=16,
            rank_pattern={first: 2},
            alpha_pattern={first: 3, "transformer_blocks.1.attn.to_k": 1},
            target_modules=["to_q", "to_k"],
            init_lora_weights=False,
        )
    )
    stock.pipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(transformer),
        **_collate_lora_metadata({"transformer": transformer}),
    )
    transformer.delete_adapters("default")
    file = tmp_path / "pytorch_lora_weights.safetensors"
    stock.pipeline.load_lora_weights(file)
    expected = ours(stock, *ask([PICTURES[0].resize((96, 96))]))
    assert (pictures(pipeline.load(tiny_base), file) - expected).abs().max() <= 1e-5
    assert not torch.allclose(expected, bare, atol=1e-3)


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: f"transformer.{key}",
        lambda key: f"diffusion_model.transformer.{key}",
        lambda key: key.replace(".weight", ".default.weight"),
        lambda key: re.sub(r"\.(?!lora|weight|alpha)", "_", f"lora_unet_{key}"),
    ],
    ids=["transformer", "both", "default", "kohya"],
)
def test_other_names_of_the_same_layers_are_the_same_lora(
    tiny_base: Path, loras: list[Path], tmp_path: Path, rename
) -> None:
    from safetensors.torch import load_file, save_file

    loaded = pipeline.load(tiny_base)
    save_file(
        {rename(key): value for key, value in load_file(loras[3]).items()},
        tmp_path / "renamed.safetensors",
    )
    assert torch.equal(
        pictures(loaded, tmp_path / "renamed.safetensors"), pictures(loaded, loras[3])
    )


def test_a_variant_is_read_once(tiny_base: Path, loras: list[Path], tmp_path: Path) -> None:
    loaded = pipeline.load(tiny_base)
    mine = Path(shutil.copy(loras[0], tmp_path))
    first = pictures(loaded, mine)
    pictures(loaded, loras[1])
    mine.unlink()
    assert torch.equal(pictures(loaded, mine), first)


def test_two_checkpoints_stack_and_strength_counts(tiny_base: Path, loras: list[Path]) -> None:
    loaded = pipeline.load(tiny_base)
    both = pictures(loaded, loras[0], loras[1])
    assert not torch.equal(both, pictures(loaded, loras[0]))
    assert torch.allclose(pictures(loaded, loras[0], strength=0.0), pictures(loaded), atol=1e-6)


def test_a_checkpoint_says_its_recipe_and_resolution(tiny_base: Path, tmp_path: Path) -> None:
    metadata = {"artmancer.recipe": "background_mask_fill", "artmancer.resolution": "512"}
    path = tiny_qwen.save_lora(tmp_path / "said.safetensors", tiny_base, metadata=metadata)
    found = checkpoints.read(path)
    assert (found.recipe, found.resolution) == ("background_mask_fill", "512")
    path = tiny_qwen.save_lora(tmp_path / "silent.safetensors", tiny_base)
    assert (checkpoints.read(path).recipe, checkpoints.read(path).resolution) == (None, None)


def test_files_that_do_not_fit_are_refused_by_name(
    base: pipeline.Base, loras: list[Path], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    save_file(
        {
            "unet.down.lora_A.weight": torch.zeros(4, 4),
            "unet.down.lora_B.weight": torch.zeros(4, 4),
        },
        tmp_path / "sd.safetensors",
    )
    other = tiny_qwen.save_base(tmp_path / "wider", heads=3)
    tiny_qwen.save_lora(tmp_path / "wider.safetensors", other)
    (tmp_path / "cut.safetensors").write_bytes(loras[0].read_bytes()[:900])
    for name, code, said in (
        ("sd.safetensors", "generation_failed", "such as unet.down"),
        ("wider.safetensors", "generation_failed", "LoRA of another model"),
        ("cut.safetensors", "generation_failed", "not a whole safetensors file"),
        ("gone.safetensors", "checkpoint_missing", "no checkpoint"),
    ):
        with pytest.raises(ArtMancerError, match=said) as caught:
            adapters.activate(base, {tmp_path / name: 1.0})
        assert caught.value.code == code and name in str(caught.value)
    pictures(base, loras[0])


LAYER = "transformer_blocks.0.attn.to_q"
SIDE = torch.zeros(4, 64)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {f"diffusion_model.{LAYER}.diff_b": torch.zeros(64)},
            f"such as diffusion_model.{LAYER}.diff_b; expected",
        ),
        (
            {f"{LAYER}.hada_w1_a": SIDE, f"{LAYER}.alpha": torch.ones(())},
            f"such as {LAYER}.hada_w1_a",
        ),
        ({f"{LAYER}.lokr_w1": SIDE, f"{LAYER}.alpha": torch.ones(())}, f"such as {LAYER}.lokr_w1"),
        (
            {"lora_unet_down_blocks_1_0.lora_down.weight": SIDE},
            "such as lora_unet_down_blocks_1_0.lora_down",
        ),
        (
            {"transformer.transformer_blocks.0.attn.norm_q.lora_A.weight": SIDE},
            "such as transformer.transformer_blocks",
        ),
        (
            {"transformer_blocks.0.lora_A.weight": SIDE},
            "such as transformer_blocks.0.lora_A.weight",
        ),
        (
            {f"{LAYER}.lora_A.weight": SIDE},
            f"of {LAYER} it has {LAYER}.lora_A.weight; expected lora_A and lora_B",
        ),
        ({f"{LAYER}.alpha": torch.ones(())}, f"it has {LAYER}.alpha; expected lora_A and lora_B"),
        (
            {"lora_te_q.lora_down.weight": SIDE},
            "no keys for the base's transformer, only such as lora_te_q.lora_down",
        ),
        ({}, "no keys for the base's transformer; expected"),
    ],
)
def test_a_file_that_is_no_lora_of_the_base_is_refused_by_its_own_keys(
    base: pipeline.Base, tmp_path: Path, content: dict[str, torch.Tensor], said: str
) -> None:
    from safetensors.torch import save_file

    save_file(content, tmp_path / "odd.safetensors")
    with pytest.raises(ArtMancerError, match=re.escape(said)) as caught:
        adapters.activate(base, {tmp_path / "odd.safetensors": 1.0})
    assert "'odd.safetensors'" in str(caught.value) and caught.value.code == "generation_failed"


def test_a_lora_that_fits_only_in_part_is_refused_and_leaves_nothing(
    tiny_base: Path, loras: list[Path], tmp_path: Path
) -> None:
    """As a LoRA for FLUX would fit, which has layers of the same names and width."""
    from safetensors.torch import load_file, save_file

    loaded = pipeline.load(tiny_base)
    bare = pictures(loaded)
    weights = load_file(loras[2])
    flux = {**weights, "single_transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(4, 64)}
    bias = {**weights, "transformer_blocks.0.attn.to_q.lora_B.bias": torch.zeros(64)}
    for name, content in (("flux", flux), ("bias", bias)):
        save_file(content, tmp_path / f"{name}.safetensors")
        with pytest.raises(ArtMancerError, match=r"1 of \d+ keys of .* fit no layer"):
            pictures(loaded, tmp_path / f"{name}.safetensors")
    assert torch.equal(pictures(loaded), bare)
    assert not torch.equal(pictures(loaded, loras[0]), bare)
    with pytest.raises(ArtMancerError, match="fit no layer"):
        pictures(loaded, tmp_path / "flux.safetensors")
    assert torch.equal(pictures(loaded), bare), "also where another one acted before"
    save_file({"text_encoder.q.lora_A.weight": torch.zeros(4, 64)}, tmp_path / "text.safetensors")
    with pytest.raises(
        ArtMancerError, match=r"'text.safetensors' has no keys for the base's transformer"
    ):
        pictures(loaded, tmp_path / "text.safetensors")


def test_an_interrupted_attach_leaves_nothing(
    tiny_base: Path, loras: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = pipeline.load(tiny_base)
    bare, transformer = pictures(loaded), loaded.pipeline.transformer
    attach = transformer.load_lora_adapter

    def fail(*given: Any, **options: Any) -> None:
        attach(*given, **options)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(transformer, "load_lora_adapter", fail)
    with pytest.raises(torch.OutOfMemoryError):
        pictures(loaded, loras[0])
    monkeypatch.undo()
    assert torch.equal(pictures(loaded), bare)
    fresh = pictures(pipeline.load(tiny_base), loras[0])
    assert torch.equal(pictures(loaded, loras[0]), fresh)


def test_a_checkpoint_that_was_replaced_is_read_again(
    tiny_base: Path, loras: list[Path], tmp_path: Path
) -> None:
    loaded = pipeline.load(tiny_base)
    mine = Path(shutil.copy(loras[0], tmp_path / "mine.safetensors"))
    first = pictures(loaded, mine)
    shutil.copy(loras[1], mine)
    assert torch.equal(pictures(loaded, mine), pictures(loaded, loras[1]))
    assert not torch.equal(pictures(loaded, mine), first)


def test_a_checkpoint_that_is_written_over_in_place_stays_as_it_was_read(
    tiny_base: Path, loras: list[Path], tmp_path: Path
) -> None:
    loaded = pipeline.load(tiny_base)
    mine = Path(shutil.copy(loras[0], tmp_path / "mine.safetensors"))
    first = pictures(loaded, mine)
    before = mine.stat()
    with mine.open("r+b") as file:
        file.write(bytes(before.st_size))
    os.utime(mine, ns=(before.st_atime_ns, before.st_mtime_ns))  # or it would be read again
    assert torch.equal(pictures(loaded, mine), first)


def test_a_variant_may_lie_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODEL_FILE", raising=False)
    here = Path("qwen_2509_object_insertion_512_000002750.safetensors")
    assert checkpoints.find("insertion", []) is None
    here.touch()
    assert checkpoints.find("insertion", []) == here
    (tmp_path / "loras").mkdir()
    listed = tmp_path / "loras" / "insertion_cp.safetensors"
    listed.touch()
    assert checkpoints.find("insertion", [listed]) == listed


def test_one_file_cannot_be_both_checkpoint_and_acceleration(
    base: pipeline.Base, loras: list[Path]
) -> None:
    with pytest.raises(ArtMancerError, match="both the checkpoint and the acceleration") as caught:
        QwenEditor(base, "removal", checkpoints.read(loras[0]), acceleration=loras[0])
    assert caught.value.code == "invalid_request"


@pytest.mark.parametrize("index", ["", "[]", "{", '{"_class_name": 3}'])
def test_a_broken_index_is_no_base_and_breaks_no_list(tmp_path: Path, index: str) -> None:
    (tmp_path / "model_index.json").write_text(index)
    assert not checkpoints.is_base(tmp_path) and not checkpoints.is_base(tmp_path / "gone")


@pytest.mark.parametrize("part", ["text_encoder", "vae", "transformer"])
def test_a_part_that_was_cut_off_is_named(tiny_base: Path, tmp_path: Path, part: str) -> None:
    broken = Path(shutil.copytree(tiny_base, tmp_path / "broken"))
    weights = next((broken / part).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ArtMancerError, match=f"The {part} of the base"):
        pipeline.load(broken)


@pytest.mark.parametrize("part", ["text_encoder", "vae", "transformer"])
def test_a_part_that_lacks_weights_is_refused(tiny_base: Path, tmp_path: Path, part: str) -> None:
    from safetensors.torch import load_file, save_file

    broken = Path(shutil.copytree(tiny_base, tmp_path / "broken"))
    path = next((broken / part).glob("*.safetensors"))
    weights = load_file(path)
    gone = min(weights)
    del weights[gone]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(
        ArtMancerError, match=f"The {part} of the base .* lacks 1 of its weights, such as .*{gone}"
    ):
        pipeline.load(broken)


def test_a_folder_that_is_no_base_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtMancerError, match="no base model"):
        pipeline.load(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ArtMancerError, match="holds another kind"):
        pipeline.load(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(tiny_base, broken)
    shutil.rmtree(broken / "processor")
    with pytest.raises(ArtMancerError, match="no 'processor' folder"):
        pipeline.load(broken)


def test_the_editor_edits_a_batch_one_by_one_and_leaves_the_rest(
    base: pipeline.Base, loras: list[Path], example
) -> None:
    photo, mask = example("coffee"), example("coffee_mask")
    editor = QwenEditor(base, "removal", checkpoints.read(loras[0]))
    told: list[tuple[int, int, str]] = []

    def tell(done: int, total: int, stage: str, latents: object = None) -> None:
        told.append((done, total, stage))

    pair = edit(
        editor, prepare(photo.repeat(2, 1, 1, 1), mask), seed=4, sampling=TWO_STEPS, progress=tell
    )
    alone = edit(editor, prepare(photo, mask), seed=5, sampling=TWO_STEPS)
    assert torch.equal(pair.image[1:], alone.image)
    assert torch.equal(
        alone.image[mask_ops.feather(mask, 16) == 0], photo[mask_ops.feather(mask, 16) == 0]
    )
    assert pair.report.editor == "qwen-image-edit/removal" and pair.report.outside_psnr == math.inf
    assert [done for done, total, stage in told if stage == "sampling" and total == 4] == [
        0,
        1,
        2,
        2,
        3,
        4,
    ]


def test_more_pictures_are_shown_to_the_transformer_in_their_order(
    base: pipeline.Base, example
) -> None:
    plain = prepare(example("coffee"), example("coffee_mask"))
    one, other = example("chelsea"), example("astronaut")
    editor = QwenEditor(base, "removal")

    def edited(conditions: Conditions) -> torch.Tensor:
        return editor.edit(EditRequest(conditions, "x", 3, Sampling(steps=1, cfg=1.0)), no_progress)

    conditions = with_extra(with_extra(plain, one), other)
    shown = [images.to_pil(image) for image in conditions.images.values()]
    result = edited(conditions)
    assert torch.equal(
        result, ours(base, *ask(shown, plain.crop.region.size, seed=3, steps=1, cfg=1.0))
    )
    for unlike in (plain, with_extra(with_extra(plain, other), one)):
        assert not torch.equal(edited(unlike), result)


def test_a_cancel_leaves_nothing_behind(base: pipeline.Base, loras: list[Path], example) -> None:
    conditions = prepare(example("coffee"), example("coffee_mask"))
    editor = QwenEditor(base, "removal", checkpoints.read(loras[0]))
    expected = edit(editor, conditions, sampling=Sampling(steps=3)).image

    def cancel(done: int, total: int, stage: str, latents: object = None) -> None:
        if stage == "sampling" and done == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        edit(
            QwenEditor(base, "removal", checkpoints.read(loras[1])),
            conditions,
            sampling=Sampling(steps=3),
            progress=cancel,
        )
    assert torch.equal(edit(editor, conditions, sampling=Sampling(steps=3)).image, expected)


def test_a_base_is_loaded_once_and_goes_when_its_last_editor_goes(tiny_base: Path) -> None:
    loads = []

    def load() -> pipeline.Base:
        loads.append(1)
        return pipeline.load(tiny_base)

    first = QwenEditor(pipeline.shared(tiny_base, "fp32", load), "removal")
    second = QwenEditor(pipeline.shared(tiny_base, "fp32", load), "insertion")
    assert first.base is second.base and len(loads) == 1
    del first, second
    gc.collect()
    pipeline.shared(tiny_base, "fp32", load)
    assert len(loads) == 2


def test_loading_tells_what_it_loads_and_can_be_cancelled(tiny_base: Path) -> None:
    told = []

    def cancel(done: int, total: int, stage: str, latents: object = None) -> None:
        told.append(stage)
        if stage == "loading vae":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        pipeline.load(tiny_base, progress=cancel)
    assert "loading text encoder" in told


def test_nan_from_the_model_is_said(tiny_base: Path, example) -> None:
    spoiled = pipeline.load(tiny_base)
    torch.nn.init.constant_(spoiled.pipeline.transformer.proj_out.bias, torch.nan)
    with pytest.raises(ArtMancerError, match="returned NaN"):
        edit(
            QwenEditor(spoiled, "removal"),
            prepare(example("coffee"), example("coffee_mask")),
            sampling=TWO_STEPS,
        )


def test_the_command_edits_with_a_base_and_a_variant(
    tiny_base: Path, loras: list[Path], tmp_path: Path, capsys
) -> None:
    options = [
        "--editor=qwen",
        "--task=removal",
        f"--mask={EXAMPLES / 'coffee_mask.png'}",
        "--steps=2",
        "--json",
    ]
    photo, output = str(EXAMPLES / "coffee.png"), tmp_path / "out.png"
    command = ["edit", photo, *options, f"--variant-file={loras[0]}", "-o", str(output)]
    assert cli.main([*command, f"--base={tiny_base}"]) == 0
    report = json.loads(capsys.readouterr().out)["report"]
    assert report["editor"] == "qwen-image-edit/removal" and max(report["crop_size"]) == 512
    assert output.is_file()
    assert cli.main(command) == 1
    assert "MODEL_PATH" in json.loads(capsys.readouterr().out)["detail"]


def test_the_command_takes_the_checkpoint_in_comfyuis_folder_and_says_so(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, caplog
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.delenv("MODEL_FILE_REMOVAL", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    seen, sample = [], sampler.sample
    monkeypatch.setattr(
        sampler,
        "sample",
        lambda base, task, sampling, *rest: (
            seen.append(sampling) or sample(base, task, sampling, *rest)
        ),
    )
    loras = tmp_path / "models" / "loras"
    loras.mkdir(parents=True)
    lora = tiny_qwen.save_lora(
        loras / "removal_cp.safetensors", tiny_base, metadata={"artmancer.resolution": "native"}
    )
    for name in ("coffee", "coffee_mask"):
        Image.open(EXAMPLES / f"{name}.png").resize((150, 100)).save(tmp_path / f"{name}.png")
    command = [
        "edit",
        str(tmp_path / "coffee.png"),
        "--task=removal",
        "--editor=qwen",
        f"--base={tiny_base}",
    ]
    command += [
        "--steps=1",
        "--cfg=1",
        "--condition-megapixels=0.05",
        f"--output={tmp_path / 'out.png'}",
    ]
    assert cli.main([*command, f"--mask={tmp_path / 'coffee_mask.png'}"]) == 0
    said = capsys.readouterr()
    assert "qwen-image-edit/removal with removal_cp.safetensors, crop" in said.out
    assert "loading text encoder" in said.err and "loading transformer" in said.err
    assert seen[0].condition_pixels == round(0.05 * 2**20)
    lora.unlink()
    assert cli.main([*command, f"--mask={tmp_path / 'coffee_mask.png'}"]) == 0
    assert (
        "No checkpoint for removal was found: the base model edits without a LoRA." in caplog.text
    )
