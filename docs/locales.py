"""Write the English texts in locales/en from the nodes' schemas, as the source for translations.

ComfyUI shows the schemas' own English with or without these files.

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
    """Return the contents of a locale's files by file name, from ComfyUI's answer to
    /object_info.
    """
    nodes = {name: node for name, node in info.items() if name.startswith("ArtMancer_")}
    categories = {part for node in nodes.values() for part in node["category"].split("/")[1:]}
    return {
        "main": {"nodeCategories": {part: part for part in sorted(categories)}},
        "nodeDefs": {name: _node_texts(node) for name, node in nodes.items()},
    }


def _node_texts(node: dict[str, Any]) -> dict[str, Any]:
    inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
    outputs = zip(node["output_name"], node["output_tooltips"], strict=True)
    return {
        "display_name": node["display_name"],
        "description": node["description"],
        "inputs": {
            name: _socket_texts(name, options.get("tooltip"))
            for name, (_, options) in inputs.items()
        },
        "outputs": {
            str(slot): _socket_texts(name, tooltip) for slot, (name, tooltip) in enumerate(outputs)
        },
    }


def _socket_texts(name: str, tooltip: str | None) -> dict[str, str]:
    """Return the texts of an input or an output."""
    if not tooltip:
        return {"name": name}
    # Frontends before June 2026 read braces as placeholders, and fail if there is no value.
    return {"name": name, "tooltip": tooltip.replace("{", "").replace("}", "")}


def main() -> None:
    """Start a ComfyUI and write the files."""
    with tempfile.TemporaryDirectory() as folder:
        comfyui = ComfyUI(Path(folder))
        try:
            comfyui.wait()
            files = texts(comfyui.get("/object_info"))
        finally:
            comfyui.stop()
    for name, content in files.items():
        path = ROOT / "locales" / "en" / f"{name}.json"
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
