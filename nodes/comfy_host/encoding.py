"""Conditioning images and prompts, encoded by ComfyUI's CLIP and VAE as the models were trained."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...artmancer.qwen.prompt import IMAGE_PROMPT
from ...artmancer.qwen.sampler import VISION_PIXELS, size_for_area

Conditioning = list[list[Any]]
"""ComfyUI's CONDITIONING: pairs of an embedding [1, tokens, width] and a dict of settings."""

TEMPLATE = (
    "<|im_start|>system\n"
    "Describe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. "
    "Generate a new image that meets the user's requirements while maintaining consistency with "
    "the original input where appropriate."
    "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
"""Text around the prompt that Qwen-Image-Edit was trained with, as in diffusers' pipeline."""

_VISION_SIDE = 28
"""Sides of an image for the vision encoder are multiples of this many pixels: two patches of 14."""


def encode_image(vae: Any, image: Image.Image, area: int | None) -> Tensor:
    """Encode an RGB image at about this area in pixels, None: at its own size; return the latents
    in the shape of ComfyUI's VAE.
    """
    if area is not None:
        image = _resize(image, size_for_area(image.height, image.width, area))
    latents: Tensor = vae.encode(to_tensor(image))
    return latents


def encode_qwen_prompt(clip: Any, text: str, seen: list[Tensor]) -> Conditioning:
    """Encode a prompt for Qwen-Image-Edit with the images that its vision encoder sees, see
    `as_seen`.
    """
    placeholders = "".join(IMAGE_PROMPT.format(number) for number in range(1, len(seen) + 1))
    tokens = clip.tokenize(placeholders + text, images=seen, llama_template=TEMPLATE)
    conditioning: Conditioning = clip.encode_from_tokens_scheduled(tokens)
    return conditioning


def with_settings(conditioning: Conditioning, **settings: Any) -> Conditioning:
    """Return the conditioning with more settings, for example `reference_latents`, the latents of
    all conditioning images.
    """
    return [[embedding, {**others, **settings}] for embedding, others in conditioning]


def as_seen(image: Image.Image) -> Tensor:
    """Resize an image for the vision encoder as in training, in two steps: to about VISION_PIXELS,
    then to multiples of its patches; return an IMAGE [1, H, W, 3].

    ComfyUI would do the second step without antialiasing and with another filter.
    """
    image = _resize(image, size_for_area(image.height, image.width, VISION_PIXELS))
    width, height = (max(1, round(side / _VISION_SIDE)) * _VISION_SIDE for side in image.size)
    return to_tensor(image.resize((width, height), Image.Resampling.BICUBIC))


def to_tensor(image: Image.Image) -> Tensor:
    """Convert an image to an IMAGE [1, H, W, 3]."""
    return torch.from_numpy(np.array(image)).float()[None] / 255


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize an image to this (height, width), as diffusers' pipeline does."""
    height, width = size
    return image.resize((width, height), Image.Resampling.LANCZOS)
