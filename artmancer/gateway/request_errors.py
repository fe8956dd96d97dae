"""Sentences for requests that do not match their schema: the field, what was expected, and what
came.
"""

import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ArtMancerError
from .image_field import TAG

BODY = "body"
"""Name of the field where the whole body is wrong."""

_MAX_ECHO = 80
"""Longest text of a request that a message repeats, in characters."""

_EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a JSON object",
    "extra_forbidden": "no field of this name",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "int_type": "a whole number",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_attributes_type": "a JSON object",
    "model_type": "a JSON object",
    "string_too_long": "at most {max_length:,} characters",
    "string_too_short": "at least {min_length:,} characters",
    "string_type": "a text",
    "string_unicode": "a text in UTF-8",
    "too_long": "at most {max_length:,} items",
    "too_short": "at least {min_length:,} items",
    "tuple_type": "a list",
}
"""Expected value by pydantic's type of mistake."""

_SIGNATURES = {
    b"\xef\xbb\xbf": "it begins with a byte order mark",
    b"\xff\xfe": "it is in UTF-16",
    b"\xfe\xff": "it is in UTF-16",
    b"\x1f\x8b": "it is compressed with gzip",
}
"""Reasons by the first bytes of a body."""


def invalid(field: str, expected: str, got: str) -> ArtMancerError:
    """Make the error for a mistake in one field of a request."""
    return _error(f"{field}: {expected}; got {got}.", field, expected, got)


def not_json(body: bytes, message: str) -> str:
    """Return why a body is not JSON, as a part of a sentence.

    Parameters
    ----------
    message : pydantic's message; it ends with the position
    """
    for signature, reason in _SIGNATURES.items():
        if body.startswith(signature):
            return reason
    if b"\0" in body[:4]:
        return "it is in UTF-16"
    if "EOF" in message:
        return "it ends too early"
    if not _is_utf8(body) or ("hex escape" in message and rb"\ud" in body.lower()):
        return "a character in it is not valid"
    position = re.search(r"line (\d+) column (\d+)", message)
    where = f" in line {position[1]}, column {position[2]}" if position else ""
    return f"there is a mistake{where}"


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def request_error(mistakes: Sequence[Mapping[str, Any]], content_type: str) -> ArtMancerError:
    """Make the error for the first mistake of a request.

    Parameters
    ----------
    mistakes : as pydantic lists them. `loc` begins with "body", "query" or "path"; the reason of a
        body that is not JSON is `not_json`'s, as the context's "error"
    content_type : of the request
    """
    first = mistakes[0]
    kind, value, context = first["type"], first.get("input"), first.get("ctx", {})
    parts = [str(part) for part in first["loc"][1:]]
    field = ".".join(part for part in parts if not part.startswith(TAG))
    if kind == "json_invalid":
        reason = context["error"]
        message = f"The body is not JSON: {reason}. Send a JSON object in UTF-8."
        return _error(message, BODY, "a JSON object in UTF-8", reason)
    if kind == "missing" and not field:
        message = "There is no body; expected a JSON object."
        return _error(message, BODY, "a JSON object", "nothing")
    if not field and isinstance(value, bytes):
        expected, got = "the Content-Type application/json", content_type or "no Content-Type"
        return _error(f"The body came with {got}; expected {expected}.", BODY, expected, got)
    if kind == "missing":
        return _error(f"The field '{field}' is missing. Send it.", field, "a value", "nothing")
    template = _EXPECTED.get(kind)
    expected = f"expected {template.format(**context)}" if template else str(first["msg"])
    return invalid(field or BODY, expected, brief(value))


def _error(message: str, field: str, expected: str, got: str) -> ArtMancerError:
    details = {"field": field, "expected": expected, "got": got}
    return ArtMancerError("invalid_request", message, details)


def brief(value: Any) -> str:
    """Return what came, as far as a message may repeat it: no long text, and no image."""
    if isinstance(value, str) and len(value) > _MAX_ECHO:
        return f"a text of {len(value):,} characters"
    return reprlib.repr(value)
