"""Add Condition and Condition Images: more images for the editor, and a look at all of them."""

import json

import torch
from comfy_api.latest import io
from torch import Tensor

from ..artmancer.conditions import Conditions, with_extra
from .sockets import ConditionsType, with_aliases


class AddCondition(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="ArtMancer_AddCondition",
            display_name="Add Condition",
            category="ArtMancer",
            description="Add one more conditioning image after those of the recipe. The draft "
            "editor ignores it.",
            inputs=[
                ConditionsType.Input(
                    "conditions", tooltip="From Split Conditions or Add Condition."
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The image. It is scaled to fit into the crop, centered on white. "
                    "Without it, the conditions are passed on unchanged.",
                ),
            ],
            outputs=[
                ConditionsType.Output(
                    display_name="conditions", tooltip="For Edit Sampler or Encode Conditions."
                )
            ],
        )
        return with_aliases(schema, "reference image")

    @classmethod
    def execute(cls, conditions: Conditions, image: Tensor | None = None) -> io.NodeOutput:
        return io.NodeOutput(conditions if image is None else with_extra(conditions, image))


class ConditionImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="ArtMancer_ConditionImages",
            display_name="Condition Images",
            category="ArtMancer",
            description="Show the conditioning images that the editor sees, in order.",
            inputs=[
                ConditionsType.Input(
                    "conditions", tooltip="From Split Conditions or Add Condition."
                )
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    tooltip="The conditioning images as a batch, of the first part of the mask. Of "
                    "a batch of photos, only those of the first photo.",
                ),
                io.String.Output(display_name="labels", tooltip="Their names as a JSON list."),
            ],
        )
        return with_aliases(schema, "preview conditions")

    @classmethod
    def execute(cls, conditions: Conditions) -> io.NodeOutput:
        images = torch.cat([image[:1] for image in conditions.images.values()])
        return io.NodeOutput(images, json.dumps(list(conditions.images)))
