"""Nodes that stand in for other packs' loaders and for a small GPU: models that keep their weights
in fewer bits, or stream them; a small FLUX.2; and a view of ComfyUI's loaded models.
"""

import copy
import gc
from typing import Any

import comfy.lora
import comfy.ops
import comfy.utils
import torch
from comfy import model_management
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from torch.nn import functional

CPU = torch.device("cpu")

BLOCKS = "transformer_blocks."
"""Start of the names of the layers that are quantized."""


class DequantizingLinear(comfy.ops.manual_cast.Linear):
    """A layer with whole numbers as weights and a scale for each row, which become a matrix in each
    forward, LoRAs added, as in the loaders of GGUF files.
    """

    scale: torch.Tensor
    lora: tuple[str, list[Any]]

    def forward_comfy_cast_weights(self, input: torch.Tensor) -> torch.Tensor:
        name, patches = self.lora
        weight = self.weight.to(input.dtype) * self.scale.to(input)
        if patches:
            weight = comfy.lora.calculate_weight(patches, weight, name)
        bias = None if self.bias is None else self.bias.to(input)
        return functional.linear(input, weight, bias)


class DequantizingPatcher(ModelPatcher):
    """A patcher that leaves the weights of a DequantizingLinear as they are."""

    def patch_weight_to_device(self, key: str, *args: Any, **kwargs: Any) -> Any:
        layer = comfy.utils.get_attr(self.model, key.rpartition(".")[0])
        if not isinstance(layer, DequantizingLinear) or key.endswith("bias"):
            return super().patch_weight_to_device(key, *args, **kwargs)
        layer.lora = key, self.patches.get(key, [])
        return None

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> None:
        if unpatch_weights:
            for layer in self.model.modules():
                if isinstance(layer, DequantizingLinear):
                    layer.lora = "", []
        super().unpatch_model(device_to, unpatch_weights)


class StreamingPatcher(ModelPatcher):
    """A patcher whose device has room for almost none of the model: the layers fetch their weights
    in each forward.
    """

    def load(self, device_to: Any, *args: Any, **kwargs: Any) -> None:
        kwargs.update(lowvram_model_memory=1, full_load=False)
        super().load(device_to, **kwargs)


def rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a matrix to whole numbers of 8 bits; return them and the scale of each row."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round(), scale


class ChangeModel:
    """Makes a model of another form of a MODEL.

    int8: weights in 8 bits, and a patcher of another pack. fp8: weights in fp8, ComfyUI's own way.
    int8 rounded, fp8 rounded: the same numbers, in 32 bits. streamed: on a device without room.
    unknown: of no known family.
    """

    INPUT_TYPES = classmethod(
        lambda cls: {"required": {"model": ("MODEL",), "form": ("STRING", {})}}
    )
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"

    def run(self, model: Any, form: str) -> tuple[Any]:
        config = model.model.model_config
        # A configuration cannot be copied.
        changed = copy.deepcopy(model.model, {id(config): config})
        if form == "unknown":
            changed.model_config = type(config)({**config.unet_config, "image_model": "lumina2"})
        for name, layer in changed.diffusion_model.named_modules():
            if name.startswith(BLOCKS) and isinstance(layer, torch.nn.Linear):
                self.change(layer, form)
        patchers = {"int8": DequantizingPatcher, "streamed": StreamingPatcher}
        return (patchers.get(form, ModelPatcher)(changed, CPU, CPU),)

    def change(self, layer: Any, form: str) -> None:
        weight = layer.weight.detach()
        if form.startswith("int8"):
            numbers, scale = rows(weight)
            if form == "int8":
                layer.__class__ = DequantizingLinear
                layer.register_buffer("scale", scale, persistent=False)
                layer.lora = "", []
                weight = numbers.to(torch.int8)
            else:
                weight = numbers * scale
        elif form.startswith("fp8"):
            weight = weight.to(torch.float8_e4m3fn)
            if form == "fp8":
                layer.comfy_cast_weights = True
            else:
                weight = weight.float()
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)


class LoadedModels:
    """Shows the models in ComfyUI's list, with their bytes on the device, and how many models of
    Qwen-Image are in main memory.
    """

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    IS_CHANGED = classmethod(lambda cls: float("nan"))
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    def run(self) -> dict[str, Any]:
        gc.collect()
        loaded = [entry.model for entry in model_management.current_loaded_models]
        names = [f"{type(patcher.model).__name__} {patcher.loaded_size()}" for patcher in loaded]
        # isinstance would wake lazy modules, and fails for proxies.
        alive = sum(issubclass(type(thing), BaseModel) for thing in gc.get_objects())
        return {"ui": {"text": [*names, f"alive {alive}"]}}


class SmallFlux2:
    """Loads a small FLUX.2 with random weights, klein or dev."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"dev": ("BOOLEAN", {})}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"

    def run(self, dev: bool) -> tuple[Any]:
        from comfy.supported_models import Flux2

        sizes = {"in_channels": 128, "out_channels": 128, "patch_size": 1, "vec_in_dim": None}
        sizes |= {"context_in_dim": 48, "hidden_size": 64, "mlp_ratio": 3.0, "num_heads": 2}
        sizes |= {"depth": 1, "depth_single_blocks": 2, "axes_dim": [8, 8, 8, 8], "theta": 2000}
        sizes |= {"qkv_bias": False, "guidance_embed": dev, "txt_ids_dims": [3]}
        sizes |= {"global_modulation": True, "mlp_silu_act": True, "ops_bias": False}
        sizes |= {"default_ref_method": "index", "ref_index_scale": 10.0}
        settings = Flux2({"image_model": "flux2", **sizes})
        settings.set_inference_dtype(torch.float32, None)
        model = settings.get_model({}, device=CPU)
        random = torch.Generator().manual_seed(0)
        for name, weight in model.diffusion_model.named_parameters():
            weight.requires_grad_(False)
            if weight.ndim == 1:
                weight.fill_(1.0 if "norm" in name else 0.0)
            else:
                weight.normal_(0, 1.5 * weight.shape[1] ** -0.5, generator=random)
        return (ModelPatcher(model, load_device=CPU, offload_device=CPU),)


class SmallFlux2Clip:
    """Makes a CLIP whose embeddings depend on the text alone."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"width": ("INT", {})}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP",), "run", "test"

    def run(self, width: int) -> tuple[Any]:
        self.width = width
        return (self,)

    def tokenize(self, text: str, **options: Any) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str) -> list[Any]:
        random = torch.Generator().manual_seed(sum(tokens.encode()))
        return [[torch.randn(1, len(tokens), self.width, generator=random), {}]]


class SmallFlux2Vae:
    """Makes a VAE that maps each square of 16 x 16 pixels to 128 numbers."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("VAE",), "run", "test"
    latent_channels = 128

    def run(self) -> tuple[Any]:
        random = torch.Generator().manual_seed(0)
        self.matrix = torch.linalg.qr(torch.randn(768, 128, generator=random)).Q
        return (self,)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        squares = functional.pixel_unshuffle(pixels[..., :3].movedim(-1, 1) * 2 - 1, 16)
        return torch.einsum("bchw,cz->bzhw", squares, self.matrix) / 2

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        squares = torch.einsum("bzhw,cz->bchw", latents * 2, self.matrix)
        pixels = functional.pixel_shuffle(squares, 16).movedim(1, -1)
        return (pixels / 4 + 0.5).clamp(0, 1)


NODE_CLASS_MAPPINGS = {
    "ChangeModel": ChangeModel,
    "LoadedModels": LoadedModels,
    "SmallFlux2": SmallFlux2,
    "SmallFlux2Clip": SmallFlux2Clip,
    "SmallFlux2Vae": SmallFlux2Vae,
}
