"""Security: checks whether a graph may be served to the public.

The operator of the gateway chooses the graphs. A caller only sends values for their endpoint nodes.
Only node classes that are listed in reviewed_nodes are accepted, and a caller's value may end only
where it cannot name a file or become a program. Everything else is refused, as is a path on the
host. The operator can exempt a graph: ARTMANCER_TRUSTED_WORKFLOWS.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .reviewed_nodes import DATA_TYPES, FREE_NODES, RESTRICTED_NODES
from .runner import NodeType
from .workflows import ENDPOINT_INPUTS, Workflow, link_source


def unsafe_reason(workflow: Workflow, nodes: Mapping[str, NodeType]) -> str | None:
    """Return why a workflow must not be served; None: it may.

    Parameters
    ----------
    nodes : all node classes of the ComfyUI that runs it, by name, among them the workflow's; empty:
        not known yet, and the types of inputs are trusted to nobody
    """
    reached = _reached_nodes(workflow)
    for key, node in workflow.graph.items():
        node_class = node["class_type"]
        if node_class in ENDPOINT_INPUTS:
            if any(_is_path(choice) for choice in _choices(node)):
                return _sentence(
                    workflow,
                    f"a choice of node {key}, {node_class}, is a path on the host",
                    "Use the name of a file in one of ComfyUI's folders",
                )
            continue
        if node_class not in FREE_NODES and node_class not in RESTRICTED_NODES:
            return _sentence(
                workflow,
                f"node {key}, {node_class}, is not known to leave files and the network of the "
                "host alone",
                "Replace it (an image: with Endpoint Image or Endpoint Mask)",
            )
        for name, value in node["inputs"].items():
            if any(_is_path(text) for text in _literal_texts(value)):
                return _sentence(
                    workflow,
                    f"'{name}' of node {key}, {node_class}, is a path on the host",
                    "Use the name of a file in one of ComfyUI's folders",
                )
            if link_source(value) in reached and not accepts_callers_value(
                node_class, name, nodes.get(node_class)
            ):
                return _sentence(
                    workflow,
                    f"a caller's value would reach '{name}' of node {key}, {node_class}, which "
                    "may be the name of a file, or a program",
                    "Disconnect this input, and type a value",
                )
    return None


def accepts_callers_value(node_class: str, name: str, node: NodeType | None) -> bool:
    """Tell whether a caller's value may end in an input of a node class.

    Parameters
    ----------
    node_class : a class of reviewed_nodes
    name : name of the input; for one of a growing list, such as "values.a", the list's part counts
    node : the class as the ComfyUI has it; None: not known
    """
    name = name.partition(".")[0]
    node_input = node.inputs.get(name) if node else None
    if node_input and node_input.is_file:
        return False
    if node_class in FREE_NODES:
        return True
    return name in RESTRICTED_NODES[node_class] or (
        node_input is not None and set(node_input.type.split(",")) <= DATA_TYPES
    )


def _reached_nodes(workflow: Workflow) -> set[str]:
    """Return the ids of all nodes that a caller's value reaches, directly or through others. A
    choice is not a caller's value, since the operator listed what it can be, unless it can be the
    name of a model set: then only Load Editor's `editor` accepts it, which knows the sets.
    """
    consumers: dict[str, list[str]] = {}
    for key, node in workflow.graph.items():
        for value in node["inputs"].values():
            if source := link_source(value):
                consumers.setdefault(source, []).append(key)
    reached: set[str] = set()
    waiting = [
        endpoint.node
        for endpoint in workflow.inputs.values()
        if endpoint.kind != "choice" or endpoint.takes_model_sets
    ]
    while waiting:
        key = waiting.pop()
        if key not in reached:
            reached.add(key)
            waiting += consumers.get(key, ())
    return reached


def _choices(node: Mapping[str, Any]) -> list[str]:
    """Return the texts that the choices of an endpoint node can be."""
    choices = node["inputs"].get("choices")
    return choices.splitlines() if isinstance(choices, str) else []


def _sentence(workflow: Workflow, problem: str, advice: str) -> str:
    return (
        f"{problem}. {advice}, or, where you trust it with every caller's values, add "
        f"{workflow.name} to ARTMANCER_TRUSTED_WORKFLOWS."
    )


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
