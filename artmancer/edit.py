"""The straight line: crop and split into conditions (`prepare`), then edit,
stitch and report (`edit`).
"""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from . import color, region
from .conditions import DEFAULT_RECIPE, RECIPES, Reference, Sources, cut_out, place, split
from .drift import drift, realign
from .editor import DEFAULT_SAMPLING, Conditions, Editor, EditRequest, EditResult, Report, Sampling
from .errors import ArtMancerError
from .progress import Progress, no_progress
from .spill import spill

RESOLUTIONS: dict[str, dict[str, int]] = {
    "native": {},
    "512": {"longest_side": 512},
    "768": {"longest_side": 768},
    "1024": {"longest_side": 1024},
    "1 megapixel": {"pixels": 2**20},
}
"""The sizes a crop is offered at, by name: the options of region.crop."""

TRANSFERS = ("colors", "pixels")

REALIGNED = (0.1, 16.0)
"""Pixels of the crop that a drift is moved back by:
less is not seen, and more is another picture.
"""


def prepare(
    image: Tensor,
    mask: Tensor | None = None,
    *,
    reference: Tensor | None = None,
    reference_mask: Tensor | None = None,
    fill: Tensor | None = None,
    recipe: str = DEFAULT_RECIPE,
    resolution: str = "native",
    context: float = 1.5,
    grow: int = 0,
    fill_holes: bool = False,
    feather: int = 16,
    progress: Progress = no_progress,
) -> Conditions:
    """Crop a picture to its mask and split the crop into the recipe's conditioning images.

    Parameters
    ----------
    image : IMAGE [B, H, W, 3]
    mask : MASK [B or 1, H, W], 1 = edit here; None = all of the picture,
        which only white balance can do
    reference, reference_mask : IMAGE [1, h, w, 3] of the object to insert, MASK [1, h, w] that cuts
        it out (None: all)
    fill : IMAGE [B, H, W, 3], the picture with its hole filled, for recipes that show one; None:
        PatchMatch fills it
    recipe : a key of RECIPES
    resolution : a key of RESOLUTIONS
    context, grow, fill_holes, feather : see region.crop
    progress : told while PatchMatch fills; may raise to cancel

    Raises
    ------
    ArtMancerError : invalid_request, mask_empty, reference_missing
    """
    if resolution not in RESOLUTIONS:
        raise ArtMancerError(
            "invalid_request",
            f"The resolution is '{resolution}'; expected one of {', '.join(RESOLUTIONS)}. "
            "Choose one.",
        )
    where = torch.ones(1, 1, 1).expand(1, *image.shape[1:3]) if mask is None else mask
    region.check(image, where)
    image, where = image.to("cpu", torch.float32), where.to("cpu", torch.float32)
    seconds: dict[str, float] = {}
    with _timed(seconds, "crop"):
        crop = region.crop(
            image,
            where,
            context=context,
            grow=grow,
            fill_holes=fill_holes,
            feather=feather,
            **RESOLUTIONS[resolution],
        )
    with _timed(seconds, "split"):
        sources = Sources(
            crop,
            reference=None if reference is None else cut_out(reference, reference_mask),
            fill=None if fill is None else region.take(fill.to(image), crop.region),
            progress=progress,
        )
        images = split(sources, recipe)
    return Conditions(
        image=image,
        masked=mask is not None,
        crop=crop,
        recipe=recipe,
        images=images,
        reference=sources.reference,
        seconds=seconds,
    )


def with_extra(conditions: Conditions, image: Tensor) -> Conditions:
    """The same with one more conditioning image after the others: "extra 1", "extra 2"...

    Parameters
    ----------
    image : IMAGE [B or 1, H, W, 3]; it is scaled to fit into the crop's size, its aspect ratio
        kept, centred on white

    Raises
    ------
    ArtMancerError : invalid_request
    """
    region.check(image, image[..., 0], "extra image")
    image, count = image.to("cpu", torch.float32), len(conditions.image)
    if len(image) not in (1, count):
        raise ArtMancerError(
            "invalid_request",
            f"The extra image is a batch of {len(image)}; expected 1, or {count}, as many as there "
            "are images to edit. Pick one of the batch.",
        )
    region.check_finite(image, "extra image")
    height, width = conditions.crop.region.size
    whole = region.Window(0, 0, height, width)
    placed = place(Reference(image, torch.ones(image.shape[:3])), (height, width), whole)
    on_white = torch.lerp(torch.ones(()), placed.image, placed.mask.unsqueeze(-1)).expand(
        count, -1, -1, -1
    )
    number = len(conditions.images) - len(RECIPES[conditions.recipe].conditions) + 1
    return replace(conditions, images={**conditions.images, f"extra {number}": on_white})


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
    progress: Progress = no_progress,
) -> EditResult:
    """Let an editor edit the crop, put the result back, and report.

    Parameters
    ----------
    conditions : what `prepare` gave
    prompt, seed, sampling : see EditRequest
    match : fit the edit's colours to the picture's at the rim of the mask
    transfer : one of TRANSFERS: what is taken of a white balance. "colors": its change of colours
        is fitted and applied to the picture's own pixels, at full resolution; "pixels": it is
        stitched, as any other edit is
    widen : stitch what the edit changed around the feathered mask, too,
        such as a shadow or a reflection
    progress : told where the editor is; may raise to cancel

    Raises
    ------
    ArtMancerError : mask_missing, generation_failed where the edit is not finite, and what the
        editor raises
    """
    _check_masked(editor, conditions)
    crop, seconds = conditions.crop, dict(conditions.seconds)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with _timed(seconds, "edit"):
        edited = editor.edit(EditRequest(conditions, prompt, seed, sampling), progress)
    feathered = crop.feathered
    _check_sane(editor, edited, crop.image, feathered)
    progress(1, 1, "stitching")
    with _timed(seconds, "stitch"):
        shown, where = crop.region.shown(), crop.region
        outside = (feathered == 0) & shown
        aligned, drift_px = _aligned(edited, crop.image, outside)
        spilled = torch.zeros_like(feathered)
        if editor.variant == "white_balance" and transfer == "colors":
            result = _recolored(aligned, feathered, conditions)
        else:
            fits = match and editor.variant != "white_balance"
            pasted = color.match_rim(aligned, crop.image, crop.mask) if fits else aligned
            if editor.variant != "white_balance":
                # Past the picture's end nothing can spill.
                seen = torch.where(shown.unsqueeze(-1), pasted, crop.image)
                spilled = spill(seen, crop.image, feathered) * shown
            if widen:
                where = region.widen(where, spilled)
            result = region.stitch(pasted, conditions.image, where)
    report = Report(
        editor=editor.name,
        variant=editor.variant,
        adapters=editor.adapters,
        recipe=conditions.recipe,
        conditions=tuple(conditions.images),
        seed=seed,
        crop_size=crop.region.size,
        box=(*crop.region.corners[0], *crop.region.box_size),
        seconds={stage: round(value, 4) for stage, value in seconds.items()},
        peak_memory=_peak_memory(),
        outside_psnr_raw=_psnr((edited - crop.image)[outside].square().mean()),
        outside_psnr=_psnr(region.outside_error(result, conditions.image, where)),
        drift_px=drift_px,
        realigned=not torch.equal(aligned, edited),
        spill=round(float(spilled.mean()), 4),
        widened=widen,
    )
    return EditResult(result, region.uncrop(spilled, crop.region), report)


def _check_masked(editor: Editor, conditions: Conditions) -> None:
    if not conditions.masked and editor.variant != "white_balance":
        raise ArtMancerError(
            "mask_missing",
            f"A mask is needed for {editor.variant}: it says where. Paint what should change "
            "white, and give the mask.",
        )


def _recolored(edited: Tensor, feathered: Tensor, conditions: Conditions) -> Tensor:
    """The picture with the edit's change of colours, fitted where it shows: around that, the edit
    may have been held to the picture.
    """
    changes = [
        color.fit_change(old[seen], new[seen])
        for old, new, seen in zip(conditions.crop.image, edited, feathered > 0, strict=True)
    ]
    return region.recolor(changes, conditions.image, conditions.crop.region)


def _aligned(edited: Tensor, before: Tensor, outside: Tensor) -> tuple[Tensor, float | None]:
    """The edit, each picture moved back where it had moved, and how far at most."""
    aligned, pixels = [], []
    shifts = drift(edited, before, outside)
    for moved, after, old, around in zip(shifts, edited, before, outside, strict=True):
        if moved is not None:
            pixels.append(math.hypot(*moved))
            if REALIGNED[0] <= pixels[-1] <= REALIGNED[1]:
                back = realign(after, moved)
                error, left = ((one - old)[around].square().mean() for one in (after, back))
                after = back if left < error else after
        aligned.append(after)
    return torch.stack(aligned), max(pixels, default=None)


def _check_sane(editor: Editor, edited: Tensor, before: Tensor, feathered: Tensor) -> None:
    """Refuse what a model gives whose weights or precision do not fit.
    Black is right where all is black around what was removed.
    """
    if not edited.sum().isfinite():
        raise ArtMancerError(
            "generation_failed",
            f"{editor.name} gave NaN or infinite values. "
            "Try another seed, checkpoint or precision.",
        )
    for new, old, shown in zip(edited, before, feathered, strict=True):
        around = old[shown == 0] if (shown == 0).any() else old
        if new.max() < 2 / 255 and around.max() > 0.1:
            raise ArtMancerError(
                "generation_failed",
                f"{editor.name} gave a black picture. "
                "Try another checkpoint, attention or precision.",
            )


def _psnr(error: Tensor) -> float | None:
    """dB of a mean square error; None where there was nothing to average."""
    if error.isnan():
        return None
    return math.inf if error == 0 else round(-10 * math.log10(error), 2)


def _peak_memory() -> int:
    if torch.cuda.is_available() and (used := torch.cuda.max_memory_allocated()):
        return used
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
