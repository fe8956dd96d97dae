"""A node of another pack, for a ComfyUI under test:
it needs the device's memory for a model of its own.

The device is the CPU by another name, "cpu:0", with room for one model as large as all of ours or
that one: from "cpu" itself ComfyUI never takes anything.
"""

from typing import Any

import torch
from comfy import model_management
from comfy.model_patcher import ModelPatcher

DEVICE, ROOM = torch.device("cpu", 0), 16 * 2**30

model_management.get_torch_device = lambda: DEVICE


def free_memory(device: Any = None, torch_free_too: bool = False) -> Any:
    loaded = model_management.current_loaded_models
    free = ROOM - sum(one.model_memory() for one in loaded if one.model and one.device == DEVICE)
    return (free, free) if torch_free_too else free


model_management.get_free_memory = free_memory
FOREIGN = ModelPatcher(torch.nn.Linear(1, 1), DEVICE, torch.device("cpu"), size=ROOM)


class ForeignModel:
    """Loads its model, if it shall, and tells what is on the device."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"load": ("BOOLEAN", {})}})
    IS_CHANGED = classmethod(lambda cls, load: float("nan"))
    RETURN_TYPES, FUNCTION, OUTPUT_NODE = (), "run", True

    def run(self, load: bool) -> dict[str, Any]:
        if load:
            model_management.load_models_gpu([FOREIGN])
        loaded = model_management.current_loaded_models
        return {
            "ui": {"text": [type(one.model).__name__ for one in loaded if one.device == DEVICE]}
        }


NODE_CLASS_MAPPINGS = {"ForeignModel": ForeignModel}
