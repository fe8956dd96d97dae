"""Write locales/en anew, out of the nodes' schemas: what a translator starts from.

ComfyUI shows the schemas' own English with or without it.

Usage: python docs/locales.py
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.comfyui import ComfyUI
from support.paths import ROOT


def texts(info: dict[str, Any]) -> dict[str, Any]:
    """The content of a locale's files, by their names, from what ComfyUI
    answers to /object_info.
    """
    nodes = {name: node for name, node in info.items() if name.startswith("ArtMancer_")}
    categories = {part for node in nodes.values() for part in node["category"].split("/")[1:]}
    return {
        "main": {"nodeCategories": {part: part for part in sorted(categories)}},
        "nodeDefs": {name: _node(node) for name, node in nodes.items()},
    }


def _node(node: dict[str, Any]) -> dict[str, Any]:
    inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
    outputs = zip(node["output_name"], node["output_tooltips"], strict=True)
    return {
        "display_name": node["display_name"],
        "description": node["description"],
        "inputs": {
            name: _said(name, options.get("tooltip")) for name, (_, options) in inputs.items()
        },
        "outputs": {str(slot): _said(*output) for slot, output in enumerate(outputs)},
    }


def _said(name: str, tooltip: str | None) -> dict[str, str]:
    if not tooltip:
        return {"name": name}
    # Frontends of before June 2026 take what stands in braces for a placeholder,
    # and fail where it is none.
    return {"name": name, "tooltip": tooltip.replace("{", "").replace("}", "")}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        comfyui = ComfyUI(Path(folder))
        try:
            comfyui.wait()
            made = texts(comfyui.get("/object_info"))
        finally:
            comfyui.stop()
    for name, content in made.items():
        path = ROOT / "locales" / "en" / f"{name}.json"
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
