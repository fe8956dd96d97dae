"""What goes over the wire: requests and answers, field by field, and nothing else."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..errors import CODES
from ..options import CFG, DEFAULT_SAMPLING, MAX_SEED, STEPS
from .jobs import LaneName

Base64Image = Annotated[
    str,
    Field(
        description="A picture file, base64, with or without a data: prefix.",
        json_schema_extra={"contentEncoding": "base64"},
    ),
]
Point = tuple[float, float]
ServiceName = Literal["generation", "segmentation", "image-utils"]
Status = Literal["queued", "loading_pipeline", "processing", "done", "error", "cancelled"]


class Failure(BaseModel):
    """Any answer that is not a success."""

    detail: str = Field(description="A sentence for a person.")
    error_type: Literal[tuple(CODES)]  # type: ignore[valid-type]
    details: dict[str, Any] = Field(description="invalid_request: field, expected, got.")


# Both roles


class Ping(BaseModel):
    status: Literal["healthy"] = "healthy"


class Health(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    status: Literal["healthy", "degraded"]
    reason: str | None = None
    model_loaded: bool
    device: str
    device_info: dict[str, Any]


class Service(BaseModel):
    status: Literal["healthy", "degraded"]
    reason: str | None = None


class SystemHealth(BaseModel):
    status: Literal["healthy", "degraded"]
    services: dict[ServiceName, Service]


# Heavy


class GenerateRequest(BaseModel):
    """An edit. Fields this does not know are taken, and listed as ignored."""

    model_config = ConfigDict(extra="allow")

    prompt: str = Field(min_length=1, max_length=4000, description="The edit, in words.")
    input_image: Base64Image
    mask_image: Base64Image | None = Field(
        None, description="White = edit. Needed for insertion and removal."
    )
    conditional_images: list[Base64Image] | None = Field(
        None,
        max_length=4,
        description="[0]: the mask, from older clients. What follows is shown to the editor last.",
    )
    reference_image: Base64Image | None = Field(
        None, description="A picture of the object to insert."
    )
    reference_mask_R: Base64Image | None = Field(
        None, description="White where the object is in its picture."
    )
    task_type: Literal["insertion", "removal", "white-balance", "white_balance"] | None = Field(
        None,
        description="If missing: a reference means insertion, a mask removal, "
        "neither white balance.",
    )
    width: int | None = Field(
        None, ge=256, le=2048, description="Of the output; default: the input's."
    )
    height: int | None = Field(
        None, ge=256, le=2048, description="Of the output; default: the input's."
    )
    num_inference_steps: int | None = Field(
        None, ge=STEPS[0], le=STEPS[1], description=f"Default: {DEFAULT_SAMPLING.steps}."
    )
    true_cfg_scale: float | None = Field(
        None, ge=CFG[0], le=CFG[1], description=f"Default: {DEFAULT_SAMPLING.cfg:g}."
    )
    guidance_scale: float | None = Field(
        None, ge=CFG[0], le=CFG[1], description="The same, where true_cfg_scale is missing."
    )
    negative_prompt: str | None = Field(None, max_length=4000, description="Default: a space.")
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="If missing: random, and told in the answer."
    )
    input_quality: Literal["resized", "original"] | None = Field(
        None, description="resized: the input is first scaled to at most 1 megapixel."
    )
    mask_tool_type: Literal["brush", "box"] | None = Field(
        None, description="A brush mask is grown by 8 pixels."
    )
    enable_debug: bool | None = Field(
        None, description="Answer the conditioning images; write a debug session."
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
"""Fields of GenerateRequest that are taken and change nothing."""


class DebugInfo(BaseModel):
    conditional_images: list[str] | None = Field(None, description="Only with enable_debug.")
    conditional_labels: list[str]
    input_image_size: str
    output_image_size: str
    lora_adapter: str | None
    loaded_adapters: list[str]


class GenerateAnswer(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    success: Literal[True] = True
    status: Literal["done"] = "done"
    image: str
    generation_time: float
    model_used: str
    parameters_used: dict[str, Any]
    request_id: str
    debug_info: DebugInfo
    report: dict[str, Any]


class Accepted(BaseModel):
    task_id: str
    status: Literal["queued"] = "queued"
    message: str = "The job is stored, and waits for its turn."


class JobStatus(BaseModel):
    task_id: str
    status: Status
    progress: float = Field(ge=0, le=1)
    current_step: int
    total_steps: int
    loading_message: str | None
    error: str | None
    queue_position: int | None


class Cancelled(BaseModel):
    success: bool
    message: str
    task_id: str


# Light


class Welcome(BaseModel):
    message: str
    version: str


class Cleared(BaseModel):
    success: Literal[True] = True
    message: str
    freed_bytes: int


class SmartMaskRequest(BaseModel):
    """What was clicked. Nothing at all means the main object.
    Coordinates are pixels of the upright picture.
    """

    model_config = ConfigDict(protected_namespaces=())

    image: Base64Image | None = None
    image_id: str | None = Field(
        None, description="Of a picture that was sent before, in its place."
    )
    points: list[Point] | None = Field(None, max_length=1000)
    labels: list[Literal[0, 1]] | None = Field(
        None, max_length=1000, description="1: on the object, 0: beside it. Default: all 1."
    )
    bbox: tuple[float, float, float, float] | None = Field(
        None, description="left, top, right, bottom"
    )
    mask: Base64Image | None = Field(None, description="A rough mask over the object.")
    auto_detect: bool | None = Field(None, description="The main object, whatever else is said.")
    border_adjustment: int | None = Field(
        None, ge=-512, le=512, description="Pixels; + grows the mask."
    )
    use_blur: bool | None = Field(None, description="Fade the mask's edge out.")
    model_type: Literal["segmentation", "fastsam", "draft"] | None = Field(
        None, description="segmentation: FastSAM where it is installed, else draft."
    )
    candidate: int | None = Field(
        None, ge=0, le=99, description="Which of the objects that fit, the likeliest first."
    )
    request_id: str | None = Field(
        None, description="A new UUID, for a client that may want to cancel."
    )


class SmartMaskAnswer(BaseModel):
    success: Literal[True] = True
    mask_base64: str
    image_id: str
    request_id: str
    candidates: int
    score: float


class RemoveBackgroundRequest(BaseModel):
    image: Base64Image
    model: str | None = Field(
        None, max_length=64, description="One of rembg's. Default: the first that is installed."
    )
    alpha_matting: bool | None = None


class RemoveBackgroundAnswer(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    success: Literal[True] = True
    image: str
    mask_base64: str
    model_used: str


class ExtractObjectRequest(BaseModel):
    image: Base64Image
    mask: Base64Image


class ExtractObjectAnswer(BaseModel):
    success: Literal[True] = True
    extracted_image: str


class ShadowRequest(BaseModel):
    extracted_image: Base64Image
    mask: Base64Image | None = Field(None, description="Default: what is not white in the picture.")
    shadow_offset_x: int | None = Field(None, ge=-4096, le=4096)
    shadow_offset_y: int | None = Field(None, ge=-4096, le=4096)
    shadow_opacity: float | None = Field(None, ge=0, le=1)
    blur_radius: int | None = Field(None, ge=0, le=512)


class ShadowAnswer(BaseModel):
    success: Literal[True] = True
    preview_image: str


class WhiteBalanceAnswer(BaseModel):
    success: Literal[True] = True
    original_image: str
    corrected_image: str
    method_used: Literal["auto", "manual", "ai"]
    parameters: dict[str, Any]


class DebugStatus(BaseModel):
    enabled: bool
    sessions: int
    bytes: int


class DebugSession(BaseModel):
    name: str
    created: float
    files: list[str]
    bytes: int


class DebugSessionDetails(DebugSession):
    parameters: dict[str, Any]


class DebugCleanup(BaseModel):
    success: Literal[True] = True
    removed: int


# Any workflow


class WorkflowInfo(BaseModel):
    """An endpoint. `schema` is what it takes; where `reason` says why, it is not served."""

    model_config = ConfigDict(populate_by_name=True)

    name: str
    served: bool
    reason: str | None = None
    lane: LaneName | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    results: dict[str, str] | None = Field(
        None, description="What it answers, by name, and what that is."
    )


class WorkflowList(BaseModel):
    workflows: list[WorkflowInfo]


class WorkflowAnswer(BaseModel):
    success: Literal[True] = True
    status: Literal["done"] = "done"
    request_id: str
    generation_time: float
    outputs: dict[str, Any] = Field(
        description="By name: base64 PNG, a list of them, or a text, number or yes or no."
    )
