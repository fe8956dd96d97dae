"""Load LoRA files with ComfyUI's own code, without starting it.

Usage: python comfyui_loras.py COMFYUI WEIGHTS FOLDER > RESULT

WEIGHTS is a safetensors file of a transformer, FOLDER holds LoRA files. The result is JSON: the
keys of each file that fit no layer. The changed weights are saved beside each file.
"""

import json
import sys
from pathlib import Path

folder, weights_file, lora_folder = map(Path, sys.argv[1:])
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, str(folder))

# ComfyUI is found through this path, and reads its options at import.
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.lora  # noqa: E402
import torch  # noqa: E402
from comfy.model_base import QwenImage  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402


class Model(QwenImage):
    """ComfyUI's class of the model, whose names of layers `model_lora_keys_unet` looks up, without
    its weights.
    """

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        torch.nn.Module.__init__(self)
        self.weights = {f"diffusion_model.{name}": value for name, value in weights.items()}
        self.model_config = type("Config", (), {"unet_config": {}})

    def state_dict(self, *args: object, **kwargs: object) -> dict[str, torch.Tensor]:
        return self.weights


def main() -> None:
    model = Model(load_file(weights_file))
    keys = comfy.lora.model_lora_keys_unet(model, {})
    results = {}
    for path in sorted(lora_folder.glob("*.safetensors")):
        lora = load_file(path)
        patches = comfy.lora.load_lora(lora, keys, log_missing=False)
        changed = {}
        for name, patch in patches.items():
            weight = model.weights[name].clone()
            changed[name.removeprefix("diffusion_model.")] = comfy.lora.calculate_weight(
                [(1.0, patch, 1.0, None, None)], weight, name
            )
        known = set()
        for name in keys:
            known |= {key for key in lora if key.startswith(f"{name}.")}
        save_file(
            {name: value.contiguous() for name, value in changed.items()},
            path.with_suffix(".changed"),
        )
        results[path.stem] = sorted(lora.keys() - known)
    json.dump(results, sys.stdout)


main()
