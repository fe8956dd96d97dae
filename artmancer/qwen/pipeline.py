"""The base model: loaded once and shared by all editors that use it."""

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
from . import base_folder
from .memory import Memory

logger = logging.getLogger(__name__)

Pipeline = Any
"""diffusers.QwenImageEditPlusPipeline; its components have no types."""


@dataclass(frozen=True)
class Adapter:
    """A checkpoint that is attached to the base.

    Attributes
    ----------
    name : PEFT's name for it
    stamp : modification time, in nanoseconds, and size, in bytes, of its file when it was read
    norms : what is added to weights of the transformer's norms, by the parameter's name
    scales_outputs : whether it scales what the base's layers return, as DoRA does
    """

    name: str
    stamp: tuple[int, int]
    norms: dict[str, torch.Tensor] = field(default_factory=dict)
    scales_outputs: bool = False


@dataclass(eq=False)
class Base:
    """A loaded base model.

    Attributes
    ----------
    pipeline : its components
    memory : the placement of its parts
    cache : results of its encoders, by prompt and image content
    adapters : the checkpoints attached to its transformer, by path
    active : the strength of each checkpoint that is switched on, by path; None: unknown, because a
        change of them did not complete
    attached_count : number of checkpoints attached so far, which makes their names unique
    norms : the base's own weights of the norms that checkpoints change, by the parameter's name
    notes : sentences for the report
    lock : held during an edit, which switches the adapters
    """

    pipeline: Pipeline
    memory: Memory
    cache: Cache = field(default_factory=Cache)
    adapters: dict[Path, Adapter] = field(default_factory=dict)
    active: dict[Path, float] | None = field(default_factory=dict)
    attached_count: int = 0
    norms: dict[str, torch.Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def device(self) -> torch.device:
        """Device that the parts compute on."""
        return self.memory.offloader.device


_shared: WeakValueDictionary[tuple[Path, str], Base] = WeakValueDictionary()
"""Loaded bases by folder and precision. A base lives as long as an editor uses it: in ComfyUI,
until the graph's outputs are dropped.
"""


def shared(folder: Path, precision: str, load: Callable[[], Base]) -> Base:
    """Return the base of this folder that is already loaded in this precision; without one, call
    `load`.

    Parameters
    ----------
    precision : not "auto", see `precision_for`
    """
    key = (folder.resolve(), precision)
    base = _shared.get(key)
    if base is None:
        # diffusers' hooks make reference cycles, so a base without a user may still hold memory.
        gc.collect()
        base = _shared[key] = load()
    return base


def is_any_loaded() -> bool:
    """Tell whether a base is in memory."""
    return len(_shared) > 0


def precision_for(device: torch.device, precision: str) -> str:
    """Return the precision that "auto" means on a device; any other precision unchanged."""
    if precision != "auto":
        return precision
    return "fp32" if device.type == "cpu" else "bf16"


def load(
    folder: Path,
    precision: str = "auto",
    offloader: Offloader | None = None,
    progress: Progress = no_progress,
) -> Base:
    """Load a base model from a folder in diffusers' format.

    The weights are mapped into memory from their files, which are read when the weights are first
    used.

    Parameters
    ----------
    folder : folder with model_index.json and weights as safetensors
    precision : one of PRECISIONS
    offloader : loads the models onto the device; default: Offloader()
    progress : called before each part is loaded; raising in it cancels

    Raises
    ------
    ArtMancerError : checkpoint_missing, generation_failed, out_of_memory
    """
    if not find_spec("diffusers"):
        raise ArtMancerError(
            "generation_failed",
            "The qwen editor needs diffusers 0.42, which needs Python 3.11 or newer. Install both.",
        )
    import diffusers
    import transformers
    from safetensors import SafetensorError

    folder = base_folder.check(folder)
    offloader = offloader or Offloader()
    precision, notes = base_folder.precision(
        folder,
        precision_for(offloader.device, precision),
        precision_for(offloader.device, "auto"),
    )
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
    for name in ("transformer", "vae"):
        base_folder.check_keys(folder, name, classes[name][0])
    parts: dict[str, Any] = {}
    for done, (name, (part_class, options)) in enumerate(classes.items()):
        progress(done, len(classes), f"loading {name.replace('_', ' ')}")
        try:
            part = part_class.from_pretrained(folder / name, local_files_only=True, **options)
        # The packages of quantized weights also raise ImportError and AssertionError.
        except (
            OSError,
            ValueError,
            RuntimeError,
            ImportError,
            AssertionError,
            SafetensorError,
        ) as error:
            raise base_folder.load_error(folder, name, error) from error
        if options:
            part, info = part
            base_folder.check_weights(folder, name, info["missing_keys"], info["unexpected_keys"])
        parts[name] = part
    if precision == "fp8":
        _store_in_eight_bits(parts["transformer"], dtype, progress)
    pipeline = diffusers.QwenImageEditPlusPipeline(**parts)
    return Base(pipeline, Memory(pipeline, offloader), notes=notes)


def _store_in_eight_bits(transformer: Any, dtype: torch.dtype, progress: Progress) -> None:
    """Store the weights of all linear layers as float8, and cast each layer to `dtype` while it
    runs.

    It does what diffusers' `enable_layerwise_casting` does, but layer by layer with progress:
    40 GB are read and rounded.
    """
    from diffusers.hooks.layerwise_casting import (
        DEFAULT_SKIP_MODULES_PATTERN,
        apply_layerwise_casting_hook,
    )

    skipped = "|".join(
        (*DEFAULT_SKIP_MODULES_PATTERN, *transformer._skip_layerwise_casting_patterns)
    )
    layers = [
        module
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and not re.search(skipped, name)
    ]
    for done, layer in enumerate(layers):
        progress(done, len(layers), "rounding the transformer to 8 bits")
        apply_layerwise_casting_hook(layer, torch.float8_e4m3fn, dtype, non_blocking=False)
