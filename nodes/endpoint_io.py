"""The inputs and the results of a graph that is served as an endpoint.

Each carries a name and a help text: an endpoint's schema is made from them.
"""

from pathlib import Path
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..artmancer import images
from ..artmancer.endpoint_protocol import NO_IMAGE, OUTPUT, TEMP
from ..artmancer.errors import ArtMancerError
from ..artmancer.options import MAX_SEED
from .comfy_host.files import save_output, save_result
from .comfy_host.folders import input_file, input_images
from .sockets import advanced

CATEGORY = "ArtMancer/endpoint"
SENT = "What the caller sent, or value."


def _about(name: str) -> list[io.Input]:
    return [
        io.String.Input("name", default=name, tooltip="What the endpoint calls this."),
        io.String.Input("help", default="", tooltip="What a caller should know about it."),
    ]


def _picture(what: str) -> list[io.Input]:
    return [
        io.Combo.Input(
            "image",
            options=[*input_images(), NO_IMAGE],
            upload=io.UploadType.image,
            tooltip=f"The {what}, a file in ComfyUI's input folder.",
        ),
        *_about(what),
        io.Boolean.Input("required", default=True, tooltip="Off: the caller may leave it out."),
    ]


def _path(image: str | None, name: str, required: bool) -> Path | None:
    path = input_file(image) if image else None
    if path is None and required:
        raise ArtMancerError(
            "invalid_request", f"No picture was given for '{name}', which requires one. Send one."
        )
    return path


def _validate_picture(image: str | None, required: bool | None) -> bool | str:
    """ComfyUI asks with None for what is connected and not typed in."""
    if image in (None, "", NO_IMAGE):
        return (
            "no picture was given, and this input requires one. Send one."
            if required and image is not None
            else True
        )
    if input_file(str(image)) is None:
        return f"there is no '{image}' in the input folder. Upload it first."
    return True


def _fingerprint(image: str | None) -> tuple[str | None, int]:
    path = input_file(image) if image else None
    return (image, path.stat().st_mtime_ns if path else 0)


class EndpointImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ArtMancer_EndpointImage",
            display_name="Endpoint Image",
            category=CATEGORY,
            description="A picture that the endpoint's caller sends. "
            "In the editor it works like Load Image.",
            inputs=_picture("image"),
            outputs=[
                io.Image.Output(display_name="image", tooltip="Nothing, where it was left out.")
            ],
        )

    @classmethod
    def validate_inputs(cls, image: str | None, required: bool | None) -> bool | str:
        return _validate_picture(image, required)

    @classmethod
    def fingerprint_inputs(cls, image: str, **_: Any) -> tuple[str | None, int]:
        return _fingerprint(image)

    @classmethod
    def execute(cls, image: str, name: str, help: str, required: bool) -> io.NodeOutput:
        path = _path(image, name, required)
        return io.NodeOutput(images.load(path).image if path else None)


class EndpointMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ArtMancer_EndpointMask",
            display_name="Endpoint Mask",
            category=CATEGORY,
            description="A mask that the endpoint's caller sends as a picture, white = edit.",
            inputs=_picture("mask"),
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="Nothing, where it was left out.")
            ],
        )

    @classmethod
    def validate_inputs(cls, image: str | None, required: bool | None) -> bool | str:
        return _validate_picture(image, required)

    @classmethod
    def fingerprint_inputs(cls, image: str, **_: Any) -> tuple[str | None, int]:
        return _fingerprint(image)

    @classmethod
    def execute(cls, image: str, name: str, help: str, required: bool) -> io.NodeOutput:
        path = _path(image, name, required)
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
                    tooltip="The text, where the caller sends none.",
                ),
                *_about("text"),
                io.Int.Input(
                    "max_length",
                    default=4000,
                    min=1,
                    max=100_000,
                    tooltip="The most characters it may have.",
                ),
                io.Boolean.Input(
                    "required", default=False, tooltip="On: the caller has to send it."
                ),
            ],
            outputs=[io.String.Output(display_name="text", tooltip=SENT)],
        )

    @classmethod
    def validate_inputs(
        cls, value: str | None, max_length: int | None, required: bool | None
    ) -> bool | str:
        if required and value is not None and not value.strip():
            return "no text was given, and this input requires one. Send one."
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
                    tooltip="The number, where the caller sends none.",
                ),
                *_about("integer"),
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
            outputs=[io.Int.Output(display_name="integer", tooltip=SENT)],
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
                    min=-1e6,
                    max=1e6,
                    step=0.01,
                    tooltip="The number, where none is sent.",
                ),
                *_about("float"),
                io.Float.Input(
                    "minimum",
                    default=0.0,
                    min=-1e6,
                    max=1e6,
                    step=0.01,
                    tooltip="The smallest allowed.",
                ),
                io.Float.Input(
                    "maximum",
                    default=1.0,
                    min=-1e6,
                    max=1e6,
                    step=0.01,
                    tooltip="The largest allowed.",
                ),
            ],
            outputs=[io.Float.Output(display_name="float", tooltip=SENT)],
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
    if not all(isinstance(number, int | float) for number in (value, minimum, maximum)):
        return True  # connected, or of a type that ComfyUI itself refuses
    if minimum <= value <= maximum:
        return True
    return f"the value is {value}; expected {minimum} to {maximum}. Send one in that range."


class EndpointChoice(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ArtMancer_EndpointChoice",
            display_name="Endpoint Choice",
            category=CATEGORY,
            description="One of several words that the endpoint's caller sends. Connect it to any "
            "drop-down list.",
            inputs=[
                io.Combo.Input(
                    "value", options=[], tooltip="The choice, where the caller sends none."
                ),
                *_about("choice"),
                io.String.Input(
                    "choices", default="", multiline=True, tooltip="What may be chosen, one a line."
                ),
            ],
            outputs=[io.AnyType.Output(display_name="choice", tooltip=SENT)],
        )

    @classmethod
    def validate_inputs(cls, value: str | None, choices: str | None) -> bool | str:
        if value is None or choices is None or value in choices.splitlines():
            return True
        return (
            f"the value is '{value}'; expected one of: {', '.join(choices.splitlines())}. "
            "Send one of them."
        )

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
                io.Boolean.Input("value", default=False, tooltip="Where the caller sends none."),
                *_about("switch"),
            ],
            outputs=[io.Boolean.Output(display_name="switch", tooltip=SENT)],
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
            description="What the endpoint answers under this name: an image, a mask, a text or a "
            "number. Pictures are saved as PNG, without the graph in them.",
            inputs=[
                io.AnyType.Input(
                    "value", tooltip="An image, a mask, a text, a number, or a yes or no."
                ),
                *_about("result"),
                io.Boolean.Input(
                    "on_request",
                    default=False,
                    optional=True,
                    tooltip="On: answered only to a caller who asks for it. A graph run by hand "
                    "always gives it.",
                ),
                advanced(
                    io.Combo.Input(
                        "folder",
                        options=[OUTPUT, TEMP],
                        default=OUTPUT,
                        optional=True,
                        tooltip="Where pictures go. temp: ComfyUI's temporary folder, which it "
                        "empties when it starts.",
                    )
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str = OUTPUT, **_: Any) -> float:
        # Temporary files are removed while ComfyUI runs, and it would name one again that is gone.
        # A new NaN, and not math.nan, which is itself: always run.
        return float("nan") if folder == TEMP else 0.0

    @classmethod
    def execute(
        cls, value: Any, name: str, help: str, on_request: bool = False, folder: str = OUTPUT
    ) -> io.NodeOutput:
        if isinstance(value, Tensor) and value.ndim in (3, 4):
            save = save_result if folder == TEMP else save_output
            return io.NodeOutput(ui=ui.SavedImages([save(picture) for picture in value]))
        if isinstance(value, str | int | float | bool):
            return io.NodeOutput(ui={"text": (str(value),), "value": (value,)})
        raise ArtMancerError(
            "invalid_request",
            f"Endpoint Result '{name}' got a {type(value).__name__}; expected an image, a mask, a "
            "text or a number. Connect one of these.",
        )
