"""The `Runner` interface: submit a graph to a ComfyUI, follow it, fetch its outputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Step:
    """Progress of a run.

    Attributes
    ----------
    loading : a model is being loaded, and no step of the run itself is done yet
    done, total : steps of the present stage; 0 of 0 where it has none
    stage : for example "sampling"
    """

    loading: bool = False
    done: int = 0
    total: int = 0
    stage: str = ""


@dataclass(frozen=True)
class Run:
    """A filled graph to run.

    Attributes
    ----------
    id : the job's UUID; a ComfyUI never gets two runs with one id at a time
    graph : in API format; an image input holds a name in `images`
    images : image files by name
    results : names of the results to fetch, by node id
    urgent : it goes before runs that wait at the ComfyUI and are not urgent
    """

    id: str
    graph: Mapping[str, Any]
    images: Mapping[str, Path]
    results: Mapping[str, str]
    urgent: bool = False


@dataclass(frozen=True)
class Outputs:
    """The outputs of a run.

    Attributes
    ----------
    images : PNG files by result name
    values : a text, number or boolean by result name
    """

    images: Mapping[str, list[bytes]] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NodeInput:
    """An input of a node class.

    Attributes
    ----------
    type : for example "IMAGE"; "COMBO" for a choice
    required : a graph must set it
    is_file : its widget chooses or uploads a file
    """

    type: str
    required: bool = True
    is_file: bool = False


@dataclass(frozen=True)
class NodeType:
    """A node class that a ComfyUI has.

    Attributes
    ----------
    inputs : by name
    outputs : types of its outputs, for example "STRING"
    is_output : ComfyUI runs it although no other node needs it
    """

    inputs: Mapping[str, NodeInput]
    outputs: tuple[str, ...]
    is_output: bool = False

    @classmethod
    def from_info(cls, info: Mapping[str, Any]) -> "NodeType":
        """Make it from the class's entry in ComfyUI's /object_info."""
        inputs = {}
        for part in ("required", "optional"):
            for name, spec in info["input"].get(part, {}).items():
                options = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
                inputs[name] = NodeInput(
                    # Older nodes give a choice as the list of its values.
                    spec[0] if isinstance(spec[0], str) else "COMBO",
                    part == "required",
                    any(key.endswith("_upload") or key == "image_folder" for key in options),
                )
        # An output that is a choice is given as the list of its values, too.
        outputs = tuple(kind if isinstance(kind, str) else "COMBO" for kind in info["output"])
        return cls(inputs, outputs, bool(info.get("output_node")))

    def as_data(self) -> tuple[Any, ...]:
        """Return it as tuples of texts and booleans, to send it to another process."""
        inputs = tuple(
            (name, node_input.type, node_input.required, node_input.is_file)
            for name, node_input in self.inputs.items()
        )
        return inputs, self.outputs, self.is_output

    @classmethod
    def from_data(cls, data: tuple[Any, ...]) -> "NodeType":
        """Make it from what `as_data` returned."""
        inputs, outputs, is_output = data
        named = {name: NodeInput(*fields) for name, *fields in inputs}
        return cls(named, tuple(outputs), is_output)


@dataclass(frozen=True)
class ComfyStatus:
    """The state of a ComfyUI, as of a few seconds ago.

    Attributes
    ----------
    up : it accepts runs
    reason : why it does not
    info : version, device, memory, queue and models, as /api/health answers them
    nodes : its node classes by name; empty: not known yet
    starting : the gateway is starting it, and has not seen it exit
    """

    up: bool
    reason: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    nodes: Mapping[str, NodeType] = field(default_factory=dict)
    starting: bool = False


class RunLost(Exception):
    """The ComfyUI went away or forgot the run; how far it came is unknown."""


class Runner(Protocol):
    """Runs graphs in a ComfyUI. Implementation: ComfyRunner."""

    async def connect(self) -> None:
        """Keep the connection to the ComfyUI until cancelled."""
        ...

    async def ready(self) -> None:
        """Wait until the ComfyUI accepts runs."""
        ...

    def status(self) -> ComfyStatus:
        """Return the last known state, without a request."""
        ...

    async def submit(self, run: Run) -> None:
        """Submit a run; the ComfyUI runs them in this order.

        Raises
        ------
        ArtMancerError : the ComfyUI refuses it
        RunLost
        """
        ...

    async def knows(self, run: Run) -> bool:
        """Tell whether the ComfyUI has a run that was submitted before, by this process or an
        earlier one.

        Raises
        ------
        RunLost
        """
        ...

    async def outputs(self, run: Run, on_step: Callable[[Step], None]) -> Outputs:
        """Wait for a submitted run and fetch its outputs.

        Parameters
        ----------
        on_step : called when it starts, and at each step

        Raises
        ------
        ArtMancerError : it failed
        RunLost
        """
        ...

    async def cancel(self, run_id: str) -> None:
        """Cancel a run, waiting or running; an unknown id is no error."""
        ...

    async def free(self) -> int:
        """Unload all models and empty all caches; return the bytes of memory that were freed."""
        ...

    async def tidy(self, keep: set[str], max_age: float, max_bytes: int) -> None:
        """Remove the files that runs left at the ComfyUI.

        Parameters
        ----------
        keep : names of images that unfinished runs need
        max_age : seconds; older files are removed
        max_bytes : then the oldest files are removed until this many bytes are left
        """
        ...
