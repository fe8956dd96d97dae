"""The interface of an editor: the model that edits a crop, or a stand-in for it."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .conditions import Conditions
from .errors import ArtMancerError
from .options import DEFAULT_SAMPLING, Sampling
from .progress import Progress
from .recipes import DEFAULT_RECIPE


@dataclass(frozen=True)
class EditRequest:
    """One edit to make.

    Attributes
    ----------
    conditions : the crop and its conditioning images
    prompt : the edit in words
    seed : seed of the first image of a batch; the next images count up from it
    sampling : sampler settings
    """

    conditions: Conditions
    prompt: str = ""
    seed: int = 0
    sampling: Sampling = DEFAULT_SAMPLING


class Editor(Protocol):
    """A model that edits a crop. Implementations: DraftEditor, qwen.QwenEditor, PrecomputedEdit.

    Attributes
    ----------
    name : for the report, for example "draft/removal"
    variant : one of VARIANTS
    recipe, resolution : how its checkpoint was trained, keys of RECIPES and RESOLUTIONS
    adapters : file names of the LoRAs on its base, the checkpoint first
    notes : sentences for the report
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

    @property
    def notes(self) -> tuple[str, ...]: ...

    def edit(self, request: EditRequest, progress: Progress) -> Tensor:
        """Edit the crop; return an IMAGE [B, h, w, 3] of the size of `request.conditions.crop`."""
        ...


@dataclass(frozen=True, eq=False)
class PrecomputedEdit:
    """An Editor whose edit was made before, for example by ComfyUI's own sampler.

    Attributes
    ----------
    image : IMAGE [B, h, w, 3], the crop after the edit
    """

    image: Tensor
    variant: str
    name: str = "ComfyUI"
    recipe: str = DEFAULT_RECIPE
    resolution: str = "native"
    adapters: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def edit(self, request: EditRequest, progress: Progress) -> Tensor:
        """Return the image; see Editor.edit.

        Raises
        ------
        ArtMancerError : invalid_request where it is not an edit of this crop
        """
        expected = list(request.conditions.crop.image.shape)
        if list(self.image.shape) != expected:
            raise ArtMancerError(
                "invalid_request",
                f"The edited crop has shape {list(self.image.shape)}; expected {expected}. "
                "Connect the edit of these conditions, at their size.",
            )
        return self.image.to("cpu", torch.float32)
