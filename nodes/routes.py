"""HTTP routes that the pack adds to ComfyUI: its status, and cleanup of temporary files for the
gateway.
"""

import asyncio
import math
import time
from contextlib import suppress
from typing import Any

from aiohttp import web

from .. import artmancer
from ..artmancer import matting
from ..artmancer.options import EDITORS
from ..artmancer.qwen import checkpoints
from ..artmancer.variants import VARIANTS
from .comfy_host.files import temp_files
from .comfy_host.folders import (
    bases,
    find_checkpoint,
    lama_file,
    rembg_folders,
    segmenters,
    set_problems,
)
from .comfy_host.memory import device, is_base_loaded
from .comfy_host.server import routes


@routes.get("/artmancer/status")
async def status(_: web.Request) -> web.Response:
    """Return the names of the installed models, and whether a base is in memory. Loads no model."""
    device_type, device_name = device()
    sets = set_problems()
    return web.json_response(
        {
            "version": artmancer.__version__,
            "editors": [*EDITORS, *sets],
            "model_sets": [
                {"name": name, "complete": not problem, "reason": problem or None}
                for name, problem in sets.items()
            ],
            "lama": lama_file() is not None,
            "bases": list(bases()),
            "checkpoints": {variant: _checkpoint(variant) for variant in VARIANTS},
            "expected": {variant: checkpoints.expected(variant) for variant in VARIANTS},
            "segmenters": list(segmenters()),
            "rembg": matting.installed(rembg_folders()),
            "model_loaded": is_base_loaded(),
            "device": device_type,
            "device_name": device_name,
        }
    )


@routes.post("/artmancer/tidy")
async def tidy(request: web.Request) -> web.Response:
    """Delete the pack's temporary files that are older than max_age, then the oldest until at most
    max_bytes are left.

    The body is JSON: {"max_age": seconds, "max_bytes": int, "keep": [names of files to keep]}.
    Only ComfyUI's temporary folder is touched.
    """
    try:
        body = await request.json() if request.content_type == "application/json" else None
        limits = _read_limits(body)
    # The body is not JSON, is nested too deeply, or has wrong values.
    except (ValueError, RecursionError) as error:
        return web.json_response({"error": str(error)}, status=400)
    files, size = await asyncio.to_thread(_delete_files, *limits)
    return web.json_response({"files": files, "bytes": size})


def _checkpoint(variant: str) -> str | None:
    path = find_checkpoint(variant)
    return path.name if path and path.is_file() else None


def _read_limits(body: Any) -> tuple[float, int, set[str]]:
    """Return max_age, max_bytes and keep.

    Raises
    ------
    ValueError : a value is missing or has a wrong type
    """
    if not isinstance(body, dict):
        raise ValueError(
            "The body is not a JSON object; expected max_age, max_bytes and keep, sent as "
            "application/json."
        )
    age, size, keep = body.get("max_age"), body.get("max_bytes"), body.get("keep")
    if isinstance(age, bool) or not isinstance(age, int | float) or not 0 <= age < math.inf:
        raise ValueError(f"max_age is {age!r:.80}; expected seconds: a number, 0 or more.")
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise ValueError(f"max_bytes is {size!r:.80}; expected bytes: a whole number, 0 or more.")
    if not isinstance(keep, list) or not all(isinstance(name, str) for name in keep):
        raise ValueError(
            f"keep is {keep!r:.80}; expected names of files: a list, which may be empty."
        )
    return age, size, set(keep)


def _delete_files(max_age: float, max_bytes: int, keep: set[str]) -> tuple[int, int]:
    """Delete old temporary files, and return their number and their bytes."""
    files = sorted(temp_files(), key=lambda file: file[1].st_mtime)
    total = sum(stat.st_size for _, stat in files)
    oldest = time.time() - max_age
    deleted = 0
    deleted_bytes = 0
    for path, stat in files:
        if path.name in keep:
            continue
        if stat.st_mtime >= oldest and total - deleted_bytes <= max_bytes:
            continue
        # Another program may have the file open, or may have deleted it.
        with suppress(OSError):
            path.unlink()
            deleted += 1
            deleted_bytes += stat.st_size
    return deleted, deleted_bytes
