"""Smoke test of a deployment: health, then one edit.

Standard library only: `modal run` uses it on the deployer's machine, from a checkout.
"""

import base64
import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

_PHOTO = Path(__file__).parents[2] / "workflows" / "examples" / "chelsea.png"
"""Photo that is edited."""

_EDIT_TIMEOUT = 900.0
"""Longest wait for the edit in seconds, including the start of a worker."""

_REQUEST_TIMEOUT = 150.0
"""Timeout of a request in seconds: Modal ends a web request after 150 s."""

_POLL_SECONDS = 1.0
"""Seconds between two requests for the edit's status."""

_ENDED = ("done", "error", "cancelled")
"""States of a job that has ended."""


def smoke(url: str, token: str | None) -> tuple[list[str], bool]:
    """Request /ping, the health and a white-balance edit from a deployment.

    Parameters
    ----------
    url : address of the gateway for edits
    token : its API token; None: send none

    Returns
    -------
    lines of text for a person, and whether everything worked
    """
    photo = base64.b64encode(_PHOTO.read_bytes()).decode()
    lines: list[str] = []
    try:
        for path in ("/ping", "/api/health"):
            lines += _check_health(url, path, token)
        line, success = _check_edit(url, token, photo)
        lines.append(line)
    except urllib.error.HTTPError as error:
        body = error.read().decode(errors="replace")[:300]
        return [*lines, f"The deployment answered {error.code}: {body}"], False
    except OSError as error:
        message = f"{url} does not answer ({error}). `modal app list` shows whether it is deployed."
        return [*lines, message], False
    return lines, success


def _check_health(url: str, path: str, token: str | None) -> list[str]:
    start = time.monotonic()
    health = _request(url, path, token)
    lines = [f"{path}: {health['status']} after {time.monotonic() - start:.1f} s"]
    if health.get("reason"):
        lines.append(f"  {health['reason']}")
    return lines


def _check_edit(url: str, token: str | None, photo: str) -> tuple[str, bool]:
    """Edit a photo; return a line of text, and whether it worked."""
    start = time.monotonic()
    body = {
        "prompt": "correct the white balance",
        "input_image": photo,
        "task_type": "white-balance",
    }
    job_id = _request(url, "/api/generate/async", token, body)["task_id"]
    while True:
        status = _request(url, f"/api/generate/status/{job_id}", token)
        state = status["status"]
        if state in _ENDED:
            break
        if time.monotonic() - start > _EDIT_TIMEOUT:
            message = f"edit: still {state} after {_EDIT_TIMEOUT:g} s"
            return f"{message}. See `modal app logs artmancer`.", False
        time.sleep(_POLL_SECONDS)
    if state != "done":
        return f"edit: {state}: {status['error']}", False
    result = _request(url, f"/api/generate/result/{job_id}", token)
    seconds = time.monotonic() - start
    return f"edit: done by {result['model_used']} after {seconds:.1f} s", True


def _request(url: str, path: str, token: str | None, body: Any = None) -> dict[str, Any]:
    """Send a GET, or a POST where there is a body; return the answer's JSON."""
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url.rstrip("/") + path, data, headers)
    with urllib.request.urlopen(request, timeout=_REQUEST_TIMEOUT) as response:
        answer: dict[str, Any] = json.load(response)
    return answer
