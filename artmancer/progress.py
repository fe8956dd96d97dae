"""How long work tells its caller where it is, and how the caller stops it."""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called as progress(done, total, what is being done), several times a second; may raise, which cancels the work."""


def no_progress(done: int, total: int, doing: str) -> None:
    """The Progress of a caller who does not watch."""
