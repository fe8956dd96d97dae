"""The time for which a gateway that does not answer is tried again."""

import time

PATIENCE = 30.0
"""Seconds for which a gateway that does not answer, for example because it restarts, is tried
again.
"""

POLL_SECONDS = 0.3
"""Seconds between two requests for a job's status, and between two attempts."""


class NoAnswer(ConnectionError):
    """The gateway did not answer a request."""


class GatewayLost(NoAnswer):
    """The gateway did not answer any of the requests of a Patience."""


class Patience:
    """The attempts of one request. They end after PATIENCE seconds, or after one timeout where that
    is longer.

    Parameters
    ----------
    timeout : timeout of a request, in seconds
    task_id : the job that the request is about

    Attributes
    ----------
    timeout : timeout of the next attempt, in seconds
    """

    def __init__(self, timeout: float, task_id: str) -> None:
        self.timeout = timeout
        self._task_id = task_id
        self._start = time.monotonic()

    def check(self, error: NoAnswer) -> None:
        """Return if there is time for another attempt after this error.

        Raises
        ------
        GatewayLost : there is none
        """
        elapsed = time.monotonic() - self._start
        # An attempt with next to no timeout would fail for that reason alone.
        if elapsed + POLL_SECONDS >= PATIENCE:
            raise GatewayLost(
                f"{error} It was tried for {elapsed:.0f} seconds. The job may still run: once the "
                f"gateway answers, wait({self._task_id!r}) returns its result."
            ) from error
        # The last attempt must not add a whole timeout.
        self.timeout = min(self.timeout, PATIENCE - elapsed)
