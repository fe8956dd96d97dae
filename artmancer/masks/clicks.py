"""The clicks of a user on an object: points, a box and a rough brush mask. Without any of these,
the main object is meant.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ..checks import check_image
from ..errors import ArtMancerError

MAX_POINTS = 1000
"""Largest number of points."""

_MAX_COORDINATE = 1e9
"""Limit of a coordinate, in pixels; it also rejects infinity and integers too large for a float."""


@dataclass(frozen=True)
class Clicks:
    """The clicks on an object, in pixels of the image; (0, 0) is its top left corner.

    Attributes
    ----------
    positive : points (x, y) on the object
    negative : points (x, y) beside the object
    box : (left, top, right, bottom) around the object
    brush : MASK [1, H, W], a rough mask over the object
    """

    positive: tuple[tuple[float, float], ...] = ()
    negative: tuple[tuple[float, float], ...] = ()
    box: tuple[float, float, float, float] | None = None
    brush: Tensor | None = None


def parse_clicks(text: str) -> Clicks:
    """Read the clicks, except for a brush, from JSON.

    Parameters
    ----------
    text : {"points": [[x, y], ...], "labels": [1, 0, ...], "bbox": [left, top, right, bottom]}.
        Every field is optional. A label is 1 for a point on the object and 0 for a point beside it;
        without labels, all are 1. An empty text holds no clicks.

    Raises
    ------
    ArtMancerError : invalid_request
    """
    try:
        fields = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise _invalid(f"are not JSON ({error})") from error
    if not isinstance(fields, dict) or set(fields) - {"points", "labels", "bbox"}:
        raise _invalid(f"are {text[:80]!r}")
    points = [_numbers(point, 2, "points") for point in _list(fields.get("points"), "points")]
    labels = _list(fields.get("labels"), "labels") or [1] * len(points)
    if len(points) > MAX_POINTS:
        raise _invalid(f"have {len(points)} points, more than the limit of {MAX_POINTS}")
    if len(labels) != len(points) or any(label not in (0, 1) for label in labels):
        raise _invalid(f"have {len(points)} points and the labels {str(labels)[:80]}")
    box = None
    if fields.get("bbox") is not None:
        left, top, right, bottom = _numbers(fields["bbox"], 4, "bbox")
        box = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
    labeled = list(zip(points, labels, strict=True))
    return Clicks(
        tuple((x, y) for (x, y), label in labeled if label),
        tuple((x, y) for (x, y), label in labeled if not label),
        box,
    )


def check_clicks(clicks: Clicks, image: Tensor) -> None:
    """Refuse clicks that do not belong to this IMAGE [B, H, W, 3].

    Raises
    ------
    ArtMancerError : invalid_request, mask_empty
    """
    check_image(image)
    height, width = image.shape[1:3]
    for x, y in (*clicks.positive, *clicks.negative):
        if not (0 <= x < width and 0 <= y < height):
            raise ArtMancerError(
                "invalid_request",
                f"The point ({x:g}, {y:g}) lies outside the image of {width}x{height}. Click "
                "inside the image.",
            )
    if clicks.box is not None:
        left, top, right, bottom = clicks.box
        if min(right, width) - max(left, 0) < 1 or min(bottom, height) - max(top, 0) < 1:
            raise ArtMancerError(
                "invalid_request",
                f"The box ({left:g}, {top:g}, {right:g}, {bottom:g}) covers no pixel of the "
                f"image of {width}x{height}. Drag a box around the object.",
            )
    if clicks.brush is not None:
        if clicks.brush.shape[1:] != image.shape[1:3]:
            brush_height, brush_width = clicks.brush.shape[1:]
            raise ArtMancerError(
                "invalid_request",
                f"The brush mask is {brush_width}x{brush_height} but the image is "
                f"{width}x{height}. Use the mask that belongs to this image.",
            )
        if clicks.brush.max() < 0.5:
            raise ArtMancerError(
                "mask_empty", "The brush mask is black everywhere. Paint roughly over the object."
            )


def shrink_brush(brush: Tensor, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Resize a brush MASK [1, H, W] to a smaller (height, width); strokes thinner than a pixel
    there are kept.
    """
    coverage = functional.interpolate(brush[None].cpu().float(), size, mode="area")[0, 0].numpy()
    half_covered = coverage >= 0.5
    # Where the brush covers few pixels by half, its strokes are thin: keep every pixel they touch.
    return half_covered if half_covered.sum() >= 0.5 * coverage.sum() else coverage > 0


def _list(value: Any, field: str) -> list[Any]:
    """Check that a value is a list; None counts as an empty list."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise _invalid(f'have {str(value)[:80]!r} in "{field}" where a list is needed')
    return value


def _numbers(value: Any, count: int, field: str) -> list[float]:
    """Check that a value is a list of this many numbers, and return them as floats."""
    numbers = _list(value, field)
    if len(numbers) != count or not all(map(_is_coordinate, numbers)):
        raise _invalid(f'have {str(value)[:80]} in "{field}" where {count} numbers are needed')
    return [float(number) for number in numbers]


def _is_coordinate(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < _MAX_COORDINATE


def _invalid(problem: str) -> ArtMancerError:
    return ArtMancerError(
        "invalid_request",
        f'The clicks {problem}; expected {{"points": [[x, y], ...], "labels": [1, 0, ...], "bbox": '
        "[left, top, right, bottom]}. Clear them and click again.",
    )
