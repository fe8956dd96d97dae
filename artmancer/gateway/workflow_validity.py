"""Checks whether a ComfyUI can run a graph, so that a broken one is not listed as served."""

import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from .reviewed_nodes import DATA_TYPES
from .runner import NodeInput, NodeType
from .workflows import ENDPOINT_INPUTS, link_source

_UNFOLDING_TYPES = ("COMFY_AUTOGROW_V3", "COMFY_DYNAMICCOMBO_V3")
"""Types of inputs that a graph sets by several names, such as "values.a"."""

_PLAIN_TYPES = DATA_TYPES | {"STRING"}
"""Types that never match another. Nodes of other packs may accept more than they say for theirs."""

_NUMBERS: Mapping[str, Callable[[Any], object]] = {"INT": int, "FLOAT": float}
"""Functions that convert to the types of numbers."""


def invalid_reason(graph: Mapping[str, Any], nodes: Mapping[str, NodeType]) -> str | None:
    """Return why a ComfyUI with these node classes refuses a graph; None: it does not.

    A node that no output node needs may lack an input: ComfyUI does not look at it.

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
    for key in _needed_nodes(graph, nodes):
        node = graph[key]
        node_type = nodes[node["class_type"]]
        for name, node_input in node_type.inputs.items():
            # The gateway sets inputs of endpoint nodes itself.
            is_set = name in node["inputs"] or node["class_type"] in ENDPOINT_INPUTS
            if node_input.required and not is_set and node_input.type not in _UNFOLDING_TYPES:
                return (
                    f"'{name}' of node {key}, {node['class_type']}, is missing. Connect it, or "
                    "export the graph again."
                )
        for name, value in node["inputs"].items():
            known = node_type.inputs.get(name)
            problem = _link_problem(value, known, graph, nodes)
            if problem is None and known and node["class_type"] not in ENDPOINT_INPUTS:
                problem = _number_problem(value, known)
            if problem:
                return f"'{name}' of node {key}, {node['class_type']}, {problem}"
    return None


def _needed_nodes(graph: Mapping[str, Any], nodes: Mapping[str, NodeType]) -> list[str]:
    """Return the ids of the output nodes and of all nodes that they depend on, in the graph's
    order.
    """
    needed: set[str] = set()
    waiting = [key for key, node in graph.items() if nodes[node["class_type"]].is_output]
    while waiting:
        key = waiting.pop()
        if key not in needed:
            needed.add(key)
            sources = (link_source(value) for value in graph[key]["inputs"].values())
            waiting += [source for source in sources if source is not None]
    return [key for key in graph if key in needed]


def _link_problem(
    value: Any,
    node_input: NodeInput | None,
    graph: Mapping[str, Any],
    nodes: Mapping[str, NodeType],
) -> str | None:
    """Return what is wrong with a link, as the end of a sentence; None: nothing, or no link."""
    source = link_source(value)
    if source is None:
        return None
    source_class = graph[source]["class_type"]
    outputs = nodes[source_class].outputs
    if value[1] not in range(len(outputs)):
        return (
            f"is connected to output {value[1]} of node {source}, {source_class}, which has "
            f"{len(outputs)}. Connect it again."
        )
    if node_input is None:
        return None
    types, expected = _types(outputs[int(value[1])]), _types(node_input.type)
    if types | expected <= _PLAIN_TYPES and not types & expected:
        return (
            f"expects {node_input.type}, and output {value[1]} of node {source}, {source_class}, "
            f"is {outputs[int(value[1])]}. Connect another output."
        )
    return None


def _number_problem(value: Any, node_input: NodeInput) -> str | None:
    """Return what is wrong with a value that is no link, as the end of a sentence; None: nothing,
    or no number is expected. ComfyUI converts the value in the same way.
    """
    convert = _NUMBERS.get(node_input.type)
    if convert is None or link_source(value) is not None:
        return None
    try:
        convert(value)
    except (TypeError, ValueError):
        return f"expects {node_input.type}, and is {reprlib.repr(value)}. Type a number."
    return None


def _types(text: str) -> set[str]:
    """Split what ComfyUI writes for an input of several types."""
    return {kind.strip() for kind in text.split(",")}
