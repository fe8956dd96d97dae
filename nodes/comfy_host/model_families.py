"""The families of ComfyUI's models that edit images, and what differs among them."""

import inspect
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ...artmancer.errors import ArtMancerError
from .encoding import Conditioning, encode_qwen_prompt

Grid = tuple[int, int]
"""(rows, columns) of an image's tokens."""

TOKEN_SIDE = 16
"""Side of the square of pixels that a token of each family stands for."""


class Guidance(NamedTuple):
    """The way that a model is guided by the prompt.

    Attributes
    ----------
    cfg : scale of classifier-free guidance; 1 = one pass a step, without the negative prompt
    settings : added to the prompt's conditioning
    """

    cfg: float
    settings: dict[str, float]


class Family(Protocol):
    """The differences among the families of models.

    Attributes
    ----------
    name : for the report, for example "qwen-image-edit"
    title : the models, for a message
    latent_side : side of the square of pixels that a latent stands for
    channels : channels of the latents
    has_time_axis : whether latents have an axis for time, of length 1, before their height
    sees_images : whether the text encoder reads the conditioning images
    last_sigma : the last sigma before 0 that the published schedule is stretched to; None: it is
        not stretched
    accelerated_shift : shift of the schedule that its acceleration LoRAs were trained with; None:
        the published one
    note : for the report, what this ComfyUI does otherwise than the published model; "": nothing
    """

    name: str
    title: str
    latent_side: int
    channels: int
    has_time_axis: bool
    sees_images: bool
    last_sigma: float | None
    accelerated_shift: float | None

    @property
    def note(self) -> str: ...

    def matches(self, model: Any) -> bool:
        """Tell whether a MODEL is of this family."""
        ...

    def text_width(self, model: Any) -> int:
        """Return the width of the embeddings that the model takes."""
        ...

    def shift(self, tokens: int, steps: int) -> float:
        """Return the published shift of the schedule for a result of this many tokens."""
        ...

    def encode(self, clip: Any, text: str, seen: list[Tensor]) -> Conditioning:
        """Encode a prompt; `seen` are IMAGEs for a text encoder that reads images."""
        ...

    def guidance(self, model: Any, cfg: float) -> Guidance:
        """Return how a MODEL is guided by this scale."""
        ...

    def patch(self, model: Any, grids: Sequence[Grid]) -> None:
        """Change a clone of a MODEL so that it reads images, and is guided, as the published model.

        Parameters
        ----------
        grids : of the result and of each conditioning image
        """
        ...


class QwenImageEdit:
    """Qwen-Image-Edit 2509 and 2511. A file of 2511 says itself that its conditioning images have
    the timestep 0, and ComfyUI acts on it.
    """

    name = "qwen-image-edit"
    title = "Qwen-Image-Edit 2509 and 2511"
    latent_side = 8
    channels = 16
    has_time_axis = True
    sees_images = True
    last_sigma: float | None = 0.02
    accelerated_shift: float | None = 3.0

    @property
    def note(self) -> str:
        from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

        # ComfyUI 0.3.64 does not have it.
        if "default_ref_method" in inspect.signature(QwenImageTransformer2DModel).parameters:
            return ""
        return (
            "This ComfyUI encodes prompts otherwise than the published model, and samples a file "
            "of Qwen-Image-Edit-2511 as 2509. Update ComfyUI for 2511."
        )

    def matches(self, model: Any) -> bool:
        config = model.model.model_config.unet_config
        # Qwen-Image-Layered, which makes layers, has one more condition.
        is_layered = config.get("use_additional_t_cond", False)
        return config.get("image_model") == "qwen_image" and not is_layered

    def text_width(self, model: Any) -> int:
        return int(model.model.diffusion_model.txt_norm.weight.shape[0])

    def shift(self, tokens: int, steps: int) -> float:
        # From 0.5 at 256 tokens to 0.9 at 8192, as in the published configuration.
        return math.exp(0.5 + 0.4 * (tokens - 256) / (8192 - 256))

    def encode(self, clip: Any, text: str, seen: list[Tensor]) -> Conditioning:
        return encode_qwen_prompt(clip, text, seen)

    def guidance(self, model: Any, cfg: float) -> Guidance:
        return Guidance(max(cfg, 1.0), {})

    def patch(self, model: Any, grids: Sequence[Grid]) -> None:
        model.set_model_sampler_cfg_function(_guide_tokens)
        start = max(side // 2 for grid in grids for side in grid)
        # ComfyUI centers an odd number of tokens one token further.
        offsets = torch.cat(
            [
                torch.tensor([0, rows % 2, columns % 2]).expand(rows * columns, 3)
                for rows, columns in grids
            ]
        )

        def move(inputs: dict[str, Any]) -> dict[str, Any]:
            """Move the positions to those of the published pipeline. ComfyUI starts the prompt's
            from the result's size, though a conditioning image may be larger.
            """
            texts, images = inputs["txt_ids"], inputs["img_ids"]
            return {
                **inputs,
                "txt_ids": texts - texts[:, :1] + start,
                "img_ids": images - offsets.to(images),
            }

        model.set_model_patch(move, "post_input")


class Flux2:
    """FLUX.2 dev and klein: the conditioning images are reference latents alone."""

    name = "flux.2"
    title = "FLUX.2 dev and klein"
    latent_side = 16
    channels = 128
    has_time_axis = False
    sees_images = False
    last_sigma: float | None = None
    accelerated_shift: float | None = None
    note = ""

    def matches(self, model: Any) -> bool:
        return bool(model.model.model_config.unet_config.get("image_model") == "flux2")

    def text_width(self, model: Any) -> int:
        return int(model.model.diffusion_model.params.context_in_dim)

    def shift(self, tokens: int, steps: int) -> float:
        from comfy_extras.nodes_flux import compute_empirical_mu

        return math.exp(compute_empirical_mu(tokens, steps))

    def encode(self, clip: Any, text: str, seen: list[Tensor]) -> Conditioning:
        conditioning: Conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        return conditioning

    def guidance(self, model: Any, cfg: float) -> Guidance:
        if model.model.diffusion_model.params.guidance_embed:
            # dev reads the scale itself, in one pass a step.
            return Guidance(1.0, {"guidance": cfg})
        return Guidance(max(cfg, 1.0), {})

    def patch(self, model: Any, grids: Sequence[Grid]) -> None:
        """Leave the model as it is: ComfyUI has its positions from the published code."""


FAMILIES: tuple[Family, ...] = (QwenImageEdit(), Flux2())


def family_of(model: Any, vae: Any) -> Family:
    """Return the family of a MODEL.

    Raises
    ------
    ArtMancerError : invalid_request where it has none, or where the VAE is of another one
    """
    family = next((family for family in FAMILIES if family.matches(model)), None)
    if family is None:
        raise ArtMancerError(
            "invalid_request",
            f"The model is of the kind '{type(model.model).__name__}', which does not edit by "
            f"conditioning images; expected {' or '.join(family.title for family in FAMILIES)}.",
        )
    if vae.latent_channels != family.channels:
        raise ArtMancerError(
            "invalid_request",
            f"The VAE makes latents of {vae.latent_channels} channels; {family.title} need "
            f"{family.channels}. Connect the VAE that belongs to the model.",
        )
    return family


def sigmas(steps: int, shift: float, last: float | None) -> Tensor:
    """Return the published schedule, [steps + 1], from 1 to 0.

    Parameters
    ----------
    shift : 1 = steps of the same size
    last : the last sigma before 0 that it is stretched to; None: it is not stretched
    """
    times = torch.arange(steps, 0, -1, dtype=torch.double) / steps
    shifted = shift * times / (1 + (shift - 1) * times)
    # A single step cannot be stretched: it starts from 1.
    if last is not None and steps > 1:
        shifted = 1 - (1 - shifted) * (1 - last) / (1 - shifted[-1])
    return functional.pad(shifted, (0, 1)).float()


def _guide_tokens(args: dict[str, Any]) -> Tensor:
    """Apply classifier-free guidance, rescaled for each token of 2 x 2 latents to the norm of the
    conditional prediction, as Qwen-Image was tuned with. ComfyUI's CFGNorm does it for each latent.
    """
    conditional, unconditional = args["cond"], args["uncond"]
    guided = unconditional + args["cond_scale"] * (conditional - unconditional)
    # Both are [B, channels, 1, h, w], h and w even.
    squares = [
        functional.avg_pool2d(prediction.square().sum(dim=1), 2).sqrt()
        for prediction in (conditional, guided)
    ]
    ratio = squares[0] / squares[1].clamp(min=torch.finfo(squares[1].dtype).tiny)
    factor = ratio.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)
    rescaled: Tensor = guided * factor.unsqueeze(1)
    return rescaled
