"""The result of an edit and the report on it."""

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

REGION_FIELDS = (
    "seed",
    "crop_size",
    "box",
    "seconds",
    "outside_psnr_raw",
    "outside_psnr",
    "drift_px",
    "realigned",
    "registration",
    "spill",
    "grain",
    "sharpening",
    "verdict",
    "verdict_reasons",
)
"""Fields of a report that each part of a mask has."""


@dataclass(frozen=True)
class Report:
    """A report on one edit.

    Attributes
    ----------
    editor : the editor's name, for example "draft/removal"
    variant : one of VARIANTS
    adapters : file names of the LoRAs it used, the checkpoint first
    recipe : the recipe's name
    conditions : names of the conditioning images, in order
    seed : seed of the first image of the batch; None: unknown, because the edit was not made here
    crop_size : (height, width) of the crop
    box : (top, left, height, width) of the first image's box, in pixels of the image
    seconds : seconds by stage: crop, split, edit, stitch
    peak_memory : bytes: on the GPU where one is used, else of this process so far
    outside_psnr_raw : dB between edit and input outside the feathered mask and what a blend mask
        shows, before stitching; infinite: equal, None: nothing is outside
    outside_psnr : dB between result and input where the edit does not show
    drift_px : largest displacement of the edit inside the feathered mask, in pixels of the crop;
        None where it cannot be measured
    realigned : whether an image of the batch was moved back
    spill : share of the crop that the edit changed around the feathered mask, for example by a
        shadow; see spill.spill
    widened : whether the spill was stitched too
    verdict : one of verdict.VERDICTS: "good", "look" or "failed"; of a batch, that on its worst
        image; "good" where a blend mask shows nothing of the edit
    verdict_reasons : the reasons against the edit, sentences with a figure
    notes : sentences the user should know, for example about a file that was not used
    recipe_reason : why the edit had this recipe: "asked", "metadata", "file name" or "default"
    settings : what the edit used, by name: frame, resolution, context, condition_size ("crop" or
        megapixels), prompt, negative, steps, cfg
    recipe_settings : what the recipe says, by the same names
    regions : a row for each part of the mask that was edited by itself, in order: its
        REGION_FIELDS. The fields of the report are the first part's, and the sum, the most or the
        worst of all parts: seconds, peak_memory, both PSNRs, drift_px, realigned, spill,
        grain, sharpening and the verdict
    registration : how the image of the batch that moved furthest moved: shift ([down, right] of the
        crop's center, in its pixels), zoom, rotation (degrees, clockwise), error_before and
        error_after (of the photo around the mask, in levels of 255, without the difference of
        colors, as the edit came and moved back); None where it cannot be measured
    grain : standard deviation of the noise that was added, in levels of 255; None: match_grain is
        off, or nothing was pasted
    sharpening : strength of the unsharp mask; None as for grain
    """

    editor: str
    variant: str
    adapters: tuple[str, ...]
    recipe: str
    conditions: tuple[str, ...]
    seed: int | None
    crop_size: tuple[int, int]
    box: tuple[int, int, int, int]
    seconds: dict[str, float]
    peak_memory: int
    outside_psnr_raw: float | None
    outside_psnr: float | None
    drift_px: float | None
    realigned: bool
    spill: float
    widened: bool
    verdict: str = "good"
    verdict_reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    recipe_reason: str = "default"
    settings: dict[str, Any] = field(default_factory=dict)
    recipe_settings: dict[str, Any] = field(default_factory=dict)
    regions: tuple[dict[str, Any], ...] = ()
    registration: dict[str, Any] | None = None
    grain: float | None = None
    sharpening: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON, which has no infinity: an infinite value becomes "infinite"."""
        return {
            key: "infinite" if value == float("inf") else value
            for key, value in asdict(self).items()
        }


@dataclass(frozen=True)
class EditResult:
    """The result of an edit.

    Attributes
    ----------
    image : IMAGE [B, H, W, 3]
    spill : MASK [B, H, W], above 0 where the edit changed something around the feathered mask
    report : Report
    """

    image: Tensor
    spill: Tensor
    report: Report
