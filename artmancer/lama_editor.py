"""The LaMa editor: removals by a small network, without a base model."""

from dataclasses import dataclass

from torch import Tensor

from .checks import check_lama_variant
from .conditions import fill_crop
from .editor import EditRequest
from .fill import choose
from .lama import Lama
from .progress import Progress
from .recipes import DEFAULT_RECIPE


@dataclass(frozen=True, eq=False)
class LamaEditor:
    """An Editor (see editor.py) that fills the hole, and ignores the prompt.

    Attributes
    ----------
    variant : "removal"
    lama : the loaded LaMa; None where it is not installed: PatchMatch fills in its place, as the
        draft editor does, and the report says so
    """

    variant: str
    lama: Lama | None

    def __post_init__(self) -> None:
        check_lama_variant(self.variant)

    @property
    def name(self) -> str:
        return f"{'draft' if self.lama is None else 'lama'}/{self.variant}"

    @property
    def recipe(self) -> str:
        return DEFAULT_RECIPE

    @property
    def recipe_reason(self) -> str:
        return "default"

    @property
    def resolution(self) -> str:
        return "native"

    @property
    def default_prompt(self) -> str | None:
        return None

    @property
    def adapters(self) -> tuple[str, ...]:
        return ()

    @property
    def notes(self) -> tuple[str, ...]:
        _, note = choose("lama", self.lama is not None)
        return (note,) if note else ()

    def edit(self, request: EditRequest, progress: Progress) -> Tensor:
        """Fill the crop's mask; see Editor.edit. Only the crop and the seed are used."""
        crop = request.conditions.crop
        return fill_crop(crop, crop.mask, request.seed, progress, self.lama)
