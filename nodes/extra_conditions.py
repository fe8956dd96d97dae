import json

import torch
from comfy_api.latest import io
from torch import Tensor

from ..artmancer.conditions import Conditions, with_extra
from .sockets import ConditionsType


class AddCondition(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ArtMancer_AddCondition",
            display_name="Add Condition",
            category="ArtMancer",
            description="Show the editor one more picture, after those of the recipe. The draft "
            "editor looks at none of them.",
            inputs=[
                ConditionsType.Input(
                    "conditions", tooltip="From Split Conditions or Add Condition."
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The picture: it is scaled to fit into the crop, centred on white. "
                    "Without it, the conditions are passed on as they are.",
                ),
            ],
            outputs=[
                ConditionsType.Output(
                    display_name="conditions", tooltip="For Edit Sampler or Encode Conditions."
                )
            ],
        )

    @classmethod
    def execute(cls, conditions: Conditions, image: Tensor | None = None) -> io.NodeOutput:
        return io.NodeOutput(conditions if image is None else with_extra(conditions, image))


class ConditionImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ArtMancer_ConditionImages",
            display_name="Condition Images",
            category="ArtMancer",
            description="The pictures that the editor is shown, in their order, to look at.",
            inputs=[
                ConditionsType.Input(
                    "conditions", tooltip="From Split Conditions or Add Condition."
                )
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    tooltip="One a condition, as a batch; of the first photo of a batch.",
                ),
                io.String.Output(display_name="labels", tooltip="Their names, as a JSON list."),
            ],
        )

    @classmethod
    def execute(cls, conditions: Conditions) -> io.NodeOutput:
        made = conditions.images
        return io.NodeOutput(
            torch.cat([image[:1] for image in made.values()]), json.dumps(list(made))
        )
