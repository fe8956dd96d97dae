"""The denoising loop for Qwen-Image-Edit, over the components
of diffusers' QwenImageEditPlusPipeline.

With conditions at one megapixel its result is that pipeline's. By default it encodes them at the
crop's own size: three conditions and a 512 x 512 output are then 4,096 tokens instead of 13,312.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..options import Sampling
from ..progress import Progress
from .pipeline import Base

VISION_PIXELS = 384 * 384
"""What the vision encoder sees of each condition, as in training."""
STAGES = ("encoding", "sampling", "decoding")
"""What is told of a picture, each time with its steps."""


@dataclass(frozen=True)
class SampleRequest:
    """One picture to sample.

    prompt : the edit in words
    conditions : the conditioning images in the recipe's order, RGB
    height, width : of the result in pixels, multiples of 16
    seed : the same seed gives the same noise on every device
    background : the crop before the edit, RGB of the result's size, and MASK [height, width], > 0
        where the edit may show; None: the edit may show everywhere
    shift : of the noise schedule, as an acceleration LoRA was trained with;
        None: the base's own, by the size
    """

    prompt: str
    conditions: Sequence[Image.Image]
    height: int
    width: int
    seed: int
    background: tuple[Image.Image, Tensor] | None = None
    shift: float | None = None

    def pixels(self, condition_pixels: int | None) -> int:
        """Area of the result and of all conditions as they are encoded."""
        return self.height * self.width + sum(
            condition_pixels or image.width * image.height for image in self.conditions
        )


@torch.no_grad()
def sample(
    base: Base, task: SampleRequest, sampling: Sampling, progress: Progress, in_turn: bool = False
) -> Tensor:
    """Edit one picture.

    Parameters
    ----------
    base : the loaded model; of its state only the cache changes
    progress : told before each pass of an encoder or the decoder, before the first step, and after
        each step with the picture as it stands; may raise, which cancels
    in_turn : the two halves of CFG never go in one batch, which needs more memory

    Returns
    -------
    [1, height, width, 3] in 0..1, float32, on the CPU
    """
    pipeline, device = base.pipeline, base.device
    dtype = pipeline.transformer.dtype
    pixels = task.pixels(sampling.condition_pixels)

    def bring(part: str, done: int = 0, stage: str = "encoding") -> None:
        progress(done, sampling.steps, stage)
        base.memory.load_part(part, pixels, progress)

    prompts = [task.prompt, sampling.negative] if sampling.cfg > 1 else [task.prompt]
    embeddings = [_embed(base, text, task.conditions, bring) for text in prompts]
    encoded = [_encode(base, image, sampling.condition_pixels, bring) for image in task.conditions]

    factor = pipeline.vae_scale_factor
    grid = (task.height // (2 * factor), task.width // (2 * factor))
    shapes = [
        (1, *grid),
        *((1, height // 2, width // 2) for height, width in (one.shape[-2:] for one in encoded)),
    ]
    reference = torch.cat([_pack(one) for one in encoded], dim=1).to(device, dtype)
    noise = _noise(task.seed, pipeline.latent_channels, grid)
    background = None
    if task.background:
        image, mask = task.background
        # A latent is free where any of its pixels may change.
        still = _pack(_encode(base, image, None, bring)).to(device, dtype)
        free = functional.max_pool2d((mask > 0).float()[None, None], factor)
        background = still, _pack(free.unsqueeze(2).expand(noise.shape)).to(device, dtype)
    latents = noise = _pack(noise).to(device, dtype)

    base.memory.load_part("transformer", pixels, progress)
    together = _in_one_batch(base, sampling) and not in_turn
    predict = (
        _batched(embeddings, device, dtype) if together else _in_turn(embeddings, device, dtype)
    )
    scheduler = _scheduler(pipeline.scheduler, sampling.steps, latents.shape[1], task.shift, device)
    progress(0, sampling.steps, "sampling")
    for index, timestep in enumerate(scheduler.timesteps):
        tokens = torch.cat([latents, reference], dim=1)
        where = {
            "step_index": index,
            "num_inference_steps": sampling.steps,
            "sigma": scheduler.sigmas[index],
        }
        predictions = predict(
            pipeline.transformer, tokens, timestep.to(dtype) / 1000, shapes, latents.shape[1], where
        )
        velocity = _guide(predictions, sampling.cfg)
        # Shown is where the steps are heading: the picture this prediction alone would give.
        heading = latents - scheduler.sigmas[index].to(dtype) * velocity
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        if background:
            still, free = background
            sigma = scheduler.sigmas[index + 1].to(dtype)
            latents = torch.lerp(torch.lerp(still, noise, sigma), latents, free)
        progress(index + 1, sampling.steps, "sampling", unpack(heading, grid)[:, :, 0])
    bring("vae", sampling.steps, "decoding")
    return _decode(base, unpack(latents, grid))


def _noise(seed: int, channels: int, grid: tuple[int, int]) -> Tensor:
    """[1, channels, 1, h / 8, w / 8], drawn on the CPU and in 32 bits, so that the noise of a seed
    depends on neither device nor precision.
    """
    noise = torch.randn(
        (1, 1, channels, 2 * grid[0], 2 * grid[1]),
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float32,
    )
    return noise.transpose(1, 2)


def _in_one_batch(base: Base, sampling: Sampling) -> bool:
    """Whether a batch of both halves of CFG is faster.

    It is where the weights are streamed: that is the bottleneck, and one pass over them serves
    both. Where they lie on the device, two forwards of some thousand tokens each are bound by
    arithmetic: a batch gains nothing, and holds twice the memory. Padding needs a mask, which the
    other attention kernels refuse.
    """
    masks = sampling.attention in ("default", "cudnn")
    return base.memory.mode == "group offload" and masks and not sampling.step_cache


Embedding = tuple[Tensor, Tensor | None]
Shapes = list[tuple[int, int, int]]
Predict = Callable[[Any, Tensor, Tensor, Shapes, int, dict[str, Any]], list[Tensor]]
"""Called with the transformer, tokens [1, n, c], timestep [], shapes, count, and for a step cache
where the loop is; gives the first `count` predicted tokens of the conditional pass, and of the
unconditional one where there is guidance."""


def _in_turn(embeddings: list[Embedding], device: torch.device, dtype: torch.dtype) -> Predict:
    """One forward for each prompt."""
    placed = [
        (name, embedding.to(device, dtype), None if mask is None else mask.to(device))
        for name, (embedding, mask) in zip(("cond", "uncond"), embeddings, strict=False)
    ]

    def predict(
        transformer: Any,
        tokens: Tensor,
        timestep: Tensor,
        shapes: Shapes,
        count: int,
        where: dict[str, Any],
    ) -> list[Tensor]:
        def forwards() -> Iterator[Tensor]:
            for name, embedding, mask in placed:
                with transformer.cache_context(name, **where):
                    yield transformer(
                        hidden_states=tokens,
                        timestep=timestep.expand(1),
                        encoder_hidden_states=embedding,
                        encoder_hidden_states_mask=mask,
                        img_shapes=[shapes],
                        return_dict=False,
                    )[0][:, :count]

        return list(forwards())

    return predict


def _batched(embeddings: list[Embedding], device: torch.device, dtype: torch.dtype) -> Predict:
    """One forward for all prompts, the shorter ones padded and masked."""
    longest = max(embedding.shape[1] for embedding, _ in embeddings)
    padded, masks = [], []
    for embedding, mask in embeddings:
        missing = longest - embedding.shape[1]
        mask = (
            torch.ones(embedding.shape[:2], dtype=torch.bool, device=embedding.device)
            if mask is None
            else mask
        )
        padded.append(functional.pad(embedding, (0, 0, 0, missing)))
        masks.append(functional.pad(mask.bool(), (0, missing)))
    together = torch.cat(padded).to(device, dtype)
    valid = torch.cat(masks)
    mask = None if valid.all() else valid.to(device)

    def predict(
        transformer: Any,
        tokens: Tensor,
        timestep: Tensor,
        shapes: Shapes,
        count: int,
        where: dict[str, Any],
    ) -> list[Tensor]:
        number = len(together)
        predictions: Tensor = transformer(
            hidden_states=tokens.expand(number, -1, -1),
            timestep=timestep.expand(number),
            encoder_hidden_states=together,
            encoder_hidden_states_mask=mask,
            img_shapes=[shapes] * number,
            return_dict=False,
        )[0][:, :count]
        return list(predictions.split(1))

    return predict


def _guide(predictions: list[Tensor], cfg: float) -> Tensor:
    """Classifier-free guidance, rescaled to the norm of the conditional prediction, as Qwen-Image
    was tuned with.
    """
    conditional = predictions[0]
    if len(predictions) == 1:
        return conditional
    guided = predictions[1] + cfg * (conditional - predictions[1])
    rescaled: Tensor = guided * (
        conditional.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
    )
    return rescaled


def _scheduler(
    scheduler: Any, steps: int, tokens: int, shift: float | None, device: torch.device
) -> Any:
    """A scheduler of the base's kind for this run alone,
    shifted by the number of tokens or as asked.
    """
    options: dict[str, Any] = {}
    if steps == 1 or shift:
        # Stretching a single step to the terminal shift divides by zero; acceleration LoRAs were
        # trained without it.
        options["shift_terminal"] = None
    own = type(scheduler).from_config(scheduler.config, **options)
    config = own.config
    slope = (config.max_shift - config.base_shift) / (
        config.max_image_seq_len - config.base_image_seq_len
    )
    # An exponential shift of log(s) is a shift of s.
    mu = (
        math.log(shift)
        if shift
        else config.base_shift + slope * (tokens - config.base_image_seq_len)
    )
    own.set_timesteps(
        sigmas=torch.linspace(1, 1 / steps, steps, dtype=torch.double).numpy(), mu=mu, device=device
    )
    own.set_begin_index(0)
    return own


def _embed(
    base: Base, text: str, conditions: Sequence[Image.Image], bring: Callable[[str], None]
) -> Embedding:
    """The prompt with its pictures, [1, tokens, width], and its mask where it has padding."""

    def make() -> Embedding:
        bring("text_encoder")
        resize = base.pipeline.image_processor.resize
        seen = [
            resize(image, *size_of(image.height, image.width, VISION_PIXELS))
            for image in conditions
        ]
        embedding, mask = base.pipeline.encode_prompt(text, image=seen, device=base.device)
        return embedding.cpu(), None if mask is None else mask.cpu()

    return base.cache.get(("prompt", text, *map(_digest, conditions)), make)


def _encode(
    base: Base, image: Image.Image, pixels: int | None, bring: Callable[[str], None]
) -> Tensor:
    """A condition's latents, normalised, [1, z, 1, h / 8, w / 8]."""
    size = (
        (image.height, image.width)
        if pixels is None
        else size_of(image.height, image.width, pixels)
    )

    def make() -> Tensor:
        bring("vae")
        vae = base.pipeline.vae
        picture = (
            base.pipeline.image_processor.preprocess(image, *size)
            .unsqueeze(2)
            .to(base.device, vae.dtype)
        )
        mean, deviation = _statistics(vae, base.device)
        latents: Tensor = vae.encode(picture).latent_dist.mode()
        return ((latents - mean) / deviation).cpu()

    return base.cache.get(("latents", size, _digest(image)), make)


def _decode(base: Base, latents: Tensor) -> Tensor:
    vae = base.pipeline.vae
    mean, deviation = _statistics(vae, base.device)
    # Divided by the inverse, and not multiplied, as the stock pipeline does: in 16 bits the two are
    # not the same.
    picture: Tensor = vae.decode(latents.to(vae.dtype) / (1 / deviation) + mean, return_dict=False)[
        0
    ][:, :, 0]
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


def unpack(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The inverse of `_pack`; grid is (h / 2, w / 2)."""
    patches = tokens.reshape(1, *grid, tokens.shape[-1] // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(1, -1, 1, 2 * grid[0], 2 * grid[1])


def size_of(height: int, width: int, pixels: int) -> tuple[int, int]:
    """(height, width) of about this area in a picture's aspect ratio,
    rounded to 32 as in training.
    """
    ratio = width / height
    side = math.sqrt(pixels * ratio)
    return max(32, round(side / ratio / 32) * 32), max(32, round(side / 32) * 32)


def _digest(image: Image.Image) -> tuple[tuple[int, int], str]:
    return image.size, hashlib.sha256(image.tobytes()).hexdigest()
