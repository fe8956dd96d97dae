from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..artmancer import mask_ops, tools
from ..artmancer.cache import digest
from ..artmancer.errors import ArtMancerError
from ..artmancer.masks.clicks import parse_clicks
from ..artmancer.masks.grabcut import GrabCut
from .comfy_host.files import save_preview
from .comfy_host.folders import segmenters
from .comfy_host.memory import load_segmenter
from .sockets import AUTO, DRAFT, resolve_auto


def _brushes(brush: Tensor | None, count: int) -> Sequence[Tensor | None]:
    """The brush mask of each photo of the batch."""
    if brush is None or len(brush) == 1:
        return [brush] * count
    if len(brush) != count:
        raise ArtMancerError(
            "invalid_request",
            f"There are {len(brush)} brush masks for {count} photos. "
            "Connect one mask, or one for each photo.",
        )
    return brush.split(1)


class SmartMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ArtMancer_SmartMask",
            display_name="Smart Mask",
            category="ArtMancer",
            description="Click an object in the picture and get its mask. Click: this. Shift-click "
            "or right-click: not this. Drag: a box around it. C: the next candidate. Nothing at "
            "all: the main object.",
            is_output_node=True,
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="The photo. It shows in the node as soon as a loader is connected, "
                    "else once the node has run.",
                ),
                io.Combo.Input(
                    "model",
                    options=[DRAFT, AUTO, *segmenters()],
                    default=DRAFT,
                    tooltip="draft: GrabCut, by colours, no weights. Others: FastSAM or YOLO "
                    "segmentation models in models/fastsam or models/ultralytics/segm; they find "
                    "all objects once, and each click is instant. auto: the first of these, or "
                    "draft where there is none.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    tooltip='What was clicked, as JSON in pixels of the photo: {"points": [[x, y], '
                    '...], "labels": [1, 0, ...], "bbox": [left, top, right, bottom]}. The picture '
                    "in the node writes it.",
                ),
                io.Int.Input(
                    "candidate",
                    default=0,
                    min=0,
                    max=99,
                    tooltip="Which of the objects that fit, the likeliest first; it counts round. "
                    "C in the picture.",
                ),
                io.Int.Input(
                    "grow",
                    default=0,
                    min=-512,
                    max=512,
                    tooltip="Widen the mask by this many pixels, or narrow it.",
                ),
                io.Int.Input(
                    "smooth",
                    default=0,
                    min=0,
                    max=128,
                    tooltip="Round off corners and notches of this many pixels.",
                ),
                io.Int.Input(
                    "feather",
                    default=0,
                    min=0,
                    max=512,
                    tooltip="Pixels over which the mask fades out, outwards.",
                ),
                io.Int.Input(
                    "drop_specks",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="Drop parts of fewer pixels than this.",
                ),
                io.Boolean.Input(
                    "fill_holes", default=True, tooltip="Close the holes that the object encloses."
                ),
                io.Boolean.Input(
                    "keep_largest", default=False, tooltip="Keep only the largest connected part."
                ),
                io.Mask.Input(
                    "brush",
                    optional=True,
                    tooltip="A rough mask over the object, from a Mask Editor.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="mask", tooltip="White on the object, of the photo's size."
                ),
                io.Float.Output(
                    display_name="score",
                    tooltip="How well the object fits, 0 to 1, in the first photo of a batch.",
                ),
                io.Int.Output(display_name="candidates", tooltip="How many objects fit there."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, model: str = DRAFT, **_: Any) -> str:
        return resolve_auto(model, segmenters())

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
        image = tools.opaque(image)
        clicks = parse_clicks(prompt)
        brushes = _brushes(brush, len(image))
        model = resolve_auto(model, segmenters())
        selector = GrabCut() if model == DRAFT else load_segmenter(model)
        # The tensor that came, and no view of it: its content is known from the last click.
        photos = [image] if len(image) == 1 else image.split(1)
        found = [
            selector.select(photo, replace(clicks, brush=one), candidate)
            for photo, one in zip(photos, brushes, strict=True)
        ]
        mask = mask_ops.shape(
            torch.cat([one.mask for one in found]),
            border=grow,
            rounding=smooth,
            fading=feather,
            specks=drop_specks,
            holes=fill_holes,
            largest=keep_largest,
        )
        score, count = found[0].score, found[0].count
        shown = {
            "artmancer_picture": [save_preview(photos[0], "picture.jpg", digest(photos[0]))],
            "artmancer_mask": [save_preview(mask[:1], "mask.png")],
            "artmancer_choice": [
                {"score": score, "count": count, "width": image.shape[2], "height": image.shape[1]}
            ],
        }
        return io.NodeOutput(mask, score, count, ui=shown)
