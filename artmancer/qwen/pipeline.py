"""The base model: loaded once, shared by every editor on it."""

import gc
import logging
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch

from ..cache import Cache
from ..errors import ArtMancerError
from ..offload import Offloader
from ..progress import Progress, no_progress
from .checkpoints import PIPELINE_CLASS, is_base
from .memory import Memory

logger = logging.getLogger(__name__)

Pipeline = Any
"""diffusers.QwenImageEditPlusPipeline, whose components carry no types."""

NO_MEMORY = "allocate memory"
"""In what torch says where the CPU's memory is too small;
it has no class for that, as it has for a GPU's.
"""
FOLDERS = ("scheduler", "tokenizer", "processor", "text_encoder", "vae", "transformer")


@dataclass(frozen=True)
class Adapter:
    """A checkpoint that is attached: its name among PEFT's,
    and its file's time and size when it was read.
    """

    name: str
    stamp: tuple[int, int]


@dataclass(eq=False)
class Base:
    """A loaded base model.

    pipeline : its components
    memory : where they lie
    cache : what its encoders made of prompts and pictures
    adapters : the checkpoints attached to its transformer, by their file
    acting : those that act, and how strongly; None: a change of them broke off
    attached : how many were so far, for their names
    lock : held during an edit, which sets the adapters
    """

    pipeline: Pipeline
    memory: Memory
    cache: Cache = field(default_factory=Cache)
    adapters: dict[Path, "Adapter"] = field(default_factory=dict)
    acting: dict[Path, float] | None = field(default_factory=dict)
    attached: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def device(self) -> torch.device:
        """Where the parts compute."""
        return self.memory.offloader.device


# A base lives as long as an editor on it does: in ComfyUI, until the graph's outputs are dropped.
_shared: WeakValueDictionary[tuple[Path, str], Base] = WeakValueDictionary()


def shared(folder: Path, precision: str, load: Callable[[], Base]) -> Base:
    """The base of this folder that is loaded already in this precision, or else what load gives.

    precision : not "auto", see `precision_for`
    """
    key = (folder.resolve(), precision)
    base = _shared.get(key)
    if base is None:
        # diffusers' hooks make cycles: a base that nobody holds any more may still hold its memory.
        gc.collect()
        base = _shared[key] = load()
    return base


def precision_for(device: torch.device, asked: str) -> str:
    """What "auto" means on a device; anything else as it was asked."""
    if asked != "auto":
        return asked
    return "fp32" if device.type == "cpu" else "bf16"


def load(
    folder: Path,
    precision: str = "auto",
    offloader: Offloader | None = None,
    progress: Progress = no_progress,
) -> Base:
    """Load a base model from a folder that diffusers wrote.

    The weights are mapped from their files; the device reads them from there at their first use.

    Parameters
    ----------
    folder : with model_index.json, and safetensors weights
    precision : one of PRECISIONS
    offloader : puts the models on the device, see memory.py
    progress : told what is loading; may raise to cancel

    Raises
    ------
    ArtMancerError : checkpoint_missing, generation_failed
    """
    if not find_spec("diffusers"):
        raise ArtMancerError(
            "generation_failed",
            "The qwen editor needs diffusers 0.42, which needs Python 3.11 or newer. Install both.",
        )
    import diffusers
    import transformers
    from safetensors import SafetensorError

    _check(folder)
    offloader = offloader or Offloader()
    precision = precision_for(offloader.device, precision)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    logger.info("Loading %s for %s in %s.", folder, offloader.device, precision)
    weights: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    classes: dict[str, tuple[Any, dict[str, Any]]] = {
        "scheduler": (diffusers.FlowMatchEulerDiscreteScheduler, {}),
        "tokenizer": (transformers.Qwen2Tokenizer, {}),
        "processor": (transformers.Qwen2VLProcessor, {}),
        "text_encoder": (transformers.Qwen2_5_VLForConditionalGeneration, weights),
        "vae": (diffusers.AutoencoderKLQwenImage, weights),
        "transformer": (diffusers.QwenImageTransformer2DModel, weights),
    }
    parts: dict[str, Any] = {}
    for done, (name, (kind, options)) in enumerate(classes.items()):
        progress(done, len(classes), f"loading {name.replace('_', ' ')}")
        try:
            loaded = kind.from_pretrained(folder / name, local_files_only=True, **options)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            if NO_MEMORY in str(error):
                raise ArtMancerError(
                    "out_of_memory",
                    f"This computer's memory is too small for the {name} of '{folder}'. Close "
                    "other programs, or choose the precision that its files have.",
                ) from error
            raise ArtMancerError(
                "generation_failed",
                f"The {name} of the base in '{folder}' cannot be loaded ({error}). "
                "Download it again.",
            ) from error
        parts[name], found = loaded if options else (loaded, {"missing_keys": ()})
        if missing := sorted(found["missing_keys"]):
            raise ArtMancerError(
                "generation_failed",
                f"The {name} of the base in '{folder}' lacks {len(missing)} of its weights, such "
                f"as {', '.join(missing[:3])}. Download it again.",
            )
    if precision == "fp8":
        _store_in_eight_bits(parts["transformer"], dtype, progress)
    pipeline = diffusers.QwenImageEditPlusPipeline(**parts)
    return Base(pipeline, Memory(pipeline, offloader))


def _store_in_eight_bits(transformer: Any, dtype: torch.dtype, progress: Progress) -> None:
    """What `enable_layerwise_casting` does, layer by layer, as it reads and rounds 40 GB."""
    from diffusers.hooks.layerwise_casting import (
        DEFAULT_SKIP_MODULES_PATTERN,
        apply_layerwise_casting_hook,
    )

    kept = "|".join((*DEFAULT_SKIP_MODULES_PATTERN, *transformer._skip_layerwise_casting_patterns))
    named = transformer.named_modules()
    layers = [
        layer
        for name, layer in named
        if isinstance(layer, torch.nn.Linear) and not re.search(kept, name)
    ]
    for done, layer in enumerate(layers):
        progress(done, len(layers), "rounding the transformer to 8 bits")
        apply_layerwise_casting_hook(layer, torch.float8_e4m3fn, dtype, non_blocking=False)


def _check(folder: Path) -> None:
    if not (folder / "model_index.json").is_file():
        raise ArtMancerError(
            "checkpoint_missing",
            f"There is no base model in '{folder}': expected a folder that diffusers wrote, with "
            "model_index.json. Name the folder of Qwen-Image-Edit-2509.",
        )
    if not is_base(folder):
        raise ArtMancerError(
            "generation_failed",
            f"'{folder}' holds another kind of model; expected a {PIPELINE_CLASS} "
            "(Qwen-Image-Edit-2509 or 2511). Name that folder.",
        )
    for part in FOLDERS:
        if not (folder / part).is_dir():
            raise ArtMancerError(
                "checkpoint_missing",
                f"The base model in '{folder}' has no '{part}' folder. Download it again.",
            )
