"""The body of an edit's request: images as base64, parameters as JSON. Mistakes are refused here,
before anything is sent.
"""

from __future__ import annotations

import base64
import difflib
import io
import json
import math
import numbers
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union, cast

from ..errors import ArtMancerError

if TYPE_CHECKING:
    from PIL import Image

# Pillow is named in quotes: a client without PIL images does not import it.
ImageSource: TypeAlias = Union[bytes, bytearray, memoryview, str, Path, "Image.Image"]
"""The bytes of an image file, the path of the file, or a PIL.Image."""

_KEYWORDS = ("mask", "reference", "reference_mask", "task", "on_progress")
"""Parameters of `Client.edit` that are not fields of the request by the same name."""

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B")
"""Modes of PIL.Image that a PNG can hold."""

_TIFF_MODES = ("I", "F")
"""Modes of gray images with more bits than a PNG can hold."""


def edit_body(
    image: ImageSource,
    prompt: str,
    *,
    mask: ImageSource | None,
    reference: ImageSource | None,
    reference_mask: ImageSource | None,
    task: str | None,
    parameters: Mapping[str, Any],
) -> bytes:
    """Return the JSON of an edit's request; see `Client.edit`.

    Raises
    ------
    ArtMancerError : invalid_request, invalid_image
    OSError : an image's file cannot be read
    """
    sources = {
        "input_image": ("image", image),
        "mask_image": ("mask", mask),
        "reference_image": ("reference", reference),
        "reference_mask_R": ("reference_mask", reference_mask),
    }
    images = {
        field: _encode(keyword, source)
        for field, (keyword, source) in sources.items()
        if source is not None
    }
    variant = {"task_type": task} if task else {}
    fields = _to_json("", {"prompt": prompt, **variant, **parameters})
    return json.dumps({**images, **fields}, ensure_ascii=False).encode()


def name_error(ignored: Sequence[str], fields: Collection[str]) -> ArtMancerError | None:
    """Return the error for the first parameter that the gateway does not know; None if it knows
    them all, and ignores them because they have no effect.

    Parameters
    ----------
    ignored : parameters that the gateway ignores
    fields : names of the request's fields; empty if they are not known
    """
    unknown = [name for name in ignored if name not in fields]
    if not unknown:
        return None
    name = unknown[0]
    known = sorted({*fields, *_KEYWORDS}) if fields else []
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        expected = f"'{close[0]}'"
    else:
        expected = f"one of {', '.join(known)}" if known else "a field of POST /api/generate"
    return _invalid(
        name,
        expected,
        "an unknown name",
        f"The gateway does not know the parameter {name!r}; expected {expected}. "
        "Correct the name, and send the edit again.",
    )


def _encode(name: str, source: ImageSource) -> str:
    """Return an image as base64.

    Parameters
    ----------
    name : what a message calls the image
    """
    data = _image_bytes(name, source)
    if data is None:
        raise _wrong_type(name, "the bytes of an image file, its path, or a PIL.Image", source)
    return base64.b64encode(data).decode()


def _image_bytes(name: str, source: object) -> bytes | None:
    """Return the bytes of an image file; None where the source is no ImageSource."""
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, str | os.PathLike):
        return Path(source).read_bytes()
    if _is_a(source, "PIL.Image", "Image"):
        return _encode_pil(name, cast("Image.Image", source))
    return None


def _encode_pil(name: str, image: Image.Image) -> bytes:
    """Return the bytes of an image file with the pixels of a PIL.Image, upright."""
    from PIL import ImageOps

    buffer = io.BytesIO()
    # A file that was cut off is noticed only when its pixels are read.
    try:
        # A file sent by its path is turned upright by the gateway.
        upright = ImageOps.exif_transpose(image)
        profile = upright.info.get("icc_profile")
        if upright.mode not in (*_PNG_MODES, *_TIFF_MODES):
            # The profile describes the values before the conversion.
            profile = None
            upright = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
        file_format = "TIFF" if upright.mode in _TIFF_MODES else "PNG"
        # Quick, as the file is sent only once.
        upright.save(buffer, file_format, icc_profile=profile, compress_level=1)
    except (OSError, SyntaxError, ValueError) as error:
        raise ArtMancerError(
            "invalid_image",
            f"{name} is a PIL.Image that cannot be written as PNG ({error}); expected one with "
            "pixels. Convert it to the mode RGB.",
        ) from error
    return buffer.getvalue()


def _to_json(name: str, value: Any) -> Any:
    """Return a value as json.dumps takes it, also those of numpy, and images.

    Parameters
    ----------
    name : what a message calls the value; empty for the whole body
    """
    if _is_a(value, "numpy", "generic"):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(name, value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return _finite(name, float(value))
    if isinstance(value, list | tuple):
        return [_to_json(f"{name}.{index}", item) for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {
            _text(name, str(key)): _to_json(f"{name}.{key}" if name else str(key), item)
            for key, item in value.items()
        }
    data = _image_bytes(name, value)
    if data is None:
        raise _wrong_type(name, "a number, a text, a list, or an image", value)
    return base64.b64encode(data).decode()


def _text(name: str, text: str) -> str:
    """Return a text. Refuse one that has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = f"a lone surrogate, {text[error.start]!a}, at position {error.start}"
        raise _invalid(
            name or "body",
            "a text in UTF-8",
            got,
            f"{name or 'A name'} holds {got}; expected a text in UTF-8. Remove it.",
        ) from None
    return text


def _finite(name: str, number: float) -> float:
    if not math.isfinite(number):
        raise _invalid(
            name,
            "a finite number",
            str(number),
            f"{name} is {number}; expected a finite number. Send one, or leave it out.",
        )
    return number


def _is_a(value: object, module: str, name: str) -> bool:
    """Tell whether a value is an instance of a class of a module. The module is not imported: who
    has such a value has imported it.
    """
    return module in sys.modules and isinstance(value, getattr(sys.modules[module], name))


def _wrong_type(name: str, expected: str, value: object) -> ArtMancerError:
    got = type(value).__name__
    message = f"{name} is of the type {got}; expected {expected}. Convert it to one of these."
    return _invalid(name, expected, got, message)


def _invalid(field: str, expected: str, got: str, message: str) -> ArtMancerError:
    details = {"field": field, "expected": expected, "got": got}
    return ArtMancerError("invalid_request", message, details)
