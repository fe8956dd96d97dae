"""Small tools around an edit: resize, cut out, shadows, edges, white balance, compare."""

import torch
from comfy_api.latest import io
from torch import Tensor

from ..artmancer import conditions, draft, tools
from ..artmancer.checks import check_image, check_mask
from ..artmancer.images import MAX_PIXELS, MAX_SIDE
from ..artmancer.masks import shadow
from ..artmancer.options import ONE_MEGAPIXEL
from .comfy_host.files import save_before_after
from .comfy_host.progress import node_progress
from .sockets import with_aliases

CATEGORY = "ArtMancer/tools"


class Resize(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="ArtMancer_Resize",
            display_name="Resize Photo",
            category=CATEGORY,
            description="Scale the photo and its mask. "
            "Images that have the size already are passed on bit for bit.",
            inputs=[
                io.Image.Input("image", tooltip="The photo."),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=MAX_SIDE,
                    tooltip="In pixels; 0 = follow the height, keeping the aspect ratio. Both 0: "
                    "the photo's own size. Both set: the photo is stretched to them.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=MAX_SIDE,
                    tooltip="In pixels; 0 = follow the width, keeping the aspect ratio. Both 0: "
                    "the photo's own size. Both set: the photo is stretched to them.",
                ),
                io.Float.Input(
                    "max_megapixels",
                    default=0.0,
                    min=0.0,
                    max=MAX_PIXELS / ONE_MEGAPIXEL,
                    step=0.01,
                    tooltip="Scale larger photos down to this, keeping the aspect ratio; 0 = no "
                    "limit. 1 = 1024 x 1024 pixels.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="A mask of the same size as the photo, scaled along with it.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The photo at its new size."),
                io.Mask.Output(
                    display_name="mask",
                    tooltip="The mask at the same size; nothing if no mask is connected.",
                ),
            ],
        )
        return with_aliases(schema, "scale image", "upscale", "downscale")

    @classmethod
    def execute(
        cls,
        image: Tensor,
        width: int,
        height: int,
        max_megapixels: float,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        max_pixels = max(1, int(max_megapixels * ONE_MEGAPIXEL)) if max_megapixels else 0
        return io.NodeOutput(*tools.resize(image, mask, width, height, max_pixels))


class ExtractObject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="ArtMancer_ExtractObject",
            display_name="Extract Object",
            category=CATEGORY,
            description="Cut the object out of the photo and center it on a white square.",
            inputs=[
                io.Image.Input("image", tooltip="The photo."),
                io.Mask.Input("mask", tooltip="White on the object."),
                io.Int.Input(
                    "side",
                    default=1024,
                    min=0,
                    max=8192,
                    tooltip="Side of the square in pixels; 0 = 512 if the object fits unscaled, "
                    "else 1024.",
                ),
                io.Float.Input(
                    "margin",
                    default=0.05,
                    min=0.0,
                    max=0.45,
                    step=0.01,
                    tooltip="Empty border on each side, as a share of the square.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The object on white.")],
        )
        return with_aliases(schema, "cut out", "cutout", "crop object")

    @classmethod
    def execute(cls, image: Tensor, mask: Tensor, side: int, margin: float) -> io.NodeOutput:
        return io.NodeOutput(tools.extract_object(tools.opaque(image), mask, side, margin))


class CastShadow(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="ArtMancer_CastShadow",
            display_name="Cast Shadow",
            category=CATEGORY,
            description="Darken the photo where the object would cast a soft shadow: a hint for an "
            "edit, or a preview.",
            inputs=[
                io.Image.Input("image", tooltip="The photo with the object in it."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White on the object. Without it, everything that is not white is the "
                    "object.",
                ),
                io.Int.Input(
                    "offset_x",
                    default=20,
                    min=-4096,
                    max=4096,
                    tooltip="Pixels that the shadow falls to the right; negative = to the left.",
                ),
                io.Int.Input(
                    "offset_y",
                    default=20,
                    min=-4096,
                    max=4096,
                    tooltip="Pixels that the shadow falls down; negative = up.",
                ),
                io.Float.Input(
                    "opacity",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How dark the shadow is; 0 = no shadow, 1 = black.",
                ),
                io.Int.Input(
                    "blur",
                    default=20,
                    min=0,
                    max=512,
                    tooltip="Softness of the shadow's edge, in pixels; 0 = sharp.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The photo with the shadow."),
                io.Mask.Output(
                    display_name="shadow", tooltip="The shadow alone, from 0 to the opacity."
                ),
            ],
        )
        return with_aliases(schema, "drop shadow")

    @classmethod
    def execute(
        cls,
        image: Tensor,
        offset_x: int,
        offset_y: int,
        opacity: float,
        blur: int,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        return io.NodeOutput(
            *tools.cast_shadow(tools.opaque(image), mask, (offset_x, offset_y), opacity, blur)
        )


class ShadowMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="ArtMancer_ShadowMask",
            display_name="Shadow Mask",
            category=CATEGORY,
            description="Find the shadow that an object casts, so that a removal removes it too. A "
            "shadow touches the object, is darker than the ground around it, and has the ground's "
            "color.",
            inputs=[
                io.Image.Input("image", tooltip="The photo."),
                io.Mask.Input("mask", tooltip="White on the object, from Smart Mask or painted."),
                io.Float.Input(
                    "reach",
                    default=1.0,
                    min=0.1,
                    max=4.0,
                    step=0.1,
                    tooltip="How far from the object the shadow may reach, as a multiple of the "
                    "object's longer side.",
                ),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="The object and its shadow."),
                io.Mask.Output(
                    display_name="shadow", tooltip="The shadow alone; black if none was found."
                ),
            ],
        )
        return with_aliases(schema, "mask shadow", "shadow detection")

    @classmethod
    def execute(cls, image: Tensor, mask: Tensor, reach: float) -> io.NodeOutput:
        with node_progress() as progress:
            shadow_mask = shadow.propose(tools.opaque(image), mask, reach, progress)
            share = float((shadow_mask > 0.5).float().mean())
            progress(1, 1, f"shadow: {share:.1%} of the photo" if share else "no shadow found")
        mask = mask.to(shadow_mask).expand_as(shadow_mask)
        return io.NodeOutput(torch.maximum(mask, shadow_mask), shadow_mask)


class Edges(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="ArtMancer_Edges",
            display_name="Edges",
            category=CATEGORY,
            description="The photo's edges (Canny), white on black, as in the recipe image_edges.",
            inputs=[io.Image.Input("image", tooltip="The photo.")],
            outputs=[io.Image.Output(display_name="edges", tooltip="The edges, white on black.")],
        )
        return with_aliases(schema, "canny", "edge detection")

    @classmethod
    def execute(cls, image: Tensor) -> io.NodeOutput:
        return io.NodeOutput(conditions.edges(image))


class WhiteBalance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="ArtMancer_WhiteBalance",
            display_name="White Balance",
            category=CATEGORY,
            description="Remove a color cast automatically, then adjust temperature and tint by "
            "hand, at full resolution and with all texture.",
            inputs=[
                io.Image.Input("image", tooltip="The photo."),
                io.Float.Input(
                    "automatic",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of the color cast that is removed: 0 = none, 1 = all of it. A "
                    "photo of one color, or without a cast, mostly stays as it is.",
                ),
                io.Float.Input(
                    "temperature",
                    default=0.0,
                    min=-100.0,
                    max=100.0,
                    step=1.0,
                    tooltip="-100 = blue, 0 = unchanged, 100 = amber.",
                ),
                io.Float.Input(
                    "tint",
                    default=0.0,
                    min=-100.0,
                    max=100.0,
                    step=1.0,
                    tooltip="-100 = green, 0 = unchanged, 100 = magenta.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where the color cast is estimated. Without it, in the whole "
                    "photo.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The balanced photo.")],
        )
        return with_aliases(schema, "color correction", "color cast", "temperature", "auto color")

    @classmethod
    def execute(
        cls,
        image: Tensor,
        automatic: float,
        temperature: float,
        tint: float,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        image = tools.opaque(image)
        check_image(image)
        area = image.new_ones(image.shape[:3]) if mask is None else mask.to(image)
        check_mask(area, image)
        balanced = (
            draft.balance(image, area.expand(len(image), -1, -1), automatic) if automatic else image
        )
        return io.NodeOutput(tools.shift_light(balanced, temperature, tint))


class Compare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="ArtMancer_Compare",
            display_name="Compare",
            category=CATEGORY,
            description="Compare two photos of the same size with a slider: before on the left, "
            "after on the right.",
            is_output_node=True,
            inputs=[
                io.Image.Input("before", tooltip="The photo on the left of the slider."),
                io.Image.Input("after", tooltip="The photo on the right of the slider."),
                io.Float.Input(
                    "at",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Position of the dividing line in the output image, as a share of its "
                    "width.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="Both photos in one image.")],
        )
        return with_aliases(schema, "before after", "image compare", "slider", "side by side")

    @classmethod
    def execute(cls, before: Tensor, after: Tensor, at: float) -> io.NodeOutput:
        before, after = tools.opaque(before), tools.opaque(after)
        return io.NodeOutput(
            tools.side_by_side(before, after, at), ui=save_before_after(before, after)
        )
