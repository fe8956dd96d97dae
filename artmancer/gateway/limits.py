"""Limits on accepted jobs, the same on this machine and on Modal."""

from ..errors import ArtMancerError
from .jobs import Claim
from .settings import Settings

RETRY_AFTER = 10
"""Seconds until a client that was refused may try again."""


def check_queue(waiting: int, from_client: int, settings: Settings) -> None:
    """Refuse a job where too many are unfinished.

    Parameters
    ----------
    waiting : unfinished jobs of the lane
    from_client : those of them that the same client sent

    Raises
    ------
    ArtMancerError : queue_full
    """
    if waiting >= settings.max_waiting:
        raise ArtMancerError(
            "queue_full", f"{waiting} jobs are waiting. Try again in {RETRY_AFTER} s."
        )
    if from_client >= settings.max_per_client:
        raise ArtMancerError(
            "queue_full",
            f"{settings.max_per_client} of your jobs are waiting. Try again in {RETRY_AFTER} s.",
        )


def check_claim(claim: Claim, fingerprint: str) -> None:
    """Refuse a request whose Idempotency-Key came before with another one.

    Parameters
    ----------
    fingerprint : of the earlier request

    Raises
    ------
    ArtMancerError : idempotency_conflict
    """
    if claim.fingerprint != fingerprint:
        raise ArtMancerError(
            "idempotency_conflict",
            "This Idempotency-Key was sent before with another path or body. Send a new key with "
            "each new request.",
        )


def check_new_id(is_used: bool) -> None:
    """Refuse a job id that was used before.

    Raises
    ------
    ArtMancerError : invalid_request
    """
    if is_used:
        raise ArtMancerError(
            "invalid_request", "The request_id was used before; expected a new UUID."
        )
