"""What can go wrong, in one table, and the exception that carries it."""

from dataclasses import dataclass


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
    "invalid_request": ErrorCode("a value is of the wrong kind, size or range", "Change the value that is named.", 422),
    "invalid_image": ErrorCode("the bytes are not a picture that can be read", "Save the picture as PNG or JPEG.", 400),
    "image_too_large": ErrorCode("the picture is over the limits", "Scale the picture down first.", 413),
    "mask_missing": ErrorCode("this task needs a mask", "Paint a mask over what should change.", 400),
    "mask_empty": ErrorCode("the mask is black everywhere", "Paint what should change white.", 400),
    "reference_missing": ErrorCode(
        "there is no picture of the object to insert",
        "Give a reference picture, and the mask that cuts the object out of it.",
        400,
    ),
    "checkpoint_missing": ErrorCode(
        "a model's file or folder is not there", "Put it where it was looked for, or name another.", 503
    ),
    "download_failed": ErrorCode(
        "a model could not be fetched whole", "Run the command again: whole files are kept.", 502
    ),
    "generation_failed": ErrorCode("a model cannot be loaded or run", "See the message; try another checkpoint.", 500),
    "object_not_found": ErrorCode(
        "no object fits the prompt", "Click elsewhere, or drag a box around the object.", 404
    ),
    "out_of_memory": ErrorCode(
        "the device's memory is too small", "Choose a smaller resolution or a leaner memory mode.", 507
    ),
    "not_found": ErrorCode("a file that was named is not there", "Check the path.", 404),
}


class ArtMancerError(Exception):
    """A mistake the user can mend.

    Parameters
    ----------
    code : a key of CODES
    message : one sentence: what was expected, what came, what to do
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def hint(self) -> str:
        return CODES[self.code].hint

    @property
    def status(self) -> int:
        return CODES[self.code].status
