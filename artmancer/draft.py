"""The draft editor: the three tasks without weights and without a GPU.

It serves to try the pack, to test all of it, and for small removals. What it makes is called
draft/... in the report.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import mask_ops
from .checks import draft_needs_reference
from .color import LUMINANCE, to_linear, to_srgb
from .conditions import Reference, place
from .editor import EditRequest
from .errors import ArtMancerError
from .fill import fill
from .images import to_uint8
from .progress import Progress
from .recipes import DEFAULT_RECIPE
from .region import Crop, bounds
from .variants import VARIANTS

_MOST_GAIN = 2.0  # of a channel: no lamp is further from white than that, but a red wall is
_RIM = (
    3  # pixels from an object's edge over which it passes from Poisson blending to its own colours
)


@dataclass(frozen=True)
class DraftEditor:
    """An Editor (see editor.py) that needs no weights.

    variant : "insertion", "removal" or "white_balance"
    strength : how much of the white balance is applied, 0..1
    """

    variant: str
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ArtMancerError(
                "invalid_request",
                f"The variant is {self.variant!r}; expected one of {', '.join(VARIANTS)}.",
            )

    @property
    def name(self) -> str:
        return f"draft/{self.variant}"

    @property
    def recipe(self) -> str:
        return DEFAULT_RECIPE

    @property
    def resolution(self) -> str:
        return "native"

    @property
    def adapters(self) -> tuple[str, ...]:
        return ()

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def edit(self, request: EditRequest, progress: Progress) -> Tensor:
        """See Editor.edit; of the request it takes the conditions and the seed.

        Raises
        ------
        ArtMancerError : reference_missing for an insertion without one: words cannot be drawn
            without weights
        """
        crop = request.conditions.crop
        if self.variant == "removal":
            return fill(crop.image, crop.mask, request.seed, progress)
        if self.variant == "insertion":
            reference = request.conditions.reference
            if reference is None:
                raise draft_needs_reference()
            progress(0, 1, "inserting")
            return insert(crop, reference)
        progress(0, 1, "balancing")
        return balance(crop.image, crop.mask, self.strength)


def insert(crop: Crop, reference: Reference) -> Tensor:
    """Fit the reference into the mask's box and blend it in (Perez, Gangnet and Blake, Poisson
    Image Editing, 2003).

    Poisson blending alone gives a whole object the tint of what lies around it. So it rules the
    object's rim only; inside, the object keeps its own colours.

    Parameters
    ----------
    crop : where the object goes
    reference : the object

    Returns
    -------
    IMAGE [B, h, w, 3]
    """
    inserted = crop.image.clone()
    for index, (one, where) in enumerate(zip(inserted, crop.mask, strict=True)):
        placed = place(
            reference, crop.region.size, bounds(where).clip(crop.region.image_in_crop(index))
        )
        shape = placed.mask[0]
        if shape.max() < 0.5:
            continue  # scaled down until nothing is left
        inside = (mask_ops.distance(1 - shape) / _RIM).clamp(max=1).mul(shape).unsqueeze(-1)
        blended = torch.lerp(_clone(placed.image[0], one, shape), placed.image[0], inside)
        one.copy_(torch.where(where.unsqueeze(-1) > 0, blended, one))
    return inserted


def _clone(source: Tensor, target: Tensor, shape: Tensor) -> Tensor:
    import cv2

    cut_out = np.pad((shape.numpy() >= 0.5).view(np.uint8) * 255, 2)
    y, x = np.nonzero(cut_out)
    if np.ptp(y) < 2 or np.ptp(x) < 2:
        return source  # nothing but rim, which OpenCV does not take
    # OpenCV wants the cut-out off the picture's border, and centres its bounding box on the point
    # it is given.
    padded = [
        cv2.copyMakeBorder(to_uint8(one).numpy(), 2, 2, 2, 2, cv2.BORDER_REPLICATE)
        for one in (source, target)
    ]
    center = (int(x.min() + x.max() + 1) // 2, int(y.min() + y.max() + 1) // 2)
    blended = cv2.seamlessClone(padded[0], padded[1], cut_out, center, cv2.NORMAL_CLONE)
    return torch.from_numpy(blended[2:-2, 2:-2].copy()).to(torch.float32).div_(255)


def balance(image: Tensor, mask: Tensor, strength: float) -> Tensor:
    """Remove a colour cast: shades of grey (Finlayson and Trezzi, 2004), a gain per channel in
    linear light.

    Parameters
    ----------
    image : IMAGE [B, h, w, 3]
    mask : MASK [B, h, w]; the cast is estimated from what it covers,
        and removed from all of the image
    strength : 0 = nothing changes, 1 = all of the cast goes

    Returns
    -------
    IMAGE [B, h, w, 3]; a grey keeps its luminance.
    """
    linear = to_linear(image)
    balanced = torch.empty_like(image)
    for one, colors, where in zip(balanced, linear, mask, strict=True):
        # What is clipped has lost its colour. The sixth power is what the paper found best.
        trusted = colors[(where >= 0.5) & (colors.amax(-1) < 0.99)]
        if len(trusted) == 0:
            trusted = colors.reshape(-1, 3)
        light = trusted.double().pow(6).mean(0).pow(1 / 6).float().clamp(min=1e-4)
        gains = (light.mean() / light).clamp(1 / _MOST_GAIN, _MOST_GAIN)
        gains = (gains * (LUMINANCE @ light) / (LUMINANCE @ (gains * light))) ** strength
        one.copy_(to_srgb((colors * gains).clamp(0, 1)))
    return balanced
