"""Model files: find base models and checkpoints, and read their metadata.

Only headers are read, and torch is not imported.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ArtMancerError
from ..options import RESOLUTIONS
from ..recipes import RECIPES
from ..safetensors_header import Header, file_parts, read_header
from ..variants import CHECKPOINT_FILES, CHECKPOINT_VARIABLES

PIPELINE_CLASS = "QwenImageEditPlusPipeline"
"""The diffusers class that a base model's model_index.json names."""

TEXT_ENCODER_PREFIXES = ("text_encoder", "lora_te", "lycoris_te")
"""Prefixes of keys for the text encoder, which are skipped: no variant changes it."""


@dataclass(frozen=True)
class Checkpoint:
    """A variant's LoRA file and its metadata.

    Attributes
    ----------
    path : the file; None: the base alone
    recipe : a key of RECIPES; None: not in the metadata
    resolution : the crop size it was trained at, a key of RESOLUTIONS; None: not in the metadata
    prompt : the prompt it was trained with; None: not in the metadata
    """

    path: Path | None
    recipe: str | None = None
    resolution: str | None = None
    prompt: str | None = None


NO_CHECKPOINT = Checkpoint(None)
"""The base alone."""


def expected(variant: str) -> tuple[str, ...]:
    """Return the file names that `find` looks for."""
    path = os.environ.get(CHECKPOINT_VARIABLES[variant])
    return (Path(path).name,) if path else CHECKPOINT_FILES[variant]


def find(variant: str, files: Iterable[Path]) -> Path | None:
    """Return the variant's checkpoint: the file that the environment names; else the first of
    `files` with one of its names; else a file with such a name in the working directory.
    """
    if path := os.environ.get(CHECKPOINT_VARIABLES[variant]):
        return Path(path)
    by_name: dict[str, Path] = {}
    for file in files:
        by_name.setdefault(file.name, file)
    names = CHECKPOINT_FILES[variant]
    candidates = [by_name.get(name) for name in names] + [Path(name) for name in names]
    return next((path for path in candidates if path and path.is_file()), None)


def hidden_files(files: Sequence[Path]) -> dict[Path, Path]:
    """Map each file with a checkpoint's name that an earlier file has too to that file, which is
    used instead.
    """
    names = {name for names in CHECKPOINT_FILES.values() for name in names}
    first: dict[str, Path] = {}
    for file in files:
        first.setdefault(file.name, file)
    return {
        file: first[file.name] for file in files if file.name in names and first[file.name] != file
    }


def hidden_note(hidden: Path, path: Path) -> str:
    """Return the sentence for a file that is not used because a file of its name comes first."""
    return (
        f"{hidden.parent.name}/{hidden.name} is not used: "
        f"{path.parent.name}/{path.name} has the same name and comes first."
    )


def notes(path: Path | None, files: Sequence[Path]) -> tuple[str, ...]:
    """Return the notes on a checkpoint: files that are not used because it has their name, and its
    tensors for the text encoder, which are not used.
    """
    hidden = tuple(
        hidden_note(hidden, used) for hidden, used in hidden_files(files).items() if used == path
    )
    return hidden + (_skipped_notes(path) if path else ())


def _skipped_notes(path: Path) -> tuple[str, ...]:
    """Return a note on a checkpoint's tensors for the text encoder; none where it has none, or
    cannot be read.
    """
    try:
        names = _header(path).tensors
    except ArtMancerError:
        return ()
    skipped = [name for name in names if name.startswith(TEXT_ENCODER_PREFIXES)]
    if not skipped:
        return ()
    return (
        f"{len(skipped)} of {len(names)} tensors of {path.name} are for the text encoder, such as "
        f"{skipped[0]}, and are not used: only the transformer is changed.",
    )


def read(path: Path) -> Checkpoint:
    """Read a checkpoint's metadata.

    Raises
    ------
    ArtMancerError : checkpoint_missing, generation_failed
    """
    metadata = _header(path).metadata
    return Checkpoint(
        path,
        recipe=_metadata(path, metadata, "recipe", RECIPES),
        resolution=_metadata(path, metadata, "resolution", RESOLUTIONS),
        prompt=metadata.get("artmancer.prompt"),
    )


def snapshots(folder: Path) -> list[Path]:
    """List the snapshots in a folder of the Hugging Face hub's cache; any other folder has none."""
    return sorted(path for path in (folder / "snapshots").glob("*") if path.is_dir())


def is_base(folder: Path) -> bool:
    """Tell whether a folder holds a base model, by its model_index.json or a snapshot's."""
    return any(_has_index_of_base(place) for place in (folder, *snapshots(folder)))


def bases(folders: Iterable[Path]) -> list[Path]:
    """Return the folders that hold a base model, those of Qwen-Image-Edit-2511 before those of
    2509.
    """
    return sorted(filter(is_base, folders), key=lambda folder: not _is_2511(folder))


def _is_2511(folder: Path) -> bool:
    """Tell whether a base is Qwen-Image-Edit-2511, by its transformer's config.json."""
    for place in (folder, *snapshots(folder)):
        try:
            config = json.loads((place / "transformer" / "config.json").read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(config, dict) and config.get("zero_cond_t"):
            return True
    return False


def _has_index_of_base(folder: Path) -> bool:
    try:
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(index, dict) and index.get("_class_name") == PIPELINE_CLASS


def missing(path: Path) -> ArtMancerError:
    """Make the error for a checkpoint whose file does not exist."""
    return ArtMancerError(
        "checkpoint_missing", f"There is no checkpoint '{path}'. Put it there, or choose another."
    )


def _header(path: Path) -> Header:
    try:
        with path.open("rb") as file:
            header = read_header(file_parts(file))
            is_whole = path.stat().st_size == header.file_size
    except OSError:
        raise missing(path) from None
    except ValueError:
        is_whole = False
    if not is_whole:
        raise ArtMancerError(
            "generation_failed",
            f"'{path.name}' is not a whole safetensors file. Download it again.",
        )
    return header


def _metadata(
    path: Path, metadata: dict[str, str], name: str, choices: Iterable[str]
) -> str | None:
    """Return a checkpoint's metadata of this name; refuse a value that is not among `choices`."""
    value = metadata.get(f"artmancer.{name}")
    if value is not None and value not in choices:
        raise ArtMancerError(
            "generation_failed",
            f"'{path.name}' names the {name} '{value}'; expected one of {', '.join(choices)}. "
            "Update ArtMancer.",
        )
    return value
