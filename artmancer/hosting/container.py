"""What the workers' image is made of; the Dockerfile has the same steps,
and a test holds the two together.
"""

from pathlib import Path

PYTHON = "3.12"
UV = "0.13.9"
COMFYUI = "0.33.0"

REQUIREMENTS = Path(__file__).parent / "requirements.txt"
"""Every package, pinned: `make requirements` writes it."""

FOLDER = "/root/comfy/ComfyUI"
PACK = f"{FOLDER}/custom_nodes/artmancer"

INSTALL = (
    f"comfy --skip-prompt --workspace {FOLDER} install --nvidia --version {COMFYUI} "
    "--skip-manager --skip-torch-or-directml --skip-requirement"
)
ENVIRONMENT = {
    "COMFYUI_PATH": FOLDER,
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONUNBUFFERED": "1",
}

COMFYUI_ARGUMENTS = ("--disable-dynamic-vram", "--disable-cuda-malloc")
"""Both have to be set up before torch is imported, which launch.py does ahead;
the editor needs neither.
"""

LEFT_OUT = ("**/.*", "**/__pycache__", "build", "dist", "tests", "benchmarks", "docs", "*.md")
"""Of the checkout, what the pack does not need."""
