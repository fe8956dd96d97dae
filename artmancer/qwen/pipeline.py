"""The base model: loaded once and shared by all editors that use it."""

import gc
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch

from ..cache import Cache
from ..errors import ArtMancerError
from ..offload import Offloader
from ..progress import Progress, no_progress
from . import base_folder, eight_bits
from .memory import Memory, activation_bytes, gigabytes
from .slots import Slots

logger = logging.getLogger(__name__)

Pipeline = Any
"""diffusers.QwenImageEditPlusPipeline; its components have no types."""

_USUAL_PIXELS = 4 * 512 * 512
"""Area of a result and three conditioning images at 512 x 512, which a precision is chosen for."""


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
    adapters : the checkpoints attached to its transformer, by path, the least recently used first
    active : the strength of each checkpoint that is switched on, by path; None: unknown, because a
        change of them did not complete
    attached_count : number of checkpoints attached so far, which makes their names unique
    norms : the base's own weights of the norms that checkpoints change, by the parameter's name
    lock : held during an edit, which switches the adapters
    loading_notes : sentences for the report on the precision
    slots : room for checkpoints in compiled blocks
    """

    pipeline: Pipeline
    memory: Memory
    cache: Cache = field(default_factory=Cache)
    adapters: dict[Path, Adapter] = field(default_factory=dict)
    active: dict[Path, float] | None = field(default_factory=dict)
    attached_count: int = 0
    norms: dict[str, torch.Tensor] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    loading_notes: tuple[str, ...] = ()
    slots: Slots = field(default_factory=Slots)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the report: what was chosen for the base, and why."""
        return (*self.loading_notes, *filter(None, [self.memory.note]))

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


class PrecisionChoice(NamedTuple):
    """The precision that a base is loaded in.

    Attributes
    ----------
    name : one of PRECISIONS, not "auto"
    notes : sentences for the report
    """

    name: str
    notes: tuple[str, ...] = ()


def precision_for(folder: Path, precision: str, offloader: Offloader) -> PrecisionChoice:
    """Choose the precision of a base on a device.

    Parts that are quantized keep the precision of their files, and the others are bf16. For any
    other base, "auto" means fp8 where its files are in 8 bits, and else fp32 on the CPU; on a GPU
    bf16, or fp8 where the transformer in bf16 does not fit with the activations of an edit at
    512 x 512 with three conditioning images.

    Parameters
    ----------
    folder : see base_folder.check
    precision : one of PRECISIONS
    """
    if base_folder.is_quantized(folder):
        is_refused = precision not in ("auto", "bf16")
        notes = (base_folder.precision_note(folder, precision),) if is_refused else ()
        return PrecisionChoice("bf16", notes)
    if precision != "auto":
        return PrecisionChoice(precision)
    weights = base_folder.tensors(folder, "transformer")
    if eight_bits.is_stored(weights):
        return PrecisionChoice("fp8", ("Precision fp8: the base's files have it.",))
    if offloader.device.type == "cpu":
        return PrecisionChoice("fp32")
    available = offloader.total_memory()
    needed = eight_bits.bfloat16_bytes(weights) + activation_bytes("transformer", _USUAL_PIXELS)
    if available is None or needed <= available:
        return PrecisionChoice("bf16")
    return PrecisionChoice(
        "fp8",
        (
            f"Precision fp8: in bf16 the transformer needs {gigabytes(needed)} with its "
            f"activations, and the GPU has {gigabytes(available)}.",
        ),
    )


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

    folder = base_folder.check(folder)
    offloader = offloader or Offloader()
    choice = precision_for(folder, precision, offloader)
    precision = choice.name
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    logger.info(
        "Loading %s for %s in %s. %s", folder, offloader.device, precision, " ".join(choice.notes)
    )
    weights: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    classes: dict[str, tuple[Any, dict[str, Any]]] = {
        "scheduler": (diffusers.FlowMatchEulerDiscreteScheduler, {}),
        "tokenizer": (transformers.Qwen2Tokenizer, {}),
        "processor": (transformers.Qwen2VLProcessor, {}),
        "text_encoder": (transformers.Qwen2_5_VLForConditionalGeneration, weights),
        "vae": (diffusers.AutoencoderKLQwenImage, weights),
        "transformer": (diffusers.QwenImageTransformer2DModel, weights),
    }
    scales = eight_bits.extra_keys(base_folder.tensors(folder, "transformer"))
    base_folder.check_keys(folder, "transformer", classes["transformer"][0], scales)
    base_folder.check_keys(folder, "vae", classes["vae"][0])
    parts: dict[str, Any] = {}
    for done, (name, (part_class, options)) in enumerate(classes.items()):
        progress(done, len(classes), f"loading {name.replace('_', ' ')}")
        parts[name] = _load_part(folder, name, part_class, options)
    transformer = parts["transformer"]
    if precision == "fp8":
        eight_bits.round_blocks(transformer, dtype, progress)
    else:
        eight_bits.restore(transformer, dtype)
    pipeline = diffusers.QwenImageEditPlusPipeline(**parts)
    return Base(pipeline, Memory(pipeline, offloader), loading_notes=choice.notes)


def _load_part(folder: Path, name: str, part_class: Any, options: dict[str, Any]) -> Any:
    """Load one part; `options` are empty for a part without weights."""
    from safetensors import SafetensorError

    try:
        if name == "transformer" and eight_bits.is_stored(base_folder.tensors(folder, name)):
            part, missing, unexpected = eight_bits.load(
                part_class, folder / name, base_folder.weight_files(folder, name), options["dtype"]
            )
        else:
            part = part_class.from_pretrained(folder / name, local_files_only=True, **options)
            if not options:
                return part
            part, info = part
            missing, unexpected = info["missing_keys"], info["unexpected_keys"]
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
    base_folder.check_weights(folder, name, missing, unexpected)
    return part
