"""The pack's own socket types, and inputs, outputs and choices that several nodes share."""

from collections.abc import Iterable

from comfy_api.latest import io

from ..artmancer.conditions import Conditions
from ..artmancer.editor import Editor
from ..artmancer.options import (
    CONDITION_MEGAPIXELS,
    DEFAULT_SAMPLING,
    ONE_MEGAPIXEL,
    TRANSFERS,
)

AUTO, DRAFT, LAMA, QWEN, NONE = "auto", "draft", "lama", "qwen", "none"
"""Choices of model inputs: the first model there is, the editor without weights, LaMa, the first
base (only by a link: an endpoint's caller does not know its name), no model.
"""


RECIPE = "recipe"
"""Option of condition_size: as the recipe says."""

MEGAPIXELS = "megapixels"
"""Option of condition_size that takes the area from condition_megapixels."""

FROM_RECIPE = 0
"""Number of steps, and scale of guidance, that stands for the recipe's own."""

CONDITION_SIZES: dict[str, str | float] = {
    RECIPE: RECIPE,
    "crop": "crop",
    "1 megapixel": 1.0,
    "768": 768**2 / ONE_MEGAPIXEL,
    "512": 512**2 / ONE_MEGAPIXEL,
    "384": 384**2 / ONE_MEGAPIXEL,
}
"""Condition sizes, see recipes.Overrides, by option of condition_size."""


def condition_size() -> io.Input:
    """Make the input condition_size of a node that encodes conditions."""
    return advanced(
        io.Combo.Input(
            "condition_size",
            options=[*CONDITION_SIZES, MEGAPIXELS],
            default=RECIPE,
            optional=True,
            tooltip="The size each conditioning image is encoded at.\n"
            "recipe: as the checkpoint was trained.\n"
            "crop: the crop's own, fastest.\n"
            "1 megapixel: as in the stock pipeline, 4 times the work at 512x512.\n"
            "A number: the area of a square with this side in pixels.\n"
            "megapixels: the area in condition_megapixels.",
        )
    )


def condition_megapixels() -> io.Input:
    """Make the input condition_megapixels of a node that encodes conditions."""
    return advanced(
        io.Float.Input(
            "condition_megapixels",
            default=0.25,
            min=CONDITION_MEGAPIXELS[0],
            max=CONDITION_MEGAPIXELS[1],
            step=0.01,
            optional=True,
            tooltip="The area each conditioning image is encoded at if condition_size is "
            "megapixels; 0.25 = 512x512. Twice the area is at least twice the work.",
        )
    )


def resolve_condition_size(option: str, megapixels: float) -> str | float:
    """Return the condition size, see recipes.Overrides, that both inputs stand for."""
    return megapixels if option == MEGAPIXELS else CONDITION_SIZES[option]


def resolve_auto(choice: str, names: Iterable[str]) -> str:
    """Return the model to use: for "auto" the first of `names`, or "draft" where there is none."""
    return next(iter(names), DRAFT) if choice == AUTO else choice


@io.comfytype(io_type="ARTMANCER_EDITOR")
class EditorType(io.ComfyTypeIO):
    """An artmancer.editor.Editor."""

    Type = Editor


@io.comfytype(io_type="ARTMANCER_CONDITIONS")
class ConditionsType(io.ComfyTypeIO):
    """An artmancer.conditions.Conditions."""

    Type = Conditions


def advanced(widget: io.Input) -> io.Input:
    """Mark an input as advanced, which the frontend folds away.

    The inputs of ComfyUI 0.3.64 have no argument for it.
    """
    widget.extra_dict = {"advanced": True}
    return widget


def with_aliases(schema: io.Schema, *aliases: str) -> io.Schema:
    """Add other words for a node, under which ComfyUI's node search finds it.

    The schema of ComfyUI 0.3.64 has no argument for it.
    """
    schema.search_aliases = list(aliases)
    return schema


def with_cached_previews(schema: io.Schema) -> io.Schema:
    """Make ComfyUI show a node's images again where it takes the node's result from its cache.

    The schema of ComfyUI 0.3.64 has no argument for it.
    """
    schema.has_intermediate_output = True
    return schema


def prompt_inputs(negative_tooltip: str, prompt_tooltip: str) -> list[io.Input]:
    """Make the inputs for the prompt and the negative prompt."""
    return [
        io.String.Input(
            "prompt",
            default="",
            multiline=True,
            dynamic_prompts=True,
            tooltip=prompt_tooltip,
        ),
        io.String.Input(
            "negative",
            default=DEFAULT_SAMPLING.negative,
            multiline=True,
            dynamic_prompts=True,
            tooltip=negative_tooltip,
        ),
    ]


def match_colors() -> io.Input:
    """Make the input match_colors of a node that stitches."""
    return io.Boolean.Input(
        "match_colors",
        default=True,
        tooltip="Match the edit's colors to the photo's around the mask, so that no seam shows. "
        "White balance and the edits of the draft editor and LaMa are never matched.",
    )


def transfer(optional: bool = False) -> io.Input:
    """Make the input transfer of a node that stitches."""
    return io.Combo.Input(
        "transfer",
        options=list(TRANSFERS),
        default="colors",
        optional=optional,
        tooltip="For white balance.\n"
        "colors: the edit's change of colors is applied to the photo's own pixels, so that no "
        "texture is lost.\n"
        "pixels: the edited pixels are used.",
    )


def widen() -> io.Input:
    """Make the input widen of a node that stitches."""
    return advanced(
        io.Boolean.Input(
            "widen",
            default=False,
            optional=True,
            tooltip="Also stitch what the edit changed just around the mask, "
            "such as a shadow or a reflection.",
        )
    )


def blend_mask() -> io.Input:
    """Make the input blend_mask of a node that stitches."""
    return io.Mask.Input(
        "blend_mask",
        optional=True,
        tooltip="White where the edit may show, faded as the mask is. Without it: the mask of "
        "Split Conditions. The edit shows inside the crop alone, and fades out at those sides of "
        "the crop that lie inside the photo; for a larger crop, choose more context in Split "
        "Conditions.",
    )


def match_grain() -> io.Input:
    """Make the input match_grain of a node that stitches."""
    return advanced(
        io.Boolean.Input(
            "match_grain",
            default=False,
            optional=True,
            tooltip="Make what is pasted as sharp and as noisy as the photo around the mask, where "
            "it is less so. The report names the strength.",
        )
    )


def spill(*, is_list: bool = False) -> io.Output:
    """Make the output spill of a node that stitches."""
    return io.Mask.Output(
        display_name="spill",
        is_output_list=is_list,
        tooltip="White where the edit changed something just around the mask. It is cut off "
        "unless widen is on.",
    )
