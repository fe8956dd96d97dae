"""Progress callbacks for long-running work. Raising in one cancels the work."""

from typing import Protocol

from torch import Tensor


class Progress(Protocol):
    """A callback that receives the progress of the work, several times a second. An exception that
    it raises cancels the work.
    """

    def __call__(self, done: int, total: int, stage: str, latents: Tensor | None = None) -> None:
        """Receive the progress.

        Parameters
        ----------
        done : steps that are done
        total : steps in all
        stage : the current stage, for example "sampling"
        latents : [1, 16, h, w], of FLUX.2 [1, 128, h, w], on any device, the latents of the
            unfinished image, for a preview; None where the stage has no latents
        """
        ...


def no_progress(done: int, total: int, stage: str, latents: Tensor | None = None) -> None:
    """Ignore the progress."""


def part_progress(progress: Progress, index: int, count: int) -> Progress:
    """Return a progress of one of `count` parts, on one scale over all."""
    if count == 1:
        return progress

    def update(done: int, total: int, stage: str, latents: Tensor | None = None) -> None:
        stage = f"{stage} ({index + 1} of {count})"
        progress(index * total + done, count * total, stage, latents)

    return update
