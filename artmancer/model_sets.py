"""Model sets: small files that name ComfyUI's own model files for an editor.

A set is models/artmancer/NAME.json; docs/model-sets.md describes its form. Imports no torch.
"""

import json
import os
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .errors import ArtMancerError
from .options import STEPS
from .recipes import RECIPES
from .variants import VARIANTS

FOLDER = "artmancer"
"""Subfolder of ComfyUI's models folder that holds the sets."""

FAMILIES = ("qwen_image", "flux2")
"""Families of models, by the type that ComfyUI's Load CLIP has for them."""

FILE_FOLDERS = {
    "unet": ("diffusion_models", "unet"),
    "clip": ("text_encoders", "clip"),
    "vae": ("vae",),
    "lora": ("artmancer", "loras"),
}
"""Subfolders of ComfyUI's models folder by kind of file, the first one first."""

GGUF = ".gguf"

SUFFIXES = (".safetensors", ".sft", GGUF)
"""Endings of the files that a set can name."""

GGUF_ADVICE = "install the custom nodes ComfyUI-GGUF, and restart ComfyUI"

RESERVED_NAMES = ("auto", "draft", "lama", "none", "qwen")
"""Names of other editors, which no set can have."""

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 ._-]{0,62}[A-Za-z0-9_-])?")

SHIFT = (0.0, 100.0)
"""Smallest and largest shift of a noise schedule."""

MAX_BYTES = 2**16
"""Size of the largest set file."""

Files = Mapping[str, Mapping[str, Path]]
"""The model files that ComfyUI has: by kind, a key of FILE_FOLDERS, then by name. A name in a
subfolder has a / on every system.
"""


class NamedFile(NamedTuple):
    """A file that a set names.

    Attributes
    ----------
    kind : a key of FILE_FOLDERS
    name : as in Files
    """

    kind: str
    name: str


@dataclass(frozen=True)
class Acceleration:
    """Sampling in few steps, without guidance.

    Attributes
    ----------
    lora : name of the LoRA for it; None: the model itself is distilled, as FLUX.2 klein is
    steps : denoising steps of an edit that sets none
    shift : shift of the noise schedule; 0: as the model was published
    """

    lora: str | None
    steps: int
    shift: float = 3.0


@dataclass(frozen=True)
class ModelSet:
    """The content of a set.

    Attributes
    ----------
    name : name of its file without the suffix
    unet, clip, vae : names of the diffusion model, the text encoder and the VAE
    family : one of FAMILIES
    loras : name of the LoRA by variant; a variant without one is edited by the model alone
    recipes : recipe by variant; a variant without one follows its LoRA's metadata or file name
    acceleration : None: as many steps, and as much guidance, as the recipe says
    """

    name: str
    unet: str
    clip: str
    vae: str
    family: str = FAMILIES[0]
    loras: Mapping[str, str] = field(default_factory=dict)
    recipes: Mapping[str, str] = field(default_factory=dict)
    acceleration: Acceleration | None = None

    def files(self, variant: str | None = None) -> list[NamedFile]:
        """List the files for a variant; None: for all variants."""
        loras = [self.loras[key] for key in self.loras if variant in (None, key)]
        if self.acceleration and self.acceleration.lora:
            loras.append(self.acceleration.lora)
        models = [NamedFile(kind, getattr(self, kind)) for kind in ("unet", "clip", "vae")]
        return models + [NamedFile("lora", name) for name in dict.fromkeys(loras)]

    def as_dict(self) -> dict[str, Any]:
        """Return the content of its file."""
        content: dict[str, Any] = {
            "family": self.family,
            "unet": self.unet,
            "clip": self.clip,
            "vae": self.vae,
        }
        if self.loras:
            content["loras"] = dict(self.loras)
        if self.recipes:
            content["recipes"] = dict(self.recipes)
        if self.acceleration:
            values = vars(self.acceleration)
            content["acceleration"] = {
                key: value for key, value in values.items() if value is not None
            }
        return content


def find(folders: Iterable[Path]) -> dict[str, Path]:
    """Map the names of the sets in these folders to their files; of two sets with one name, the
    first is listed. A file with a name that no set can have is no set.
    """
    paths: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.json")):
            if is_name(path.stem) and path.is_file():
                paths.setdefault(path.stem, path)
    return paths


def is_name(name: str) -> bool:
    """Tell whether a set can have this name."""
    return bool(NAME.fullmatch(name)) and name.lower() not in RESERVED_NAMES


def get(name: str, paths: Mapping[str, Path]) -> ModelSet:
    """Read the set of this name.

    Parameters
    ----------
    paths : from `find`

    Raises
    ------
    ArtMancerError : not_found; see `read`
    """
    if name not in paths:
        names = ", ".join(paths) or "none"
        raise ArtMancerError(
            "not_found",
            f"There is no model set '{name[:80]}' in models/{FOLDER}; there are: {names}. "
            "`artmancer models set NAME` writes one.",
        )
    return read(paths[name])


def read(path: Path) -> ModelSet:
    """Read a set's file and check its form; see `parse`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _unreadable(path.stem, error.strerror) from None
    return parse(path.stem, data)


def parse(name: str, data: bytes) -> ModelSet:
    """Parse the content of a set's file and check its form, but not whether the files exist.

    Raises
    ------
    ArtMancerError : generation_failed
    """
    content = _Content(name, _parse_json(name, data))
    content.check_keys(ModelSet.__dataclass_fields__.keys() - {"name"})
    return ModelSet(
        name,
        unet=content.file_name("unet", "unet"),
        clip=content.file_name("clip", "clip"),
        vae=content.file_name("vae", "vae"),
        family=content.choice("family", FAMILIES, FAMILIES[0]),
        loras={key: part.file_name(key, "lora") for key, part in content.variants("loras")},
        recipes={key: part.choice(key, RECIPES) for key, part in content.variants("recipes")},
        acceleration=_acceleration(content.part("acceleration")),
    )


def _acceleration(content: "_Content | None") -> Acceleration | None:
    if content is None:
        return None
    content.check_keys(Acceleration.__dataclass_fields__.keys())
    lora = content.file_name("lora", "lora") if content.has("lora") else None
    return Acceleration(
        lora,
        round(content.number("steps", STEPS, whole=True)),
        content.number("shift", SHIFT, Acceleration.shift if lora else 0.0),
    )


def _parse_json(name: str, data: bytes) -> Any:
    """Parse the JSON of a set's file; a key that occurs twice is refused."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            raise ValueError("a key occurs twice")
        return content

    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES // 1024} KB")
        return json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _unreadable(name, error) from None


def _unreadable(name: str, reason: object) -> ArtMancerError:
    return _invalid(name, f"cannot be read ({reason})", "Correct the file.")


class _Content:
    """A JSON object of a set's file, whose values are checked as they are read.

    Parameters
    ----------
    owner : name of the set
    values : the object; anything else is refused
    place : what messages call the object, with a dot; "" for the whole file
    """

    def __init__(self, owner: str, values: Any, place: str = "") -> None:
        if not isinstance(values, dict):
            key = f"has '{place[:-1]}', which" if place else ""
            raise _invalid(owner, f"{key} is no JSON object".strip(), "Write {...}.")
        self._owner = owner
        self._values: dict[str, Any] = values
        self._place = place

    def check_keys(self, known: Iterable[str]) -> None:
        """Refuse a key that is not known."""
        known = sorted(known)
        for key in self._values:
            if key not in known:
                raise self._wrong(key, f"an unknown key; expected {', '.join(known)}")

    def has(self, key: str) -> bool:
        """Tell whether there is a value under a key."""
        return key in self._values

    def part(self, key: str) -> "_Content | None":
        """Return the object under a key; None where there is none."""
        if not self.has(key):
            return None
        return _Content(self._owner, self._values[key], f"{key}.")

    def variants(self, key: str) -> Iterable[tuple[str, "_Content"]]:
        """Return the variants that the object under a key has values for, each with this object."""
        part = self.part(key)
        if part is None:
            return []
        part.check_keys(VARIANTS)
        return [(variant, part) for variant in part._values]

    def file_name(self, key: str, kind: str) -> str:
        """Return the name of a file of a kind, with / between subfolders."""
        folder = f"models/{FILE_FOLDERS[kind][0]}"
        name = self._values.get(key)
        if not isinstance(name, str):
            raise self._wrong(key, f"{_shown(name)}; expected the name of a file in {folder}")
        if _is_path(name):
            raise self._wrong(
                key, f"{_shown(name)}, a path; expected a name as ComfyUI lists it in {folder}"
            )
        if not name.endswith(SUFFIXES):
            expected = ", ".join(SUFFIXES)
            raise self._wrong(key, f"{_shown(name)}; expected a file that ends in {expected}")
        return name

    def choice(self, key: str, choices: Iterable[str], default: str | None = None) -> str:
        """Return a text that is one of the choices."""
        value = self._values.get(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self._wrong(key, f"{_shown(value)}; expected one of {', '.join(choices)}")
        return value

    def number(
        self,
        key: str,
        limits: tuple[float, float],
        default: float | None = None,
        whole: bool = False,
    ) -> float:
        """Return a number within the limits."""
        value: Any = self._values.get(key, default)
        is_number = isinstance(value, int if whole else (int, float))
        if isinstance(value, bool) or not is_number or not limits[0] <= value <= limits[1]:
            kind = "a whole number" if whole else "a number"
            expected = f"expected {kind} from {limits[0]:g} to {limits[1]:g}"
            raise self._wrong(key, f"{_shown(value)}; {expected}")
        return float(value)

    def _wrong(self, key: str, problem: str) -> ArtMancerError:
        return _invalid(self._owner, f"has '{self._place}{key[:80]}', {problem}", "Correct it.")


def _shown(value: Any) -> str:
    return "not set" if value is None else f"{value!r:.80}"


def _is_path(name: str) -> bool:
    """Tell whether a name could lead out of its folder, on any system."""
    parts = name.split("/")
    return bool(re.search(r'[\\:\x00-\x1f<>"|?*]', name)) or any(
        part.strip(" .") == "" for part in parts
    )


def _invalid(name: str, problem: str, advice: str) -> ArtMancerError:
    return ArtMancerError("generation_failed", f"The model set '{name}' {problem}. {advice}")


def missing(model_set: ModelSet, files: Files, variant: str | None = None) -> list[NamedFile]:
    """List the files of a set, for a variant or for all, that are not there."""
    return [file for file in model_set.files(variant) if file.name not in files[file.kind]]


def check_files(model_set: ModelSet, files: Files, variant: str | None = None) -> None:
    """Refuse a set with a file that is not there.

    Raises
    ------
    ArtMancerError : checkpoint_missing
    """
    absent = missing(model_set, files, variant)
    if absent:
        raise ArtMancerError(
            "checkpoint_missing",
            f"The model set '{model_set.name}' needs {describe(absent)}. Put "
            f"{'it' if len(absent) == 1 else 'them'} there, or correct the set.",
        )


def describe(files: Iterable[NamedFile]) -> str:
    """Describe missing files in words: name and folder, and how GGUF files load."""
    texts = []
    for kind, name in files:
        advice = f" (for a GGUF file, {GGUF_ADVICE})" if name.endswith(GGUF) else ""
        texts.append(f"'{name}' in models/{FILE_FOLDERS[kind][0]}{advice}")
    return " and ".join(texts)


def write(folder: Path, model_set: ModelSet) -> Path:
    """Write a set into a folder, whole or not at all; return its file.

    Raises
    ------
    ArtMancerError : invalid_request: no set can have its name, or there is one with this name;
        storage_full: the file cannot be written
    """
    if not is_name(model_set.name):
        raise ArtMancerError(
            "invalid_request",
            f"'{model_set.name[:80]}' cannot be the name of a model set; expected up to 64 "
            f"letters, digits, spaces and . _ -, and none of {', '.join(RESERVED_NAMES)}. Choose "
            "another name.",
        )
    path = folder / f"{model_set.name}.json"
    if path.exists():
        raise ArtMancerError(
            "invalid_request",
            f"There is already a model set '{model_set.name}'. Delete '{path}', or choose another "
            "name.",
        )
    partial = folder / f".{uuid.uuid4().hex}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(model_set.as_dict(), indent=2) + "\n", "utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ArtMancerError(
            "storage_full", f"'{path}' cannot be written ({error.strerror}). Choose another folder."
        ) from error
    return path
