"""A tiny Qwen-Image-Edit base with random weights, made of the real classes, in a folder like the
real base.
"""

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import Tensor

from artmancer.offload import Offloader
from artmancer.options import ONE_MEGAPIXEL, Sampling
from artmancer.qwen import pipeline as base_pipeline
from artmancer.qwen.memory import Memory
from artmancer.qwen.sampler import SampleRequest

SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
"""Qwen's special tokens, in the order of their ids."""

TEXT_WIDTH = 64
"""Width of the text encoder's embeddings."""

WEIGHT_DEVIATION = 0.3
"""Standard deviation of the text encoder's random weights.

With the usual 0.02 its attention hardly depends on the tokens' positions: with wrong positions the
embeddings of three images move by 0.3 % of their norm, with this value by 60 %.
"""

TRANSFORMER_GAIN = 2.0
"""Factor on the transformer's random weights: with wrong positions of the prompt's tokens, the
image then moves by 0.008, a sixth of its deviation. It moved by 0.00001 with the usual weights.
"""

RANK = 4
"""Rank of the LoRAs."""


def save_base(
    folder: Path,
    *,
    heads: int = 2,
    head_dim: int = 32,
    layers: int = 2,
    vae: dict[str, Any] | None = None,
    **transformer: Any,
) -> Path:
    """Write the base into a folder; return the folder.

    Parameters
    ----------
    heads, head_dim : the transformer's width is heads * head_dim; the real width is 24 * 128
    layers : blocks of the transformer
    vae : changes of the VAE's configuration
    transformer : changes of the transformer's configuration
    """
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImageEditPlusPipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2VLProcessor

    torch.manual_seed(0)
    tokens = tokenizer()
    third = head_dim // 8
    pipeline = QwenImageEditPlusPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, shift_terminal=0.02, max_shift=0.9
        ),
        vae=AutoencoderKLQwenImage(
            **{"base_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, **(vae or {})}
        ),
        text_encoder=text_encoder(tokens),
        tokenizer=tokens,
        processor=Qwen2VLProcessor(
            image_processor=image_processor(), tokenizer=tokens, video_processor=video_processor()
        ),
        transformer=QwenImageTransformer2DModel(
            num_layers=layers,
            attention_head_dim=head_dim,
            num_attention_heads=heads,
            axes_dims_rope=(head_dim - 6 * third, 3 * third, 3 * third),
            **{"joint_attention_dim": TEXT_WIDTH, **transformer},
        ),
    )
    with torch.no_grad():
        for module in pipeline.transformer.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(TRANSFORMER_GAIN)
    pipeline.save_pretrained(folder)
    return folder


def load(folder: Path) -> base_pipeline.Base:
    """Return a base that no other test has: a copy of what was loaded from the folder once, which
    takes a fifth of the time.
    """
    loaded = _load_once(folder)
    parts = loaded.pipeline.components
    # They do not change.
    shared = {id(part): part for part in (parts["tokenizer"], parts["processor"])}
    pipeline = type(loaded.pipeline)(**copy.deepcopy(parts, shared))
    return base_pipeline.Base(pipeline, Memory(pipeline, Offloader()))


@lru_cache(maxsize=1)
def _load_once(folder: Path) -> base_pipeline.Base:
    return base_pipeline.load(folder)


def tokenizer() -> Any:
    """Return a byte-level BPE tokenizer with single bytes and Qwen's special tokens."""
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(alphabet)}
    return Qwen2Tokenizer(vocab=vocabulary, merges=[], extra_special_tokens=list(SPECIAL_TOKENS))


def text_encoder(
    tokens: Any, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None
) -> Any:
    """Return a Qwen2.5-VL with random weights; `text` and `vision` change its configuration."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokens),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [4, 6, 6],
            },
            "initializer_range": WEIGHT_DEVIATION,
            **(text or {}),
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": TEXT_WIDTH,
            "fullatt_block_indexes": [1],
            "initializer_range": WEIGHT_DEVIATION,
            **(vision or {}),
        },
        **{
            f"{name}_token_id": tokens.convert_tokens_to_ids(f"<|{token}|>")
            for name, token in (
                ("image", "image_pad"),
                ("video", "video_pad"),
                ("vision_start", "vision_start"),
                ("vision_end", "vision_end"),
            )
        },
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def image_processor() -> Any:
    from transformers import Qwen2VLImageProcessor

    return Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=28 * 28 * 1280)


def video_processor() -> Any:
    from transformers import Qwen2VLVideoProcessor

    return Qwen2VLVideoProcessor()


def save_lora(
    path: Path,
    base: Path,
    *,
    style: str = "diffusers",
    seed: int = 1,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write a LoRA of rank RANK for the attention of every block; return its path.

    Parameters
    ----------
    base : folder of the base that the LoRA fits
    style : "diffusers" (transformer.*.lora_A.weight), "ai-toolkit"
        (diffusion_model.*.lora_A.weight), "bare" (transformer_blocks.*.lora_A.weight), or
        "lightning" (transformer_blocks.*.lora_down.weight, with alphas)
    """
    from diffusers import QwenImageTransformer2DModel

    prefix = {"diffusers": "transformer.", "ai-toolkit": "diffusion_model."}.get(style, "")
    down, up = ("lora_down", "lora_up") if style == "lightning" else ("lora_A", "lora_B")
    transformer = QwenImageTransformer2DModel.from_pretrained(base, subfolder="transformer")
    random = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for name, module in transformer.named_modules():
        if name.endswith(("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")):
            weights[f"{prefix}{name}.{down}.weight"] = (
                torch.randn(RANK, module.in_features, generator=random) * 0.3
            )
            weights[f"{prefix}{name}.{up}.weight"] = (
                torch.randn(module.out_features, RANK, generator=random) * 0.3
            )
            if style == "lightning":
                weights[f"{name}.alpha"] = torch.tensor(8.0)
    save_file(weights, path, metadata)
    return path


def stock(
    pipeline: Any,
    request: SampleRequest,
    sampling: Sampling,
    condition_pixels: int = ONE_MEGAPIXEL,
) -> Tensor:
    """Return the IMAGE [1, H, W, 3] that diffusers' own pipeline makes for a request, once its text
    encoder receives the token types that the processor makes and the pipeline drops.

    Parameters
    ----------
    condition_pixels : area at which the conditioning images are encoded, in pixels
    """
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as module

    pipeline.set_progress_bar_config(disable=True)
    # A constant of the module, which tests in the same process share.
    with patch.object(module, "VAE_IMAGE_SIZE", condition_pixels), token_types(pipeline):
        images = pipeline(
            image=list(request.conditions),
            prompt=request.prompt,
            negative_prompt=sampling.negative if sampling.cfg != 1 else None,
            true_cfg_scale=sampling.cfg,
            height=request.height,
            width=request.width,
            num_inference_steps=sampling.steps,
            generator=torch.Generator().manual_seed(request.seed),
            output_type="pt",
        ).images
    return images.permute(0, 2, 3, 1)


@contextmanager
def token_types(pipeline: Any) -> Iterator[None]:
    """Pass the processor's field `mm_token_type_ids` to the text encoder in every call, as the fix
    of diffusers #14194 does. transformers 4 has no such field, and needs none.
    """
    make = getattr(pipeline.processor, "create_mm_token_type_ids", None)

    def add(
        module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        types = torch.as_tensor(make(kwargs["input_ids"].tolist()))
        return args, {**kwargs, "mm_token_type_ids": types.to(kwargs["input_ids"].device)}

    if make is None:
        yield
        return
    hook = pipeline.text_encoder.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def copy_base(base: Path, folder: Path) -> Path:
    """Copy a base into a new folder; return the folder."""
    shutil.copytree(base, folder)
    return folder
