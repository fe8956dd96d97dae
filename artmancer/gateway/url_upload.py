"""Send the result of an edit to the URL of its request."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ArtMancerError
from .fetch import Fetcher
from .jobs import UPLOAD_ERROR, UPLOADED, Job
from .results import in_format

_PAUSES = (0.0, 1.0, 5.0)
"""Seconds before each try."""


async def upload_result(
    fetcher: Fetcher, job: Job, stored: Path, is_over: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Send a job's image to the URL of its request.

    Parameters
    ----------
    stored : the image, a PNG file
    is_over : tells whether the job has ended meanwhile, so that no further try is made

    Returns
    -------
    Values among the job's results: whether the URL took the image, and the reason if it did not.
    Then the answer holds the image
    """
    error = ""
    for pause in _PAUSES:
        await asyncio.sleep(pause)
        try:
            path = await in_format(job, stored)
            content = await asyncio.to_thread(path.read_bytes)
            headers = {"Content-Type": f"image/{path.suffix[1:]}"}
            url = job.record.context["upload"]
            status = await fetcher.send("PUT", url, "upload_url", content, headers)
            error = "" if 200 <= status < 300 else f"The host answered with status {status}."
        except (ConnectionError, ArtMancerError) as failure:
            error = f"The image was not uploaded: {str(failure).rstrip('.')}."
        if not error or is_over():
            break
    return {UPLOADED: False, UPLOAD_ERROR: error} if error else {UPLOADED: True}
