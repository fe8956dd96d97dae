"""What an editor is, what it is asked, and what an edit reports."""

from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import Tensor

from .conditions import DEFAULT_RECIPE, Reference
from .errors import ArtMancerError
from .progress import Progress
from .region import Crop

VARIANTS = ("insertion", "removal", "white_balance")


@dataclass(frozen=True)
class Conditions:
    """What an editor sees of one edit, and the way back to the picture.

    image : the picture as it came, IMAGE [B, H, W, 3]
    masked : False where no mask was given, and all of the picture is to be edited
    crop : the part around the mask
    recipe : which conditioning images there are
    images : those images by name, in order, each an IMAGE [B, h, w, 3] of the crop's size; after
        the recipe's come those the user adds, "extra 1" and so on
    reference : the object to insert
    seconds : what it took to make them, by stage
    """

    image: Tensor
    masked: bool
    crop: Crop
    recipe: str
    images: dict[str, Tensor]
    reference: Reference | None
    seconds: dict[str, float]


@dataclass(frozen=True)
class Sampling:
    """How an editor that samples does it; the draft editor reads none of it.

    steps : denoising steps
    cfg : classifier-free guidance scale; 1 or less = off: one forward a step instead of two
    negative : what to avoid, in words; read only where cfg is above 1
    condition_pixels : the area each conditioning image is encoded at; None = the crop's own size
    keep_background : draw the latents outside the feathered mask back to the picture's at each step
    step_cache : how far a step may be from those before to be made of them, 0 = off;
        see qwen.speed.STEP_CACHES
    step_cache_kind : a key of qwen.speed.STEP_CACHES
    attention : a key of qwen.speed.ATTENTION
    compile : compile the transformer's blocks
    """

    steps: int = 10
    cfg: float = 4.0
    negative: str = " "
    condition_pixels: int | None = None
    keep_background: bool = False
    step_cache: float = 0.0
    step_cache_kind: str = "first block"
    attention: str = "default"
    compile: bool = False


DEFAULT_SAMPLING = Sampling()


@dataclass(frozen=True)
class EditRequest:
    """What an editor is asked to do.

    conditions : the crop and its conditioning images
    prompt : the edit in words
    seed : of the first picture of a batch; the next ones count up from it
    """

    conditions: Conditions
    prompt: str = ""
    seed: int = 0
    sampling: Sampling = DEFAULT_SAMPLING


class Editor(Protocol):
    """The model, or what stands in for it.

    name : for the report, "draft/removal"
    variant : one of VARIANTS
    recipe, resolution : what its checkpoint was trained on, keys of RECIPES and RESOLUTIONS
    adapters : the files of the LoRAs on its base, the checkpoint first
    """

    @property
    def name(self) -> str: ...

    @property
    def variant(self) -> str: ...

    @property
    def recipe(self) -> str: ...

    @property
    def resolution(self) -> str: ...

    @property
    def adapters(self) -> tuple[str, ...]: ...

    def edit(self, request: EditRequest, progress: Progress) -> Tensor:
        """The edited crop, IMAGE [B, h, w, 3] of the size of `request.conditions.crop`."""
        ...


@dataclass(frozen=True, eq=False)
class Edited:
    """Stands for an editor that has edited already, as ComfyUI's own sampler has.

    image : IMAGE [B, h, w, 3], the crop after the edit
    """

    image: Tensor
    variant: str
    name: str = "ComfyUI"
    recipe: str = DEFAULT_RECIPE
    resolution: str = "native"
    adapters: tuple[str, ...] = ()

    def edit(self, request: EditRequest, progress: Progress) -> Tensor:
        """See Editor.edit.

        Raises
        ------
        ArtMancerError : invalid_request where it is no edit of this crop
        """
        expected, came = (
            list(image.shape) for image in (request.conditions.crop.image, self.image)
        )
        if came != expected:
            raise ArtMancerError(
                "invalid_request",
                f"The edited crop has shape {came}; expected {expected}. Give what was made of "
                "these conditions, at its size.",
            )
        return self.image.to("cpu", torch.float32)


@dataclass(frozen=True)
class Report:
    """What one edit did.

    editor : who did it; variant : one of VARIANTS
    adapters : the files of the LoRAs it used, the checkpoint first
    recipe, conditions : which conditioning images it saw, in order
    seed : of the first picture; None: who gave the edit knows it
    crop_size : (height, width) the editor worked at
    box : (top, left, height, width) of the first picture's crop in the picture
    seconds : by stage: crop, split, edit, stitch
    peak_memory : bytes: of the GPU where one is used, else of this process so far
    outside_psnr_raw : dB between edit and input outside the feathered mask, before stitching;
        infinite: equal, None: there is no outside
    outside_psnr : the same after stitching
    drift_px : how far the edit moved outside the mask, in pixels of the crop, at most in a batch;
        None where too little is left to tell
    realigned : whether one was moved back
    spill : share of the crop that the edit changed around the feathered mask, such as by a shadow;
        see spill.spill
    widened : whether that was stitched, too
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

    def as_dict(self) -> dict[str, object]:
        """For JSON, which has no infinity: an infinite figure is the string "infinite"."""
        return {
            key: "infinite" if value == float("inf") else value
            for key, value in asdict(self).items()
        }


@dataclass(frozen=True)
class EditResult:
    """What came of an edit.

    image : IMAGE [B, H, W, 3]
    spill : MASK [B, H, W], above 0 where the edit changed something around the feathered mask
    report : what was done
    """

    image: Tensor
    spill: Tensor
    report: Report
