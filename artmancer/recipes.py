"""Recipes: how a checkpoint was trained, and which recipe an edit follows.

Imports no torch: the command line and the gateway list recipes without it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import Any, NamedTuple

from .errors import ArtMancerError
from .options import (
    CFG,
    CONDITION_MEGAPIXELS,
    DEFAULT_SAMPLING,
    ONE_MEGAPIXEL,
    STEPS,
    Sampling,
)

CONDITION_SIZES = ("recipe", "crop")
"""Names of condition sizes; any other condition size is an area in megapixels."""


@dataclass(frozen=True)
class Recipe:
    """The images and settings a checkpoint was trained on.

    Attributes
    ----------
    images : the conditioning images in order: how each is made, a key of conditions._BUILDERS, by
        its name
    purpose : which checkpoints it is for, in words
    without_reference : the same for an edit without a reference; None: `images`
    files : file names of checkpoints that follow it, without the suffix; * = any text
    frame : one of options.FRAMES
    resolution : the crop's size, a key of options.RESOLUTIONS
    condition_megapixels : area each conditioning image is encoded at; None: the crop's own
    prompt : prompt of an edit that brings none
    negative : negative prompt
    steps : denoising steps
    cfg : scale of classifier-free guidance
    fill_growth : pixels by which a mask is dilated before its hole is filled, where it was painted
        with a brush: people paint short of an object's edge
    """

    images: Mapping[str, str]
    purpose: str
    without_reference: Mapping[str, str] | None = None
    files: tuple[str, ...] = ()
    frame: str = "crop"
    resolution: str = "512"
    condition_megapixels: float | None = None
    prompt: str = ""
    negative: str = DEFAULT_SAMPLING.negative
    steps: int = DEFAULT_SAMPLING.steps
    cfg: float = DEFAULT_SAMPLING.cfg
    fill_growth: int = 35

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditioning images, in order."""
        return tuple(self.images)

    def images_for(self, has_reference: bool) -> Mapping[str, str]:
        """Return how each conditioning image is made, by name and in order."""
        if has_reference or self.without_reference is None:
            return self.images
        return self.without_reference

    def values(self) -> dict[str, Any]:
        """Return the settings that an edit may override, by name, for reports."""
        return {
            "frame": self.frame,
            "resolution": self.resolution,
            "condition_size": self.condition_megapixels or "crop",
            "prompt": self.prompt,
            "negative": self.negative,
            "steps": self.steps,
            "cfg": self.cfg,
        }


RECIPES = {
    "mask_background_object": Recipe(
        {"mask": "mask", "background": "background", "object": "object"},
        "for LoRAs of all three variants",
        files=("qwen_2509_object_insertion_512_*",),
    ),
    "reference_mask_background": Recipe(
        {
            "reference": "stretched reference",
            "mask": "silhouette",
            "background": "background with shadow",
        },
        "for insertion_cp and insertion LoRAs trained on these images",
        without_reference={"mask": "mask", "background": "background"},
        files=("insertion_cp",),
        frame="photo",
        resolution="1024",
        condition_megapixels=1.0,
    ),
    "background_mask_fill": Recipe(
        {"background": "background", "mask": "mask", "fill": "fill"},
        "for removal_cp and removal LoRAs trained on these images",
        files=("removal_cp",),
        frame="photo",
        resolution="1024",
        condition_megapixels=1.0,
        prompt="remove object",
    ),
    "image_edges": Recipe(
        {"image": "image", "edges": "edges"},
        "for wb_cp and white balance LoRAs trained on these images",
        files=("wb_cp",),
        frame="photo",
        resolution="1024",
        condition_megapixels=1.0,
        cfg=3.3,
    ),
}
"""Recipes by name. Checkpoints name them in their metadata as `artmancer.recipe`."""

DEFAULT_RECIPE = "mask_background_object"


class RecipeChoice(NamedTuple):
    """The recipe of an edit, and why it was chosen.

    Attributes
    ----------
    name : a key of RECIPES
    reason : "asked", "metadata" (of the checkpoint), "file name" (of the checkpoint) or
        "default"
    """

    name: str
    reason: str


def choose(requested: str | None, metadata: str | None, file_name: str | None) -> RecipeChoice:
    """Choose a recipe: the requested one, else the one that the checkpoint's metadata names, else
    the one for its file name, else the default.

    Raises
    ------
    ArtMancerError : invalid_request
    """
    if requested is not None:
        check_recipe(requested)
        return RecipeChoice(requested, "asked")
    if metadata is not None:
        return RecipeChoice(metadata, "metadata")
    stem = PurePath(file_name).stem if file_name else ""
    for name, recipe in RECIPES.items():
        if any(fnmatchcase(stem, pattern) for pattern in recipe.files):
            return RecipeChoice(name, "file name")
    return RecipeChoice(DEFAULT_RECIPE, "default")


def check_recipe(name: str) -> None:
    """Refuse a name that is no recipe's.

    Raises
    ------
    ArtMancerError : invalid_request
    """
    if name not in RECIPES:
        raise ArtMancerError(
            "invalid_request", f"The recipe is '{name}'; expected one of {', '.join(RECIPES)}."
        )


@dataclass(frozen=True)
class Overrides:
    """Sampler settings of an edit; None follows the recipe.

    Attributes
    ----------
    steps, cfg, negative : see Sampling
    condition_size : "recipe", "crop" (each conditioning image is encoded at the crop's own size),
        or megapixels
    others : the other settings of a Sampling, by name
    """

    steps: int | None = None
    cfg: float | None = None
    negative: str | None = None
    condition_size: str | float = "recipe"
    others: Mapping[str, Any] = field(default_factory=dict)

    def sampling(self, name: str) -> Sampling:
        """Return the sampler settings for the recipe of this name.

        Raises
        ------
        ArtMancerError : invalid_request where the steps or the CFG scale are out of range
        """
        recipe = RECIPES[name]
        for setting, value, (lowest, highest) in (
            ("number of steps", self.steps, STEPS),
            ("CFG scale", self.cfg, CFG),
        ):
            if value is not None and not lowest <= value <= highest:
                raise ArtMancerError(
                    "invalid_request",
                    f"The {setting} is {value:g}; expected {lowest:g} to {highest:g}.",
                )
        return Sampling(
            steps=recipe.steps if self.steps is None else self.steps,
            cfg=recipe.cfg if self.cfg is None else self.cfg,
            negative=recipe.negative if self.negative is None else self.negative,
            condition_pixels=condition_pixels(self.condition_size, recipe),
            **self.others,
        )


def condition_pixels(size: str | float, recipe: Recipe) -> int | None:
    """Return the area in pixels of a condition size, see Overrides; None: the crop's own size."""
    megapixels = recipe.condition_megapixels if size == "recipe" else size
    if megapixels is None or megapixels == "crop":
        return None
    return round(ONE_MEGAPIXEL * float(megapixels))


def parse_condition_size(text: str) -> str | float:
    """Return a condition size from a text: "recipe", "crop" or megapixels.

    Raises
    ------
    ValueError : it is none of them
    """
    if text in CONDITION_SIZES:
        return text
    lowest, highest = CONDITION_MEGAPIXELS
    try:
        megapixels = float(text)
    except ValueError:
        megapixels = float("nan")
    if not lowest <= megapixels <= highest:
        raise ValueError(f"expected recipe, crop, or {lowest:g} to {highest:g} megapixels")
    return megapixels
