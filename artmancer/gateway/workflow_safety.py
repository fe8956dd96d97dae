"""Security: checks whether a graph may be served to the public.

The operator of the gateway chooses the graphs. A caller only sends values for their endpoint nodes.
A graph is refused if one of its nodes reads a file of the host, if it contains a path on the host,
or if a caller's text could become the name of a file.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .runner import NodeType
from .workflows import ENDPOINT_INPUTS, ENDPOINT_RESULT, Workflow, link_source

_FILE_INPUT = re.compile(r"path|file|folder|dir|url", re.I)
"""Names of node inputs whose value may be a file name."""

_TEXT_TYPES = ("STRING", "*")
"""Types of node outputs that may be text."""

_KINDS = r"(?:Image|Mask|Latent|Video|Audio|Text|3D|Dataset)"
"""Words for the contents of a file, in names of node classes."""

_FILE_READER = re.compile(
    rf"Load[\w\s]*{_KINDS}|{_KINDS}s?[\s_]*Load|{_KINDS}[\w\s]*From[\w\s]*(?:Path|Url|Dir|Folder)",
    re.I,
)
"""Names of node classes that read a file which their user chooses."""


def reads_files(node_class: str, info: Mapping[str, Any]) -> bool:
    """Tell whether a node reads a file that its user chooses, other than a model.

    Parameters
    ----------
    node_class : name of the node's class
    info : the class's entry in ComfyUI's /object_info
    """
    if _FILE_READER.search(node_class):
        return True
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    for spec in inputs.values():
        options = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
        if any(name.endswith("_upload") or name == "image_folder" for name in options):
            return True
    return False


def unsafe_reason(workflow: Workflow, nodes: Mapping[str, NodeType]) -> str | None:
    """Return why a ComfyUI with these nodes cannot or must not run a workflow; None: it may.

    Parameters
    ----------
    nodes : node classes by name; empty: not known yet
    """
    text_nodes = {
        endpoint_input.node
        for endpoint_input in workflow.inputs.values()
        if endpoint_input.kind == "text"
    }
    for key, node in workflow.graph.items():
        node_class = node["class_type"]
        if nodes and node_class not in nodes:
            return (
                f"node {key} is a {node_class}, which ComfyUI does not have. "
                "Install the pack that it comes from."
            )
        if node_class in ENDPOINT_INPUTS or node_class == ENDPOINT_RESULT:
            continue
        if node_class in nodes and nodes[node_class].reads_files:
            return (
                f"node {key}, {node_class}, reads a file of the host. Replace it with Endpoint "
                "Image or Endpoint Mask."
            )
        for name, value in node["inputs"].items():
            if any(_is_path(text) for text in _literal_texts(value)):
                return (
                    f"'{name}' of node {key}, {node_class}, is a path on the host. Use the name of "
                    "a file in one of ComfyUI's folders."
                )
            if _FILE_INPUT.search(name):
                sources = _text_sources(value, workflow.graph, nodes)
                if sources & text_nodes:
                    return (
                        f"a caller would choose '{name}' of node {key}, {node_class}. Disconnect "
                        "this input, and type a value."
                    )
    return None


def _text_sources(value: Any, graph: Mapping[str, Any], nodes: Mapping[str, NodeType]) -> set[str]:
    """Return the ids of all nodes whose text can reach an input, also through other nodes."""
    sources: set[str] = set()
    links = [value]
    while links:
        link = links.pop()
        source = link_source(link)
        if source is None or source in sources:
            continue
        node = nodes.get(graph[source]["class_type"])
        output = link[1]
        if node and output < len(node.outputs) and node.outputs[output] not in _TEXT_TYPES:
            continue
        sources.add(source)
        links += graph[source]["inputs"].values()
    return sources


def _literal_texts(value: Any) -> Iterator[str]:
    """Yield all texts in a value from a JSON file, also those in nested lists and objects."""
    parts = [value]
    while parts:
        part = parts.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, list):
            parts += part
        elif isinstance(part, dict):
            parts += part.values()


def _is_path(text: str) -> bool:
    """Tell whether a text is an absolute path, a URL, or leads out of its folder."""
    return bool(
        re.match(r"\s*([/\\~]|[A-Za-z]:[\\/]|\w+://)", text)
        or re.search(r"(^|[\\/])\.\.([\\/]|$)|\0", text)
    )
