"""Small models in the files that ComfyUI's own loaders read, with random weights; and a node in
place of Load CLIP.

As a script it writes the files: python native_models.py COMFYUI MODELS. As a custom node it needs
none of them.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

WIDTH = 3584
"""Of Qwen2.5-VL's embeddings."""


def write(models: Path) -> None:
    """A transformer of the real width with one block, and a VAE as narrow as may be."""
    import comfy.ops
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
    from comfy.ldm.wan.vae import WanVAE
    from comfyui_version import __version__ as version
    from safetensors.torch import save_file

    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        num_layers=1, dtype=torch.bfloat16, device="cpu", operations=comfy.ops.disable_weight_init
    )
    vae = WanVAE(
        dim=96 if version.startswith("0.3.") else 8,  # older ones know the real width alone
        z_dim=16,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        attn_scales=[],
        temperal_downsample=[False, True, True],
    )
    for folder, name, model in (
        ("diffusion_models", "one-block", transformer),
        ("vae", "narrow", vae),
    ):
        weights = {
            key: torch.randn(value.shape) * 0.02 for key, value in model.state_dict().items()
        }
        weights |= {
            key: torch.ones_like(value) for key, value in weights.items() if key.endswith("gamma")
        }
        (models / folder).mkdir(parents=True, exist_ok=True)
        save_file(
            {key: value.bfloat16() for key, value in weights.items()},
            models / folder / f"{name}.safetensors",
        )


class Clip:
    """Makes embeddings of the real width out of anything."""

    def tokenize(
        self, text: str, images: Any = (), llama_template: str = "{}", **_: Any
    ) -> dict[str, Any]:
        return {"text": llama_template.format(text), "images": list(images)}

    def encode_from_tokens_scheduled(self, tokens: dict[str, Any]) -> list[Any]:
        key = hashlib.sha256(tokens["text"].encode()).digest()
        words = torch.randn(
            1, 12, WIDTH, generator=torch.Generator().manual_seed(int.from_bytes(key[:4], "big"))
        )
        pictures = [image.mean().expand(1, 2, WIDTH) for image in tokens["images"]]
        told = {"text": tokens["text"], "seen": [list(image.shape) for image in tokens["images"]]}
        return [[torch.cat([words, *pictures], 1), {"told": told}]]


class StandInClip:
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES, FUNCTION = ("CLIP",), "make"

    def make(self) -> tuple[Clip]:
        return (Clip(),)


class TellConditioning:
    """Shows what KSampler gets."""

    INPUT_TYPES = classmethod(
        lambda cls: {"required": {"conditioning": ("CONDITIONING",), "latent": ("LATENT",)}}
    )
    RETURN_TYPES, FUNCTION, OUTPUT_NODE = (), "tell", True

    def tell(self, conditioning: Any, latent: Any) -> dict[str, Any]:
        (_, settings), mask = conditioning[0], latent.get("noise_mask")
        references = [list(one.shape[-2:]) for one in settings["reference_latents"]]
        told = {
            **settings["told"],
            "references": references,
            "latent": list(latent["samples"].shape[-2:]),
        }
        return {
            "ui": {
                "text": [json.dumps({**told, "mask": None if mask is None else float(mask.mean())})]
            }
        }


NODE_CLASS_MAPPINGS = {"StandInClip": StandInClip, "TellConditioning": TellConditioning}

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    from comfy.cli_args import args

    args.cpu = True
    write(Path(sys.argv[2]))
