"""The imports that come before a snapshot of memory."""

import subprocess
import sys

import pytest
from support.paths import ROOT

from artmancer.hosting import preload


def test_what_is_imported_ahead_asks_for_no_gpu() -> None:
    pytest.importorskip("diffusers", reason="diffusers 0.42 needs Python 3.11")
    probe = """
import torch
from artmancer.hosting.preload import import_ahead
asked = []
for name in ("_cuda_getDeviceCount", "_cuda_init"):
    setattr(torch._C, name, lambda *_, name=name: asked.append(name) or 0)
torch.cuda._nvml_based_avail = lambda: asked.append("nvml")
import_ahead()
assert not asked, asked
torch.accelerator.is_available = lambda: True
torch.accelerator.current_accelerator = lambda: torch.device("cuda")
from diffusers.utils.torch_utils import get_device
assert get_device() == "cuda", "a GPU that came later is seen"
"""
    said = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert said.returncode == 0, said.stderr[-800:]
    assert "torch" in preload.IMPORTS
