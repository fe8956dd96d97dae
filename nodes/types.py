"""The socket types that the pack's nodes connect through."""

from comfy_api.latest import io

from ..artmancer.editor import Conditions, Editor


@io.comfytype(io_type="ARTMANCER_EDITOR")
class EditorType(io.ComfyTypeIO):
    Type = Editor


@io.comfytype(io_type="ARTMANCER_CONDITIONS")
class ConditionsType(io.ComfyTypeIO):
    Type = Conditions
