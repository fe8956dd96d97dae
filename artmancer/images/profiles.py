"""Color profiles (ICC): which colors the values of a file mean."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from PIL import ImageCms

_MODES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}
"""Pillow's modes, by a profile's color space."""

_BLACK_POINT_COMPENSATION = 0x2000
"""Flag of Little CMS. Pillow before 10.3 has no name for it."""

_STEPS = 9
"""Values of each channel on which two profiles are compared."""


def color_space(profile: bytes | None) -> str:
    """Return the color space of a profile, such as "RGB", "GRAY" or "CMYK"; "RGB" for None, which
    is sRGB, and "" for bytes that are no profile.
    """
    if profile is None:
        return "RGB"
    # In a profile (ICC.1:2022), the color space has a fixed place.
    return profile[16:20].decode("latin-1").strip() if _open(profile) else ""


def to_rgb(image: Image.Image, source: bytes | None, target: bytes | None) -> Image.Image | None:
    """Convert an image from one profile to another: relative colorimetric, with black point
    compensation.

    Parameters
    ----------
    image : in the mode L, RGB or CMYK
    source : its profile; None: sRGB
    target : a profile of RGB; None: sRGB

    Returns
    -------
    An image in RGB; None where a profile is broken, or is one for other colors than the image's
    """
    if _MODES.get(color_space(source)) != image.mode or color_space(target) != "RGB":
        return None
    if (transform := _transform(source, target, image.mode)) is None:
        return None
    if image.mode == "RGB" and _changes_nothing(transform):
        return image
    return _apply(transform, image)


@lru_cache(maxsize=8)
def _transform(source: bytes | None, target: bytes | None, mode: str) -> Any:
    """Return a transform; None where the profiles have none."""
    from PIL import ImageCms

    opened_source, opened_target = _open(source), _open(target)
    if opened_source is None or opened_target is None:
        return None
    try:
        return ImageCms.buildTransform(
            opened_source,
            opened_target,
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            # Newer Pillows annotate their own names of flags, which are numbers too.
            flags=_BLACK_POINT_COMPENSATION,  # type: ignore[arg-type]
        )
    except ImageCms.PyCMSError:
        return None


def _changes_nothing(transform: Any) -> bool:
    """Tell whether a transform changes no color by more than a level: there are many profiles of
    sRGB, and to convert between them would only add noise.
    """
    steps = np.linspace(0, 255, _STEPS).astype(np.uint8)
    grid: NDArray[np.uint8] = np.stack(np.meshgrid(steps, steps, steps), -1)
    grid = grid.reshape(1, -1, 3)
    changed = np.asarray(_apply(transform, Image.fromarray(grid)))
    return bool(np.abs(changed.astype(int) - grid).max() <= 1)


def _apply(transform: Any, image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    converted = ImageCms.applyTransform(image, transform)
    # None only where it was to change the image itself.
    assert converted is not None  # noqa: S101
    return converted


@lru_cache(maxsize=8)
def _open(profile: bytes | None) -> ImageCms.ImageCmsProfile | None:
    """Open a profile; None: it is broken. The argument None is sRGB."""
    from PIL import ImageCms

    if profile is None:
        return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (OSError, ImageCms.PyCMSError):
        return None
