"""A tiny Qwen2.5-VL in the form in which Qwen-Image-Edit's text encoder is published: its names of
weights and keys of configuration are those of transformers 4 and ComfyUI, not of transformers 5.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .tiny_qwen import SPECIAL_TOKENS

WIDTH = 256
"""Width of the embeddings: two heads of the real 128."""

WEIGHT_DEVIATION = 0.1
"""Standard deviation of the random weights: large enough that wrong positions are visible, small
enough that rounding is not.
"""

LAYERS = 3
"""Layers of the language model."""

VISION = {
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_heads": 2,
    "out_hidden_size": WIDTH,
    "fullatt_block_indexes": [1],
}
"""Sizes of the vision part; the first layer has window attention, the second full attention."""

REAL_VOCABULARY = 152064
"""Size of the real embedding; the tokenizer has fewer tokens."""


def save(base: Path, real_tokenizer: Path | None = None, nested: bool = True) -> None:
    """Replace the text encoder, tokenizer and processor in a base's folder.

    Parameters
    ----------
    real_tokenizer : folder of the published tokenizer; None: one of single bytes
    nested : the configuration as transformers 4.53 wrote it for Qwen-Image, with a `text_config`;
        else as it was first published, with everything at the top
    """
    for part in ("tokenizer", "processor", "text_encoder"):
        shutil.rmtree(base / part)
        (base / part).mkdir()
    for part in ("tokenizer", "processor"):
        if real_tokenizer is None:
            _save_tokenizer(base / part)
        else:
            shutil.copytree(real_tokenizer, base / part, dirs_exist_ok=True)
    _write(base / "processor" / "preprocessor_config.json", _image_processor())
    tokens = json.loads((base / "tokenizer" / "tokenizer_config.json").read_text())
    ids = {
        token["content"].strip("<|>"): int(number)
        for number, token in tokens["added_tokens_decoder"].items()
    }
    vocabulary = REAL_VOCABULARY if real_tokenizer else 256 + len(SPECIAL_TOKENS)
    config = _config(vocabulary, ids, nested)
    _write(base / "text_encoder" / "config.json", config)
    weights = _weights(vocabulary)
    save_file(weights, base / "text_encoder" / "model.safetensors", {"format": "pt"})


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2))


def _save_tokenizer(folder: Path) -> None:
    """Write a tokenizer of single bytes and Qwen's special tokens."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    _write(folder / "vocab.json", {letter: index for index, letter in enumerate(alphabet)})
    (folder / "merges.txt").write_text("#version: 0.2\n")
    flags = {name: False for name in ("lstrip", "normalized", "rstrip", "single_word")}
    _write(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": {
                str(len(alphabet) + index): {"content": token, "special": True, **flags}
                for index, token in enumerate(SPECIAL_TOKENS)
            },
            "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "Qwen2Tokenizer",
        },
    )


def _image_processor() -> dict[str, Any]:
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "max_pixels": 12845056,
        "merge_size": 2,
        "min_pixels": 3136,
        "patch_size": 14,
        "processor_class": "Qwen2VLProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "temporal_patch_size": 2,
    }


def _config(vocabulary: int, ids: dict[str, int], nested: bool) -> dict[str, Any]:
    rope = {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"}
    text = {
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "intermediate_size": 320,
        "max_position_embeddings": 128000,
        "max_window_layers": 28,
        "num_attention_heads": 2,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-6,
        "rope_scaling": rope if nested else {"type": "mrope", "mrope_section": [16, 24, 24]},
        "rope_theta": 1e6,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": vocabulary,
    }
    config: dict[str, Any] = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "bos_token_id": ids["endoftext"],
        "eos_token_id": ids["im_end"],
        "image_token_id": ids["image_pad"],
        "model_type": "qwen2_5_vl",
        "torch_dtype": "float32",
        "video_token_id": ids["video_pad"],
        "vision_end_token_id": ids["vision_end"],
        "vision_start_token_id": ids["vision_start"],
        "vision_token_id": ids["vision_pad"],
        **text,
        "vision_config": {
            "hidden_act": "silu",
            "in_chans": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
            **VISION,
        },
    }
    if nested:
        config["text_config"] = {**text, "model_type": "qwen2_5_vl_text"}
        config["vision_config"]["model_type"] = "qwen2_5_vl"
    return config


def _weights(vocabulary: int) -> dict[str, torch.Tensor]:
    """Return random weights under the published names."""
    vision, inner, merged = VISION["hidden_size"], VISION["intermediate_size"], 4 * 64
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, WIDTH),
        "model.norm.weight": (WIDTH,),
        "visual.patch_embed.proj.weight": (vision, 3, 2, 14, 14),
        "visual.merger.ln_q.weight": (vision,),
        **_linear("visual.merger.mlp.0", merged, merged),
        **_linear("visual.merger.mlp.2", merged, WIDTH),
    }
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        shapes |= {
            f"{name}.input_layernorm.weight": (WIDTH,),
            f"{name}.post_attention_layernorm.weight": (WIDTH,),
            **_linear(f"{name}.self_attn.q_proj", WIDTH, WIDTH),
            **_linear(f"{name}.self_attn.k_proj", WIDTH, 128),
            **_linear(f"{name}.self_attn.v_proj", WIDTH, 128),
            f"{name}.self_attn.o_proj.weight": (WIDTH, WIDTH),
            f"{name}.mlp.gate_proj.weight": (320, WIDTH),
            f"{name}.mlp.up_proj.weight": (320, WIDTH),
            f"{name}.mlp.down_proj.weight": (WIDTH, 320),
        }
    for layer in range(VISION["depth"]):
        name = f"visual.blocks.{layer}"
        shapes |= {
            f"{name}.norm1.weight": (vision,),
            f"{name}.norm2.weight": (vision,),
            **_linear(f"{name}.attn.qkv", vision, 3 * vision),
            **_linear(f"{name}.attn.proj", vision, vision),
            **_linear(f"{name}.mlp.gate_proj", vision, inner),
            **_linear(f"{name}.mlp.up_proj", vision, inner),
            **_linear(f"{name}.mlp.down_proj", inner, vision),
        }
    random = torch.Generator().manual_seed(0)
    return {
        name: torch.ones(shape)
        if "norm" in name or "ln_q" in name
        else torch.randn(shape, generator=random) * WEIGHT_DEVIATION
        for name, shape in shapes.items()
    }


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
