"""Record the node classes of a running ComfyUI without custom nodes, for test_workflow_safety.py.

python tests/support/record_nodes.py http://127.0.0.1:8188
"""

import gzip
import json
import sys
from typing import Any

import httpx
from paths import ROOT


def main(url: str) -> None:
    """Write tests/assets/nodes-VERSION.json.gz."""
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as comfyui:
        nodes = comfyui.get("/object_info").json()
        version = comfyui.get("/system_stats").json()["system"]["comfyui_version"]
    recorded = {name: without_texts(node) for name, node in sorted(nodes.items())}
    data = json.dumps(recorded, separators=(",", ":"), sort_keys=True).encode()
    file = ROOT / "tests" / "assets" / f"nodes-{version}.json.gz"
    file.write_bytes(gzip.compress(data, mtime=0))


def without_texts(node: dict[str, Any]) -> dict[str, Any]:
    """Return a node's entry with its types and flags alone."""
    inputs = {
        part: {
            name: [
                "COMBO" if isinstance(spec[0], list) else spec[0],
                {key: True for key, value in options(spec).items() if value is True},
            ]
            for name, spec in node["input"].get(part, {}).items()
        }
        for part in ("required", "optional")
    }
    return {
        "input": inputs,
        "output": ["COMBO" if isinstance(kind, list) else kind for kind in node["output"]],
        "module": node["python_module"],
        "api_node": bool(node.get("api_node")),
    }


def options(spec: list[Any]) -> dict[str, Any]:
    """Return the options of an input."""
    return spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}


if __name__ == "__main__":
    main(sys.argv[1])
