"""What the pack answers over HTTP, beside ComfyUI's own routes:
its state, and a tidying up for the gateway.
"""

import asyncio
import math
import time
from contextlib import suppress
from typing import Any

from aiohttp import web

from .. import artmancer
from ..artmancer import matting
from ..artmancer.qwen import checkpoints
from ..artmancer.variants import VARIANTS
from .comfy_host.files import temp_files
from .comfy_host.folders import bases, find_checkpoint, rembg_folders, segmenters
from .comfy_host.memory import device, is_base_loaded
from .comfy_host.server import routes


@routes.get("/artmancer/status")
async def status(_: web.Request) -> web.Response:
    """What lies in the folders, by name, and whether a base is in memory.
    Nothing is loaded for it.
    """
    device_type, device_name = device()
    return web.json_response(
        {
            "version": artmancer.__version__,
            "bases": list(bases()),
            "checkpoints": {variant: _checkpoint(variant) for variant in VARIANTS},
            "expected": {variant: checkpoints.expected(variant) for variant in VARIANTS},
            "segmenters": list(segmenters()),
            "rembg": matting.found(rembg_folders()),
            "model_loaded": is_base_loaded(),
            "device": device_type,
            "device_name": device_name,
        }
    )


@routes.post("/artmancer/tidy")
async def tidy(request: web.Request) -> web.Response:
    """Remove the pack's temporary files that are older than max_age, then the oldest until
    max_bytes are left.

    JSON: {"max_age": seconds, "max_bytes": int, "keep": [names of files that stay]}. Other folders
    of ComfyUI's than its temporary one are not looked at.
    """
    try:
        asked = _read(await request.json() if request.content_type == "application/json" else None)
    except (ValueError, RecursionError) as error:  # of the JSON, or of what it says
        return web.json_response({"error": str(error)}, status=400)
    files, size = await asyncio.to_thread(_tidy, *asked)
    return web.json_response({"files": files, "bytes": size})


def _checkpoint(variant: str) -> str | None:
    path = find_checkpoint(variant)
    return path.name if path and path.is_file() else None


def _read(body: Any) -> tuple[float, int, set[str]]:
    """max_age, max_bytes and keep.

    Raises
    ------
    ValueError : one of them is missing or of a wrong type
    """
    if not isinstance(body, dict):
        raise ValueError(
            "The body is no JSON object; expected max_age, max_bytes and keep. "
            "Send application/json."
        )
    age, size, keep = body.get("max_age"), body.get("max_bytes"), body.get("keep")
    if isinstance(age, bool) or not isinstance(age, int | float) or not 0 <= age < math.inf:
        raise ValueError(f"max_age is {age!r:.80}; expected seconds, 0 or more. Send a number.")
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise ValueError(
            f"max_bytes is {size!r:.80}; expected bytes, 0 or more. Send a whole number."
        )
    if not isinstance(keep, list) or not all(isinstance(name, str) for name in keep):
        raise ValueError(
            f"keep is {keep!r:.80}; expected names of files. Send a list, which may be empty."
        )
    return age, size, set(keep)


def _tidy(max_age: float, max_bytes: int, keep: set[str]) -> tuple[int, int]:
    """How many files were removed, and their bytes."""
    found = sorted(temp_files(), key=lambda one: one[1].st_mtime)
    total, files, removed = sum(stat.st_size for _, stat in found), 0, 0
    oldest = time.time() - max_age
    for path, stat in found:
        if path.name in keep or (stat.st_mtime >= oldest and total - removed <= max_bytes):
            continue
        with suppress(OSError):  # somebody has it open, or it is gone already
            path.unlink()
            files, removed = files + 1, removed + stat.st_size
    return files, removed
