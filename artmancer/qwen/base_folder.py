"""Checks of a base's folder.

`check` reads names and headers only, without torch, so that a wrong folder is refused before any
weights are read. `check_keys` compares the headers with the model's class. `check_weights` and
`load_error` explain a part after it was loaded, or could not be.
"""

import json
from collections.abc import Collection, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import ArtMancerError
from ..safetensors_header import Header, file_parts, read_header
from .checkpoints import PIPELINE_CLASS, is_base, snapshots

CPU_OUT_OF_MEMORY = "allocate memory"
"""Part of torch's RuntimeError when the CPU's memory runs out; torch.OutOfMemoryError is for GPUs
only.
"""

_PART_FOLDERS = ("scheduler", "tokenizer", "processor", "text_encoder", "vae", "transformer")
"""Folders that a base model has, one for each part."""

_WEIGHTS = {
    "text_encoder": "model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "transformer": "diffusion_pytorch_model.safetensors",
}
"""Name of the file with a part's weights. With several files, an index of this name and
".index.json" lists them.
"""

_QUANTIZATION_PACKAGES = ("bitsandbytes", "torchao")
"""Quantization methods that are loaded. Each has the name of the package that it needs."""

_FETCH = "download a folder with `artmancer models fetch`"
_NATIVE = "ComfyUI's own sampler, in template 9 (ComfyUI's KSampler)"
_OTHER_WAYS = f"Choose another folder, {_FETCH}, or use a single file with {_NATIVE}."


def check(folder: Path) -> Path:
    """Refuse a folder whose files are not a whole base model that can be loaded here.

    Returns
    -------
    the folder to load: for a folder of the Hugging Face hub's cache its snapshot

    Raises
    ------
    ArtMancerError : checkpoint_missing, generation_failed
    """
    if (file := _single_file(folder)) is not None:
        raise ArtMancerError(
            "generation_failed",
            f"'{file}' is a single file; expected a base model's folder in diffusers' format. "
            f"Use the file with {_NATIVE}, or {_FETCH}.",
        )
    folder = _snapshot(folder)
    if not (folder / "model_index.json").is_file():
        raise ArtMancerError(
            "checkpoint_missing",
            f"There is no base model in '{folder}': expected a folder in diffusers' format, with "
            "model_index.json. Choose the folder of Qwen-Image-Edit-2509 or 2511, or "
            f"{_FETCH}.",
        )
    if not is_base(folder):
        raise ArtMancerError(
            "generation_failed",
            f"'{folder}' holds another kind of model; expected a {PIPELINE_CLASS}. Choose the "
            "folder of Qwen-Image-Edit-2509 or 2511.",
        )
    for part in _PART_FOLDERS:
        if not (folder / part).is_dir():
            raise ArtMancerError(
                "checkpoint_missing",
                f"The base model in '{folder}' has no '{part}' folder. Download it again.",
            )
    for part in _WEIGHTS:
        _check_quantization(folder, part)
        _headers(folder, part)
    return folder


def _single_file(folder: Path) -> Path | None:
    """Return the file that was chosen as a base, or that a folder holds instead of one."""
    if folder.is_file():
        return folder
    if (folder / "model_index.json").is_file() or (folder / "config.json").is_file():
        return None
    files = (path for suffix in ("safetensors", "gguf") for path in folder.glob(f"*.{suffix}"))
    return next(files, None)


def _snapshot(folder: Path) -> Path:
    """Return the only snapshot of a folder of the Hugging Face hub's cache, and any other folder
    unchanged.
    """
    if not (folder / "snapshots").is_dir():
        return folder
    found = snapshots(folder)
    if len(found) == 1:
        return found[0]
    choice = f"Choose one of them, such as '{found[0]}', or" if found else "Choose another, or"
    raise ArtMancerError(
        "checkpoint_missing",
        f"'{folder}' is a folder of the Hugging Face hub's cache with {len(found)} snapshots; "
        f"expected one. {choice} {_FETCH}.",
    )


def quantization(folder: Path, part: str) -> str | None:
    """Return the name of the method that a part's config.json says its weights are quantized with;
    None: they are not.

    Raises
    ------
    ArtMancerError : checkpoint_missing where config.json cannot be read
    """
    try:
        config = json.loads((folder / part / "config.json").read_text("utf-8"))
        settings = config.get("quantization_config") or {}
        # Older files of bitsandbytes do not name the method.
        if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
            return "bitsandbytes"
        method = settings.get("quant_method", "a method without a name")
    except (OSError, ValueError, AttributeError):
        raise ArtMancerError(
            "checkpoint_missing",
            f"The {part} of the base in '{folder}' has no config.json that can be read. Download "
            "it again.",
        ) from None
    return str(method) if settings else None


def _check_quantization(folder: Path, part: str) -> None:
    """Refuse a part whose weights are quantized in a way that cannot be loaded here."""
    method = quantization(folder, part)
    if method is None:
        return
    if method not in _QUANTIZATION_PACKAGES:
        raise ArtMancerError(
            "generation_failed",
            f"The {part} of the base in '{folder}' is quantized with {method}; expected "
            f"{' or '.join(_QUANTIZATION_PACKAGES)}. {_OTHER_WAYS}",
        )
    if not find_spec(method):
        raise ArtMancerError(
            "generation_failed",
            f"The {part} of the base in '{folder}' is quantized with {method}, which is not "
            f"installed. Install it with `pip install {method}`, or choose another folder.",
        )


def is_quantized(folder: Path) -> bool:
    """Tell whether a part of a base is quantized."""
    return any(quantization(folder, part) for part in _WEIGHTS)


def precision_note(folder: Path, precision: str) -> str:
    """Return the sentence for the report where a user's precision is not used, because parts of the
    base are quantized.
    """
    methods = {part: quantization(folder, part) for part in _WEIGHTS}
    quantized = [f"{part} ({method})" for part, method in methods.items() if method]
    return (
        f"The precision {precision} is not used: these parts of the base are quantized and keep "
        f"the precision of their files: {', '.join(quantized)}. The others are loaded in bf16."
    )


def tensors(folder: Path, part: str) -> dict[str, dict[str, Any]]:
    """Return the headers' entries of a part's weights, by the tensor's name; see Header.tensors.

    Raises
    ------
    ArtMancerError : checkpoint_missing, generation_failed
    """
    return {name: entry for file in _headers(folder, part) for name, entry in file.tensors.items()}


def _headers(folder: Path, part: str) -> list[Header]:
    """Read the headers of a part's weights.

    Raises
    ------
    ArtMancerError : checkpoint_missing, generation_failed
    """
    headers = []
    for path in weight_files(folder, part):
        try:
            with path.open("rb") as file:
                header = read_header(file_parts(file))
            is_whole = path.stat().st_size == header.file_size
        except (OSError, ValueError):
            is_whole = False
        if not is_whole:
            raise ArtMancerError(
                "generation_failed",
                f"The {part} of the base in '{folder}' cannot be loaded ('{path.name}' is not a "
                "whole safetensors file). Download it again.",
            )
        headers.append(header)
    return headers


def weight_files(folder: Path, part: str) -> list[Path]:
    """List the files that a part's weights are loaded from, which need not exist."""
    place, name = folder / part, _WEIGHTS[part]
    index = place / f"{name}.index.json"
    if not index.is_file():
        if not (place / name).is_file():
            raise _no_weights(folder, part)
        return [place / name]
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ArtMancerError(
            "generation_failed",
            f"The {part} of the base in '{folder}' cannot be loaded ('{index.name}' lists no "
            "files). Download it again.",
        ) from None
    return [place / name for name in sorted(names)]


def _no_weights(folder: Path, part: str) -> ArtMancerError:
    """Make the error for a part without a file of the name that is loaded."""
    place, name = folder / part, _WEIGHTS[part]
    start = f"The {part} of the base in '{folder}' has"
    # An index first: beside it, the names of the single files do not matter.
    for pattern in ("*.safetensors.index*.json", "*.safetensors"):
        if other := next(iter(sorted(place.glob(pattern))), None):
            expected = f"{name}.index.json" if "index" in pattern else name
            return ArtMancerError(
                "generation_failed",
                f"{start} '{other.name}'; expected '{expected}', the only name that is loaded. "
                f"Rename it, choose another folder, or {_FETCH}.",
            )
    if other := next(iter(sorted(place.glob("*.bin"))), None):
        return ArtMancerError(
            "generation_failed",
            f"{start} '{other.name}'; expected '{name}'. A .bin file is not opened, because it "
            f"can run code. Choose a folder with safetensors, or {_FETCH}.",
        )
    return ArtMancerError(
        "checkpoint_missing", f"{start} no weights; expected '{name}'. Download it again."
    )


def check_keys(folder: Path, part: str, part_class: Any, extra_keys: Collection[str] = ()) -> None:
    """Compare the names of a part's weights with those of the model's class, before they are
    loaded. bitsandbytes checks its own names while it loads.

    Parameters
    ----------
    part_class : its class of diffusers
    extra_keys : names that the class does not have, and that the caller loads itself

    Raises
    ------
    ArtMancerError : generation_failed
    """
    import torch

    method = quantization(folder, part)
    if method == "bitsandbytes":
        return
    try:
        with torch.device("meta"):
            model = part_class.from_config(part_class.load_config(folder / part))
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise load_error(folder, part, error) from error
    names = _torchao_names if method == "torchao" else _tensor_names
    keys = {name for header in _headers(folder, part) for name in names(header)}
    expected = set(model.state_dict())
    check_weights(folder, part, expected - keys, keys - expected, extra_keys)


def _tensor_names(header: Header) -> set[str]:
    return set(header.tensors)


def _torchao_names(header: Header) -> set[str]:
    """Return the names of the weights in a file of torchao, which splits a weight into several
    tensors and lists them in the metadata.
    """
    names = set(header.tensors)
    for name in json.loads(header.metadata.get("tensor_names", "[]")):
        module, _, weight = name.rpartition(".")
        pieces = json.loads(header.metadata[name]).get("_tensor_data_names", [])
        names -= {f"{module}._{weight}_{piece}" for piece in pieces}
        names.add(name)
    return names


def check_weights(
    folder: Path,
    part: str,
    missing_keys: Iterable[str],
    unexpected_keys: Iterable[str],
    extra_keys: Collection[str] = (),
) -> None:
    """Refuse a part that lacks weights, or has others that would be dropped.

    Parameters
    ----------
    extra_keys : as for `check_keys`

    Raises
    ------
    ArtMancerError : generation_failed
    """
    if unexpected := sorted(set(unexpected_keys) - set(extra_keys)):
        raise ArtMancerError(
            "generation_failed",
            f"The {part} of the base in '{folder}' has weights that this model does not have "
            f"({len(unexpected)}), such as {', '.join(unexpected[:3])}. Without them its images "
            f"would be wrong. {_OTHER_WAYS}",
        )
    if missing := sorted(missing_keys):
        raise ArtMancerError(
            "generation_failed",
            f"The {part} of the base in '{folder}' lacks {len(missing)} of its weights, such "
            f"as {', '.join(missing[:3])}. Download it again.",
        )


def load_error(folder: Path, part: str, error: Exception) -> ArtMancerError:
    """Make the error for a part that cannot be loaded."""
    reason = str(error) or type(error).__name__
    if CPU_OUT_OF_MEMORY in str(error):
        return ArtMancerError(
            "out_of_memory",
            f"This computer's memory is too small for the {part} of '{folder}'. Close other "
            "programs, or choose the precision that its files have.",
        )
    if part in _WEIGHTS and (method := quantization(folder, part)):
        return ArtMancerError(
            "generation_failed",
            f"The {part} of the base in '{folder}' is quantized with {method} and cannot be loaded "
            f"here ({reason}). {_OTHER_WAYS}",
        )
    return ArtMancerError(
        "generation_failed",
        f"The {part} of the base in '{folder}' cannot be loaded ({reason}). Download it again.",
    )
