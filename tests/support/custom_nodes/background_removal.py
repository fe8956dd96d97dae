"""A stand-in for ComfyUI's Load Background Removal Model."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


def _left_half(image: Tensor) -> Tensor:
    """Return MASK [B, H, W], white on the left half of an IMAGE."""
    mask = torch.zeros(image.shape[:3])
    mask[..., : image.shape[2] // 2] = 1
    return mask


class LeftHalf:
    """A background removal model that takes the left half for the subject."""

    RETURN_TYPES = ("BACKGROUND_REMOVAL",)
    FUNCTION = "load"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # ComfyUI's name
        return {"required": {}}

    def load(self) -> tuple[SimpleNamespace]:
        """Return an object with the method of ComfyUI's BackgroundRemovalModel."""
        return (SimpleNamespace(encode_image=_left_half),)


NODE_CLASS_MAPPINGS = {"Test_LeftHalf": LeftHalf}
