"""The base model: loaded once, shared by every editor on it."""

import json
import logging
import threading
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..errors import ArtMancerError
from .cache import Cache

logger = logging.getLogger(__name__)

Pipeline = Any
"""diffusers.QwenImageEditPlusPipeline, whose components carry no types."""

PIPELINE_CLASS = "QwenImageEditPlusPipeline"


@dataclass
class Base:
    """A loaded base model.

    pipeline : its components
    cache : what its encoders made of prompts and pictures
    adapters : the checkpoints attached to its transformer, by their file: the adapter's name
    lock : held during an edit, which sets the adapters
    """

    pipeline: Pipeline
    cache: Cache = field(default_factory=Cache)
    adapters: dict[Path, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


def load(folder: Path, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Base:
    """Load a base model from a folder that diffusers wrote.

    Parameters
    ----------
    folder : with model_index.json, and safetensors weights
    device : default: CUDA where there is one, else the CPU
    dtype : default: bfloat16 on CUDA, float32 on the CPU

    Raises
    ------
    ArtMancerError : checkpoint_missing, generation_failed
    """
    if not find_spec("diffusers"):
        raise ArtMancerError(
            "generation_failed", "The qwen editor needs diffusers 0.42, which needs Python 3.11 or newer. Install both."
        )
    from diffusers import QwenImageEditPlusPipeline

    _check(folder)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    logger.info("Loading %s on %s.", folder, device)
    try:
        pipeline = QwenImageEditPlusPipeline.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ArtMancerError(
            "generation_failed", f"The base model in '{folder}' cannot be loaded ({error}). Download it again."
        ) from error
    pipeline.to(device)
    return Base(pipeline)


def _check(folder: Path) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        raise ArtMancerError(
            "checkpoint_missing",
            f"There is no base model in '{folder}': expected a folder that diffusers wrote, with model_index.json. "
            "Name the folder of Qwen-Image-Edit-2509.",
        )
    parts = json.loads(index.read_text())
    if parts.get("_class_name") != PIPELINE_CLASS:
        raise ArtMancerError(
            "generation_failed",
            f"'{folder}' holds a {parts.get('_class_name')}; expected a {PIPELINE_CLASS} (Qwen-Image-Edit-2509 or "
            "2511). Name that folder.",
        )
    for part in ("transformer", "vae", "text_encoder", "tokenizer", "processor", "scheduler"):
        if not (folder / part).is_dir():
            raise ArtMancerError(
                "checkpoint_missing", f"The base model in '{folder}' has no '{part}' folder. Download it again."
            )
