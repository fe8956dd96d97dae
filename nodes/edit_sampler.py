import json

from comfy_api.latest import io

from ..artmancer.edit import edit
from ..artmancer.editor import Conditions, Editor
from . import comfy_host
from .types import ConditionsType, EditorType


class EditSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ArtMancer_EditSampler",
            display_name="Edit Sampler",
            category="ArtMancer",
            description="Edit the crop, match its colours at the mask's rim, and stitch it into the photo. "
            "Every pixel outside the feathered mask stays as it was.",
            inputs=[
                EditorType.Input("editor", tooltip="From Load Editor."),
                ConditionsType.Input("conditions", tooltip="From Split Conditions."),
                io.String.Input(
                    "prompt", default="", multiline=True, tooltip="The edit in words. The draft editor ignores it."
                ),
                io.String.Input(
                    "negative",
                    default=" ",
                    multiline=True,
                    tooltip="What to avoid. The checkpoints were trained with a single space. "
                    "The draft editor ignores it.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**53 - 1,
                    control_after_generate=True,
                    tooltip="The same seed gives the same edit. Each picture of a batch has the next one.",
                ),
                io.Int.Input(
                    "steps", default=10, min=1, max=100, tooltip="Denoising steps. The draft editor ignores them."
                ),
                io.Float.Input(
                    "cfg",
                    default=4.0,
                    min=0.5,
                    max=20.0,
                    step=0.1,
                    tooltip="How closely the edit follows the prompt. The draft editor ignores it.",
                ),
                io.Boolean.Input(
                    "match_colors",
                    default=True,
                    tooltip="Fit the edit's colours to the photo's just outside the mask, so that no seam shows.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The edited photo, at its own resolution."),
                io.String.Output(
                    display_name="report",
                    tooltip="What was done, as JSON: who edited, seconds, memory, drift, change outside the mask.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        editor: Editor,
        conditions: Conditions,
        prompt: str,
        negative: str,
        seed: int,
        steps: int,
        cfg: float,
        match_colors: bool,
    ) -> io.NodeOutput:
        result = edit(
            editor,
            conditions,
            prompt=prompt,
            negative=negative,
            seed=seed,
            steps=steps,
            cfg=cfg,
            match=match_colors,
            progress=comfy_host.progress(),
        )
        return io.NodeOutput(result.image, json.dumps(result.report.as_dict(), indent=2))
