"""The edit that a request of /api/generate describes, as inputs of the workflow that runs it."""

import secrets
from dataclasses import dataclass
from typing import Any

from ..checks import check_lama_variant, check_mask_given
from ..errors import ArtMancerError
from ..options import MAX_SEED
from ..recipes import CONDITION_SIZES, RECIPES
from .image_field import ImageUrl
from .schemas import GenerateRequest

WORKFLOW = "generate"
"""Name of the workflow that runs edits."""


@dataclass(frozen=True)
class Edit:
    """An edit.

    Attributes
    ----------
    images : as the request has them, by the workflow's inputs; None: there is none
    settings : the workflow's other inputs; None keeps the workflow's default, which follows the
        recipe
    """

    variant: str
    images: dict[str, str | ImageUrl | None]
    settings: dict[str, Any]


def read_edit(request: GenerateRequest) -> Edit:
    """Return the edit that a request describes.

    Raises
    ------
    ArtMancerError : mask_missing, invalid_request
    """
    conditional_images = request.conditional_images or []
    first_image = conditional_images[0] if conditional_images else None
    mask = request.mask_image or first_image
    variant = _variant(request, mask)
    check_mask_given(variant, mask is not None)
    _check_prompt(request, variant)
    if request.editor == "lama":
        check_lama_variant(variant)
    images: dict[str, str | ImageUrl | None] = {
        "input_image": request.input_image,
        "mask_image": mask,
        "reference_image": request.reference_image,
        "reference_mask_R": request.reference_mask_R,
    }
    for index, image in enumerate(conditional_images[1:], 1):
        images[f"extra_{index}"] = image
    return Edit(variant, images, _settings(request, variant))


def _settings(request: GenerateRequest, variant: str) -> dict[str, Any]:
    """Return the workflow's inputs besides the images."""
    seed = request.seed
    if seed is None:
        seed = secrets.randbelow(MAX_SEED + 1)
    cfg = request.true_cfg_scale
    if cfg is None:
        cfg = request.guidance_scale
    size: str | float | None = request.condition_size
    megapixels = None
    if size is not None and size not in CONDITION_SIZES:
        size, megapixels = "megapixels", size
    return {
        "task_type": variant,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "seed": seed,
        "num_inference_steps": request.num_inference_steps,
        "true_cfg_scale": cfg,
        "editor": request.editor or "auto",
        "width": request.width,
        "height": request.height,
        "max_megapixels": 1.0 if request.input_quality == "resized" else None,
        "brush_mask": request.mask_tool_type == "brush" or None,
        "recipe": request.recipe,
        "frame": request.frame,
        "condition_size": size,
        "condition_megapixels": megapixels,
        "context": request.context,
        "resolution": request.resolution,
        "fill_holes": request.fill_holes,
        "widen": request.widen,
        "regions": request.regions,
        "match_grain": request.match_grain,
    }


def _check_prompt(request: GenerateRequest, variant: str) -> None:
    """Refuse an edit that nothing describes: without a prompt, where no recipe can bring one.

    Raises
    ------
    ArtMancerError : invalid_request
    """
    if request.prompt or variant == "white_balance":
        return
    # Without a recipe in the request, the checkpoint's counts, which only ComfyUI knows.
    if variant == "removal" and (request.recipe is None or RECIPES[request.recipe].prompt):
        return
    raise ArtMancerError(
        "invalid_request",
        f"The prompt is empty; expected the {variant} in words. Send a prompt.",
        {"field": "prompt", "expected": "a text of 1 to 4000 characters", "got": ""},
    )


def _variant(request: GenerateRequest, mask: str | ImageUrl | None) -> str:
    """Return the variant that a request names, else the one that its images suggest."""
    if request.task_type:
        return request.task_type.replace("-", "_")
    if request.reference_image:
        return "insertion"
    return "removal" if mask else "white_balance"
