"""A node that saves a small FLUX.2 with random weights, dev and klein, in files that ComfyUI's own
loaders read: the diffusion model, the text encoder and the VAE are of ComfyUI's classes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths
import torch
from torch import Tensor

TEXT_ENCODER = "small-klein.safetensors"
"""File of the text encoder, which ComfyUI loads with SIZES."""

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    # The embeddings are the hidden states after layers 9, 18 and 27.
    "num_hidden_layers": 28,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}
"""Sizes of the text encoder. ComfyUI reads those of other models from their files."""


def save_models(models: Path) -> None:
    """Save the diffusion models, the text encoder and the VAE in ComfyUI's folders."""
    import comfy.ops
    from comfy.ldm.flux.model import Flux
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.text_encoders.flux import klein_te

    meta: dict[str, Any] = {"device": "meta", "dtype": torch.bfloat16}
    sizes = {"in_channels": 128, "out_channels": 128, "patch_size": 1, "vec_in_dim": None}
    sizes |= {"context_in_dim": 3 * SIZES["hidden_size"], "hidden_size": 128, "num_heads": 1}
    sizes |= {"depth": 1, "depth_single_blocks": 2, "axes_dim": [32] * 4, "theta": 2000}
    sizes |= {"mlp_ratio": 3.0, "qkv_bias": False, "txt_ids_dims": [3], "ops_bias": False}
    sizes |= {"global_modulation": True, "mlp_silu_act": True}
    for name, guidance in (("small-klein", False), ("small-dev", True)):
        model = Flux(
            guidance_embed=guidance, operations=comfy.ops.disable_weight_init, **sizes, **meta
        )
        save(model.state_dict(), models / "diffusion_models" / f"{name}.safetensors")
    prefix = "qwen3_4b.transformer."
    encoder = klein_te()(**meta, model_options={"qwen3_4b_model_config": SIZES}).state_dict()
    save(
        {key.removeprefix(prefix): encoder[key] for key in encoder if key.startswith(prefix)},
        models / "text_encoders" / TEXT_ENCODER,
    )
    sizes = {"double_z": True, "z_channels": 32, "resolution": 256, "in_channels": 3, "out_ch": 3}
    sizes |= {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": []}
    sizes |= {"dropout": 0.0, "batch_norm_latent": True}
    with torch.device("meta"):
        # ComfyUI reads the decoder's width from the file, not the encoder's.
        vae = AutoencoderKL(ddconfig=sizes, embed_dim=32, decoder_ddconfig={**sizes, "ch": 32})
    save(vae.state_dict(), models / "vae" / "small-flux2.safetensors")


def save(shapes: Mapping[str, Tensor], path: Path) -> None:
    """Save random weights of these shapes."""
    from safetensors.torch import save_file

    random = torch.Generator().manual_seed(0)
    weights = {}
    for key, shape in shapes.items():
        weight = torch.zeros(shape.shape, dtype=torch.bfloat16)
        if weight.ndim > 1:
            weight.normal_(0, weight[0].numel() ** -0.5, generator=random)
        elif key.endswith(("weight", "scale", "running_var")):
            weight.fill_(1)
        weights[key] = weight
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path)


def load_small_encoder() -> None:
    """Make Load CLIP load TEXT_ENCODER as FLUX.2 klein's with SIZES: the real one has 4 billion
    weights, by whose width ComfyUI recognizes it.
    """
    import comfy.sd

    load, detect = comfy.sd.load_clip, comfy.sd.detect_te_model

    def load_clip(ckpt_paths: list[str], *args: Any, **options: Any) -> Any:
        if Path(ckpt_paths[0]).name == TEXT_ENCODER:
            options["model_options"] = {"qwen3_4b_model_config": SIZES}
        return load(ckpt_paths, *args, **options)

    def detect_te_model(weights: Mapping[str, Tensor]) -> Any:
        norm = weights.get("model.layers.0.post_attention_layernorm.weight")
        if norm is not None and len(norm) == SIZES["hidden_size"]:
            return comfy.sd.TEModel.QWEN3_4B
        return detect(weights)

    comfy.sd.load_clip, comfy.sd.detect_te_model = load_clip, detect_te_model


load_small_encoder()


class SaveSmallFlux2:
    """Saves the models in ComfyUI's own folders."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    IS_CHANGED = classmethod(lambda cls: float("nan"))
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    def run(self) -> dict[str, Any]:
        save_models(Path(folder_paths.models_dir))
        return {}


NODE_CLASS_MAPPINGS = {"SaveSmallFlux2": SaveSmallFlux2}
