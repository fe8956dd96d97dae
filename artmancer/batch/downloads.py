"""Images that a list names by URL."""

import http.client
import urllib.request
from pathlib import Path

from ..errors import ArtMancerError
from ..images import MAX_BYTES

TIMEOUT = 30.0
"""Longest silence of a server, in seconds."""


def download(url: str, path: Path) -> None:
    """Write what a URL of http or https gives to a file; see photos.is_url.

    Raises
    ------
    ArtMancerError : download_failed, image_too_large
    """
    request = urllib.request.Request(url, headers={"User-Agent": "artmancer"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            # One byte more than allowed tells that there is more.
            data = answer.read(MAX_BYTES + 1)
    # ValueError: no valid URL.
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ArtMancerError(
            "download_failed", f"'{url}' cannot be downloaded ({reason}). Check the URL."
        ) from None
    if len(data) > MAX_BYTES:
        raise ArtMancerError(
            "image_too_large",
            f"'{url}' has more than {MAX_BYTES // 2**20} MB. Name a smaller image.",
        )
    path.write_bytes(data)
