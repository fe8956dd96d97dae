"""Kinds of ComfyUI's model files, told from their headers. Reads no weights, imports no torch."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .safetensors_header import Header, file_parts, read_header

_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.")
"""Prefixes that trainers and converters put before the names of a diffusion model's tensors."""

_QWEN_WIDTH = 3584
"""Width of Qwen2.5-VL's embeddings, which Qwen-Image takes."""

_KEY_VALUE_WIDTH = 512
"""Width of the keys of Qwen2.5-VL 7B."""

_LATENT_CHANNELS = 16
"""Channels of Qwen-Image's latents."""

_FLUX_PARTS = ("single_transformer_blocks", "single_blocks", "double_blocks", "ff_context")
"""Parts of FLUX in the names of a LoRA's tensors; other parts have the names of Qwen-Image's."""

_QWEN_PARTS = ("img_mlp", "img_mod", "txt_mlp", "add_q_proj", "transformer_blocks")
"""Parts of Qwen-Image in the names of a LoRA's tensors."""

_GGUF_KINDS = {"qwen_image": "unet", "qwen2vl": "clip"}
"""Kinds of files by general.architecture of a GGUF file."""

_GGUF_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its GGUF type, for numbers and booleans."""

_GGUF_TEXT = 8
"""GGUF type of a text."""

_GGUF_LONGEST = 2**16
"""Longest text that is read from a GGUF file's header, in bytes."""


@dataclass(frozen=True)
class FileKind:
    """The kind of a file for Qwen-Image-Edit.

    Attributes
    ----------
    kind : "unet", "clip", "vae" or "lora", see model_sets.FILE_FOLDERS
    is_2511 : the header has the mark of Qwen-Image-Edit-2511; without it, the header of an edit
        model is that of Qwen-Image
    recipe : recipe in a LoRA's metadata; None: it has none
    """

    kind: str
    is_2511: bool = False
    recipe: str | None = None


def file_kind(path: Path) -> FileKind | None:
    """Return the kind of a whole file for Qwen-Image-Edit; None: it is something else, a part of a
    file, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            if path.suffix == ".gguf":
                kind = _GGUF_KINDS.get(_gguf_architecture(file) or "")
                return FileKind(kind) if kind else None
            header = read_header(file_parts(file))
        if path.stat().st_size != header.file_size:
            return None
    except (OSError, ValueError, struct.error):
        return None
    return _safetensors_kind(header)


def _safetensors_kind(header: Header) -> FileKind | None:
    shapes = {_bare(name): entry.get("shape") for name, entry in header.tensors.items()}
    if any(".lora" in name or ".lokr_" in name or ".hada_" in name for name in shapes):
        return _lora_kind(header)
    if shapes.get("txt_norm.weight") == [_QWEN_WIDTH]:
        # Core has no loader for 4-bit files of Nunchaku, and layered models make no edits.
        unfit = any(name.endswith(".qweight") or ".addition_t_embedding" in name for name in shapes)
        return None if unfit else FileKind("unet", "__index_timestep_zero__" in shapes)
    if shapes.get("model.layers.0.self_attn.k_proj.bias") == [_KEY_VALUE_WIDTH]:
        # Without its vision part it cannot see the conditioning images.
        return FileKind("clip") if any(name.startswith("visual.") for name in shapes) else None
    first: Any = shapes.get("decoder.conv1.weight")
    if "decoder.middle.0.residual.0.gamma" in shapes and first and first[1] == _LATENT_CHANNELS:
        return FileKind("vae")
    return None


def _bare(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _lora_kind(header: Header) -> FileKind | None:
    names = list(header.tensors)
    if any(part in name for part in _FLUX_PARTS for name in names):
        return None
    if not any(part in name for part in _QWEN_PARTS for name in names):
        return None
    return FileKind("lora", recipe=header.metadata.get("artmancer.recipe"))


def _gguf_architecture(file: BinaryIO) -> str | None:
    """Return general.architecture of a GGUF file, which is among its first values.

    Raises
    ------
    ValueError, struct.error : it is no GGUF file
    """
    magic, version, _, count = struct.unpack("<4sIQQ", file.read(24))
    if magic != b"GGUF" or version < 2:
        raise ValueError("no GGUF file")
    for _ in range(count):
        key = _gguf_text(file)
        (kind,) = struct.unpack("<I", file.read(4))
        if kind == _GGUF_TEXT:
            value = _gguf_text(file)
            if key == b"general.architecture":
                return value.decode("ascii", "replace")
        elif kind in _GGUF_SIZES:
            file.read(_GGUF_SIZES[kind])
        else:
            break
    return None


def _gguf_text(file: BinaryIO) -> bytes:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > _GGUF_LONGEST:
        raise ValueError("no GGUF file")
    return file.read(length)
