"""The base model: loaded once, shared by every editor on it."""

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch

from ..errors import ArtMancerError
from ..progress import Progress, no_progress
from . import memory
from .cache import Cache

logger = logging.getLogger(__name__)

Pipeline = Any
"""diffusers.QwenImageEditPlusPipeline, whose components carry no types."""

PIPELINE_CLASS = "QwenImageEditPlusPipeline"
PARTS = ("scheduler", "tokenizer", "processor", "text_encoder", "vae", "transformer")


@dataclass(eq=False)
class Base:
    """A loaded base model.

    pipeline : its components
    device : where they compute
    bring : puts a part there before it is used
    cache : what its encoders made of prompts and pictures
    adapters : the checkpoints attached to its transformer, by their file: the adapter's name
    lock : held during an edit, which sets the adapters
    """

    pipeline: Pipeline
    device: torch.device
    bring: memory.Bring
    cache: Cache = field(default_factory=Cache)
    adapters: dict[Path, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


# A base lives as long as an editor on it does: in ComfyUI, until the graph's outputs are dropped.
_shared: WeakValueDictionary[Path, Base] = WeakValueDictionary()


def shared(folder: Path, load: Callable[[], Base]) -> Base:
    """The base of this folder that is loaded already, or else what load gives."""
    folder = folder.resolve()
    base = _shared.get(folder)
    if base is None:
        base = _shared[folder] = load()
    return base


def load(
    folder: Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    place: Callable[[Pipeline, torch.device], memory.Bring] = memory.choose,
    progress: Progress = no_progress,
) -> Base:
    """Load a base model from a folder that diffusers wrote.

    Parameters
    ----------
    folder : with model_index.json, and safetensors weights
    device : default: CUDA where there is one, else the CPU
    dtype : default: bfloat16 on CUDA, float32 on the CPU
    place : decides where the parts lie, see memory.py
    progress : told what is loading; may raise to cancel

    Raises
    ------
    ArtMancerError : checkpoint_missing, generation_failed
    """
    if not find_spec("diffusers"):
        raise ArtMancerError(
            "generation_failed", "The qwen editor needs diffusers 0.42, which needs Python 3.11 or newer. Install both."
        )
    import diffusers
    import transformers

    _check(folder)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    logger.info("Loading %s for %s.", folder, device)
    weights: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    classes: dict[str, tuple[Any, dict[str, Any]]] = {
        "scheduler": (diffusers.FlowMatchEulerDiscreteScheduler, {}),
        "tokenizer": (transformers.Qwen2Tokenizer, {}),
        "processor": (transformers.Qwen2VLProcessor, {}),
        "text_encoder": (transformers.Qwen2_5_VLForConditionalGeneration, weights),
        "vae": (diffusers.AutoencoderKLQwenImage, weights),
        "transformer": (diffusers.QwenImageTransformer2DModel, weights),
    }
    parts = {}
    for done, (name, (kind, options)) in enumerate(classes.items()):
        progress(done, len(classes), f"loading {name.replace('_', ' ')}")
        try:
            parts[name] = kind.from_pretrained(folder / name, local_files_only=True, **options)
        except (OSError, ValueError, RuntimeError) as error:
            raise ArtMancerError(
                "generation_failed",
                f"The {name} of the base in '{folder}' cannot be loaded ({error}). Download it again.",
            ) from error
    pipeline = diffusers.QwenImageEditPlusPipeline(**parts)
    return Base(pipeline, device, place(pipeline, device))


def is_base(folder: Path) -> bool:
    """Whether this folder holds a base model, by its model_index.json."""
    index = folder / "model_index.json"
    return index.is_file() and json.loads(index.read_text()).get("_class_name") == PIPELINE_CLASS


def _check(folder: Path) -> None:
    if not (folder / "model_index.json").is_file():
        raise ArtMancerError(
            "checkpoint_missing",
            f"There is no base model in '{folder}': expected a folder that diffusers wrote, with model_index.json. "
            "Name the folder of Qwen-Image-Edit-2509.",
        )
    if not is_base(folder):
        raise ArtMancerError(
            "generation_failed",
            f"'{folder}' holds another kind of model; expected a {PIPELINE_CLASS} (Qwen-Image-Edit-2509 or 2511). "
            "Name that folder.",
        )
    for part in PARTS:
        if not (folder / part).is_dir():
            raise ArtMancerError(
                "checkpoint_missing", f"The base model in '{folder}' has no '{part}' folder. Download it again."
            )
