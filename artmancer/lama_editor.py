"""The LaMa editor: removals by a small network, without a base model."""

from dataclasses import dataclass

from torch import Tensor

from .checks import check_lama_variant
from .conditions import fill_crop
from .draft import DraftEditor
from .editor import EditorWithoutCheckpoint, EditRequest
from .fill import choose
from .lama import Lama
from .progress import Progress


@dataclass(frozen=True, eq=False)
class LamaEditor(EditorWithoutCheckpoint):
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
    def notes(self) -> tuple[str, ...]:
        _, note = choose("lama", self.lama is not None)
        return (note,) if note else ()

    def edit(self, request: EditRequest, progress: Progress) -> Tensor:
        """Fill the hole; see Editor.edit. Only the conditions and the seed are used."""
        conditions = request.conditions
        if self.lama is None:
            return DraftEditor(self.variant).edit(request, progress)
        return fill_crop(conditions.crop, conditions.fill_mask, request.seed, progress, self.lama)
