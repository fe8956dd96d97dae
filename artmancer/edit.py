"""One edit from end to end: edit the crop, put it back, report.

`conditions.prepare` makes the conditions. The nodes Edit Sampler and Stitch, and the command line,
then call `edit`.
"""

import math
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import color, grain, region, verdict
from .checks import check_mask_given
from .conditions import Conditions, Reference, on_image, timed
from .editor import Editor, EditRequest, PrecomputedEdit
from .errors import ArtMancerError
from .options import DEFAULT_SAMPLING, ONE_MEGAPIXEL, Sampling
from .progress import Progress, no_progress, part_progress
from .recipes import RECIPES
from .region import Crop
from .registration import Registration, register
from .report import REGION_FIELDS, EditResult, Report
from .spill import spill
from .tone import value_range

_NOT_MEASURED = (
    "Whether the edit moved cannot be measured: around the mask, too little of it agrees with the "
    "photo. The edit was stitched as it came."
)
"""Note of an edit whose registration is not known."""

_UNIFORM = 2 / 255
"""Largest range of each channel's values in an edit that counts as one color."""

_BLACK = 2 / 255
"""Brightest value of an edit that counts as black."""

_NOT_BLACK = 0.1
"""Brightness of the surroundings above which a black edit is a failure."""

_NEAR = 0.1
"""Largest difference of colors that count as one, in any channel."""


def edit(
    editor: Editor,
    conditions: Conditions,
    *,
    prompt: str = "",
    seed: int = 0,
    sampling: Sampling = DEFAULT_SAMPLING,
    match: bool = True,
    transfer: str = "colors",
    widen: bool = False,
    match_grain: bool = False,
    progress: Progress = no_progress,
) -> EditResult:
    """Edit the crop of each part of the mask, stitch the edits into the image, and report.

    Parameters
    ----------
    conditions : from conditions.prepare
    prompt : see EditRequest; empty: the default of the conditions
    seed : see EditRequest; each part of the mask uses the next seeds
    sampling : see EditRequest; recipes.Overrides makes a sampling that follows a recipe
    match : match the edit's colors to the image's at the rim of the mask, unless the editor keeps
        the surroundings
    transfer : one of TRANSFERS, for white balance. "colors": the edit's change of colors is fitted
        and applied to the image's own pixels, at full resolution. "pixels": the edit is stitched,
        like every other edit
    widen : also stitch what the edit changed around the feathered mask, such as a shadow or a
        reflection
    match_grain : sharpen what is pasted, and add noise to it, as far as its surroundings have more
    progress : called with the editor's progress; raising in it cancels

    Raises
    ------
    ArtMancerError : mask_missing, generation_failed where the edit is uniform or not finite, and
        what the editor raises
    """
    check_mask_given(editor.variant, conditions.masked)
    # A fill also replaces a rim around the mask. Its colors must not be matched to what was there.
    match = match and not editor.keeps_surroundings
    _reset_peak_memory()
    shown = [
        (index, part) for index, part in enumerate(conditions.parts) if not part.crop.is_hidden
    ]
    image, spilled = conditions.image, torch.zeros(conditions.image.shape[:3])
    reports: dict[int, Report] = {}
    for step, (index, part) in enumerate(shown):
        own_progress = part_progress(progress, step, len(shown))
        overlaps = any(_overlap(part, earlier) for _, earlier in shown[:step])
        # An edit that was made before saw the image as it came.
        is_stale = overlaps and isinstance(editor, PrecomputedEdit)
        if overlaps and not is_stale:
            part = on_image(part, image)
        request = EditRequest(
            replace(part, image=image),
            prompt or part.default_prompt,
            seed + index * len(image),
            sampling,
            index,
        )
        pasting = _Pasting(match, transfer, widen, match_grain, is_stale)
        result = _edit_part(editor, request, pasting, own_progress)
        image = _put_back(result.image, image, part.crop, is_copy=step > 0)
        spills = region.cut_boxes(spilled, part.crop.region)
        region.paste_boxes(spilled, torch.maximum(spills, result.spill), part.crop.region)
        reports[index + 1] = result.report
    return EditResult(image, spilled, _join(reports, conditions))


def _put_back(boxes: Tensor, image: Tensor, crop: Crop, *, is_copy: bool) -> Tensor:
    """Return the image with an edited part of it; a copy may be written to, so that a part costs
    no copy of the photo.

    Parameters
    ----------
    boxes : the part, as of region.cut_boxes
    """
    if boxes.shape == image.shape:
        return boxes
    image = image if is_copy else image.clone()
    region.paste_boxes(image, boxes, crop.region)
    return image


def _overlap(part: Conditions, earlier: Conditions) -> bool:
    """Tell whether the crop of a part shows pixels of another part's crop."""
    regions = part.crop.region, earlier.crop.region
    return any(
        regions[0].box_in_image(index).overlaps(regions[1].box_in_image(index))
        for index in range(len(part.image))
    )


def _join(numbered: dict[int, Report], conditions: Conditions) -> Report:
    """Return the report on the parts of the mask that were edited, by their numbers."""
    reports = list(numbered.values())
    moved = max(reports, key=lambda report: -1 if report.drift_px is None else report.drift_px)
    stages = dict.fromkeys(stage for report in reports for stage in report.seconds)
    return replace(
        reports[0],
        seconds={
            stage: round(sum(report.seconds.get(stage, 0) for report in reports), 4)
            for stage in stages
        },
        peak_memory=max(report.peak_memory for report in reports),
        outside_psnr_raw=_least(report.outside_psnr_raw for report in reports),
        outside_psnr=_least(report.outside_psnr for report in reports),
        drift_px=moved.drift_px,
        registration=moved.registration,
        realigned=any(report.realigned for report in reports),
        spill=max(report.spill for report in reports),
        grain=_most(report.grain for report in reports),
        sharpening=_most(report.sharpening for report in reports),
        verdict=max((report.verdict for report in reports), key=verdict.VERDICTS.index),
        verdict_reasons=_reasons(numbered, len(conditions.parts)),
        notes=tuple(
            dict.fromkeys(
                [note for report in reports for note in report.notes] + [*conditions.notes]
            )
        ),
        regions=tuple(_row(report) for report in reports),
    )


def _reasons(numbered: dict[int, Report], count: int) -> tuple[str, ...]:
    """Return the reasons against all parts, with the part's number where there are several."""
    return tuple(
        f"Part {number}: {reason}" if count > 1 else reason
        for number, report in numbered.items()
        for reason in report.verdict_reasons
    )


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _row(report: Report) -> dict[str, Any]:
    """Return what differs among the parts of a mask, for Report.regions."""
    return {name: value for name, value in report.as_dict().items() if name in REGION_FIELDS}


class _Pasting(NamedTuple):
    """The options of `edit` on how an edit is pasted.

    Attributes
    ----------
    is_stale : earlier parts changed what the crop shows, and the edit did not see it
    """

    match: bool
    transfer: str
    widen: bool
    match_grain: bool
    is_stale: bool


def _edit_part(
    editor: Editor,
    request: EditRequest,
    pasting: _Pasting,
    progress: Progress,
) -> EditResult:
    """Edit the crop of one part of the mask, see `edit`. The images of the result are the boxes of
    the region alone, so that the cost follows the crop and not the photo.
    """
    conditions, corner = request.conditions, request.conditions.crop.region.corners[0]
    crop, seconds = conditions.crop, dict(conditions.seconds)
    with timed(seconds, "edit"):
        edited = editor.edit(request, progress)
    _check_edit(editor, edited, conditions)
    edited, notes = _restore_range(edited, crop)
    progress(1, 1, "stitching")
    with timed(seconds, "stitch"):
        photo = region.cut_boxes(conditions.image, crop.region)
        crop = crop._replace(region=region.in_boxes(crop.region))
        conditions = replace(conditions, image=photo, crop=crop)
        request = replace(request, conditions=conditions)
        outside = (crop.feathered == 0) & crop.region.shows_image()
        unused = outside & (crop.shown == 0)
        before = region.repeat_edge(crop.image, crop.region)
        aligned = _align(region.repeat_edge(edited, crop.region), before, outside, conditions)
        if pasting.is_stale:
            aligned = aligned._replace(image=_own_change(aligned.image, before, conditions))
        pasted = _paste(editor.variant, request, aligned, before, pasting)
        judged = _judge(editor.variant, conditions, edited, aligned, pasted)
        clipped = _reference_notes(conditions.reference, edited, pasted.result)
    report = Report(
        editor=editor.name,
        variant=editor.variant,
        adapters=editor.adapters,
        recipe=conditions.recipe,
        conditions=tuple(conditions.images),
        seed=request.seed,
        crop_size=crop.region.size,
        box=(*corner, *crop.region.box_size),
        seconds={stage: round(value, 4) for stage, value in seconds.items()},
        peak_memory=_peak_memory(),
        outside_psnr_raw=_psnr((edited - crop.image)[unused].square().mean()),
        outside_psnr=_psnr(region.outside_error(pasted.result, conditions.image, pasted.target)),
        drift_px=aligned.drift_px,
        realigned=aligned.moved,
        registration=aligned.registration,
        spill=round(float(pasted.spill.mean()), 4),
        widened=pasting.widen,
        verdict=judged.word,
        verdict_reasons=judged.reasons,
        notes=(*editor.notes, *notes, *aligned.notes, *clipped),
        recipe_reason=conditions.recipe_reason,
        settings=_settings(request),
        recipe_settings=RECIPES[conditions.recipe].values(),
        grain=pasted.added.deviation if pasted.added else None,
        sharpening=pasted.added.sharpening if pasted.added else None,
    )
    return EditResult(pasted.result, region.uncrop(pasted.spill, crop.region), report)


def _own_change(edited: Tensor, before: Tensor, conditions: Conditions) -> Tensor:
    """Return the edit of a stale crop without its change of what earlier parts have changed
    already, around its own mask: it would be changed twice.

    Parameters
    ----------
    edited, before : IMAGE [B, h, w, 3], the crop after and before the edit
    """
    crop = conditions.crop
    now = region.repeat_edge(region.crop_like(conditions.image, crop.region), crop.region)
    theirs = (now != before).any(-1) & (crop.mask == 0)
    return torch.where(theirs.unsqueeze(-1), before, edited)


class _Pasted(NamedTuple):
    """An edit in its image.

    Attributes
    ----------
    result : IMAGE [B, H, W, 3], the image
    crop : IMAGE [B, h, w, 3], the edit as it was pasted
    target : Region that the edit shows in
    spill : MASK [B, h, w]
    shown : MASK [B, h, w], above 0 where the edit shows
    added : grain and sharpness; None: match_grain is off, or nothing was pasted
    """

    result: Tensor
    crop: Tensor
    target: region.Region
    spill: Tensor
    shown: Tensor
    added: grain.Grain | None = None


def _paste(
    variant: str, request: EditRequest, aligned: "_Aligned", before: Tensor, pasting: _Pasting
) -> _Pasted:
    """Paste an aligned edit into its image.

    Parameters
    ----------
    before : IMAGE [B, h, w, 3], the crop before the edit
    """
    conditions, target = request.conditions, request.conditions.crop.region
    image, shown, edited = conditions.image, conditions.crop.shown, aligned.image
    spilled = torch.zeros_like(shown)
    if variant == "white_balance" and pasting.transfer == "colors":
        changes = _color_changes(edited, conditions)
        changed = [change(old) for change, old in zip(changes, before, strict=True)]
        result = region.recolor(changes, image, target)
        return _Pasted(result, torch.stack(changed), target, spilled, shown)
    if variant != "white_balance":
        edited, spilled = _matched(edited, before, conditions, pasting.match)
    # What a stale crop shows around its mask may have been removed by an earlier part.
    if pasting.widen and not pasting.is_stale:
        target = region.widen(target, spilled)
        shown = torch.maximum(shown, spilled)
    result = region.stitch(
        edited,
        image,
        target,
        before,
        add_change=pasting.is_stale,
        registrations=aligned.each,
    )
    if not pasting.match_grain:
        return _Pasted(result, edited, target, spilled, shown)
    grained = grain.match_grain(result, image, edited, target, request.seed, aligned.each)
    return _Pasted(grained.image, edited, target, spilled, shown, grained)


def _settings(request: EditRequest) -> dict[str, Any]:
    """Return the settings that an edit used, see Report.settings."""
    conditions, sampling = request.conditions, request.sampling
    pixels = sampling.condition_pixels
    in_pixels = conditions.crop.region.context_pixels
    return {
        "frame": conditions.frame,
        "resolution": conditions.resolution,
        "context": conditions.context,
        **({"context_pixels": in_pixels} if in_pixels else {}),
        "condition_size": "crop" if pixels is None else round(pixels / ONE_MEGAPIXEL, 4),
        "prompt": request.prompt,
        "negative": sampling.negative,
        "steps": sampling.steps,
        "cfg": sampling.cfg,
    }


def _restore_range(edited: Tensor, crop: Crop) -> tuple[Tensor, tuple[str, ...]]:
    """Return the edit of an HDR crop by an editor that clips to 0..1, with the clipped part of the
    values outside the mask added again, and a sentence for the report.
    """
    low, high = value_range(crop.image)
    if (low, high) == (0, 1) or edited.amin() < 0 or edited.amax() > 1:
        return edited, ()
    clipped = crop.image - crop.image.clamp(0, 1)
    note = (
        f"The photo has values of {low:.3g} to {high:.3g}, and the editor made an edit in 0..1: "
        "inside the mask it has no other values."
    )
    return edited + clipped * (crop.mask == 0).unsqueeze(-1), (note,)


def _reference_notes(reference: Reference | None, *images: Tensor) -> tuple[str, ...]:
    """Return a sentence for the report where a reference has values above 1, and one of these
    images, which show it, has none.
    """
    if reference is None:
        return ()
    brightest = float((reference.image * reference.mask.unsqueeze(-1)).amax())
    if brightest <= 1 or all(image.amax() > 1 for image in images):
        return ()
    return (
        f"The reference has values up to {brightest:.3g}, and the edit has none above 1: brighter "
        "parts of the object were clipped.",
    )


class _Aligned(NamedTuple):
    """An edit after alignment.

    Attributes
    ----------
    image : IMAGE [B, h, w, 3]
    each : the registration of each image; None where it cannot be told
    drift_px, moved, registration : see Report.drift_px, realigned and registration
    notes : see Report.notes
    """

    image: Tensor
    each: tuple[Registration | None, ...]
    drift_px: float | None
    moved: bool
    registration: dict[str, Any] | None
    notes: tuple[str, ...]


def _align(edited: Tensor, before: Tensor, outside: Tensor, conditions: Conditions) -> _Aligned:
    """Move each image of the edit back; see registration.register.

    Parameters
    ----------
    edited, before : IMAGE [B, h, w, 3]
    outside : bool [B, h, w], what the edit should have left alone
    """
    shown = conditions.crop.feathered > 0
    each = tuple(register(*planes) for planes in zip(edited, before, outside, shown, strict=True))
    measured = [result for result in each if result]
    furthest = max(measured, key=lambda result: result.moved, default=None)
    images = [result.image if result else image for result, image in zip(each, edited, strict=True)]
    return _Aligned(
        torch.stack(images),
        each,
        furthest.moved if furthest else None,
        any(result.applied for result in measured),
        furthest.as_dict() if furthest else None,
        (_NOT_MEASURED,) if conditions.masked and None in each else (),
    )


def _color_changes(edited: Tensor, conditions: Conditions) -> list[color.ColorChange]:
    """Return the edit's change of colors for each image. It is fitted where the feathered mask is
    above 0 and the crop shows the image: around that, the edit may have been held to the image.
    """
    crop = conditions.crop
    return [
        color.fit_change(old[area], new[area])
        for old, new, area in zip(
            crop.image, edited, (crop.feathered > 0) & crop.region.shows_image(), strict=True
        )
    ]


def _judge(
    variant: str, conditions: Conditions, edited: Tensor, aligned: _Aligned, pasted: _Pasted
) -> verdict.Verdict:
    """Return the verdict on what a batch of edits shows; none, which is the best, where nothing of
    them shows.

    Parameters
    ----------
    edited : IMAGE [B, h, w, 3], as the editor returned it
    """
    crop = conditions.crop
    shown, inside = crop.shown, crop.region.shows_image()
    if not shown.any():
        return verdict.Verdict(verdict.GOOD)
    # A blend mask hides the rest of the mask on purpose.
    covered = torch.maximum(pasted.shown, crop.feathered)
    mask = _visible_mask(crop.mask, shown)
    planes = (crop.image, edited, pasted.crop, mask, shown, covered, inside)
    findings = [
        verdict.judge(verdict.Edit(*images), variant) for images in zip(*planes, strict=True)
    ]
    for against, result in zip(findings, aligned.each, strict=True):
        if result:
            against += verdict.judge_shift(result.moved, result.applied)
    return verdict.conclude(findings)


def _visible_mask(masks: Tensor, shown: Tensor) -> Tensor:
    """Return the part of each mask that shows, MASK [B, h, w]; where a blend mask shows another
    place alone, that place.
    """
    visible = torch.minimum(masks, shown)
    for mask, place, part in zip(masks, shown, visible, strict=True):
        if mask.any() and not part.any():
            part.copy_(place)
    return visible


def _matched(
    edited: Tensor, before: Tensor, conditions: Conditions, match: bool
) -> tuple[Tensor, Tensor]:
    """Return the edit, its colors matched to the image's if `match` is on, and its spill."""
    if match:
        edited = color.match_rim(edited, before, conditions.crop.mask)
    return edited, _spill(edited, conditions)


def _spill(edited: Tensor, conditions: Conditions) -> Tensor:
    """Return the spill, MASK [B, h, w], of an edit whose colors are matched."""
    crop, shown = conditions.crop, conditions.crop.shown
    # Past the image's end nothing can spill, nor in the part of the mask that a blend mask hides.
    possible = crop.region.shows_image() & ((shown > 0) | (crop.feathered == 0))
    visible = torch.where(possible.unsqueeze(-1), edited, crop.image)
    return spill(visible, crop.image, shown) * possible


def _check_edit(editor: Editor, edited: Tensor, conditions: Conditions) -> None:
    """Refuse an edit that shows that the model's weights, attention or precision do not work: one
    that is not finite, or the same color everywhere. Black is right where everything around is
    black; another color where most of what is around has it, or where all of it has one color.
    """
    if not edited.sum().isfinite():
        raise ArtMancerError(
            "generation_failed",
            f"{editor.name} returned NaN or infinite values. "
            "Try another seed, checkpoint or precision.",
        )
    crop = conditions.crop
    outside = (crop.feathered == 0) & crop.region.shows_image()
    for new, old, area in zip(edited, crop.image, outside, strict=True):
        if _range(new.flatten(0, 1)) > _UNIFORM:
            continue
        around = old[area] if area.any() else old.flatten(0, 1)
        is_black = bool(new.max() < _BLACK)
        if is_black:
            is_right = bool(around.max() <= _NOT_BLACK)
        else:
            near = (around - new[0, 0]).abs().amax(-1) <= _NEAR
            is_right = bool(near.float().mean() >= 0.5) or _range(around) <= _NEAR
        if not is_right:
            raise ArtMancerError(
                "generation_failed",
                f"{editor.name} returned {'a black image' if is_black else 'a single color'}. "
                "Try another checkpoint, attention or precision.",
            )


def _range(pixels: Tensor) -> float:
    """Return the largest range of the values of a channel, of pixels [n, channels]."""
    return float((pixels.amax(0) - pixels.amin(0)).max())


def _psnr(error: Tensor) -> float | None:
    """Return the dB of a mean square error; None for NaN, the mean of nothing."""
    if error.isnan():
        return None
    return math.inf if error == 0 else round(-10 * math.log10(error), 2)


def _reset_peak_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak_memory() -> int:
    """Return the most bytes in use: of the GPU's memory where one is used, else of the process."""
    if torch.cuda.is_available() and (used := torch.cuda.max_memory_allocated()):
        return used
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    # In kilobytes on Linux, in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
