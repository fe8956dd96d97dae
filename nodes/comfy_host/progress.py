"""Progress on the running node, previews, and cancelling."""

from collections.abc import Iterator
from contextlib import contextmanager

from comfy import latent_formats, model_management, utils
from comfy.cli_args import LatentPreviewMethod, args
from comfy_execution.utils import get_executing_context
from latent_preview import Latent2RGBPreviewer
from server import PromptServer
from torch import Tensor

from ...artmancer.progress import Progress


@contextmanager
def node_progress() -> Iterator[Progress]:
    """Make a Progress that shows on the running node. Where the user has cancelled, it raises
    ComfyUI's own exception, within one step.

    ComfyUI leaves the last text on the node: report at the end what was done. Where the work is
    cancelled or fails, the text of a stage is replaced by one that says so.
    """
    bar: utils.ProgressBar | None = None
    previewers = _previewers()
    text = ""

    def show(new: str) -> None:
        nonlocal text
        context = get_executing_context()
        if new != text and context:
            server = PromptServer.instance
            server.send_progress_text(new, context.node_id, server.client_id)
            text = new

    def update(done: int, total: int, stage: str, latents: Tensor | None = None) -> None:
        nonlocal bar
        model_management.throw_exception_if_processing_interrupted()
        show(stage)
        bar = bar or utils.ProgressBar(total)
        preview = None
        previewer = previewers.get(latents.shape[1]) if latents is not None else None
        if previewer:
            preview = previewer.decode_latent_to_preview_image("JPEG", latents)
        bar.update_absolute(done, total, preview)

    try:
        yield update
    except model_management.InterruptProcessingException:
        if text:
            show("cancelled")
        raise
    except Exception:
        if text:
            show("failed")
        raise


def _previewers() -> dict[int, Latent2RGBPreviewer]:
    """Make previewers that map latents to RGB linearly, by the latents' number of channels; none
    where the user wants no previews.

    ComfyUI's other previewers decode with a model, which would push ours off the device in the
    middle of a step.
    """
    if args.preview_method == LatentPreviewMethod.NoPreviews:
        return {}
    qwen = latent_formats.Wan21()
    previewers = {16: Latent2RGBPreviewer(qwen.latent_rgb_factors, qwen.latent_rgb_factors_bias)}
    if hasattr(latent_formats, "Flux2"):  # not in ComfyUI 0.3.64
        flux = latent_formats.Flux2()
        previewers[128] = Latent2RGBPreviewer(
            flux.latent_rgb_factors,
            flux.latent_rgb_factors_bias,
            flux.latent_rgb_factors_reshape,
        )
    return previewers
