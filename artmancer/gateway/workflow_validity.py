"""Checks whether a ComfyUI can run a graph, so that a broken one is not listed as served."""

from collections.abc import Mapping
from typing import Any

from .reviewed_nodes import DATA_TYPES
from .runner import NodeInput, NodeType
from .workflows import ENDPOINT_INPUTS, ENDPOINT_RESULT, link_source

_PLAIN_TYPES = DATA_TYPES | {"STRING"}
"""Types that never match another. Nodes of other packs may accept more than they say for theirs."""


def invalid_reason(graph: Mapping[str, Any], nodes: Mapping[str, NodeType]) -> str | None:
    """Return why a ComfyUI with these node classes refuses a graph; None: it does not.

    Nodes that no endpoint result needs may lack an input: ComfyUI does not run them.

    Parameters
    ----------
    graph : nodes by id, in API format; its links lead to nodes that it has
    nodes : all node classes of the ComfyUI, by name
    """
    for key, node in graph.items():
        if node["class_type"] not in nodes:
            return (
                f"node {key} is a {node['class_type']}, which ComfyUI does not have. "
                "Install the pack that it comes from."
            )
    for key in _needed_nodes(graph):
        node = graph[key]
        node_type = nodes[node["class_type"]]
        for name, given in node_type.inputs.items():
            # The gateway sets inputs of endpoint nodes itself.
            is_set = name in node["inputs"] or node["class_type"] in ENDPOINT_INPUTS
            # One that grows or unfolds is set by names such as "values.a".
            if given.required and not is_set and not given.type.startswith("COMFY_"):
                return (
                    f"'{name}' of node {key}, {node['class_type']}, is missing. Connect it, or "
                    "export the graph again."
                )
        for name, value in node["inputs"].items():
            if problem := _link_problem(value, node_type.inputs.get(name), graph, nodes):
                return f"'{name}' of node {key}, {node['class_type']}, {problem}"
    return None


def _needed_nodes(graph: Mapping[str, Any]) -> list[str]:
    """Return the ids of the endpoint results and of all nodes that they depend on, in the graph's
    order.
    """
    needed: set[str] = set()
    waiting = [key for key, node in graph.items() if node["class_type"] == ENDPOINT_RESULT]
    while waiting:
        key = waiting.pop()
        if key not in needed:
            needed.add(key)
            sources = (link_source(value) for value in graph[key]["inputs"].values())
            waiting += [source for source in sources if source is not None]
    return [key for key in graph if key in needed]


def _link_problem(
    value: Any, given: NodeInput | None, graph: Mapping[str, Any], nodes: Mapping[str, NodeType]
) -> str | None:
    """Return what is wrong with a link, as the end of a sentence; None: nothing, or no link."""
    source = link_source(value)
    if source is None:
        return None
    source_class = graph[source]["class_type"]
    outputs = nodes[source_class].outputs
    if not 0 <= value[1] < len(outputs):
        return (
            f"is connected to output {value[1]} of node {source}, {source_class}, which has "
            f"{len(outputs)}. Connect it again."
        )
    if given is None:
        return None
    types, expected = _types(outputs[value[1]]), _types(given.type)
    if types | expected <= _PLAIN_TYPES and not types & expected:
        return (
            f"expects {given.type}, and output {value[1]} of node {source}, {source_class}, is "
            f"{outputs[value[1]]}. Connect another output."
        )
    return None


def _types(text: str) -> set[str]:
    """Split what ComfyUI writes for an input of several types."""
    return {kind.strip() for kind in text.split(",")}
