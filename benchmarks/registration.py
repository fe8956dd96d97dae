"""Benchmark of registration: edits whose movement is known, put back.

Each case is a photo with another object, which has a shadow, in a mask. It is moved by a known
similarity, and its colors are changed, or noise or JPEG is added. The error is the mean inside the
mask, in levels of 255, against the edit before it moved. It is measured as the edit came; with the
shift alone undone, by phase correlation (kept here only for that); by artmancer.registration; and
with the known movement undone by the same single resampling.

A case counts as made worse where its error grows by more than 0.1 levels. A ratio to the known
movement has 0.1 levels added to both errors, because an edit that did not move has none.

The thresholds of the judge were set on the photos of the first half. `--thresholds` prints how many
cases of that half other values make worse, or leave unmoved.

The photos are those inside the packages scikit-image and ultralytics. The table is also written to
benchmarks/results/registration.txt.

Usage: python benchmarks/registration.py [--json] [--cases N] [--thresholds]
"""

import argparse
import cmath
import importlib.util
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import skimage.data
import torch
from numpy.typing import NDArray
from report import THREADS, Row, finish, machine, table
from torch import Tensor
from torch.nn import functional

from artmancer import mask_ops, registration
from artmancer.conditions import prepare
from artmancer.draft import DraftEditor
from artmancer.edit import edit
from artmancer.editor import EditRequest, PrecomputedEdit
from artmancer.progress import no_progress
from artmancer.registration import Similarity

RESULT = Path(__file__).parent / "results" / "registration.txt"

SIDES = (512, 1024)
"""Sides of the crops, in pixels."""

FEATHER = 16
"""Pixels over which the mask fades."""

NOISE = 0.1
"""Levels of 255 that count as no difference."""

MAX_RATIO = 1.5
"""Largest ratio of our error to that with the known movement."""

MAX_SHARE = 15.0
"""Largest share of registration in the draft's stitch stage, in percent. An edit that moved costs
more, which has no limit: two fifths of it are the resampling that moves it back.
"""

Picture = NDArray[np.float32]

MOVES = ("none", "shift", "part of a pixel", "zoom", "turn", "all", "little of all")
LOOKS = ("object", "object, shadow", "colors", "noise", "JPEG", "all")
MASKS = ("small", "large", "border", "thin", "many", "context 1.5")


class Case(NamedTuple):
    """An edit whose movement is known.

    Attributes
    ----------
    name : the photo
    half : 0 for photos that thresholds were set on, 1 for the others
    edited, before, truth : [side, side, 3]: the edit, the photo, and the edit before it moved
    mask : bool [side, side]
    shown : bool [side, side], inside the feathered mask
    movement : what was done to `truth`
    """

    name: str
    half: int
    side: int
    move: str
    look: str
    kind: str
    edited: Tensor
    before: Tensor
    truth: Tensor
    mask: Tensor
    shown: Tensor
    movement: Similarity


class Result(NamedTuple):
    """The errors of a case inside the mask, in levels."""

    case: Case
    came: float
    shifted: float
    ours: float
    known: float


def photos() -> dict[str, Picture]:
    """Load the photos, RGB in 0..1."""
    names = ("astronaut", "chelsea", "coffee", "rocket", "camera", "brick", "grass", "gravel")
    names += ("moon", "coins", "retina")
    loaded = {name: getattr(skimage.data, name)() for name in names}
    loaded["tissue"] = skimage.data.immunohistochemistry()
    loaded["hubble"] = skimage.data.hubble_deep_field()
    loaded["motorcycle"] = skimage.data.stereo_motorcycle()[0]
    if spec := importlib.util.find_spec("ultralytics"):
        for name in ("bus", "zidane"):
            file = Path(spec.submodule_search_locations[0]) / "assets" / f"{name}.jpg"
            loaded[name] = cv2.imread(str(file))[..., ::-1]
    return {
        name: (np.dstack([image] * 3) if image.ndim == 2 else image[..., :3]) / np.float32(255)
        for name, image in loaded.items()
    }


def square(photo: Picture, side: int) -> Picture:
    """Crop the middle of a photo to a square, and scale it to this side."""
    size = min(photo.shape[:2])
    top, left = ((length - size) // 2 for length in photo.shape[:2])
    middle = np.ascontiguousarray(photo[top : top + size, left : left + size], np.float32)
    method = cv2.INTER_AREA if size > side else cv2.INTER_CUBIC
    return np.clip(cv2.resize(middle, (side, side), interpolation=method), 0, 1)


def draw_mask(kind: str, side: int, random: np.random.Generator) -> Picture:
    """Draw a mask at a random place."""
    mask = np.zeros((side, side), np.float32)

    def between(low: float, high: float) -> int:
        return int(side * random.uniform(low, high))

    if kind == "small":
        cv2.circle(mask, (between(0.3, 0.7), between(0.3, 0.7)), between(0.05, 0.09), 1, -1)
    elif kind == "large":
        center, axes = (between(0.45, 0.55), between(0.45, 0.55)), (between(0.28, 0.36),) * 2
        cv2.ellipse(mask, center, axes, 0, 0, 360, 1, -1)
    elif kind == "border":
        cv2.circle(mask, (between(0.3, 0.7), side - 1), between(0.15, 0.3), 1, -1)
    elif kind == "thin":
        ends = (between(0, 0.2), between(0.2, 0.8)), (between(0.8, 1), between(0.2, 0.8))
        cv2.line(mask, *ends, 1, side // 128)
    elif kind == "many":
        for _ in range(6):
            cv2.circle(mask, (between(0.1, 0.9), between(0.1, 0.9)), between(0.03, 0.07), 1, -1)
    else:
        margin = side // 6
        mask[margin:-margin, margin:-margin] = 1
    return mask


def draw_movement(move: str, random: np.random.Generator) -> Similarity:
    """Choose a movement: shifts to 16 px, zooms 0.97 to 1.03, turns to 1 degree."""
    zoom, degrees, shift = 1.0, 0.0, complex(0)
    direction = cmath.exp(1j * random.uniform(0, 2 * math.pi))
    if move in ("shift", "all"):
        shift = 16 * math.sqrt(random.uniform()) * direction
    if move == "part of a pixel":
        shift = random.uniform(0.1, 1) * direction
    if move in ("zoom", "all"):
        zoom = random.uniform(0.97, 1.03)
    if move in ("turn", "all"):
        degrees = random.uniform(-1, 1)
    if move == "little of all":
        zoom, degrees, shift = (
            random.uniform(0.995, 1.005),
            random.uniform(-0.2, 0.2),
            random.uniform(0, 1) * direction,
        )
    return Similarity(cmath.rect(zoom, math.radians(degrees)), shift)


def move_picture(picture: Picture, movement: Similarity) -> Picture:
    """Move a picture, at twice its size, so that the kernel is another than that of the way back.
    Beyond its border it is mirrored.
    """
    if movement == Similarity():
        return picture
    side = len(picture)
    large = cv2.resize(picture, (2 * side, 2 * side), interpolation=cv2.INTER_CUBIC)
    factor, center = movement.factor, complex(2 * side - 1, 2 * side - 1) / 2
    start = 2 * movement.shift + center - factor * center
    matrix = np.array(
        [[factor.real, -factor.imag, start.real], [factor.imag, factor.real, start.imag]]
    )
    moved = cv2.warpAffine(
        large,
        matrix,
        (2 * side, 2 * side),
        flags=cv2.INTER_LANCZOS4,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return cv2.resize(moved, (side, side), interpolation=cv2.INTER_AREA)


def cases(side: int, count: int, soft: bool = False) -> Iterator[Case]:
    """Make the cases of one size, `count` of each photo.

    Parameters
    ----------
    soft : blur the photos, so that they have little texture
    """
    loaded = photos()
    pictures = [square(photo, side) for photo in loaded.values()]
    for number, before in enumerate(pictures):
        if soft:
            before = cv2.GaussianBlur(before, (0, 0), side / 40)
        other = np.rot90(pictures[(number + 5) % len(pictures)], 2)
        for index in range(count):
            random = np.random.default_rng([side, number, index])
            # The three lists have no common period, so that all pairs come up.
            move = MOVES[(index + number) % len(MOVES)]
            look = LOOKS[(index // len(MASKS) + index + number) % len(LOOKS)]
            if soft:
                look = "all"
            kind = MASKS[index % len(MASKS)]
            mask = draw_mask(kind, side, random)
            truth = change(before, other, mask, look, random)
            movement = draw_movement(move, random)
            edited = degrade(move_picture(truth, movement), look, random)
            shown = mask_ops.feather(torch.from_numpy(mask)[None], FEATHER)[0] > 0
            yield Case(
                list(loaded)[number],
                number % 2,
                side,
                move,
                look,
                kind,
                *(torch.from_numpy(picture) for picture in (edited, before, truth)),
                torch.from_numpy(mask) > 0,
                shown,
                movement,
            )


def change(
    before: Picture, other: Picture, mask: Picture, look: str, random: np.random.Generator
) -> Picture:
    """Put an object of another photo into the mask, with a shadow; change the colors."""
    side = len(mask)
    edited = np.where(mask[..., None] > 0, other, before)
    if look != "object":
        offset = side // 40
        shade = cv2.GaussianBlur(np.roll(mask, (offset, offset), (0, 1)), (0, 0), offset / 2)
        edited = edited * (1 - 0.4 * shade * (1 - mask))[..., None]
    if look in ("colors", "all"):
        y, x = np.mgrid[:side, :side] / side - 0.5
        slope = random.uniform(-0.04, 0.04) * x + random.uniform(-0.04, 0.04) * y
        edited = edited ** random.uniform(0.9, 1.1) * random.uniform(0.9, 1.1, 3)
        edited = edited + random.uniform(-0.03, 0.03, 3) + slope[..., None]
    return np.clip(edited, 0, 1).astype(np.float32)


def degrade(edited: Picture, look: str, random: np.random.Generator) -> Picture:
    """Add noise, and compress as JPEG."""
    if look in ("noise", "all"):
        edited = edited + random.normal(0, random.uniform(2, 8) / 255, edited.shape)
    edited = np.clip(edited, 0, 1).astype(np.float32)
    if look in ("JPEG", "all"):
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(70, 95))]
        _, file = cv2.imencode(".jpg", np.round(edited * 255).astype(np.uint8), quality)
        edited = cv2.imdecode(file, cv2.IMREAD_UNCHANGED) / np.float32(255)
    return edited


def phase_correlation(after: Tensor, before: Tensor, outside: Tensor) -> tuple[float, float] | None:
    """Measure a shift (down, right) by phase correlation with a low-pass."""
    height, width = outside.shape
    window = torch.from_numpy(cv2.createHanningWindow((width, height), cv2.CV_32F))
    if outside.float().mean() < 0.1:
        return None
    blurred = torch.from_numpy(cv2.GaussianBlur(outside.float().numpy(), (0, 0), 8))
    weight = blurred.mul_(2).sub_(1).clamp_(0, 1) * window
    old, new = (
        torch.fft.fft2((plane - plane[outside].mean()) * weight)
        for plane in (before.mean(-1), after.mean(-1))
    )
    y, x = torch.fft.fftfreq(height).unsqueeze(1), torch.fft.fftfreq(width).unsqueeze(0)
    low_pass = torch.exp(-(y**2 + x**2) / 0.02)
    cross = new * old.conj()
    cross = cross / cross.abs().clamp(min=1e-12) * low_pass
    correlation = torch.fft.ifft2(cross).real
    if correlation.max() < 0.2 * low_pass.mean():
        return None
    down, right = divmod(int(correlation.argmax()), width)
    down -= height * (down > height // 2)
    right -= width * (right > width // 2)
    fine = torch.arange(-1, 1.01, 0.02)
    rows = torch.exp(2j * math.pi * (down + fine).unsqueeze(1) * y.T)
    columns = torch.exp(2j * math.pi * x.T * (right + fine).unsqueeze(0))
    row, column = divmod(int((rows @ cross @ columns).real.argmax()), len(fine))
    return down + float(fine[row]), right + float(fine[column])


def undo_shift(after: Tensor, before: Tensor, outside: Tensor) -> Tensor:
    """Undo a shift where the error outside the mask falls, as was done before registration."""
    shift = phase_correlation(after, before, outside)
    if shift is None or not 0.1 <= math.hypot(*shift) <= 16:
        return after
    height, width = outside.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = [(2 * (x + shift[1]) + 1) / width - 1, (2 * (y + shift[0]) + 1) / height - 1]
    moved = functional.grid_sample(
        after.movedim(-1, 0)[None],
        torch.stack(places, -1)[None],
        mode="bicubic",
        padding_mode="border",
        align_corners=False,
    )
    back = moved[0].movedim(0, -1).clamp(0, 1)
    errors = [(image - before)[outside].square().mean() for image in (after, back)]
    return back if errors[1] < errors[0] else after


def measure(case: Case) -> Result:
    """Put one case back in each way."""
    outside = ~case.shown

    def error(image: Tensor) -> float:
        return float(255 * (image - case.truth)[case.mask].abs().mean())

    came = error(case.edited)
    result = registration.register(case.edited, case.before, outside, case.shown)
    still = case.movement == Similarity()
    return Result(
        case._replace(edited=Tensor(), before=Tensor(), truth=Tensor()),
        came,
        error(undo_shift(case.edited, case.before, outside)),
        error(result.image) if result else came,
        came if still else error(registration.undo(case.edited, case.movement)),
    )


def worse(results: list[Result], get: Callable[[Result], float]) -> float:
    """Return the percentage of the cases that are made worse."""
    return 100 * statistics.mean(get(result) > result.came + NOISE for result in results)


def ratios(results: list[Result]) -> list[float]:
    """Return the ratio of our error to that with the known movement, of each case."""
    return [(result.ours + NOISE) / (result.known + NOISE) for result in results]


def errors_table(results: list[Result], soft: list[Result]) -> str:
    """Return the mean errors by group, with the share of cases made worse and the ratio to the
    known movement.
    """
    groups = {"all": results}
    for name in ("side", "move", "look", "kind"):
        for value in dict.fromkeys(getattr(result.case, name) for result in results):
            members = [result for result in results if getattr(result.case, name) == value]
            groups[f"{'mask' if name == 'kind' else name}: {value}"] = members
    groups["not among these: blurred photos"] = soft
    head = f"{'mean error inside the mask, levels':36}{'cases':>6}"
    for column in ("as came", "shift only", "ours", "known"):
        head += f"{column:>12}"
    lines = [head + f"{'worse: shift only':>19}{'ours':>8}{'ratio: median':>15}{'worst':>7}"]
    for name, members in groups.items():
        means = [
            statistics.mean(getattr(result, field) for result in members)
            for field in ("came", "shifted", "ours", "known")
        ]
        ratio = ratios(members)
        lines.append(
            f"{name:36}{len(members):>6}"
            + "".join(f"{value:>12.2f}" for value in means)
            + f"{worse(members, lambda result: result.shifted):>17.1f} %"
            + f"{worse(members, lambda result: result.ours):>6.1f} %"
            + f"{statistics.median(ratio):>15.2f}{max(ratio):>7.2f}"
        )
    return "\n".join(lines)


def worst_cases(results: list[Result], count: int = 5) -> str:
    """Return the cases with the largest ratios to the known movement."""
    lines = ["largest ratios"]
    for result in sorted(results, key=lambda r: ratios([r])[0], reverse=True)[:count]:
        case = result.case
        factor, shift = case.movement
        lines.append(
            f"{case.name}, {case.side}, {case.kind}, {case.look}, "
            f"shift {shift.real:.2f} {shift.imag:.2f}, zoom {abs(factor):.4f}, "
            f"turn {math.degrees(cmath.phase(factor)):.3f}: "
            f"as came {result.came:.2f}, ours {result.ours:.2f}, known {result.known:.2f}"
        )
    return "\n".join(lines)


def limits(results: list[Result]) -> Iterator[Row]:
    """Return the rows with a limit, for each half of the photos."""
    for half, name in enumerate(("photos that thresholds were set on", "other photos")):
        members = [result for result in results if result.case.half == half]
        name = f"{name}, {len(members)} cases"
        yield Row(f"{name}: made worse by the shift only", worse(members, lambda r: r.shifted), "%")
        yield Row(f"{name}: made worse", worse(members, lambda r: r.ours), "%", 0)
        ratio = ratios(members)
        name = f"{name}: ratio to the known movement"
        yield Row(f"{name}, median", statistics.median(ratio), "x", MAX_RATIO)
        yield Row(f"{name}, worst", max(ratio), "x", MAX_RATIO)


def costs(rounds: int = 9) -> Iterator[Row]:
    """Measure the processor time of registration beside that of the stitch stage that it is in. All
    are measured in turns, with one thread: a thread that waits on a loaded machine counts as busy.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    side = 512
    photo = torch.from_numpy(square(photos()["astronaut"], side))[None]
    mask = torch.from_numpy(draw_mask("small", side, np.random.default_rng(0)))[None]
    conditions = prepare(photo, mask, context=10)
    crop = conditions.crop
    outside, shown = (crop.feathered == 0)[0], (crop.feathered > 0)[0]
    before = crop.image[0]
    drafted = DraftEditor("removal").edit(EditRequest(conditions), no_progress)[0]
    movement = Similarity(cmath.rect(1.01, 0.005), 3 + 2j)
    moved = torch.from_numpy(move_picture(drafted.numpy(), movement))

    def stitch(edited: Tensor) -> Callable[[], object]:
        return lambda: edit(PrecomputedEdit([edited[None]], "removal"), conditions)

    def register(edited: Tensor) -> Callable[[], object]:
        return lambda: registration.register(edited, before, outside, shown)

    size = "x".join(str(length) for length in crop.region.size)
    shift = f"{size}: phase correlation, with the way back"
    resampling = f"{size}: the way back alone"
    calls = {
        shift: lambda: undo_shift(moved, before, outside),
        resampling: lambda: registration.undo(moved, movement),
    }
    kinds = {"the draft": drafted, "an edit that moved": moved}
    for kind, edited in kinds.items():
        calls[f"{size}: stitch stage of {kind}"] = stitch(edited)
        calls[f"{size}: registration of {kind}"] = register(edited)
    times = fastest(calls, rounds)
    for name, milliseconds in times.items():
        yield Row(f"{name}, processor time", milliseconds, "ms")
    for kind, limit in zip(kinds, (MAX_SHARE, None), strict=True):
        share = 100 * times[f"{size}: registration of {kind}"]
        share /= times[f"{size}: stitch stage of {kind}"]
        yield Row(f"{size}: share of registration in the stitch of {kind}", share, "%", limit)


def fastest(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the least processor time of each call in milliseconds, called in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(1000 * (time.process_time() - start))
    return {name: min(values) for name, values in times.items()}


def thresholds(count: int) -> str:
    """Return how many cases of the first half each pair of thresholds makes worse, and how many it
    leaves as they came although undoing the measured movement would lower the error. Half of the
    cases have blurred photos.
    """
    made = itertools.chain(cases(SIDES[0], count), cases(SIDES[0], count, soft=True))
    judged = [judge(case) for case in made if case.half == 0]
    lines = [f"{'most dispute':>13}{'times noise':>14}{'made worse':>12}{'missed':>8}"]
    for share, certainty in itertools.product((0, 0.2, 0.3, 0.4, 0.5, 0.7, 1), (0, 1, 2, 3)):
        wrong = missed = 0
        for gain, fall, deviation, dispute in judged:
            applied = fall > max(registration._MIN_FALL, registration._MIN_CERTAINTY * deviation)
            applied |= fall > certainty * deviation and dispute < share
            wrong += applied and gain < -NOISE
            missed += not applied and gain > NOISE
        lines.append(f"{share:>13.2f}{certainty:>14}{wrong:>12}{missed:>8}")
    return f"{machine()}\n\n{len(judged)} cases\n" + "\n".join(lines)


def judge(case: Case) -> tuple[float, float, float, float]:
    """Return by how many levels the error inside the mask falls where the measured movement is
    undone, and what the judge says; see registration._fall and registration._MAX_DISPUTE.
    """
    new, old = (registration._plane(image) for image in (case.edited, case.before))
    shown = case.shown.numpy()
    fitting, judging = registration._split(~shown, shown)
    corners = registration._corners(shown)
    similarity = registration._fit(new, old, fitting, corners)
    if similarity is None:
        return 0.0, 0.0, math.inf, math.inf
    errors = registration._judge(new, old, judging, similarity)
    back = registration.undo(case.edited, similarity)
    came, after = (
        float(255 * (image - case.truth)[case.mask].abs().mean()) for image in (case.edited, back)
    )
    other = registration._fit(new, old, judging, corners)
    dispute = registration._dispute(similarity, other, corners)
    moved = float(np.abs(similarity.move(corners) - corners).max())
    return came - after, *registration._fall(*errors, judging), dispute / max(moved, 1e-9)


def main() -> int:
    """Run all benchmarks and print their rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--cases", type=int, default=6, help="cases of each photo and size; default: %(default)s"
    )
    parser.add_argument("--thresholds", action="store_true", help="compare thresholds of the judge")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    cv2.setNumThreads(THREADS)
    if options.thresholds:
        sys.stdout.write(thresholds(options.cases) + "\n")
        return 0
    made = itertools.chain.from_iterable(cases(side, options.cases) for side in SIDES)
    results = [measure(case) for case in made]
    soft = [measure(case) for case in cases(SIDES[0], options.cases, soft=True)]
    name = f"blurred photos, {len(soft)} cases"
    rows = [
        *limits(results),
        Row(f"{name}: made worse", worse(soft, lambda result: result.ours), "%", 0),
        # No limit: where the judge cannot tell, an edit that moved stays as it came.
        Row(f"{name}: ratio to the known movement, worst", max(ratios(soft)), "x"),
        *costs(),
    ]
    text = f"{table(rows)}\n\n{errors_table(results, soft)}\n\n{worst_cases(results)}\n"
    RESULT.write_text(text)
    if options.json:
        return finish(rows, True)
    sys.stdout.write(text)
    return 1 if any(row.ok is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
