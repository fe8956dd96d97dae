"""What a user says about the object: points, a box, a rough brush mask, or nothing,
which means the main object.
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

MOST_POINTS = 1000

_FAR = 1e9
"""Beyond any picture; it keeps out what is infinite or too large for a float, too."""


@dataclass(frozen=True)
class Clicks:
    """Coordinates are pixels of the picture, (0, 0) its top left corner.

    positive, negative : points (x, y) on the object, and on what is not the object
    box : (left, top, right, bottom) around the object
    brush : MASK [1, H, W], roughly where the object is
    """

    positive: tuple[tuple[float, float], ...] = ()
    negative: tuple[tuple[float, float], ...] = ()
    box: tuple[float, float, float, float] | None = None
    brush: Tensor | None = None


def parse_clicks(text: str) -> Clicks:
    """Read a prompt from JSON.

    Parameters
    ----------
    text : {"points": [[x, y], ...], "labels": [1, 0, ...], "bbox": [left, top, right, bottom]}, all
        of them optional; a label is 1 on the object and 0 beside it, and 1 where there are no
        labels. Nothing at all is an empty clicks.

    Raises
    ------
    ArtMancerError : invalid_request
    """
    try:
        said = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise _wrong(f"is not JSON ({error})") from error
    if not isinstance(said, dict) or set(said) - {"points", "labels", "bbox"}:
        raise _wrong(f"is {text[:80]!r}")
    points = [_numbers(point, 2) for point in _list(said.get("points"))]
    labels = _list(said.get("labels")) or [1] * len(points)
    if len(points) > MOST_POINTS:
        raise _wrong(f"has {len(points)} points; at most {MOST_POINTS} are taken")
    if len(labels) != len(points) or any(label not in (0, 1) for label in labels):
        raise _wrong(f"has {len(points)} points and the labels {str(labels)[:80]}")
    box = None
    if said.get("bbox") is not None:
        left, top, right, bottom = _numbers(said["bbox"], 4)
        box = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
    chosen = list(zip(points, labels, strict=True))
    return Clicks(
        tuple((x, y) for (x, y), label in chosen if label),
        tuple((x, y) for (x, y), label in chosen if not label),
        box,
    )


def check_clicks(clicks: Clicks, image: Tensor) -> None:
    """Refuse a prompt that does not belong to this IMAGE.

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
                f"The point ({x:g}, {y:g}) lies outside the picture of {width}x{height}. Click "
                "inside the picture.",
            )
    if clicks.box is not None:
        left, top, right, bottom = clicks.box
        if min(right, width) - max(left, 0) < 1 or min(bottom, height) - max(top, 0) < 1:
            raise ArtMancerError(
                "invalid_request",
                f"The box ({left:g}, {top:g}, {right:g}, {bottom:g}) covers no pixel of the "
                f"picture of {width}x{height}. Drag a box around the object.",
            )
    if clicks.brush is not None:
        if clicks.brush.shape[1:] != image.shape[1:3]:
            brush_height, brush_width = clicks.brush.shape[1:]
            raise ArtMancerError(
                "invalid_request",
                f"The brush mask is {brush_width}x{brush_height} but the image is "
                f"{width}x{height}. Give the mask that belongs to this image.",
            )
        if clicks.brush.max() < 0.5:
            raise ArtMancerError(
                "mask_empty", "The brush mask is black everywhere. Paint roughly over the object."
            )


def shrink(brush: Tensor, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A brush MASK [1, H, W] at another size (height, width);
    strokes thinner than its pixels are kept.
    """
    share = functional.interpolate(brush[None].cpu().float(), size, mode="area")[0, 0].numpy()
    mostly = share >= 0.5
    return mostly if mostly.sum() >= 0.5 * share.sum() else share > 0


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _wrong(f"holds {str(value)[:80]!r} where a list belongs")
    return value


def _numbers(value: Any, count: int) -> list[float]:
    numbers = _list(value)
    if len(numbers) != count or not all(
        isinstance(one, int | float) and not isinstance(one, bool) and abs(one) < _FAR
        for one in numbers
    ):
        raise _wrong(f"holds {str(value)[:80]} where {count} numbers belong")
    return [float(one) for one in numbers]


def _wrong(what: str) -> ArtMancerError:
    return ArtMancerError(
        "invalid_request",
        f'The prompt {what}; expected {{"points": [[x, y], ...], "labels": [1, 0, ...], "bbox": '
        "[left, top, right, bottom]}. Clear it, and click again.",
    )
