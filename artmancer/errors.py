"""What can go wrong, in one table, and the exception that carries it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ErrorCode:
    """One row of the table.

    meaning : what happened, for a developer
    hint : what the user can do about it
    status : the HTTP status an endpoint answers with
    """

    meaning: str
    hint: str
    status: int


CODES = {
    "invalid_request": ErrorCode(
        "a value is of the wrong kind, size or range", "Change the value that is named.", 422
    ),
    "invalid_image": ErrorCode(
        "the bytes are not a picture that can be read", "Save the picture as PNG or JPEG.", 400
    ),
    "image_too_large": ErrorCode(
        "the picture is over the limits", "Scale the picture down first.", 413
    ),
    "mask_missing": ErrorCode(
        "this task needs a mask", "Paint a mask over what should change.", 400
    ),
    "mask_empty": ErrorCode("the mask is black everywhere", "Paint what should change white.", 400),
    "reference_missing": ErrorCode(
        "there is no picture of the object to insert",
        "Give a reference picture, and the mask that cuts the object out of it.",
        400,
    ),
    "checkpoint_missing": ErrorCode(
        "a model's file or folder is not there",
        "Put it where it was looked for, or name another.",
        503,
    ),
    "download_failed": ErrorCode(
        "a model could not be fetched whole", "Run the command again: whole files are kept.", 502
    ),
    "generation_failed": ErrorCode(
        "a model cannot be loaded or run", "See the message; try another checkpoint.", 500
    ),
    "object_not_found": ErrorCode(
        "no object fits the prompt", "Click elsewhere, or drag a box around the object.", 422
    ),
    "out_of_memory": ErrorCode(
        "the device's memory is too small",
        "Choose a smaller resolution or a leaner memory mode.",
        507,
    ),
    "not_found": ErrorCode("what was named is not there", "Check the name.", 404),
    "not_finished": ErrorCode(
        "the job has no result yet", "Ask for its status until it is done.", 409
    ),
    "queue_full": ErrorCode(
        "too many jobs are waiting", "Wait as long as Retry-After says, and send it again.", 429
    ),
    "unauthorized": ErrorCode(
        "the bearer token is missing or wrong", "Send Authorization: Bearer TOKEN.", 401
    ),
    "comfyui_unavailable": ErrorCode(
        "ComfyUI does not answer", "Start ComfyUI, or check COMFYUI_URL.", 503
    ),
    "timeout": ErrorCode(
        "it took too long", "Make the picture smaller, or ask for fewer steps.", 504
    ),
}


class ArtMancerError(Exception):
    """An error with a code, a message and a hint.

    Each code has a class of its own name under this one: ComfyUI tells its clients an exception's
    class and sentence, and nothing else of it.

    Parameters
    ----------
    code : a key of CODES
    message : one sentence: what was expected, what came, what to do
    details : the same for a program, where there is more to tell than the code: "field",
        "expected", "got"
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
        """Return it as it goes over the wire and into the job database."""
        return {"error_type": self.code, "detail": str(self), "details": self.details}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "ArtMancerError":
        """Make it from what `as_dict` returned."""
        return cls(fields["error_type"], fields["detail"], fields["details"])

    @property
    def hint(self) -> str:
        return CODES[self.code].hint

    @property
    def status(self) -> int:
        return CODES[self.code].status


_CLASSES = {code: type(code, (ArtMancerError,), {"__module__": __name__}) for code in CODES}
