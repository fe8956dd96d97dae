"""`artmancer serve`: serve the workflows as HTTP endpoints."""

import argparse
from pathlib import Path

from ..errors import ArtMancerError
from .arguments import Subparsers

_SETTINGS = ("host", "port", "comfyui_url", "comfyui_light_url")
"""Options that override the settings of the same names."""


def add_parser(commands: Subparsers) -> None:
    """Add `artmancer serve` to the parser."""
    parser = commands.add_parser(
        "serve",
        help="serve the workflows as HTTP endpoints",
        description="Serve the workflows as HTTP endpoints, in front of a ComfyUI that has the "
        "pack. All other settings come from the environment or from .env; see docs/api.md.",
    )
    parser.set_defaults(run=run, json=False)
    parser.add_argument("--host", help="address to listen on (default: $HOST, or 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (default: $PORT, or 8003)")
    parser.add_argument(
        "--comfyui-url",
        help="URL of the ComfyUI (default: $COMFYUI_URL, or http://127.0.0.1:8188)",
    )
    parser.add_argument(
        "--comfyui-light-url",
        help="URL of a ComfyUI for masks and tools (default: $COMFYUI_LIGHT_URL, or the same)",
    )
    parser.add_argument(
        "--with-comfyui",
        action="store_true",
        help="start a ComfyUI from $COMFYUI_PATH, and a second one for masks and tools where "
        "--comfyui-light-url names another address of this machine; restart them when they exit",
    )
    parser.add_argument(
        "--comfyui-base", type=Path, help="with --with-comfyui: ComfyUI's --base-directory"
    )
    parser.add_argument(
        "--cpu", action="store_true", help="with --with-comfyui: run edits on the CPU too"
    )
    parser.add_argument(
        "--light-on-gpu",
        action="store_true",
        help="with --with-comfyui: let the second ComfyUI use the GPU too",
    )


def run(options: argparse.Namespace) -> int:
    """Serve until interrupted."""
    try:
        from pydantic import ValidationError

        from ..gateway.serve import serve
        from ..gateway.settings import Settings
    except ModuleNotFoundError as error:
        raise ArtMancerError(
            "generation_failed",
            f"The gateway needs {error.name}. Install it with: "
            "pip install -e '.[gateway]' in ArtMancer's folder.",
        ) from None
    overrides = {name: getattr(options, name) for name in _SETTINGS}
    try:
        settings = Settings(
            **{name: value for name, value in overrides.items() if value is not None}
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ArtMancerError(
            "invalid_request",
            f"The setting {first['loc'][0]} is {first['input']!r}: {first['msg']}.",
        ) from None
    serve(
        settings,
        with_comfyui=options.with_comfyui,
        base=options.comfyui_base,
        cpu=options.cpu,
        light_on_gpu=options.light_on_gpu,
    )
    return 0
