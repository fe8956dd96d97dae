"""Security: which graphs may be served to the public.

A graph comes from the operator; what its caller sends ends in its endpoint nodes. A graph is not
served where it reads a file of the host, names a path of the host, or lets a caller's text become
the name of a file.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .runner import NodeType
from .workflows import ENDPOINT_INPUTS, ENDPOINT_RESULT, Workflow, link_source

_FILE_INPUT = re.compile(r"path|file|folder|dir|url", re.I)
"""Names of node inputs that are taken for a file's name."""

_TEXT_TYPES = ("STRING", "*")
"""Types of node outputs that may be a text."""

_KINDS = r"(?:Image|Mask|Latent|Video|Audio|Text|3D|Dataset)"
_FILE_READER = re.compile(
    rf"Load[\w\s]*{_KINDS}|{_KINDS}s?[\s_]*Load|{_KINDS}[\w\s]*From[\w\s]*(?:Path|Url|Dir|Folder)",
    re.I,
)
"""Names of node classes that read a file which their user names."""


def reads_files(node_class: str, info: Mapping[str, Any]) -> bool:
    """Tell whether a node reads a file that its user names, other than a model.

    Parameters
    ----------
    info : its entry in /object_info
    """
    if _FILE_READER.search(node_class):
        return True
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    options = [spec[1] for spec in inputs.values() if len(spec) > 1 and isinstance(spec[1], dict)]
    return any(
        name.endswith("_upload") or name == "image_folder" for option in options for name in option
    )


def unsafe_reason(workflow: Workflow, nodes: Mapping[str, NodeType]) -> str | None:
    """Return why a ComfyUI with these nodes cannot or must not run a workflow; None: it may.

    Parameters
    ----------
    nodes : node classes by name; empty: not known yet
    """
    texts = {taken.node for taken in workflow.inputs.values() if taken.kind == "text"}
    for key, node in workflow.graph.items():
        node_class = node["class_type"]
        if nodes and node_class not in nodes:
            return (
                f"node {key} is a {node_class}, which ComfyUI does not have. "
                "Install the pack it comes from."
            )
        if node_class in ENDPOINT_INPUTS or node_class == ENDPOINT_RESULT:
            continue
        if node_class in nodes and nodes[node_class].reads_files:
            return (
                f"node {key}, {node_class}, reads a file of the host. Use Endpoint Image or "
                "Endpoint Mask in its place."
            )
        for name, value in node["inputs"].items():
            if any(_is_path(text) for text in _literal_texts(value)):
                return (
                    f"'{name}' of node {key}, {node_class}, is a path on the host. Choose a file "
                    "of ComfyUI's by its name."
                )
            if _FILE_INPUT.search(name) and _text_sources(value, workflow.graph, nodes) & texts:
                return (
                    f"a caller would choose the '{name}' of node {key}, {node_class}. Type it in."
                )
    return None


def _text_sources(value: Any, graph: Mapping[str, Any], nodes: Mapping[str, NodeType]) -> set[str]:
    """Return the nodes whose text reaches an input, through however many nodes."""
    sources: set[str] = set()
    links = [value]
    while links:
        link = links.pop()
        source = link_source(link)
        if source is None or source in sources:
            continue
        node = nodes.get(graph[source]["class_type"])
        if node and link[1] < len(node.outputs) and node.outputs[link[1]] not in _TEXT_TYPES:
            continue
        sources.add(source)
        links += graph[source]["inputs"].values()
    return sources


def _literal_texts(value: Any) -> Iterator[str]:
    """Yield the texts in a literal value, however deep they are nested."""
    parts = [value]
    while parts:
        part = parts.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, list | dict):
            parts += part.values() if isinstance(part, dict) else part


def _is_path(text: str) -> bool:
    """Tell whether a text is an absolute path, a URL, or leads out of its folder."""
    return bool(
        re.match(r"\s*([/\\~]|[A-Za-z]:[\\/]|\w+://)", text)
        or re.search(r"(^|[\\/])\.\.([\\/]|$)|\0", text)
    )
