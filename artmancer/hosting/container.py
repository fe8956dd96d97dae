"""Contents of the workers' container image. The Dockerfile has the same steps; a test compares
them.
"""

from pathlib import Path

PYTHON = "3.12"
UV = "0.13.9"
COMFYUI = "0.33.0"
"""Versions of Python, uv and ComfyUI in the image."""

REQUIREMENTS = Path(__file__).parent / "requirements.txt"
"""All packages with their versions. `make requirements` writes this file."""

FOLDER = "/root/comfy/ComfyUI"
"""ComfyUI's folder in the image."""

PACK = f"{FOLDER}/custom_nodes/artmancer"
"""The node pack's folder in the image."""

INSTALL = (
    f"comfy --skip-prompt --workspace {FOLDER} install --nvidia --version {COMFYUI} "
    "--skip-manager --skip-torch-or-directml --skip-requirement"
)
"""Shell command that installs ComfyUI."""

ENVIRONMENT = {
    "COMFYUI_PATH": FOLDER,
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONUNBUFFERED": "1",
}
"""Environment variables of the image."""

DATA = Path("/tmp/artmancer")
"""Folder of a gateway's files in its container."""

COMFYUI_ARGUMENTS = ("--disable-dynamic-vram", "--disable-cuda-malloc")
"""Options of ComfyUI in a worker. Both features must be set up before torch is imported, and
preload.py imports torch before ComfyUI starts. The editor needs neither feature.
"""

EXCLUDED = ("**/.*", "**/__pycache__", "build", "dist", "tests", "benchmarks", "docs", "*.md")
"""Patterns of files in the checkout that the node pack does not need."""
