"""Remove Background: the subject of an image, cut out by one of rembg's models, by ComfyUI's own
BiRefNet, or by the image's own alpha.
"""

import json
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..artmancer import matting
from .comfy_host.folders import rembg_folders
from .comfy_host.memory import load_remover
from .comfy_host.progress import node_progress
from .sockets import AUTO, advanced, with_aliases

ALPHA, COLOR = "alpha", "color"
"""Options of background."""

BackgroundRemoval = io.Custom("BACKGROUND_REMOVAL")
"""ComfyUI's own BiRefNet, from Load Background Removal Model; ComfyUI 0.3.64 does not have it."""


def _resolve_auto(model: str) -> str:
    return matting.choose(rembg_folders()) if model == AUTO else model


def _license_note() -> str:
    """Say which models everybody may use, and the conditions of the others."""
    free = [name for name, model in matting.MODELS.items() if model.free]
    others = [
        f"{name}: {model.license}" for name, model in matting.MODELS.items() if not model.free
    ]
    return f"Free for everybody: {', '.join(free)}. Not free:\n" + "\n".join(others)


class RemoveBackground(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        installed = matting.installed(rembg_folders())
        schema = io.Schema(
            node_id="ArtMancer_RemoveBackground",
            display_name="Remove Background",
            category="ArtMancer",
            description="Cut the subject out of an image with one of rembg's models in "
            "models/rembg, or with ComfyUI's own BiRefNet. Nothing is downloaded, and nothing "
            "leaves this machine.",
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="The photo, or a batch of photos. One with transparent areas is cut "
                    "out by them; no model runs.",
                ),
                io.Combo.Input(
                    "model",
                    options=[
                        AUTO,
                        *installed,
                        *(name for name in matting.MODELS if name not in installed),
                    ],
                    default=next(
                        (name for name in installed if matting.MODELS[name].free), matting.DEFAULT
                    ),
                    tooltip="The models in models/rembg come first. auto: the first of these that "
                    "is free for everybody. u2net is small and fast; birefnet-general is large and "
                    "slow, and made for fine edges.\n"
                    f"{_license_note()}",
                ),
                io.Combo.Input(
                    "background",
                    options=[ALPHA, COLOR],
                    default=ALPHA,
                    tooltip="alpha: the background becomes transparent.\n"
                    "color: the subject is placed on the color below.",
                ),
                io.String.Input(
                    "color",
                    default="white",
                    tooltip="The color behind the subject: a name, such as white, or #rrggbb.",
                ),
                io.Boolean.Input(
                    "alpha_matting",
                    default=False,
                    tooltip="Compute the edge again from the photo, for hair and fur that the "
                    "model cut off. Takes seconds, or half a minute with much fur.",
                ),
                io.Boolean.Input(
                    "decontaminate",
                    default=True,
                    tooltip="Remove the old background's color from the soft edge, where it would "
                    "show as a rim.",
                ),
                advanced(
                    io.Combo.Input(
                        "device",
                        options=list(matting.DEVICES),
                        default="auto",
                        optional=True,
                        tooltip="auto: the GPU if onnxruntime can use it, else the CPU; the "
                        "report says which one ran, and why.\n"
                        "cpu: leaves the GPU's memory to other models.",
                    )
                ),
                BackgroundRemoval.Input(
                    "bg_removal_model",
                    optional=True,
                    tooltip="From ComfyUI's Load Background Removal Model, such as BiRefNet. It "
                    "takes the place of the model and the device chosen here, and needs no rembg.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image", tooltip="The subject, with alpha or on the color."
                ),
                io.Mask.Output(
                    display_name="mask", tooltip="White on the subject, gray at soft edges."
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="The report as JSON: the model and its license, the provider that ran "
                    "(CUDA, CPU) and why, and the images of the batch whose edge alpha matting "
                    "could not compute.",
                ),
            ],
        )
        return with_aliases(
            schema,
            "cut out",
            "cutout",
            "rembg",
            "matting",
            "background removal",
            "alpha",
            "segment",
        )

    @classmethod
    def fingerprint_inputs(cls, model: str | None = None, **_: Any) -> str:
        # ComfyUI passes None for an input that is connected.
        return _resolve_auto(model) if model else " ".join(matting.installed(rembg_folders()))

    @classmethod
    def execute(
        cls,
        image: Tensor,
        model: str,
        background: str,
        color: str,
        alpha_matting: bool,
        decontaminate: bool,
        device: str = "auto",
        bg_removal_model: Any = None,
    ) -> io.NodeOutput:
        backdrop = None if background == ALPHA else matting.color(color)
        options = {"alpha_matting": alpha_matting, "decontaminate": decontaminate}
        with node_progress() as progress:
            if image.shape[-1] == 4 and (image[..., 3] < 1).any():
                cutout = matting.Cutout(image[..., :3], image[..., 3], "alpha of the image", "", "")
            elif bg_removal_model is not None:
                photo = image[..., :3]
                cutout = matting.cut_out_by_masks(
                    "ComfyUI's background removal model",
                    photo,
                    bg_removal_model.encode_image(photo),
                    progress=progress,
                    **options,
                )
            else:
                cutout = load_remover(_resolve_auto(model)).cut_out(
                    image[..., :3], device=device, progress=progress, **options
                )
            progress(1, 1, f"cut out by {cutout.model}")
        subject = cutout.with_alpha() if backdrop is None else cutout.over(backdrop)
        return io.NodeOutput(subject, cutout.mask, json.dumps(cutout.as_dict(), indent=2))
