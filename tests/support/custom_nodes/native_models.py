"""Nodes that stand in for the loaders of a real model: small models with random weights in files
that ComfyUI's own loaders read, a text encoder, and a view of KSampler's inputs.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import folder_paths
import torch

WIDTH = 3584
"""Width of Qwen2.5-VL's embeddings."""

POOL = 999_983
"""Count of the random numbers that fill all weights, again and again: 300 million would take ten
seconds. A prime, so that no two rows of a matrix are equal.
"""

SHIFT = 1009
"""Places by which each tensor begins later among them, so that no two tensors are equal."""

TEXT_ENCODER = "stand-in.safetensors"
"""File with the header of Qwen2.5-VL, which Load CLIP loads as a Clip."""


def filled(shape: torch.Size, pool: torch.Tensor) -> torch.Tensor:
    """Return a tensor that repeats the numbers of a pool."""
    count = shape.numel()
    return torch.cat([pool] * (count // len(pool) + 1))[:count].view(shape)


def save_models(models: Path) -> None:
    """Save a transformer of the real width with one block, and the narrowest VAE that loads."""
    import comfy.ops
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
    from comfy.ldm.wan.vae import WanVAE
    from comfyui_version import __version__ as version
    from safetensors.torch import save_file

    operations = comfy.ops.disable_weight_init
    transformer = QwenImageTransformer2DModel(
        num_layers=1, dtype=torch.bfloat16, device="meta", operations=operations
    )
    with torch.device("meta"):
        vae = WanVAE(
            # ComfyUI 0.3 loads a VAE only with its real width.
            dim=96 if version.startswith("0.3.") else 8,
            z_dim=16,
            dim_mult=[1, 2, 4, 4],
            num_res_blocks=2,
            attn_scales=[],
            temperal_downsample=[False, True, True],
        )
    pool = torch.empty(POOL).normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
    pool = pool.to(torch.bfloat16)
    for folder, name, model in (
        ("diffusion_models", "one-block", transformer),
        ("vae", "narrow", vae),
    ):
        weights = {
            key: torch.ones(value.shape, dtype=torch.bfloat16)
            if key.endswith("gamma")
            else filled(value.shape, pool.roll(-SHIFT * place))
            for place, (key, value) in enumerate(model.state_dict().items())
        }
        (models / folder).mkdir(parents=True, exist_ok=True)
        save_file(weights, models / folder / f"{name}.safetensors")
    (models / "text_encoders").mkdir(exist_ok=True)
    parts = {"model.layers.0.self_attn.k_proj.bias": 512, "visual.blocks.0.norm1.weight": 1280}
    weights = {key: torch.zeros(size) for key, size in parts.items()}
    save_file(weights, models / "text_encoders" / TEXT_ENCODER)


class SaveSmallModels:
    """Saves the models in ComfyUI's own folders."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    IS_CHANGED = classmethod(lambda cls: float("nan"))
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    def run(self) -> dict[str, Any]:
        save_models(Path(folder_paths.models_dir))
        return {}


class Clip:
    """A text encoder that makes embeddings of the real width from a hash of the text."""

    def tokenize(
        self, text: str, images: Any = (), llama_template: str = "{}", **_: Any
    ) -> dict[str, Any]:
        return {"text": llama_template.format(text), "images": list(images)}

    def encode_from_tokens_scheduled(self, tokens: dict[str, Any]) -> list[Any]:
        digest = hashlib.sha256(tokens["text"].encode()).digest()
        random = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
        words = torch.randn(1, 12, WIDTH, generator=random)
        images = [image.mean().expand(1, 2, WIDTH) for image in tokens["images"]]
        inputs = {"text": tokens["text"], "seen": [list(image.shape) for image in tokens["images"]]}
        return [[torch.cat([words, *images], 1), {"clip_inputs": inputs}]]


def load_stand_in() -> None:
    """Make Load CLIP return a Clip for TEXT_ENCODER, if it loads it for Qwen-Image: the real one
    has 8 billion weights.
    """
    import comfy.sd

    load = comfy.sd.load_clip

    def load_clip(ckpt_paths: list[str], *args: Any, **options: Any) -> Any:
        if Path(ckpt_paths[0]).name != TEXT_ENCODER:
            return load(ckpt_paths, *args, **options)
        assert options["clip_type"] == comfy.sd.CLIPType.QWEN_IMAGE
        return Clip()

    comfy.sd.load_clip = load_clip


load_stand_in()


class StandInClip:
    """A node in place of Load CLIP."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP",), "make", "test"

    def make(self) -> tuple[Clip]:
        return (Clip(),)


class ShowConditioning:
    """A node that shows the inputs of KSampler as JSON."""

    INPUT_TYPES = classmethod(
        lambda cls: {"required": {"conditioning": ("CONDITIONING",), "latent": ("LATENT",)}}
    )
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    def run(self, conditioning: Any, latent: Any) -> dict[str, Any]:
        _, settings = conditioning[0]
        mask = latent.get("noise_mask")
        inputs = {
            **settings["clip_inputs"],
            "references": [list(samples.shape[-2:]) for samples in settings["reference_latents"]],
            "latent": list(latent["samples"].shape[-2:]),
            "mask": None if mask is None else float(mask.mean()),
        }
        return {"ui": {"text": [json.dumps(inputs)]}}


NODE_CLASS_MAPPINGS = {
    "SaveSmallModels": SaveSmallModels,
    "ShowConditioning": ShowConditioning,
    "StandInClip": StandInClip,
}
