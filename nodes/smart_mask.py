"""Smart Mask: the mask of an object that the user clicks."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..artmancer import mask_ops, matting, tools
from ..artmancer.cache import digest
from ..artmancer.errors import ArtMancerError
from ..artmancer.masks.clicks import parse_clicks
from ..artmancer.masks.grabcut import GrabCut
from ..artmancer.masks.refine import refine
from .comfy_host.files import save_preview
from .comfy_host.folders import rembg_folders, segmenters
from .comfy_host.memory import load_remover, load_segmenter
from .comfy_host.progress import node_progress
from .sockets import AUTO, DRAFT, resolve_auto, with_aliases

_GRABCUT = GrabCut()
"""The selector without weights. It keeps its answers: undo, redo and C search for nothing again."""

BIREFNET = "birefnet"
"""Option of model: the model of AUTO finds the object, and BiRefNet refines its mask."""


def _finder(model: str) -> str:
    """Return the segmenter that finds the object, or DRAFT."""
    return resolve_auto(AUTO if model == BIREFNET else model, segmenters())


def _refined(
    photos: Sequence[Tensor], masks: list[Tensor]
) -> tuple[list[Tensor], dict[str, str | None]]:
    """Refine the masks with an installed BiRefNet; return them, and what the report says of it."""
    name = matting.installed_birefnet(rembg_folders())
    if name is None:
        return masks, {"note": "There is no BiRefNet model in models/rembg to refine the mask."}
    remover = load_remover(name)

    with node_progress() as progress:

        def refining(done: int, total: int, stage: str, latents: Tensor | None = None) -> None:
            progress(done, total, "refining the mask")

        def subject(image: Tensor) -> Tensor:
            return remover.cut_out(image, decontaminate=False, progress=refining).mask

        try:
            refined = [
                refine(photo, mask, subject) for photo, mask in zip(photos, masks, strict=True)
            ]
        except ArtMancerError as error:
            progress(1, 1, "not refined")
            return masks, {"note": f"{name} could not refine the mask. {error}"}
        progress(1, 1, f"refined by {name}")
    unrefined = sum(mask is None for mask in refined)
    report = {"refined_by": name if unrefined < len(masks) else None}
    if unrefined:
        report["note"] = (
            f"{name} does not see the object in {unrefined} of {len(masks)} images. Their masks "
            "are not refined."
        )
    return [
        mask if refinement is None else refinement
        for mask, refinement in zip(masks, refined, strict=True)
    ], report


def _brushes(brush: Tensor | None, count: int) -> Sequence[Tensor | None]:
    """Return the brush mask of each photo of the batch."""
    if brush is None or len(brush) == 1:
        return [brush] * count
    if len(brush) != count:
        raise ArtMancerError(
            "invalid_request",
            f"There are {len(brush)} brush masks for {count} photos. "
            "Connect one mask, or one for each photo.",
        )
    return torch.split(brush, 1)


class SmartMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="ArtMancer_SmartMask",
            display_name="Smart Mask",
            category="ArtMancer",
            description="Click an object in the image and get its mask. Click: the object. "
            "Shift-click or right-click: not the object. Drag: a box around it. C: the next "
            "candidate. Without clicks: the main object.",
            is_output_node=True,
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="The photo. The node shows it as soon as a loader is connected, or "
                    "else after the node has run.",
                ),
                io.Combo.Input(
                    "model",
                    options=[DRAFT, AUTO, BIREFNET, *segmenters()],
                    default=DRAFT,
                    tooltip="draft: GrabCut, which goes by colors and needs no weights. Others: "
                    "FastSAM or YOLO segmentation models in models/fastsam or "
                    "models/ultralytics/segm. They find all objects once; each click is then "
                    "instant. auto: the first of these models, or draft if there is none. "
                    "birefnet: as auto, and a BiRefNet model in models/rembg then refines the "
                    "edge, for hair and fur.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    tooltip='The clicks as JSON, in pixels of the photo: {"points": [[x, y], ...], '
                    '"labels": [1, 0, ...], "bbox": [left, top, right, bottom]}. A label is 1 on '
                    "the object and 0 elsewhere. Clicking in the node writes it.",
                ),
                io.Int.Input(
                    "candidate",
                    default=0,
                    min=0,
                    max=99,
                    tooltip="Which of the objects that fit the clicks; 0 = the likeliest. After "
                    "the last the first comes again. Press C in the node for the next.",
                ),
                io.Int.Input(
                    "grow",
                    default=0,
                    min=-512,
                    max=512,
                    tooltip="Widen the mask by this many pixels; a negative number narrows it.",
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
                    tooltip="Pixels over which the mask fades out, outward.",
                ),
                io.Int.Input(
                    "drop_specks",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="Remove parts of the mask that have fewer pixels than this.",
                ),
                io.Boolean.Input(
                    "fill_holes", default=True, tooltip="Fill the holes inside the mask."
                ),
                io.Boolean.Input(
                    "keep_largest",
                    default=False,
                    tooltip="Keep only the largest connected part of the mask.",
                ),
                io.Mask.Input(
                    "brush",
                    optional=True,
                    tooltip="A rough mask over the object, painted in the Mask Editor.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="mask", tooltip="White on the object, at the photo's size."
                ),
                io.Float.Output(
                    display_name="score",
                    tooltip="How well the object fits the clicks, 0 to 1, in the first photo of a "
                    "batch.",
                ),
                io.Int.Output(
                    display_name="candidates",
                    tooltip="Number of objects that fit the clicks, in the first photo of a batch.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="The report as JSON: the model that found the object, and the one "
                    "that refined its mask, or why none did.",
                ),
            ],
        )
        return with_aliases(
            schema,
            "mask",
            "segment",
            "segmentation",
            "sam",
            "segment anything",
            "select object",
            "click mask",
            "magic wand",
            "fastsam",
        )

    @classmethod
    def fingerprint_inputs(cls, model: str | None = None, **_: Any) -> str:
        # ComfyUI passes None for an input that is connected.
        model = model or BIREFNET
        birefnet = matting.installed_birefnet(rembg_folders()) if model == BIREFNET else None
        return f"{_finder(model)} {birefnet}"

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
        finder = _finder(model)
        selector = _GRABCUT if finder == DRAFT else load_segmenter(finder)
        # A single photo is the input tensor itself, not a view of it: its hash is known from the
        # last click.
        photos = [image] if len(image) == 1 else torch.split(image, 1)
        selections = [
            selector.select(photo, replace(clicks, brush=brush_mask), candidate)
            for photo, brush_mask in zip(photos, brushes, strict=True)
        ]
        masks = [selection.mask for selection in selections]
        report = {"model": finder, "refined_by": None, "note": ""}
        if model == BIREFNET:
            if fill_holes:
                # Of the found masks: the holes that BiRefNet draws are the object's own.
                masks, fill_holes = [mask_ops.fill_holes(mask) for mask in masks], False
            masks, refinement = _refined(photos, masks)
            report |= refinement
        mask = mask_ops.shape(
            torch.cat(masks),
            border=grow,
            rounding=smooth,
            fading=feather,
            specks=drop_specks,
            holes=fill_holes,
            largest=keep_largest,
        )
        score = selections[0].score
        count = selections[0].count
        previews = {
            "artmancer_picture": [save_preview(photos[0], "picture.jpg", digest(photos[0]))],
            "artmancer_mask": [save_preview(mask[:1], "mask.png")],
            "artmancer_choice": [
                {"score": score, "count": count, "width": image.shape[2], "height": image.shape[1]}
            ],
        }
        return io.NodeOutput(mask, score, count, json.dumps(report, indent=2), ui=previews)
