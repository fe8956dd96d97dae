"""Endpoint nodes: the inputs and results of a graph that the gateway serves over HTTP.

Each node has a name and a help text. The gateway makes the endpoint's schema from them.
"""

from pathlib import Path
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..artmancer import images
from ..artmancer.endpoint_protocol import MODEL_SETS, NO_IMAGE, OUTPUT, TEMP, UPLOAD_FOLDER
from ..artmancer.errors import ArtMancerError
from ..artmancer.options import MAX_SEED
from .comfy_host.files import save_output, save_result
from .comfy_host.folders import input_file, input_images, set_paths
from .comfy_host.progress import node_progress
from .sockets import advanced

CATEGORY = "ArtMancer/endpoint"

FLOAT_LIMIT = 1e6
"""Largest number of Endpoint Float; the smallest is its negative."""

OUTPUT_TOOLTIP = "The value that the caller sends, or else the node's own value."


def _name_and_help(name: str) -> list[io.Input]:
    """Make the inputs that every endpoint node has."""
    return [
        io.String.Input(
            "name", default=name, tooltip="The name that callers use, in the endpoint's schema."
        ),
        io.String.Input(
            "help", default="", tooltip="Description in the endpoint's schema, for callers."
        ),
    ]


def _image_inputs(kind: str) -> list[io.Input]:
    """Make the inputs of a node that takes an image file; `kind` is "image" or "mask"."""
    return [
        io.Combo.Input(
            "image",
            options=[*input_images(), NO_IMAGE],
            upload=io.UploadType.image,
            tooltip=f"The {kind}, a file in ComfyUI's input folder.",
        ),
        *_name_and_help(kind),
        io.Boolean.Input("required", default=True, tooltip="Off: the caller may leave it out."),
    ]


def _image_path(image: str | None, name: str, required: bool) -> Path | None:
    """Return the path of an image input; None where the caller left it out."""
    path = input_file(image) if image else None
    if path is None and required:
        raise ArtMancerError(
            "invalid_request", f"'{name}' is required and has no image. Choose or send one."
        )
    return path


def _validate_image(image: str | None, required: bool | None) -> bool | str:
    """Return True, or a message for the user. ComfyUI passes None for a connected input."""
    if image is None:
        return True
    if image in ("", NO_IMAGE):
        return "it is required and has no image. Choose or send one." if required else True
    if input_file(str(image)) is None:
        return f"there is no '{image}' in the input folder. Upload it first."
    return True


def _fingerprint_image(image: str | None) -> tuple[str | None, int]:
    """Return a key that changes with the file, so that ComfyUI reads a changed file again."""
    path = input_file(image) if image else None
    return (image, path.stat().st_mtime_ns if path else 0)


class EndpointImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ArtMancer_EndpointImage",
            display_name="Endpoint Image",
            category=CATEGORY,
            description="An image that the endpoint's caller sends. "
            "In a workflow it works like Load Image.",
            inputs=_image_inputs("image"),
            outputs=[
                io.Image.Output(
                    display_name="image", tooltip="The image; nothing if the caller leaves it out."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, image: str | None, required: bool | None) -> bool | str:
        return _validate_image(image, required)

    @classmethod
    def fingerprint_inputs(cls, image: str, **_: Any) -> tuple[str | None, int]:
        return _fingerprint_image(image)

    @classmethod
    def execute(cls, image: str, name: str, help: str, required: bool) -> io.NodeOutput:
        path = _image_path(image, name, required)
        if path is None:
            return io.NodeOutput(None)
        decoded = images.load(path)
        # The gateway puts its own uploads together again.
        is_upload = path.parent.name == UPLOAD_FOLDER
        if not is_upload and (note := decoded.picture.not_in_comfyui()):
            with node_progress() as progress:
                progress(1, 1, note)
        return io.NodeOutput(decoded.image)


class EndpointMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ArtMancer_EndpointMask",
            display_name="Endpoint Mask",
            category=CATEGORY,
            description="A mask that the endpoint's caller sends as an image, white = edit.",
            inputs=_image_inputs("mask"),
            outputs=[
                io.Mask.Output(
                    display_name="mask", tooltip="The mask; nothing if the caller leaves it out."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, image: str | None, required: bool | None) -> bool | str:
        return _validate_image(image, required)

    @classmethod
    def fingerprint_inputs(cls, image: str, **_: Any) -> tuple[str | None, int]:
        return _fingerprint_image(image)

    @classmethod
    def execute(cls, image: str, name: str, help: str, required: bool) -> io.NodeOutput:
        path = _image_path(image, name, required)
        return io.NodeOutput(images.load_mask(path) if path else None)


class EndpointText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ArtMancer_EndpointText",
            display_name="Endpoint Text",
            category=CATEGORY,
            description="A text that the endpoint's caller sends.",
            inputs=[
                io.String.Input(
                    "value",
                    default="",
                    multiline=True,
                    tooltip="The text if the caller sends none.",
                ),
                *_name_and_help("text"),
                io.Int.Input(
                    "max_length",
                    default=4000,
                    min=1,
                    max=100_000,
                    tooltip="Largest number of characters.",
                ),
                io.Boolean.Input("required", default=False, tooltip="On: the caller must send it."),
            ],
            outputs=[io.String.Output(display_name="text", tooltip=OUTPUT_TOOLTIP)],
        )

    @classmethod
    def validate_inputs(
        cls, value: str | None, max_length: int | None, required: bool | None
    ) -> bool | str:
        if required and value is not None and not value.strip():
            return "it is required and has no text. Type or send one."
        if value is not None and max_length is not None and len(value) > max_length:
            return (
                f"the text has {len(value):,} characters; expected at most {max_length:,}. "
                "Shorten it."
            )
        return True

    @classmethod
    def execute(
        cls, value: str, name: str, help: str, max_length: int, required: bool
    ) -> io.NodeOutput:
        return io.NodeOutput(value)


class EndpointInteger(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ArtMancer_EndpointInteger",
            display_name="Endpoint Integer",
            category=CATEGORY,
            description="A whole number that the endpoint's caller sends.",
            inputs=[
                io.Int.Input(
                    "value",
                    default=0,
                    min=-MAX_SEED,
                    max=MAX_SEED,
                    tooltip="The number if the caller sends none.",
                ),
                *_name_and_help("integer"),
                io.Int.Input(
                    "minimum",
                    default=0,
                    min=-MAX_SEED,
                    max=MAX_SEED,
                    tooltip="The smallest number allowed.",
                ),
                io.Int.Input(
                    "maximum",
                    default=MAX_SEED,
                    min=-MAX_SEED,
                    max=MAX_SEED,
                    tooltip="The largest number allowed.",
                ),
            ],
            outputs=[io.Int.Output(display_name="integer", tooltip=OUTPUT_TOOLTIP)],
        )

    @classmethod
    def validate_inputs(
        cls, value: int | None, minimum: int | None, maximum: int | None
    ) -> bool | str:
        return _validate_range(value, minimum, maximum)

    @classmethod
    def execute(cls, value: int, name: str, help: str, minimum: int, maximum: int) -> io.NodeOutput:
        return io.NodeOutput(value)


class EndpointFloat(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ArtMancer_EndpointFloat",
            display_name="Endpoint Float",
            category=CATEGORY,
            description="A number that the endpoint's caller sends.",
            inputs=[
                io.Float.Input(
                    "value",
                    default=0.0,
                    min=-FLOAT_LIMIT,
                    max=FLOAT_LIMIT,
                    step=0.01,
                    tooltip="The number if the caller sends none.",
                ),
                *_name_and_help("float"),
                io.Float.Input(
                    "minimum",
                    default=0.0,
                    min=-FLOAT_LIMIT,
                    max=FLOAT_LIMIT,
                    step=0.01,
                    tooltip="The smallest number allowed.",
                ),
                io.Float.Input(
                    "maximum",
                    default=1.0,
                    min=-FLOAT_LIMIT,
                    max=FLOAT_LIMIT,
                    step=0.01,
                    tooltip="The largest number allowed.",
                ),
            ],
            outputs=[io.Float.Output(display_name="float", tooltip=OUTPUT_TOOLTIP)],
        )

    @classmethod
    def validate_inputs(
        cls, value: float | None, minimum: float | None, maximum: float | None
    ) -> bool | str:
        return _validate_range(value, minimum, maximum)

    @classmethod
    def execute(
        cls, value: float, name: str, help: str, minimum: float, maximum: float
    ) -> io.NodeOutput:
        return io.NodeOutput(value)


def _validate_range(
    value: float | None, minimum: float | None, maximum: float | None
) -> bool | str:
    if not (
        isinstance(value, int | float)
        and isinstance(minimum, int | float)
        and isinstance(maximum, int | float)
    ):
        # An input is connected, or has a type that ComfyUI itself refuses.
        return True
    if minimum <= value <= maximum:
        return True
    return f"the value is {value}; expected {minimum} to {maximum}."


class EndpointChoice(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ArtMancer_EndpointChoice",
            display_name="Endpoint Choice",
            category=CATEGORY,
            description="One of several choices, which the endpoint's caller sends. Connect it to "
            "any drop-down list.",
            inputs=[
                io.Combo.Input("value", options=[], tooltip="The choice if the caller sends none."),
                *_name_and_help("choice"),
                io.String.Input(
                    "choices",
                    default="",
                    multiline=True,
                    tooltip="The choices, one on each line. The line (model sets) stands for the "
                    "names of all model sets, for Load Editor.",
                ),
            ],
            outputs=[io.AnyType.Output(display_name="choice", tooltip=OUTPUT_TOOLTIP)],
        )

    @classmethod
    def validate_inputs(cls, value: str | None, choices: str | None) -> bool | str:
        if value is None or choices is None:
            return True
        names = choices.splitlines()
        if MODEL_SETS in names:
            names.remove(MODEL_SETS)
            names += set_paths()
        if value in names:
            return True
        return f"the value is '{value}'; expected one of: {', '.join(names)}."

    @classmethod
    def execute(cls, value: str, name: str, help: str, choices: str) -> io.NodeOutput:
        return io.NodeOutput(value)


class EndpointSwitch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ArtMancer_EndpointSwitch",
            display_name="Endpoint Switch",
            category=CATEGORY,
            description="A yes or no that the endpoint's caller sends.",
            inputs=[
                io.Boolean.Input(
                    "value", default=False, tooltip="Yes or no if the caller sends neither."
                ),
                *_name_and_help("switch"),
            ],
            outputs=[io.Boolean.Output(display_name="switch", tooltip=OUTPUT_TOOLTIP)],
        )

    @classmethod
    def execute(cls, value: bool, name: str, help: str) -> io.NodeOutput:
        return io.NodeOutput(value)


class EndpointResult(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ArtMancer_EndpointResult",
            display_name="Endpoint Result",
            category=CATEGORY,
            description="A result that the endpoint returns under this name: an image, a mask, a "
            "text or a number. Images are saved as PNG, without the workflow in the file.",
            inputs=[
                io.AnyType.Input(
                    "value", tooltip="An image, a mask, a text, a number, or a yes or no."
                ),
                *_name_and_help("result"),
                io.Boolean.Input(
                    "on_request",
                    default=False,
                    optional=True,
                    tooltip="On: returned only to a caller who requests it. A run in ComfyUI "
                    "always returns it.",
                ),
                advanced(
                    io.Combo.Input(
                        "folder",
                        options=[OUTPUT, TEMP],
                        default=OUTPUT,
                        optional=True,
                        tooltip="The folder that images are saved in.\n"
                        "output: ComfyUI's output folder.\n"
                        "temp: ComfyUI's temporary folder, which it empties when it starts.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "bits",
                        options=["8", "16"],
                        default="8",
                        optional=True,
                        tooltip="Bits of each channel in the PNG file. 16: for an image from a "
                        "16-bit file.",
                    )
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str = OUTPUT, **_: Any) -> float:
        # Temporary files are deleted while ComfyUI runs, and a cached result could name a deleted
        # file. A new NaN is equal to nothing, so the node always runs; math.nan is one object, and
        # equal to itself in a comparison of tuples.
        return float("nan") if folder == TEMP else 0.0

    @classmethod
    def execute(
        cls,
        value: Any,
        name: str,
        help: str,
        on_request: bool = False,
        folder: str = OUTPUT,
        bits: str = "8",
    ) -> io.NodeOutput:
        if isinstance(value, Tensor) and value.ndim in (3, 4):
            save = save_result if folder == TEMP else save_output
            return io.NodeOutput(ui=ui.SavedImages([save(image, int(bits)) for image in value]))
        if isinstance(value, str | int | float | bool):
            return io.NodeOutput(ui={"text": (str(value),), "value": (value,)})
        raise ArtMancerError(
            "invalid_request",
            f"Endpoint Result '{name}' got a {type(value).__name__}; expected an image, a mask, a "
            "text or a number.",
        )
