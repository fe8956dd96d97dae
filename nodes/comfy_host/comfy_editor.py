"""An editor around ComfyUI's own models: a MODEL, CLIP and VAE from any loader."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import comfy.sample
import comfy.samplers
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingAuraFlow
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ...artmancer.cache import Cache, digest
from ...artmancer.editor import EditRequest
from ...artmancer.errors import ArtMancerError
from ...artmancer.images import to_pil
from ...artmancer.options import Sampling
from ...artmancer.progress import Progress, part_progress
from ...artmancer.recipes import RecipeChoice, choose
from ...artmancer.variants import CHECKPOINT_FILES
from . import model_families
from .encoding import Conditioning, as_seen, encode_image, to_tensor, with_settings
from .model_families import TOKEN_SIDE, Family, family_of

AUTO = "auto"
"""Choice of the recipe that follows the checkpoint, and of the scheduler as the model was
published.
"""


def samplers() -> list[str]:
    """List the names of ComfyUI's samplers."""
    return list(comfy.samplers.KSampler.SAMPLERS)


def schedulers() -> list[str]:
    """List the names of ComfyUI's schedulers."""
    return list(comfy.samplers.KSampler.SCHEDULERS)


@dataclass(frozen=True, eq=False)
class ModelEditor:
    """An Editor (see artmancer/editor.py) that samples with ComfyUI from ComfyUI's own models.

    Attributes
    ----------
    model, clip, vae : ComfyUI's MODEL, with LoRAs on it, CLIP and VAE
    variant : one of VARIANTS
    recipe_choice : how the checkpoint was trained, a key of RECIPES, or "auto": by the file name of
        the first adapter, or, where there is none, as the variant's own checkpoint
    sampler : a name of `samplers`
    scheduler : a name of `schedulers`, or "auto": as the model was published
    shift : shift of the noise schedule; 0: as the model was published, for the size of the crop
    adapters : file names of the LoRAs on the model, the checkpoint first, where they are known
    accelerated : a LoRA for few steps is on the model, which is sampled with CFG 1 and its own
        schedule
    resolution, default_prompt, steps : see Editor

    Raises
    ------
    ArtMancerError : invalid_request for a model of an unknown kind, or a VAE of another
    """

    model: Any
    clip: Any
    vae: Any
    variant: str
    recipe_choice: str = AUTO
    sampler: str = "euler"
    scheduler: str = AUTO
    shift: float = 0.0
    adapters: tuple[str, ...] = ()
    accelerated: bool = False
    resolution: str | None = None
    default_prompt: str | None = None
    steps: int | None = None
    cache: Cache = field(default_factory=Cache)
    any_size = False
    keeps_surroundings = False

    def __post_init__(self) -> None:
        family_of(self.model, self.vae)

    @property
    def family(self) -> Family:
        return family_of(self.model, self.vae)

    @property
    def name(self) -> str:
        return f"{self.family.name}/{self.variant}"

    @property
    def recipe(self) -> str:
        return self._choice.name

    @property
    def recipe_reason(self) -> str:
        return self._choice.reason

    @property
    def _choice(self) -> RecipeChoice:
        if self.recipe_choice != AUTO:
            return choose(self.recipe_choice, None, None)
        if self.adapters:
            return choose(None, None, self.adapters[0])
        own = choose(None, None, CHECKPOINT_FILES[self.variant][0])
        return RecipeChoice(own.name, "default")

    @property
    def notes(self) -> tuple[str, ...]:
        schedule = "the published schedule" if self.scheduler == AUTO else self.scheduler
        shift = f" with a shift of {self._shift:g}" if self._shift else ""
        notes = [f"ComfyUI sampled with {self.sampler} and {schedule}{shift}."]
        if self.model.patches and not self.adapters:
            notes.append(f"LoRAs change {len(self.model.patches)} of the model's weights.")
        if self.family.note:
            notes.append(self.family.note)
        if self.recipe_choice == AUTO and not self.adapters:
            notes.append(
                f"The recipe {self.recipe} is the default for {self.variant}: the names of the "
                "model's LoRAs are not known. Choose the recipe in Editor from Model if the LoRA "
                "was trained with another one."
            )
        return tuple(notes)

    @property
    def _shift(self) -> float:
        """Shift of the noise schedule; 0: the published one."""
        if self.accelerated and not self.shift:
            return self.family.accelerated_shift or 0.0
        return self.shift

    def edit(self, request: EditRequest, progress: Progress) -> Tensor:
        """Edit the crop, see Editor.edit. The images of a batch are edited one by one, with seeds
        counting up; one whose mask is black is not edited.

        Raises
        ------
        ArtMancerError : invalid_request where a setting is not for this editor or the CLIP belongs
            to another model; out_of_memory
        """
        _check_settings(request.sampling)
        crop = request.conditions.crop
        count = len(crop.image)
        images = []
        with _out_of_memory_explained():
            for index in range(count):
                if crop.mask[index].any():
                    part = part_progress(progress, index, count)
                    images.append(self._edit_image(request, index, part))
                else:
                    images.append(crop.image[index : index + 1])
        return torch.cat(images)

    def _edit_image(self, request: EditRequest, index: int, progress: Progress) -> Tensor:
        """Edit one image of a batch; return an IMAGE [1, h, w, 3] on the CPU."""
        sampling = request.sampling
        inputs = self._inputs(request, index, progress)
        latents = self._sample(inputs, request.seed + index, sampling, progress)
        progress(sampling.steps, sampling.steps, "decoding")
        pixels: Tensor = self.vae.decode(latents)
        height, width = request.conditions.crop.region.size
        return pixels.reshape(1, height, width, -1)[..., :3].to("cpu", torch.float32)

    def _inputs(self, request: EditRequest, index: int, progress: Progress) -> "_Inputs":
        """Encode the prompts and the images of one image of a batch."""
        crop, family, sampling = request.conditions.crop, self.family, request.sampling
        steps = sampling.steps
        conditions = [to_pil(image[index]) for image in request.conditions.images.values()]
        guidance = family.guidance(self.model, sampling.cfg)
        if self.accelerated:
            # A guidance that the model itself reads costs no second pass, and stays.
            guidance = guidance._replace(cfg=1.0)
        texts = [request.prompt, sampling.negative] if guidance.cfg > 1 else [request.prompt]
        prompts = []
        for text in texts:
            progress(0, steps, "encoding")
            prompts.append(self._encode_prompt(text, conditions))
        references = []
        for image in conditions:
            progress(0, steps, "encoding")
            references.append(self._encode_image(image, sampling.condition_pixels))
        height, width = (side // family.latent_side for side in crop.region.size)
        time = (1,) if family.has_time_axis else ()
        latents, free = torch.zeros(1, family.channels, *time, height, width), None
        if sampling.keep_background:
            progress(0, steps, "encoding")
            latents = self._encode_image(to_pil(crop.image[index]), None)
            # A latent is free where any of its pixels may change.
            shown = (crop.feathered[index] > 0).float()[None, None]
            free = functional.max_pool2d(shown, family.latent_side)
        return _Inputs(
            with_settings(prompts[0], reference_latents=references, **guidance.settings),
            with_settings(prompts[-1], reference_latents=references),
            guidance.cfg,
            references,
            latents,
            free,
        )

    def _encode_prompt(self, text: str, conditions: list[Image.Image]) -> Conditioning:
        seen = [as_seen(image) for image in conditions] if self.family.sees_images else []

        def encode() -> _Prompt:
            return _Prompt(self.family.encode(self.clip, text, seen))

        conditioning = self.cache.get(("prompt", text, *map(digest, seen)), encode).conditioning
        width, expected = conditioning[0][0].shape[-1], self.family.text_width(self.model)
        if width != expected:
            raise ArtMancerError(
                "invalid_request",
                f"The CLIP makes embeddings of width {width}; the model takes {expected}. Connect "
                "the text encoder that belongs to the model.",
            )
        return conditioning

    def _encode_image(self, image: Image.Image, area: int | None) -> Tensor:
        key = ("latents", area, digest(to_tensor(image)))
        return self.cache.get(key, lambda: encode_image(self.vae, image, area))

    def _sample(
        self, inputs: "_Inputs", seed: int, sampling: Sampling, progress: Progress
    ) -> Tensor:
        """Run all steps on a clone of the model; return the latents."""
        family, steps = self.family, sampling.steps
        ratio = TOKEN_SIDE // family.latent_side
        grids = [
            (image.shape[-2] // ratio, image.shape[-1] // ratio)
            for image in (inputs.latents, *inputs.references)
        ]
        shift = self._shift or family.shift(grids[0][0] * grids[0][1], steps)
        (model,) = ModelSamplingAuraFlow().patch_aura(self.model, shift)
        family.patch(model, grids)

        def on_step(step: int, denoised: Tensor, _noisy: Tensor, _total: int) -> None:
            preview = denoised[:, :, 0] if family.has_time_axis else denoised
            progress(step + 1, steps, "sampling", preview)

        progress(0, steps, "sampling")
        result: Tensor = comfy.sample.sample_custom(
            model,
            _noise(inputs.latents, seed),
            inputs.cfg,
            comfy.samplers.sampler_object(self.sampler),
            self._sigmas(model, steps, shift),
            inputs.positive,
            inputs.negative,
            inputs.latents,
            noise_mask=inputs.free,
            callback=on_step,
            disable_pbar=True,
            seed=seed,
        )
        return result

    def _sigmas(self, model: Any, steps: int, shift: float) -> Tensor:
        """Return the noise schedule, [steps + 1]."""
        if self.scheduler == AUTO:
            # Acceleration LoRAs were trained without the stretching.
            last = None if self._shift else self.family.last_sigma
            return model_families.sigmas(steps, shift, last)
        sampling = model.get_model_object("model_sampling")
        scheduled: Tensor = comfy.samplers.calculate_sigmas(sampling, self.scheduler, steps)
        return scheduled


class _Inputs(NamedTuple):
    """Inputs of ComfyUI's sampling.

    Attributes
    ----------
    positive, negative : with the latents of all conditioning images
    cfg : scale of classifier-free guidance
    references : latents of the conditioning images
    latents : of the crop, or 0 where nothing is held to it, as the VAE encodes
    free : MASK [1, 1, h, w] of the latents that the edit may change; None: all
    """

    positive: Conditioning
    negative: Conditioning
    cfg: float
    references: list[Tensor]
    latents: Tensor
    free: Tensor | None


@dataclass(frozen=True)
class _Prompt:
    """A conditioning that a Cache knows the size of."""

    conditioning: Conditioning

    @property
    def nbytes(self) -> int:
        return sum(int(embedding.nbytes) for embedding, _ in self.conditioning)


def _noise(latents: Tensor, seed: int) -> Tensor:
    """Draw the noise of a seed for these latents, as qwen/sampler.py does: on the CPU and in 32
    bits.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(latents.shape, generator=generator, dtype=torch.float32)


def _check_settings(sampling: Sampling) -> None:
    """Refuse the settings that speed diffusers' transformer up.

    Raises
    ------
    ArtMancerError : invalid_request
    """
    default = Sampling()
    names = ("step_cache", "attention", "compile")
    for name in names:
        if getattr(sampling, name) != getattr(default, name):
            raise ArtMancerError(
                "invalid_request",
                f"The editor is ComfyUI's own model, which {name} of Edit Sampler is not for; "
                f"expected {getattr(default, name)}. Put ComfyUI's nodes for it before Editor "
                "from Model.",
            )


@contextmanager
def _out_of_memory_explained() -> Iterator[None]:
    """Turn an out-of-memory error into a message that says what needs less."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise ArtMancerError(
            "out_of_memory",
            "The GPU's memory is too small for this edit. Choose a smaller resolution in Split "
            "Conditions, load a smaller file of the model (fp8, GGUF), or start ComfyUI with "
            "--novram.",
        ) from None
