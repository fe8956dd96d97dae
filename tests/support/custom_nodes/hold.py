"""A node that keeps ComfyUI's worker busy until a test lets it go on."""

import time
from pathlib import Path
from typing import Any

from comfy import model_management


class Hold:
    """Waits until a file exists."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"path": ("STRING", {})}})
    IS_CHANGED = classmethod(lambda cls, path: float("nan"))
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    def run(self, path: str) -> dict[str, Any]:
        while not Path(path).exists():
            model_management.throw_exception_if_processing_interrupted()
            time.sleep(0.01)
        return {}


NODE_CLASS_MAPPINGS = {"Hold": Hold}
