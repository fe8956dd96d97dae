"""Progress on the running node, previews, and cancelling."""

from comfy import latent_formats, model_management, utils
from comfy.cli_args import LatentPreviewMethod, args
from comfy_execution.utils import get_executing_context
from latent_preview import Latent2RGBPreviewer
from server import PromptServer
from torch import Tensor

from ...artmancer.progress import Progress


def node_progress() -> Progress:
    """Make a Progress that shows on the running node. Where the user has cancelled, it raises
    ComfyUI's own exception, within one step.
    """
    bar: utils.ProgressBar | None = None
    previewer = _previewer()
    text = ""

    def update(done: int, total: int, stage: str, latents: Tensor | None = None) -> None:
        nonlocal bar, text
        model_management.throw_exception_if_processing_interrupted()
        context = get_executing_context()
        if stage != text and context:
            server = PromptServer.instance
            server.send_progress_text(stage, context.node_id, server.client_id)
            text = stage
        bar = bar or utils.ProgressBar(total)
        preview = None
        if previewer and latents is not None:
            preview = previewer.decode_latent_to_preview_image("JPEG", latents)
        bar.update_absolute(done, total, preview)

    return update


def _previewer() -> Latent2RGBPreviewer | None:
    """Make a previewer that maps latents to RGB linearly; None where the user wants no previews.

    ComfyUI's other previewers decode with a model, which would push ours off the device in the
    middle of a step.
    """
    if args.preview_method == LatentPreviewMethod.NoPreviews:
        return None
    latents = latent_formats.Wan21()
    return Latent2RGBPreviewer(latents.latent_rgb_factors, latents.latent_rgb_factors_bias)
