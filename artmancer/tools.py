"""Small tools around an edit: cut an object out for a catalogue, hint at its shadow, shift the light by hand, compare.

Edges are conditions.edges, and the automatic white balance is draft.balance.
"""

import torch
from torch import Tensor
from torch.nn import functional

from .color import to_linear, to_srgb
from .errors import ArtMancerError
from .region import bounds, check

_LUMINANCE = torch.tensor([0.2126, 0.7152, 0.0722])


def extract_object(image: Tensor, mask: Tensor, side: int = 1024, margin: float = 0.05) -> Tensor:
    """Each picture's object alone, centred on a white square.

    Parameters
    ----------
    image, mask : IMAGE [B, H, W, 3], MASK [B or 1, H, W], 1 = the object; a soft edge stays soft
    side : of the square in pixels; the object is scaled to fill it but for the margin
    margin : share of the side that is left free on each side of the object

    Returns
    -------
    IMAGE [B, side, side, 3]

    Raises
    ------
    ArtMancerError : invalid_request, mask_empty
    """
    check(image, mask, "object")
    squares = []
    for one, where in zip(image, mask.expand(len(image), -1, -1), strict=True):
        top, left, bottom, right = bounds(where)
        alpha = where[None, None, top:bottom, left:right]
        color = one[top:bottom, left:right].movedim(-1, 0)[None]
        scale = side * (1 - 2 * margin) / max(bottom - top, right - left)
        size = [max(1, min(side, round(length * scale))) for length in (bottom - top, right - left)]
        # The colours around the object are weighted out, so that none of them shows in its scaled edge.
        weighted = functional.interpolate(torch.cat([color * alpha, alpha], 1), size, mode="bicubic", antialias=True)
        weighted = weighted.clamp(0, 1)[0].movedim(0, -1)
        square = torch.ones(side, side, 3)
        y, x = (side - size[0]) // 2, (side - size[1]) // 2
        square[y : y + size[0], x : x + size[1]] = weighted[..., :3] + 1 - weighted[..., 3:]
        squares.append(square.clamp_(0, 1))
    return torch.stack(squares)


def cast_shadow(
    image: Tensor, mask: Tensor, offset: tuple[int, int] = (20, 20), opacity: float = 0.5, blur: int = 20
) -> tuple[Tensor, Tensor]:
    """Darken each picture where an object would cast a soft shadow; the object itself stays as it is.

    Parameters
    ----------
    image, mask : IMAGE [B, H, W, 3], MASK [B or 1, H, W], 1 = the object
    offset : of the shadow from the object, (right, down) in pixels
    opacity : 0 = no shadow, 1 = black
    blur : standard deviation of its edge in pixels

    Returns
    -------
    IMAGE [B, H, W, 3] and the shadow, MASK [B, H, W] in 0..opacity
    """
    import cv2

    check(image, mask, "object")
    right, down = offset
    shadows = []
    for where in mask.expand(len(image), -1, -1):
        height, width = where.shape
        # A shadow that begins outside the picture is not cut off at its border: it is drawn with room for its blur.
        room = 3 * blur + max(abs(right), abs(down)) + 1
        wide = functional.pad(where, (room, room, room, room))
        blurred = wide if blur == 0 else torch.from_numpy(cv2.GaussianBlur(wide.numpy(), (0, 0), blur))
        moved = blurred[room - down : room - down + height, room - right : room - right + width]
        shadows.append(moved * (1 - where) * opacity)
    shadow = torch.stack(shadows)
    return image * (1 - shadow.unsqueeze(-1)), shadow


def shift_light(image: Tensor, temperature: float = 0.0, tint: float = 0.0) -> Tensor:
    """Change the white balance by hand: a gain per channel in linear light; a grey keeps its luminance.

    Parameters
    ----------
    image : IMAGE [B, H, W, 3]
    temperature : -100 (blue) to 100 (amber)
    tint : -100 (green) to 100 (magenta)
    """
    for name, value in (("temperature", temperature), ("tint", tint)):
        if not -100 <= value <= 100:
            raise ArtMancerError("invalid_request", f"The {name} is {value:g}; expected -100 to 100. Change it.")
    # At the end of the scale red and blue, or green and the other two, differ by a factor of two.
    warm, magenta = temperature / 200, tint / 200
    gains = torch.tensor([warm + magenta / 3, -2 * magenta / 3, -warm + magenta / 3]).exp2()
    gains = gains / (gains @ _LUMINANCE)
    return image if warm == magenta == 0 else to_srgb((to_linear(image) * gains).clamp(0, 1))


def side_by_side(before: Tensor, after: Tensor, at: float = 0.5) -> Tensor:
    """One picture that shows `before` on its left and `after` on its right.

    Parameters
    ----------
    before, after : IMAGE [B, H, W, 3] of one size
    at : where the one ends and the other begins, a share of the width
    """
    if before.shape != after.shape:
        sizes = [f"{len(one)} of {one.shape[2]}x{one.shape[1]}" for one in (before, after)]
        raise ArtMancerError(
            "invalid_request", f"Compare: before is {sizes[0]} but after is {sizes[1]}. Give pictures of one size."
        )
    split = round(before.shape[2] * at)
    return torch.cat([before[:, :, :split], after[:, :, split:]], 2)
