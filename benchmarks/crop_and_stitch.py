"""The nodes of ComfyUI-Inpaint-CropAndStitch, for benchmarks that compare with them."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import tomllib
from torch import Tensor

from artmancer.folders import comfyui_folder


class Peer:
    """The nodes, from a checkout, on the CPU.

    Attributes
    ----------
    settings : their default settings, by name
    title : name, version, commit and license
    """

    def __init__(self, folder: Path) -> None:
        sys.path.insert(0, str(comfyui_folder()))
        sys.argv[1:] = ["--cpu"]
        importlib.import_module("comfy.options").enable_args_parsing()
        spec = importlib.util.spec_from_file_location("peer", folder / "inpaint_cropandstitch.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.cropper = module.InpaintCropImproved()
        self.stitcher = module.InpaintStitchImproved()
        self.settings: dict[str, Any] = {}
        # An input is (type,) or (type, options).
        for name, definition in self.cropper.INPUT_TYPES()["required"].items():
            if len(definition) > 1 and "default" in definition[1]:
                self.settings[name] = definition[1]["default"]
        self.settings["device_mode"] = "cpu (compatible)"
        self.title = _title(folder)

    def crop(self, image: Tensor, mask: Tensor, **settings: Any) -> tuple[dict[str, Any], Tensor]:
        """Return what the peer's stitch needs, and the crop, an IMAGE."""
        options = {**self.settings, **settings}
        stitcher, cropped, *_ = self.cropper.inpaint_crop(image=image, mask=mask, **options)
        return stitcher, cropped

    def stitch(self, stitcher: dict[str, Any], cropped: Tensor) -> Tensor:
        """Return the image with the crop stitched in."""
        result: Tensor = self.stitcher.inpaint_stitch(stitcher, cropped)[0]
        return result


def _title(folder: Path) -> str:
    """Return name, version, commit and license of a checkout."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    command = ["git", "-C", str(folder), "log", "-1", "--format=%h of %cs"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    license_lines = (folder / "LICENSE").read_text().split("\n")[:2]
    license_name = ", ".join(line.strip() for line in license_lines)
    return (
        f"ComfyUI-Inpaint-CropAndStitch {project['version']}, commit {commit or 'unknown'}, "
        f"license: {license_name}"
    )
