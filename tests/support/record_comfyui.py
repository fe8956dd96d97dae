"""Record the answers of a running ComfyUI with the pack for fake_comfyui.py.

python tests/support/record_comfyui.py http://127.0.0.1:8188
"""

import json
import sys
import time
from typing import Any

import httpx
from paths import ROOT

CORE = ("LoadImage", "LoadImageMask", "ImageScale", "KSampler", "SaveImage")


def main(url: str) -> None:
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as comfyui:
        nodes = comfyui.get("/object_info").json()
        stats = comfyui.get("/system_stats").json()
        stats["system"] = {
            name: stats["system"][name] for name in ("comfyui_version", "ram_total", "ram_free")
        }
        recorded = {
            "object_info": {
                kind: lean(node)
                for kind, node in nodes.items()
                if kind in CORE or kind[:9] == "ArtMancer"
            },
            "system_stats": stats,
            "status": comfyui.get("/artmancer/status").json(),
            "report": report(comfyui),
        }
    (ROOT / "tests" / "assets" / "comfyui.json").write_text(json.dumps(recorded, indent=1) + "\n")


def lean(node: dict[str, Any]) -> dict[str, Any]:
    """What says something of the node, and nothing of the machine."""
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
    """Of a removal with the draft editor."""
    graph = json.loads((ROOT / "workflows" / "api" / "generate.json").read_text())
    for node, name in (("1", "coffee"), ("2", "coffee_mask")):
        file = {
            "image": (f"{name}.png", (ROOT / "workflows" / "examples" / f"{name}.png").read_bytes())
        }
        graph[node]["inputs"]["image"] = comfyui.post("/upload/image", files=file).json()["name"]
    graph["6"]["inputs"]["value"] = "remove"
    key = comfyui.post("/prompt", json={"prompt": graph}).json()["prompt_id"]
    while key not in (history := comfyui.get(f"/history/{key}").json()):
        time.sleep(0.2)
    found = json.loads(history[key]["outputs"]["15"]["text"][0])
    return {**found, "peak_memory": 2**30}


if __name__ == "__main__":
    main(sys.argv[1])
