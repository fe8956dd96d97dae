"""Small tools around an edit: resize, cut an object out for a catalogue, hint at its shadow, shift
the light, compare.

Edges are conditions.edges, and the automatic white balance is draft.balance.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from . import mask_ops
from .checks import check_image, check_mask
from .color import LUMINANCE, to_linear, to_srgb
from .errors import ArtMancerError
from .images import MAX_PIXELS, MAX_SIDE
from .region import bounds, resample

SIDES = (512, 1024)
"""Of an object's square: the first where the object fits into it as it is, else the second."""

_OFF_WHITE = 0.02
"""What is darker than white by more than this is an object that stands on it."""


def opaque(image: Tensor) -> Tensor:
    """IMAGE [B, H, W, 3] of one that may have alpha, [B, H, W, 4]: that is laid over white.
    On the CPU and in float32, which ComfyUI's --gpu-only and --fp16-intermediates may change.
    """
    image = _plain(image)
    if image.shape[-1] != 4:
        return image
    return torch.lerp(image.new_ones(3), image[..., :3], image[..., 3:])


def resize(
    image: Tensor, mask: Tensor | None = None, width: int = 0, height: int = 0, max_pixels: int = 0
) -> tuple[Tensor, Tensor | None]:
    """Scale pictures and their masks; what has the size already is passed on as it is.

    Parameters
    ----------
    image, mask : IMAGE [B, H, W, 3], MASK [B or 1, H, W]
    width, height : in pixels; 0 = as the other one gives by the aspect ratio, both 0 = the
        picture's own
    max_pixels : the most pixels there may be after that; 0 = no limit

    Returns
    -------
    IMAGE [B, h, w, 3] and MASK [B or 1, h, w], None where none came

    Raises
    ------
    ArtMancerError : invalid_request, image_too_large
    """
    check_image(image)
    if mask is not None:
        check_mask(mask, image)
    image, mask = _plain(image), None if mask is None else _plain(mask)
    size = fit((image.shape[1], image.shape[2]), width, height, max_pixels)
    if max(size) > MAX_SIDE or size[0] * size[1] > MAX_PIXELS:
        raise ArtMancerError(
            "image_too_large",
            f"The photo would become {size[1]}x{size[0]}; at most {MAX_SIDE:,} pixels a side and "
            f"{MAX_PIXELS:,} in all are made. Ask for a smaller size.",
        )
    if mask is not None:
        mask = resample(mask.unsqueeze(-1), size, "bilinear")[..., 0]
    return resample(image, size), mask


def fit(
    size: tuple[int, int], width: int = 0, height: int = 0, max_pixels: int = 0
) -> tuple[int, int]:
    """The (height, width) that `resize` gives a picture of this (height, width)."""
    own_height, own_width = size
    height, width = (
        height or (max(1, round(own_height * width / own_width)) if width else own_height),
        width or (max(1, round(own_width * height / own_height)) if height else own_width),
    )
    if max_pixels and height * width > max_pixels:
        # A side of a very long picture is one pixel:
        # then the other one alone has to hold the limit.
        limited = max(1, min(math.isqrt(max_pixels * height // width), max_pixels))
        return limited, max(1, min(math.isqrt(max_pixels * width // height), max_pixels // limited))
    return height, width


def extract_object(image: Tensor, mask: Tensor, side: int = 1024, margin: float = 0.05) -> Tensor:
    """Each picture's object alone, centred on a white square.

    Parameters
    ----------
    image, mask : IMAGE [B, H, W, 3], MASK [B or 1, H, W], 1 = the object; a soft edge stays soft
    side : of the square in pixels; 0 = one of SIDES, by the largest object of the batch. The object
        is scaled to fill it but for the margin
    margin : share of the side that is left free on each side of the object

    Returns
    -------
    IMAGE [B, side, side, 3]

    Raises
    ------
    ArtMancerError : invalid_request, mask_empty
    """
    check_image(image, "object")
    check_mask(mask, image, "object")
    image, mask = _plain(image), _plain(mask).expand(len(image), -1, -1)
    boxes = [bounds(where) for where in mask]
    if side == 0:
        longest = max(max(box.bottom - box.top, box.right - box.left) for box in boxes)
        side = SIDES[0] if longest <= SIDES[0] else SIDES[1]
    squares = []
    for one, where, (top, left, bottom, right) in zip(image, mask, boxes, strict=True):
        alpha = where[None, None, top:bottom, left:right]
        color = one[top:bottom, left:right].movedim(-1, 0)[None]
        scale = side * (1 - 2 * margin) / max(bottom - top, right - left)
        size = [max(1, min(side, round(length * scale))) for length in (bottom - top, right - left)]
        # The colours around the object are weighted out, so that none of them shows
        # in its scaled edge.
        weighted = functional.interpolate(
            torch.cat([color * alpha, alpha], 1), size, mode="bicubic", antialias=True
        )
        weighted = weighted.clamp(0, 1)[0].movedim(0, -1)
        square = torch.ones(side, side, 3)
        y, x = (side - size[0]) // 2, (side - size[1]) // 2
        square[y : y + size[0], x : x + size[1]] = weighted[..., :3] + 1 - weighted[..., 3:]
        squares.append(square.clamp_(0, 1))
    return torch.stack(squares)


def cast_shadow(
    image: Tensor,
    mask: Tensor | None,
    offset: tuple[int, int] = (20, 20),
    opacity: float = 0.5,
    blur: int = 20,
) -> tuple[Tensor, Tensor]:
    """Darken each picture where an object would cast a soft shadow;
    the object itself stays as it is.

    Parameters
    ----------
    image, mask : IMAGE [B, H, W, 3], MASK [B or 1, H, W], 1 = the object; None = what is not white,
        and what that encloses, as `extract_object` leaves an object
    offset : of the shadow from the object, (right, down) in pixels
    opacity : 0 = no shadow, 1 = black
    blur : standard deviation of its edge in pixels

    Returns
    -------
    IMAGE [B, H, W, 3] and the shadow, MASK [B, H, W] in 0..opacity
    """
    import cv2

    check_image(image, "object")
    if mask is not None:
        check_mask(mask, image, "object")
    image = _plain(image)
    mask = _not_white(image) if mask is None else _plain(mask)
    right, down = offset
    shadows = []
    for where in mask.expand(len(image), -1, -1):
        height, width = where.shape
        # A shadow that begins outside the picture is not cut off at its border: it is drawn with
        # room for its blur.
        room = 3 * blur + max(abs(right), abs(down)) + 1
        wide = functional.pad(where, (room, room, room, room))
        blurred = (
            wide if blur == 0 else torch.from_numpy(cv2.GaussianBlur(wide.numpy(), (0, 0), blur))
        )
        moved = blurred[room - down : room - down + height, room - right : room - right + width]
        shadows.append(moved * (1 - where) * opacity)
    shadow = torch.stack(shadows)
    return image * (1 - shadow.unsqueeze(-1)), shadow


def _plain(picture: Tensor) -> Tensor:
    return picture.to("cpu", torch.float32)


def _not_white(image: Tensor) -> Tensor:
    """What stands on white, MASK [B, H, W]; in its soft edge as much as the white lets
    of it show.
    """
    darkness = 1 - image.amin(-1)
    solid = mask_ops.fill_holes((darkness > _OFF_WHITE).to(image))
    return torch.maximum(mask_ops.grow(solid, -1), darkness)


def shift_light(image: Tensor, temperature: float = 0.0, tint: float = 0.0) -> Tensor:
    """Change the white balance by hand: a gain per channel in linear light;
    a grey keeps its luminance.

    Parameters
    ----------
    image : IMAGE [B, H, W, 3]
    temperature : -100 (blue) to 100 (amber)
    tint : -100 (green) to 100 (magenta)
    """
    check_image(image)
    for name, value in (("temperature", temperature), ("tint", tint)):
        if not -100 <= value <= 100:
            raise ArtMancerError(
                "invalid_request", f"The {name} is {value:g}; expected -100 to 100. Change it."
            )
    # At the end of the scale red and blue, or green and the other two, differ by a factor of two.
    warm, magenta = temperature / 200, tint / 200
    gains = torch.tensor([warm + magenta / 3, -2 * magenta / 3, -warm + magenta / 3]).exp2()
    gains = gains / (gains @ LUMINANCE)
    return image if warm == magenta == 0 else to_srgb((to_linear(image) * gains).clamp(0, 1))


def side_by_side(before: Tensor, after: Tensor, at: float = 0.5) -> Tensor:
    """One picture that shows `before` on its left and `after` on its right.

    Parameters
    ----------
    before, after : IMAGE [B, H, W, 3] of one size
    at : where the one ends and the other begins, a share of the width
    """
    check_image(before, "photo before")
    check_image(after, "photo after")
    if before.shape != after.shape:
        sizes = [f"{len(one)} of {one.shape[2]}x{one.shape[1]}" for one in (before, after)]
        raise ArtMancerError(
            "invalid_request",
            f"Compare: before is {sizes[0]} but after is {sizes[1]}. Give pictures of one size.",
        )
    split = round(before.shape[2] * at)
    return torch.cat([before[:, :, :split], after[:, :, split:]], 2)
