"""Benchmark of the verdict on edits whose faults are known: how often each reason is right.

Every case is made: a photo, an object drawn into it, and an edit with a fault of a strength that is
invisible, faint or clear. Half of the photos are for choosing thresholds; the table is of the other
half. Faint faults count neither way. The table goes to benchmarks/results/verdict.txt.

Usage: python benchmarks/verdict.py [--json] [--sheet FILE]

--sheet : also draw ten cases, before and after, with their verdicts
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from report import THREADS, Row, finish, table
from torch import Tensor

from artmancer import color, mask_ops, region, registration, verdict
from artmancer.conditions import Conditions, prepare
from artmancer.draft import DraftEditor
from artmancer.edit import edit as edit_image
from artmancer.editor import EditRequest, PrecomputedEdit
from artmancer.images import to_pil
from artmancer.options import DEFAULT_SAMPLING
from artmancer.progress import no_progress
from artmancer.spill import spill

RESULTS = Path(__file__).parent / "results" / "verdict.txt"

CHOOSING = ("astronaut", "coffee", "rocket", "camera", "grass", "coins", "ihc")
"""Photos of skimage.data that the thresholds were chosen on."""

JUDGING = ("chelsea", "motorcycle_left", "hubble_deep_field", "moon", "gravel", "brick", "retina")
"""Photos of skimage.data that the table is of."""

SIDE = 512
"""Shorter side of a photo, in pixels."""

PLACES = ((0.35, 0.35, 52), (0.62, 0.6, 38))
"""Objects in each photo: y and x as a share of its sides, and the radius in pixels."""

LOOSE = 30
"""Pixels by which a loose mask is larger than its object, on each side."""

RING = 16
"""Width of an object that is a ring, in pixels."""

INVISIBLE, FAINT, CLEAR = "invisible", "faint", "clear"
"""Strengths of a fault."""


class Scene(NamedTuple):
    """A photo with and without an object.

    Attributes
    ----------
    photo : name of the photo
    without, with_object : IMAGE [1, H, W, 3]
    mask : MASK [1, H, W], a loose mask of the object
    shape : MASK [1, H, W], the object
    place : number of the object in its photo
    """

    photo: str
    without: Tensor
    with_object: Tensor
    mask: Tensor
    shape: Tensor
    place: int


class Label(NamedTuple):
    """The known truth of a case.

    Attributes
    ----------
    photo : name of the photo
    kind : how the edit was made
    strength : strength of its fault; CLEAR for an edit without one
    reasons : names of the reasons that are right
    allowed : names of further reasons that are neither right nor wrong
    word : the right verdict
    variant : kind of edit
    shift : pixels by which the edit was moved and not put back
    """

    photo: str
    kind: str
    strength: str
    reasons: frozenset[str]
    allowed: frozenset[str]
    word: str
    variant: str
    shift: float | None


class Case(NamedTuple):
    """An edit and its label.

    Attributes
    ----------
    label : Label
    edit : what the verdict sees
    """

    label: Label
    edit: verdict.Edit


def load(name: str) -> Tensor:
    """Load a photo of skimage.data as IMAGE [1, H, W, 3]."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    (path,) = (path for path in folder.glob(f"{name}.*") if path.suffix in (".png", ".jpg"))
    image = Image.open(path).convert("RGB")
    scale = SIDE / min(image.size)
    size = [round(side * scale) for side in image.size]
    pixels = np.asarray(image.resize(size, Image.Resampling.LANCZOS), np.float32) / 255
    return torch.from_numpy(pixels)[None, :, : 3 * SIDE // 2].contiguous()


def ellipse(size: tuple[int, int], y: float, x: float, radius: float) -> Tensor:
    """Draw an ellipse with a soft edge of one pixel, MASK [1, H, W]."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    distance = np.hypot((rows - y) / 1.2, columns - x)
    return torch.from_numpy(np.clip(radius + 0.5 - distance, 0, 1).astype(np.float32))[None]


def blend(image: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """Blend another IMAGE over an image, as strongly as the MASK says."""
    return torch.lerp(image, other.expand_as(image), mask[..., None])


def scenes(photo: str, others: tuple[str, ...]) -> Iterator[Scene]:
    """Draw an object into a photo at each place: a part of another photo, or a shaded ball."""
    without = load(photo)
    height, width = without.shape[1:3]
    for place, (y, x, radius) in enumerate(PLACES):
        shape = ellipse((height, width), y * height, x * width, radius)
        if place:
            rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            light = 0.75 - ((rows - y * height) + (columns - x * width)) / (4 * radius)
            ball = light.clamp(0.15, 1)[None, ..., None] * torch.tensor([0.9, 0.45, 0.3])
            with_object = blend(without, ball, shape)
        else:
            other = load(others[0])[:, :height, :width]
            texture = without.flip(2).clone()
            texture[:, : other.shape[1], : other.shape[2]] = other
            with_object = blend(without, texture, shape)
        mask = mask_ops.grow((shape > 0).float(), (10, 5)[place])
        yield Scene(photo, without, with_object, mask, shape, place)


def blur(image: Tensor, sigma: float) -> Tensor:
    """Blur an IMAGE [1, H, W, 3]."""
    return torch.from_numpy(cv2.GaussianBlur(image[0].numpy(), (0, 0), sigma))[None]


def noise(image: Tensor, levels: float, seed: int = 0) -> Tensor:
    """Add noise of this standard deviation, in 8-bit levels."""
    generator = torch.Generator().manual_seed(seed)
    return (image + levels / 255 * torch.randn(image.shape, generator=generator)).clamp(0, 1)


def quantize(image: Tensor) -> Tensor:
    """Round an IMAGE to 8 bits, as a decoder's output that was saved."""
    return (image.clamp(0, 1) * 255).round() / 255


def judged(
    conditions: Conditions,
    edited: Tensor,
    *,
    match: bool = True,
    widen: bool = False,
    local: bool = True,
) -> verdict.Edit:
    """Return what the verdict sees of an edit of the crop, as artmancer.edit makes it."""
    crop = conditions.crop
    edited = quantize(edited)
    pasted = color.match_rim(edited, crop.image, crop.mask) if match and local else edited
    shown = crop.feathered
    if widen:
        shown = torch.maximum(shown, spill(pasted, crop.image, crop.feathered))
    return verdict.Edit(
        crop.image[0],
        edited[0],
        pasted[0],
        crop.mask[0],
        crop.feathered[0],
        shown[0],
        crop.region.shows_image()[0],
    )


class Maker(NamedTuple):
    """The material of the cases of one scene.

    Attributes
    ----------
    scene : Scene
    conditions : of the photo with the object and its mask
    truth : IMAGE [1, h, w, 3], the crop without the object
    """

    scene: Scene
    conditions: Conditions
    truth: Tensor

    def case(
        self,
        kind: str,
        edited: Tensor,
        reasons: str = "",
        *,
        strength: str = CLEAR,
        allowed: str = "",
        word: str = verdict.LOOK,
        variant: str = "removal",
        shift: float | None = None,
        **options: bool,
    ) -> Case:
        """Make a case; reasons and allowed are names, joined by commas."""
        names = frozenset(filter(None, reasons.split(",")))
        if strength == INVISIBLE:
            names = frozenset()
        label = Label(
            self.scene.photo,
            kind,
            strength,
            names,
            frozenset(filter(None, allowed.split(","))) - names,
            word if names else verdict.GOOD,
            variant,
            shift,
        )
        return Case(label, judged(self.conditions, edited, **options))


def maker(scene: Scene) -> Maker:
    """Prepare a scene for removals."""
    conditions = prepare(scene.with_object, scene.mask, context=1.8)
    return Maker(scene, conditions, region.crop_like(scene.without, conditions.crop.region))


def strength_of(value: float, invisible: float, clear: float) -> str:
    """Return the strength of a fault by its size."""
    return INVISIBLE if value <= invisible else CLEAR if value >= clear else FAINT


def good_removals(make: Maker) -> Iterator[Case]:
    """Make removals without a fault."""
    truth, conditions = make.truth, make.conditions
    yield make.case("removal: truth", truth)
    decoded = noise(blur(truth, 0.3), 1.0)
    yield make.case("removal: truth, noise of a decoder", decoded)
    yield make.case("removal: truth, tinted", 0.94 * truth + 0.02)
    # Only the mask is edited.
    inside = conditions.crop.mask
    yield make.case("removal: truth, only the mask", blend(conditions.crop.image, truth, inside))
    request = EditRequest(conditions, "", 0, DEFAULT_SAMPLING)
    filled = DraftEditor("removal").edit(request, no_progress)
    yield make.case("removal: draft", filled, match=False)


def shadow_of(shape: Tensor, down: int, right: int, sigma: float) -> Tensor:
    """Return the soft shadow of a shape, MASK [1, H, W]."""
    moved = torch.roll(shape, (down, right), (1, 2))
    return blur(moved[..., None].expand(-1, -1, -1, 3), sigma)[..., 0] * (1 - shape)


def insertions(scene: Scene) -> Iterator[Case]:
    """Make insertions: without a fault, and with a shadow that is cut off or not."""
    shadow = shadow_of(scene.shape, 10, 14, 5)
    dark = blend(scene.with_object, torch.zeros(3), 0.45 * shadow)
    wide = mask_ops.grow(scene.mask, 26)
    for kind, mask, image in (
        ("insertion: truth", scene.mask, scene.with_object),
        ("insertion: with its shadow inside", wide, dark),
    ):
        make = _for_insertion(scene, mask, image)
        yield make.case(kind, make.truth, variant="insertion")
        yield make.case(
            f"{kind}, noise of a decoder", noise(blur(make.truth, 0.3), 1.0), variant="insertion"
        )
    far = shadow_of(scene.shape, 30, 38, 5)
    for opacity in (0.03, 0.15, 0.3, 0.5):
        cast = blend(scene.with_object, torch.zeros(3), opacity * far)
        make = _for_insertion(scene, scene.mask, cast)
        # What is cut off of it, in levels.
        cut = (make.truth - make.conditions.crop.image).abs().amax(-1)
        area = float(((cut > 10 / 255) & (make.conditions.crop.feathered == 0)).float().mean())
        strength = strength_of(area, 0.002, 0.03)
        yield make.case(
            f"insertion: its shadow is cut off, {opacity}",
            make.truth,
            "outside",
            strength=strength,
            allowed="jump",
            variant="insertion",
        )
    near = blend(scene.with_object, torch.zeros(3), 0.4 * shadow_of(scene.shape, 20, 26, 5))
    make = _for_insertion(scene, scene.mask, near)
    yield make.case(
        "insertion: its shadow is stitched",
        make.truth,
        variant="insertion",
        widen=True,
        match=False,
    )
    # Colors that are matched at a rim half in shadow come out tinted.
    yield make.case(
        "insertion: its shadow is stitched, colors matched",
        make.truth,
        "outside",
        strength=FAINT,
        allowed="jump",
        variant="insertion",
        widen=True,
    )
    conditions = prepare(
        scene.without,
        scene.mask,
        context=1.8,
        reference=scene.with_object,
        reference_mask=scene.shape,
    )
    make = Maker(scene, conditions, conditions.crop.image)
    request = EditRequest(conditions, "", 0, DEFAULT_SAMPLING)
    drafted = DraftEditor("insertion").edit(request, no_progress)
    yield make.case("insertion: draft", drafted, variant="insertion")
    make = _for_insertion(scene, scene.mask, scene.with_object)
    for levels in (2, 14, 28):
        yield make.case(
            f"insertion: surroundings lighter by {levels}",
            make.truth + levels / 255,
            "jump",
            strength=strength_of(levels, 2, 14),
            allowed="outside",
            variant="insertion",
            match=False,
        )
    for sigma in (0.3, 1.0, 2.0):
        soft = blur(make.truth, sigma)
        yield make.case(
            f"insertion: blurred by {sigma}",
            soft,
            "soft",
            strength=softness(make, soft, make.conditions.crop.feathered),
            allowed="outside",
            variant="insertion",
        )
    yield make.case(
        "insertion: nothing changed",
        noise(make.conditions.crop.image, 1.0),
        "unchanged",
        word=verdict.FAILED,
        variant="insertion",
    )
    other = make.conditions.crop.image.flip(1)
    yield make.case(
        "insertion: another photo around",
        other,
        "outside",
        strength=difference_of(make, other),
        allowed="jump,soft,unchanged",
        variant="insertion",
    )


def _for_insertion(scene: Scene, mask: Tensor, edited: Tensor) -> Maker:
    """Prepare a scene for an insertion whose result is known."""
    conditions = prepare(scene.without, mask, context=1.8)
    return Maker(scene, conditions, region.crop_like(edited, conditions.crop.region))


def softness(make: Maker, soft: Tensor, area: Tensor) -> str:
    """Return the strength of a blur by what it took from the truth in an area."""
    lost = (soft - make.truth)[area > 0].square().mean().sqrt()
    return strength_of(255 * float(lost), 1, 4)


def faulty_removals(make: Maker) -> Iterator[Case]:
    """Make removals with a fault."""
    truth, crop = make.truth, make.conditions.crop
    failed = verdict.FAILED
    yield make.case("nothing changed", crop.image, "unchanged", word=failed)
    for levels in (0.5, 1.5):
        yield make.case(
            f"nothing changed, noise of {levels}",
            noise(crop.image, levels),
            "unchanged",
            word=failed,
        )
    yield make.case("nothing changed, tinted", 0.95 * crop.image, "unchanged", word=failed)
    for name, value in (("black", 0.0), ("gray", 0.5)):
        flat = blend(truth, torch.full((3,), value), crop.mask)
        varied = float(truth[crop.mask > 0].std(0).max()) > 4 / 255
        yield make.case(
            f"{name} in the mask",
            flat,
            "flat",
            word=failed,
            strength=CLEAR if varied else FAINT,
            allowed="seam,jump,soft",
        )
    for levels in (1, 3, 8, 16, 32):
        sign = -1 if truth[crop.mask > 0].mean() > 0.5 else 1
        yield make.case(
            f"mask {'lighter' if sign > 0 else 'darker'} by {levels}",
            blend(truth, (truth + sign * levels / 255).clamp(0, 1), crop.mask),
            "seam",
            strength=strength_of(levels, 1, 16),
        )
        yield make.case(
            f"mask tinted by {levels}",
            blend(truth, truth + levels / 255 * torch.tensor([1.0, 0, -1]), crop.mask),
            "seam",
            strength=strength_of(levels, 1, 16),
        )
    for levels in (2, 6, 14, 28):
        yield make.case(
            f"all lighter by {levels}, not matched",
            truth + levels / 255,
            "jump",
            strength=strength_of(levels, 2, 14),
            allowed="outside,seam",
            match=False,
        )
    for sigma in (0.3, 0.6, 1.0, 2.0, 4.0):
        soft = blur(truth, sigma)
        strength = softness(make, soft, crop.feathered)
        yield make.case(f"blurred by {sigma}", soft, "soft", strength=strength, allowed="outside")
        yield make.case(
            f"mask blurred by {sigma}",
            blend(crop.image, soft, crop.mask),
            "soft",
            strength=softness(make, soft, crop.mask),
            allowed="seam",
        )
    yield from moved_removals(make)
    yield from ghosts(make)
    yield from parts_left(make)
    yield from spilled_removals(make)


def moved_removals(make: Maker) -> Iterator[Case]:
    """Make removals that were moved, and were put back or not."""
    crop = make.conditions.crop
    before = region.repeat_edge(crop.image, crop.region)[0]
    outside = ((crop.feathered == 0) & crop.region.shows_image())[0]
    for pixels in (0.2, 1.5, 4.0):
        # Sampling the truth at shifted places moves it the other way.
        movement = registration.Similarity(shift=complex(-pixels / 2, pixels))
        moved = registration.undo(make.truth[0], movement)
        measured = registration.register(moved, before, outside, crop.feathered[0] > 0)
        yield make.case(
            f"moved by {pixels} px",
            moved[None],
            "moved",
            strength=strength_of(pixels, 0.2, 1.5),
            allowed="outside,jump,soft,seam",
            shift=measured.moved if measured else None,
        )
        if measured:
            yield make.case(f"moved by {pixels} px and put back", measured.image[None])


def ghosts(make: Maker) -> Iterator[Case]:
    """Make removals that left something of the object."""
    truth, crop = make.truth, make.conditions.crop
    for share in (0.03, 0.15, 0.4, 0.7):
        yield make.case(
            f"{share:.0%} of the object left",
            torch.lerp(truth, crop.image, share),
            "still there",
            strength=strength_of(share, 0.03, 0.4),
            allowed="part left",
        )
    recolored = crop.image[..., [2, 0, 1]]
    shape = region.crop_like(make.scene.shape[..., None].expand(-1, -1, -1, 3), crop.region)[..., 0]
    is_gray = (recolored - crop.image).abs()[shape > 0.5].mean() < 6 / 255
    yield make.case(
        "the object in other colors",
        blend(truth, recolored, shape),
        "still there",
        strength=FAINT if is_gray else CLEAR,
    )
    softer = blend(truth, blur(crop.image, 1.5), shape)
    yield make.case(
        "the object redrawn, softer", softer, "still there", allowed="unchanged,soft,part left"
    )


HIDDEN_LEVELS = 10
"""Difference between the object and what is behind it that is hardly visible, in levels of 255."""


def parts_left(make: Maker, name: str = "") -> Iterator[Case]:
    """Make removals that left a part of the object as it was.

    Parameters
    ----------
    name : what to add to the kind of edit
    """
    truth, crop = make.truth, make.conditions.crop
    shape = region.crop_like(make.scene.shape[..., None].expand(-1, -1, -1, 3), crop.region)[..., 0]
    visible = (crop.image - truth).abs().amax(-1) > HIDDEN_LEVELS / 255
    for share, side in itertools.product((0.15, 0.3, 0.45, 0.6), ("left", "bottom", "blobs")):
        part = part_of(shape, share, side)
        is_clear = share >= 0.3 and visible[part > 0.5].float().mean() > 0.5
        yield make.case(
            f"{share:.0%} left{name}: {side}",
            noise(blend(truth, crop.image, part), 1.0),
            "part left",
            strength=CLEAR if is_clear else FAINT,
            allowed="still there,unchanged",
        )


def part_of(shape: Tensor, share: float, side: str) -> Tensor:
    """Return a part of a shape, MASK [1, h, w], by its share of the area."""
    height, width = shape.shape[1:]
    if side == "blobs":
        radius = float((shape.sum() / torch.pi).sqrt())
        grain = torch.randn(height, width, 3, generator=torch.Generator().manual_seed(0))
        order = blur(grain[None], radius / 5)[0, ..., 0]
    elif side == "bottom":
        order = -torch.arange(height).float()[:, None].expand(height, width)
    else:
        order = torch.arange(width).float().expand(height, width)
    limit = order[shape[0] > 0.5].quantile(share)
    return shape * (order <= limit)


def other_masks(scene: Scene) -> Iterator[Case]:
    """Make removals with masks that are larger than the object: edits that keep the background in
    them, and those that also keep a part of the object.
    """
    rows, columns = (torch.nonzero(scene.shape[0].amax(axis) > 0) for axis in (1, 0))
    box = torch.zeros_like(scene.shape)
    box[:, int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1] = 1
    ring = scene.shape - mask_ops.grow((scene.shape > 0).float(), -RING).clamp(max=1)
    with_ring = blend(scene.without, scene.with_object, ring)
    for name, other in (
        ("loose mask", scene._replace(mask=mask_ops.grow((scene.shape > 0).float(), LOOSE))),
        ("box mask", scene._replace(mask=mask_ops.grow(box, LOOSE // 2))),
        ("a ring", scene._replace(with_object=with_ring, shape=ring)),
    ):
        make = maker(other)
        crop = make.conditions.crop
        yield make.case(f"removal, {name}: truth", make.truth)
        inside = blend(crop.image, noise(blur(make.truth, 0.3), 1.0), crop.mask)
        yield make.case(f"removal, {name}: truth, noise of a decoder", inside)
        request = EditRequest(make.conditions, "", 0, DEFAULT_SAMPLING)
        yield make.case(
            f"removal, {name}: draft", DraftEditor("removal").edit(request, no_progress)
        )
        yield from parts_left(make, f", {name}")


def spilled_removals(make: Maker) -> Iterator[Case]:
    """Make removals that changed the surroundings."""
    truth, crop = make.truth, make.conditions.crop
    near = mask_ops.distance(crop.mask[0])
    band = ((near > 20) & (near < 60)).float()[None]
    band[..., : band.shape[2] // 2] = 0
    for opacity in (0.02, 0.2, 0.5):
        dark = blend(truth, torch.zeros(3), opacity * band)
        cut = ((dark - truth).abs().amax(-1) > 10 / 255) & (crop.feathered == 0)
        yield make.case(
            f"a stain of {opacity} beside the mask",
            dark,
            "outside",
            strength=strength_of(float(cut.float().mean()), 0.002, 0.03),
        )
    other = blend(truth.flip(2), truth, crop.feathered)
    strength = difference_of(make, other)
    yield make.case(
        "another photo around", other, "outside", strength=strength, allowed="jump,soft"
    )


def difference_of(make: Maker, other: Tensor) -> str:
    """Return the strength of a change outside the feathered mask."""
    crop = make.conditions.crop
    difference = (other - crop.image).abs()[crop.feathered == 0].mean()
    return strength_of(255 * float(difference), 1, 16)


def balances(scene: Scene) -> Iterator[Case]:
    """Make white balances: good, none, clipped, of another photo."""
    cast = torch.tensor([1.0, 0.82, 0.6])
    photo = scene.without
    mask = torch.ones(photo.shape[:3])
    for kind, before, edited, reasons, word in (
        ("balance: truth", photo * cast, photo, "", verdict.GOOD),
        ("balance: truth, noise of a decoder", photo * cast, noise(photo, 1.5), "", verdict.GOOD),
        ("balance: half of the cast", photo * cast.sqrt(), photo, "", verdict.GOOD),
        ("balance: nothing changed", photo, noise(photo, 0.5), "unmoved", verdict.LOOK),
        ("balance: overexposed", photo * cast, 1.8 * photo + 0.1, "clipped", verdict.LOOK),
        ("balance: another photo", photo * cast, photo.flip(2), "repainted", verdict.FAILED),
        ("balance: gray", photo, torch.full_like(photo, 0.5), "flat", verdict.FAILED),
    ):
        conditions = prepare(before, mask)
        truth = region.crop_like(edited.clamp(0, 1), conditions.crop.region)
        strength = CLEAR
        if reasons == "clipped":
            lost = (edited > 1).any(-1).float().mean()
            strength = strength_of(float(lost), 0.005, 0.05)
        yield Maker(scene, conditions, truth).case(
            kind,
            truth,
            reasons,
            word=word,
            variant="white_balance",
            strength=strength,
            local=False,
            allowed="clipped" if reasons else "",
        )


def cases(photos: tuple[str, ...]) -> Iterator[Case]:
    """Make all cases of these photos."""
    for index, photo in enumerate(photos):
        others = (*photos[index + 1 :], *photos[:index])
        for scene in scenes(photo, others):
            make = maker(scene)
            yield from good_removals(make)
            yield from faulty_removals(make)
            yield from insertions(scene)
            if scene.place == 0:
                yield from balances(scene)
            # Last, because they take the longest, and none is on the sheet.
            yield from other_masks(scene)


FIGURES = {
    "unchanged": ("changed", -1, verdict.MIN_CHANGED),
    "flat": ("variation", -1, verdict.MIN_VARIATION),
    "seam": ("seam", 1, verdict.MAX_SEAM),
    "jump": ("jump", 1, verdict.MAX_JUMP),
    "soft": ("sharpness", -1, verdict.MIN_SHARPNESS),
    "moved": ("shift", 1, verdict.MAX_SHIFT),
    "outside": ("outside", 1, verdict.MAX_OUTSIDE),
    "still there": ("likeness", 1, verdict.MAX_LIKENESS),
    "part left": ("left", 1, verdict.MAX_LEFT),
    "unmoved": ("moved", -1, verdict.MIN_MOVED),
    "clipped": ("clipped", 1, verdict.MAX_CLIPPED),
    "repainted": ("structure", -1, verdict.MIN_STRUCTURE),
}
"""For each reason the name of its figure, 1 where large values are bad or -1 where small ones are,
and its threshold.
"""


class Outcome(NamedTuple):
    """The verdict on a case.

    Attributes
    ----------
    label : Label
    figures : figures by name
    findings : names of the reasons
    verdict : the verdict
    """

    label: Label
    figures: dict[str, float | None]
    findings: frozenset[str]
    verdict: verdict.Verdict


def judge(case: Case) -> Outcome:
    """Judge a case."""
    label, edit = case
    findings = [
        *verdict.judge(edit, label.variant),
        *verdict.judge_shift(label.shift, put_back=False),
    ]
    measured: verdict.Balance | verdict.Figures
    if label.variant == "white_balance":
        measured = verdict.measure_balance(edit)
    else:
        measured = verdict.measure(edit, label.variant)
    names = frozenset(finding.name for finding in findings)
    figures = {**measured._asdict(), "shift": label.shift}
    return Outcome(label, figures, names, verdict.conclude([findings]))


def best_thresholds(name: str, outcomes: list[Outcome]) -> tuple[float, float]:
    """Return the lowest and highest threshold with the best F1 score of a reason.

    Parameters
    ----------
    outcomes : of the photos that thresholds are chosen on
    """
    key, sign, _ = FIGURES[name]
    bad, fine = [], []
    for outcome in outcomes:
        value, case = outcome.figures.get(key), outcome.label
        if value is None or case.strength == FAINT or name in case.allowed:
            continue
        (bad if name in case.reasons else fine).append(sign * value)
    values = sorted({*bad, *fine})
    scores = []
    for low in values:
        hits = sum(value > low for value in bad)
        scores.append(2 * hits / (len(bad) + hits + sum(value > low for value in fine)))
    best = [index for index, score in enumerate(scores) if score == max(scores)]
    # A threshold may lie anywhere up to the next value.
    edges = (values[best[0]], values[min(best[-1] + 1, len(values) - 1)])
    low, high = sorted(sign * edge for edge in edges)
    return low, high


def reason_lines(chosen: list[Outcome], judged_outcomes: list[Outcome]) -> Iterator[str]:
    """Yield a line for each reason: threshold, the best range, precision and recall."""
    yield (
        f"{'reason':12} {'threshold':>9} {'best range':>17} {'faults':>7} {'hits':>6} "
        f"{'false':>6} {'precision':>10} {'recall':>7} {'faint':>9}"
    )
    for name, (_, _, threshold) in FIGURES.items():
        low, high = best_thresholds(name, chosen)
        certain = [outcome for outcome in judged_outcomes if outcome.label.strength != FAINT]
        right = [outcome for outcome in certain if name in outcome.label.reasons]
        hits = sum(name in outcome.findings for outcome in right)
        false = sum(
            name in outcome.findings and name not in outcome.label.reasons | outcome.label.allowed
            for outcome in certain
        )
        faint = [
            name in outcome.findings
            for outcome in judged_outcomes
            if outcome.label.strength == FAINT and name in outcome.label.reasons
        ]
        precision = f"{100 * hits / (hits + false):.0f} %" if hits + false else "none"
        yield (
            f"{name:12} {threshold:9.4f} {f'{low:.4f}..{high:.4f}':>17} {len(right):7} {hits:6} "
            f"{false:6} {precision:>10} {100 * hits / len(right):5.0f} % "
            f"{f'{sum(faint)} of {len(faint)}':>9}"
        )


def confusion_lines(outcomes: list[Outcome]) -> Iterator[str]:
    """Yield the lines of a table of the right verdict against ours."""
    yield f"{'right verdict':14}" + "".join(f"{word:>8}" for word in verdict.VERDICTS)
    for right in verdict.VERDICTS:
        words = [
            outcome.verdict.word
            for outcome in outcomes
            if outcome.label.word == right and outcome.label.strength != FAINT
        ]
        yield f"{right:14}" + "".join(f"{words.count(word):8}" for word in verdict.VERDICTS)


def kind_lines(outcomes: list[Outcome]) -> Iterator[str]:
    """Yield a line for each kind of case: how many are good, worth a look, failed."""
    kinds = dict.fromkeys((outcome.label.kind, outcome.label.word) for outcome in outcomes)
    width = max(len(kind) for kind, _ in kinds)
    yield (
        f"{'kind of edit':{width}} {'right':>7}"
        + "".join(f"{word:>8}" for word in verdict.VERDICTS)
        + "  faint"
    )
    for kind, right in kinds:
        same = [o for o in outcomes if (o.label.kind, o.label.word) == (kind, right)]
        words = [outcome.verdict.word for outcome in same]
        faint = sum(outcome.label.strength == FAINT for outcome in same)
        counts = "".join(f"{words.count(word):8}" for word in verdict.VERDICTS)
        yield f"{kind:{width}} {right:>7}{counts}{faint or '':>7}".rstrip()


def cost() -> tuple[float, float]:
    """Return the processor time, in milliseconds, of the verdict and of the draft's stitch with it,
    on a crop of 512x512 pixels.
    """
    photo = load("astronaut")
    mask = ellipse((512, 512), 256, 256, 130)
    conditions = prepare(photo, mask, context=2)
    edited = noise(blend(conditions.crop.image, torch.tensor(0.5), conditions.crop.mask), 4)
    alone, stitch = [], []
    for _ in range(15):
        case = judged(conditions, edited)
        start = time.process_time()
        verdict.judge(case, "removal")
        alone.append(time.process_time() - start)
        start = time.process_time()
        edit_image(PrecomputedEdit([edited], "removal"), conditions)
        stitch.append(time.process_time() - start)
    return 1000 * statistics.median(alone), 1000 * statistics.median(stitch)


SHEET = (
    "removal: draft",
    "removal: truth, noise of a decoder",
    "insertion: with its shadow inside",
    "nothing changed, noise of 1.5",
    "mask tinted by 16",
    "all lighter by 14, not matched",
    "blurred by 1.0",
    "a stain of 0.2 beside the mask",
    "45% left: blobs",
    "balance: overexposed",
)
"""Kinds of the cases on the sheet."""


def draw_sheet(path: Path) -> None:
    """Draw the cases of SHEET, each of another photo: before, as pasted, verdict."""
    side, gap = 300, 34
    font = ImageFont.load_default(13)
    sheet = Image.new("RGB", (4 * side + 30, 5 * (side + gap)), "white")
    pen = ImageDraw.Draw(sheet)
    photos = JUDGING + CHOOSING
    for index, kind in enumerate(SHEET):
        photo = photos[index % len(photos)]
        case = next(case for case in cases((photo, photos[index - 1])) if case.label.kind == kind)
        left, top = (index % 2) * (2 * side + 20), index // 2 * (side + gap)
        pasted = case.edit.pasted
        if case.label.variant != "white_balance":
            pasted = torch.lerp(case.edit.before, pasted, case.edit.feathered[..., None])
        for column, image in enumerate((case.edit.before, pasted)):
            thumbnail = to_pil(image)
            thumbnail.thumbnail((side, side))
            sheet.paste(thumbnail, (left + column * side, top))
        outcome = judge(case)
        pen.text((left + 2, top + side), f"{photo}: {kind}", "black", font)
        text = " ".join((outcome.verdict.word, *outcome.verdict.reasons))
        pen.text((left + 2, top + side + 15), text[:105], "black", font)
    sheet.save(path)


def main() -> int:
    """Make the cases, judge them, and print and store the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--sheet", type=Path, help="an image to draw ten cases into")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if options.sheet:
        draw_sheet(options.sheet)
        return 0
    chosen, outcomes = ([judge(case) for case in cases(half)] for half in (CHOOSING, JUDGING))
    alone, stitch = cost()
    certain = [outcome for outcome in outcomes if outcome.label.strength != FAINT]
    right = sum(outcome.verdict.word == outcome.label.word for outcome in certain)
    warned = sum(
        (outcome.verdict.word != verdict.GOOD) == (outcome.label.word != verdict.GOOD)
        for outcome in certain
    )
    rows = [
        Row("cases that thresholds were chosen on", len(chosen), "cases"),
        Row("cases of the table, at least", len(outcomes), "cases", 200),
        Row("verdict exactly right, at least", 100 * right / len(certain), "%", 90),
        Row("good or not good is right, at least", 100 * warned / len(certain), "%", 90),
        Row("verdict on a crop of 512x512, processor time", alone, "ms"),
        Row("stitch with the verdict, processor time", stitch, "ms"),
        Row("verdict over the rest of the stitch", 100 * alone / (stitch - alone), "%", 10),
    ]
    code = finish(rows, options.json)
    RESULTS.write_text(
        "\n".join(
            [
                table(rows),
                "",
                f"thresholds chosen on: {', '.join(CHOOSING)}",
                f"table of: {', '.join(JUDGING)}",
                "",
                *reason_lines(chosen, outcomes),
                "",
                *confusion_lines(outcomes),
                "",
                *kind_lines(outcomes),
                "",
            ]
        )
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
