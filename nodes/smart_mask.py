import torch
from comfy_api.latest import io
from torch import Tensor

from ..artmancer.masks import prompt as prompts
from ..artmancer.masks import refine
from ..artmancer.masks.grabcut import GrabCut
from . import comfy_host

DRAFT = "draft"


class SmartMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ArtMancer_SmartMask",
            display_name="Smart Mask",
            category="ArtMancer",
            description="Click an object in the picture and get its mask. Click: this. Shift-click or right-click: not "
            "this. Drag: a box around it. C: the next candidate. Nothing at all: the main object.",
            is_output_node=True,
            inputs=[
                io.Image.Input("image", tooltip="The photo. It shows in the node once the node has run."),
                io.Combo.Input(
                    "model",
                    options=[DRAFT, *comfy_host.segmenters()],
                    default=DRAFT,
                    tooltip="draft: GrabCut, by colours, no weights. Others: FastSAM or YOLO segmentation models in "
                    "models/fastsam or models/ultralytics/segm; they find all objects once, and each click is instant.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    tooltip='What was clicked, as JSON in pixels of the photo: {"points": [[x, y], ...], "labels": '
                    '[1, 0, ...], "bbox": [left, top, right, bottom]}. The picture in the node writes it.',
                ),
                io.Int.Input(
                    "candidate",
                    default=0,
                    min=0,
                    max=99,
                    tooltip="Which of the objects that fit, smallest first; it counts round. C in the picture.",
                ),
                io.Int.Input(
                    "grow", default=0, min=-512, max=512, tooltip="Widen the mask by this many pixels, or narrow it."
                ),
                io.Int.Input(
                    "smooth", default=0, min=0, max=128, tooltip="Round off corners and notches of this many pixels."
                ),
                io.Int.Input(
                    "feather", default=0, min=0, max=512, tooltip="Pixels over which the mask fades out, outwards."
                ),
                io.Int.Input(
                    "drop_specks", default=0, min=0, max=1_000_000, tooltip="Drop parts of fewer pixels than this."
                ),
                io.Boolean.Input("fill_holes", default=True, tooltip="Close the holes that the object encloses."),
                io.Boolean.Input("keep_largest", default=False, tooltip="Keep only the largest connected part."),
                io.Mask.Input("brush", optional=True, tooltip="A rough mask over the object, from a Mask Editor."),
            ],
            outputs=[io.Mask.Output(display_name="mask", tooltip="White on the object, of the photo's size.")],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        model: str,
        prompt: str,
        candidate: int,
        grow: int,
        smooth: int,
        feather: int,
        drop_specks: int,
        fill_holes: bool,
        keep_largest: bool,
        brush: Tensor | None = None,
    ) -> io.NodeOutput:
        asked = prompts.parse(prompt, brush)
        selector = GrabCut() if model == DRAFT else comfy_host.load_segmenter(model)
        found = [selector.select(one, asked, candidate) for one in image.split(1)]
        mask = refine.shape(
            torch.cat([one.mask for one in found]),
            border=grow,
            rounding=smooth,
            fading=feather,
            specks=drop_specks,
            holes=fill_holes,
            largest=keep_largest,
        )
        shown = {
            "artmancer_picture": [comfy_host.save_preview(image[:1], "picture.jpg")],
            "artmancer_mask": [comfy_host.save_preview(mask[:1], "mask.png")],
            "artmancer_choice": [
                {"score": found[0].score, "count": found[0].count, "width": image.shape[2], "height": image.shape[1]}
            ],
        }
        return io.NodeOutput(mask, ui=shown)
