"""A small disk, and a file that fills it."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

DISK_BYTES = 4 * 2**20
"""Size of the small disk."""


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a small disk in a folder for the time of the block."""
    folder.mkdir()
    if not remount(folder, f"size={DISK_BYTES}", new=True):
        pytest.skip("this user cannot mount a disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(disk: Path, options: str, *, new: bool = False) -> bool:
    """Mount a small disk with other options, such as "ro"; return whether that was possible."""
    options = options if new else f"remount,{options}"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextmanager
def read_only(folder: Path) -> Iterator[Callable[[], None]]:
    """Let the block make a folder read-only, also for root, and also while a file in it is open.
    It can be written again after the block.
    """

    def mount(*options: str) -> None:
        subprocess.run(["mount", *options, str(folder)], check=True)

    def make_read_only() -> None:
        mount("--bind", str(folder))
        # A mount is busy while a file in it is open for writing.
        for _ in range(100):
            with suppress(subprocess.CalledProcessError):
                return mount("-o", "remount,bind,ro")
            time.sleep(0.05)
        raise TimeoutError(f"{folder} stays busy")

    yield make_read_only
    subprocess.run(["umount", "-l", str(folder)], check=True)


class Filler:
    """A file that fills a disk.

    Parameters
    ----------
    folder : the disk
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "filler"

    def fill(self) -> None:
        """Fill the disk to its last byte."""
        with self.file.open("wb", buffering=0) as file:
            for size in (2**16, 1):
                try:
                    while file.write(b"x" * size):
                        pass
                except OSError:
                    pass

    def free(self) -> None:
        """Make room again."""
        self.file.unlink()
