"""Paths in the repository, and the ids of the nodes."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]

EXAMPLES = ROOT / "workflows" / "examples"
"""Folder of the example photos and masks."""

BUILD = ROOT / "build"
"""Folder of build files, which git ignores."""

NODES = re.findall(
    r'node_id="(ArtMancer_\w+)"',
    "".join(path.read_text() for path in (ROOT / "nodes").glob("*.py")),
)
"""Ids of the pack's nodes."""

FAKE_COMFYUI = ROOT / "tests" / "support" / "fake_comfyui.py"

ASSETS = ROOT / "tests" / "assets"
"""Files that only tests need."""
