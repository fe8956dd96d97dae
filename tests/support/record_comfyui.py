"""Record the answers of a running ComfyUI with the pack, for fake_comfyui.py.

python tests/support/record_comfyui.py http://127.0.0.1:8188
"""

import json
import sys
import time
from typing import Any

import httpx
from paths import EXAMPLES, ROOT

CORE_NODES = ("LoadImage", "LoadImageMask", "ImageScale", "KSampler", "SaveImage")
"""Nodes of ComfyUI that the tests use."""

PEAK_MEMORY = 2**30
"""Peak memory in the recorded report, in bytes; the CPU reports none."""


def main(url: str) -> None:
    """Write tests/assets/comfyui.json."""
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as comfyui:
        nodes = comfyui.get("/object_info").json()
        stats = comfyui.get("/system_stats").json()
        stats["system"] = {
            name: stats["system"][name] for name in ("comfyui_version", "ram_total", "ram_free")
        }
        recorded = {
            "object_info": {
                kind: without_machine(node)
                for kind, node in nodes.items()
                if kind in CORE_NODES or kind.startswith("ArtMancer")
            },
            "system_stats": stats,
            "status": comfyui.get("/artmancer/status").json(),
            "report": report(comfyui),
        }
    (ROOT / "tests" / "assets" / "comfyui.json").write_text(json.dumps(recorded, indent=1) + "\n")


def without_machine(node: dict[str, Any]) -> dict[str, Any]:
    """Return a node's entry without texts and without the lists of files on this machine."""
    for group in ("required", "optional"):
        for spec in node["input"].get(group, {}).values():
            if isinstance(spec[0], list):
                spec[0] = []
            if len(spec) > 1:
                spec[1].pop("tooltip", None)
                spec[1].pop("options", None)
    node.pop("output_tooltips", None)
    return node


def report(comfyui: httpx.Client) -> Any:
    """Run a removal with the draft editor; return its report."""
    graph = json.loads((ROOT / "workflows" / "api" / "generate.json").read_text())
    for node, name in (("1", "coffee"), ("2", "coffee_mask")):
        data = (EXAMPLES / f"{name}.png").read_bytes()
        file = {"image": (f"{name}.png", data)}
        graph[node]["inputs"]["image"] = comfyui.post("/upload/image", files=file).json()["name"]
    graph["6"]["inputs"]["value"] = "remove"
    key = comfyui.post("/prompt", json={"prompt": graph}).json()["prompt_id"]
    while key not in (history := comfyui.get(f"/history/{key}").json()):
        time.sleep(0.2)
    values = json.loads(history[key]["outputs"]["15"]["text"][0])
    return {**values, "peak_memory": PEAK_MEMORY}


if __name__ == "__main__":
    main(sys.argv[1])
