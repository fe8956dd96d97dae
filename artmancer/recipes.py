"""Recipes: how a checkpoint was trained.

Imports no torch: the command line and the gateway list recipes without it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """The conditioning images a checkpoint was trained on.

    Attributes
    ----------
    conditions : names of the conditioning images, in order
    purpose : which checkpoints it is for, in words
    """

    conditions: tuple[str, ...]
    purpose: str


RECIPES = {
    "mask_background_object": Recipe(
        ("mask", "background", "object"), "for LoRAs of all three variants"
    ),
    "reference_mask_background": Recipe(
        ("reference", "mask", "background"), "for insertion LoRAs trained on these images"
    ),
    "background_mask_fill": Recipe(
        ("background", "mask", "fill"), "for removal LoRAs trained on these images"
    ),
    "image_edges": Recipe(("image", "edges"), "for white balance LoRAs trained on these images"),
}
"""Recipes by name. Checkpoints name them in their metadata as `artmancer.recipe`."""

DEFAULT_RECIPE = "mask_background_object"
