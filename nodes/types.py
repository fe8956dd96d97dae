"""What the pack's nodes have in common: their own socket types,
and the mark of an advanced input.
"""

from comfy_api.latest import io

from ..artmancer.editor import Conditions, Editor


def advanced(widget: io.Input) -> io.Input:
    """An input that the frontend folds away.
    The inputs of ComfyUI 0.3.64 have no argument for it.
    """
    widget.extra_dict = {"advanced": True}
    return widget


@io.comfytype(io_type="ARTMANCER_EDITOR")
class EditorType(io.ComfyTypeIO):
    Type = Editor


@io.comfytype(io_type="ARTMANCER_CONDITIONS")
class ConditionsType(io.ComfyTypeIO):
    Type = Conditions


def with_pictures(schema: io.Schema) -> io.Schema:
    """A node whose pictures ComfyUI shows again where it takes its result from the cache.
    The schema of ComfyUI 0.3.64 has no argument for it.
    """
    schema.has_intermediate_output = True
    return schema


def widen() -> io.Input:
    """The input of what stitches."""
    return advanced(
        io.Boolean.Input(
            "widen",
            default=False,
            optional=True,
            tooltip="Stitch what the edit changed just around the mask, too, "
            "such as a shadow or a reflection.",
        )
    )


def spill() -> io.Output:
    """The output of what stitches."""
    return io.Mask.Output(
        display_name="spill",
        tooltip="White where the edit changed something just around the mask, which is cut off "
        "without widen.",
    )
