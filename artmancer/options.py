"""Choices, limits and defaults of an edit, shared by the nodes, the command line and HTTP.

Imports no torch: a form or a command's help is made from this module at once.
"""

from dataclasses import dataclass

ONE_MEGAPIXEL = 1024 * 1024
"""Pixels of a square of 1024 x 1024."""

MAX_SEED = 2**53 - 1
"""Largest seed: the largest whole number that JavaScript holds exactly."""

STEPS = (1, 100)
"""Smallest and largest number of denoising steps."""

CFG = (0.5, 20.0)
"""Smallest and largest scale of classifier-free guidance."""

CONDITION_MEGAPIXELS = (0.05, 4.0)
"""Smallest and largest area a conditioning image is encoded at, in megapixels."""

RESOLUTIONS: dict[str, dict[str, int]] = {
    "native": {},
    "512": {"longest_side": 512},
    "768": {"longest_side": 768},
    "1024": {"longest_side": 1024},
    "1 megapixel": {"pixels": ONE_MEGAPIXEL},
    "1536": {"longest_side": 1536},
    "2048": {"longest_side": 2048},
}
"""Crop sizes to choose from: the size arguments of region.crop, by name."""

EDITORS = ("auto", "draft", "lama", "qwen")
"""Editors to choose from over HTTP, whatever is installed, beside model sets. auto: qwen, which is
Qwen-Image-Edit in diffusers' form, if it is installed, else the first model set whose files are
there, else draft.
"""

FRAMES = ("crop", "photo")
"""Parts of the photo that an editor sees: a crop around the mask, or the whole photo, padded with
black to a square.
"""

REGIONS = ("auto", "together", "apart")
"""Ways to edit a mask of several islands: in one crop around all, each island that lies apart in a
crop of its own, or, "auto", apart where that crops fewer pixels of the photo.
"""

CONTEXT = (1.0, 8.0)
"""Smallest and largest size of a crop over the size of the mask's bounding box."""

DEFAULT_CONTEXT = 1.5
"""Context for all editors. For the draft, 2.5 was best on the photos of benchmarks/context.py that
were for the choice, but on the others its gain was within two standard errors. For an editor with a
fixed crop size it would show the object at three fifths of the resolution.
"""

TRANSFERS = ("colors", "pixels")
"""Ways to apply a white balance: its change of colors, or its pixels."""

PRECISIONS = ("auto", "bf16", "fp8", "fp32")
"""Precisions of the base model. auto: bf16 on a GPU, fp32 on the CPU. fp8: the transformer's
weights are stored in 8 bits and computed with in bf16.
"""

MEMORY_MODES = ("all on the GPU", "one model at a time", "group offload")
"""Placements of the base's models, from the fastest to the one that needs the least memory."""


@dataclass(frozen=True)
class Sampling:
    """Sampler settings; the draft editor ignores them.

    Attributes
    ----------
    steps : denoising steps
    cfg : classifier-free guidance scale; 1 or less = off: one forward pass a step instead of two
    negative : negative prompt; used only where cfg is above 1
    condition_pixels : area each conditioning image is encoded at; None = the crop's own size
    keep_background : pull the latents outside the feathered mask back to the image's at each step
    step_cache : cache threshold: how much a step may change and still be reused; 0 = off
    step_cache_kind : a key of qwen.speed.STEP_CACHES, which says what the threshold measures
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

JOB_TIMEOUTS = {"heavy": 600, "light": 300}
"""Longest run of a job in seconds, by the gateway's lane."""
