"""Split Conditions: the crop around the mask, and its conditioning images."""

from comfy_api.latest import io
from torch import Tensor

from ..artmancer.conditions import Conditions, Sources, condition, prepare
from ..artmancer.editor import Editor, plan
from ..artmancer.options import CONTEXT, DEFAULT_CONTEXT, FRAMES, REGIONS, RESOLUTIONS
from ..artmancer.recipes import RECIPES
from .comfy_host.memory import load_lama
from .comfy_host.progress import node_progress
from .sockets import AUTO, ConditionsType, EditorType, advanced, with_aliases


class SplitConditions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="ArtMancer_SplitConditions",
            display_name="Split Conditions",
            category="ArtMancer",
            description="Crop the photo to its mask, and make the conditioning images that the "
            "checkpoint was trained on: mask, background (the crop outside the mask), object (the "
            "crop inside the mask, or the reference).",
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="The photo. Every pixel outside the feathered mask stays as it is.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White = edit here. Only white balance works without a mask.",
                ),
                io.Image.Input(
                    "reference", optional=True, tooltip="An image of the object to insert."
                ),
                io.Mask.Input(
                    "reference_mask",
                    optional=True,
                    tooltip="White on the object in the reference. Without it, every pixel of the "
                    "reference that is not transparent is the object.",
                ),
                io.Image.Input(
                    "fill",
                    optional=True,
                    tooltip="The photo with the hole already filled, for the recipe "
                    "background_mask_fill. Without it, the hole is filled here.",
                ),
                io.Combo.Input(
                    "recipe",
                    options=[AUTO, *RECIPES],
                    default=AUTO,
                    tooltip="How the checkpoint was trained: its conditioning images in order, "
                    "frame, sizes, prompt, steps and cfg.\n"
                    "auto: the recipe that the connected editor's checkpoint names in its "
                    "metadata, else the one for its file name, else mask_background_object; with "
                    "Editor from Model, the one chosen there.\n"
                    + "\n".join(f"{name}: {recipe.purpose}" for name, recipe in RECIPES.items()),
                ),
                io.Combo.Input(
                    "resolution",
                    options=[AUTO, *RESOLUTIONS],
                    default=AUTO,
                    tooltip="The size of the crop.\n"
                    "auto: the size that the connected editor's checkpoint names, else the "
                    "recipe's; 1 megapixel for the base alone; native for the draft editor or "
                    "without an editor.\n"
                    "native: the photo's own pixels, up to 1536 on the longest side; for the "
                    "draft and LaMa editors also up to 4 megapixels, if at most one is masked.\n"
                    "A number: the longest side in pixels. The photo around the crop keeps its "
                    "resolution.",
                ),
                io.Float.Input(
                    "context",
                    default=DEFAULT_CONTEXT,
                    min=CONTEXT[0],
                    max=CONTEXT[1],
                    step=0.1,
                    tooltip="How much of the photo around the mask the editor sees: each side of "
                    "the crop divided by that of the mask's bounding box; at least 32 pixels "
                    "around it. Without effect where the frame is the whole photo.",
                ),
                io.Int.Input(
                    "grow", default=0, min=0, max=512, tooltip="Widen the mask by this many pixels."
                ),
                io.Int.Input(
                    "feather",
                    default=16,
                    min=0,
                    max=512,
                    tooltip="Pixels over which the edit fades into the photo, "
                    "outward from the mask.",
                ),
                io.Boolean.Input(
                    "fill_holes", default=False, tooltip="Fill the holes inside the mask."
                ),
                EditorType.Input(
                    "editor",
                    optional=True,
                    tooltip="From Load Editor or Editor from Model. It sets the recipe and the "
                    "resolution where they are auto.",
                ),
                io.Combo.Input(
                    "frame",
                    options=[AUTO, *FRAMES],
                    default=AUTO,
                    optional=True,
                    tooltip="What the editor sees.\n"
                    "auto: as the recipe says.\n"
                    "crop: the photo around the mask.\n"
                    "photo: the whole photo, padded with black to a square.",
                ),
                advanced(
                    io.Boolean.Input(
                        "brush_mask",
                        default=False,
                        optional=True,
                        tooltip="The mask was painted with a brush and may fall short of the "
                        "object's edge: the hole is filled 35 pixels beyond it. The mask itself "
                        "does not change.",
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "silhouette",
                        default=True,
                        optional=True,
                        tooltip="For reference_mask_background: the mask shows the silhouette of "
                        "the reference in each region of the mask. Off: the mask as it is.",
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "shadow_hint",
                        default=True,
                        optional=True,
                        tooltip="For reference_mask_background: the background is darkened where "
                        "the silhouette would cast a shadow.",
                    )
                ),
                io.Combo.Input(
                    "regions",
                    options=list(REGIONS),
                    default=REGIONS[0],
                    optional=True,
                    tooltip="For a mask of several islands.\n"
                    "together: one crop around all.\n"
                    "apart: islands that lie apart are cropped, edited and stitched one after "
                    "another; the reference goes into each, and Edit Sampler uses the next seed "
                    "for each.\n"
                    "auto: apart where that crops fewer pixels of the photo; together for white "
                    "balance.\n"
                    "With auto and apart, a long thin mask is cut along its length where one crop "
                    "would be scaled down. With a context_mask there is one crop.",
                ),
                io.Mask.Input(
                    "context_mask",
                    optional=True,
                    tooltip="White on what the editor has to see besides the mask, for example "
                    "another object of the same kind. The crop then holds both. Nothing "
                    "changes there. Without effect where the frame is the whole photo.",
                ),
                advanced(
                    io.Int.Input(
                        "context_pixels",
                        default=0,
                        min=0,
                        max=4096,
                        optional=True,
                        tooltip="Pixels of the photo that the editor sees on each side of the "
                        "mask, in place of context. 0: as context says. There are always 32.",
                    )
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="mask_rgb",
                    is_output_list=True,
                    tooltip="The crop's mask as an image; a list with an item for each part of the "
                    "mask.",
                ),
                io.Image.Output(
                    display_name="background",
                    is_output_list=True,
                    tooltip="The crop outside the mask; a list with an item for each part of the "
                    "mask.",
                ),
                io.Image.Output(
                    display_name="object",
                    is_output_list=True,
                    tooltip="The crop inside the mask, or the reference; a list with an item for "
                    "each part of the mask.",
                ),
                ConditionsType.Output(
                    display_name="conditions", tooltip="For Edit Sampler or Encode Conditions."
                ),
            ],
        )
        return with_aliases(schema, "crop to mask", "inpaint crop", "crop and stitch")

    @classmethod
    def execute(
        cls,
        image: Tensor,
        recipe: str,
        resolution: str,
        context: float,
        grow: int,
        feather: int,
        fill_holes: bool,
        mask: Tensor | None = None,
        reference: Tensor | None = None,
        reference_mask: Tensor | None = None,
        fill: Tensor | None = None,
        editor: Editor | None = None,
        frame: str = AUTO,
        brush_mask: bool = False,
        silhouette: bool = True,
        shadow_hint: bool = True,
        regions: str = REGIONS[0],
        context_mask: Tensor | None = None,
        context_pixels: int = 0,
    ) -> io.NodeOutput:
        choices = plan(
            editor,
            recipe=_chosen(recipe),
            resolution=_chosen(resolution),
            frame=_chosen(frame),
            regions=regions,
        )
        images = RECIPES[choices.recipe].images_for(reference is not None)
        with node_progress() as progress:
            conditions = prepare(
                image,
                mask,
                reference=reference,
                reference_mask=reference_mask,
                fill=fill,
                context=context,
                grow=grow,
                fill_holes=fill_holes,
                feather=feather,
                brushed=brush_mask,
                lama=load_lama() if "fill" in images and fill is None else None,
                silhouette=silhouette,
                shadow=shadow_hint,
                context_mask=context_mask,
                context_pixels=context_pixels,
                progress=progress,
                **choices._asdict(),
            )
            progress(1, 1, _summary(conditions))
        outputs = [
            [_shown(part, name) for part in conditions.parts]
            for name in ("mask", "background", "object")
        ]
        return io.NodeOutput(*outputs, conditions)


def _summary(conditions: Conditions) -> str:
    """Return what was made, in a line: the size of each part's crop, and the images' names."""
    sizes = [part.crop.region.size for part in conditions.parts]
    crops = ", ".join(f"{width}x{height}" for height, width in sizes)
    return f"{', '.join(conditions.images)} at {crops}"


def _shown(conditions: Conditions, name: str) -> Tensor:
    """Return a conditioning image, which the recipe may not have."""
    if name in conditions.images:
        return conditions.images[name]
    return condition(Sources(conditions.crop, conditions.reference), name)


def _chosen(option: str) -> str | None:
    """Return what an option sets; None for "auto"."""
    return None if option == AUTO else option
