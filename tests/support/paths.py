"""Paths in the repository, and the ids of the nodes."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "workflows" / "examples"
BUILD = ROOT / "build"

NODES = re.findall(
    r'node_id="(ArtMancer_\w+)"',
    "".join(path.read_text() for path in (ROOT / "nodes").glob("*.py")),
)
"""The ids of the nodes."""

FAKE_COMFYUI = ROOT / "tests" / "support" / "fake_comfyui.py"
