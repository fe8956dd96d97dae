"""Input checks with messages for the user, one function for each kind of mistake.

Imports no torch: the command line checks files with these before it loads torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import ArtMancerError

if TYPE_CHECKING:
    from torch import Tensor

NEAR_BLACK = 8.5 / 255
"""Largest value of a mask that counts as black: JPEG writes up to 5 of 255 where a mask was black.
See mask_ops.clean.
"""

NEAR_WHITE = 1 - NEAR_BLACK
"""Smallest value of a mask that counts as white."""

_NOTED_SHARE = 0.01
"""Share of a mask's pixels from which a note counts those that are nearly black or white; an
antialiased edge has fewer.
"""

_GRAY = (0.1, 0.9)
"""Values of a mask between these are gray: a photo has mostly such values, a mask few."""

_GRAY_SHARE = 0.5
"""Share of gray pixels from which a mask is questioned."""

_GRAY_RANGE = 0.1
"""Smallest range of a mask that is questioned: an evenly gray mask asks for a weaker edit."""

_STEP = 8
"""Step in pixels at which a mask is sampled for its share of gray."""


def check_image(image: Tensor, name: str = "image") -> None:
    """Refuse a tensor that is not an IMAGE [B, H, W, 3] of floats.

    Parameters
    ----------
    name : what the message calls it

    Raises
    ------
    ArtMancerError : invalid_request
    """
    if image.ndim != 4 or image.shape[-1] != 3 or 0 in image.shape:
        has_alpha = image.ndim == 4 and image.shape[-1] == 4
        raise ArtMancerError(
            "invalid_request",
            f"The {name} has shape {list(image.shape)}; expected [batch, height, width, 3] (RGB). "
            + ("Remove the alpha channel." if has_alpha else "Check the node it comes from."),
        )
    _check_dtype(image, f"The {name}")


def check_mask(mask: Tensor, image: Tensor, name: str = "image", scalable: bool = False) -> None:
    """Refuse a tensor that is not a MASK [B or 1, H, W] of floats for this IMAGE [B, H, W, 3].

    Parameters
    ----------
    name : what the message calls the image
    scalable : accept another size of exactly the image's aspect ratio, which the caller scales

    Raises
    ------
    ArtMancerError : invalid_request
    """
    _check_dtype(mask, f"The mask of the {name}")
    if mask.ndim == 4 and mask.shape[-1] in (3, 4):
        raise ArtMancerError(
            "invalid_request",
            f"The mask of the {name} has shape {list(mask.shape)}: it is an image, with colors. Is "
            "it a photo? Convert a black and white image with Convert Image to Mask.",
        )
    if mask.ndim != 3 or mask.shape[0] not in (1, image.shape[0]):
        raise ArtMancerError(
            "invalid_request",
            f"The mask of the {name} has shape {list(mask.shape)}; expected [batch, height, width] "
            f"with a batch of {image.shape[0]}, one mask for each image, or 1.",
        )
    mask_size, image_size = (mask.shape[2], mask.shape[1]), (image.shape[2], image.shape[1])
    if not (scalable and scales_exactly(mask_size, image_size)):
        check_mask_size(mask_size, image_size, name)


def check_mask_size(
    mask_size: tuple[int, int], image_size: tuple[int, int], name: str = "image"
) -> None:
    """Refuse a mask of another (width, height) than its image.

    Raises
    ------
    ArtMancerError : invalid_request
    """
    if mask_size == image_size:
        return
    advice = f"Resize the mask, or use the mask that belongs to this {name}."
    if not scales_exactly(mask_size, image_size):
        advice += " It cannot be scaled exactly, because the aspect ratios differ."
    if mask_size == image_size[::-1]:
        advice = "The sides are exchanged: turn the mask by 90 degrees."
    if mask_size == (64, 64):  # the size that ComfyUI's Load Image gives an absent mask
        advice = "A mask of 64x64 means that none was painted: paint one, or connect another."
    raise ArtMancerError(
        "invalid_request",
        f"The mask is {mask_size[0]}x{mask_size[1]} but the {name} is "
        f"{image_size[0]}x{image_size[1]}. {advice}",
    )


def check_mask_given(variant: str, has_mask: bool) -> None:
    """Refuse an edit without a mask, which only white balance can do.

    Raises
    ------
    ArtMancerError : mask_missing
    """
    if not has_mask and variant != "white_balance":
        raise ArtMancerError(
            "mask_missing",
            f"A mask is needed for {variant}. Paint what should change white, and add the mask.",
        )


def scales_exactly(mask_size: Sequence[int], image_size: Sequence[int]) -> bool:
    """Tell whether a mask of this size has exactly the image's aspect ratio, so that it can be
    scaled to the image. Both are (width, height), or both (height, width).
    """
    return mask_size[0] * image_size[1] == mask_size[1] * image_size[0]


def empty_mask(brightest: float, name: str = "The mask") -> ArtMancerError:
    """Make the error for a mask that is black, or nearly black, everywhere.

    Parameters
    ----------
    brightest : its largest value, 0..1
    """
    if brightest <= 0:
        return ArtMancerError(
            "mask_empty", f"{name} is black everywhere; paint what should change white."
        )
    return ArtMancerError(
        "mask_empty",
        f"{name} is nearly black everywhere: its brightest value is {brightest * 255:.2g} of 255, "
        f"and values up to {NEAR_BLACK * 255:.0f} count as black. Paint what should change white, "
        "or scale the mask's values so that white is 255.",
    )


def mask_notes(mask: Tensor) -> tuple[str, ...]:
    """Return sentences for the report on a mask that may not be what was meant.

    They name the pixels that count as black or white although they are not (see mask_ops.clean),
    black masks of a batch, a mask that may be inverted (more than half white, and white in all four
    corners), and one that may be a photo (more than half gray).

    Parameters
    ----------
    mask : MASK [B, H, W]
    """
    notes = []
    dark = sum(_count(plane, 1e-9, NEAR_BLACK) for plane in mask)
    light = sum(_count(plane, NEAR_WHITE, 1 - 1e-6) for plane in mask)
    if dark + light > _NOTED_SHARE * mask.numel():
        notes.append(
            f"Mask values within {NEAR_BLACK * 255:.0f} of 255 levels of black or white count as "
            f"black or white: {dark:,} and {light:,} pixels."
        )
    empty = [number for number, plane in enumerate(mask, 1) if plane.max() <= NEAR_BLACK]
    if empty:
        notes.append(
            f"{len(empty)} of the {len(mask)} masks are black everywhere (the first is number "
            f"{empty[0]}): these images stay as they are."
        )
    if any(_may_be_inverted(plane) for plane in mask):
        notes.append(
            "The mask may be inverted: more than half of it is white, and all four corners are. "
            "White is what changes. If you meant the rest, invert the mask."
        )
    samples = mask[:, ::_STEP, ::_STEP]
    gray = (samples > _GRAY[0]) & (samples < _GRAY[1])
    if gray.float().mean() > _GRAY_SHARE and samples.max() - samples.min() > _GRAY_RANGE:
        notes.append(
            "More than half of the mask is gray. Is it a photo? Expected an image that is white "
            "where the photo should change, and black elsewhere."
        )
    return tuple(notes)


def _count(mask: Tensor, lowest: float, highest: float) -> int:
    """Count the pixels of a mask [H, W] from one value to another, both included."""
    import cv2

    # In torch it would take ten times as long: the whole mask of a large photo is read.
    return cv2.countNonZero(cv2.inRange(mask.contiguous().numpy(), lowest, highest))


def _may_be_inverted(mask: Tensor) -> bool:
    """Tell whether a mask [H, W] is white in its corners and in more than half, but not all."""
    if bool((mask[:: max(1, len(mask) - 1), :: max(1, mask.shape[1] - 1)] < 0.5).any()):
        return False
    share = float((mask >= 0.5).float().mean())
    return 0.5 < share < 1


def draft_needs_reference() -> ArtMancerError:
    """Make the error for an insertion without a reference by the draft editor."""
    return ArtMancerError(
        "reference_missing",
        "The draft editor cannot draw from words: it inserts a reference, and there is none. Add a "
        "reference image and the mask that cuts the object out of it.",
    )


def check_lama_variant(variant: str) -> None:
    """Refuse another edit than a removal by the LaMa editor.

    Raises
    ------
    ArtMancerError : invalid_request
    """
    if variant != "removal":
        raise ArtMancerError(
            "invalid_request",
            f"The lama editor only removes, but the variant is {variant}. Choose another editor.",
            {"field": "editor", "expected": "draft or a model for this variant", "got": "lama"},
        )


def check_finite(image: Tensor, name: str) -> None:
    """Refuse an IMAGE with NaN or infinite values.

    Raises
    ------
    ArtMancerError : invalid_request
    """
    if not image.sum().isfinite():
        raise ArtMancerError(
            "invalid_request",
            f"The {name} holds NaN or infinite values; expected 0..1. "
            "Check the node it comes from.",
        )


def _check_dtype(tensor: Tensor, name: str) -> None:
    if not tensor.is_floating_point():
        raise ArtMancerError(
            "invalid_request",
            f"{name} is {tensor.dtype}; expected float32 in 0..1. Divide bytes by 255.",
        )
