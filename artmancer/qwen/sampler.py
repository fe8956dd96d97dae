"""Sample images from Qwen-Image-Edit, with the components of diffusers'
QwenImageEditPlusPipeline.

With conditioning images at one megapixel the result is that pipeline's. By default each is encoded
at the crop's own size: three conditioning images and a 512 x 512 result are then 4,096 tokens
instead of 13,312.

Words of this module:
- latents: an image as the VAE encodes it, [1, z, 1, height / 8, width / 8], z = 16
- tokens: latents as the transformer reads them, [1, n, 4 z]: each token is a patch of 2 x 2 latents
- grid: (rows, columns) of an image's tokens
- image_latents: the tokens of all conditioning images, joined
- velocity: the transformer's prediction, along which a step moves the latents
- sigma: the share of noise in the latents, from 1 down to 0
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..options import Sampling
from ..progress import Progress
from . import prompt
from .memory import GROUP_OFFLOAD
from .pipeline import Base

VISION_PIXELS = 384 * 384
"""Area at which the text encoder's vision part reads a conditioning image, in pixels, as in
training.
"""

STAGES = ("encoding", "sampling", "decoding")
"""Progress stages of one image."""

_SIDE_MULTIPLE = 32
"""Sides of an encoded image are multiples of this many pixels, as in training."""

_TIMESTEPS = 1000
"""Timesteps of the noise schedule; the transformer takes a timestep as a share of them."""

LoadPart = Callable[[str, int], None]
"""A function that makes a part of the base, by its name in memory.PARTS, ready to run on images of
this area in pixels.
"""


@dataclass(frozen=True)
class SampleRequest:
    """One image to sample.

    Attributes
    ----------
    prompt : the edit in words
    conditions : the conditioning images in the recipe's order, RGB
    height, width : size of the result in pixels, multiples of 16
    seed : the same seed gives the same noise on every device
    background : the crop before the edit, RGB of the result's size, and MASK [height, width], above
        0 where the edit may show; None: the edit may show everywhere
    shift : shift of the noise schedule that an acceleration LoRA was trained with; None: the
        base's own, which depends on the result's size
    """

    prompt: str
    conditions: Sequence[Image.Image]
    height: int
    width: int
    seed: int
    background: tuple[Image.Image, Tensor] | None = None
    shift: float | None = None

    def pixels(self, condition_pixels: int | None) -> int:
        """Return the area of the result and of all conditioning images as they are encoded, in
        pixels.
        """
        return self.height * self.width + sum(
            condition_pixels or image.width * image.height for image in self.conditions
        )


class _Background(NamedTuple):
    """The image that the latents are pulled back to outside the mask.

    Attributes
    ----------
    latents : tokens of the image before the edit
    free : 1 for latents that the edit may change, else 0, in the tokens' shape
    """

    latents: Tensor
    free: Tensor


@dataclass(frozen=True, eq=False)
class _Inputs:
    """Inputs of the denoising loop.

    Attributes
    ----------
    prompts : the prompt and, with guidance, the negative prompt, [1, tokens, width], on the CPU
    image_latents : tokens of all conditioning images
    noise : tokens of noise, which the first step starts from
    grid : grid of the result
    img_shapes : (frames, rows, columns) of tokens, of the result and of each conditioning image
    background : None: the edit may show everywhere
    """

    prompts: list[Tensor]
    image_latents: Tensor
    noise: Tensor
    grid: tuple[int, int]
    img_shapes: list[tuple[int, int, int]]
    background: _Background | None


class _Pass(NamedTuple):
    """One forward pass of the transformer in every step, for n prompts.

    Attributes
    ----------
    prompt_embeds : [n, tokens, width]
    mask : bool [n, tokens], False = padding; None: no padding
    cache_name : name of the step cache's entry; None: no step cache
    """

    prompt_embeds: Tensor
    mask: Tensor | None
    cache_name: str | None


@torch.no_grad()
def sample(
    base: Base,
    request: SampleRequest,
    sampling: Sampling,
    progress: Progress,
    separate_passes: bool = False,
) -> Tensor:
    """Edit one image.

    Parameters
    ----------
    base : the loaded model; only its cache and the placement of its parts change
    progress : called before each pass of an encoder or the decoder, before the first step, and
        after each step with latents for a preview; raising in it cancels
    separate_passes : never put the two passes of classifier-free guidance into one batch, which
        needs more memory

    Returns
    -------
    IMAGE [1, height, width, 3] in 0..1, float32, on the CPU
    """
    steps = sampling.steps

    def load_encoder(name: str, pixels: int) -> None:
        progress(0, steps, "encoding")
        base.memory.load_part(name, pixels, progress)

    inputs = _inputs(base, request, sampling, load_encoder)
    pixels = request.pixels(sampling.condition_pixels)
    base.memory.load_part("transformer", pixels, progress)
    if not separate_passes and _is_batch_faster(base, sampling):
        passes = [_batched_pass(inputs)]
    else:
        passes = _separate_passes(inputs)
    scheduler = _scheduler(
        base.pipeline.scheduler, steps, inputs.noise.shape[1], request.shift, base.device
    )
    latents = _denoise(base, inputs, passes, scheduler, sampling, progress)
    progress(steps, steps, "decoding")
    base.memory.load_part("vae", request.height * request.width, progress)
    return _decode(base, unpack(latents, inputs.grid))


def _inputs(base: Base, request: SampleRequest, sampling: Sampling, load_part: LoadPart) -> _Inputs:
    """Encode the prompts and images of a request, and draw its noise."""
    pipeline, device = base.pipeline, base.device
    dtype = pipeline.transformer.dtype
    texts = [request.prompt, sampling.negative] if sampling.cfg > 1 else [request.prompt]
    prompts = [_encode_prompt(base, text, request.conditions, load_part) for text in texts]
    condition_latents = [
        _encode_image(base, image, sampling.condition_pixels, load_part)
        for image in request.conditions
    ]
    image_latents = torch.cat([_pack(latents) for latents in condition_latents], dim=1)
    image_latents = image_latents.to(device, dtype)
    # A token is a patch of 2 x 2 latents.
    token_side = 2 * pipeline.vae_scale_factor
    grid = (request.height // token_side, request.width // token_side)
    noise = _noise(request.seed, pipeline.latent_channels, grid)
    return _Inputs(
        prompts=prompts,
        image_latents=image_latents,
        noise=_pack(noise).to(device, dtype),
        grid=grid,
        img_shapes=[
            (1, *grid),
            *((1, latents.shape[-2] // 2, latents.shape[-1] // 2) for latents in condition_latents),
        ],
        background=_background(base, request, noise.shape, load_part),
    )


def _background(
    base: Base, request: SampleRequest, shape: torch.Size, load_part: LoadPart
) -> _Background | None:
    """Encode the image before the edit and its mask, for latents of this shape."""
    if request.background is None:
        return None
    image, mask = request.background
    dtype = base.pipeline.transformer.dtype
    latents = _pack(_encode_image(base, image, None, load_part)).to(base.device, dtype)
    # A latent is free where any of its pixels may change.
    free = functional.max_pool2d((mask > 0).float()[None, None], base.pipeline.vae_scale_factor)
    return _Background(latents, _pack(free.unsqueeze(2).expand(shape)).to(base.device, dtype))


def _denoise(
    base: Base,
    inputs: _Inputs,
    passes: list[_Pass],
    scheduler: Any,
    sampling: Sampling,
    progress: Progress,
) -> Tensor:
    """Run all steps; return the tokens of the result."""
    transformer = base.pipeline.transformer
    noise, background = inputs.noise, inputs.background
    latents = noise
    progress(0, sampling.steps, "sampling")
    for index, timestep in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[index]
        step = {"step_index": index, "num_inference_steps": sampling.steps, "sigma": sigma}
        velocities = _predict(transformer, inputs, passes, latents, timestep, step)
        velocity = _guide(velocities, sampling.cfg)
        # The preview is the image that this velocity alone would lead to: the latents themselves
        # are still full of noise.
        preview = latents - sigma.to(noise.dtype) * velocity
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        if background is not None:
            # The background as noisy as the latents are after this step.
            next_sigma = scheduler.sigmas[index + 1].to(noise.dtype)
            noisy_background = torch.lerp(background.latents, noise, next_sigma)
            latents = torch.lerp(noisy_background, latents, background.free)
        progress(index + 1, sampling.steps, "sampling", unpack(preview, inputs.grid)[:, :, 0])
    return latents


def _predict(
    transformer: Any,
    inputs: _Inputs,
    passes: list[_Pass],
    latents: Tensor,
    timestep: Tensor,
    step: dict[str, Any],
) -> list[Tensor]:
    """Return the velocity for each prompt, in the latents' shape; `step` describes the step to a
    step cache.
    """
    hidden_states = torch.cat([latents, inputs.image_latents], dim=1)
    timestep = timestep.to(inputs.noise.dtype) / _TIMESTEPS
    velocities: list[Tensor] = []
    for prompt_embeds, mask, cache_name in passes:
        count = len(prompt_embeds)
        with transformer.cache_context(cache_name, **step) if cache_name else nullcontext():
            prediction: Tensor = transformer(
                hidden_states=hidden_states.expand(count, -1, -1),
                timestep=timestep.expand(count),
                encoder_hidden_states=prompt_embeds,
                encoder_hidden_states_mask=mask,
                img_shapes=[inputs.img_shapes] * count,
                return_dict=False,
            )[0]
        # The conditioning images' tokens come after the latents'; their prediction is not used.
        velocities.extend(prediction[:, : latents.shape[1]].split(1))
    return velocities


def _is_batch_faster(base: Base, sampling: Sampling) -> bool:
    """Tell whether one batch of both passes of classifier-free guidance is faster than two passes.

    It is faster where the weights are streamed: streaming is the bottleneck, and the batch streams
    them once. Where they are on the device, two passes of some thousand tokens each are limited by
    arithmetic: a batch gains nothing and holds twice the memory. Padding needs a mask, which the
    other attention kernels refuse.
    """
    takes_mask = sampling.attention in ("default", "cudnn")
    return base.memory.mode == GROUP_OFFLOAD and takes_mask and not sampling.step_cache


def _separate_passes(inputs: _Inputs) -> list[_Pass]:
    """Make one pass for each prompt."""
    device, dtype = inputs.noise.device, inputs.noise.dtype
    return [
        _Pass(embeds.to(device, dtype), None, cache_name)
        for cache_name, embeds in zip(("cond", "uncond"), inputs.prompts, strict=False)
    ]


def _batched_pass(inputs: _Inputs) -> _Pass:
    """Make one pass for all prompts, the shorter prompt padded and masked."""
    device, dtype = inputs.noise.device, inputs.noise.dtype
    longest = max(embeds.shape[1] for embeds in inputs.prompts)
    padded = []
    masks = []
    for embeds in inputs.prompts:
        padding = longest - embeds.shape[1]
        padded.append(functional.pad(embeds, (0, 0, 0, padding)))
        mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        masks.append(functional.pad(mask, (0, padding)))
    joined_mask = torch.cat(masks)
    return _Pass(
        torch.cat(padded).to(device, dtype),
        None if joined_mask.all() else joined_mask.to(device),
        cache_name=None,
    )


def _guide(velocities: list[Tensor], cfg: float) -> Tensor:
    """Apply classifier-free guidance, rescaled to the norm of the conditional velocity, as
    Qwen-Image was tuned with.
    """
    conditional = velocities[0]
    if len(velocities) == 1:
        return conditional
    unconditional = velocities[1]
    guided = unconditional + cfg * (conditional - unconditional)
    rescaled: Tensor = guided * (
        conditional.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
    )
    return rescaled


def _noise(seed: int, channels: int, grid: tuple[int, int]) -> Tensor:
    """Draw the noise of a seed, [1, channels, 1, height / 8, width / 8].

    It is drawn on the CPU and in 32 bits, so that it depends on neither device nor precision.
    """
    noise = torch.randn(
        (1, 1, channels, 2 * grid[0], 2 * grid[1]),
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float32,
    )
    return noise.transpose(1, 2)


def _scheduler(
    base_scheduler: Any, steps: int, tokens: int, shift: float | None, device: torch.device
) -> Any:
    """Make a scheduler of the base's kind for one run, with this shift; None: the shift that the
    base has for this number of tokens.
    """
    options: dict[str, Any] = {}
    if steps == 1 or shift:
        # Stretching a single step to the terminal shift divides by zero; acceleration LoRAs were
        # trained without it.
        options["shift_terminal"] = None
    scheduler = type(base_scheduler).from_config(base_scheduler.config, **options)
    config = scheduler.config
    slope = (config.max_shift - config.base_shift) / (
        config.max_image_seq_len - config.base_image_seq_len
    )
    if shift:
        # The scheduler shifts by exp(mu).
        mu = math.log(shift)
    else:
        mu = config.base_shift + slope * (tokens - config.base_image_seq_len)
    sigmas = torch.linspace(1, 1 / steps, steps, dtype=torch.double).numpy()
    scheduler.set_timesteps(sigmas=sigmas, mu=mu, device=device)
    scheduler.set_begin_index(0)
    return scheduler


def _encode_prompt(
    base: Base, text: str, conditions: Sequence[Image.Image], load_part: LoadPart
) -> Tensor:
    """Encode a prompt together with the conditioning images; return it on the CPU."""

    def encode() -> Tensor:
        load_part("text_encoder", len(conditions) * VISION_PIXELS)
        resize = base.pipeline.image_processor.resize
        images = [
            resize(image, *size_for_area(image.height, image.width, VISION_PIXELS))
            for image in conditions
        ]
        return prompt.encode(base.pipeline, text, images, base.device).cpu()

    return base.cache.get(("prompt", text, *map(_digest, conditions)), encode)


def _encode_image(base: Base, image: Image.Image, area: int | None, load_part: LoadPart) -> Tensor:
    """Encode an image at about this area in pixels, None: at its own size; return its normalized
    latents on the CPU.
    """
    size = (image.height, image.width)
    if area is not None:
        size = size_for_area(*size, area)

    def encode() -> Tensor:
        load_part("vae", math.prod(size))
        vae = base.pipeline.vae
        pixels = base.pipeline.image_processor.preprocess(image, *size).unsqueeze(2)
        mean, deviation = _statistics(vae, base.device)
        latents: Tensor = vae.encode(pixels.to(base.device, vae.dtype)).latent_dist.mode()
        return ((latents - mean) / deviation).cpu()

    return base.cache.get(("latents", size, _digest(image)), encode)


def _decode(base: Base, latents: Tensor) -> Tensor:
    """Decode normalized latents to an IMAGE on the CPU."""
    vae = base.pipeline.vae
    mean, deviation = _statistics(vae, base.device)
    # Divided by the inverse, not multiplied, like the stock pipeline: in 16 bits the two differ.
    scaled = latents.to(vae.dtype) / (1 / deviation) + mean
    pixels: Tensor = vae.decode(scaled, return_dict=False)[0][:, :, 0]
    return (pixels.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu()


def _statistics(vae: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the VAE's latents, each [1, z, 1, 1, 1]."""
    mean, deviation = (
        torch.tensor(values).view(1, -1, 1, 1, 1).to(device, vae.dtype)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, deviation


def _pack(latents: Tensor) -> Tensor:
    """Turn latents [1, z, 1, h, w] into tokens [1, h w / 4, 4 z]."""
    _, channels, _, height, width = latents.shape
    patches = latents.reshape(1, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(1, height * width // 4, 4 * channels)


def unpack(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Turn the tokens of one image, [1, h w / 4, 4 z], back into latents [1, z, 1, h, w].

    Parameters
    ----------
    grid : (h / 2, w / 2)
    """
    patches = tokens.reshape(1, *grid, tokens.shape[-1] // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(1, -1, 1, 2 * grid[0], 2 * grid[1])


def size_for_area(height: int, width: int, area: int) -> tuple[int, int]:
    """Return the (height, width) of about this area, in pixels, for an image of this aspect ratio;
    multiples of 32, as in training.
    """
    ratio = width / height
    side = math.sqrt(area * ratio)
    return _round_side(side / ratio), _round_side(side)


def _round_side(side: float) -> int:
    return max(_SIDE_MULTIPLE, round(side / _SIDE_MULTIPLE) * _SIDE_MULTIPLE)


def _digest(image: Image.Image) -> tuple[tuple[int, int], str]:
    return image.size, hashlib.sha256(image.tobytes()).hexdigest()
