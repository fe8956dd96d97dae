import json

from comfy_api.latest import io

from ..artmancer import report_image
from ..artmancer.errors import ArtMancerError
from .comfy_host.files import save_preview


class Report(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ArtMancer_Report",
            display_name="Report",
            category="ArtMancer",
            description="Show what an edit did: seconds a stage, how far it drifted, how close it "
            "stayed to the photo outside the mask, and whether it changed something just around "
            "it. What deserves a look is red.",
            inputs=[
                io.String.Input("report", force_input=True, tooltip="From Edit Sampler or Stitch."),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The same as a picture.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, report: str) -> io.NodeOutput:
        try:
            picture = report_image.draw(json.loads(report))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtMancerError(
                "invalid_request",
                f"The report is {report[:60]!r}; expected the JSON that Edit Sampler or Stitch "
                "gives. Connect theirs.",
            ) from error
        return io.NodeOutput(picture, ui={"images": [save_preview(picture, "report.png")]})
