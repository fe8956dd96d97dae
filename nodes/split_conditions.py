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
            description="Crop the image to its mask, and make the conditioning images that the "
            "checkpoint was trained on: mask, background (the image outside the mask), object (the "
            "image inside it, or the reference).",
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="The photo. What lies outside the mask comes out as it goes in.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White = edit here. Only white balance works without a mask.",
                ),
                io.Image.Input(
                    "reference", optional=True, tooltip="A picture of the object to insert."
                ),
                io.Mask.Input(
                    "reference_mask",
                    optional=True,
                    tooltip="White where the object is in the reference. Without it: where the "
                    "reference is not transparent.",
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
                    tooltip="Which conditioning images the checkpoint was trained on, in their "
                    "order. auto: what the connected editor's checkpoint says, "
                    f"else {DEFAULT_RECIPE}.\n"
                    + "\n".join(f"{name}: {recipe.purpose}" for name, recipe in RECIPES.items()),
                ),
                io.Combo.Input(
                    "resolution",
                    options=[AUTO, *RESOLUTIONS],
                    default=AUTO,
                    tooltip="The size of the crop. auto: what the connected editor's checkpoint "
                    "says, or else 512; 1 megapixel for the base alone; native for the draft and "
                    "without an editor. "
                    "native: the photo's own pixels, up to 1536 a side. A number: the longest "
                    "side. The photo around the crop keeps its resolution.",
                ),
                io.Float.Input(
                    "context",
                    default=1.5,
                    min=1.0,
                    max=8.0,
                    step=0.1,
                    tooltip="How much of the photo around the mask the editor sees: the crop's "
                    "size over the mask's.",
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
                    "outwards from the mask.",
                ),
                io.Boolean.Input(
                    "fill_holes", default=False, tooltip="Close the holes that the mask encloses."
                ),
                EditorType.Input(
                    "editor",
                    optional=True,
                    tooltip="From Load Editor: what auto asks for its recipe and resolution.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="mask_rgb", tooltip="The mask of the crop, as an image."
                ),
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
        made = conditions.images
        shown = [
            made[name] if name in made else condition(sources, name)
            for name in ("mask", "background", "object")
        ]
        return io.NodeOutput(*shown, conditions)
