"""Crop an image to its mask at the resolution an editor works at, and stitch the edit back.

The cost follows the mask: only the search for the mask's bounding box reads the whole mask, and
only the copy of the result reads the whole image.

Words of this module:
- image: the photo as it came, [B, H, W, 3]
- box: the part of the image that the editor sees, in pixels of the image
- crop: the box, scaled to the size the editor works at, [B, h, w, 3]
- frame: the choice of the box: `crop`, around the mask, or `photo`, a square with the whole image
- padding: the part of a crop that shows no image: repeated edge pixels, or black in the frame photo
- window: any rectangle of whole pixels
- fade: the feathered mask of one image, inside the smallest window that holds it
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from . import mask_ops
from .checks import NEAR_BLACK, check_finite, check_image, check_mask, empty_mask
from .errors import ArtMancerError
from .options import ONE_MEGAPIXEL
from .registration import Registration, undo
from .tone import value_range

MULTIPLE = 32
"""Sides of a crop are multiples of this many pixels: Qwen-Image's VAE and transformer work on
patches of 16 pixels, in pairs.
"""

NATIVE_LIMIT = 1536
"""Longest side, in pixels, up to which a crop keeps the image's own resolution."""

LARGE_CROP = 4 * ONE_MEGAPIXEL
"""Largest area, in pixels, up to which a longer crop keeps it too, for an editor of any size. On
two cores PatchMatch removes a line of 4 pixels from such a crop in 7 s, in 0.7 GB of memory.
"""

LARGE_HOLE = ONE_MEGAPIXEL
"""Most masked pixels in such a crop: as many as in a crop of NATIVE_LIMIT whose mask is a square.
PatchMatch's time grows with them: 37 s here, 99 s for 1.8 megapixels.
"""

MIN_MARGIN = 32
"""Least padding around the mask's bounding box, in pixels of the image."""

_EDGE_POWER = 256
"""Power of the unmasked share of a crop's pixel that is its weight in the change around it: a pixel
with a small share of the mask hardly counts.
"""

_EDGE_BLUR = 1.0
"""Standard deviation, in pixels of the crop, of the Gaussian that averages the change there."""

_MIN_WEIGHT = 1e-5
"""Smallest weight there: between the parts of a mask, all pixels of a crop may be masked."""

_STRIP_ROWS = 128
"""Rows that are blended at a time, which keeps the memory beside the image small."""


class Window(NamedTuple):
    """A rectangle of an image, in pixels; bottom and right are exclusive."""

    top: int
    left: int
    bottom: int
    right: int

    def widen(self, pixels: int) -> "Window":
        """Return the window with this many pixels more on each side."""
        return Window(
            self.top - pixels, self.left - pixels, self.bottom + pixels, self.right + pixels
        )

    def clip(self, other: "Window") -> "Window":
        """Return the part of the window that lies in another."""
        return Window(
            max(self.top, other.top),
            max(self.left, other.left),
            min(self.bottom, other.bottom),
            min(self.right, other.right),
        )

    def join(self, other: "Window") -> "Window":
        """Return the smallest window that holds both."""
        return Window(
            min(self.top, other.top),
            min(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
        )

    def overlaps(self, other: "Window") -> bool:
        """Tell whether both have a pixel in common."""
        both = self.clip(other)
        return both.top < both.bottom and both.left < both.right

    def shift(self, down: int, right: int) -> "Window":
        """Return the window moved by this many pixels."""
        return Window(self.top + down, self.left + right, self.bottom + down, self.right + right)

    def view(self, image: Tensor) -> Tensor:
        """Return a view of [H, W, ...] inside the window; writing to it changes the image."""
        return image[self.top : self.bottom, self.left : self.right]

    def cut(self, images: Tensor) -> Tensor:
        """Return a view of [B, H, W, ...] inside the window, as `view` does."""
        return images[:, self.top : self.bottom, self.left : self.right]


class Fade(NamedTuple):
    """The feathered mask of one image, which is 0 outside its window.

    Attributes
    ----------
    window : Window of the image
    alpha : [h, w] in 0..1, how much of the edit shows
    mask : [h, w] in 0..1, the mask before it was feathered
    """

    window: Window
    alpha: Tensor
    mask: Tensor


@dataclass(frozen=True, eq=False)
class Region:
    """The place of a crop in its image, and the way back.

    All boxes have one size, so that a batch stays a batch. Where a box reaches past the image, the
    image's edge pixels are repeated, or the crop is black.

    Attributes
    ----------
    image_size : (height, width) of the image
    box_size : (height, width) of the box, in pixels of the image
    corners : (top, left) of the box for each image of the batch; negative past the edge
    size : (height, width) of the crop, multiples of 32, of exactly the box's aspect ratio
    feather : pixels of the image over which the edit fades out around the mask
    fades : the feathered mask of each image
    black_padding : True where the padding is black
    grow, context_pixels : see `crop`; for messages and the report
    """

    image_size: tuple[int, int]
    box_size: tuple[int, int]
    corners: tuple[tuple[int, int], ...]
    size: tuple[int, int]
    feather: int
    fades: tuple[Fade, ...] = ()
    black_padding: bool = False
    grow: int = 0
    context_pixels: int = 0

    @property
    def scale(self) -> float:
        """Pixels of the crop per pixel of the image."""
        return self.size[0] / self.box_size[0]

    def box_in_image(self, index: int) -> Window:
        """Return the part of a box that lies in the image, in pixels of the image."""
        box = Window(0, 0, *self.box_size).shift(*self.corners[index])
        return box.clip(Window(0, 0, *self.image_size))

    def image_in_crop(self, index: int) -> Window:
        """Return the part of a crop that shows the image, not its repeated edge, in pixels of
        the crop.
        """
        top, left = self.corners[index]
        edges = self.box_in_image(index).shift(-top, -left)
        window = Window(*(round(edge * self.scale) for edge in edges))
        # A strip that is scaled down far keeps a row and a column of pixels.
        return window._replace(
            top=min(window.top, self.size[0] - 1),
            left=min(window.left, self.size[1] - 1),
            bottom=max(window.bottom, min(window.top, self.size[0] - 1) + 1),
            right=max(window.right, min(window.left, self.size[1] - 1) + 1),
        )

    def shows_image(self) -> Tensor:
        """Return a bool [B, h, w]: True where a crop shows the image, not its repeated edge."""
        result = torch.zeros(len(self.corners), *self.size, dtype=torch.bool)
        for index, plane in enumerate(result):
            self.image_in_crop(index).view(plane).fill_(True)
        return result


class _CropPlanes(NamedTuple):
    """The fields of a Crop. A named tuple itself has no room for what is computed once."""

    image: Tensor
    mask: Tensor
    region: Region
    blended: Tensor | None = None


class Crop(_CropPlanes):
    """A crop and the way back; h x w = region.size.

    Attributes
    ----------
    image : IMAGE [B, h, w, 3]
    mask : MASK [B, h, w]
    region : Region
    blended : MASK [B, h, w], above 0 where a blend mask shows the edit; None: there is no such mask
    """

    @cached_property
    def feathered(self) -> Tensor:
        """The feathered mask, MASK [B, h, w]: above 0 where the edit is made."""
        return mask_ops.feather(self.mask, round(self.region.feather * self.region.scale))

    @property
    def shown(self) -> Tensor:
        """MASK [B, h, w], above 0 where the edit shows: the feathered mask, or a blend mask."""
        return self.feathered if self.blended is None else self.blended

    @property
    def is_hidden(self) -> bool:
        """True where a blend mask shows nothing of the edit."""
        return self.blended is not None and not self.blended.any()


def crop(
    image: Tensor,
    mask: Tensor,
    *,
    longest_side: int | None = None,
    pixels: int | None = None,
    context: float = 1.5,
    grow: int = 0,
    fill_holes: bool = False,
    feather: int = 16,
    frame: str = "crop",
    any_size: bool = False,
    box: Window | None = None,
    window: Window | None = None,
    context_mask: Tensor | None = None,
    context_pixels: int = 0,
) -> Crop:
    """Crop an image to the part that an edit needs to see.

    The box is the mask's bounding box with padding. Its crop has sides that are multiples of 32.
    They become so by a larger box (past the image's end its edge pixels are repeated), never by
    stretching. In the frame `photo`, the box is a square around the whole image instead, black past
    the image's end.

    Parameters
    ----------
    image : IMAGE [B, H, W, 3]
    mask : MASK [B, H, W], or [1, H, W] for all images of the batch; 1 = edit here. It is cleaned,
        see mask_ops.clean. A mask of a batch may be black: its image has the box of the first that
        is not, and a crop whose mask is 0
    longest_side : longest side of the crop in pixels, for an editor trained at that size; rounded
        to a multiple of 32
    pixels : largest area of the crop in pixels. With neither, the crop keeps the image's resolution
        as long as its longest side is at most NATIVE_LIMIT; see any_size
    context : size of the box over the size of the mask's bounding box, at least 1; there are always
        MIN_MARGIN pixels around the mask
    grow : pixels by which the mask is dilated
    fill_holes : fill the holes that the mask encloses
    feather : pixels over which the edit fades into the image, outwards from the mask
    frame : one of options.FRAMES; context, context_mask and context_pixels are for `crop` only
    context_mask : MASK [B or 1, H, W] of what the box has to hold too; black: nothing
    context_pixels : pixels of the image on each side of the mask, in place of `context`; 0 = off
    any_size : the editor takes crops of any size: without `longest_side` and `pixels`, a crop
        around a thin or small mask keeps the image's resolution up to an area of LARGE_CROP
    box : the bounding box that the crop is made around, for all images; None: the mask's. Of a mask
        that reaches past the crop, the part inside is edited
    window : the part of the image that the mask is of, [B or 1, h, w] of this window; around it,
        nothing is masked. None: the whole image

    Raises
    ------
    ArtMancerError : invalid_request (shapes that do not match, NaN), mask_empty where all masks are
        black
    """
    check_image(image)
    window = window or Window(0, 0, *image.shape[1:3])
    check_mask(mask, window.cut(image))
    if context_mask is not None:
        check_mask(context_mask, image)
    if box is None:
        boxes = mask_boxes(mask, grow, len(image))
        boxes = [around.shift(window.top, window.left) for around in boxes]
    else:
        boxes = [box.widen(grow)] * len(image)
    region = plan(
        boxes,
        image.shape[1:3],
        longest_side=longest_side,
        pixels=pixels,
        context=context,
        feather=feather,
        frame=frame,
        context_mask=context_mask,
        context_pixels=context_pixels,
        large=any_size and small_hole(mask, boxes, grow, fill_holes, window),
    )
    pixels_in_box = _extract(image, region)
    check_finite(pixels_in_box, "image")
    hole = mask_ops.clean(_extract_mask(mask.expand(len(image), -1, -1), region, window))
    hole = mask_ops.grow(mask_ops.fill_holes(hole) if fill_holes else hole, grow)
    fades = []
    for index, (plane, around) in enumerate(zip(hole, boxes, strict=True)):
        top, left = region.corners[index]
        # A part of a mask may reach past the box that its crop is made around.
        inside = _find_bounds(plane, "The mask", 0.0) if box else None
        fades.append(_fade(plane, inside.shift(top, left) if inside else around, index, region))
    return Crop(
        _blacken(resample(pixels_in_box, region.size), region),
        _blacken(resample(hole.unsqueeze(-1), region.size, "bilinear"), region)[..., 0],
        replace(region, fades=tuple(fades), grow=grow),
    )


def plan(
    boxes: Sequence[Window],
    image_size: Sequence[int],
    *,
    longest_side: int | None = None,
    pixels: int | None = None,
    context: float = 1.5,
    feather: int = 16,
    frame: str = "crop",
    context_mask: Tensor | None = None,
    context_pixels: int = 0,
    large: bool = False,
) -> Region:
    """Return the region of a crop, without fades.

    Parameters
    ----------
    boxes : bounding box of the dilated mask for each image
    image_size : (height, width) of the images
    large : the crop may be as large as LARGE_CROP
    longest_side, pixels, context, feather, frame, context_mask, context_pixels : see `crop`
    """
    height, width = image_size
    if frame == "photo":
        size, box_size = _square(max(height, width), longest_side, pixels)
    else:
        margin = max(MIN_MARGIN, feather, context_pixels)
        context = 1.0 if context_pixels else context
        if context_mask is not None:
            boxes = _join_context(boxes, context_mask, context, margin, (height, width))
            context, margin = 1.0, 0
        size, box_size = _plan(
            _needed([box.bottom - box.top for box in boxes], height, context, margin),
            _needed([box.right - box.left for box in boxes], width, context, margin),
            longest_side,
            pixels,
            LARGE_CROP if large else 0,
        )
    corners = tuple(
        (
            _start(box.top, box.bottom, box_size[0], height),
            _start(box.left, box.right, box_size[1], width),
        )
        for box in boxes
    )
    black_padding = frame == "photo"
    return Region(
        (height, width),
        box_size,
        corners,
        size,
        feather,
        black_padding=black_padding,
        context_pixels=context_pixels,
    )


def crop_like(image: Tensor, region: Region, name: str = "image") -> Tensor:
    """Crop another image of the same size to the same region.

    Parameters
    ----------
    image : IMAGE [B, H, W, 3]
    name : what a message calls it

    Returns
    -------
    IMAGE [B, h, w, 3], h x w = region.size

    Raises
    ------
    ArtMancerError : invalid_request where it has another size or batch, or is not finite
    """
    expected = (len(region.corners), *region.image_size, 3)
    if image.shape != expected:
        raise ArtMancerError(
            "invalid_request",
            f"The {name} has shape {list(image.shape)}; expected {list(expected)}, "
            "the shape of the image.",
        )
    pixels = _extract(image, region)
    check_finite(pixels, name)
    return _blacken(resample(pixels, region.size), region)


def repeat_edge(crop: Tensor, region: Region) -> Tensor:
    """Return an IMAGE [B, h, w, 3] of the crop with the image's edge pixels repeated in its black
    padding; the same IMAGE where the padding is not black.
    """
    if not region.black_padding:
        return crop
    # The box holds the whole image, so all windows of a batch are equal.
    window = region.image_in_crop(0)
    rows = torch.arange(crop.shape[1]).clamp(window.top, window.bottom - 1)
    columns = torch.arange(crop.shape[2]).clamp(window.left, window.right - 1)
    return crop[:, rows][:, :, columns]


def stitch(
    edited: Tensor,
    image: Tensor,
    region: Region,
    before: Tensor | None = None,
    *,
    add_change: bool = False,
    registrations: Sequence[Registration | None] = (),
) -> Tensor:
    """Paste an edited crop back into the image it came from.

    A crop that was resampled has lost details of the image. Around the mask, where the edit fades
    out, the change of the crop is therefore added to the image's own pixels; the edit itself is
    pasted inside the mask only.

    Parameters
    ----------
    edited : IMAGE [B, h, w, 3], the crop after the edit, h x w = region.size, finite
    image : IMAGE [B, H, W, 3], the untouched original
    region : as `crop` returned it; it holds the mask and the feathered mask
    before : IMAGE [B, h, w, 3], the crop before the edit; None: the edit itself is pasted around
        the mask, too
    add_change : add the change around the mask also where the crop was not resampled: the image is
        not the one that the crop was cut from
    registrations : for each image, how `edited` was moved back; see `enlarge`

    Returns
    -------
    IMAGE [B, H, W, 3]; where the feathered mask is 0, equal to `image` bit for bit. An unchanged
    crop gives `image` exactly where nothing was resampled, and with `before` also where the mask
    is 0; else within 2 of 255 levels for content without details finer than 40 of its pixels.

    Raises
    ------
    ValueError : the crop's size is not the region's
    """
    if edited.shape[:3] != (len(region.corners), *region.size):
        raise ValueError(
            f"stitch: the edited crop is {list(edited.shape)}, the region's is {region.size}."
        )
    edited = repeat_edge(edited, region)
    changes = None
    if before is not None and (add_change or region.size != region.box_size):
        changes = edited - repeat_edge(before, region)
    result = image.clone()
    for index, (fade, (top, left)) in enumerate(zip(region.fades, region.corners, strict=True)):
        inside, target = fade.window.shift(-top, -left), fade.window.view(result[index])
        registration = registrations[index] if registrations else None
        patch = enlarge(edited[index], inside, region, registration).to(image)
        if changes is None:
            for rows in _strips(target):
                _blend(target[rows], patch[rows], fade.alpha[rows])
        else:
            change = _enlarge_change(changes[index], fade.mask, inside, region).to(image)
            _add_change(target, change, patch, fade)
    return result


def enlarge(
    edited: Tensor, window: Window, region: Region, registration: Registration | None = None
) -> Tensor:
    """Return the part of an edited crop in a window of its box, at the image's resolution.

    An edit that was moved back is resampled once, from its own pixels as they came: enlarged after
    it was moved back, it would be resampled twice. Only the change of its colors since is enlarged.

    Parameters
    ----------
    edited : [h, w, 3], h x w = region.size, with the image's edge repeated
    window : Window of the box, in pixels of the image
    registration : how the edit was moved back, before its colors were changed

    Returns
    -------
    [m, n, 3]
    """
    if registration is None or registration.came is None or region.size == region.box_size:
        return window.view(resample(edited.unsqueeze(0), region.box_size)[0])
    recolored = (edited - registration.image).unsqueeze(0)
    recolored = window.view(_interpolate(recolored, region.box_size, "bicubic")[0])
    moved = undo(registration.came, registration.similarity, region.scale, window)
    return (moved + recolored).clamp_(*value_range(edited))


def in_boxes(region: Region) -> Region:
    """Return the region in the images that `cut_boxes` returns: what the boxes show of the images.
    They have one size, because a box reaches past the image only where it is larger.
    """
    windows = [region.box_in_image(index) for index in range(len(region.corners))]
    corners = tuple(
        (top - window.top, left - window.left)
        for (top, left), window in zip(region.corners, windows, strict=True)
    )
    # A region that is only planned has no fades.
    fades = tuple(
        fade._replace(window=fade.window.shift(-window.top, -window.left))
        for fade, window in zip(region.fades, windows, strict=False)
    )
    size = (windows[0].bottom - windows[0].top, windows[0].right - windows[0].left)
    return replace(region, image_size=size, corners=corners, fades=fades)


def cut_boxes(image: Tensor, region: Region) -> Tensor:
    """Return the parts [B, h, w, 3] of an IMAGE [B, H, W, 3] that the boxes show: a view where all
    boxes lie in one place.
    """
    windows = [region.box_in_image(index) for index in range(len(image))]
    if windows.count(windows[0]) == len(windows):
        return windows[0].cut(image)
    return torch.stack([window.view(plane) for window, plane in zip(windows, image, strict=True)])


def paste_boxes(image: Tensor, parts: Tensor, region: Region) -> None:
    """Write the parts that `cut_boxes` returned into the image, in place."""
    for index, (plane, part) in enumerate(zip(image, parts, strict=True)):
        region.box_in_image(index).view(plane).copy_(part)


def widen(region: Region, extra: Tensor) -> Region:
    """Return the region with more of the crop showing: its fades, joined with `extra`, which is
    feathered too, as far as the crop reaches.

    Parameters
    ----------
    extra : MASK [B, h, w], h x w = region.size
    """
    boxes = resample(extra.unsqueeze(-1), region.box_size, "bilinear")[..., 0]
    fades = []
    for index, (box, fade, (top, left)) in enumerate(
        zip(boxes, region.fades, region.corners, strict=True)
    ):
        window = region.box_in_image(index)
        visible = window.shift(-top, -left).view(box)
        if visible.any():
            fade = _union(fade, _extra_fade(visible, fade, window, region.feather))
        fades.append(fade)
    return replace(region, fades=tuple(fades))


def blend_inside(region: Region, mask: Tensor) -> Region:
    """Return the region with other fades: those of this mask, as far as the crop reaches. They say
    where the edit shows, wherever it was made. At the sides of the crop that lie inside the image,
    the mask fades out too.

    Parameters
    ----------
    mask : MASK [B or 1, H, W] of the image; it is cleaned and feathered as the mask of the crop is

    Raises
    ------
    ArtMancerError : mask_empty where it is black everywhere
    """
    if not bool((mask > NEAR_BLACK).any()):
        raise empty_mask(float(mask.max()), "The blend mask")
    planes = mask_ops.clean(mask).expand(len(region.corners), -1, -1)
    fades = []
    for index, plane in enumerate(planes):
        window = region.box_in_image(index)
        alpha = mask_ops.feather(window.view(plane).unsqueeze(0), region.feather)[0]
        ramp = _side_ramp(window, region)
        fades.append(Fade(window, alpha * ramp, window.view(plane) * ramp))
    return replace(region, fades=tuple(fades))


def shown_in_crop(region: Region) -> Tensor:
    """Return the fades at the size of the crop, MASK [B, h, w], h x w = region.size."""
    boxes = torch.zeros(len(region.corners), *region.box_size)
    for box, fade, (top, left) in zip(boxes, region.fades, region.corners, strict=True):
        fade.window.shift(-top, -left).view(box).copy_(fade.alpha)
    return resample(boxes.unsqueeze(-1), region.size, "bilinear")[..., 0]


def _side_ramp(window: Window, region: Region) -> Tensor:
    """Return a ramp [h, w] over a window: above 0, and 1 except near its sides inside the image,
    where it falls to 0 just past the window.
    """
    height, width = region.image_size
    rows, columns = (
        _ramp(start, end, limit, region.feather)
        for start, end, limit in (
            (window.top, window.bottom, height),
            (window.left, window.right, width),
        )
    )
    return rows.unsqueeze(1) * columns


def _ramp(start: int, end: int, limit: int, feather: int) -> Tensor:
    """Return the ramp [n] of the pixels from start to end of an image with `limit` pixels."""
    near = torch.ones(end - start)
    # Without a feather the distances are infinite.
    distances = torch.arange(1, end - start + 1) / feather
    if start > 0:
        near = torch.minimum(near, distances)
    if end < limit:
        near = torch.minimum(near, distances.flip(0))
    # Smoothstep, as in mask_ops.feather.
    return near.square() * (3 - 2 * near)


def _extra_fade(extra: Tensor, fade: Fade, window: Window, feather: int) -> Fade:
    """Return the fade of `extra` [h, w], a mask of this window of the image."""
    alpha = torch.zeros_like(extra)
    fade.window.shift(-window.top, -window.left).view(alpha).copy_(fade.alpha)
    # `extra` starts where the mask has faded out. Two half-transparent fades side by side would
    # leave a stripe of the old image between them.
    between = mask_ops.grow(extra.unsqueeze(0), feather)[0] * (alpha > 0)
    extra = torch.maximum(extra, between)
    around = bounds(extra).shift(window.top, window.left).widen(feather).clip(window)
    inside = around.shift(-window.top, -window.left).view(extra)
    return Fade(around, mask_ops.feather(inside.unsqueeze(0), feather)[0], inside)


def uncrop(mask: Tensor, region: Region) -> Tensor:
    """Place a mask of the crop in the image.

    Parameters
    ----------
    mask : MASK [B, h, w], h x w = region.size

    Returns
    -------
    MASK [B, H, W], 0 outside the box
    """
    result = torch.zeros(len(mask), *region.image_size)
    boxes = resample(mask.unsqueeze(-1), region.box_size, "bilinear")[..., 0]
    for index, (top, left) in enumerate(region.corners):
        window = region.box_in_image(index)
        window.view(result[index]).copy_(window.shift(-top, -left).view(boxes[index]))
    return result


def recolor(changes: Sequence[Callable[[Tensor], Tensor]], image: Tensor, region: Region) -> Tensor:
    """Change the colors of the image itself, inside the feathered mask, at full resolution.

    Parameters
    ----------
    changes : a function for each image of the batch, from old colors [..., 3] in 0..1 to new ones
    image, region : as for `stitch`

    Returns
    -------
    IMAGE [B, H, W, 3]; where the feathered mask is 0, equal to `image` bit for bit
    """
    result = image.clone()
    for plane, change, (window, alpha, _) in zip(result, changes, region.fades, strict=True):
        target = window.view(plane)
        for rows in _strips(target):
            _blend(target[rows], change(target[rows]), alpha[rows])
    return result


def outside_error(result: Tensor, image: Tensor, region: Region) -> Tensor:
    """Return the mean square error between two images where the feathered mask is 0.

    Only the window of each fade is read; nothing else is ever written to.

    Returns
    -------
    scalar; NaN where the feathered mask is 0 nowhere
    """
    total, count = torch.zeros(()), torch.zeros(())
    for new, old, (window, alpha, _) in zip(result, image, region.fades, strict=True):
        new, old = window.view(new), window.view(old)
        for rows in _strips(alpha):
            outside = alpha[rows] == 0
            total += (new[rows] - old[rows])[outside].square().sum()
            count += outside.sum() * 3
    return total / count


def bounds(mask: Tensor, name: str = "The mask", above: float = 0.0) -> Window:
    """Return the bounding box of the values above a threshold in a mask [H, W].

    Raises
    ------
    ArtMancerError : mask_empty, or invalid_request where the mask holds NaN
    """
    box = _find_bounds(mask, name, above)
    if box is None:
        raise empty_mask(float(mask.max()), name)
    return box


def _find_bounds(mask: Tensor, name: str, above: float) -> Window | None:
    """Return the bounding box as `bounds` does; None for an empty mask."""
    rows = mask.amax(1)
    if rows.isnan().any():
        raise ArtMancerError(
            "invalid_request",
            f"{name} holds NaN values; expected 0..1. Check the node it comes from.",
        )
    filled = torch.nonzero(rows > above)
    if len(filled) == 0:
        return None
    top, bottom = int(filled[0]), int(filled[-1]) + 1
    columns = torch.nonzero(mask[top:bottom].amax(0) > above)
    return Window(top, int(columns[0]), bottom, int(columns[-1]) + 1)


def resample(image: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Resize [B, H, W, C] to this (height, width), antialiased; values stay in their range, or in
    0..1 where that is larger.
    """
    if tuple(image.shape[1:3]) == size:
        return image
    return _interpolate(image, size, mode).clamp(*value_range(image))


def _interpolate(image: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Resize [B, H, W, C] to this (height, width), antialiased. Bicubic values may overshoot."""
    planes = functional.interpolate(image.permute(0, 3, 1, 2), size, mode=mode, antialias=True)
    return planes.permute(0, 2, 3, 1)


def mask_boxes(mask: Tensor, grow: int, count: int) -> list[Window]:
    """Return the bounding box of the mask of each of `count` images, with `grow` pixels more. For
    an empty mask of a batch it is that of the first that is not empty.
    """
    if len(mask) == 1:
        return [bounds(mask[0], above=NEAR_BLACK).widen(grow)] * count
    boxes = [
        _find_bounds(plane, f"Mask {number} of the batch", NEAR_BLACK)
        for number, plane in enumerate(mask, 1)
    ]
    first = next(filter(None, boxes), None)
    if first is None:
        raise empty_mask(float(mask.max()), "Every mask of the batch")
    return [(box or first).widen(grow) for box in boxes]


def _join_context(
    boxes: Sequence[Window],
    context_mask: Tensor,
    context: float,
    margin: int,
    image_size: tuple[int, int],
) -> list[Window]:
    """Return the mask's boxes with their context, each joined with the box of its context mask."""
    joined = []
    for box, plane in zip(boxes, context_mask.expand(len(boxes), -1, -1), strict=True):
        height, width = (
            _needed([length], limit, context, margin)
            for length, limit in zip(
                (box.bottom - box.top, box.right - box.left), image_size, strict=True
            )
        )
        top = _start(box.top, box.bottom, height, image_size[0])
        left = _start(box.left, box.right, width, image_size[1])
        around = Window(top, left, top + height, left + width)
        other = _find_bounds(plane, "The context mask", NEAR_BLACK)
        joined.append(around if other is None else around.join(other))
    return joined


def _needed(lengths: list[int], limit: int, context: float, margin: int) -> int:
    """Return the side of a box that holds masks of these lengths with their context, in pixels; at
    most the image's side.
    """
    return max(
        min(math.ceil(max(length * context, length + 2 * margin)), limit) for length in lengths
    )


def small_hole(
    mask: Tensor,
    boxes: list[Window],
    grow: int,
    fill_holes: bool,
    window: Window | None = None,
) -> bool:
    """Return whether at most LARGE_HOLE pixels of each mask are to be edited. Its bounding box is
    in the box of the same index; for `window` see `crop`.
    """
    window = window or Window(0, 0, *mask.shape[1:])
    for plane, box in zip(mask, boxes, strict=False):
        inside = box.clip(window).shift(-window.top, -window.left)
        # The mask grows past its window.
        hole = mask_ops.clean(functional.pad(inside.view(plane), [grow] * 4).unsqueeze(0))
        hole = mask_ops.grow(mask_ops.fill_holes(hole) if fill_holes else hole, grow)
        if int(hole.count_nonzero()) > LARGE_HOLE:
            return False
    return True


def _plan(
    height: int, width: int, longest_side: int | None, pixels: int | None, native_area: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the crop's size and the box's size: of one aspect ratio, the box at least
    height x width.

    Parameters
    ----------
    native_area : area up to which a crop longer than NATIVE_LIMIT is not scaled
    """
    native = (_round_up(height), _round_up(width))
    if pixels is not None:
        scale = math.sqrt(pixels / (height * width))
        size = (_round_down(height * scale), _round_down(width * scale))
    elif longest_side is None and (max(native) <= NATIVE_LIMIT or math.prod(native) <= native_area):
        return native, native
    else:
        longest_side = _round_down(longest_side or NATIVE_LIMIT)
        scale = longest_side / max(height, width)
        size = (
            min(_round_up(height * scale), longest_side),
            min(_round_up(width * scale), longest_side),
        )
    # The smallest whole multiple of the size's ratio in lowest terms that holds the box needs no
    # stretching at all.
    divisor = math.gcd(*size)
    ratio = (size[0] // divisor, size[1] // divisor)
    times = max(math.ceil(height / ratio[0]), math.ceil(width / ratio[1]))
    return size, (ratio[0] * times, ratio[1] * times)


def _square(
    side: int, longest_side: int | None, pixels: int | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the size of a square crop, and of the square box that holds an image of this longest
    side.
    """
    if pixels is not None:
        crop_side = _round_down(math.sqrt(pixels))
    elif longest_side is not None:
        crop_side = _round_down(longest_side)
    else:
        crop_side = _round_up(side)
        if crop_side <= NATIVE_LIMIT:
            return (crop_side, crop_side), (crop_side, crop_side)
        crop_side = NATIVE_LIMIT
    return (crop_side, crop_side), (side, side)


def _round_up(value: float) -> int:
    return max(1, math.ceil(value / MULTIPLE)) * MULTIPLE


def _round_down(value: float) -> int:
    return max(1, math.floor(value / MULTIPLE)) * MULTIPLE


def _start(start: int, end: int, size: int, limit: int) -> int:
    """Return the first pixel of a box of this size, centered on [start, end) and moved into
    [0, limit) where it fits; else centered on [0, limit).
    """
    if size >= limit:
        return -((size - limit) // 2)
    return min(max((start + end - size) // 2, 0), limit - size)


def _extract(images: Tensor, region: Region) -> Tensor:
    """Return the boxes [B, h, w, ...] of images [B, H, W, ...]; past an image's end its edge
    pixels are repeated.
    """
    boxes = []
    for image, corner in zip(images, region.corners, strict=True):
        for dim, (start, size, limit) in enumerate(
            zip(corner, region.box_size, region.image_size, strict=True)
        ):
            if start >= 0 and start + size <= limit:
                image = image.narrow(dim, start, size)
            else:
                index = torch.arange(start, start + size, device=image.device)
                image = image.index_select(dim, index.clamp_(0, limit - 1))
        boxes.append(image)
    return torch.stack(boxes)


def _extract_mask(masks: Tensor, region: Region, window: Window) -> Tensor:
    """Return the boxes [B, h, w] of masks of a window of their images, as `_extract` does."""
    planes = []
    for index, mask in enumerate(masks):
        box = region.box_in_image(index)
        plane = mask.new_zeros(box.bottom - box.top, box.right - box.left)
        if box.overlaps(window):
            both = box.clip(window)
            source = both.shift(-window.top, -window.left).view(mask)
            both.shift(-box.top, -box.left).view(plane).copy_(source)
        planes.append(plane)
    return _extract(torch.stack(planes), in_boxes(region))


def _blacken(crop: Tensor, region: Region) -> Tensor:
    """Return [B, h, w, C] of the crop with black padding, where the region has it."""
    if not region.black_padding:
        return crop
    return crop * region.shows_image().unsqueeze(-1).to(crop)


def _fade(hole: Tensor, box: Window, index: int, region: Region) -> Fade:
    """Return the feathered mask of one image around `box`, in its pixels, from the mask [h, w] of
    the crop's box.
    """
    top, left = region.corners[index]
    window = box.widen(region.feather).clip(region.box_in_image(index))
    inside = window.shift(-top, -left).view(hole)
    # A copy, so that the mask of the box is not kept.
    return Fade(window, mask_ops.feather(inside.unsqueeze(0), region.feather)[0], inside.clone())


def _union(first: Fade, second: Fade) -> Fade:
    window = first.window.join(second.window)
    alpha, mask = torch.zeros(2, window.bottom - window.top, window.right - window.left)
    for fade in (first, second):
        inside = fade.window.shift(-window.top, -window.left)
        for whole, part in ((alpha, fade.alpha), (mask, fade.mask)):
            target = inside.view(whole)
            torch.maximum(target, part, out=target)
    return Fade(window, alpha, mask)


def _enlarge_change(change: Tensor, mask: Tensor, inside: Window, region: Region) -> Tensor:
    """Enlarge the change of a crop, for the pixels around its mask.

    A pixel of the crop at the mask's edge mixes both sides of it. It takes the change of the
    pixels around it that lie outside, so that what was removed leaves no rim in its surroundings.

    Parameters
    ----------
    change : [h, w, 3], the crop after the edit minus the crop before it
    mask : [m, n], the mask inside the window
    inside : window of the box, in pixels of the image

    Returns
    -------
    [m, n, 3]; only what is around the mask is of use
    """
    import cv2

    box = torch.zeros(region.box_size)
    inside.view(box).copy_(mask)
    covered = _interpolate(box[None, ..., None], region.size, "bilinear")[0]
    weight = (1 - covered.clamp(0, 1)) ** _EDGE_POWER + _MIN_WEIGHT
    planes = torch.cat([change * weight, weight], -1).numpy()
    near = torch.from_numpy(cv2.GaussianBlur(planes, (0, 0), _EDGE_BLUR))
    change = torch.lerp(near[..., :3] / near[..., 3:], change, weight.clamp(max=1))
    return inside.view(_interpolate(change.unsqueeze(0), region.box_size, "bilinear")[0])


def _add_change(target: Tensor, change: Tensor, patch: Tensor, fade: Fade) -> None:
    """Add the change around the mask to the target, and paste the patch inside the mask, all
    [h, w, 3], in place. Values stay in the range of both.
    """
    low, high = value_range(target, patch)
    for rows in _strips(target):
        photo, inside = target[rows], fade.mask[rows].unsqueeze(-1).to(target)
        step = torch.lerp(change[rows], patch[rows] - photo, inside)
        photo.addcmul_(step, fade.alpha[rows].unsqueeze(-1).to(target)).clamp_(low, high)


def _strips(image: Tensor) -> Iterator[slice]:
    for start in range(0, len(image), _STRIP_ROWS):
        yield slice(start, start + _STRIP_ROWS)


def _blend(base: Tensor, patch: Tensor, alpha: Tensor) -> None:
    """Blend patch over base, both [h, w, 3], in place."""
    # An alpha of three channels, because lerp is ten times slower where it has to broadcast.
    base.lerp_(patch, alpha.unsqueeze(-1).expand(-1, -1, 3).contiguous())
