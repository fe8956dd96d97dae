"""A verdict on an edit: good, worth a look, or failed, with reasons.

Everything is measured in the crop, near the mask, so that the cost follows the mask. The thresholds
were set by benchmarks/verdict.py on half of its photos; its table tells how often each reason is
right on the other half.

Words of this module:
- rim: the edge of the mask
- signed distance: pixels to the rim, positive outside the mask, negative inside
- sector: the part of the crop in one of a few directions from the mask's center
"""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import mask_ops
from .color import sampling_step

GOOD, LOOK, FAILED = "good", "look", "failed"
"""The verdicts, from the best to the worst."""

VERDICTS = (GOOD, LOOK, FAILED)

# Each threshold lies between the figures of edits with a clear fault and those without it, on the
# photos of benchmarks/verdict.py that are for choosing; the comments name both.

# Without a change 0 to 0.002, except where tinting clipped colors; other edits from 0.39 (99 %).
MIN_CHANGED = 0.01
"""Least share of the mask that an edit changes visibly. Below it the edit failed."""

# One color 0 to 0.3 levels; other edits from 5.2, the truth of a dark sky included.
MIN_VARIATION = 1 / 255
"""Least standard deviation of the edit inside the mask, beside surroundings that vary."""

# Masks lighter, darker or tinted by 16 levels from 6.3 levels; edits without a seam up to 2.2.
MAX_SEAM = 4 / 255
"""Largest step of the colors at the rim beyond what is usual around; see `_seam`."""

# Edits lighter by 14 levels have 14; edits without a jump up to 4 (98 %) and 8 levels.
MAX_JUMP = 10 / 255
"""Largest difference of colors just outside the mask, in most sectors."""

# A blur that takes 4 levels of detail leaves 0.03 to 0.8, mostly under 0.44; others from 0.59.
MIN_SHARPNESS = 0.58
"""Least sharpness of the edit, as a share of that of its surroundings."""

# The smallest drift that Report shows in red.
MAX_SHIFT = 0.5
"""Largest shift of an edit, in pixels of the crop, that need not be put back."""

# A stain or shadow of at least 3 % of the crop from 0.031; other edits up to 0.011 (98 %).
MAX_OUTSIDE = 0.025
"""Largest share of the crop that the edit changed outside what is shown of it."""

# Objects left by 40 % or more from 0.5; half an object 0.2 to 0.7; removed objects up to 0.34.
MAX_LIKENESS = 0.4
"""Largest correlation of the gradients of a removal with those of the input, inside the mask."""

# 30 to 60 % of an object left from 0.18 (97 %); removed objects, also in loose masks, up to 0.17
# (99 %).
MAX_LEFT = 0.2
"""Largest share of the object that a removal kept; see `_left`."""

# Overexposed photos from 0.1; others up to 0.03.
MAX_CLIPPED = 0.04
"""Largest share of pixels that a white balance clips."""

# Without a change up to 0.3 levels, with one from 6.6.
MIN_MOVED = 2 / 255
"""Least mean change of colors of a white balance."""

# Photos of one color up to 0.01, others without a cast from 0.027, among those of
# benchmarks/balance.py that are for choosing.
MIN_GRAY = 0.02
"""Least share of pixels that are nearly gray in a photo whose own color can be told."""

# Another picture up to 0.08; the photo itself from 0.87, also overexposed.
MIN_STRUCTURE = 0.5
"""Least correlation of the gradients of a white balance with those of the input."""

_NEARLY_GRAY = 0.08
"""Largest difference of the channels of a gray, as a share of the brightest."""

_TOO_DARK = 20 / 255
"""Value up to which a pixel is too dark to tell a gray."""

_VISIBLE = 6 / 255
"""Difference that is visible, after a blur."""

_NOISE = 1.5 / 255
"""Gradient of noise that is not visible, which keeps quotients of small gradients small."""

_FLAT = 0.5 / 255
"""The same for second derivatives."""

_VARYING = 4 / 255
"""Standard deviation of surroundings that vary."""

_SURROUNDINGS = 24
"""Pixels around the mask that are looked at: the ring, and the reach of the filters."""

_STRIPS = 8
"""Number of strips, half of them inside the mask."""

_FEW = 8
"""Fewest pixels of a strip in a sector whose colors are averaged."""

_RING = 16
"""Width of the ring around the mask that the edit is compared with, in pixels."""

_STRIP = 2
"""Depth of the strips along the rim whose colors are compared, in pixels."""

_SECTORS = 12
"""Number of sectors."""

_CLIPPED = (1 / 255, 254 / 255)
"""Values at or beyond these count as clipped."""

_MAX_COLORS = 1 << 16
"""Most pixels whose colors a white balance is judged by; of more, every nth pixel is used."""

_VISIBLE_OUTSIDE = 10 / 255
"""Difference that is visible outside the mask, where colors that do not match are not pasted."""

_COARSE = 4
"""Pixels of the crop per pixel of the small image that changes outside are searched in."""

_CELL = 4
"""Side, in pixels, of the cells whose colors and detail tell the object from its surroundings."""

_MIN_CELLS = 16
"""Fewest cells that such a model is made of."""

_CELL_SMOOTHING = 1.0
"""Standard deviation, in cells, of the Gaussian that smooths them."""

_WHOLE = 0.99
"""Share of a cell in an area from which it lies in it."""

_SPREAD = 2 / 255
"""Least standard deviation of the colors of such a model."""

_KEPT, _REMOVED = 0.1, 0.5
"""Largest changed share of a cell that was kept, and smallest of one that was removed."""

Plane = NDArray[np.float32]


class Verdict(NamedTuple):
    """A verdict on an edit.

    Attributes
    ----------
    word : one of VERDICTS
    reasons : short sentences, each with its figure
    """

    word: str
    reasons: tuple[str, ...] = ()


def conclude(findings: Sequence[Sequence["Finding"]]) -> Verdict:
    """Return the verdict on a batch: that on its worst edit, and the reasons of all.

    Parameters
    ----------
    findings : the reasons against each edit of the batch
    """
    words = [GOOD, *(finding.word for finding in chain(*findings))]
    reasons = tuple(
        f"Image {number}: {finding.sentence}" if len(findings) > 1 else finding.sentence
        for number, edit in enumerate(findings, 1)
        for finding in edit
    )
    return Verdict(max(words, key=VERDICTS.index), reasons)


class Edit(NamedTuple):
    """One edit of a crop.

    Attributes
    ----------
    before : IMAGE [h, w, 3], the crop
    edited : IMAGE [h, w, 3], the edit as it came
    pasted : IMAGE [h, w, 3], the edit as it is pasted: aligned, its colors matched
    mask : MASK [h, w], what was edited; with a blend mask, the part of it that shows
    feathered : MASK [h, w], how much of the edit shows
    shown : MASK [h, w], above 0 where a change is not cut off: where the edit shows, which is more
        with `widen`, and in the part of the mask that a blend mask hides on purpose
    inside_image : bool [h, w], where the crop shows the image
    """

    before: Tensor
    edited: Tensor
    pasted: Tensor
    mask: Tensor
    feathered: Tensor
    shown: Tensor
    inside_image: Tensor


class Figures(NamedTuple):
    """The figures that a verdict on an insertion or a removal follows; None: not measurable.

    Attributes
    ----------
    changed : share of the mask that changed visibly
    variation : standard deviation of the edit inside the mask; None beside even surroundings
    seam : step of the colors across the rim, 0..1
    jump : difference of the colors at the rim, 0..1
    sharpness : sharpness of the edit over that of its surroundings
    outside : share of the crop that changed where the edit does not show
    likeness : correlation of the changed pixels' gradients with the input's
    left : share of the object that was kept, as far as its looks tell
    """

    changed: float
    variation: float | None
    seam: float | None
    jump: float | None
    sharpness: float | None
    outside: float
    likeness: float | None
    left: float | None


class Balance(NamedTuple):
    """The figures that a verdict on a white balance follows; None: not measurable.

    Attributes
    ----------
    moved : mean change of the colors, 0..1
    gray : share of the input's pixels that are nearly gray
    clipped : share of the pixels that became clipped
    variation : standard deviation of the result's most varied channel; None where the input is even
    structure : correlation of the gradients of the edit with those of the input
    """

    moved: float
    gray: float
    clipped: float
    variation: float | None
    structure: float | None


class Finding(NamedTuple):
    """A reason against an edit.

    Attributes
    ----------
    name : name of the reason
    word : LOOK or FAILED
    sentence : the reason with its figure
    """

    name: str
    word: str
    sentence: str


class _View(NamedTuple):
    """The part of an edit near its mask, as arrays.

    Attributes
    ----------
    before : [h, w, 3]
    change : [h, w, 3], the edit as it is pasted, less `before`
    edited : [h, w, 3], the edit as it came
    gray_before, gray_pasted : [h, w]
    inside : bool [h, w], the mask's shape
    feathered : [h, w]
    signed : [h, w], signed distance in pixels
    sector : [h, w], number of the sector
    """

    before: Plane
    change: Plane
    edited: Plane
    gray_before: Plane
    gray_pasted: Plane
    inside: NDArray[np.bool_]
    feathered: Plane
    signed: Plane
    sector: NDArray[np.intp]


def judge(edit: Edit, variant: str) -> list[Finding]:
    """Return the reasons against an edit.

    Parameters
    ----------
    variant : one of VARIANTS
    """
    if not edit.mask.numpy().any():
        # An empty frame of a video.
        return []
    if variant == "white_balance":
        return _against_balance(measure_balance(edit))
    return _against(measure(edit, variant))


def judge_shift(pixels: float | None, put_back: bool) -> list[Finding]:
    """Return the reason against an edit that was moved by this many pixels of the crop, and not put
    back; None: it could not be measured.
    """
    if pixels is None or put_back or pixels <= MAX_SHIFT:
        return []
    return [Finding("moved", LOOK, f"The edit is moved by {pixels:.1f} px, and was not put back.")]


def _against(figures: Figures) -> list[Finding]:
    """Return the reasons against an insertion or a removal."""
    if figures.changed < MIN_CHANGED:
        share = f"{100 * figures.changed:.1f} %"
        return [Finding("unchanged", FAILED, f"Only {share} of the mask changed visibly.")]
    if figures.variation is not None and figures.variation < MIN_VARIATION:
        levels = f"{255 * figures.variation:.1f} levels"
        return [
            Finding("flat", FAILED, f"The edit has one color: it varies by {levels} in the mask.")
        ]
    findings = []
    if figures.seam is not None and figures.seam > MAX_SEAM:
        sentence = f"A seam shows: a step of {255 * figures.seam:.0f} of 255 levels along the rim."
        findings.append(Finding("seam", LOOK, sentence))
    if figures.jump is not None and figures.jump > MAX_JUMP:
        sentence = f"Colors jump by {255 * figures.jump:.0f} of 255 levels at the rim."
        findings.append(Finding("jump", LOOK, sentence))
    if figures.sharpness is not None and figures.sharpness < MIN_SHARPNESS:
        sentence = f"The edit is softer than around it: {100 * figures.sharpness:.0f} % as sharp."
        findings.append(Finding("soft", LOOK, sentence))
    if figures.outside > MAX_OUTSIDE:
        sentence = f"The edit changed {100 * figures.outside:.1f} % of the crop that is not pasted."
        findings.append(Finding("outside", LOOK, sentence))
    if figures.likeness is not None and figures.likeness > MAX_LIKENESS:
        sentence = f"The object may still be there: likeness {figures.likeness:.2f} with the input."
        findings.append(Finding("still there", LOOK, sentence))
    if figures.left is not None and figures.left > MAX_LEFT:
        sentence = f"A part of the object may be left: about {100 * figures.left:.0f} % of it."
        findings.append(Finding("part left", LOOK, sentence))
    return findings


def _against_balance(figures: Balance) -> list[Finding]:
    """Return the reasons against a white balance."""
    if figures.variation is not None and figures.variation < MIN_VARIATION:
        levels = f"{255 * figures.variation:.1f} levels"
        return [Finding("flat", FAILED, f"The result has one color: it varies by {levels}.")]
    if figures.structure is not None and figures.structure < MIN_STRUCTURE:
        sentence = f"The edit is another picture: likeness {figures.structure:.2f} with the input."
        return [Finding("repainted", FAILED, sentence)]
    findings = []
    if figures.moved < MIN_MOVED:
        sentence = f"Colors hardly changed: by {255 * figures.moved:.1f} of 255 levels."
        if figures.gray < MIN_GRAY:
            sentence += (
                f" Only {100 * figures.gray:.1f} % of the photo is nearly gray: its color may be "
                "its own or the light's."
            )
        findings.append(Finding("unmoved", LOOK, sentence))
    if figures.clipped > MAX_CLIPPED:
        sentence = f"{100 * figures.clipped:.1f} % of the pixels became clipped."
        findings.append(Finding("clipped", LOOK, sentence))
    return findings


def measure_balance(edit: Edit) -> Balance:
    """Measure a white balance, inside the feathered mask; `pasted` has the result's colors."""
    area = ((edit.feathered > 0) & edit.inside_image).numpy()
    before, after, edited = (plane.numpy() for plane in (edit.before, edit.pasted, edit.edited))
    positions = np.flatnonzero(area)
    positions = positions[:: sampling_step(len(positions), _MAX_COLORS)]
    old, new = (plane.reshape(-1, 3)[positions] for plane in (before, after))
    extremes = [_extremes(colors) for colors in (old, new)]
    clipped = [(low <= _CLIPPED[0]) | (high >= _CLIPPED[1]) for low, high in extremes]
    return Balance(
        moved=float(np.abs(new - old).mean()),
        gray=float(_is_gray(*extremes[0]).mean()),
        clipped=float((clipped[1] & ~clipped[0]).mean()),
        variation=_deviation(after, area) if _deviation(before, area) >= _VARYING else None,
        structure=_correlation(_gray(before), _gray(edited), area),
    )


def _extremes(colors: Plane) -> tuple[Plane, Plane]:
    """Return the smallest and the largest channel of colors [n, 3]."""
    # numpy reduces so short an axis slowly.
    red, green, blue = colors.T
    return (
        np.minimum(np.minimum(red, green), blue),
        np.maximum(np.maximum(red, green), blue),
    )


def _is_gray(darkest: Plane, brightest: Plane) -> NDArray[np.bool_]:
    """Tell which colors are nearly gray, from their smallest and largest channels [n]."""
    near = brightest - darkest <= _NEARLY_GRAY * brightest
    return np.asarray(near & (brightest > _TOO_DARK))


def measure(edit: Edit, variant: str) -> Figures:
    """Measure an insertion or a removal."""
    view = _view(edit)
    is_removal = variant == "removal"
    changed = _changed(view)
    return Figures(
        changed=float(changed[view.inside].mean()),
        variation=_variation(view),
        # An object may end where its mask ends.
        seam=_seam(view) if is_removal else None,
        jump=_jump(view),
        sharpness=_sharpness(view, is_removal),
        outside=_outside(edit),
        likeness=_likeness(view, changed) if is_removal else None,
        left=_left(view, changed) if is_removal else None,
    )


def _view(edit: Edit) -> _View:
    """Cut out the part near the mask that shows the image."""
    used, allowed = edit.mask.numpy() > 0, edit.inside_image.numpy()
    top, bottom = _range(used.sum(1), allowed.sum(1))
    left, right = _range(used.sum(0), allowed.sum(0))
    before, edited, pasted, mask, feathered = (
        plane[top:bottom, left:right].numpy()
        for plane in (edit.before, edit.edited, edit.pasted, edit.mask, edit.feathered)
    )
    # A mask may be soft everywhere.
    inside = mask >= min(0.5, mask.max() / 2)
    outwards, inwards = (
        mask_ops.distance(torch.from_numpy(shape.astype(np.float32))).numpy()
        for shape in (inside, ~inside)
    )
    return _View(
        before,
        pasted - before,
        edited,
        _gray(before),
        _gray(pasted),
        inside,
        feathered,
        outwards - inwards,
        _sectors(inside),
    )


def _gray(image: Plane) -> Plane:
    """Return the brightness [h, w] of an image [h, w, 3]."""
    import cv2

    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.float32)


def _range(used: NDArray[np.int_], allowed: NDArray[np.int_]) -> tuple[int, int]:
    """Return start and end of the positions whose counts are not 0, with some more around, where
    allowed.
    """
    positions, limits = np.flatnonzero(used), np.flatnonzero(allowed)
    start = max(positions[0] - _SURROUNDINGS, limits[0])
    return int(start), int(min(positions[-1] + _SURROUNDINGS, limits[-1])) + 1


def _changed(view: _View) -> NDArray[np.bool_]:
    """Return where the result differs visibly, bool [h, w]."""
    import cv2

    shown = view.change * view.feathered[..., None]
    return _largest(np.asarray(cv2.blur(shown, (3, 3)), np.float32)) > _VISIBLE


def _largest(colors: Plane) -> Plane:
    """Return the largest channel's absolute value [h, w] of [h, w, 3]."""
    red, green, blue = (np.abs(colors[..., channel]) for channel in range(3))
    return np.asarray(np.maximum(np.maximum(red, green), blue))


def _variation(view: _View) -> float | None:
    """Return the standard deviation of the edit inside the mask, in its most varied channel."""
    ring = (view.signed > 0) & (view.signed <= _RING)
    if not ring.any() or _deviation(view.before, ring) < _VARYING:
        return None
    return _deviation(view.edited, view.inside)


def _deviation(image: Plane, area: NDArray[np.bool_]) -> float:
    """Return the standard deviation of an image [h, w, 3] in an area, in its most varied
    channel.
    """
    import cv2

    return float(cv2.meanStdDev(image, mask=area.view(np.uint8))[1].max())


def _sectors(inside: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return the sector [h, w] of each pixel around the center of the mask's shape."""
    import cv2

    y, x = (np.arange(side, dtype=np.float32) for side in inside.shape)
    y -= np.average(y, weights=inside.sum(1))
    x -= np.average(x, weights=inside.sum(0))
    right, down = (np.ascontiguousarray(grid) for grid in np.broadcast_arrays(x, y[:, None]))
    turns = np.asarray(cv2.phase(right, down), np.float32) * (_SECTORS / (2 * np.pi))
    return np.asarray(turns, np.intp) % _SECTORS


def _means(groups: NDArray[np.intp], values: Plane, count: int) -> NDArray[np.float64]:
    """Return the mean [count, 3] of the values [n, 3] of each group [n]; NaN for small groups."""
    sizes = np.bincount(groups, minlength=count).astype(float)
    sizes[sizes < _FEW] = np.nan
    sums = [np.bincount(groups, channel, count) for channel in values.T]
    return np.asarray(np.stack(sums, -1) / sizes[:, None], np.float64)


def _seam(view: _View) -> float | None:
    """Return the step of the result's colors from one side of the rim to the other.

    The step between two strips along the rim, less the steps that its surroundings go on with on
    either side, less what such a figure is on parallel curves beside the rim. Thus a seam stands
    out in a wall, and hides in a hedge.
    """
    band = np.abs(view.signed) <= _STRIPS // 2 * _STRIP
    strip = np.floor(view.signed[band] / _STRIP).astype(np.intp) + _STRIPS // 2
    groups = strip.clip(0, _STRIPS - 1) * _SECTORS + view.sector[band]
    result = view.before[band] + view.change[band] * view.feathered[band, None]
    means = _means(groups, result, _STRIPS * _SECTORS).reshape(_STRIPS, _SECTORS, 3)
    steps = np.diff(means, axis=0)
    excess = np.abs(steps[1:-1] - (steps[:-2] + steps[2:]) / 2).max(-1)
    middle = len(excess) // 2
    usual = (excess[middle - 2] + excess[middle + 2]) / 2
    return _typical(excess[middle] - np.nan_to_num(usual))


def _typical(values: NDArray[np.float64]) -> float | None:
    """Return the median over the sectors; None where none has a value."""
    return None if np.isnan(values).all() else float(np.nanmedian(values))


def _jump(view: _View) -> float | None:
    """Return the difference of the colors of the edit and of the input just outside the mask."""
    fade = (view.signed > 0) & ((view.feathered > 0) | (view.signed <= 2 * _STRIP))
    offset = _means(view.sector[fade], view.change[fade], _SECTORS)
    return _typical(np.abs(offset).max(-1))


def _sharpness(view: _View, is_removal: bool) -> float | None:
    """Return the sharpness of the edit over that of its surroundings: over the input's just outside
    the mask; for a removal also inside the mask over outside. An object may be soft of its own.
    """
    import cv2

    ring = (view.signed > 0) & (view.signed <= _RING)
    core = view.signed < -2
    if ring.sum() < 64 or core.sum() < 64:
        return None
    old, new = (np.abs(cv2.Laplacian(gray, -1)) for gray in (view.gray_before, view.gray_pasted))
    sharpness = float((new[ring].mean() + _FLAT) / (old[ring].mean() + _FLAT))
    if is_removal:
        inside, around = (
            _fineness(gray, details, area)
            for gray, details, area in (
                (view.gray_pasted, new, core),
                (view.gray_before, old, ring),
            )
        )
        sharpness = min(sharpness, inside / around)
    return sharpness


def _fineness(gray: Plane, details: Plane, area: NDArray[np.bool_]) -> float:
    """Return the strength of the finest details in an area, over that of larger ones. Unlike the
    details alone, it is much the same for a wall and a hedge in one photo.
    """
    import cv2

    smooth = cv2.blur(gray, (3, 3))
    larger = np.abs(smooth - cv2.blur(smooth, (9, 9)))
    return float((details[area].mean() + _FLAT) / (larger[area].mean() + _FLAT))


def _likeness(view: _View, changed: NDArray[np.bool_]) -> float | None:
    """Return the correlation of the gradients of the result with the input's, where the edit
    changed something.
    """
    import cv2

    area = cv2.dilate(changed.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    return _correlation(view.gray_before, view.gray_pasted, area & (view.signed < -1))


def _left(view: _View, changed: NDArray[np.bool_]) -> float | None:
    """Return the share of the object that a removal kept: the cells of the mask that it kept
    although they look like those that it removed, and not like the surroundings.

    A cell has the input's mean colors, and the strength of its detail. The cells that were removed
    and those of the ring are modeled by a normal distribution each. As many of the kept cells may
    fit the first model better as cells of the ring do. What the middle of a large mask shows must
    look like its surroundings, or it is taken for a part of the object.

    Returns
    -------
    None where too few cells were removed, or lie in the ring
    """
    import cv2

    height, width = (max(side // _CELL, 1) for side in view.gray_before.shape)

    def average(plane: Plane) -> Plane:
        cells = cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA)
        return np.asarray(cells, np.float32)

    variance = average(view.gray_before**2) - average(view.gray_before) ** 2
    cells = np.dstack([average(view.before), np.sqrt(np.maximum(variance, 0))])
    cells = np.asarray(cv2.GaussianBlur(cells, (0, 0), _CELL_SMOOTHING), np.float32)
    near = (view.signed > 0) & (view.signed <= _RING)
    inside, ring, share = (
        average(area.astype(np.float32)) for area in (view.inside, near, changed)
    )
    is_masked = inside > _WHOLE
    removed, around = cells[is_masked & (share >= _REMOVED)], cells[ring > _WHOLE]
    kept = cells[is_masked & (share <= _KEPT)]
    if min(len(removed), len(around)) < _MIN_CELLS:
        return None
    if len(kept) == 0:
        return 0.0
    fits = [_misfit(some, around) > _misfit(some, removed) for some in (kept, around)]
    count = max(fits[0].mean() - fits[1].mean(), 0) * len(kept)
    return float(count / (count + len(removed)))


def _misfit(cells: Plane, sample: Plane) -> Plane:
    """Return how badly each of the cells [n, k] fits the normal distribution of a sample [m, k]:
    twice the negative logarithm of its density.
    """
    covariance = np.cov(sample.T) + _SPREAD**2 * np.eye(sample.shape[1])
    away = cells - sample.mean(0)
    distance = (away @ np.linalg.inv(covariance) * away).sum(-1)
    return np.asarray(distance + np.linalg.slogdet(covariance)[1], np.float32)


def _correlation(before: Plane, after: Plane, area: NDArray[np.bool_]) -> float | None:
    """Return the correlation of the gradients of two images in an area; None in a small one."""
    import cv2

    if area.sum() < 64:
        return None
    old, new = (
        [cv2.Sobel(smooth, -1, *axis, scale=1 / 8) for axis in ((1, 0), (0, 1))]
        for smooth in (cv2.GaussianBlur(plane, (0, 0), 1.5) for plane in (before, after))
    )

    def mean_product(one: list[Any], other: list[Any]) -> float:
        product = one[0] * other[0] + one[1] * other[1]
        return float(cv2.mean(product, mask=area.view(np.uint8))[0])

    power = [mean_product(gradient, gradient) + _NOISE**2 for gradient in (old, new)]
    return mean_product(old, new) / math.sqrt(power[0] * power[1])


def _outside(edit: Edit) -> float:
    """Return the share of the crop that changed visibly where the edit does not show."""
    import cv2

    size = tuple(max(side // _COARSE, 1) for side in reversed(edit.mask.shape))
    new, old = (
        np.asarray(cv2.resize(image.numpy(), size, interpolation=cv2.INTER_AREA), np.float32)
        for image in (edit.pasted, edit.before)
    )
    hidden = (edit.shown.numpy() == 0) & edit.inside_image.numpy()
    is_hidden = cv2.resize(hidden.view(np.uint8) * 255, size, interpolation=cv2.INTER_AREA) == 255
    changed = _largest(new - old) > _VISIBLE_OUTSIDE
    return float((is_hidden & changed).mean())
