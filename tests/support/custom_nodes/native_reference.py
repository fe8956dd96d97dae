"""A node that runs ComfyUI's own parts of Qwen-Image on weights from a test's folder, as a
reference for ours.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def text_encoder(folder: Path) -> Any:
    """Return ComfyUI's text encoder of Qwen-Image with the sizes and weights of a folder."""
    import comfy.ops
    from comfy.text_encoders.qwen_image import QwenImageTEModel
    from comfy.text_encoders.qwen_vl import Qwen2VLVisionTransformer

    config = json.loads((folder / "config.json").read_text())
    vision = config["vision_config"]
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    names += ("num_attention_heads", "num_key_value_heads")
    sizes = {name: config[name] for name in names}
    model = QwenImageTEModel(
        device="meta", dtype=torch.float32, model_options={"qwen25_7b_model_config": sizes}
    )
    transformer = model.qwen25_7b.transformer
    # Its sizes of the vision part are fixed.
    transformer.visual = Qwen2VLVisionTransformer(
        hidden_size=vision["hidden_size"],
        output_hidden_size=vision["out_hidden_size"],
        intermediate_size=vision["intermediate_size"],
        num_heads=vision["num_heads"],
        num_layers=vision["depth"],
        window_size=vision["window_size"],
        device="meta",
        dtype=torch.float32,
        ops=comfy.ops.manual_cast,
    )
    transformer.visual.fullatt_block_indexes = vision["fullatt_block_indexes"]
    model.to_empty(device="cpu")
    transformer.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    return model.eval()


class TemplateRecorder:
    """A CLIP that records what a node tokenizes."""

    call: dict[str, Any]

    def tokenize(self, text: str, **options: Any) -> dict[str, Any]:
        self.call = {"text": text, "llama_template": options["llama_template"]}
        return {}

    def encode_from_tokens_scheduled(self, tokens: dict[str, Any]) -> list[Any]:
        return []


def encode_prompt(request: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Encode a prompt with images, in the text that ComfyUI's node makes.

    That node scales the images to another size than ours, so they are encoded as they are.
    """
    import numpy as np
    from comfy.text_encoders.qwen_image import QwenImageTokenizer
    from comfy_extras.nodes_qwen import TextEncodeQwenImageEditPlus
    from PIL import Image

    images = [
        torch.from_numpy(np.asarray(Image.open(path).convert("RGB"), np.float32) / 255)[None]
        for path in request["images"]
    ]
    recorder = TemplateRecorder()
    TextEncodeQwenImageEditPlus.execute(recorder, request["text"], None, *images)
    tokens = QwenImageTokenizer().tokenize_with_weights(
        recorder.call["text"], images=images, llama_template=recorder.call["llama_template"]
    )
    model = text_encoder(Path(request["folder"]))
    positions: list[torch.Tensor] = []
    model.qwen25_7b.transformer.model.register_forward_pre_hook(
        lambda module, args, kwargs: positions.append(kwargs["position_ids"]), with_kwargs=True
    )
    embeds = model.encode_token_weights(tokens)[0]
    return {"embeds": embeds, "positions": positions[0]}


def predict(request: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Run ComfyUI's transformer of Qwen-Image on latents, conditioning latents and a prompt."""
    import comfy.ops
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

    folder = Path(request["folder"])
    config = json.loads((folder / "config.json").read_text())
    model = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        num_layers=config["num_layers"],
        attention_head_dim=config["attention_head_dim"],
        num_attention_heads=config["num_attention_heads"],
        joint_attention_dim=config["joint_attention_dim"],
        axes_dims_rope=config["axes_dims_rope"],
        default_ref_method="index_timestep_zero" if config["zero_cond_t"] else "index",
        dtype=torch.float32,
        device="cpu",
        operations=comfy.ops.disable_weight_init,
    )
    (weights,) = folder.glob("*.safetensors")
    info = model.load_state_dict(load_file(weights), strict=False)
    assert not info.unexpected_keys, info
    assert set(info.missing_keys) <= {"__index_timestep_zero__"}, info
    inputs = load_file(request["inputs"])
    conditions = [inputs[f"condition {index}"] for index in range(request["conditions"])]
    velocity = model(inputs["latents"], inputs["sigma"], inputs["embeds"], ref_latents=conditions)
    return {"velocity": velocity}


def normalize(request: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Normalize latents of Qwen-Image's VAE as ComfyUI does, and back."""
    from comfy.latent_formats import Wan21

    latents = load_file(request["inputs"])["latents"]
    return {
        "normalized": Wan21().process_in(latents),
        "denormalized": Wan21().process_out(latents),
    }


def encode_and_decode(request: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Encode pixels with a small VAE of ComfyUI and random weights, normalized, and decode latents;
    return its weights too.
    """
    from comfy.latent_formats import Wan21
    from comfy.ldm.wan.vae import WanVAE
    from comfyui_version import __version__ as version

    inputs = load_file(request["inputs"])
    vae = WanVAE(
        # ComfyUI 0.3 loads a VAE only with its real width.
        dim=96 if version.startswith("0.3.") else 8,
        z_dim=16,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        attn_scales=[],
        temperal_downsample=[False, True, True],
    )
    random = torch.Generator().manual_seed(0)
    for name, values in vae.state_dict().items():
        if name.endswith("gamma"):
            values.fill_(1)
        else:
            fan_in = max(1, values[0].numel())
            values.normal_(0, fan_in**-0.5, generator=random)
    vae.eval()
    return {
        "latents": Wan21().process_in(vae.encode(inputs["pixels"])),
        "pixels": vae.decode(Wan21().process_out(inputs["latents"])),
        **{f"weight {name}": values for name, values in vae.state_dict().items()},
    }


def sigmas(request: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return KSampler's sigmas after ModelSamplingAuraFlow, and LTXVScheduler's for latents of a
    size.
    """
    from comfy.model_sampling import ModelSamplingDiscreteFlow
    from comfy.samplers import calculate_sigmas
    from comfy_extras.nodes_lt import LTXVScheduler

    sampling = ModelSamplingDiscreteFlow()
    # What ModelSamplingAuraFlow puts into a model.
    sampling.set_parameters(shift=request["shift"], multiplier=1.0)
    latent = {"samples": torch.zeros(1, 16, 1, request["side"], request["side"])}
    scheduled = LTXVScheduler.execute(latent=latent, **request["scheduler"]).args[0]
    steps = request["scheduler"]["steps"]
    return {"ksampler": calculate_sigmas(sampling, "normal", steps), "scheduler": scheduled}


class NativeReference:
    """Calls one of the functions above by its name, and saves its tensors."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"request": ("STRING", {})}})
    IS_CHANGED = classmethod(lambda cls, request: float("nan"))
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    def run(self, request: str) -> dict[str, Any]:
        arguments = json.loads(request)
        calls = (encode_prompt, predict, normalize, encode_and_decode, sigmas)
        functions = {call.__name__: call for call in calls}
        # ComfyUI's thread is in inference mode.
        with torch.no_grad():
            tensors = functions[arguments["function"]](arguments)
        save_file(
            {name: tensor.clone().contiguous() for name, tensor in tensors.items()},
            arguments["result"],
        )
        return {}


def transformer(folder: Path) -> Any:
    """Return ComfyUI's model of Qwen-Image, ready to sample, with the sizes and weights of a folder
    of diffusers' transformer.
    """
    from comfy.model_patcher import ModelPatcher
    from comfy.supported_models import QwenImage

    config = json.loads((folder / "config.json").read_text())
    names = ("in_channels", "out_channels", "num_layers", "attention_head_dim")
    names += ("num_attention_heads", "joint_attention_dim", "axes_dims_rope")
    sizes = {name: config[name] for name in names}
    if config["zero_cond_t"]:
        # What ComfyUI's loader reads from an empty tensor in a file of 2511.
        sizes["default_ref_method"] = "index_timestep_zero"
    settings = QwenImage({"image_model": "qwen_image", **sizes})
    settings.set_inference_dtype(torch.float32, None)
    cpu = torch.device("cpu")
    model = settings.get_model({}, device=cpu)
    (weights,) = folder.glob("*.safetensors")
    info = model.diffusion_model.load_state_dict(load_file(weights), strict=False)
    assert not info.unexpected_keys, info
    assert set(info.missing_keys) <= {"__index_timestep_zero__"}, info
    return ModelPatcher(model, load_device=cpu, offload_device=cpu)


def text_encoder_and_tokenizer(folder: Path) -> Any:
    """Return ComfyUI's CLIP with the text encoder of a folder."""
    from comfy.sd import CLIP
    from comfy.supported_models_base import ClipTarget
    from comfy.text_encoders.qwen_image import QwenImageTokenizer

    target = ClipTarget(QwenImageTokenizer, lambda **_: text_encoder(folder))
    return CLIP(target, model_options={"dtype": torch.float32})


def autoencoder(path: Path) -> Any:
    """Return ComfyUI's VAE with the weights of a file of its own form."""
    from comfy.sd import VAE

    return VAE(sd=load_file(path), dtype=torch.float32)


def loader(kind: str, read: Callable[[Path], Any], name: str) -> type:
    """Make a node that loads a part of a base: its socket type, how it is read, its name in the
    base's folder.
    """

    class Loader:
        INPUT_TYPES = classmethod(lambda cls: {"required": {"folder": ("STRING", {})}})
        RETURN_TYPES, FUNCTION, CATEGORY = (kind,), "load", "test"

        def load(self, folder: str) -> tuple[Any]:
            return (read(Path(folder) / name),)

    return Loader


class MovePrompt:
    """Moves the positions of the prompt's tokens in ComfyUI's transformer, to start from this
    one.
    """

    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",), "start": ("INT", {})}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "test"

    def run(self, model: Any, start: int) -> tuple[Any]:
        def move(inputs: dict[str, Any]) -> dict[str, Any]:
            positions = inputs["txt_ids"]
            return {**inputs, "txt_ids": positions - positions[:, :1] + start}

        patched = model.clone()
        patched.set_model_patch(move, "post_input")
        return (patched,)


class SaveTensor:
    """Saves a picture in 32 bits."""

    INPUT_TYPES = classmethod(
        lambda cls: {"required": {"path": ("STRING", {}), "image": ("IMAGE",)}}
    )
    IS_CHANGED = classmethod(lambda cls, **_: float("nan"))
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    def run(self, path: str, image: torch.Tensor) -> dict[str, Any]:
        save_file({"image": image.clone().contiguous()}, path)
        return {}


NODE_CLASS_MAPPINGS = {
    "MovePrompt": MovePrompt,
    "NativeReference": NativeReference,
    "SaveTensor": SaveTensor,
    "SmallClip": loader("CLIP", text_encoder_and_tokenizer, "text_encoder"),
    "SmallModel": loader("MODEL", transformer, "transformer"),
    # In ComfyUI's own form, beside the parts in diffusers'.
    "SmallVae": loader("VAE", autoencoder, "wan.safetensors"),
}
