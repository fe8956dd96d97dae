"""Requests and answers of the HTTP API, as pydantic models. Their texts are shown at /docs."""

from typing import Annotated, Any, Literal

from fastapi import UploadFile
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ..errors import CODES
from ..options import (
    CFG,
    CONDITION_MEGAPIXELS,
    CONTEXT,
    DEFAULT_CONTEXT,
    EDITORS,
    FRAMES,
    MAX_SEED,
    REGIONS,
    RESOLUTIONS,
    STEPS,
)
from ..recipes import CONDITION_SIZES, RECIPES
from .image_field import ImageField
from .jobs import Job, JobState, LaneName

Point = tuple[float, float]
"""x and y, in pixels of the upright image."""

ServiceName = Literal["generation", "segmentation", "image-utils", "image_utils"]


class Failure(BaseModel):
    """The answer to every request that fails."""

    detail: str = Field(description="The error as a sentence for people.")
    # mypy knows only literals that are written out, here and below.
    error_type: Literal[tuple(CODES)]  # type: ignore[valid-type]
    details: dict[str, Any] = Field(
        description="The error for programs. invalid_request has: field, expected, got."
    )


# Health


class Ping(BaseModel):
    """The gateway is alive."""

    status: Literal["healthy"] = "healthy"


class Health(BaseModel):
    """The state of ComfyUI and its models."""

    model_config = ConfigDict(protected_namespaces=())

    status: Literal["healthy", "degraded"]
    reason: str | None = Field(None, description="Why the status is degraded.")
    starting: bool = Field(
        False,
        description="The status is degraded because the gateway is starting ComfyUI; the models "
        "and editors are not known yet.",
    )
    model_loaded: bool
    device: str
    device_info: dict[str, Any] = Field(
        description="ComfyUI's version and memory, unfinished jobs, the editors to choose "
        "from, and model files: bases, whether LaMa is there, model sets with `complete` and the "
        "reason where a file is missing, checkpoints by variant, and the file names expected for "
        "those that are missing."
    )


class Service(BaseModel):
    """The state of one service."""

    status: Literal["healthy", "degraded"]
    reason: str | None = Field(None, description="Why the status is degraded.")


class SystemHealth(BaseModel):
    """The state of all services."""

    status: Literal["healthy", "degraded"]
    services: dict[ServiceName, Service]


class OpenRequest(BaseModel):
    """A request that may have unknown fields: the answer names them as ignored."""

    model_config = ConfigDict(extra="allow")


# Edits


def _hyphenated(value: Any) -> Any:
    return value.replace("_", "-") if isinstance(value, str) else value


TaskType = Annotated[Literal["insertion", "removal", "white-balance"], BeforeValidator(_hyphenated)]
"""Kind of edit. white_balance is taken too, but not documented: the classes that generators make of
an enumeration would have one name twice.
"""


class GenerateRequest(OpenRequest):
    """An edit. Unknown fields are accepted, and listed in the answer as ignored."""

    prompt: str = Field(
        max_length=4000,
        description="The edit in words. May be empty for white balance, and for a removal whose "
        "recipe has a prompt.",
    )
    input_image: ImageField
    mask_image: ImageField | None = Field(
        None, description="White = edit. Required for insertion and removal."
    )
    conditional_images: list[ImageField] | None = Field(
        None,
        max_length=4,
        description="The first is the mask, for older clients that send no mask_image. The others "
        "are extra conditioning images.",
    )
    reference_image: ImageField | None = Field(
        None, description="An image of the object to insert."
    )
    reference_mask_R: ImageField | None = Field(
        None, description="White = the object in the reference image."
    )
    task_type: TaskType | None = Field(
        None,
        description="Default: insertion with a reference image, else removal with a mask, else "
        "white_balance.",
    )
    width: int | None = Field(
        None, ge=256, le=2048, description="Width of the output in pixels. Default: the input's."
    )
    height: int | None = Field(
        None, ge=256, le=2048, description="Height of the output in pixels. Default: the input's."
    )
    num_inference_steps: int | None = Field(
        None,
        ge=STEPS[0],
        le=STEPS[1],
        description="Denoising steps. Default: the recipe's, 10.",
    )
    true_cfg_scale: float | None = Field(
        None,
        ge=CFG[0],
        le=CFG[1],
        description="Classifier-free guidance scale. Default: the recipe's, 4, or 3.3 for "
        "image_edges.",
    )
    guidance_scale: float | None = Field(
        None, ge=CFG[0], le=CFG[1], description="Used if true_cfg_scale is not sent."
    )
    negative_prompt: str | None = Field(None, max_length=4000, description="Default: a space.")
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="Default: random. The answer contains it."
    )
    input_quality: Literal["resized", "original"] | None = Field(
        None, description="resized: scale the input to at most 1 megapixel first."
    )
    mask_tool_type: Literal["brush", "box"] | None = Field(
        None,
        description="brush: a hole is filled 35 pixels beyond the mask, which may fall short of "
        "the object's edge. The mask itself does not change.",
    )
    editor: str | None = Field(
        None,
        max_length=64,
        description=f"One of {', '.join(EDITORS)}, or the name of a model set, which GET "
        "/api/health lists. auto: qwen if it is installed, else the first model set whose files "
        "are there, else draft. draft: without weights. lama: the network LaMa, for removal only; "
        "PatchMatch where it is not installed. qwen: Qwen-Image-Edit in diffusers' form. Default: "
        "auto.",
    )
    enable_debug: bool | None = Field(
        None,
        description="Return the conditioning images. With DEBUG=true, also record a debug session.",
    )
    recipe: Literal[tuple(RECIPES)] | None = Field(  # type: ignore[valid-type]
        None,
        description="How the checkpoint was trained. Default: by the checkpoint's metadata, else "
        "by its file name, else mask_background_object.",
    )
    frame: Literal[FRAMES] | None = Field(  # type: ignore[valid-type]
        None,
        description="What the editor sees: crop, the photo around the mask, or photo, the whole "
        "photo, padded with black to a square. Default: the recipe's.",
    )
    condition_size: (
        Literal[CONDITION_SIZES]  # type: ignore[valid-type]
        | Annotated[float, Field(ge=CONDITION_MEGAPIXELS[0], le=CONDITION_MEGAPIXELS[1])]
        | None
    ) = Field(
        None,
        description="The size each conditioning image is encoded at: recipe, crop (the crop's "
        "own), or megapixels. Default: recipe.",
    )
    context: float | None = Field(
        None,
        ge=CONTEXT[0],
        le=CONTEXT[1],
        description="Size of the crop divided by the size of the mask. "
        f"Default: {DEFAULT_CONTEXT:g}.",
    )
    resolution: Literal[tuple(RESOLUTIONS)] | None = Field(  # type: ignore[valid-type]
        None,
        description="Size of the crop: native, the photo's own, or the longest side in pixels. "
        "Default: as the checkpoint or the recipe says.",
    )
    fill_holes: bool | None = Field(None, description="Fill the holes that the mask encloses.")
    widen: bool | None = Field(
        None,
        description="Also stitch what the edit changed just around the mask, such as a shadow or a "
        "reflection.",
    )
    regions: Literal[REGIONS] | None = Field(  # type: ignore[valid-type]
        None,
        description="A mask of several islands: in one crop, each in a crop of its own, or (auto, "
        "the default) apart where that crops fewer pixels.",
    )
    match_grain: bool | None = Field(
        None,
        description="Sharpen what is pasted, and add noise to it, as far as the photo around the "
        "mask has more. Default: false.",
    )
    output_format: Literal["png", "webp", "jpeg"] | None = Field(
        None,
        description="Format of the result. Default: png, which keeps 16 bits and transparency.",
    )
    output_quality: int | None = Field(
        None,
        ge=1,
        le=100,
        description="Quality of jpeg (default: the photo's own compression where it is a JPEG, "
        "else 95) and webp (default: lossless). png is lossless.",
    )
    upload_url: str | None = Field(
        None,
        description="A URL that takes the result by PUT, such as a presigned URL of an object "
        "store, on a host that this gateway lists.",
    )
    webhook_url: str | None = Field(
        None,
        description="A URL that gets a signed POST when the job has ended, on a host that this "
        "gateway lists.",
    )
    angle: Any = None
    background_preset: Any = None
    enable_flowmatch_scheduler: Any = None
    enable_mae_refinement: Any = None
    refine_mask_with_birefnet: Any = None


WITHOUT_EFFECT = (
    "angle",
    "background_preset",
    "enable_flowmatch_scheduler",
    "enable_mae_refinement",
    "refine_mask_with_birefnet",
)
"""Fields of GenerateRequest that are accepted but change nothing."""


class DebugInfo(BaseModel):
    """Details of an edit."""

    conditional_images: list[str] | None = Field(
        None, description="The conditioning images as base64 PNG; only with enable_debug."
    )
    conditional_labels: list[str] = Field(description="The names of the conditioning images.")
    input_image_size: str = Field(description="For example 1024x768.")
    output_image_size: str = Field(description="For example 1024x768.")
    lora_adapter: str | None = Field(description="The checkpoint's file name.")
    loaded_adapters: list[str] = Field(description="The file names of all LoRAs.")


class GenerateAnswer(BaseModel):
    """A finished edit."""

    model_config = ConfigDict(protected_namespaces=())

    success: Literal[True] = True
    status: Literal["done"] = "done"
    image: str = Field(
        description="The result as base64, a PNG by default. Empty where it was uploaded."
    )
    generation_time: float = Field(description="Seconds.")
    model_used: str = Field(description="The editor and the variant, for example draft/removal.")
    parameters_used: dict[str, Any] = Field(
        description="The values that the edit ran with, also where they were chosen for you. "
        "`ignored` lists fields without effect."
    )
    request_id: str = Field(description="The job's id.")
    debug_info: DebugInfo
    report: dict[str, Any] = Field(
        description="Measurements: seconds of each stage, registration, spill; `verdict`: good, "
        "look or failed, with `verdict_reasons`; `regions`: a row for each part of the mask."
    )
    uploaded: bool | None = Field(
        None, description="The result is at the upload_url; null where the request had none."
    )
    upload_error: str | None = Field(None, description="Why it was not uploaded.")


class Accepted(BaseModel):
    """A job that runs in the background."""

    task_id: str = Field(description="The job's id, for its status, result and cancelling.")
    status: Literal["queued"] = "queued"
    message: str = "The job is stored, and waits for its turn."


class AcceptedEdit(Accepted):
    """An edit that runs in the background."""

    ignored: list[str] = Field(description="The request's fields that have no effect.")


class JobStatus(BaseModel):
    """A job's status and progress."""

    task_id: str
    status: JobState
    progress: float = Field(ge=0, le=1)
    current_step: int
    total_steps: int = Field(description="0: the present stage has no steps.")
    loading_message: str | None = Field(description="The present stage, for example sampling.")
    error: str | None = Field(description="Why the job failed, as a sentence.")
    queue_position: int | None = Field(
        description="1 = next; null: the job does not wait, or the position is unknown."
    )

    @classmethod
    def of(cls, job: Job, queue_position: int | None = None) -> "JobStatus":
        """Make it from a job."""
        return cls(
            task_id=job.id,
            status=job.state,
            progress=job.progress,
            current_step=job.step.done,
            total_steps=job.step.total,
            loading_message=job.step.stage or None if not job.ended else None,
            error=job.error["detail"] if job.error else None,
            queue_position=queue_position,
        )


class Cancelled(BaseModel):
    """The answer to a request to cancel a job."""

    success: bool = Field(description="false: the job had already ended.")
    message: str
    task_id: str


# Masks and tools


class Welcome(BaseModel):
    """The name and version of this server."""

    message: str
    version: str


class Cleared(BaseModel):
    """The answer to a request to unload all models."""

    success: Literal[True] = True
    message: str
    freed_bytes: int


class SmartMaskRequest(OpenRequest):
    """The image, and the object to find in it: clicks, a box or a rough mask. Without any of
    them the main object is found. Coordinates are pixels of the upright image.
    """

    model_config = ConfigDict(protected_namespaces=())

    image: ImageField | None = None
    image_id: str | None = Field(
        None, description="In place of `image`: the image_id from an earlier answer."
    )
    points: list[Point] | None = Field(None, max_length=1000)
    labels: list[Literal[0, 1]] | None = Field(
        None,
        max_length=1000,
        description="One for each point: 1 = on the object, 0 = not on it. Default: all 1.",
    )
    bbox: tuple[float, float, float, float] | None = Field(
        None, description="A box around the object: left, top, right, bottom."
    )
    mask: ImageField | None = Field(None, description="A rough mask over the object.")
    auto_detect: bool | None = Field(
        None, description="Find the main object; ignore points, labels, bbox and mask."
    )
    border_adjustment: int | None = Field(
        None, ge=-512, le=512, description="Pixels that the mask is grown by; negative: shrunk."
    )
    use_blur: bool | None = Field(None, description="Fade the edge of the mask out.")
    model_type: Literal["segmentation", "fastsam", "draft", "birefnet"] | None = Field(
        None,
        description="segmentation (the default): FastSAM if it is installed, else draft. "
        "birefnet: the same, and BiRefNet refines the mask if it is installed; `report` says "
        "whether it did.",
    )
    candidate: int | None = Field(
        None, ge=0, le=99, description="Index among the matching objects; 0 = the best match."
    )
    request_id: str | None = Field(
        None, description="A new UUID of your choice, to be able to cancel the request."
    )


class MaskReport(BaseModel):
    """The models that made a mask."""

    model: str = Field(description="What found the object: a model's file, or draft.")
    refined_by: str | None = Field(description="The BiRefNet model that refined its edge.")
    note: str = Field(
        description="Why it was not refined; empty if it was, or if that was not asked for."
    )


class SmartMaskAnswer(BaseModel):
    """The mask of an object."""

    success: Literal[True] = True
    mask_base64: str = Field(description="PNG; white = the object.")
    image_id: str = Field(description="Send it in place of the image from now on.")
    request_id: str
    candidates: int = Field(description="The number of matching objects.")
    score: float = Field(description="How well the object matches, 0..1.")
    report: MaskReport


class DetectAnswer(SmartMaskAnswer):
    """The mask of the main object, by two names: older clients read `mask`."""

    mask: str = Field(description="The same as mask_base64.")


class MaskCancelled(Cancelled):
    """The answer to cancelling a request for a mask."""

    success: bool = Field(description="false: it had already ended, or the id is unknown.")
    request_id: str = Field(description="The same as task_id.")


class RemoveBackgroundRequest(OpenRequest):
    """An image whose background is to be removed."""

    image: ImageField
    model: str | None = Field(
        None, max_length=64, description="A rembg model. Default: the first that is installed."
    )
    alpha_matting: bool | None = Field(None, description="Refine fine edges such as hair; slower.")


class RemoveBackgroundAnswer(BaseModel):
    """An image without its background."""

    model_config = ConfigDict(protected_namespaces=())

    success: Literal[True] = True
    image: str = Field(description="The subject as base64 PNG with transparency.")
    mask_base64: str = Field(description="PNG; white = the subject.")
    model_used: str


class ExtractObjectRequest(OpenRequest):
    """An image, and a mask of the object to cut out."""

    image: ImageField
    mask: ImageField


class ExtractObjectAnswer(BaseModel):
    """An object on a white square."""

    success: Literal[True] = True
    extracted_image: str = Field(description="Base64 PNG.")


class ShadowRequest(OpenRequest):
    """An object that is to get a shadow. Lengths are in pixels."""

    extracted_image: ImageField
    mask: ImageField | None = Field(
        None, description="White = the object. Default: every pixel that is not white."
    )
    shadow_offset_x: int | None = Field(None, ge=-4096, le=4096, description="To the right.")
    shadow_offset_y: int | None = Field(None, ge=-4096, le=4096, description="Down.")
    shadow_opacity: float | None = Field(None, ge=0, le=1)
    blur_radius: int | None = Field(None, ge=0, le=512)


class ShadowAnswer(BaseModel):
    """An object with a shadow."""

    success: Literal[True] = True
    preview_image: str = Field(description="Base64 PNG.")


class PreviewRequest(OpenRequest):
    """A photo that a browser cannot show."""

    image: ImageField


class WhiteBalanceRequest(OpenRequest):
    """A photo whose color cast is to be removed, as a form."""

    file: Annotated[UploadFile, Field(description="The photo.")]
    method: Literal["auto", "manual", "ai"] = "auto"
    temperature: float = Field(0, ge=-100, le=100, allow_inf_nan=False)
    tint: float = Field(0, ge=-100, le=100, allow_inf_nan=False)


class WhiteBalanceAnswer(BaseModel):
    """A photo without its color cast."""

    success: Literal[True] = True
    original_image: str = Field(description="The photo as it was sent, as base64.")
    corrected_image: str = Field(description="Base64 PNG.")
    method_used: Literal["auto", "manual", "ai"]
    parameters: dict[str, Any]


# Debug sessions


class DebugStatus(BaseModel):
    """The state of debug sessions."""

    enabled: bool = Field(description="Requests with enable_debug are recorded.")
    sessions: int
    bytes: int


class DebugSession(BaseModel):
    """The record of one job."""

    name: str
    created: float = Field(description="Seconds since the epoch.")
    files: list[str]
    bytes: int


class DebugSessionDetails(DebugSession):
    """The record of one job, with its parameters."""

    parameters: dict[str, Any]


class DebugCleanup(BaseModel):
    """The number of debug sessions that were removed."""

    success: Literal[True] = True
    removed: int


# Workflows


class WorkflowInfo(BaseModel):
    """A workflow."""

    model_config = ConfigDict(populate_by_name=True)

    name: str
    served: bool
    reason: str | None = Field(None, description="Why it is not served.")
    lane: LaneName | None = None
    schema_: dict[str, Any] | None = Field(
        None, alias="schema", description="JSON Schema of its request."
    )
    results: dict[str, str] | None = Field(
        None, description="The results: a description of each by its name."
    )


class WorkflowList(BaseModel):
    """All workflows."""

    workflows: list[WorkflowInfo]


class WorkflowAnswer(BaseModel):
    """A finished run of a workflow."""

    success: Literal[True] = True
    status: Literal["done"] = "done"
    request_id: str = Field(description="The job's id.")
    generation_time: float = Field(description="Seconds.")
    outputs: dict[str, Any] = Field(
        description="Results by name: an image as base64 PNG, a list of images, a text, a number "
        "or a boolean."
    )
