"""Encode Conditions and Stitch: the same edit around ComfyUI's own samplers."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

from comfy_api.latest import io
from torch import Tensor
from torch.nn import functional

from ..artmancer.conditions import Conditions, with_blend_mask
from ..artmancer.edit import edit
from ..artmancer.editor import PrecomputedEdit
from ..artmancer.errors import ArtMancerError
from ..artmancer.images import to_pil
from ..artmancer.progress import Progress, part_progress
from ..artmancer.recipes import RECIPES, condition_pixels
from ..artmancer.report import Report
from ..artmancer.variants import VARIANTS
from .comfy_host.encoding import as_seen, encode_image, encode_qwen_prompt, with_settings
from .comfy_host.files import save_before_after
from .comfy_host.progress import node_progress
from .sockets import (
    RECIPE,
    ConditionsType,
    blend_mask,
    condition_megapixels,
    condition_size,
    match_colors,
    match_grain,
    prompt_inputs,
    resolve_condition_size,
    spill,
    transfer,
    widen,
    with_aliases,
    with_cached_previews,
)

_LATENT_SIDE = 8
"""Side of the square of pixels that a latent stands for."""


class EncodeConditions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="ArtMancer_EncodeConditions",
            display_name="Encode Conditions",
            category="ArtMancer",
            description="Encode the conditioning images, at the recipe's size, and the prompts "
            "for ComfyUI's own samplers and a Qwen-Image-Edit model from any loader. Each output "
            "is a list with an item for each part of the mask, which Stitch takes back.",
            inputs=[
                io.Clip.Input(
                    "clip", tooltip="Qwen2.5-VL, from Load CLIP with the type qwen_image."
                ),
                io.Vae.Input("vae", tooltip="The VAE of Qwen-Image."),
                ConditionsType.Input(
                    "conditions", tooltip="From Split Conditions or Add Condition."
                ),
                *prompt_inputs(
                    prompt_tooltip="The edit in words. Empty: the prompt of the recipe, if it has "
                    "one.",
                    negative_tooltip="What to avoid, used if the sampler's cfg is above 1. "
                    "The checkpoints were trained with a single space.",
                ),
                condition_size(),
                condition_megapixels(),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="positive",
                    is_output_list=True,
                    tooltip="For SamplerCustom or KSampler.",
                ),
                io.Conditioning.Output(
                    display_name="negative",
                    is_output_list=True,
                    tooltip="For SamplerCustom or KSampler.",
                ),
                io.Latent.Output(
                    display_name="latent",
                    is_output_list=True,
                    tooltip="The crop, for LTXVScheduler and SamplerCustom, or for KSampler with "
                    "denoise 1. It carries the feathered mask, if there is a mask, so that the "
                    "crop outside it is kept at each step.",
                ),
            ],
        )
        return with_aliases(schema, "text encode", "qwen image edit", "inpaint conditioning")

    @classmethod
    def execute(
        cls,
        clip: Any,
        vae: Any,
        conditions: Conditions,
        prompt: str,
        negative: str,
        condition_size: str = RECIPE,
        condition_megapixels: float = 0.25,
    ) -> io.NodeOutput:
        count = len(conditions.image)
        if count != 1:
            raise ArtMancerError(
                "invalid_request",
                f"Encode Conditions got a batch of {count} photos; expected one. Connect Rebatch "
                "Images with a batch_size of 1 before Split Conditions.",
            )
        size = resolve_condition_size(condition_size, condition_megapixels)
        area = condition_pixels(size, RECIPES[conditions.recipe])
        texts = (prompt or conditions.default_prompt, negative)
        parts = conditions.parts
        with node_progress() as progress:
            encoded = [
                _encode_part(
                    clip, vae, part, area, texts, part_progress(progress, index, len(parts))
                )
                for index, part in enumerate(parts)
            ]
            progress(1, 1, "encoded")
        return io.NodeOutput(*map(list, zip(*encoded, strict=True)))


def _encode_part(
    clip: Any,
    vae: Any,
    conditions: Conditions,
    area: int | None,
    texts: Sequence[str],
    progress: Progress,
) -> tuple[Any, ...]:
    """Return the two prompts as ComfyUI's conditioning, and the latent, of one part of the mask.

    Parameters
    ----------
    area : area that the conditioning images are encoded at, in pixels; None: their own
    texts : the prompt and the negative prompt
    """
    crop = conditions.crop
    images = [to_pil(image) for image in conditions.images.values()]
    # Each image, the crop, and two prompts.
    total = len(images) + 3
    references = []
    for done, image in enumerate(images):
        progress(done, total, "encoding conditions")
        references.append(encode_image(vae, image, area))
    progress(len(images), total, "encoding the crop")
    latent = {"samples": encode_image(vae, to_pil(crop.image), None)}
    if conditions.masked:
        # A latent is free where any of its pixels may change. A mask of pixels would be
        # averaged: at its rim, KSampler would mix the edit with the photo.
        latent["noise_mask"] = functional.max_pool2d((crop.feathered > 0).float(), _LATENT_SIDE)
    seen = [as_seen(image) for image in images]
    encoded = []
    for done, text in enumerate(texts, len(images) + 1):
        progress(done, total, "encoding the prompts")
        encoded.append(
            with_settings(encode_qwen_prompt(clip, text, seen), reference_latents=references)
        )
    return *encoded, latent


class Stitch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="ArtMancer_Stitch",
            display_name="Stitch",
            category="ArtMancer",
            description="Match the colors of an edited crop to the photo at the rim of the mask, "
            "and stitch the crop into the photo. Every pixel outside the feathered mask stays as "
            "it was.",
            is_input_list=True,
            inputs=[
                ConditionsType.Input(
                    "conditions", tooltip="The conditions that the crop was edited with."
                ),
                io.Image.Input(
                    "edited",
                    tooltip="The edited crop, from VAE Decode; one for each part of the mask.",
                ),
                io.Combo.Input(
                    "variant",
                    options=list(VARIANTS),
                    default="removal",
                    tooltip="The kind of edit that was made.",
                ),
                match_colors(),
                transfer(),
                widen(),
                blend_mask(),
                match_grain(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image",
                    is_output_list=True,
                    tooltip="The edited photo, at its own resolution.",
                ),
                io.String.Output(
                    display_name="report",
                    is_output_list=True,
                    tooltip="The report on the edit as JSON, for Report.",
                ),
                spill(is_list=True),
            ],
        )
        with_cached_previews(schema)
        return with_aliases(schema, "paste back", "uncrop", "inpaint stitch", "crop and stitch")

    @classmethod
    def execute(
        cls,
        conditions: list[Conditions],
        edited: list[Tensor],
        variant: list[str],
        match_colors: list[bool],
        transfer: list[str],
        widen: list[bool] | None = None,
        blend_mask: list[Tensor | None] | None = None,
        match_grain: list[bool] | None = None,
    ) -> io.NodeOutput:
        expected = sum(len(item.parts) for item in conditions)
        if len(edited) % expected:
            raise ArtMancerError(
                "invalid_request",
                f"Stitch got {len(edited)} edited crops; expected {expected}, one for each part of "
                "the mask, or a multiple of it. Connect the list from Encode Conditions' sampler, "
                "or choose together as Split Conditions' regions.",
            )
        blend_masks: list[Tensor | None] = blend_mask or [None]
        crops = iter(edited)
        results = []
        with node_progress() as progress:
            # Of several edits of the same conditions, for example by seed, each is a result.
            for index, item in enumerate(conditions * (len(edited) // expected)):
                images = list(islice(crops, len(item.parts)))
                editor = PrecomputedEdit(
                    images, _item(variant, index), f"ComfyUI/{_item(variant, index)}", item.recipe
                )
                result = edit(
                    editor,
                    with_blend_mask(item, _item(blend_masks, index)),
                    match=_item(match_colors, index),
                    transfer=_item(transfer, index),
                    widen=_item(widen or [False], index),
                    match_grain=_item(match_grain or [False], index),
                    progress=progress,
                )
                results.append(result)
            progress(1, 1, "stitched")
        reports = [json.dumps(_report(result.report).as_dict(), indent=2) for result in results]
        previews = save_before_after(conditions[0].image, results[0].image)
        return io.NodeOutput(
            [result.image for result in results],
            reports,
            [result.spill for result in results],
            ui=previews,
        )


T = TypeVar("T")


def _item(values: list[T], index: int) -> T:
    """Return an item of an input's list; of a shorter list the last, as ComfyUI does."""
    return values[min(index, len(values) - 1)]


def _report(report: Report) -> Report:
    """Return the report without what this node cannot know: KSampler made the edit."""
    known = ("frame", "resolution", "context", "context_pixels")
    return replace(
        report,
        seconds=_stitch_seconds(report.seconds),
        seed=None,
        settings={name: value for name, value in report.settings.items() if name in known},
        regions=tuple(
            {**row, "seed": None, "seconds": _stitch_seconds(row["seconds"])}
            for row in report.regions
        ),
    )


def _stitch_seconds(seconds: dict[str, float]) -> dict[str, float]:
    return {stage: value for stage, value in seconds.items() if stage != "edit"}
