"""ArtMancer, a ComfyUI custom node pack: mask-aware photo editing that leaves every
other pixel alone.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> "ComfyExtension":
    """What ComfyUI calls to get the pack's nodes."""
    from .nodes import ArtMancerExtension

    return ArtMancerExtension()
