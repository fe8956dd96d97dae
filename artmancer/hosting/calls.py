"""The one call that may run a job.

A gateway stores a job, spawns a call for it, and then stores which call it is. Each of these steps
may fail, or its answer may be lost, and the gateway may stop between them. A call runs its job only
where it is the stored one. A call that no gateway stores gives its job up, so that no GPU works for
a job that nobody knows, and no two calls run the same job.

    job:ID        the record of a job; stored first
    call:ID       id of the call that may run it, or GIVEN_UP; stored last, and never changed
    cancelled:ID  time at which the job was cancelled
"""

from ..errors import ArtMancerError
from .remote import Remote

GIVEN_UP = "given up"
"""Value instead of a call's id: no call may run the job."""

STORE_SECONDS = 30.0
"""Seconds that a gateway has to store a call. Then whoever needs it gives the job up."""


async def settle_call(remote: Remote, job_id: str, call: str) -> str:
    """Store which call may run a job, unless this is stored; return what is stored.

    Parameters
    ----------
    call : id of a call, or GIVEN_UP
    """
    key = f"call:{job_id}"
    if await remote.put_new(key, call):
        return call
    return str(await remote.get(key))


def job_not_started() -> ArtMancerError:
    """Make the error for a job that was given up."""
    return ArtMancerError(
        "generation_failed",
        "The job was given up before it started, because its gateway did not answer in time. Send "
        "it again.",
    )
