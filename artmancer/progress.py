"""How long work tells its caller where it is, and how the caller stops it."""

from typing import Protocol

from torch import Tensor


class Progress(Protocol):
    """Called several times a second; may raise, which cancels the work."""

    def __call__(self, done: int, total: int, stage: str, latents: Tensor | None = None) -> None:
        """Hear where the work is.

        Parameters
        ----------
        done, total : steps
        stage : what the work is at, for example "sampling"
        latents : [1, 16, h, w] on any device, of the picture as it stands, for a preview; None
            where there are none
        """
        ...


def no_progress(done: int, total: int, stage: str, latents: Tensor | None = None) -> None:
    """The Progress of a caller who does not watch."""
