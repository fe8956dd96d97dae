"""The Qwen editor on a tiny base with random weights, compared with the stock pipeline."""

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
IMAGES = [
    Image.open(EXAMPLES / name).convert("RGB")
    for name in ("astronaut.png", "coffee.png", "chelsea.png")
]


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> pipeline.Base:
    return pipeline.load(tiny_base)


def request_for(
    conditions: list[Image.Image],
    size: tuple[int, int] = (96, 96),
    prompt: str = "x",
    seed: int = 0,
    **sampling: Any,
) -> tuple[sampler.SampleRequest, Sampling]:
    """Return a request for an image of a size (height, width), and its sampling settings."""
    request = sampler.SampleRequest(prompt, conditions, *size, seed)
    return request, Sampling(**{"steps": 2, **sampling})


def ours(loaded: pipeline.Base, request: sampler.SampleRequest, sampling: Sampling) -> torch.Tensor:
    """Return the result of our own sampler."""
    return sampler.sample(loaded, request, sampling, no_progress)


@pytest.mark.parametrize(
    ("size", "steps", "cfg", "count"),
    [
        ((128, 192), 3, 4.0, 3),
        ((192, 128), 2, 1.0, 1),
        ((96, 320), 4, 2.5, 2),
        ((160, 160), 2, 7.0, 4),
    ],
)
def test_at_an_equal_condition_size_the_result_equals_the_stock_pipeline(
    base: pipeline.Base,
    size: tuple[int, int],
    steps: int,
    cfg: float,
    count: int,
) -> None:
    conditions = (IMAGES * 2)[:count]
    settings = {"steps": steps, "cfg": cfg, "condition_pixels": 256 * 256}
    arguments = request_for(conditions, size, "remove it", count, **settings)
    expected = tiny_qwen.stock(base.pipeline, *arguments, condition_pixels=256 * 256)
    assert (ours(base, *arguments) - expected).abs().max() <= 1e-4


@pytest.mark.slow
def test_at_one_megapixel_the_result_equals_the_stock_pipeline(base: pipeline.Base) -> None:
    arguments = request_for(
        IMAGES[1:2], (128, 128), "a lamp", 5, cfg=1.0, condition_pixels=ONE_MEGAPIXEL
    )
    expected = tiny_qwen.stock(base.pipeline, *arguments)
    assert (ours(base, *arguments) - expected).abs().max() <= 1e-4


def test_the_result_equals_the_stock_pipeline_with_qwen_image_edit_2511(
    tiny_base: Path, tmp_path: Path
) -> None:
    newer = pipeline.load(tiny_qwen.save_base(tmp_path / "2511", zero_cond_t=True))
    arguments = request_for(IMAGES[:2], prompt="remove it", seed=1, condition_pixels=128 * 128)
    expected = tiny_qwen.stock(newer.pipeline, *arguments, condition_pixels=128 * 128)
    assert (ours(newer, *arguments) - expected).abs().max() <= 1e-4


def test_a_single_step_is_sampled(base: pipeline.Base) -> None:
    result = ours(base, *request_for(IMAGES[:1], steps=1, cfg=1.0, condition_pixels=96 * 96))
    assert result.isfinite().all()


def test_conditions_are_encoded_at_the_size_of_the_crop(
    base: pipeline.Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, ...]] = []
    base.cache.clear()
    encode = base.pipeline.vae.encode

    def record(pixels: torch.Tensor) -> Any:
        sizes.append(tuple(pixels.shape[-2:]))
        return encode(pixels)

    monkeypatch.setattr(base.pipeline.vae, "encode", record)
    crop = IMAGES[0].resize((192, 128))
    ours(base, *request_for([crop], (128, 192), steps=1, cfg=1.0))
    assert sizes == [(128, 192)]


def test_a_seed_has_the_same_noise_in_every_precision(tiny_base: Path) -> None:
    noise: list[torch.Tensor] = []
    for precision in ("fp32", "bf16"):
        loaded = pipeline.load(tiny_base, precision)
        # The first 36 tokens are the noise, the others are the condition.
        loaded.pipeline.transformer.register_forward_pre_hook(
            lambda module, args, kwargs: noise.append(kwargs["hidden_states"][:, :36]),
            with_kwargs=True,
        )
        ours(loaded, *request_for(IMAGES[:1], steps=1, cfg=1.0, condition_pixels=96 * 96))
    assert torch.equal(noise[0].to(torch.bfloat16), noise[1])


def test_every_pass_of_an_encoder_and_the_decoder_can_be_canceled(
    base: pipeline.Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def report(done: int, total: int, stage: str, latents: object = None) -> None:
        events.append("progress")

    def recorded(call: Any) -> Any:
        def record(*args: Any, **kwargs: Any) -> Any:
            events.append("vae")
            return call(*args, **kwargs)

        return record

    vae = base.pipeline.vae
    for name in ("encode", "decode"):
        monkeypatch.setattr(vae, name, recorded(getattr(vae, name)))
    hook = base.pipeline.text_encoder.register_forward_pre_hook(lambda *_: events.append("text"))
    base.cache.clear()
    request, sampling = request_for([image.resize((96, 96)) for image in IMAGES], steps=1)
    sampler.sample(base, request, sampling, report)
    hook.remove()
    assert events.count("text") == 2
    assert events.count("vae") == 4
    for before, event in pairwise(events):
        assert event == "progress" or before == "progress"


def test_a_narrow_image_is_encoded_at_a_small_condition_size(base: pipeline.Base) -> None:
    strip = IMAGES[0].resize((512, 16))
    result = ours(base, *request_for([strip], steps=1, cfg=1.0, condition_pixels=4096))
    assert result.isfinite().all()


def test_another_seed_encodes_nothing_again(
    base: pipeline.Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"vae": 0, "text": 0}
    vae = base.pipeline.vae
    text_encoder = base.pipeline.text_encoder

    def count(name: str, call: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return call(*args, **kwargs)

        return counted

    monkeypatch.setattr(vae, "encode", count("vae", vae.encode))
    monkeypatch.setattr(text_encoder, "forward", count("text", text_encoder.forward))
    crops = [image.resize((128, 128)) for image in IMAGES]
    base.cache.clear()
    first = ours(base, *request_for(crops, (128, 128), seed=0))
    assert calls == {"vae": 3, "text": 2}
    second = ours(base, *request_for(crops, (128, 128), seed=1))
    assert calls == {"vae": 3, "text": 2}
    assert not torch.equal(first, second)
    base.cache.clear()
    again = ours(base, *request_for(crops, (128, 128), seed=0))
    assert torch.equal(first, again), "the cache does not change the result"


def test_the_cache_keeps_its_limit_and_drops_the_least_recently_used_item() -> None:
    cache = Cache(limit=100)
    # Each item has 40 bytes, so two fit.
    for name in "abc":
        cache.get(name, lambda: torch.zeros(10))
    assert cache.size == 80
    kept = cache.get("b", lambda: torch.ones(10))
    assert kept.sum() == 0
    dropped = cache.get("a", lambda: torch.ones(10))
    assert dropped.sum() == 10


def with_loras(base: pipeline.Base, *paths: Path, strength: float = 1.0) -> torch.Tensor:
    """Return the result of the base with these LoRAs."""
    adapters.activate(base, dict.fromkeys(paths, strength))
    crop = IMAGES[0].resize((96, 96))
    return ours(base, *request_for([crop]))


def test_only_the_four_loras_used_last_stay_in_memory(
    tiny_base: Path, loras: list[Path], tmp_path: Path
) -> None:
    base = tiny_qwen.load(tiny_base)
    fifth = tiny_qwen.save_lora(tmp_path / "fifth.safetensors", tiny_base, seed=5)
    first = with_loras(base, loras[0])
    kept = []
    for lora in (*loras[1:], loras[0], fifth):
        with_loras(base, lora)
        names = {name for name, _ in base.pipeline.transformer.named_parameters()}
        kept.append(
            len({re.findall(r"artmancer_\d+", name)[0] for name in names if "lora" in name})
        )
    assert kept == [2, 3, 4, 4, 4]
    # The second has left and the first has not.
    assert list(base.adapters) == [*loras[2:], loras[0], fifth]
    assert torch.equal(with_loras(base, loras[0]), first)
    assert torch.equal(with_loras(base, loras[1]), with_loras(tiny_qwen.load(tiny_base), loras[1]))


@pytest.mark.slow
def test_after_any_switching_a_lora_gives_the_same_image_as_after_a_fresh_load(
    tiny_base: Path, loras: list[Path]
) -> None:
    fresh = {lora: with_loras(tiny_qwen.load(tiny_base), lora) for lora in loras}
    bare = with_loras(tiny_qwen.load(tiny_base))
    shared = tiny_qwen.load(tiny_base)
    for lora in [loras[0], loras[1], None, loras[0], loras[2], loras[2], None, loras[1]]:
        result = with_loras(shared, *([lora] if lora else []))
        assert torch.equal(result, fresh[lora] if lora else bare)
    assert not torch.equal(fresh[loras[0]], bare)
    assert not torch.equal(fresh[loras[0]], fresh[loras[1]])


def test_the_alphas_of_a_lightning_lora_are_used(tiny_base: Path, tmp_path: Path) -> None:
    """Expect a strength of 2 from an alpha of 8 at rank 4."""
    loaded = tiny_qwen.load(tiny_base)
    plain = tiny_qwen.save_lora(tmp_path / "plain.safetensors", tiny_base)
    scaled = tiny_qwen.save_lora(tmp_path / "scaled.safetensors", tiny_base, style="lightning")
    expected = with_loras(loaded, plain, strength=2.0)
    assert (with_loras(loaded, scaled) - expected).abs().max() <= 1e-5


def test_a_lora_of_diffusers_has_the_same_strength_as_in_diffusers(
    tiny_base: Path, tmp_path: Path
) -> None:
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig, get_peft_model_state_dict

    stock = tiny_qwen.load(tiny_base)
    bare = with_loras(stock)
    transformer = stock.pipeline.transformer
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
    expected = ours(stock, *request_for([IMAGES[0].resize((96, 96))]))
    assert (with_loras(tiny_qwen.load(tiny_base), file) - expected).abs().max() <= 1e-5
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

    loaded = tiny_qwen.load(tiny_base)
    renamed = tmp_path / "renamed.safetensors"
    save_file({rename(key): value for key, value in load_file(loras[3]).items()}, renamed)
    assert torch.equal(with_loras(loaded, renamed), with_loras(loaded, loras[3]))


def test_a_checkpoint_is_read_once(tiny_base: Path, loras: list[Path], tmp_path: Path) -> None:
    loaded = tiny_qwen.load(tiny_base)
    checkpoint = Path(shutil.copy(loras[0], tmp_path))
    first = with_loras(loaded, checkpoint)
    with_loras(loaded, loras[1])
    checkpoint.unlink()
    assert torch.equal(with_loras(loaded, checkpoint), first)


def test_two_loras_stack_and_the_strength_is_used(tiny_base: Path, loras: list[Path]) -> None:
    loaded = tiny_qwen.load(tiny_base)
    both = with_loras(loaded, loras[0], loras[1])
    assert not torch.equal(both, with_loras(loaded, loras[0]))
    assert torch.allclose(with_loras(loaded, loras[0], strength=0.0), with_loras(loaded), atol=1e-6)


def test_the_recipe_and_resolution_are_read_from_the_metadata_of_a_checkpoint(
    tiny_base: Path, tmp_path: Path
) -> None:
    metadata = {"artmancer.recipe": "background_mask_fill", "artmancer.resolution": "512"}
    path = tiny_qwen.save_lora(tmp_path / "with.safetensors", tiny_base, metadata=metadata)
    checkpoint = checkpoints.read(path)
    assert checkpoint.recipe == "background_mask_fill"
    assert checkpoint.resolution == "512"
    path = tiny_qwen.save_lora(tmp_path / "without.safetensors", tiny_base)
    checkpoint = checkpoints.read(path)
    assert checkpoint.recipe is None
    assert checkpoint.resolution is None


def test_files_that_do_not_fit_are_refused_by_name(
    base: pipeline.Base, loras: list[Path], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    stable_diffusion = {
        "unet.down.lora_A.weight": torch.zeros(4, 4),
        "unet.down.lora_B.weight": torch.zeros(4, 4),
    }
    save_file(stable_diffusion, tmp_path / "sd.safetensors")
    other = tiny_qwen.save_base(tmp_path / "wider", heads=3)
    tiny_qwen.save_lora(tmp_path / "wider.safetensors", other)
    (tmp_path / "cut.safetensors").write_bytes(loras[0].read_bytes()[:900])
    for name, code, message in (
        ("sd.safetensors", "generation_failed", "such as unet.down"),
        ("wider.safetensors", "generation_failed", "LoRA of another model"),
        ("cut.safetensors", "generation_failed", "not a whole safetensors file"),
        ("gone.safetensors", "checkpoint_missing", "no checkpoint"),
    ):
        with pytest.raises(ArtMancerError, match=message) as error:
            adapters.activate(base, {tmp_path / name: 1.0})
        assert error.value.code == code
        assert name in str(error.value)
    with_loras(base, loras[0])


LAYER = "transformer_blocks.0.attn.to_q"
WEIGHT = torch.zeros(4, 64)
"""Half of a LoRA of rank 4 for a layer of width 64."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {f"diffusion_model.{LAYER}.diff_b": torch.zeros(65)},
            f"its change of {LAYER} has the shape [65]; expected [64]",
        ),
        (
            {"transformer_blocks.0.attn.norm_q.diff_b": torch.zeros(32)},
            "attn.norm_q has the shape [32]; expected []",
        ),
        (
            {f"{LAYER}.hada_w1_a": WEIGHT, f"{LAYER}.alpha": torch.ones(())},
            f"is not whole: of {LAYER} it has {LAYER}.alpha and {LAYER}.hada_w1_a",
        ),
        (
            {f"{LAYER}.lokr_w1": WEIGHT, f"{LAYER}.alpha": torch.ones(())},
            f"is not whole: of {LAYER} it has {LAYER}.alpha and {LAYER}.lokr_w1",
        ),
        (
            {f"{LAYER}.lokr_w1": WEIGHT, f"{LAYER}.lokr_w2_a": WEIGHT.clone()},
            f"it has {LAYER}.lokr_w1 and {LAYER}.lokr_w2_a; expected all tensors of one LoRA",
        ),
        (
            {f"{LAYER}.lora_A.weight": WEIGHT, f"{LAYER}.lora_B.weight": WEIGHT.clone()},
            f"its change of {LAYER} has the shape []; expected [64, 64]",
        ),
        (
            {"lora_unet_down_blocks_1_0.lora_down.weight": WEIGHT},
            "such as lora_unet_down_blocks_1_0.lora_down",
        ),
        (
            {"transformer.transformer_blocks.0.attn.norm_q.lora_A.weight": WEIGHT},
            "of transformer_blocks.0.attn.norm_q it has transformer.transformer_blocks",
        ),
        (
            {"transformer_blocks.0.lora_A.weight": WEIGHT},
            "such as transformer_blocks.0.lora_A.weight",
        ),
        (
            {f"{LAYER}.lora_A.weight": WEIGHT},
            f"of {LAYER} it has {LAYER}.lora_A.weight; expected all tensors",
        ),
        ({f"{LAYER}.alpha": torch.ones(())}, f"it has {LAYER}.alpha; expected all tensors"),
        (
            {"lora_te_q.lora_down.weight": WEIGHT},
            "changes only the text encoder, with keys such as lora_te_q.lora_down",
        ),
        ({}, "has no tensors; expected a LoRA"),
    ],
)
def test_a_file_that_is_no_lora_of_the_base_is_refused_with_its_keys_in_the_message(
    base: pipeline.Base, tmp_path: Path, content: dict[str, torch.Tensor], message: str
) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "odd.safetensors"
    save_file(content, path)
    with pytest.raises(ArtMancerError, match=re.escape(message)) as error:
        adapters.activate(base, {path: 1.0})
    assert "'odd.safetensors'" in str(error.value)
    assert error.value.code == "generation_failed"


def test_a_lora_that_fits_only_in_part_is_refused_and_does_not_affect_later_edits(
    tiny_base: Path, loras: list[Path], tmp_path: Path
) -> None:
    """Refuse, for example, a LoRA for FLUX: its layers have the same names and width."""
    from safetensors.torch import load_file, save_file

    loaded = tiny_qwen.load(tiny_base)
    bare = with_loras(loaded)
    weights = load_file(loras[2])
    flux = {**weights, "single_transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(4, 64)}
    strange = {**weights, "transformer_blocks.0.attn.to_q.lora_C.weight": torch.zeros(64)}
    for name, content, message in (
        ("flux", flux, r"1 of its \d+ keys fit no layer"),
        ("strange", strange, "a format that ArtMancer does not know, by its key .*lora_C"),
    ):
        save_file(content, tmp_path / f"{name}.safetensors")
        with pytest.raises(ArtMancerError, match=message):
            with_loras(loaded, tmp_path / f"{name}.safetensors")
    assert torch.equal(with_loras(loaded), bare)
    assert not torch.equal(with_loras(loaded, loras[0]), bare)
    with pytest.raises(ArtMancerError, match="fit no layer"):
        with_loras(loaded, tmp_path / "flux.safetensors")
    assert torch.equal(with_loras(loaded), bare), "also after another LoRA was active"
    text = tmp_path / "text.safetensors"
    save_file({"text_encoder.q.lora_A.weight": torch.zeros(4, 64)}, text)
    message = "'text.safetensors' changes only the text encoder"
    with pytest.raises(ArtMancerError, match=message):
        with_loras(loaded, text)


def test_a_failed_attach_does_not_affect_later_edits(
    tiny_base: Path, loras: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny_qwen.load(tiny_base)
    bare = with_loras(loaded)
    attach = adapters._attach_lora

    def fail(*args: Any) -> None:
        attach(*args)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(adapters, "_attach_lora", fail)
    with pytest.raises(torch.OutOfMemoryError):
        with_loras(loaded, loras[0])
    monkeypatch.undo()
    assert torch.equal(with_loras(loaded), bare)
    fresh = with_loras(tiny_qwen.load(tiny_base), loras[0])
    assert torch.equal(with_loras(loaded, loras[0]), fresh)


def test_a_checkpoint_that_was_replaced_is_read_again(
    tiny_base: Path, loras: list[Path], tmp_path: Path
) -> None:
    loaded = tiny_qwen.load(tiny_base)
    checkpoint = Path(shutil.copy(loras[0], tmp_path / "checkpoint.safetensors"))
    first = with_loras(loaded, checkpoint)
    shutil.copy(loras[1], checkpoint)
    assert torch.equal(with_loras(loaded, checkpoint), with_loras(loaded, loras[1]))
    assert not torch.equal(with_loras(loaded, checkpoint), first)


def test_overwriting_a_checkpoint_in_place_does_not_change_the_loaded_weights(
    tiny_base: Path, loras: list[Path], tmp_path: Path
) -> None:
    loaded = tiny_qwen.load(tiny_base)
    checkpoint = Path(shutil.copy(loras[0], tmp_path / "checkpoint.safetensors"))
    first = with_loras(loaded, checkpoint)
    before = checkpoint.stat()
    with checkpoint.open("r+b") as file:
        file.write(bytes(before.st_size))
    # With a new time the file would be read again.
    os.utime(checkpoint, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert torch.equal(with_loras(loaded, checkpoint), first)


def test_a_checkpoint_in_the_current_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODEL_FILE", raising=False)
    local = Path("qwen_2509_object_insertion_512_000002750.safetensors")
    assert checkpoints.find("insertion", []) is None
    local.touch()
    assert checkpoints.find("insertion", []) == local
    (tmp_path / "loras").mkdir()
    listed = tmp_path / "loras" / "insertion_cp.safetensors"
    listed.touch()
    assert checkpoints.find("insertion", [listed]) == listed


def test_one_file_cannot_be_both_checkpoint_and_acceleration(
    base: pipeline.Base, loras: list[Path]
) -> None:
    with pytest.raises(ArtMancerError, match="both the checkpoint and the acceleration") as error:
        QwenEditor(base, "removal", checkpoints.read(loras[0]), acceleration=loras[0])
    assert error.value.code == "invalid_request"


@pytest.mark.parametrize("index", ["", "[]", "{", '{"_class_name": 3}'])
def test_a_folder_with_a_broken_index_is_no_base(tmp_path: Path, index: str) -> None:
    (tmp_path / "model_index.json").write_text(index)
    assert not checkpoints.is_base(tmp_path)
    assert not checkpoints.is_base(tmp_path / "gone")


@pytest.mark.parametrize("part", ["text_encoder", "vae", "transformer"])
def test_the_error_names_the_part_of_the_base_that_is_cut_off(
    tiny_base: Path, tmp_path: Path, part: str
) -> None:
    broken = Path(shutil.copytree(tiny_base, tmp_path / "broken"))
    weights = next((broken / part).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ArtMancerError, match=f"The {part} of the base"):
        pipeline.load(broken)


@pytest.mark.parametrize("part", ["text_encoder", "vae", "transformer"])
def test_a_part_of_the_base_without_all_weights_is_refused(
    tiny_base: Path, tmp_path: Path, part: str
) -> None:
    from safetensors.torch import load_file, save_file

    broken = Path(shutil.copytree(tiny_base, tmp_path / "broken"))
    path = next((broken / part).glob("*.safetensors"))
    weights = load_file(path)
    missing = min(weights)
    del weights[missing]
    save_file(weights, path, {"format": "pt"})
    message = f"The {part} of the base .* lacks 1 of its weights, such as .*{missing}"
    with pytest.raises(ArtMancerError, match=message):
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


def test_the_editor_edits_each_image_of_a_batch_and_changes_nothing_outside_the_mask(
    base: pipeline.Base, loras: list[Path], example
) -> None:
    photo, mask = example("coffee"), example("coffee_mask")
    editor = QwenEditor(base, "removal", checkpoints.read(loras[0]))
    steps_done: list[int] = []

    def record(done: int, total: int, stage: str, latents: object = None) -> None:
        # Two images of two steps each.
        if stage == "sampling" and total == 4:
            steps_done.append(done)

    batch = prepare(photo.repeat(2, 1, 1, 1), mask)
    pair = edit(editor, batch, seed=4, sampling=TWO_STEPS, progress=record)
    alone = edit(editor, prepare(photo, mask), seed=5, sampling=TWO_STEPS)
    # Rounding may differ with the place of an image in memory.
    assert (pair.image[1:] - alone.image).abs().max() <= 1e-4
    outside = mask_ops.feather(mask, 16) == 0
    assert torch.equal(alone.image[outside], photo[outside])
    assert pair.report.editor == "qwen-image-edit/removal"
    assert pair.report.outside_psnr == math.inf
    assert steps_done == [0, 1, 2, 2, 3, 4]


def test_an_image_with_a_black_mask_is_not_edited(base: pipeline.Base, example) -> None:
    photo, mask = example("coffee"), example("coffee_mask")
    passes: list[int] = []

    def record(done: int, total: int, stage: str, latents: object = None) -> None:
        if stage == "sampling":
            passes.append(done)

    conditions = prepare(photo.repeat(2, 1, 1, 1), torch.cat([mask * 0, mask]))
    sampling = Sampling(steps=1, cfg=1.0)
    result = edit(QwenEditor(base, "removal"), conditions, sampling=sampling, progress=record)
    assert torch.equal(result.image[0], photo[0])
    assert not torch.equal(result.image[1], photo[0])
    assert passes == [1, 2], "only the second of two images takes a step"


def test_extra_images_reach_the_transformer_in_their_order(base: pipeline.Base, example) -> None:
    plain = prepare(example("coffee"), example("coffee_mask"))
    first = example("chelsea")
    second = example("astronaut")
    editor = QwenEditor(base, "removal")

    def edited(conditions: Conditions) -> torch.Tensor:
        return editor.edit(EditRequest(conditions, "x", 3, Sampling(steps=1, cfg=1.0)), no_progress)

    conditions = with_extra(with_extra(plain, first), second)
    in_order = [images.to_pil(image) for image in conditions.images.values()]
    # The editor first: it removes the LoRAs of earlier tests from the base.
    result = edited(conditions)
    expected = ours(base, *request_for(in_order, plain.crop.region.size, seed=3, steps=1, cfg=1.0))
    assert torch.equal(result, expected)
    for different in (plain, with_extra(with_extra(plain, second), first)):
        assert not torch.equal(edited(different), result)


def test_a_cancel_does_not_affect_later_edits(
    base: pipeline.Base, loras: list[Path], example
) -> None:
    conditions = prepare(example("coffee"), example("coffee_mask"))
    editor = QwenEditor(base, "removal", checkpoints.read(loras[0]))
    other_editor = QwenEditor(base, "removal", checkpoints.read(loras[1]))
    three_steps = Sampling(steps=3)
    expected = edit(editor, conditions, sampling=three_steps).image

    def cancel(done: int, total: int, stage: str, latents: object = None) -> None:
        if stage == "sampling" and done == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        edit(other_editor, conditions, sampling=three_steps, progress=cancel)
    assert torch.equal(edit(editor, conditions, sampling=three_steps).image, expected)


@pytest.mark.slow
def test_a_base_is_loaded_once_and_unloaded_with_its_last_editor(tiny_base: Path) -> None:
    loads: list[int] = []

    def load() -> pipeline.Base:
        loads.append(1)
        return pipeline.load(tiny_base)

    first = QwenEditor(pipeline.shared(tiny_base, "fp32", load), "removal")
    second = QwenEditor(pipeline.shared(tiny_base, "fp32", load), "insertion")
    assert first.base is second.base
    assert len(loads) == 1
    del first, second
    gc.collect()
    pipeline.shared(tiny_base, "fp32", load)
    assert len(loads) == 2


def test_loading_reports_its_stages_and_can_be_canceled(tiny_base: Path) -> None:
    stages: list[str] = []

    def cancel(done: int, total: int, stage: str, latents: object = None) -> None:
        stages.append(stage)
        if stage == "loading vae":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        pipeline.load(tiny_base, progress=cancel)
    assert "loading text encoder" in stages


def test_nan_from_the_model_is_reported(tiny_base: Path, example) -> None:
    broken = tiny_qwen.load(tiny_base)
    torch.nn.init.constant_(broken.pipeline.transformer.proj_out.bias, torch.nan)
    conditions = prepare(example("coffee"), example("coffee_mask"))
    with pytest.raises(ArtMancerError, match="returned NaN"):
        edit(QwenEditor(broken, "removal"), conditions, sampling=TWO_STEPS)


@pytest.mark.slow
def test_the_command_edits_with_a_base_and_a_checkpoint(
    tiny_base: Path, loras: list[Path], tmp_path: Path, capsys
) -> None:
    options = [
        "--editor=qwen",
        "--task=removal",
        f"--mask={EXAMPLES / 'coffee_mask.png'}",
        "--steps=2",
        "--json",
    ]
    photo = str(EXAMPLES / "coffee.png")
    output = tmp_path / "out.png"
    command = ["edit", photo, *options, f"--variant-file={loras[0]}", "-o", str(output)]
    assert cli.main([*command, f"--base={tiny_base}"]) == 0
    report = json.loads(capsys.readouterr().out)["report"]
    assert report["editor"] == "qwen-image-edit/removal"
    assert max(report["crop_size"]) == 512
    assert output.is_file()
    assert cli.main(command) == 1
    assert "MODEL_PATH" in json.loads(capsys.readouterr().out)["detail"]


@pytest.mark.slow
def test_the_command_uses_the_checkpoint_in_comfyuis_folder_and_reports_it(
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
    caplog,
    samplings: list[Sampling],
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.delenv("MODEL_FILE_REMOVAL", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    lora = tmp_path / "models" / "loras" / "removal_cp.safetensors"
    lora.parent.mkdir(parents=True)
    tiny_qwen.save_lora(lora, tiny_base, metadata={"artmancer.resolution": "native"})
    for name in ("coffee", "coffee_mask"):
        Image.open(EXAMPLES / f"{name}.png").resize((150, 100)).save(tmp_path / f"{name}.png")
    command = [
        "edit",
        str(tmp_path / "coffee.png"),
        f"--mask={tmp_path / 'coffee_mask.png'}",
        "--task=removal",
        "--editor=qwen",
        f"--base={tiny_base}",
        "--steps=1",
        "--cfg=1",
        "--condition-megapixels=0.05",
        f"--output={tmp_path / 'out.png'}",
    ]
    assert cli.main(command) == 0
    output = capsys.readouterr()
    assert "qwen-image-edit/removal with removal_cp.safetensors, crop" in output.out
    assert "loading text encoder" in output.err
    assert "loading transformer" in output.err
    assert samplings[0].condition_pixels == round(0.05 * 2**20)
    lora.unlink()
    assert cli.main(command) == 0
    message = "No checkpoint for removal was found: the base model edits without a LoRA."
    assert message in caplog.text
