"""Table of error codes, and the exception that carries a code."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ErrorCode:
    """A row of the table of errors.

    Attributes
    ----------
    meaning : cause of the error, for a developer; docs/api.md lists it
    hint : advice for the user
    status : HTTP status of an endpoint's answer
    """

    meaning: str
    hint: str
    status: int


CODES = {
    # requests
    "invalid_request": ErrorCode(
        "a value has the wrong type, size or range", "Change the value that the message names.", 422
    ),
    "invalid_image": ErrorCode(
        "the bytes are not an image that can be read", "Save the image as PNG or JPEG.", 400
    ),
    "image_too_large": ErrorCode("the image exceeds the limits", "Scale the image down.", 413),
    "mask_missing": ErrorCode(
        "this kind of edit needs a mask", "Paint a mask over what should change.", 400
    ),
    "mask_empty": ErrorCode("the mask is black everywhere", "Paint what should change white.", 400),
    "reference_missing": ErrorCode(
        "there is no image of the object to insert",
        "Add a reference image, and the mask that cuts the object out of it.",
        400,
    ),
    "object_not_found": ErrorCode(
        "no object matches the clicks", "Click elsewhere, or drag a box around the object.", 422
    ),
    # models
    "checkpoint_missing": ErrorCode(
        "a model's file or folder is missing",
        "Put the model where the message says, or choose another model.",
        503,
    ),
    "download_failed": ErrorCode(
        "a model could not be downloaded; no endpoint reports this",
        "Run the command again: whole files are kept.",
        502,
    ),
    "generation_failed": ErrorCode(
        "a model or a workflow cannot be loaded or run",
        "Read the message, or choose another checkpoint.",
        500,
    ),
    "out_of_memory": ErrorCode(
        "the device's memory is too small",
        "Choose a smaller resolution or a leaner memory mode.",
        507,
    ),
    # jobs and the gateway
    "storage_full": ErrorCode(
        "the gateway's disk is full", "Free space on the disk that the message names.", 507
    ),
    "not_found": ErrorCode("nothing has this name or id", "Check the name or id.", 404),
    "not_finished": ErrorCode(
        "the job has no result yet", "Request the status until the job is done.", 409
    ),
    "idempotency_conflict": ErrorCode(
        "the Idempotency-Key was sent before with another request",
        "Send a new key with each new request.",
        409,
    ),
    "queue_full": ErrorCode(
        "too many jobs are waiting",
        "Wait for the time in Retry-After, then send the request again.",
        429,
    ),
    "unauthorized": ErrorCode(
        "the bearer token, host or origin is not accepted", "Send Authorization: Bearer TOKEN.", 401
    ),
    "comfyui_unavailable": ErrorCode(
        "ComfyUI does not answer", "Start ComfyUI, or check COMFYUI_URL.", 503
    ),
    "timeout": ErrorCode(
        "the work took too long", "Make the image smaller, or use fewer steps.", 504
    ),
}
"""Errors by code, in the order of docs/api.md."""


class ArtMancerError(Exception):
    """An error with a code, a message and a hint.

    Each code has a subclass with its name, for example `mask_empty`, so that
    `raise ArtMancerError("mask_empty", ...)` raises an `errors.mask_empty`. The reason: ComfyUI
    reports only the class name and the message of an exception to its clients.

    Parameters
    ----------
    code : a key of CODES
    message : expected value, actual value and advice, in one sentence
    details : the same for a program, where the code alone is not enough: "field", "expected",
        "got"
    """

    def __new__(
        cls, code: str, message: str, details: Mapping[str, Any] | None = None
    ) -> "ArtMancerError":
        return super().__new__(_CLASSES[code], code, message)

    def __init__(self, code: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.details = dict(details or {})

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON answers and for the job database."""
        return {"error_type": self.code, "detail": str(self), "details": self.details}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "ArtMancerError":
        """Make an error from the fields that `as_dict` returned."""
        return ArtMancerError(fields["error_type"], fields["detail"], fields["details"])

    @property
    def hint(self) -> str:
        """Advice for the user."""
        return CODES[self.code].hint

    @property
    def status(self) -> int:
        """HTTP status of an endpoint's answer."""
        return CODES[self.code].status


_CLASSES = {code: type(code, (ArtMancerError,), {"__module__": __name__}) for code in CODES}
"""Subclasses of ArtMancerError by code."""
