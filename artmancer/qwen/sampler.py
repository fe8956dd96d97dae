"""The denoising loop for Qwen-Image-Edit, over the components of diffusers' QwenImageEditPlusPipeline.

With conditions at one megapixel its result is that pipeline's. By default it encodes them at the crop's own size: three
conditions and a 512 x 512 output are then 4,096 tokens instead of 13,312.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .pipeline import Base

ONE_MEGAPIXEL = 1024 * 1024
VISION_PIXELS = 384 * 384
"""What the vision encoder sees of each condition, as in training."""

Step = Callable[[int, Tensor], None]
"""Called as step(number of steps done, latents [1, z, h / 8, w / 8]); may raise, which cancels."""


@dataclass(frozen=True)
class Sampling:
    """What to sample.

    prompt, negative : the edit in words; the negative is read only where cfg is not 1
    height, width : of the result in pixels, multiples of 16
    steps : denoising steps
    cfg : classifier-free guidance scale; 1 = one forward a step instead of two
    seed : the same seed gives the same noise on every device
    condition_pixels : the area each condition is encoded at; None = its own size
    """

    prompt: str
    negative: str
    height: int
    width: int
    steps: int
    cfg: float
    seed: int
    condition_pixels: int | None = None


@torch.no_grad()
def sample(base: Base, conditions: Sequence[Image.Image], sampling: Sampling, step: Step) -> Tensor:
    """Edit one picture.

    Parameters
    ----------
    base : the loaded model; of its state only the cache changes
    conditions : the conditioning images in the recipe's order, RGB
    step : told after each step, and with 0 before the first

    Returns
    -------
    [1, height, width, 3] in 0..1, float32, on the CPU
    """
    pipeline, device = base.pipeline, base.device
    dtype = pipeline.transformer.dtype
    prompts = [sampling.prompt, sampling.negative] if sampling.cfg != 1 else [sampling.prompt]
    embeddings = [_embed(base, text, conditions) for text in prompts]
    encoded = [_encode(base, image, sampling.condition_pixels) for image in conditions]
    base.bring("transformer")

    factor = pipeline.vae_scale_factor
    grid = (sampling.height // (2 * factor), sampling.width // (2 * factor))
    shapes = [[(1, *grid), *((1, height // 2, width // 2) for height, width in (one.shape[-2:] for one in encoded))]]
    reference = torch.cat([_pack(one) for one in encoded], dim=1).to(device, dtype)
    # Drawn on the CPU, so that the noise of a seed does not depend on the device.
    noise = torch.randn(
        (1, 1, pipeline.latent_channels, 2 * grid[0], 2 * grid[1]),
        generator=torch.Generator().manual_seed(sampling.seed),
        dtype=dtype,
    )
    latents = _pack(noise.transpose(1, 2)).to(device)

    scheduler, timesteps = _schedule(pipeline.scheduler, sampling.steps, latents.shape[1], device)
    step(0, _unpack(latents, grid)[:, :, 0])
    for index, timestep in enumerate(timesteps):
        tokens = torch.cat([latents, reference], dim=1)
        predictions = []
        for name, (embedding, mask) in zip(("cond", "uncond"), embeddings, strict=False):
            with pipeline.transformer.cache_context(name):
                predictions.append(
                    pipeline.transformer(
                        hidden_states=tokens,
                        timestep=timestep.expand(1).to(dtype) / 1000,
                        encoder_hidden_states=embedding.to(device, dtype),
                        encoder_hidden_states_mask=None if mask is None else mask.to(device),
                        img_shapes=shapes,
                        return_dict=False,
                    )[0][:, : latents.shape[1]]
                )
        latents = scheduler.step(_guide(predictions, sampling.cfg), timestep, latents, return_dict=False)[0]
        step(index + 1, _unpack(latents, grid)[:, :, 0])
    return _decode(base, _unpack(latents, grid))


def _guide(predictions: list[Tensor], cfg: float) -> Tensor:
    """Classifier-free guidance, rescaled to the norm of the conditional prediction, as Qwen-Image was tuned with."""
    conditional = predictions[0]
    if len(predictions) == 1:
        return conditional
    guided = predictions[1] + cfg * (conditional - predictions[1])
    rescaled: Tensor = guided * (conditional.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
    return rescaled


def _schedule(scheduler: Any, steps: int, tokens: int, device: torch.device) -> tuple[Any, Tensor]:
    """A scheduler of the base's kind for this run alone, and its timesteps, shifted by the number of tokens."""
    # Stretching a single step to the terminal shift divides by zero.
    single = {"shift_terminal": None} if steps == 1 else {}
    own = type(scheduler).from_config(scheduler.config, **single)
    config = own.config
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    shift = config.base_shift + slope * (tokens - config.base_image_seq_len)
    own.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps, dtype=torch.double).numpy(), mu=shift, device=device)
    own.set_begin_index(0)
    return own, own.timesteps


def _embed(base: Base, text: str, conditions: Sequence[Image.Image]) -> tuple[Tensor, Tensor | None]:
    """The prompt with its pictures, [1, tokens, width], and its mask where it has padding."""

    def make() -> tuple[Tensor, Tensor | None]:
        base.bring("text_encoder")
        resize = base.pipeline.image_processor.resize
        seen = [resize(image, *_size(image, VISION_PIXELS)) for image in conditions]
        embedding, mask = base.pipeline.encode_prompt(text, image=seen, device=base.device)
        return embedding, mask

    return base.cache.get(("prompt", text, *map(_digest, conditions)), make)


def _encode(base: Base, image: Image.Image, pixels: int | None) -> Tensor:
    """A condition's latents, normalised, [1, z, 1, h / 8, w / 8]."""
    size = (image.height, image.width) if pixels is None else _size(image, pixels)

    def make() -> Tensor:
        base.bring("vae")
        vae = base.pipeline.vae
        picture = base.pipeline.image_processor.preprocess(image, *size).unsqueeze(2).to(base.device, vae.dtype)
        mean, deviation = _statistics(vae, base.device)
        latents: Tensor = vae.encode(picture).latent_dist.mode()
        return (latents - mean) / deviation

    return base.cache.get(("latents", size, _digest(image)), make)


def _decode(base: Base, latents: Tensor) -> Tensor:
    base.bring("vae")
    vae = base.pipeline.vae
    mean, deviation = _statistics(vae, base.device)
    picture: Tensor = vae.decode(latents.to(vae.dtype) * deviation + mean, return_dict=False)[0][:, :, 0]
    return (picture.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu()


def _statistics(vae: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the VAE's latents, [1, z, 1, 1, 1]."""
    mean, deviation = (
        torch.tensor(values).view(1, -1, 1, 1, 1).to(device, vae.dtype)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, deviation


def _pack(latents: Tensor) -> Tensor:
    """[1, z, 1, h, w] to tokens [1, h w / 4, 4 z]: each token is a patch of 2 x 2."""
    _, channels, _, height, width = latents.shape
    patches = latents.reshape(1, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(1, height * width // 4, 4 * channels)


def _unpack(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The inverse of `_pack`; grid is (h / 2, w / 2)."""
    patches = tokens.reshape(1, *grid, tokens.shape[-1] // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(1, -1, 1, 2 * grid[0], 2 * grid[1])


def _size(image: Image.Image, pixels: int) -> tuple[int, int]:
    """(height, width) of about this area in the picture's aspect ratio, rounded to 32 as in training."""
    ratio = image.width / image.height
    width = math.sqrt(pixels * ratio)
    return round(width / ratio / 32) * 32, round(width / 32) * 32


def _digest(image: Image.Image) -> tuple[tuple[int, int], str]:
    return image.size, hashlib.sha256(image.tobytes()).hexdigest()
