"""Report: the report on an edit as an image."""

import json

from comfy_api.latest import io

from ..artmancer import report_image
from ..artmancer.errors import ArtMancerError
from .comfy_host.files import save_preview
from .sockets import with_aliases


class Report(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="ArtMancer_Report",
            display_name="Report",
            category="ArtMancer",
            description="Show the report on an edit: seconds of each stage, drift, how close the "
            "edit stayed to the photo outside the mask, and whether it changed something just "
            "around the mask. Values that deserve a look are red.",
            inputs=[
                io.String.Input("report", force_input=True, tooltip="From Edit Sampler or Stitch."),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The report as an image.")],
            is_output_node=True,
        )
        return with_aliases(schema, "quality check", "verdict")

    @classmethod
    def execute(cls, report: str) -> io.NodeOutput:
        try:
            image = report_image.draw(json.loads(report))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtMancerError(
                "invalid_request",
                f"The report is {report[:60]!r}; expected the JSON from Edit Sampler or Stitch. "
                "Connect their output report.",
            ) from error
        return io.NodeOutput(image, ui={"images": [save_preview(image, "report.png")]})
