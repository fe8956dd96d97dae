import json
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..artmancer import matting
from .comfy_host.folders import rembg_folders
from .comfy_host.memory import keep_loaded
from .comfy_host.progress import node_progress
from .sockets import AUTO, advanced

ALPHA, COLOR = "alpha", "color"


def _resolve_auto(model: str) -> str:
    return matting.choose(rembg_folders()) if model == AUTO else model


def _licences() -> str:
    free = [name for name, model in matting.MODELS.items() if model.free]
    others = [
        f"{name}: {model.licence}" for name, model in matting.MODELS.items() if not model.free
    ]
    return f"Everybody may use {', '.join(free)}. Not so the others:\n" + "\n".join(others)


class RemoveBackground(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        found = matting.found(rembg_folders())
        return io.Schema(
            node_id="ArtMancer_RemoveBackground",
            display_name="Remove Background",
            category="ArtMancer",
            description="Cut the subject out of an image with one of rembg's models from "
            "models/rembg. Nothing is downloaded, and nothing leaves this machine.",
            inputs=[
                io.Image.Input("image", tooltip="The photo, or a batch of them."),
                io.Combo.Input(
                    "model",
                    options=[AUTO, *found, *(name for name in matting.MODELS if name not in found)],
                    default=next(
                        (name for name in found if matting.MODELS[name].free), matting.DEFAULT
                    ),
                    tooltip="Those that lie in models/rembg come first; auto: the first of them "
                    "that everybody may use. u2net is small and quick; birefnet-general is large "
                    "and slow, and made for fine edges.\n"
                    f"{_licences()}",
                ),
                io.Combo.Input(
                    "background",
                    options=[ALPHA, COLOR],
                    default=ALPHA,
                    tooltip="alpha: the image is transparent where the background was. color: it "
                    "lies over the colour below.",
                ),
                io.String.Input(
                    "color",
                    default="white",
                    tooltip="The colour behind the subject: a name such as white, or #rrggbb.",
                ),
                io.Boolean.Input(
                    "alpha_matting",
                    default=False,
                    tooltip="Draw the edge anew from the photo, for hair and fur that the model "
                    "cut off bluntly. Takes seconds, with much fur half a minute.",
                ),
                io.Boolean.Input(
                    "decontaminate",
                    default=True,
                    tooltip="Take the old background's colour out of the soft edge, which "
                    "otherwise shows as a rim.",
                ),
                advanced(
                    io.Combo.Input(
                        "device",
                        options=list(matting.DEVICES),
                        default="auto",
                        optional=True,
                        tooltip="auto: the GPU where onnxruntime can use it, else the CPU; the "
                        "report says which ran and why. "
                        "cpu leaves the GPU's memory to other models.",
                    )
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image", tooltip="The subject, with alpha or over the colour."
                ),
                io.Mask.Output(
                    display_name="mask", tooltip="White where the subject is; grey at soft edges."
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="What was done, as JSON: the model and its licence, the provider that "
                    "ran (CUDA, CPU) and why, the images of the batch whose edge alpha matting "
                    "could not draw.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, model: str = AUTO, **_: Any) -> str:
        return _resolve_auto(model)

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
    ) -> io.NodeOutput:
        behind = None if background == ALPHA else matting.color(color)
        model = _resolve_auto(model)
        path = matting.find(rembg_folders(), model)
        cutout = keep_loaded(path, lambda: matting.Remover(model, path)).cut_out(
            image,
            alpha_matting=alpha_matting,
            decontaminate=decontaminate,
            device=device,
            progress=node_progress(),
        )
        shown = cutout.with_alpha() if behind is None else cutout.over(behind)
        return io.NodeOutput(shown, cutout.mask, json.dumps(cutout.as_dict(), indent=2))
