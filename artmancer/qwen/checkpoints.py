"""The variants: LoRA files, attached to the base's transformer once and switched from then on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..conditions import RECIPES
from ..errors import ArtMancerError
from .pipeline import Base

PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.")


@dataclass(frozen=True)
class Checkpoint:
    """A LoRA file and what it says of itself.

    path : None: no file, the base alone
    recipe : which conditioning images it was trained on; None: it does not say
    resolution : the crop's size it was trained at, a key of RESOLUTIONS; None: it does not say
    """

    path: Path | None
    recipe: str | None = None
    resolution: str | None = None


def read(path: Path) -> Checkpoint:
    """Read a checkpoint's metadata, not its weights.

    Raises
    ------
    ArtMancerError : checkpoint_missing, generation_failed
    """
    metadata = _open(path, lambda file: file.metadata() or {})
    recipe, resolution = metadata.get("artmancer.recipe"), metadata.get("artmancer.resolution")
    if recipe is not None and recipe not in RECIPES:
        raise ArtMancerError(
            "generation_failed",
            f"'{path.name}' asks for the recipe '{recipe}'; known are {', '.join(RECIPES)}. Update ArtMancer.",
        )
    return Checkpoint(path, recipe, resolution)


def use(base: Base, paths: list[Path], strengths: list[float]) -> None:
    """Let these checkpoints act on the base, and no other; a file is read at its first use only.

    Raises
    ------
    ArtMancerError : checkpoint_missing; generation_failed where a file is of another model
    """
    transformer = base.pipeline.transformer
    for path in paths:
        if path not in base.adapters:
            name = f"artmancer_{len(base.adapters)}"
            _attach(transformer, path, name)
            base.adapters[path] = name
    if paths:
        transformer.enable_adapters()
        transformer.set_adapters([base.adapters[path] for path in paths], strengths)
    elif base.adapters:
        transformer.disable_adapters()


def _attach(transformer: Any, path: Path, name: str) -> None:
    weights = _weights(path)
    modules = {module for module, _ in transformer.named_modules()}
    matched = {key: value for key, value in weights.items() if key.split(".lora_")[0].removesuffix(".alpha") in modules}
    if not matched:
        raise ArtMancerError(
            "generation_failed",
            f"'{path.name}' fits no layer of the base: its keys are like {', '.join(list(weights)[:3])}; expected "
            "transformer_blocks.0.attn.to_q.lora_A.weight and the like. Choose a LoRA for Qwen-Image-Edit.",
        )
    try:
        transformer.load_lora_adapter(matched, prefix=None, adapter_name=name)
    except RuntimeError as error:
        raise ArtMancerError(
            "generation_failed",
            f"'{path.name}' is a LoRA of another model: {str(error).splitlines()[-1].strip()}. "
            "Choose one for Qwen-Image-Edit.",
        ) from error


def _weights(path: Path) -> dict[str, Tensor]:
    """The file's tensors under the names of diffusers' layers."""
    from diffusers import QwenImageEditPlusPipeline

    tensors = _open(path, lambda file: {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    converted: dict[str, Tensor] = QwenImageEditPlusPipeline.lora_state_dict(tensors)
    for prefix in PREFIXES:
        converted = {key.removeprefix(prefix): value for key, value in converted.items()}
    return converted


def _open(path: Path, look: Any) -> Any:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ArtMancerError("checkpoint_missing", f"There is no checkpoint '{path}'. Put it there, or name another.")
    try:
        with safe_open(path, framework="pt") as file:
            return look(file)
    except SafetensorError as error:
        raise ArtMancerError(
            "generation_failed", f"'{path.name}' is not a whole safetensors file ({error}). Download it again."
        ) from error
