"""Encode a prompt and its conditioning images with the base's text encoder, Qwen2.5-VL.

It does what `encode_prompt` of diffusers' QwenImageEditPlusPipeline does, with the same template,
processor and text encoder, and passes one more input, `mm_token_type_ids`. Without that input,
transformers 5 gives the tokens of an image the positions 0, 1, 2, ... of a text, and reports no
error (diffusers #14194). With it, each token has three positions: time, row and column (M-RoPE,
Wang et al. 2024, "Qwen2-VL").
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .pipeline import Pipeline

IMAGE_PROMPT = "Picture {}: <|vision_start|><|image_pad|><|vision_end|>"
"""Text before the prompt for each conditioning image, numbered from 1, as in training."""

_TYPE_IDS = "mm_token_type_ids"
"""Input of the text encoder, [1, tokens]: 0 = text, 1 = image."""


def encode(
    pipeline: Pipeline, text: str, images: Sequence[Image.Image], device: torch.device
) -> Tensor:
    """Encode a prompt together with its images.

    Parameters
    ----------
    text : the edit in words
    images : at least one RGB image, at the size at which the vision part reads it
    device : device of the text encoder

    Returns
    -------
    [1, tokens, width] on the device, without the tokens of the template's system prompt
    """
    image_text = "".join(IMAGE_PROMPT.format(number + 1) for number in range(len(images)))
    inputs = pipeline.processor(
        text=[pipeline.prompt_template_encode.format(image_text + text)],
        images=list(images),
        return_tensors="pt",
    ).to(device)
    outputs = pipeline.text_encoder(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        pixel_values=inputs["pixel_values"],
        image_grid_thw=inputs["image_grid_thw"],
        output_hidden_states=True,
        **_token_types(pipeline.text_encoder, inputs["input_ids"]),
    )
    hidden_states: Tensor = outputs.hidden_states[-1]
    return hidden_states[:, pipeline.prompt_template_encode_start_idx :]


def _token_types(text_encoder: Any, input_ids: Tensor) -> dict[str, Tensor]:
    """Return the token types as an argument of the text encoder.

    transformers 4 needs none: it computes the positions from the image tokens.
    """
    if _TYPE_IDS not in inspect.signature(type(text_encoder).forward).parameters:
        return {}
    return {_TYPE_IDS: (input_ids == text_encoder.config.image_token_id).int()}
