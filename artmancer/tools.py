"""Small tools around an edit: resize, cut an object out for a catalog, cast its shadow, shift the
light, compare.

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
from .region import Window, bounds, resample

SIDES = (512, 1024)
"""Sides of an object's square, in pixels: the first if the object fits unscaled, else the second.
"""

_MAX_SHIFT = 100
"""Largest temperature and tint of `shift_light`; the smallest is its negative."""

_OFF_WHITE = 0.02
"""Darkness, from 0 (white) to 1, above which a pixel belongs to an object on white."""


def opaque(image: Tensor) -> Tensor:
    """Lay an image over white where it is transparent.

    Parameters
    ----------
    image : IMAGE [B, H, W, 3], or [B, H, W, 4] with alpha

    Returns
    -------
    IMAGE [B, H, W, 3], on the CPU and in float32, which ComfyUI's --gpu-only and
    --fp16-intermediates may change
    """
    image = _on_cpu(image)
    if image.shape[-1] != 4:
        return image
    return torch.lerp(image.new_ones(3), image[..., :3], image[..., 3:])


def resize(
    image: Tensor, mask: Tensor | None = None, width: int = 0, height: int = 0, max_pixels: int = 0
) -> tuple[Tensor, Tensor | None]:
    """Resize images and their masks. Images that already have the size stay as they are.

    Parameters
    ----------
    image : IMAGE [B, H, W, 3]
    mask : MASK [B or 1, H, W], or one of exactly the image's aspect ratio at another size, which
        stays as it is where the image does
    width, height : in pixels; if one is 0, it follows the other, keeping the aspect ratio; if both
        are 0, the size stays
    max_pixels : largest area, to which the size is then reduced; 0 = no limit

    Returns
    -------
    IMAGE [B, h, w, 3], and MASK [B or 1, h, w] or None

    Raises
    ------
    ArtMancerError : invalid_request, image_too_large
    """
    check_image(image)
    own_size = (image.shape[1], image.shape[2])
    if mask is not None:
        check_mask(mask, image, scalable=True)
    size = fit(own_size, width, height, max_pixels)
    if max(size) > MAX_SIDE or size[0] * size[1] > MAX_PIXELS:
        raise ArtMancerError(
            "image_too_large",
            f"The photo would become {size[1]}x{size[0]}; at most {MAX_SIDE:,} pixels a side and "
            f"{MAX_PIXELS:,} in all are allowed. Choose a smaller size.",
        )
    if mask is not None and size == own_size:
        mask = _on_cpu(mask)
    elif mask is not None:
        mask = resample(_on_cpu(mask).unsqueeze(-1), size, "bilinear")[..., 0]
    return resample(_on_cpu(image), size), mask


def fit(
    size: tuple[int, int], width: int = 0, height: int = 0, max_pixels: int = 0
) -> tuple[int, int]:
    """Return the (height, width) to which `resize` resizes an image of this (height, width)."""
    own_height, own_width = size
    if not height and not width:
        height, width = size
    elif not height:
        height = max(1, round(own_height * width / own_width))
    elif not width:
        width = max(1, round(own_width * height / own_height))
    if not max_pixels or height * width <= max_pixels:
        return height, width
    # A side of a very long image becomes one pixel. The other side alone then keeps the limit.
    limited_height = max(1, min(math.isqrt(max_pixels * height // width), max_pixels))
    limited_width = min(math.isqrt(max_pixels * width // height), max_pixels // limited_height)
    return limited_height, max(1, limited_width)


def extract_object(image: Tensor, mask: Tensor, side: int = 1024, margin: float = 0.05) -> Tensor:
    """Cut each image's object out and center it on a white square.

    Parameters
    ----------
    image : IMAGE [B, H, W, 3]
    mask : MASK [B or 1, H, W], 1 = the object; a soft edge stays soft
    side : side of the square in pixels; 0 = one of SIDES, by the largest object of the batch. The
        object is scaled to fill the square up to the margin
    margin : empty border on each side, as a share of the side

    Returns
    -------
    IMAGE [B, side, side, 3]

    Raises
    ------
    ArtMancerError : invalid_request, mask_empty
    """
    check_image(image, "object")
    check_mask(mask, image, "object")
    image, mask = _on_cpu(image), mask_ops.clean(_on_cpu(mask)).expand(len(image), -1, -1)
    boxes = [bounds(plane) for plane in mask]
    if side == 0:
        longest = max(max(box.bottom - box.top, box.right - box.left) for box in boxes)
        side = SIDES[0] if longest <= SIDES[0] else SIDES[1]
    return torch.stack(
        [
            _on_white(box.view(plane), box.view(alpha), side, margin)
            for plane, alpha, box in zip(image, mask, boxes, strict=True)
        ]
    )


def _on_white(image: Tensor, mask: Tensor, side: int, margin: float) -> Tensor:
    """Scale an object [h, w, 3] with its mask [h, w] and center it on white [side, side, 3]."""
    height, width = mask.shape
    scale = side * (1 - 2 * margin) / max(height, width)
    size = [max(1, min(side, round(length * scale))) for length in (height, width)]
    color, alpha = image.movedim(-1, 0)[None], mask[None, None]
    # Premultiplied by the mask, so that the surroundings do not bleed into the object's edge.
    layers = functional.interpolate(
        torch.cat([color * alpha, alpha], 1), size, mode="bicubic", antialias=True
    )
    layers = layers.clamp(0, 1)[0].movedim(0, -1)
    top, left = (side - size[0]) // 2, (side - size[1]) // 2
    square = torch.ones(side, side, 3)
    window = Window(top, left, top + size[0], left + size[1])
    window.view(square).copy_(layers[..., :3] + 1 - layers[..., 3:])
    return square.clamp_(0, 1)


def cast_shadow(
    image: Tensor,
    mask: Tensor | None,
    offset: tuple[int, int] = (20, 20),
    opacity: float = 0.5,
    blur: int = 20,
) -> tuple[Tensor, Tensor]:
    """Darken each image where an object would cast a soft shadow. The object itself stays as it is.

    Parameters
    ----------
    image : IMAGE [B, H, W, 3]
    mask : MASK [B or 1, H, W], 1 = the object; None = everything that is not white, and what it
        encloses, for an image from `extract_object`
    offset : (right, down) from the object to the shadow, in pixels
    opacity : 0 = no shadow, 1 = black
    blur : standard deviation of the shadow's edge in pixels

    Returns
    -------
    IMAGE [B, H, W, 3], and the shadow, MASK [B, H, W] in 0..opacity
    """
    check_image(image, "object")
    if mask is not None:
        check_mask(mask, image, "object")
    image = _on_cpu(image)
    mask = _not_white(image) if mask is None else _on_cpu(mask)
    shadow = torch.stack(
        [
            _blurred_and_moved(plane, offset, blur) * (1 - plane) * opacity
            for plane in mask.expand(len(image), -1, -1)
        ]
    )
    return image * (1 - shadow.unsqueeze(-1)), shadow


def _blurred_and_moved(mask: Tensor, offset: tuple[int, int], blur: int) -> Tensor:
    """Return a mask [h, w], blurred and moved by the offset (right, down)."""
    import cv2

    right, down = offset
    # Drawn with a margin, so that the border cuts off neither the blur nor the shadow that moves in
    # from outside. A Gaussian reaches about three standard deviations.
    margin = 3 * blur + max(abs(right), abs(down)) + 1
    wide = functional.pad(mask, (margin, margin, margin, margin))
    if blur:
        wide = torch.from_numpy(cv2.GaussianBlur(wide.numpy(), (0, 0), blur))
    window = Window(0, 0, *mask.shape).shift(margin - down, margin - right)
    return window.view(wide)


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", torch.float32)


def _not_white(image: Tensor) -> Tensor:
    """Return the objects on white as a MASK [B, H, W]. In a soft edge the mask is as strong as the
    color, which is mixed with white there.
    """
    darkness = 1 - image.amin(-1)
    solid = mask_ops.fill_holes((darkness > _OFF_WHITE).to(image))
    return torch.maximum(mask_ops.grow(solid, -1), darkness)


def shift_light(image: Tensor, temperature: float = 0.0, tint: float = 0.0) -> Tensor:
    """Change the white balance by hand: a gain for each channel in linear light. A gray keeps its
    luminance.

    Parameters
    ----------
    image : IMAGE [B, H, W, 3]
    temperature : -100 (blue) to 100 (amber)
    tint : -100 (green) to 100 (magenta)

    Raises
    ------
    ArtMancerError : invalid_request
    """
    check_image(image)
    for name, value in (("temperature", temperature), ("tint", tint)):
        if not -_MAX_SHIFT <= value <= _MAX_SHIFT:
            raise ArtMancerError(
                "invalid_request",
                f"The {name} is {value:g}; expected -{_MAX_SHIFT} to {_MAX_SHIFT}.",
            )
    if temperature == tint == 0:
        return image
    # Powers of two. At the end of the scale, temperature sets red and blue apart by a factor of 2,
    # tint sets green and the other two apart by a factor of the square root of 2.
    warm = temperature / (2 * _MAX_SHIFT)
    magenta = tint / (2 * _MAX_SHIFT)
    gains = torch.tensor([warm + magenta / 3, -2 * magenta / 3, -warm + magenta / 3]).exp2()
    gains = gains / (gains @ LUMINANCE)
    return to_srgb((to_linear(image) * gains).clamp(0, 1))


def side_by_side(before: Tensor, after: Tensor, at: float = 0.5) -> Tensor:
    """Return an image that shows `before` on its left and `after` on its right.

    Parameters
    ----------
    before, after : IMAGE [B, H, W, 3] of one size
    at : position of the border between the two, as a share of the width

    Raises
    ------
    ArtMancerError : invalid_request
    """
    check_image(before, "photo before")
    check_image(after, "photo after")
    if before.shape != after.shape:
        old, new = (
            f"{image.shape[2]}x{image.shape[1]} (batch of {len(image)})"
            for image in (before, after)
        )
        raise ArtMancerError(
            "invalid_request",
            f"Compare: before is {old} but after is {new}. "
            "Connect images of the same size and batch.",
        )
    split = round(before.shape[2] * at)
    return torch.cat([before[:, :, :split], after[:, :, split:]], 2)
