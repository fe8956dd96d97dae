from comfy_api.latest import io

from ..artmancer.draft import DraftEditor
from ..artmancer.editor import VARIANTS
from .types import EditorType


class LoadEditor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ArtMancer_LoadEditor",
            display_name="Load Editor",
            category="ArtMancer",
            description="Choose who edits, and the task. The draft editor needs no weights and no GPU.",
            inputs=[
                io.Combo.Input(
                    "editor",
                    options=["draft"],
                    default="draft",
                    tooltip="draft: PatchMatch fills a hole, Poisson blending inserts a reference, shades of grey "
                    "balances the colours. It does not read the prompt.",
                ),
                io.Combo.Input(
                    "variant",
                    options=list(VARIANTS),
                    default="removal",
                    tooltip="insertion: put the reference where the mask is. removal: take out what the mask covers. "
                    "white_balance: remove a colour cast; needs no mask.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much of the white balance is applied; the other variants ignore it.",
                ),
            ],
            outputs=[EditorType.Output(display_name="editor", tooltip="For Edit Sampler.")],
        )

    @classmethod
    def execute(cls, editor: str, variant: str, strength: float) -> io.NodeOutput:
        return io.NodeOutput(DraftEditor(variant, strength))
