"""What lies on the volume of models: how it gets there, and what is missing.

    base_model/                   Qwen-Image-Edit, a folder of diffusers
    insertion_cp.safetensors ...  the variants' checkpoints, here or in checkpoints/
    fastsam/  rembg/              the light worker's models

Needs nothing but Python, for `modal run` runs it on a machine that has no more.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..variants import FILES

BASE, FASTSAM, REMBG, OLDER = "base_model", "fastsam", "rembg", "checkpoints"

PATHS = f"""\
artmancer:
    base_path: {{root}}
    diffusers: .
    artmancer: |
        .
        {OLDER}
    fastsam: {FASTSAM}
    rembg: {REMBG}
"""
"""ComfyUI's extra_model_paths.yaml for it."""

_HEADER = 2**27
_LORA = ("lora_A", "lora_down", "lora.down")


class Volume(Protocol):
    """The volume, mounted or far away."""

    def sizes(self) -> dict[str, int]:
        """Every file's bytes, by its path."""
        ...

    def read(self, path: str) -> Iterable[bytes]:
        """A file's content, in parts, so that its beginning can be read alone."""
        ...


class Folder:
    """One that is mounted, or stands for one."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def sizes(self) -> dict[str, int]:
        files = (path for path in self.root.rglob("*") if path.is_file())
        return {path.relative_to(self.root).as_posix(): path.stat().st_size for path in files}

    def read(self, path: str) -> Iterable[bytes]:
        with (self.root / path).open("rb") as file:
            while part := file.read(2**16):
                yield part


@dataclass(frozen=True)
class Inventory:
    """What was found, by what it is for; missing: what was not, and how to get it;
    broken: what is not whole.
    """

    base: bool
    checkpoints: Mapping[str, str | None]
    fastsam: tuple[str, ...]
    rembg: tuple[str, ...]
    missing: tuple[str, ...]
    broken: tuple[str, ...]

    def lines(self) -> list[str]:
        """For a person."""
        found = {
            "base": BASE if self.base else None,
            **self.checkpoints,
            "fastsam": ", ".join(self.fastsam) or None,
            "rembg": ", ".join(self.rembg) or None,
        }
        width = max(map(len, found))
        table = [f"{name.ljust(width)}  {file or 'missing'}" for name, file in found.items()]
        heavy = "edits with Qwen-Image-Edit" if self.base else "edits with the draft editor"
        light = "FastSAM" if self.fastsam else "the draft (GrabCut)"
        return [
            *table,
            *(f"broken: {line}" for line in self.broken),
            *(f"missing: {line}" for line in self.missing),
            f"heavy {heavy}; light finds objects with {light}",
        ]


def take_stock(volume: Volume) -> Inventory:
    sizes = volume.sizes()
    broken = []
    checkpoints: dict[str, str | None] = {}
    for variant, names in FILES.items():
        places = [place for name in names for place in (name, f"{OLDER}/{name}")]
        checkpoints[variant] = next((place for place in places if place in sizes), None)
    for path in (path for path in checkpoints.values() if path):
        if reason := spoiled_lora(volume.read(path), sizes[path]):
            broken.append(f"{path} {reason}")
    lacking = _lacking(volume, sizes)
    missing = []
    if lacking:
        files = (
            f" (without {', '.join(lacking[:3])})" if f"{BASE}/model_index.json" in sizes else ""
        )
        missing.append(f"{BASE}{files}: modal run modal_comfy.py::setup")
    for variant in FILES:
        if checkpoints[variant] is None:
            missing.append(
                f"{' or '.join(FILES[variant])}: modal run modal_comfy.py::upload --dir FOLDER"
            )
    models = {
        place: tuple(
            sorted(path.partition("/")[2] for path in sizes if path.startswith(f"{place}/"))
        )
        for place in (FASTSAM, REMBG)
    }
    missing += [
        f"{place}: modal run modal_comfy.py::setup" for place, files in models.items() if not files
    ]
    return Inventory(
        not lacking, checkpoints, models[FASTSAM], models[REMBG], tuple(missing), tuple(broken)
    )


def _lacking(volume: Volume, sizes: Mapping[str, int]) -> list[str]:
    """The files of the base that are not there, as far as its own lists tell."""
    wanted = {f"{BASE}/model_index.json"}
    for path in sizes:
        if path.startswith(f"{BASE}/") and path.endswith(".safetensors.index.json"):
            listed = json.loads(b"".join(volume.read(path)))["weight_map"].values()
            wanted |= {f"{path.rpartition('/')[0]}/{name}" for name in listed}
    return sorted(wanted - sizes.keys())


def spoiled_lora(parts: Iterable[bytes], size: int) -> str | None:
    """Why a file is no LoRA for Qwen-Image-Edit that is whole;
    None: it is one, by its header and its size.

    Parameters
    ----------
    parts : its content, from the beginning; as much is read as its header is long
    """
    head = b""
    for part in parts:
        head += part
        length = int.from_bytes(head[:8], "little")
        if len(head) >= 8 + length or length > _HEADER:
            break
    else:
        length = int.from_bytes(head[:8], "little")
    try:
        header = json.loads(head[8 : 8 + length])
        tensors = {name: about for name, about in header.items() if name != "__metadata__"}
        end = 8 + length + max(about["data_offsets"][1] for about in tensors.values())
    except (ValueError, TypeError, KeyError, AttributeError):
        return "is no safetensors file. Export it again"
    if size != end:
        return f"has {size:,} bytes, but by its header {end:,}. Copy it again"
    if not any(
        "transformer_blocks" in name and any(part in name for part in _LORA) for name in tensors
    ):
        return f"is no LoRA for Qwen-Image-Edit (it has {min(tensors)!r}). Choose another file"
    return None


def upload(
    folder: Path, volume: Volume, put: Callable[[Mapping[str, Path]], None]
) -> tuple[list[str], bool]:
    """Bring the checkpoints of a folder onto the volume;
    what happened, for a person, and whether all is well.

    Parameters
    ----------
    put : sends files, by the path they get
    """
    lines, good, here = [], {}, Folder(folder)
    for path in sorted(folder.glob("*.safetensors")):
        if reason := spoiled_lora(here.read(path.name), path.stat().st_size):
            lines.append(f"not sent: {path.name} {reason}")
        else:
            good[path.name] = path
    if not good and not lines:
        lines.append(
            f"There is no .safetensors file in '{folder}'. "
            "Give the folder that has them with --dir."
        )
    put(good)
    sizes = volume.sizes()
    well = bool(good) and not lines
    for name, path in good.items():
        size = path.stat().st_size
        arrived = sizes.get(name) == size and not spoiled_lora(volume.read(name), size)
        lines.append(
            f"sent: {name}, {size:,} bytes"
            if arrived
            else f"did not arrive whole: {name}. Send it again"
        )
        well &= arrived
    return [*lines, *take_stock(volume).lines()], well


def setup(root: Path, force: bool, fetch: Mapping[str, Callable[[Path], object]]) -> list[str]:
    """Fetch what is not there yet; what happened, for a person.

    Parameters
    ----------
    root : where the volume is mounted
    force : also what is there
    fetch : how, by the folder it belongs into
    """
    lines = []
    for name, into in fetch.items():
        stock = take_stock(Folder(root))
        there = {BASE: stock.base, FASTSAM: bool(stock.fastsam), REMBG: bool(stock.rembg)}[name]
        if there and not force:
            lines.append(f"kept: {name}")
        else:
            into(root / name)
            lines.append(f"fetched: {name}")
    return [*lines, *take_stock(Folder(root)).lines()]
