"""The interface of an editor: the model that edits a crop, or a stand-in for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .conditions import Conditions
from .errors import ArtMancerError
from .options import DEFAULT_SAMPLING, REGIONS, Sampling
from .progress import Progress
from .recipes import DEFAULT_RECIPE, RECIPES, RecipeChoice, choose


@dataclass(frozen=True)
class EditRequest:
    """One edit to make.

    Attributes
    ----------
    conditions : the crop and its conditioning images
    prompt : the edit in words
    seed : seed of the first image of a batch; the next images count up from it
    sampling : sampler settings
    part : index of the part of the mask that the conditions are of
    """

    conditions: Conditions
    prompt: str = ""
    seed: int = 0
    sampling: Sampling = DEFAULT_SAMPLING
    part: int = 0


class Editor(Protocol):
    """A model that edits a crop. Implementations: DraftEditor, LamaEditor, qwen.QwenEditor,
    PrecomputedEdit; ModelEditor of the nodes.

    Attributes
    ----------
    name : for the report, for example "draft/removal"
    variant : one of VARIANTS
    recipe : how its checkpoint was trained, a key of RECIPES
    recipe_reason : why it has this recipe, see recipes.RecipeChoice
    resolution : size of its crops, a key of RESOLUTIONS; None: the recipe's
    any_size : whether it takes crops of any size, because it was not trained at one
    keeps_surroundings : whether it leaves the crop alone around what it fills: no colors there have
        drifted, and none are matched
    default_prompt : prompt of its checkpoint for an edit that brings none; None: the recipe's
    adapters : file names of the LoRAs on its base, the checkpoint first
    steps : denoising steps of an edit that sets none; None: the recipe's
    notes : sentences for the report
    """

    @property
    def name(self) -> str: ...

    @property
    def variant(self) -> str: ...

    @property
    def recipe(self) -> str: ...

    @property
    def recipe_reason(self) -> str: ...

    @property
    def resolution(self) -> str | None: ...

    @property
    def any_size(self) -> bool: ...

    @property
    def keeps_surroundings(self) -> bool: ...

    @property
    def default_prompt(self) -> str | None: ...

    @property
    def adapters(self) -> tuple[str, ...]: ...

    @property
    def steps(self) -> int | None: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def edit(self, request: EditRequest, progress: Progress) -> Tensor:
        """Edit the crop; return an IMAGE [B, h, w, 3] of the size of `request.conditions.crop`."""
        ...


class EditorWithoutCheckpoint:
    """The properties of an Editor that no checkpoint sets."""

    recipe = DEFAULT_RECIPE
    recipe_reason = "default"
    resolution = "native"
    any_size = True
    keeps_surroundings = True
    default_prompt = None
    adapters: tuple[str, ...] = ()
    steps = None

    @property
    def notes(self) -> tuple[str, ...]:
        return ()


class Plan(NamedTuple):
    """Arguments of conditions.prepare that follow the editor's checkpoint unless a user sets them.

    Attributes
    ----------
    recipe, recipe_reason, default_prompt, resolution, frame, any_size, regions : see
        conditions.prepare
    """

    recipe: str
    recipe_reason: str
    default_prompt: str
    resolution: str
    frame: str
    any_size: bool
    regions: str


def plan(
    editor: Editor | None,
    *,
    recipe: str | None = None,
    resolution: str | None = None,
    frame: str | None = None,
    regions: str = REGIONS[0],
) -> Plan:
    """Return how to prepare an edit: as the user sets it, else as the editor's checkpoint was
    trained, else as the recipe says.

    Parameters
    ----------
    editor : None: not known yet; its resolution is then "native"
    recipe, resolution, frame : set by the user; None: not set
    regions : set by the user; "auto" is "together" for white balance, whose change of colors is the
        same for all islands

    Raises
    ------
    ArtMancerError : invalid_request
    """
    if recipe is not None:
        choice = choose(recipe, None, None)
    elif editor is None:
        choice = choose(None, None, None)
    else:
        choice = RecipeChoice(editor.recipe, editor.recipe_reason)
    row = RECIPES[choice.name]
    balances = choice.name == "image_edges" if editor is None else editor.variant == "white_balance"
    own_resolution = "native" if editor is None else editor.resolution
    # A checkpoint's own prompt belongs to its own recipe.
    own_prompt = editor.default_prompt if editor and editor.recipe == choice.name else None
    return Plan(
        choice.name,
        choice.reason,
        row.prompt if own_prompt is None else own_prompt,
        resolution or own_resolution or row.resolution,
        frame or row.frame,
        editor is not None and editor.any_size,
        "together" if regions == "auto" and balances else regions,
    )


@dataclass(frozen=True, eq=False)
class PrecomputedEdit:
    """An Editor whose edit was made before, for example by ComfyUI's own sampler.

    Attributes
    ----------
    images : IMAGE [B, h, w, 3] for each part of the mask, the crop after the edit
    """

    images: Sequence[Tensor]
    variant: str
    name: str = "ComfyUI"
    recipe: str = DEFAULT_RECIPE
    recipe_reason: str = "default"
    resolution: str | None = "native"
    any_size: bool = False
    keeps_surroundings: bool = False
    default_prompt: str | None = None
    adapters: tuple[str, ...] = ()
    steps: int | None = None
    notes: tuple[str, ...] = ()

    def edit(self, request: EditRequest, progress: Progress) -> Tensor:
        """Return the image; see Editor.edit.

        Raises
        ------
        ArtMancerError : invalid_request where it is not an edit of this crop
        """
        image = self.images[request.part]
        expected = list(request.conditions.crop.image.shape)
        if list(image.shape) != expected:
            raise ArtMancerError(
                "invalid_request",
                f"The edited crop has shape {list(image.shape)}; expected {expected}. "
                "Connect the edit of these conditions, at their size.",
            )
        return image.to("cpu", torch.float32)
