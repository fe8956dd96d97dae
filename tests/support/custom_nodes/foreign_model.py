"""Nodes with which a test fills the device's memory, as a model of another pack would."""

from typing import Any

import torch
from comfy import model_management
from comfy.model_patcher import ModelPatcher

DEVICE = torch.device("cpu", 0)
"""The CPU by another name: ComfyUI never unloads a model from "cpu" itself."""

ROOM = 16 * 2**30
"""Memory of the device in bytes: either for all of our models or for the foreign model."""

get_torch_device = model_management.get_torch_device
get_free_memory = model_management.get_free_memory


def free_memory_on_device(device: Any = None, torch_free_too: bool = False) -> Any:
    loaded = model_management.current_loaded_models
    used = sum(entry.model_memory() for entry in loaded if entry.model and entry.device == DEVICE)
    free = ROOM - used
    return (free, free) if torch_free_too else free


class SmallDevice:
    """Makes ComfyUI load models onto DEVICE, or onto its own device again."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"enabled": ("BOOLEAN", {})}})
    IS_CHANGED = classmethod(lambda cls, enabled: float("nan"))
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    def run(self, enabled: bool) -> dict[str, Any]:
        model_management.get_torch_device = (lambda: DEVICE) if enabled else get_torch_device
        model_management.get_free_memory = free_memory_on_device if enabled else get_free_memory
        return {}


class ForeignModel:
    """Loads a model that needs all of DEVICE's memory, if `load` is on, and shows the class names
    of the model patchers on DEVICE.
    """

    INPUT_TYPES = classmethod(lambda cls: {"required": {"load": ("BOOLEAN", {})}})
    IS_CHANGED = classmethod(lambda cls, load: float("nan"))
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    model: Any = None

    def run(self, load: bool) -> dict[str, Any]:
        if load:
            cls = type(self)
            cls.model = cls.model or ModelPatcher(
                torch.nn.Linear(1, 1), DEVICE, torch.device("cpu"), size=ROOM
            )
            model_management.load_models_gpu([cls.model])
        loaded = model_management.current_loaded_models
        names = [type(entry.model).__name__ for entry in loaded if entry.device == DEVICE]
        return {"ui": {"text": names}}


NODE_CLASS_MAPPINGS = {"ForeignModel": ForeignModel, "SmallDevice": SmallDevice}
