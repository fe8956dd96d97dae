import json
from dataclasses import replace
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..artmancer.conditions import Conditions
from ..artmancer.edit import edit
from ..artmancer.editor import PrecomputedEdit
from ..artmancer.errors import ArtMancerError
from ..artmancer.options import TRANSFERS
from ..artmancer.qwen.sampler import VISION_PIXELS, size_of
from ..artmancer.region import resample
from ..artmancer.variants import VARIANTS
from .comfy_host.files import save_before_after
from .comfy_host.progress import node_progress
from .sockets import ConditionsType, match_colors, prompt_inputs, spill, widen, with_pictures

TEMPLATE = (
    "<|im_start|>system\n"
    "Describe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. "
    "Generate a new image that meets the user's requirements while maintaining consistency with "
    "the original input where appropriate."
    "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
"""What Qwen-Image-Edit was trained with around the prompt;
so it stands in diffusers' pipeline for it.
"""


class EncodeConditions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ArtMancer_EncodeConditions",
            display_name="Encode Conditions",
            category="ArtMancer",
            description="For ComfyUI's own KSampler, with a Qwen-Image-Edit model from any loader: "
            "encode the conditioning images at the crop's own size, and the prompts.",
            inputs=[
                io.Clip.Input(
                    "clip", tooltip="Qwen2.5-VL, from Load CLIP with the type qwen_image."
                ),
                io.Vae.Input("vae", tooltip="The VAE of Qwen-Image."),
                ConditionsType.Input(
                    "conditions", tooltip="From Split Conditions or Add Condition."
                ),
                *prompt_inputs(
                    prompt_tooltip="The edit in words.",
                    negative_tooltip="What to avoid, where KSampler's cfg is above 1. "
                    "A space, as in training.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="For KSampler."),
                io.Conditioning.Output(display_name="negative", tooltip="For KSampler."),
                io.Latent.Output(
                    display_name="latent",
                    tooltip="The crop, for KSampler at denoise 1; with the feathered mask, where "
                    "there is one, so that what is outside it is kept in each step.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, clip: Any, vae: Any, conditions: Conditions, prompt: str, negative: str
    ) -> io.NodeOutput:
        count, crop = len(conditions.image), conditions.crop
        if count != 1:
            raise ArtMancerError(
                "invalid_request",
                f"Encode Conditions takes one photo at a time, and {count} came as a batch. Give "
                "them one after the other: Rebatch Images with a batch_size of 1, before Split "
                "Conditions, does it.",
            )
        progress = node_progress()
        images = list(conditions.images.values())
        references = []
        for done, image in enumerate(images):
            progress(done, len(images) + 3, "encoding conditions")
            references.append(vae.encode(image))
        progress(len(images), len(images) + 3, "encoding the crop")
        latent = {"samples": vae.encode(crop.image)}
        if conditions.masked:
            latent["noise_mask"] = (crop.feathered > 0).float()
        encoded = []
        for done, words in enumerate((prompt, negative), len(images) + 1):
            progress(done, len(images) + 3, "encoding the prompts")
            encoded.append(_encode(clip, words, images, references))
        return io.NodeOutput(*encoded, latent)


def _encode(
    clip: Any, words: str, images: list[Tensor], references: list[Tensor]
) -> list[list[Any]]:
    """ComfyUI's conditioning: the words, with the images as the vision encoder sees them,
    and their latents.
    """
    seen = [resample(image, size_of(*image.shape[1:3], VISION_PIXELS)) for image in images]
    pictures = "".join(
        f"Picture {number}: <|vision_start|><|image_pad|><|vision_end|>"
        for number in range(1, len(seen) + 1)
    )
    tokens = clip.tokenize(pictures + words, images=seen, llama_template=TEMPLATE)
    return [
        [embedding, {**settings, "reference_latents": references}]
        for embedding, settings in clip.encode_from_tokens_scheduled(tokens)
    ]


class Stitch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="ArtMancer_Stitch",
            display_name="Stitch",
            category="ArtMancer",
            description="Fit the colours of an edited crop to the photo at the mask's rim, and "
            "stitch it back. Every pixel outside the feathered mask stays as it was.",
            inputs=[
                ConditionsType.Input("conditions", tooltip="Those that the crop was edited with."),
                io.Image.Input("edited", tooltip="The edited crop, from VAE Decode."),
                io.Combo.Input(
                    "variant",
                    options=list(VARIANTS),
                    default="removal",
                    tooltip="What the edit was.",
                ),
                match_colors(),
                io.Combo.Input(
                    "transfer",
                    options=list(TRANSFERS),
                    default="colors",
                    tooltip="For white balance. colors: the change of colours is applied to the "
                    "photo's own pixels, so that no texture is lost. "
                    "pixels: the edited pixels are taken.",
                ),
                widen(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image", tooltip="The edited photo, at its own resolution."
                ),
                io.String.Output(
                    display_name="report", tooltip="What the edit did, as JSON; for Report."
                ),
                spill(),
            ],
        )
        return with_pictures(schema)

    @classmethod
    def execute(
        cls,
        conditions: Conditions,
        edited: Tensor,
        variant: str,
        match_colors: bool,
        transfer: str,
        widen: bool = False,
    ) -> io.NodeOutput:
        given = PrecomputedEdit(edited, variant, f"ComfyUI/{variant}", conditions.recipe)
        progress = node_progress()
        result = edit(
            given, conditions, match=match_colors, transfer=transfer, widen=widen, progress=progress
        )
        # Others edited; their seed, and how long it took, they know.
        seconds = {
            stage: value for stage, value in result.report.seconds.items() if stage != "edit"
        }
        report = replace(result.report, seconds=seconds, seed=None)
        shown = save_before_after(conditions.image, result.image)
        return io.NodeOutput(
            result.image, json.dumps(report.as_dict(), indent=2), result.spill, ui=shown
        )
