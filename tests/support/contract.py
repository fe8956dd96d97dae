"""Names, types and defaults that HTTP clients and saved workflows rely on, without texts.

`make contract` records them after an intended change:

    PYTHONPATH=tests python -m support.contract
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from .comfyui import ComfyUI
from .paths import NODES, ROOT

ASSETS = ROOT / "tests" / "assets"

_TEXTS = {"title", "description", "summary", "tooltip"}
"""Keys of texts for people, in an OpenAPI document and in a node's inputs."""

_NODE_KEYS = (
    "input",
    "input_order",
    "output",
    "output_is_list",
    "output_name",
    "name",
    "category",
    "output_node",
)
"""Keys of a node in /object_info that saved workflows rely on."""

_FILE_LISTS = {
    "ArtMancer_EditorFromModel": {"sampler", "scheduler"},
    "ArtMancer_EndpointImage": {"image"},
    "ArtMancer_EndpointMask": {"image"},
    "ArtMancer_LoadEditor": {"editor", "checkpoint", "acceleration"},
    "ArtMancer_SmartMask": {"model"},
    "ArtMancer_RemoveBackground": {"model"},
}
"""Inputs whose options are files on this machine or ComfyUI's own samplers, by node id."""

_FILE_DEFAULTS = {"ArtMancer_RemoveBackground": {"model"}}
"""Inputs whose default is the best of these files."""


def openapi(document: dict[str, Any]) -> Any:
    """Return an OpenAPI document without texts, with lists whose order means nothing sorted."""
    return _without_texts(document)


def object_info(info: dict[str, Any]) -> dict[str, Any]:
    """Return the pack's nodes in /object_info without texts and without lists of files."""
    nodes = {}
    for name in sorted(NODES):
        node = {key: info[name][key] for key in _NODE_KEYS}
        for inputs in node["input"].values():
            for field, spec in inputs.items():
                if field in _FILE_LISTS.get(name, ()):
                    spec[0] = "COMBO"
                    spec[1].pop("options", None)
                if field in _FILE_DEFAULTS.get(name, ()):
                    spec[1].pop("default", None)
        nodes[name] = _without_texts(node)
    return nodes


def _without_texts(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_texts(item) for item in value]
    if not isinstance(value, dict):
        return value
    result = {}
    for key, item in value.items():
        if key in _TEXTS and isinstance(item, str):
            continue
        is_set = key in ("enum", "required") and isinstance(item, list)
        if is_set and all(isinstance(entry, str) for entry in item):
            result[key] = sorted(item)
        else:
            result[key] = _without_texts(item)
    return result


def served_document(folder: Path) -> dict[str, Any]:
    """Return the OpenAPI document of a gateway with all routes."""
    from .gateway import FakeHost, Served, settings

    host = FakeHost()
    with Served(settings(folder, comfyui_url=host.url, debug=True)) as served:
        document: dict[str, Any] = served.connected().http.get("/openapi.json").json()
    host.die()
    return document


def write(name: str, value: Any) -> None:
    """Write a file of the recorded contract."""
    (ASSETS / f"{name}.json").write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def read(name: str) -> Any:
    """Return the content of a file of the recorded contract."""
    return json.loads((ASSETS / f"{name}.json").read_text())


def main() -> None:
    """Record the OpenAPI document and the nodes."""
    with tempfile.TemporaryDirectory() as folder:
        write("openapi", openapi(served_document(Path(folder) / "data")))
        comfyui = ComfyUI(Path(folder) / "comfyui")
        try:
            comfyui.wait()
            write("object_info", object_info(comfyui.get("/object_info")))
        finally:
            comfyui.stop()


if __name__ == "__main__":
    main()
