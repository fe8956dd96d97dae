"""PatchMatch in a process of its own: a native fill cannot be interrupted, a process can be killed.

    python patchmatch_process.py INPUT OUTPUT

A script, not a module of the package. INPUT is an npz file (image, hole, far, seed, radius), OUTPUT
the npy file of the filled image. Standard input is a pipe that the parent process holds open: when
it closes, because the parent was interrupted or killed at whatever moment, this process ends.
"""

import os
import sys
import threading

import numpy as np


def main(source: str, target: str) -> None:
    """Fill the hole of INPUT and write OUTPUT."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    import patchmatch

    with np.load(source) as arrays:
        patchmatch.set_random_seed(int(arrays["seed"]))
        filled = patchmatch.inpaint(
            arrays["image"],
            arrays["hole"],
            global_mask=arrays["far"],
            patch_size=int(arrays["radius"]),
        )
    np.save(target, filled)


def _exit_with_parent() -> None:
    # Without sys.stdin, whose lock would be held when the interpreter shuts down.
    os.read(0, 1)  # returns when the pipe is closed
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
