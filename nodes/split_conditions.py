"""Split Conditions: the crop around the mask, and its conditioning images."""

from comfy_api.latest import io
from torch import Tensor

from ..artmancer.conditions import Sources, condition, prepare
from ..artmancer.editor import Editor
from ..artmancer.options import RESOLUTIONS
from ..artmancer.recipes import DEFAULT_RECIPE, RECIPES
from .comfy_host.progress import node_progress
from .sockets import AUTO, ConditionsType, EditorType


class SplitConditions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
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
                    "background_mask_fill. Without it, PatchMatch fills the hole.",
                ),
                io.Combo.Input(
                    "recipe",
                    options=[AUTO, *RECIPES],
                    default=AUTO,
                    tooltip="The conditioning images that the checkpoint was trained on, in order. "
                    "auto: the recipe that the connected editor's checkpoint names, "
                    f"else {DEFAULT_RECIPE}.\n"
                    + "\n".join(f"{name}: {recipe.purpose}" for name, recipe in RECIPES.items()),
                ),
                io.Combo.Input(
                    "resolution",
                    options=[AUTO, *RESOLUTIONS],
                    default=AUTO,
                    tooltip="The size of the crop. auto: the size that the connected editor's "
                    "checkpoint names, else 512; 1 megapixel for the base alone; native for the "
                    "draft editor or without an editor. native: the photo's own pixels, up to 1536 "
                    "on the longest side. A number: the longest side in pixels. The photo around "
                    "the crop keeps its resolution.",
                ),
                io.Float.Input(
                    "context",
                    default=1.5,
                    min=1.0,
                    max=8.0,
                    step=0.1,
                    tooltip="How much of the photo around the mask the editor sees: the crop's "
                    "size divided by the mask's.",
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
                    tooltip="From Load Editor. Its checkpoint sets the recipe and the resolution "
                    "where they are auto.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="mask_rgb", tooltip="The crop's mask as an image."),
                io.Image.Output(display_name="background", tooltip="The crop outside the mask."),
                io.Image.Output(
                    display_name="object", tooltip="The crop inside the mask, or the reference."
                ),
                ConditionsType.Output(
                    display_name="conditions", tooltip="For Edit Sampler or Encode Conditions."
                ),
            ],
        )

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
    ) -> io.NodeOutput:
        if recipe == AUTO:
            recipe = editor.recipe if editor else DEFAULT_RECIPE
        if resolution == AUTO:
            resolution = editor.resolution if editor else "native"
        progress = node_progress()
        progress(0, 1, f"{', '.join(RECIPES[recipe].conditions)} at {resolution}")
        conditions = prepare(
            image,
            mask,
            reference=reference,
            reference_mask=reference_mask,
            fill=fill,
            recipe=recipe,
            resolution=resolution,
            context=context,
            grow=grow,
            fill_holes=fill_holes,
            feather=feather,
            progress=progress,
        )
        sources = Sources(conditions.crop, conditions.reference)
        images = [
            conditions.images[name] if name in conditions.images else condition(sources, name)
            for name in ("mask", "background", "object")
        ]
        return io.NodeOutput(*images, conditions)
