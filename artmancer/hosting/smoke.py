"""A first look at a deployment, with Python alone."""

import base64
import json
import struct
import time
import urllib.error
import urllib.request
import zlib
from typing import Any

_SIDE = 256
_PATIENCE = 900.0


def smoke(url: str, token: str | None) -> tuple[list[str], bool]:
    """Ask for life, health and an edit; what came, for a person, and whether all is well."""
    lines: list[str] = []
    try:
        for path in ("/ping", "/api/health"):
            start = time.monotonic()
            said = _ask(url, path, token)
            lines.append(f"{path}: {said['status']} after {time.monotonic() - start:.1f} s")
            if said.get("reason"):
                lines.append(f"  {said['reason']}")
        start = time.monotonic()
        body = {
            "prompt": "correct the white balance",
            "input_image": _picture(),
            "task_type": "white-balance",
        }
        task = _ask(url, "/api/generate/async", token, body)["task_id"]
        while (said := _ask(url, f"/api/generate/status/{task}", token))["status"] not in (
            "done",
            "error",
            "cancelled",
        ):
            if time.monotonic() - start > _PATIENCE:
                return [*lines, f"an edit: still {said['status']} after {_PATIENCE:g} s"], False
            time.sleep(1)
        if said["status"] != "done":
            return [*lines, f"an edit: {said['status']}: {said['error']}"], False
        result = _ask(url, f"/api/generate/result/{task}", token)
        lines.append(
            f"an edit by {result['model_used']}: done after {time.monotonic() - start:.1f} s, "
            "all in all"
        )
    except urllib.error.HTTPError as error:
        return [*lines, f"{error.code}: {error.read().decode(errors='replace')[:300]}"], False
    except OSError as error:
        return [
            *lines,
            f"{url} does not answer ({error}). Is it deployed? `modal app list` tells.",
        ], False
    return lines, True


def _ask(url: str, path: str, token: str | None, body: Any = None) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url.rstrip("/") + path, data, headers)
    with urllib.request.urlopen(request, timeout=150) as answer:
        said: dict[str, Any] = json.load(answer)
    return said


def _picture() -> str:
    """A reddish gradient, PNG, base64."""
    rows = b"".join(
        b"\0"
        + bytes(
            value
            for x in range(_SIDE)
            for value in (min(255, 80 + (x + y) // 4), (x + y) // 4, y // 4)
        )
        for y in range(_SIDE)
    )
    header = struct.pack(">IIBBBBB", _SIDE, _SIDE, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode()
