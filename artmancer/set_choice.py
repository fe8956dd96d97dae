"""Choose the files of a model set among those on this machine, by their headers."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from .errors import ArtMancerError
from .model_headers import FileKind, file_kind
from .model_sets import FILE_FOLDERS, Acceleration, Files, ModelSet
from .variants import CHECKPOINT_FILES

_NEEDED = {
    "unet": "the diffusion model of Qwen-Image-Edit",
    "clip": "Qwen2.5-VL 7B with its vision part",
    "vae": "the VAE of Qwen-Image",
}
"""Files that every set needs, in words, by kind."""

_RECIPE_VARIANTS = {
    "reference_mask_background": "insertion",
    "background_mask_fill": "removal",
    "image_edges": "white_balance",
}
"""Variants of recipes that only one variant has."""

_STEPS = re.compile(r"(\d+)[ _-]?step", re.I)
"""Number of steps in the name of an acceleration LoRA."""


class Chosen(NamedTuple):
    """A file that was chosen.

    Attributes
    ----------
    part : key of the set, such as "unet" or "loras.removal"
    name : name of the file
    others : names of the other files that would fit
    note : what the header does not tell; "" where there is nothing
    """

    part: str
    name: str
    others: tuple[str, ...]
    note: str = ""


class _Candidate(NamedTuple):
    name: str
    header: FileKind

    def has(self, word: str) -> bool:
        """Tell whether the name has a word, in any case."""
        return word in PurePosixPath(self.name).name.lower()


def choose(name: str, files: Files) -> tuple[ModelSet, list[Chosen]]:
    """Choose files for a set for Qwen-Image-Edit.

    Parameters
    ----------
    name : the set's
    files : the files on this machine

    Raises
    ------
    ArtMancerError : checkpoint_missing where the model, the text encoder or the VAE is not there
    """
    candidates = {kind: list(_candidates(kind, files[kind])) for kind in FILE_FOLDERS}
    absent = [
        f"{text} in models/{FILE_FOLDERS[kind][0]}"
        for kind, text in _NEEDED.items()
        if not candidates[kind]
    ]
    if absent:
        raise ArtMancerError(
            "checkpoint_missing",
            f"There is no file for {', and none for '.join(absent)}. Put it there; files are "
            "recognized by their headers.",
        )
    unet = max(candidates["unet"], key=_unet_rank)
    others = _others(candidates["unet"], unet)
    chosen = [Chosen("unet", unet.name, others, _unet_note(unet))]
    for kind in ("clip", "vae"):
        first = max(candidates[kind], key=lambda candidate: candidate.has("qwen"))
        chosen.append(Chosen(kind, first.name, _others(candidates[kind], first)))
    loras = dict(_variant_loras(candidates["lora"]))
    chosen += [Chosen(f"loras.{variant}", lora, ()) for variant, lora in loras.items()]
    acceleration = _acceleration(candidates["lora"], unet)
    if acceleration:
        chosen.append(acceleration)
    unet_name, clip, vae = (choice.name for choice in chosen[:3])
    fast = acceleration and Acceleration(acceleration.name, _steps(acceleration.name))
    return ModelSet(name, unet_name, clip, vae, loras=loras, acceleration=fast), chosen


def _candidates(kind: str, paths: Mapping[str, Path]) -> Iterator[_Candidate]:
    for name, path in sorted(paths.items()):
        header = file_kind(path)
        if header and header.kind == kind:
            yield _Candidate(name, header)


def _others(candidates: list[_Candidate], chosen: _Candidate) -> tuple[str, ...]:
    return tuple(candidate.name for candidate in candidates if candidate != chosen)


def _unet_rank(candidate: _Candidate) -> tuple[bool, bool, bool]:
    """Return the rank of a diffusion model: the newest edit model is the highest."""
    is_2511 = candidate.header.is_2511 or candidate.has("2511")
    return is_2511, candidate.has("edit"), candidate.has("2509")


def _unet_note(candidate: _Candidate) -> str:
    if candidate.header.is_2511:
        return "Qwen-Image-Edit-2511 by its header"
    if candidate.has("edit"):
        return "an edit model by its name"
    return "neither header nor name tell whether it is an edit model"


def _variant_loras(candidates: list[_Candidate]) -> Iterator[tuple[str, str]]:
    """Yield each variant that has a LoRA, with its name: one with a checkpoint's file name, else
    one whose metadata has a recipe of this variant alone.
    """
    for variant, names in CHECKPOINT_FILES.items():
        named = [
            lora for name in names for lora in candidates if PurePosixPath(lora.name).name == name
        ]
        trained = [
            lora for lora in candidates if _RECIPE_VARIANTS.get(lora.header.recipe or "") == variant
        ]
        for lora in [*named, *trained][:1]:
            yield variant, lora.name


def _acceleration(candidates: list[_Candidate], unet: _Candidate) -> Chosen | None:
    """Choose a LoRA for few steps: for an edit model, of the model's release, with the fewest
    steps. It is known by its name alone: its header is that of any LoRA.
    """
    fast = [lora for lora in candidates if lora.has("lightning") and _STEPS.search(lora.name)]
    if not fast:
        return None
    release = "2511" if _unet_rank(unet)[0] else "2509"

    def rank(lora: _Candidate) -> tuple[bool, bool, int]:
        return lora.has(release), lora.has("edit"), -_steps(lora.name)

    first = max(fast, key=rank)
    note = f"{_steps(first.name)} steps by its name"
    return Chosen("acceleration", first.name, _others(fast, first), note)


def _steps(name: str) -> int:
    match = _STEPS.search(name)
    return int(match[1]) if match else 0
