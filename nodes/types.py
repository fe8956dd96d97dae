"""What the pack's nodes have in common: their own socket types, and the mark of an advanced input."""

from comfy_api.latest import io

from ..artmancer.editor import Conditions, Editor

ADVANCED = {"advanced": True}
"""An input that the frontend folds away."""


@io.comfytype(io_type="ARTMANCER_EDITOR")
class EditorType(io.ComfyTypeIO):
    Type = Editor


@io.comfytype(io_type="ARTMANCER_CONDITIONS")
class ConditionsType(io.ComfyTypeIO):
    Type = Conditions
