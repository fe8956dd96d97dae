"""Slow and independent implementations of every conditioning image, from the definitions alone.

They share no code with the library. Images are uint8 [H, W, 3], masks are bool [H, W].
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8]
Shape = NDArray[np.bool_]
Plane = NDArray[np.float64]

ELLIPSE_7 = np.array(
    [
        [0, 0, 0, 1, 0, 0, 0],
        [0, 1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 1],
        [0, 1, 1, 1, 1, 1, 0],
        [0, 0, 0, 1, 0, 0, 0],
    ],
    np.bool_,
)
"""The ellipse of 7 x 7 pixels."""

LEAST_AREA = 100
"""Pixels of the smallest region of a mask that gets a silhouette."""


def resized(picture: Picture, size: tuple[int, int]) -> Picture:
    """Stretch an image to this (height, width), bicubic, without rounding between the axes."""
    planes = [
        Image.fromarray(picture[..., channel].astype(np.float32)).resize(
            size[::-1], Image.Resampling.BICUBIC
        )
        for channel in range(3)
    ]
    return np.stack(planes, -1).clip(0, 255).round().astype(np.uint8)


def framed(picture: Picture, side: int) -> Picture:
    """Scale a photo to fit a square of this side, centered on black."""
    height, width = picture.shape[:2]
    longest = max(height, width)
    top, left = (longest - height) // 2, (longest - width) // 2
    rows = [round(edge * side / longest) for edge in (top, top + height)]
    columns = [round(edge * side / longest) for edge in (left, left + width)]
    small = resized(picture, (rows[1] - rows[0], columns[1] - columns[0]))
    result = np.zeros((side, side, 3), np.uint8)
    result[rows[0] : rows[1], columns[0] : columns[1]] = small
    return result


def boxes(mask: Shape) -> list[tuple[int, int, int, int]]:
    """Return (top, left, height, width) of each connected region of LEAST_AREA, by flood fill."""
    left_over, result = mask.copy(), []
    for start in zip(*mask.nonzero(), strict=True):
        if not left_over[start]:
            continue
        left_over[start] = False
        region, front = [start], [start]
        while front:
            y, x = front.pop()
            for near_y in range(max(0, y - 1), min(mask.shape[0], y + 2)):
                for near_x in range(max(0, x - 1), min(mask.shape[1], x + 2)):
                    if left_over[near_y, near_x]:
                        left_over[near_y, near_x] = False
                        region.append((near_y, near_x))
                        front.append((near_y, near_x))
        if len(region) >= LEAST_AREA:
            (top, left), (bottom, right) = np.min(region, 0), np.max(region, 0)
            result.append((int(top), int(left), int(bottom - top + 1), int(right - left + 1)))
    return result


def silhouettes(mask: Shape, reference_mask: Shape) -> list[tuple[Shape, int, int]]:
    """Return (plane, top row, bottom row) for each region: the reference's shape in its box."""
    ys, xs = reference_mask.nonzero()
    shape = reference_mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    result = []
    for top, left, height, width in boxes(mask):
        plane = np.zeros_like(mask)
        for y in range(height):
            for x in range(width):
                plane[top + y, left + x] = shape[
                    y * shape.shape[0] // height, x * shape.shape[1] // width
                ]
        result.append((plane, top, top + height - 1))
    return result


def moved(plane: Shape, down: int, right: int) -> Shape:
    """Move a plane by whole pixels; what leaves it is lost."""
    height, width = plane.shape
    result = np.zeros_like(plane)
    result[max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)] = plane[
        max(0, -down) : height + min(0, -down), max(0, -right) : width + min(0, -right)
    ]
    return result


def dilated(plane: Shape, kernel: Shape) -> Shape:
    """Dilate by a kernel with its middle at the origin."""
    result = np.zeros_like(plane)
    for y, x in zip(*kernel.nonzero(), strict=True):
        result |= moved(plane, y - len(kernel) // 2, x - kernel.shape[1] // 2)
    return result


def ellipse(radius: int) -> Shape:
    """Return OpenCV's ellipse of this radius by its formula: each row is a chord of the circle."""
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1), np.bool_)
    for y in range(-radius, radius + 1):
        chord = round((radius**2 - y**2) ** 0.5)
        kernel[radius + y, radius - chord : radius + chord + 1] = True
    return kernel


def insertion_mask(mask: Shape, reference_mask: Shape) -> Shape:
    """Return silhouette and shadow, 3 px right and 5 px down, dilated by the ellipse of 7 x 7."""
    planes = [plane for plane, _, _ in silhouettes(mask, reference_mask)]
    if not any(plane.any() for plane in planes):
        return mask
    joined = np.any(planes, 0)
    return dilated(joined | moved(joined, 5, 3), ELLIPSE_7)


def shadow(mask: Shape, reference_mask: Shape) -> Plane:
    """Return the shadow hint: offset 3, 5; opacity 0.4; blur 21; weaker away from the ground."""
    sigma = 0.3 * ((21 - 1) * 0.5 - 1) + 0.8
    weights = np.exp(-(np.arange(-10, 11) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    result = np.zeros(mask.shape)
    for plane, top, bottom in silhouettes(mask, reference_mask):
        soft = np.pad(moved(plane, 5, 3).astype(np.float64), 10)
        soft = np.apply_along_axis(np.convolve, 0, soft, weights, "same")
        soft = np.apply_along_axis(np.convolve, 1, soft, weights, "same")[10:-10, 10:-10]
        for y in range(len(mask)):
            near = min(max((y - top) / (bottom - top), 0), 1) if bottom > top else 1
            result[y] = np.maximum(result[y], 0.4 * near * soft[y])
    return result


def insertion_background(picture: Picture, mask: Shape, reference_mask: Shape) -> Plane:
    """Return photo x (1 - silhouette), darkened by the shadow hint, in 0..255."""
    hidden = insertion_mask(mask, reference_mask)
    light = 1 - shadow(mask, reference_mask)
    return picture * (~hidden * light)[..., None]


def removal_fill(picture: Picture, mask: Shape, brushed: bool) -> Picture:
    """Fill by OpenCV's Telea on the mask, dilated by 35 px where it was brushed; by a half, a
    quarter and so on where nothing would be left to fill from.
    """
    radius = 35 if brushed else 0
    while (hole := dilated(mask, ellipse(radius))).all():
        radius //= 2
    filled = cv2.inpaint(picture, hole.astype(np.uint8), 3, cv2.INPAINT_TELEA)
    return np.where(hole[..., None], filled, picture)


def edges(picture: Picture) -> Picture:
    """Gray, bilateral filter, Canny with thresholds (1 -/+ 0.33) times the median."""
    smooth = cv2.bilateralFilter(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), 9, 75, 75)
    middle = np.median(smooth)
    lines = cv2.Canny(smooth, int(0.67 * middle), int(min(255, 1.33 * middle)))
    return np.repeat(lines[..., None], 3, 2)
