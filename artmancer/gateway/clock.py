"""A clock that nobody sets, for all times that are stored and compared."""

import time


class SteadyClock:
    """Seconds since the epoch as of the start, and from then on as many as have passed.

    The wall clock jumps when somebody sets it, and when a laptop has slept. Durations and ages that
    are computed from this clock do not.
    """

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        """Return the time, in seconds since the epoch."""
        return self._offset + time.monotonic()
