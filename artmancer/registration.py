"""The shift, zoom and rotation between a photo and its edit, measured outside the mask, and the way
back.

A similarity is fitted by Gauss-Newton steps on an image pyramid, inverse compositional as in Baker
and Matthews (2004), with the weights of Geman and McClure (1987), so that what the edit changed
hardly counts. Other pixels than those of the fit judge the result. Where these cannot tell, as in a
blurred photo, an edit that moved stays as it came.

In a crop of 512x512 pixels, an edit that moved takes about a third of its stitch stage here, two
fifths of that for the resampling that moves it back; see benchmarks/registration.py.

Words of this module:
- plane: the brightness of an image, float32 [h, w], in levels 0..255
- points: positions in a crop as complex numbers, right + i * down, in pixels from its center
- judge: pixels outside the mask, near it, that take no part in the fit at the crop's own size
"""

import math
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .tone import value_range

Plane = NDArray[np.float32]
Points = NDArray[np.complex128]
Pixels = NDArray[np.bool_]
Values = NDArray[np.float64]

_SMALLEST = 48
"""Least side of the smallest plane of the pyramid, in pixels."""

_CELLS = 112
"""Cells along the longer side of the largest plane. Each gives its pixel of largest gradient to the
fit, so that the cost hardly grows with the size, and the pixels are spread over the image.
"""

_COARSE_CELLS = 40
"""The same for smaller planes, which only lead to the largest."""

_BLOCKS = 8
"""Blocks along the longer side. Near the mask they belong to the fit and to the judge in turns;
near is at most one block's side away.
"""

_TILES = 32
"""Tiles along the longer side. The differences between tiles tell how much of a fall of the judge's
error is noise.
"""

_SMOOTHING = 1.0
"""Standard deviation, in pixels, of the Gaussian that smooths the planes of the fit."""

_JUDGE_SMOOTHING = 1.5
"""The same for the judge. A resampled image has less noise: without smoothing, that alone would
make its error smaller.
"""

_START_TILES = 6
"""Tiles along the longer side of the smallest plane, whose agreement weighs the first step."""

_STEPS = 10
"""Most Gauss-Newton steps at each size of the pyramid."""

_ROUNDS = 2
"""Times that the weights are made anew in a step at the largest size."""

_STILL = 0.01
"""Change of the displacement, in pixels of a plane, at which the steps end."""

_OUTLIER = 2.5
"""Error, as a multiple of the median error, at which the weight of a pixel has fallen to 1/4."""

_ROUNDING = 0.5
"""Levels that are added to that error, so that rounding makes no outliers."""

_RIDGE = 1e-9
"""Ridge of the least squares, as a share of the mean square of the features."""

_MIN_GAIN = 0.5
"""Smallest contrast of the edit as a share of the photo's, when errors are compared."""

_MIN_PIXELS = 64
"""Fewest pixels that a similarity is fitted on, and fewest that judge it."""

_MIN_TILE = 8
"""Least side of a tile, in pixels."""

_MIN_TILES = 4
"""Fewest tiles that judge a similarity."""

_MAX_DEVIATION = 0.5
"""Largest standard deviation of the displacement at the mask's corners, in pixels of the crop."""

_MAX_SHIFT, _MAX_ZOOM, _MAX_ROTATION = 24.0, 0.05, 2.0
"""Largest shift in pixels of the crop, change of size, and rotation in degrees. More is another
image.
"""

_MIN_MOVED = 0.05
"""Smallest displacement inside the mask undone, in pixels of the crop. Less is invisible."""

_MIN_FALL = 0.15
"""Least fall of the judge's error, in logarithms. With 0.05, blurred photos whose colors had
changed were made worse; see `benchmarks/registration.py --thresholds`.
"""

_MIN_CERTAINTY = 3.0
"""Least fall of the judge's error, as a multiple of its standard error over the tiles."""

_MIN_CONFIRMED = 2.0
"""The same where the judge's pixels, fitted alone, moved as those of the fit; see `_MAX_DISPUTE`.
Then the error may fall by less than _MIN_FALL: a small movement, or one of a blurred photo, hardly
changes the error near the mask.
"""

_MAX_DISPUTE = 0.4
"""Largest difference of the two movements, as a share of the movement. With 0.5, a blurred photo
that had not moved was made worse; see `benchmarks/registration.py --thresholds`.
"""


_ROW = 4096
"""Pixels in a row when single pixels are sampled."""

_LANCZOS = 4
"""OpenCV's INTER_LANCZOS4."""

_LOBES = 4
"""Zeros of the Lanczos kernel on each side, as OpenCV's has."""


class Similarity(NamedTuple):
    """A shift, zoom and rotation: what is at z in the photo is at factor * z + shift in the edit.

    Attributes
    ----------
    factor : its absolute value is the zoom, its angle the rotation; clockwise is positive
    shift : movement of the crop's center in pixels; right + i * down
    """

    factor: complex = 1
    shift: complex = 0

    @property
    def zoom(self) -> float:
        return abs(self.factor)

    @property
    def rotation(self) -> float:
        """The rotation in degrees."""
        return math.degrees(math.atan2(self.factor.imag, self.factor.real))

    @property
    def plausible(self) -> bool:
        """Tell whether an edit may have moved the photo so far."""
        return (
            abs(self.shift) <= _MAX_SHIFT
            and abs(self.zoom - 1) <= _MAX_ZOOM
            and abs(self.rotation) <= _MAX_ROTATION
        )

    @overload
    def move(self, points: complex) -> complex: ...
    @overload
    def move(self, points: Points) -> Points: ...
    def move(self, points: complex | Points) -> complex | Points:
        """Return the places in the edit of points of the photo."""
        return self.factor * points + self.shift

    def after_inverse(self, first: "Similarity") -> "Similarity":
        """Return the similarity that undoes `first`, then does this one."""
        factor = self.factor / first.factor
        return Similarity(factor, self.shift - factor * first.shift)


class Registration(NamedTuple):
    """An edit after registration.

    Attributes
    ----------
    image : [h, w, 3], the edit moved back, or as it came
    similarity : what was measured
    moved : largest displacement inside the mask, in pixels of the crop
    applied : whether `image` was moved back: the judge's error falls by more than noise
    error_before, error_after : mean error of the judge in levels of 255, without the difference of
        colors, as the edit came and moved back
    came : [h, w, 3], the edit as it came, where `image` was moved back
    """

    image: Tensor
    similarity: Similarity = Similarity()
    moved: float = 0.0
    applied: bool = False
    error_before: float = 0.0
    error_after: float = 0.0
    came: Tensor | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return what the report says; see Report.registration."""
        shift = self.similarity.shift
        return {
            "shift": [round(shift.imag, 3), round(shift.real, 3)],
            "zoom": round(self.similarity.zoom, 5),
            "rotation": round(self.similarity.rotation, 3),
            "error_before": round(self.error_before, 3),
            "error_after": round(self.error_after, 3),
        }


def register(edited: Tensor, before: Tensor, outside: Tensor, shown: Tensor) -> Registration | None:
    """Measure the similarity between a photo and its edit, and undo it where that pays.

    Parameters
    ----------
    edited, before : [h, w, 3] in 0..1
    outside : bool [h, w], True where the edit should have left the photo alone
    shown : bool [h, w], True where the edit shows: inside the feathered mask

    Returns
    -------
    None where it cannot be told: too little is outside, it has too little texture, or the judge's
    error rises. A movement by which it falls too little is measured but not undone.
    """
    if not shown.any():
        return Registration(edited)
    if not outside.any():
        return None
    new, old = (_plane(image) for image in (edited, before))
    if (new == old)[outside.numpy()].all():
        return Registration(edited)
    fitting, judging = _split(outside.numpy(), shown.numpy())
    if min(fitting.sum(), judging.sum()) < _MIN_PIXELS:
        return None
    corners = _corners(shown.numpy())
    similarity = _fit(new, old, fitting, corners)
    if similarity is None:
        return None
    moved = float(np.abs(similarity.move(corners) - corners).max())
    error_before, error_after = _judge(new, old, judging, similarity)
    fall, deviation = _fall(error_before, error_after, judging)
    falls = fall > max(_MIN_FALL, _MIN_CERTAINTY * deviation) or (
        fall > _MIN_CONFIRMED * deviation
        and _dispute(similarity, _fit(new, old, judging, corners), corners) < _MAX_DISPUTE * moved
    )
    applied = moved >= _MIN_MOVED and falls
    if moved > _MAX_DEVIATION and fall <= 0:
        return None
    return Registration(
        undo(edited, similarity) if applied else edited,
        similarity,
        moved,
        applied,
        float(error_before.mean()),
        float(error_after.mean()),
        edited if applied else None,
    )


def undo(
    edited: Tensor,
    similarity: Similarity,
    scale: float = 1.0,
    window: tuple[int, int, int, int] | None = None,
) -> Tensor:
    """Move an edit [h, w, 3] back, by one resampling. Where it would be empty, its edge pixels are
    repeated.

    Parameters
    ----------
    scale : pixels of the edit per pixel of the result
    window : (top, left, bottom, right) of the result that is made; None: all of it

    Returns
    -------
    [m, n, 3], as large as the window
    """
    import cv2

    height, width = edited.shape[:2]
    top, left, bottom, right = window or (0, 0, round(height / scale), round(width / scale))
    # OpenCV counts from the middle of the top left pixel, a similarity from the center.
    middle, center = 0.5 + 0.5j, _center((height, width))
    factor = similarity.factor * scale
    start = similarity.move(scale * (complex(left, top) + middle) - middle - center) + center
    moved = cv2.warpAffine(
        _low_pass(edited, scale),
        np.array([[factor.real, -factor.imag, start.real], [factor.imag, factor.real, start.imag]]),
        (right - left, bottom - top),
        flags=_LANCZOS | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return torch.from_numpy(moved).clamp_(*value_range(edited))


def _low_pass(image: Tensor, scale: float) -> Plane:
    """Return an image [h, w, 3] without the details that are lost where it is reduced by this
    scale: averaged by a Lanczos kernel of that width. At most 1: unchanged.
    """
    import cv2

    if scale <= 1:
        return np.asarray(image.numpy(), np.float32)
    x = np.arange(-math.ceil(_LOBES * scale), math.ceil(_LOBES * scale) + 1) / scale
    kernel = np.where(np.abs(x) < _LOBES, np.sinc(x) * np.sinc(x / _LOBES), 0)
    kernel /= kernel.sum()
    smooth = cv2.sepFilter2D(image.numpy(), -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(smooth, np.float32)


def _plane(image: Tensor) -> Plane:
    import cv2

    return np.asarray(cv2.transform(image.numpy(), np.full((1, 3), 255 / 3)), np.float32)


def _center(size: tuple[int, ...]) -> complex:
    """Return the center of a crop of this (height, width), from its top left pixel."""
    return complex(size[1] - 1, size[0] - 1) / 2


def _radius(center: complex) -> float:
    """Return half of the longer side, in pixels."""
    return max(center.real, center.imag) + 0.5


def _corners(shown: Pixels) -> Points:
    """Return the corners of the bounding box of these pixels. A displacement is largest at one."""
    rows, columns = (np.flatnonzero(shown.any(axis)) for axis in (1, 0))
    corners = [complex(x, y) for x in columns[[0, -1]] for y in rows[[0, -1]]]
    return np.array(corners) - _center(shown.shape)


def _split(outside: Pixels, shown: Pixels) -> tuple[Pixels, Pixels]:
    """Divide the pixels outside into those of the fit and those of the judge, bool [h, w] each."""
    import cv2

    height, width = outside.shape
    block = max(_BLOCKS, max(height, width) // _BLOCKS)
    y, x = np.ogrid[:height, :width]
    away = cv2.distanceTransform((~shown).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_3)
    judging = (away <= block) & ((y // block + x // block) % 2 == 0)
    # Smoothing mixes the outermost of them with pixels inside.
    kept = cv2.erode(outside.view(np.uint8), np.ones((5, 5), np.uint8)).view(np.bool_)
    return kept & ~judging, kept & judging


def _fit(new: Plane, old: Plane, fitting: Pixels, corners: Points) -> Similarity | None:
    """Fit the similarity from the smallest planes of the pyramid to the largest.

    Returns
    -------
    None where there are too few pixels, where the movement of the corners is not determined, or
    where no plausible similarity fits
    """
    pyramid = [(new, old, fitting.astype(np.float32))]
    while min(pyramid[-1][0].shape) >= 2 * _SMALLEST:
        new, old, share = (_halve(plane) for plane in pyramid[-1])
        pyramid.append((new, old, share))
    similarity, colors = None, None
    for halvings in range(len(pyramid) - 1, -1, -1):
        level = _level(*pyramid[halvings], 2**halvings, _center(fitting.shape))
        if level is None:
            return None
        if similarity is None:
            similarity = _search(level)
        similarity, colors, covariance = _refine(level, similarity, colors)
        if not similarity.plausible:
            return None
    # The displacement's derivative by the four parameters, see `_level`.
    radius = _radius(_center(fitting.shape))
    u, v = corners.real / radius, corners.imag / radius
    zeros, ones = np.zeros_like(u), np.ones_like(u)
    right, down = np.stack([u, -v, ones, zeros], -1), np.stack([v, u, zeros, ones], -1)
    variance = ((right @ covariance) * right + (down @ covariance) * down).sum(-1)
    return similarity if math.sqrt(variance.max()) <= _MAX_DEVIATION else None


def _dispute(similarity: Similarity, other: Similarity | None, corners: Points) -> float:
    """Return the largest difference in pixels of two movements of the corners."""
    if other is None:
        return math.inf
    return float(np.abs(similarity.move(corners) - other.move(corners)).max())


def _halve(plane: Plane) -> Plane:
    import cv2

    height, width = plane.shape
    half = cv2.resize(plane, (-(-width // 2), -(-height // 2)), interpolation=cv2.INTER_AREA)
    return np.asarray(half, np.float32)


def _smooth(plane: Plane, deviation: float) -> Plane:
    import cv2

    return np.asarray(cv2.GaussianBlur(plane, (0, 0), deviation), np.float32)


class _Level(NamedTuple):
    """One size of the pyramid, and the pixels that are compared there.

    Attributes
    ----------
    new : the edit, smoothed
    target : [n], values of the photo
    features : [n, 9], change of `target` with the four parameters of a similarity (zoom, rotation,
        right, down), and what a change of colors may add: a tone curve, a constant, a slope
    points : [n], places in the crop
    shrink : pixels of the crop per pixel of the plane
    center : center of the crop
    radius : half of the crop's longer side, in pixels
    """

    new: Plane
    target: Values
    features: Values
    points: Points
    shrink: int
    center: complex
    radius: float


def _level(new: Plane, old: Plane, share: Plane, shrink: int, center: complex) -> _Level | None:
    """Prepare one size of the pyramid.

    Parameters
    ----------
    share : share of a pixel that belongs to the fit

    Returns
    -------
    None where too few pixels belong to the fit
    """
    import cv2

    new, old = (_smooth(plane, _SMOOTHING) for plane in (new, old))
    gradient_x, gradient_y = (
        cv2.Sobel(old, cv2.CV_32F, *order, ksize=3, scale=1 / 8) for order in ((1, 0), (0, 1))
    )
    strength: Plane = np.where(share > 0.99, gradient_x**2 + gradient_y**2, -1).astype(np.float32)
    cells = _CELLS if shrink == 1 else _COARSE_CELLS
    index = _strongest(strength, max(1, round(max(old.shape) / cells)))
    if len(index) < _MIN_PIXELS:
        return None
    y, x = np.divmod(index, old.shape[1])
    # The middle of a pixel of the plane is the middle of the crop's pixels that it is the mean of.
    points = (x + 0.5 + 1j * (y + 0.5)) * shrink - 0.5 * (1 + 1j) - center
    radius = _radius(center)
    u, v = points.real / radius, points.imag / radius
    gx, gy = (plane.ravel()[index] / shrink for plane in (gradient_x, gradient_y))
    target = old.ravel()[index].astype(np.float64)
    tone = target / 128 - 1
    features = np.stack(
        [gx * u + gy * v, gy * u - gx * v, gx, gy, tone, tone**2, np.ones_like(u), u, v], -1
    )
    return _Level(new, target, features, points, shrink, center, radius)


def _strongest(strength: Plane, cell: int) -> NDArray[np.intp]:
    """Return the flat index of the largest value in each square cell of this side; none where it is
    negative.
    """
    height, width = strength.shape
    padding = ((0, -height % cell), (0, -width % cell))
    padded: Plane = np.pad(strength, padding, constant_values=-1)
    rows, columns = padded.shape[0] // cell, padded.shape[1] // cell
    cells = padded.reshape(rows, cell, columns, cell).swapaxes(1, 2).reshape(-1, cell * cell)
    place = cells.argmax(1)
    number = np.flatnonzero(np.take_along_axis(cells, place[:, None], 1)[:, 0] >= 0)
    y = number // columns * cell + place[number] // cell
    x = number % columns * cell + place[number] % cell
    return np.asarray(y * width + x)


def _sample(level: _Level, similarity: Similarity) -> tuple[Values, Pixels]:
    """Return the edit's values [n] at the places of the photo's points, and whether they are in the
    edit.
    """
    import cv2

    places = (similarity.move(level.points) + level.center + 0.5 * (1 + 1j)) / level.shrink
    x, y = (part.astype(np.float32) - np.float32(0.5) for part in (places.real, places.imag))
    height, width = level.new.shape
    inside = (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)
    # Linear: OpenCV's cubic kernel moves a ramp by up to 0.04 pixels.
    values = cv2.remap(level.new, x[None], y[None], cv2.INTER_LINEAR)
    return values[0].astype(np.float64), inside


def _search(level: _Level) -> Similarity:
    """Return the shift by whole pixels of the plane at which photo and edit correlate best."""
    reach = math.ceil(_MAX_SHIFT / level.shrink)
    steps = range(-reach, reach + 1)
    shifts = [Similarity(1, level.shrink * complex(x, y)) for y in steps for x in steps]
    return max(shifts, key=lambda shift: _correlation(level, shift))


def _correlation(level: _Level, similarity: Similarity) -> float:
    values, inside = _sample(level, similarity)
    if inside.sum() < _MIN_PIXELS:
        return -1.0
    new, old = (part[inside] - part[inside].mean() for part in (values, level.target))
    return float(new @ old) / math.sqrt(float((new @ new) * (old @ old)) + 1e-12)


def _agreement(level: _Level, similarity: Similarity) -> Values:
    """Return the weight of each point: the square of the correlation of photo and edit in its tile
    of the plane, 0 where that is negative.
    """
    values, inside = _sample(level, similarity)
    side = 2 * level.radius / _START_TILES
    column, row = (
        (part // side).astype(np.intp) for part in (level.points.real, level.points.imag)
    )
    tile = (row - row.min()) * _START_TILES + column - column.min()

    def mean(part: Values) -> Values:
        total, count = np.bincount(tile, part * inside), np.bincount(tile, inside)
        return np.asarray((total / np.maximum(count, 1))[tile])

    new, old = (part - mean(part) for part in (values, level.target))
    correlation = mean(new * old) / np.sqrt(mean(new * new) * mean(old * old) + 1e-12)
    return np.asarray(np.maximum(correlation, 0) ** 2)


def _refine(
    level: _Level, similarity: Similarity, colors: Values | None
) -> tuple[Similarity, Values, Values]:
    """Refine a similarity by Gauss-Newton steps.

    Parameters
    ----------
    colors : [5], the change of colors at the size before

    Returns
    -------
    the similarity, the change of colors, and the covariance [4, 4] of the similarity's parameters
    """
    if colors is None:
        weight = _agreement(level, similarity)
    else:
        values, inside = _sample(level, similarity)
        error = np.abs(values - level.features[:, 4:] @ colors)
        weight = _trust(error, np.median(error[inside]) if inside.any() else 0.0)
    for _ in range(_STEPS):
        values, inside = _sample(level, similarity)
        for _ in range(_ROUNDS if level.shrink == 1 else 1):
            solution, normal = _solve(level.features, values, weight * inside)
            error = np.abs(values - level.features @ solution)
            weight = _trust(error, np.median(error[inside]) if inside.any() else 0.0)
        # The tone curve's slope: the edit's contrast, which a movement changes in proportion.
        gain = max(solution[4] / 128, 0.1)
        zoom, turn, right, down = (float(value) for value in solution[:4] / gain)
        step = Similarity(complex(1, 0) + complex(zoom, turn) / level.radius, complex(right, down))
        similarity = similarity.after_inverse(step)
        size = abs(complex(zoom, turn)) + abs(step.shift)
        if size < _STILL * level.shrink or not similarity.plausible:
            break
    used = weight * inside
    # Rounding alone makes an error, which synthetic images may lack.
    variance = max((used * error**2).sum() / max(used.sum() - len(normal), 1), _ROUNDING**2)
    return similarity, solution[4:], variance / gain**2 * np.linalg.inv(normal)[:4, :4]


def _solve(features: Values, values: Values, weight: Values) -> tuple[Values, Values]:
    """Return the solution [k] of weighted least squares, and its normal matrix [k, k]."""
    weighted = (features * weight[:, None]).T
    normal = weighted @ features
    normal += (_RIDGE * np.trace(normal) + 1e-9) * np.eye(len(normal))
    return np.linalg.solve(normal, weighted @ values), normal


def _trust(error: Values, usual: float) -> Values:
    """Return the weight of each pixel after its error, by Geman and McClure."""
    return np.asarray(1 / (1 + (error / (_OUTLIER * usual + _ROUNDING)) ** 2) ** 2)


def _judge(
    new: Plane, old: Plane, judging: Pixels, similarity: Similarity
) -> tuple[Values, Values]:
    """Return the error of each of the judge's pixels, [n], as the edit came and moved back by the
    similarity, without the difference of colors.
    """
    import cv2

    new, old = (_smooth(plane, _JUDGE_SMOOTHING) for plane in (new, old))
    y, x = np.nonzero(judging)
    center = _center(judging.shape)
    places = similarity.move(x + 1j * y - center) + center
    # OpenCV refuses rows of 32768 pixels. The last row is filled up.
    places = np.resize(places, (-(-len(x) // _ROW), _ROW))
    across, along = (part.astype(np.float32) for part in (places.real, places.imag))
    moved = cv2.remap(new, across, along, _LANCZOS, borderMode=cv2.BORDER_REPLICATE)
    target = old[judging].astype(np.float64)
    tone = target - target.mean()
    u, v = (part / max(old.shape) - 0.5 for part in (x, y))
    features = np.stack([tone, np.ones_like(u), u, v], -1)
    back: Plane = np.asarray(moved, np.float32).ravel()[: len(x)]
    return _color_error(new[judging], features), _color_error(back, features)


def _color_error(values: Plane, features: Values) -> Values:
    """Return the error of each pixel [n] without the difference of colors: what a robust fit of
    the features [n, 4], of which the photo's brightness is the first, leaves.
    """
    weight = np.ones(len(values))
    for _ in range(4):
        solution, _ = _solve(features, values.astype(np.float64), weight)
        error = np.abs(values - features @ solution)
        weight = _trust(error, np.median(error))
    # In the photo's contrast: where nothing agrees, the fit is flat, and its error small.
    return np.asarray(error / max(solution[0], _MIN_GAIN))


def _fall(before: Values, after: Values, judging: Pixels) -> tuple[float, float]:
    """Compare the errors of the judge's pixels before and after.

    Returns
    -------
    the mean fall of the error of a tile, in logarithms, and its standard error over the tiles;
    infinite with too few tiles
    """
    y, x = np.nonzero(judging)
    side = max(_MIN_TILE, max(judging.shape) // _TILES)
    _, tile, count = np.unique(
        y // side * judging.shape[1] + x // side, return_inverse=True, return_counts=True
    )
    # In logarithms a tile that the edit changed, which stays bad, counts as no fall.
    first, second = (
        np.log(np.bincount(tile, error) / count + _ROUNDING / 2) for error in (before, after)
    )
    falls = (first - second)[count >= side**2 / 4]
    if len(falls) < _MIN_TILES:
        return 0.0, math.inf
    return float(falls.mean()), float(falls.std(ddof=1)) / math.sqrt(len(falls))
