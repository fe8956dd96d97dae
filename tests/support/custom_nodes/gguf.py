"""A node that stands in for the loader of ComfyUI-GGUF, under its names. Its files are safetensors
files with another ending.
"""

from typing import Any

import folder_paths
from comfy.sd import load_diffusion_model_state_dict
from safetensors.torch import load_file

folder_paths.folder_names_and_paths["unet_gguf"] = (
    folder_paths.folder_names_and_paths["diffusion_models"][0],
    {".gguf"},
)


class UnetLoaderGGUF:
    """Loads a diffusion model."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"unet_name": ("STRING", {})}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "load_unet", "test"

    def load_unet(self, unet_name: str) -> tuple[Any]:
        path = folder_paths.get_full_path("unet_gguf", unet_name)
        return (load_diffusion_model_state_dict(load_file(path)),)


NODE_CLASS_MAPPINGS = {"UnetLoaderGGUF": UnetLoaderGGUF}
