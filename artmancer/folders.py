"""Folders of models on this machine.

Imports no torch. Inside ComfyUI, nodes/comfy_host/folders.py uses ComfyUI's own list of folders
instead, which may be longer. The names and their order come from here.
"""

import os
from pathlib import Path

LORA_FOLDERS = ("artmancer", "loras")
"""Subfolders of ComfyUI's models folder that hold LoRAs. Where two of them hold a file of the same
name, the file of the first folder is used.
"""

SEGMENTER_FOLDERS = ("fastsam", "ultralytics/segm")
"""Subfolders of ComfyUI's models folder that hold Smart Mask's models."""

SEGMENTER_SUFFIXES = (".pt", ".onnx")

LAMA_FILE = "big-lama.pt"
"""Name of the file with LaMa's weights."""

LAMA_FOLDERS = ("inpaint", "artmancer")
"""Subfolders of ComfyUI's models folder that LaMa is searched in, in this order."""

MODEL_FOLDERS = ("diffusers", *LORA_FOLDERS, "inpaint", *SEGMENTER_FOLDERS, "rembg")
"""Subfolders of ComfyUI's models folder that the pack reads from."""


def comfyui_folder() -> Path:
    """Return the folder of ComfyUI: $COMFYUI_PATH, or comfy-cli's default workspace."""
    return Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")


def base_from_environment() -> Path | None:
    """Return the folder of the base model that $MODEL_PATH names; None where it is not set."""
    path = os.environ.get("MODEL_PATH")
    return Path(path) if path else None
