"""Workflows: graphs in API format that are served as endpoints.

The endpoint nodes of a graph define what its caller sends and gets. They become the schema of the
request.
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

from ..endpoint_protocol import MODEL_SETS, NO_IMAGE, TEMP
from ..errors import ArtMancerError
from .image_field import ImageField

logger = logging.getLogger(__name__)

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""Names of workflows: the names of their files without the suffix."""

MAX_BYTES = 2**21
"""Size of the largest workflow file, in bytes."""

_PREFIX = "ArtMancer_"
ENDPOINT_INPUTS = {
    f"{_PREFIX}Endpoint{kind}": kind.lower()
    for kind in ("Image", "Mask", "Text", "Integer", "Float", "Choice", "Switch")
}
"""Kinds of endpoint inputs by node class."""

ENDPOINT_RESULT = f"{_PREFIX}EndpointResult"
"""Node class of an endpoint result."""

_EDITORS = {f"{_PREFIX}LoadEditor", f"{_PREFIX}EditSampler"}
"""Node classes that edit: a workflow with one of them is heavy."""

_FIELD_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
"""Names that an endpoint input or result can have."""

_VALUE_TYPES = {"text": str, "integer": int, "float": int | float, "choice": str, "switch": bool}
"""Type of an endpoint input's `value` by kind."""

_LIMITS = {
    "integer": ("minimum", "maximum"),
    "float": ("minimum", "maximum"),
    "choice": ("choices",),
}
"""Settings of an endpoint input that have the type of its `value`, by kind."""


@dataclass(frozen=True)
class Input:
    """An endpoint input node: a field of the request.

    Attributes
    ----------
    node : node id
    name : name of the field
    kind : a value of ENDPOINT_INPUTS
    help : description of the field
    required : the caller must send it
    settings : inputs of the node
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

    @property
    def choices(self) -> list[str]:
        """The values of a choice, without model sets."""
        return [line for line in self.settings["choices"].splitlines() if line != MODEL_SETS]

    @property
    def takes_model_sets(self) -> bool:
        """True where a choice can also be the name of a model set."""
        return self.kind == "choice" and MODEL_SETS in self.settings["choices"].splitlines()

    def field(self) -> tuple[Any, Any]:
        """Return the field's type and default, as pydantic.create_model expects them."""
        settings = self.settings
        if self.is_image:
            spec = Field(description=self.help)
            if self.required:
                return Annotated[ImageField, spec], ...
            return Annotated[ImageField | None, spec], None
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
        if self.takes_model_sets:
            spec = Field(
                description=f"{self.help} One of {', '.join(self.choices)}, or the name of a "
                "model set.",
                max_length=64,
            )
            return Annotated[str, spec], default
        if self.kind == "choice":
            # mypy knows only literals that are written out, here and below.
            choices = Literal[tuple(self.choices)]  # type: ignore[valid-type]
            return Annotated[choices, Field(description=self.help)], default
        return Annotated[bool, Field(description=self.help)], default


@dataclass(frozen=True)
class Result:
    """An endpoint result node: a field of the answer.

    Attributes
    ----------
    node : node id
    name : name of the field
    help : description of the field
    on_request : it is answered only if the request includes its name
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
    name : name of its file without the suffix
    graph : nodes by id, in API format
    inputs : endpoint inputs by name
    results : endpoint results
    model : pydantic model of a request: a field for each input, and `include`, which lists results
        on request
    heavy : it edits or has nodes of other packs, so it may need a GPU
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
        include : names of the results on request that are wanted
        """
        return {
            result.node: result.name
            for result in self.results
            if not result.on_request or result.name in include
        }

    def with_inputs(
        self, values: Mapping[str, Any], results: Mapping[str, str], bits: int = 8
    ) -> dict[str, Any]:
        """Return the graph with a caller's values in its endpoint inputs, and with only the
        endpoint results that are answered.

        Parameters
        ----------
        values : by input name; for an image, its name in UploadStore; an input without a value
            keeps its default
        results : from `wanted_results`
        bits : of a channel of the results that are images
        """
        graph: dict[str, Any] = {
            key: {**node, "inputs": dict(node["inputs"])} for key, node in self.graph.items()
        }
        for result in self.results:
            if result.node in results:
                graph[result.node]["inputs"] |= {"folder": TEMP, "bits": str(bits)}
            else:
                del graph[result.node]
        for name, endpoint_input in self.inputs.items():
            node_inputs = graph[endpoint_input.node]["inputs"]
            if endpoint_input.is_image:
                # The image that the graph was saved with is never used: it belongs to its author.
                node_inputs["image"] = values.get(name) or NO_IMAGE
            elif name in values:
                node_inputs["value"] = values[name]
        return graph


class WorkflowFolder:
    """The folder of served graphs. It is read anew for each request, so files can be added, changed
    and removed at any time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cache: dict[str, tuple[tuple[int, ...], Workflow | ArtMancerError]] = {}

    def __iter__(self) -> Iterator[tuple[str, Workflow | ArtMancerError]]:
        """Yield each file's name with its workflow, or with the error why it cannot be served."""
        for path in sorted(self.path.glob("*.json")):
            # The file may be removed in the meantime.
            with suppress(FileNotFoundError):
                if not path.is_symlink() and path.is_file():
                    yield path.stem, self._read(path)

    def get(self, name: str) -> Workflow:
        """Return the workflow with this name.

        Raises
        ------
        ArtMancerError : not_found; generation_failed if its file cannot be served
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
                "not_found", f"The file of the workflow '{name}' was removed. Put it back."
            ) from None
        if isinstance(workflow, ArtMancerError):
            raise ArtMancerError(
                "generation_failed", f"The workflow '{name}' is not served: {workflow}"
            )
        return workflow

    def _read(self, path: Path) -> Workflow | ArtMancerError:
        """Read a file if it has changed since it was last read."""
        status = path.stat()
        # A copy that keeps the time and happens to have the size differs in the others.
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns)
        cached = self._cache.get(path.stem)
        if cached is None or cached[0] != stamp:
            workflow: Workflow | ArtMancerError
            try:
                workflow = read_workflow(path)
            except ArtMancerError as error:
                logger.warning("%s is not served: %s", path.name, error)
                workflow = error
            cached = (stamp, workflow)
            self._cache[path.stem] = cached
        return cached[1]


def read_workflow(path: Path) -> Workflow:
    """Read a workflow from a graph in API format.

    Raises
    ------
    ArtMancerError : invalid_request: the file is not a graph, has a cycle, or its endpoint nodes do
        not make an endpoint
    """
    if not NAME.fullmatch(path.stem):
        raise _invalid("its name has characters other than a-z, 0-9, - and _", "Rename the file")
    graph = _parse(path)
    _check_wrapped(graph)
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
        raise _invalid("it has no Endpoint Result node", "Add one for each result")
    _check_names([endpoint_input.name for endpoint_input in inputs])
    _check_names([result.name for result in results])
    return Workflow(
        path.stem,
        graph,
        {endpoint_input.name: endpoint_input for endpoint_input in inputs},
        results,
        _request_model(path.stem, inputs, results),
        heavy=any(
            node["class_type"] in _EDITORS or not node["class_type"].startswith(_PREFIX)
            for node in graph.values()
        ),
    )


def link_source(value: Any) -> str | None:
    """Return the id of the node that an input's value links to; None: it is not a link."""
    is_link = (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], (int, float))
    )
    return str(value[0]) if is_link else None


def _parse(path: Path) -> dict[str, Any]:
    """Read a file's JSON and check that it is a graph."""
    if path.stat().st_size > MAX_BYTES:
        raise _invalid(
            f"it is larger than {MAX_BYTES // 2**20} MB", "Export the graph alone, in API format"
        )
    try:
        graph = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
        # Half a surrogate pair in a text is valid JSON, but cannot be sent in an answer.
        json.dumps(graph, ensure_ascii=False).encode()
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


def _check_wrapped(graph: Mapping[str, Any]) -> None:
    """Refuse values in ComfyUI's wrapping: it would unwrap a link that no check has seen."""
    for key, node in graph.items():
        for name, value in node["inputs"].items():
            if isinstance(value, dict) and "__value__" in value:
                raise _invalid(
                    f"'{name}' of node {key} is wrapped as __value__", "Type or connect the value"
                )


def _check_names(names: list[str]) -> None:
    """Refuse names that are not unique, or cannot be fields of a request or an answer."""
    for name in names:
        if not _FIELD_NAME.fullmatch(name) or name == "include" or hasattr(BaseModel, name):
            raise _invalid(
                f"'{name[:80]}' cannot be a field's name",
                "Start with a letter, and use letters, digits and _ only",
            )
        if names.count(name) > 1:
            raise _invalid(
                f"two of its endpoint nodes have the name '{name}'", "Give each its own name"
            )


def _check_links(graph: Mapping[str, Any]) -> None:
    """Refuse links to missing nodes, and cycles."""
    sources = {key: _sources(node) for key, node in graph.items()}
    for key, linked in sources.items():
        if missing := linked - graph.keys():
            raise _invalid(
                f"node {key} is linked to node {min(missing)}, which is not there",
                "Export it again",
            )
    # Remove nodes that need none of the others, again and again. Only cycles remain, and nodes
    # behind them.
    while ready := [key for key, linked in sources.items() if not linked & sources.keys()]:
        for key in ready:
            del sources[key]
    if sources:
        raise _invalid(
            f"its nodes {', '.join(sorted(sources))} form a cycle", "Remove one of the links"
        )


def _sources(node: Mapping[str, Any]) -> set[str]:
    """Return the ids of the nodes that a node's inputs link to."""
    links = (link_source(value) for value in node["inputs"].values())
    return {source for source in links if source is not None}


def _result(key: str, settings: Mapping[str, Any]) -> Result:
    """Read an endpoint result node."""
    return Result(
        key,
        str(settings.get("name")),
        str(settings.get("help", "")),
        settings.get("on_request") is True,
    )


def _input(key: str, node: Mapping[str, Any]) -> Input:
    """Read an endpoint input node and check its settings."""
    settings = node["inputs"]
    kind = ENDPOINT_INPUTS[node["class_type"]]
    name = settings.get("name")
    if not isinstance(name, str):
        raise _invalid(f"the name of node {key} is connected", "Disconnect it, and type a name")
    for setting in ("required", "help"):
        if link_source(settings.get(setting)):
            raise _invalid(f"'{setting}' of '{name}' is connected", "Disconnect it")
    required = settings.get("required", kind in ("image", "mask")) is True
    endpoint_input = Input(key, name, kind, str(settings.get("help", "")), required, settings)
    if endpoint_input.is_image:
        return endpoint_input
    max_length = settings.get("max_length", 1)
    if kind == "text" and (not isinstance(max_length, int) or max_length < 1):
        raise _invalid(
            f"the max_length of '{name}' is {max_length!r:.80}",
            "Type a number, and export again",
        )
    for setting in ("value", *_LIMITS.get(kind, ())):
        if not isinstance(settings.get(setting), _VALUE_TYPES[kind]):
            raise _invalid(
                f"the {setting} of '{name}' is {settings.get(setting)!r:.80}",
                "Type a value, and export again",
            )
    if kind == "choice" and settings["value"] not in endpoint_input.choices:
        raise _invalid(f"the value of '{name}' is none of its choices", "Use one of them")
    return endpoint_input


def _request_model(name: str, inputs: list[Input], results: tuple[Result, ...]) -> type[BaseModel]:
    """Make the pydantic model of a workflow's requests."""
    fields = {endpoint_input.name: endpoint_input.field() for endpoint_input in inputs}
    if optional := tuple(result.name for result in results if result.on_request):
        spec = Field(
            description="Optional results to return too.",
            max_length=len(optional),
        )
        names = Literal[optional]  # type: ignore[valid-type]
        fields["include"] = (Annotated[list[names], spec], [])
    camel_case = "".join(part.capitalize() for part in re.split("[-_]", name))
    # The stub of create_model knows no fields from a dictionary.
    model: type[BaseModel] = create_model(  # type: ignore[call-overload]
        # The fixed routes' schemas end in Request.
        f"{camel_case}Inputs",
        __config__=ConfigDict(extra="forbid"),
        **fields,
    )
    return model


def _invalid(problem: str, advice: str) -> ArtMancerError:
    return ArtMancerError("invalid_request", f"{problem}. {advice}.")
