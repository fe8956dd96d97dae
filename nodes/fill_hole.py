"""Fill Hole: replace the masked area by what its surroundings suggest."""

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..artmancer import fill, mask_ops, tools
from ..artmancer.checks import check_finite, check_image, check_mask
from .comfy_host.folders import lama_time
from .comfy_host.memory import load_lama
from .comfy_host.progress import node_progress
from .sockets import AUTO, with_aliases


class FillHole(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="ArtMancer_FillHole",
            display_name="Fill Hole",
            category="ArtMancer/tools",
            description="Replace what the mask covers by what its surroundings suggest: remove an "
            "object without a diffusion model. All other pixels stay as they are.",
            inputs=[
                io.Image.Input("image", tooltip="The photo."),
                io.Mask.Input(
                    "mask", tooltip="White = replace. Every pixel that is not black is replaced."
                ),
                io.Combo.Input(
                    "method",
                    options=list(fill.METHODS),
                    default=AUTO,
                    tooltip="lama: the network LaMa, from big-lama.pt in models/inpaint.\n"
                    "patchmatch: patches from around the hole; slower on large holes.\n"
                    "telea: OpenCV, at once, but it smears.\n"
                    "auto: lama, or patchmatch where its file is missing.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The filled photo.")],
        )
        return with_aliases(
            schema,
            "inpaint",
            "erase",
            "eraser",
            "lama",
            "remove object",
            "delete object",
            "generative fill",
            "content aware fill",
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float | None:
        # With auto and lama, LaMa fills once its file is there.
        return lama_time()

    @classmethod
    def execute(cls, image: Tensor, mask: Tensor, method: str) -> io.NodeOutput:
        image = tools.opaque(image)
        check_image(image)
        check_mask(mask, image)
        mask = mask_ops.clean(mask.to(image)).expand(len(image), -1, -1)
        check_finite(image, "image")
        lama = load_lama() if method in (AUTO, "lama") else None
        with node_progress() as progress:
            filled = fill.fill(image, mask, 0, progress, method=method, lama=lama)
            progress(1, 1, "filled")
        return io.NodeOutput(filled)
