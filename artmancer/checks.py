"""Input checks with messages for the user, one function for each kind of mistake.

Imports no torch: the command line checks files with these before it loads torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import ArtMancerError

if TYPE_CHECKING:
    from torch import Tensor


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


def check_mask(mask: Tensor, image: Tensor, name: str = "image") -> None:
    """Refuse a tensor that is not a MASK [B or 1, H, W] of floats for this IMAGE [B, H, W, 3].

    Parameters
    ----------
    name : what the message calls the image

    Raises
    ------
    ArtMancerError : invalid_request
    """
    _check_dtype(mask, f"The mask of the {name}")
    if mask.ndim != 3 or mask.shape[0] not in (1, image.shape[0]):
        raise ArtMancerError(
            "invalid_request",
            f"The mask of the {name} has shape {list(mask.shape)}; expected [batch, height, width] "
            f"with a batch of {image.shape[0]}, one mask for each image, or 1.",
        )
    check_mask_size((mask.shape[2], mask.shape[1]), (image.shape[2], image.shape[1]), name)


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


def check_mask_painted(is_black: bool, name: str = "The mask") -> None:
    """Refuse a mask that is black everywhere.

    Raises
    ------
    ArtMancerError : mask_empty
    """
    if is_black:
        raise ArtMancerError(
            "mask_empty", f"{name} is black everywhere; paint what should change white."
        )


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
