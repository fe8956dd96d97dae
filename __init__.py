"""ArtMancer, a ComfyUI custom node pack: mask-aware photo editing that leaves every
other pixel alone.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> "ComfyExtension":
    """Return the pack's nodes. ComfyUI calls this by its name."""
    from .nodes import ArtMancerExtension

    return ArtMancerExtension()
