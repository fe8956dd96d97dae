"""The imports before a snapshot of memory."""

import subprocess
import sys

import pytest
from support.paths import ROOT

from artmancer.hosting import preload


@pytest.mark.slow
def test_imports_before_a_snapshot_use_no_gpu() -> None:
    pytest.importorskip("diffusers", reason="diffusers 0.42 needs Python 3.11")
    probe = """
import torch
from artmancer.hosting.preload import import_ahead
calls = []
for name in ("_cuda_getDeviceCount", "_cuda_init"):
    setattr(torch._C, name, lambda *_, name=name: calls.append(name) or 0)
torch.cuda._nvml_based_avail = lambda: calls.append("nvml")
import_ahead()
assert not calls, calls
torch.accelerator.is_available = lambda: True
torch.accelerator.current_accelerator = lambda: torch.device("cuda")
from diffusers.utils.torch_utils import get_device
assert get_device() == "cuda", "a GPU that is added after the imports is used"
"""
    process = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert process.returncode == 0, process.stderr[-800:]
    assert "torch" in preload.IMPORTS
