"""The pixels of a photo's file in the file's own depth, and an edit of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .metadata import Metadata

Pixels: TypeAlias = NDArray[Any]
"""uint8 or uint16 [H, W, channels]: gray, gray and alpha, RGB, or RGB and alpha; alpha 0 =
transparent.
"""

_STRIP_ROWS = 128
"""Rows that are compared at a time, so that no copy of a large photo is in floating point."""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in a gray (ITU-R BT.601), as Pillow's."""


@dataclass(frozen=True)
class JpegTables:
    """The compression of a JPEG.

    Attributes
    ----------
    quantization : 64 divisors for each table, 1..255, in Pillow's order
    subsampling : 0 = 4:4:4, 1 = 4:2:2, 2 = 4:2:0
    progressive : whether it is progressive
    """

    quantization: Sequence[Sequence[int]]
    subsampling: int
    progressive: bool

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any] | None) -> JpegTables | None:
        """Make it from what `as_dict` returned; None stays None."""
        return cls(**fields) if fields else None


@dataclass(frozen=True, eq=False)
class Picture:
    """The content of an image file, upright.

    Attributes
    ----------
    pixels : in the file's own depth
    profile : the color profile (ICC) of the values; None = sRGB
    metadata : what the file says about its photo
    tables : how it was compressed, where it is a JPEG
    notes : sentences about what could not be kept when it was read
    """

    pixels: Pixels
    profile: bytes | None = None
    metadata: Metadata = field(default_factory=Metadata)
    tables: JpegTables | None = None
    notes: tuple[str, ...] = ()

    @property
    def has_alpha(self) -> bool:
        """True where a pixel may be transparent."""
        return bool(self.pixels.shape[2] in (2, 4))

    @property
    def is_gray(self) -> bool:
        """True where there are no colors."""
        return bool(self.pixels.shape[2] < 3)

    @property
    def bits(self) -> int:
        """Bits of a channel, 8 or 16."""
        return int(self.pixels.dtype.itemsize) * 8

    def not_in_comfyui(self) -> str:
        """Return a sentence on what ComfyUI's IMAGE does not hold of it; empty: nothing."""
        said = self.metadata
        parts = {
            "transparency": self.has_alpha,
            "the color profile": self.profile,
            "EXIF": said.exif,
            "XMP": said.xmp,
            "IPTC": said.iptc,
        }
        lost = [name for name, is_there in parts.items() if is_there]
        notes = []
        if lost:
            notes.append(f"{', '.join(lost)} of this file: not in files that ComfyUI saves.")
        if self.bits > 8:
            notes.append("ComfyUI saves 8 bits a channel, and this file has more.")
        if notes:
            notes.append("`artmancer edit` and the gateway keep them.")
        return " ".join(notes)

    def colors(self) -> NDArray[np.float32]:
        """Return the colors [H, W, 3] in 0..1, laid over white where they are transparent."""
        return colors(self.pixels)

    def edited(self, image: NDArray[Any]) -> Picture:
        """Return the picture with an edit of its colors. A pixel that the edit left alone stays as
        it was, in all channels.

        A gray picture stays gray. Where the edit cannot be seen because the picture is transparent,
        it becomes as opaque as the colors of the edit over white need.

        Parameters
        ----------
        image : [H, W, 3], in 0..1, or uint8 or uint16; of another size than the picture, it
            replaces the picture, without transparency
        """
        if image.shape[:2] != self.pixels.shape[:2]:
            pixels = quantize(as_floats(image), self.pixels.dtype)
            return replace(self, pixels=_gray(pixels) if self.is_gray else pixels)
        pixels = self.pixels.copy()
        for rows in _strips(len(pixels)):
            before: NDArray[Any] = colors(self.pixels[rows])
            after = image[rows]
            if image.dtype.kind == "u":
                before = quantize(before, image.dtype)
            changed = (before != after).any(-1)
            if changed.any():
                own, new = pixels[rows], as_floats(after[changed])
                own[changed] = _as_pixels(new, own[changed], self.is_gray)
        return replace(self, pixels=pixels)

    def stripped(self) -> Picture:
        """Return it without what its file says about the photo, except the resolution."""
        return replace(self, metadata=self.metadata.stripped())


def colors(pixels: Pixels) -> NDArray[np.float32]:
    """Return the colors [..., 3] of pixels in 0..1, laid over white."""
    # Division gives exactly the floats of ComfyUI's own loader; multiplication by 1/255 does not.
    values = as_floats(pixels)
    rgb: NDArray[np.float32] = values[..., :3]
    if values.shape[-1] < 3:
        rgb = np.repeat(values[..., :1], 3, -1)
    if values.shape[-1] in (2, 4):
        alpha = values[..., -1:]
        rgb = rgb * alpha + (1 - alpha)
    return rgb


def as_floats(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return values of a depth as 0..1; floats stay as they are."""
    if values.dtype.kind != "u":
        return values.astype(np.float32, copy=False)
    floats: NDArray[np.float32] = values.astype(np.float32)
    floats /= np.float32(np.iinfo(values.dtype).max)
    return floats


def quantize(values: NDArray[np.float32], depth: np.dtype[Any]) -> Pixels:
    """Round values in 0..1 to uint8 or uint16. Values outside 0..1 are clipped."""
    import cv2

    highest = float(np.iinfo(depth).max)
    kind = cv2.CV_8U if depth.itemsize == 1 else cv2.CV_16U
    flat = np.ascontiguousarray(values, np.float32).reshape(-1, 1)
    # One pass over the image; in numpy it would be three.
    rounded: Pixels = cv2.addWeighted(flat, highest, flat, 0, 0, dtype=kind)
    return rounded.reshape(values.shape)


def eight_bits(pixels: Pixels) -> Pixels:
    """Round pixels to 8 bits a channel."""
    if pixels.dtype == np.uint8:
        return pixels
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _strips(height: int) -> Iterator[slice]:
    for top in range(0, height, _STRIP_ROWS):
        yield slice(top, top + _STRIP_ROWS)


def _gray(pixels: Pixels) -> Pixels:
    """Return the gray [..., 1] of RGB."""
    return quantize(as_floats(pixels) @ _LUMA[:, None], pixels.dtype)


def _as_pixels(colors: NDArray[np.float32], own: Pixels, is_gray: bool) -> Pixels:
    """Return colors [n, 3] as pixels of the same channels as the photo's own [n, channels].

    Over white, a color c of an opacity a shows as c * a + 1 - a. The smallest opacity that shows
    the edit's color is 1 - its darkest channel.
    """
    if is_gray:
        colors = colors @ _LUMA[:, None]
    if own.shape[-1] == colors.shape[-1]:
        return quantize(colors, own.dtype)
    alpha = np.maximum(as_floats(own[:, -1:]), 1 - colors.min(-1, keepdims=True))
    kept = quantize(alpha, own.dtype)
    alpha = as_floats(kept)
    behind = np.divide(colors - (1 - alpha), alpha, out=colors.copy(), where=alpha > 0)
    return np.concatenate([quantize(behind, own.dtype), kept], -1)
