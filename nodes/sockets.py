"""The pack's own socket types, and inputs, outputs and choices that several nodes share."""

from collections.abc import Iterable

from comfy_api.latest import io

from ..artmancer.conditions import Conditions
from ..artmancer.editor import Editor
from ..artmancer.options import DEFAULT_SAMPLING, TRANSFERS

AUTO, DRAFT, NONE = "auto", "draft", "none"
"""Choices of model inputs: the first model there is, the one without weights, no model."""


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
        "White balance is never matched.",
    )


def transfer(optional: bool = False) -> io.Input:
    """Make the input transfer of a node that stitches."""
    return io.Combo.Input(
        "transfer",
        options=list(TRANSFERS),
        default="colors",
        optional=optional,
        tooltip="For white balance. colors: the edit's change of colors is applied to the photo's "
        "own pixels, so that no texture is lost. pixels: the edited pixels are used.",
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


def spill() -> io.Output:
    """Make the output spill of a node that stitches."""
    return io.Mask.Output(
        display_name="spill",
        tooltip="White where the edit changed something just around the mask. It is cut off "
        "unless widen is on.",
    )
