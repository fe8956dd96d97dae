"""Workflows: graphs in API format that are served as endpoints.

A graph's endpoint nodes say what its caller sends and gets: they become the schema of its request.
"""

import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from ..endpoint_protocol import NO_IMAGE, TEMP
from ..errors import ArtMancerError

logger = logging.getLogger(__name__)

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""Names of workflows, which are the names of their files without the suffix."""

MAX_BYTES = 2**21
"""Largest file of a graph, in bytes."""

_PREFIX = "ArtMancer_"
ENDPOINT_INPUTS = {
    f"{_PREFIX}Endpoint{kind}": kind.lower()
    for kind in ("Image", "Mask", "Text", "Integer", "Float", "Choice", "Switch")
}
"""Kinds of endpoint inputs by their node class."""

ENDPOINT_RESULT = f"{_PREFIX}EndpointResult"

_EDITORS = {f"{_PREFIX}LoadEditor", f"{_PREFIX}EditSampler"}

_FIELD_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")

_VALUE_TYPES = {"text": str, "integer": int, "float": int | float, "choice": str, "switch": bool}
"""Type of an endpoint input's `value`, by kind."""

_LIMITS = {
    "integer": ("minimum", "maximum"),
    "float": ("minimum", "maximum"),
    "choice": ("choices",),
}
"""Settings of an endpoint input beside `value`, by kind."""


@dataclass(frozen=True)
class Input:
    """An endpoint input node: what a caller sends under `name`.

    Attributes
    ----------
    node : its node id
    kind : a value of ENDPOINT_INPUTS
    settings : the node's inputs
    """

    node: str
    name: str
    kind: str
    help: str
    required: bool
    settings: Mapping[str, Any]

    @property
    def is_image(self) -> bool:
        """True where the caller sends an image or a mask."""
        return self.kind in ("image", "mask")

    def field(self) -> tuple[Any, Any]:
        """Return its type and default for pydantic."""
        settings = self.settings
        if self.is_image:
            spec = Field(description=self.help, json_schema_extra={"contentEncoding": "base64"})
            return (
                (Annotated[str, spec], ...)
                if self.required
                else (Annotated[str | None, spec], None)
            )
        default = ... if self.required else settings["value"]
        if self.kind == "text":
            spec = Field(
                description=self.help,
                min_length=1 if self.required else 0,
                max_length=settings.get("max_length", 4000),
            )
            return Annotated[str, spec], default
        if self.kind in ("integer", "float"):
            spec = Field(ge=settings["minimum"], le=settings["maximum"], description=self.help)
            if self.kind == "integer":
                return Annotated[int, spec], default
            return Annotated[float, spec, Field(allow_inf_nan=False)], default
        if self.kind == "choice":
            choices = Literal[tuple(settings["choices"].splitlines())]  # type: ignore[valid-type]
            return Annotated[choices, Field(description=self.help)], default
        return Annotated[bool, Field(description=self.help)], default


@dataclass(frozen=True)
class Result:
    """An endpoint result node: what a caller gets under `name`.

    Attributes
    ----------
    node : its node id
    on_request : it is answered only where the request includes it
    """

    node: str
    name: str
    help: str
    on_request: bool


@dataclass(frozen=True)
class Workflow:
    """A graph that can be served.

    Attributes
    ----------
    graph : in API format
    model : validates a request: a field for each input, and `include`, the optional results to
        answer
    heavy : it edits, or holds nodes that are not the pack's, and so may need a GPU
    """

    name: str
    graph: Mapping[str, Any]
    inputs: Mapping[str, Input]
    results: tuple[Result, ...]
    model: type[BaseModel] = field(repr=False)
    heavy: bool

    @property
    def title(self) -> str:
        return self.name.replace("-", " ").replace("_", " ")

    def wanted_results(self, include: Collection[str]) -> dict[str, str]:
        """Return the names of the results to answer, by node id.

        Parameters
        ----------
        include : names of results on request to answer too
        """
        return {
            result.node: result.name
            for result in self.results
            if not result.on_request or result.name in include
        }

    def with_inputs(self, values: Mapping[str, Any], results: Mapping[str, str]) -> dict[str, Any]:
        """Return the graph with a caller's values in its endpoint nodes, and without the results
        that are not answered.

        Parameters
        ----------
        values : by input name; an image by its name; missing inputs keep their defaults
        results : from `wanted_results`
        """
        graph: dict[str, Any] = {
            key: {**node, "inputs": dict(node["inputs"])} for key, node in self.graph.items()
        }
        for result in self.results:
            if result.node in results:
                graph[result.node]["inputs"]["folder"] = TEMP
            else:
                del graph[result.node]
        for name, taken in self.inputs.items():
            node_inputs = graph[taken.node]["inputs"]
            if taken.is_image:  # never the image that was in the graph when it was saved
                node_inputs["image"] = values.get(name) or NO_IMAGE
            elif name in values:
                node_inputs["value"] = values[name]
        return graph


class WorkflowFolder:
    """The folder of served graphs. A file that is added, changed or removed counts from the next
    request on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cache: dict[str, tuple[tuple[int, int], Workflow | ArtMancerError]] = {}

    def __iter__(self) -> Iterator[tuple[str, Workflow | ArtMancerError]]:
        """Yield each file's name and its workflow, or the error why it cannot be served."""
        for path in sorted(self.path.glob("*.json")):
            with suppress(FileNotFoundError):  # removed meanwhile
                if not path.is_symlink() and path.is_file():
                    yield path.stem, self._read(path)

    def get(self, name: str) -> Workflow:
        """Return the workflow with this name.

        Raises
        ------
        ArtMancerError : not_found; generation_failed where it is there and cannot be served
        """
        path = self.path / f"{name}.json"
        if not NAME.fullmatch(name) or path.is_symlink() or not path.is_file():
            raise ArtMancerError(
                "not_found", f"There is no workflow '{name[:80]}'. GET /api/workflows lists them."
            )
        try:
            workflow = self._read(path)
        except FileNotFoundError:
            raise ArtMancerError(
                "not_found", f"The workflow '{name}' is gone. Put its file back."
            ) from None
        if isinstance(workflow, ArtMancerError):
            raise ArtMancerError(
                "generation_failed", f"The workflow '{name}' is not served: {workflow}"
            )
        return workflow

    def _read(self, path: Path) -> Workflow | ArtMancerError:
        status = path.stat()
        stamp = (status.st_mtime_ns, status.st_size)
        cached = self._cache.get(path.stem)
        if cached is None or cached[0] != stamp:
            workflow: Workflow | ArtMancerError
            try:
                workflow = read_workflow(path)
            except ArtMancerError as error:
                logger.warning("%s is not served: %s", path.name, error)
                workflow = error
            cached = self._cache[path.stem] = (stamp, workflow)
        return cached[1]


def read_workflow(path: Path) -> Workflow:
    """Read a workflow from a graph in API format.

    Raises
    ------
    ArtMancerError : invalid_request: it is no graph, has no endpoint nodes, or has a cycle
    """
    if not NAME.fullmatch(path.stem):
        raise _invalid("its name has other letters than a-z, 0-9, - and _", "Rename the file")
    graph = _parse(path)
    _check_links(graph)
    inputs = [
        _input(key, node) for key, node in graph.items() if node["class_type"] in ENDPOINT_INPUTS
    ]
    results = tuple(
        _result(key, node["inputs"])
        for key, node in graph.items()
        if node["class_type"] == ENDPOINT_RESULT
    )
    if not results:
        raise _invalid("it has no Endpoint Result", "Add one for each result")
    _check_names([taken.name for taken in inputs])
    _check_names([result.name for result in results])
    return Workflow(
        path.stem,
        graph,
        {taken.name: taken for taken in inputs},
        results,
        _request_model(path.stem, inputs, results),
        heavy=any(
            node["class_type"] in _EDITORS or not node["class_type"].startswith(_PREFIX)
            for node in graph.values()
        ),
    )


def link_source(value: Any) -> str | None:
    """Return the node id that an input is linked to; None: it is no link."""
    is_link = (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
    )
    return str(value[0]) if is_link else None


def _parse(path: Path) -> dict[str, Any]:
    """Read a file's JSON and check that it is a graph."""
    if path.stat().st_size > MAX_BYTES:
        raise _invalid(f"it is over {MAX_BYTES // 2**20} MB", "Save the graph alone, in API format")
    try:
        graph = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
        json.dumps(graph, ensure_ascii=False).encode()  # a lone surrogate cannot be answered
    except PermissionError:
        raise _invalid("it cannot be read", "Change the file's permissions") from None
    except (ValueError, RecursionError) as error:
        raise _invalid(f"it is not JSON ({error})", "Export it again in API format") from None
    if (
        not isinstance(graph, dict)
        or not graph
        or not all(_is_node(node) for node in graph.values())
    ):
        raise _invalid("it is not a graph in API format", "Export it with Workflow > Export (API)")
    return graph


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _is_node(node: Any) -> bool:
    return (
        isinstance(node, dict)
        and isinstance(node.get("class_type"), str)
        and isinstance(node.get("inputs"), dict)
    )


def _check_names(names: list[str]) -> None:
    """Refuse names that cannot be fields of a request or an answer, or are not unique."""
    for name in names:
        if not _FIELD_NAME.fullmatch(name) or name == "include" or hasattr(BaseModel, name):
            raise _invalid(
                f"'{name[:80]}' cannot be a field's name",
                "Use letters, digits and _, a letter first",
            )
        if names.count(name) > 1:
            raise _invalid(
                f"two of its endpoint nodes are called '{name}'", "Give each its own name"
            )


def _check_links(graph: Mapping[str, Any]) -> None:
    """Refuse links to nodes that are not there, and cycles."""
    sources = {key: _sources(node) for key, node in graph.items()}
    for key, linked in sources.items():
        if missing := linked - graph.keys():
            raise _invalid(
                f"node {key} is linked to node {min(missing)}, which is not there",
                "Export it again",
            )
    while ready := [key for key, linked in sources.items() if not linked & sources.keys()]:
        for key in ready:
            del sources[key]
    if sources:
        raise _invalid(
            f"its nodes {', '.join(sorted(sources))} form a cycle", "Cut one of the links"
        )


def _sources(node: Mapping[str, Any]) -> set[str]:
    links = (link_source(value) for value in node["inputs"].values())
    return {source for source in links if source is not None}


def _result(key: str, settings: Mapping[str, Any]) -> Result:
    return Result(
        key,
        str(settings.get("name")),
        str(settings.get("help", "")),
        settings.get("on_request") is True,
    )


def _input(key: str, node: Mapping[str, Any]) -> Input:
    settings, kind = node["inputs"], ENDPOINT_INPUTS[node["class_type"]]
    name = settings.get("name")
    if not isinstance(name, str):
        raise _invalid(f"the name of node {key} is connected", "Type it in")
    required = settings.get("required", kind in ("image", "mask")) is True
    taken = Input(key, name, kind, str(settings.get("help", "")), required, settings)
    if taken.is_image:
        return taken
    max_length = settings.get("max_length", 1)
    if kind == "text" and (not isinstance(max_length, int) or max_length < 1):
        raise _invalid(
            f"the max_length of '{name}' is {max_length!r:.80}", "Type it in, and export again"
        )
    for setting in ("value", *_LIMITS.get(kind, ())):
        if not isinstance(settings.get(setting), _VALUE_TYPES[kind]):
            raise _invalid(
                f"the {setting} of '{name}' is {settings.get(setting)!r:.80}",
                "Type it in, and export again",
            )
    if kind == "choice" and settings["value"] not in settings["choices"].splitlines():
        raise _invalid(f"the value of '{name}' is none of its choices", "Use one of them")
    return taken


def _request_model(name: str, inputs: list[Input], results: tuple[Result, ...]) -> type[BaseModel]:
    fields = {taken.name: taken.field() for taken in inputs}
    if optional := tuple(result.name for result in results if result.on_request):
        spec = Field(
            description="Results to answer besides those that always come.",
            max_length=len(optional),
        )
        names = Literal[optional]  # type: ignore[valid-type]
        fields["include"] = (Annotated[list[names], spec], [])
    model: type[BaseModel] = create_model(  # type: ignore[call-overload]
        "".join(part.capitalize() for part in re.split("[-_]", name)) + "Request",
        __config__=ConfigDict(extra="forbid"),
        **fields,
    )
    return model


def _invalid(problem: str, advice: str) -> ArtMancerError:
    return ArtMancerError("invalid_request", f"{problem}. {advice}.")
