"""Translate ComfyUI's refusals and failures into ArtMancerErrors, without paths of the host."""

import logging
import re
from collections.abc import Mapping
from typing import Any

from ..errors import CODES, ArtMancerError
from .runner import Run
from .workflows import ENDPOINT_INPUTS

logger = logging.getLogger(__name__)

_QUOTED_PATH = re.compile(
    r"""(?<=['"])(?:file:/*)?(?:[A-Za-z]:)?[/\\][^'"]*[/\\](?=[^'"/\\]*['"])"""
)
"""The folder of a path in quotes, which may hold spaces."""

_PATH = re.compile(
    r"(?<![\w./\\])(?<!\w:)(?:file:/*)?(?:[A-Za-z]:[/\\]|\\\\|/)"
    r"(?:[^\s'\":;,()/\\]+[/\\])*(?=[^\s'\":;,()/\\])"
    r"|(?<=\w:)/(?!/)(?:[^\s'\":;,()/\\]+/)*(?=[^\s'\":;,()/\\])"
)
"""The folder of a path without quotes."""


def unavailable(reason: str) -> ArtMancerError:
    """Make the error for a ComfyUI that does not answer."""
    return ArtMancerError("comfyui_unavailable", f"{reason} Start ComfyUI, or check COMFYUI_URL.")


def refusal(status: int, answer: Any, run: Run) -> ArtMancerError | None:
    """Return the error for ComfyUI's answer to POST /prompt; None: it accepted the whole graph.

    ComfyUI accepts a graph, and runs a part of it, where only another part has errors; that is a
    refusal too.
    """
    for node, errors in (answer.get("node_errors") or {}).items():
        first = errors["errors"][0]
        sentence = first["details"].partition(" - ")[2] or f"{first['message']}: {first['details']}"
        expected = without_paths(sentence)
        node_class = errors["class_type"]
        if node_class not in ENDPOINT_INPUTS:
            return ArtMancerError(
                "generation_failed",
                f"ComfyUI refuses node {node}, {node_class}, of the graph: {expected.rstrip('.')}. "
                "Correct it there.",
            )
        name = run.graph[node]["inputs"]["name"]
        details = {"field": name, "expected": expected, "got": "another value"}
        return ArtMancerError("invalid_request", f"{name}: {expected}", details)
    if status == 400:
        error = answer.get("error")
        message = str(error.get("message") if isinstance(error, dict) else error)
        return ArtMancerError(
            "generation_failed", f"ComfyUI refuses the graph: {without_paths(message)}"
        )
    return None


def failure(event: str, data: Mapping[str, Any]) -> ArtMancerError:
    """Return the error for a run that failed.

    Parameters
    ----------
    event : "execution_error" or "execution_interrupted"
    data : the event's data; the class name of an error of the pack is its code
    """
    if event == "execution_interrupted":
        return ArtMancerError(
            "generation_failed", "The job was interrupted in ComfyUI. Send it again."
        )
    lines = str(data.get("exception_message", "")).strip().splitlines()
    sentence = without_paths(lines[0]) if lines else "It did not say why."
    module, _, name = str(data.get("exception_type", "")).rpartition(".")
    if name in CODES and module.endswith("artmancer.errors"):
        return ArtMancerError(name, sentence)
    if "OutOfMemory" in name:
        return ArtMancerError(
            "out_of_memory", f"The device's memory is too small. {CODES['out_of_memory'].hint}"
        )
    logger.error("%s failed: %s: %s", data.get("node_type"), data.get("exception_type"), lines[:1])
    return ArtMancerError("generation_failed", f"{data.get('node_type')} failed: {sentence}")


def without_paths(text: str) -> str:
    """Remove the host's folders from a sentence; file names stay."""
    return _PATH.sub("", _QUOTED_PATH.sub("", text))
