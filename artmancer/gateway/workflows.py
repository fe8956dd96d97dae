"""The graphs that are served: what each asks of its caller, read from its endpoint nodes, and how
it is filled.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from ..errors import ArtMancerError
from .runner import NodeType

logger = logging.getLogger(__name__)

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
NOTHING = "(none)"
MAX_BYTES = 2**21

_PREFIX = "ArtMancer_"
_INPUTS = {
    f"{_PREFIX}Endpoint{kind}": kind.lower()
    for kind in ("Image", "Mask", "Text", "Integer", "Float", "Choice", "Switch")
}
_RESULT = f"{_PREFIX}EndpointResult"
_NAMES_A_FILE = re.compile(r"path|file|folder|dir|url", re.I)
_TEXTS = ("STRING", "*")
"""Types of outputs that may be a text."""

_EDITORS = {f"{_PREFIX}LoadEditor", f"{_PREFIX}EditSampler"}


@dataclass(frozen=True)
class Input:
    """An endpoint input node: what a caller sends under `name`."""

    node: str
    name: str
    kind: str
    help: str
    required: bool
    settings: Mapping[str, Any]

    @property
    def picture(self) -> bool:
        return self.kind in ("image", "mask")

    def field(self) -> tuple[Any, Any]:
        """Its type and default, as pydantic takes them."""
        settings = self.settings
        if self.picture:
            about = Field(description=self.help, json_schema_extra={"contentEncoding": "base64"})
            return (
                (Annotated[str, about], ...)
                if self.required
                else (Annotated[str | None, about], None)
            )
        default = ... if self.required else settings["value"]
        if self.kind == "text":
            least = 1 if self.required else 0
            about = Field(
                description=self.help, min_length=least, max_length=settings.get("max_length", 4000)
            )
            return Annotated[str, about], default
        if self.kind in ("integer", "float"):
            about = Field(ge=settings["minimum"], le=settings["maximum"], description=self.help)
            if self.kind == "integer":
                return Annotated[int, about], default
            return Annotated[float, about, Field(allow_inf_nan=False)], default
        if self.kind == "choice":
            choices = Literal[tuple(settings["choices"].splitlines())]  # type: ignore[valid-type]
            return Annotated[choices, Field(description=self.help)], default
        return Annotated[bool, Field(description=self.help)], default


@dataclass(frozen=True)
class Result:
    """An endpoint result node: what a caller gets under `name`;
    on_request: only when it asks for it.
    """

    node: str
    name: str
    help: str
    on_request: bool


@dataclass(frozen=True)
class Workflow:
    """A graph in API format that can be served.

    Attributes
    ----------
    model : validates a request: one field an input, and `include`,
        the results on request that are asked for
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

    def asked(self, include: list[str]) -> dict[str, str]:
        """The names of the results that are answered, by node."""
        return {
            result.node: result.name
            for result in self.results
            if not result.on_request or result.name in include
        }

    def fill(self, values: Mapping[str, Any], asked: Mapping[str, str]) -> dict[str, Any]:
        """The graph with what a caller sent in it, and without the results nobody asked for.

        Parameters
        ----------
        values : by input; a picture by its name; what is missing was left out
        asked : as `asked` gives it
        """
        graph: dict[str, Any] = {
            key: {**node, "inputs": dict(node["inputs"])} for key, node in self.graph.items()
        }
        for result in self.results:
            if result.node in asked:
                graph[result.node]["inputs"]["folder"] = "temp"
            else:
                del graph[result.node]
        for name, taken in self.inputs.items():
            node = graph[taken.node]["inputs"]
            if taken.picture:  # never the one that lay there when the graph was saved
                node["image"] = values.get(name) or NOTHING
            elif name in values:
                node["value"] = values[name]
        return graph


class Folder:
    """The folder of graphs. A file that appears, changes or goes counts from
    the next request on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, tuple[tuple[int, int], Workflow | ArtMancerError]] = {}

    def __iter__(self) -> Iterator[tuple[str, Workflow | ArtMancerError]]:
        """Each file's workflow, or the reason why it is not served, by name."""
        for path in sorted(self.path.glob("*.json")):
            with suppress(FileNotFoundError):  # it went meanwhile
                if not path.is_symlink() and path.is_file():
                    yield path.stem, self._read(path)

    def get(self, name: str) -> Workflow:
        """The workflow of this name.

        Raises
        ------
        ArtMancerError : not_found; generation_failed for one that is there and cannot be served
        """
        path = self.path / f"{name}.json"
        if not NAME.fullmatch(name) or path.is_symlink() or not path.is_file():
            raise ArtMancerError(
                "not_found", f"There is no workflow '{name[:80]}'. GET /api/workflows lists them."
            )
        try:
            found = self._read(path)
        except FileNotFoundError:
            raise ArtMancerError(
                "not_found", f"The workflow '{name}' is gone. Put its file back."
            ) from None
        if isinstance(found, ArtMancerError):
            raise ArtMancerError(
                "generation_failed", f"The workflow '{name}' is not served: {found}"
            )
        return found

    def _read(self, path: Path) -> Workflow | ArtMancerError:
        stat = path.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        known = self._known.get(path.stem)
        if known is None or known[0] != stamp:
            found: Workflow | ArtMancerError
            try:
                found = read(path)
            except ArtMancerError as error:
                logger.warning("%s is not served: %s", path.name, error)
                found = error
            known = self._known[path.stem] = (stamp, found)
        return known[1]


def read(path: Path) -> Workflow:
    """Read a graph in API format.

    Raises
    ------
    ArtMancerError : invalid_request: it is no graph, is no endpoint, or runs in a circle
    """
    if not NAME.fullmatch(path.stem):
        raise _wrong("its name has other letters than a-z, 0-9, - and _", "Rename the file")
    if path.stat().st_size > MAX_BYTES:
        raise _wrong(f"it is over {MAX_BYTES // 2**20} MB", "Save the graph alone, in API format")
    try:
        graph = json.loads(path.read_bytes(), parse_constant=_not_a_number)
        json.dumps(graph, ensure_ascii=False).encode()  # half a surrogate could not be answered
    except PermissionError:
        raise _wrong("it may not be read", "Change the file's permissions") from None
    except (ValueError, RecursionError) as error:
        raise _wrong(f"it is not JSON ({error})", "Export it again in API format") from None
    if (
        not isinstance(graph, dict)
        or not graph
        or not all(_is_node(node) for node in graph.values())
    ):
        raise _wrong("it is not a graph in API format", "Export it with Workflow > Export (API)")
    _check_links(graph)
    inputs = [_input(key, node) for key, node in graph.items() if node["class_type"] in _INPUTS]
    results = tuple(
        Result(
            key,
            str(node["inputs"].get("name")),
            str(node["inputs"].get("help", "")),
            node["inputs"].get("on_request") is True,
        )
        for key, node in graph.items()
        if node["class_type"] == _RESULT
    )
    if not results:
        raise _wrong("it has no Endpoint Result", "Add one for each thing it answers")
    for names in ([one.name for one in inputs], [one.name for one in results]):
        for name in names:
            if (
                not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", name)
                or name == "include"
                or hasattr(BaseModel, name)
            ):
                raise _wrong(
                    f"'{name[:80]}' cannot be a field's name",
                    "Use letters, digits and _, a letter first",
                )
            if names.count(name) > 1:
                raise _wrong(
                    f"two of its endpoint nodes are called '{name}'", "Give each its own name"
                )
    return Workflow(
        path.stem,
        graph,
        {one.name: one for one in inputs},
        results,
        _model(path.stem, inputs, results),
        heavy=any(
            node["class_type"] in _EDITORS or not node["class_type"].startswith(_PREFIX)
            for node in graph.values()
        ),
    )


def check(workflow: Workflow, nodes: Mapping[str, NodeType]) -> str | None:
    """Why a host with these nodes cannot or must not run a workflow; None: it can.

    Parameters
    ----------
    nodes : by type; empty: not known yet
    """
    callers = {taken.node for taken in workflow.inputs.values() if taken.kind == "text"}
    for key, node in workflow.graph.items():
        kind = node["class_type"]
        if nodes and kind not in nodes:
            return (
                f"node {key} is a {kind}, which ComfyUI does not have. "
                "Install the pack it comes from."
            )
        if kind in _INPUTS or kind == _RESULT:
            continue
        if kind in nodes and nodes[kind].reads_files:
            return (
                f"node {key}, {kind}, reads a file of the host. Use Endpoint Image or Endpoint "
                "Mask in its place."
            )
        for name, value in node["inputs"].items():
            if any(_leads_elsewhere(text) for text in _texts(value)):
                return (
                    f"'{name}' of node {key}, {kind}, is a path on the host. Choose a file of "
                    "ComfyUI's by its name."
                )
            if _NAMES_A_FILE.search(name) and _texts_behind(value, workflow.graph, nodes) & callers:
                return f"a caller would choose the '{name}' of node {key}, {kind}. Type it in."
    return None


def _texts_behind(value: Any, graph: Mapping[str, Any], nodes: Mapping[str, NodeType]) -> set[str]:
    """The nodes whose text an input is made of, at however many removes."""
    found: set[str] = set()
    links = [value]
    while links:
        link = links.pop()
        source = _link(link)
        if source is None or source in found:
            continue
        kind = nodes.get(graph[source]["class_type"])
        if kind and link[1] < len(kind.outputs) and kind.outputs[link[1]] not in _TEXTS:
            continue
        found.add(source)
        links += graph[source]["inputs"].values()
    return found


def _texts(value: Any) -> Iterator[str]:
    """The texts in a literal, however deep."""
    parts = [value]
    while parts:
        part = parts.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, list | dict):
            parts += part.values() if isinstance(part, dict) else part


def _leads_elsewhere(value: str) -> bool:
    return bool(
        re.match(r"\s*([/\\~]|[A-Za-z]:[\\/]|\w+://)", value)
        or re.search(r"(^|[\\/])\.\.([\\/]|$)|\0", value)
    )


def _not_a_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _is_node(node: Any) -> bool:
    return (
        isinstance(node, dict)
        and isinstance(node.get("class_type"), str)
        and isinstance(node.get("inputs"), dict)
    )


def _link(value: Any) -> str | None:
    """The node that an input is linked to."""
    linked = (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
    )
    return str(value[0]) if linked else None


def _links(node: Mapping[str, Any]) -> set[str]:
    return {found for value in node["inputs"].values() if (found := _link(value)) is not None}


def _check_links(graph: Mapping[str, Any]) -> None:
    """Every link leads to a node, and none back to where it came from."""
    waiting = {key: _links(node) for key, node in graph.items()}
    for key, sources in waiting.items():
        if missing := sources - graph.keys():
            raise _wrong(
                f"node {key} is linked to node {min(missing)}, which is not there",
                "Export it again",
            )
    while free := [key for key, sources in waiting.items() if not sources & waiting.keys()]:
        for key in free:
            del waiting[key]
    if waiting:
        raise _wrong(
            f"its nodes {', '.join(sorted(waiting))} wait for each other in a circle",
            "Cut one of the links",
        )


def _input(key: str, node: Mapping[str, Any]) -> Input:
    settings, kind = node["inputs"], _INPUTS[node["class_type"]]
    name = settings.get("name")
    if not isinstance(name, str):
        raise _wrong(f"the name of node {key} is connected", "Type it in")
    required = settings.get("required", kind in ("image", "mask")) is True
    taken = Input(key, name, kind, str(settings.get("help", "")), required, settings)
    if taken.picture:
        return taken
    expected = {"text": str, "integer": int, "float": int | float, "choice": str, "switch": bool}[
        kind
    ]
    limits = {
        "integer": ("minimum", "maximum"),
        "float": ("minimum", "maximum"),
        "choice": ("choices",),
    }
    longest = settings.get("max_length", 1)
    if kind == "text" and (not isinstance(longest, int) or longest < 1):
        raise _wrong(
            f"the max_length of '{name}' is {longest!r:.80}", "Type it in, and export again"
        )
    for setting in ("value", *limits.get(kind, ())):
        if not isinstance(settings.get(setting), expected):
            raise _wrong(
                f"the {setting} of '{name}' is {settings.get(setting)!r:.80}",
                "Type it in, and export again",
            )
    if kind == "choice" and settings["value"] not in settings["choices"].splitlines():
        raise _wrong(f"the value of '{name}' is none of its choices", "Choose one")
    return taken


def _model(name: str, inputs: list[Input], results: tuple[Result, ...]) -> type[BaseModel]:
    fields = {one.name: one.field() for one in inputs}
    if extra := tuple(result.name for result in results if result.on_request):
        about = Field(
            description="Results to answer besides those that always come.", max_length=len(extra)
        )
        names = Literal[extra]  # type: ignore[valid-type]
        fields["include"] = (Annotated[list[names], about], [])
    model: type[BaseModel] = create_model(  # type: ignore[call-overload]
        "".join(part.capitalize() for part in re.split("[-_]", name)) + "Request",
        __config__=ConfigDict(extra="forbid"),
        **fields,
    )
    return model


def _wrong(what: str, do: str) -> ArtMancerError:
    return ArtMancerError("invalid_request", f"{what}. {do}.")
