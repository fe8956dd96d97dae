"""PatchMatch in a process of its own: a native fill cannot be interrupted, a process can be killed.

A script, not a module of the package: it reads an npz file (image, hole, far, seed, radius) from
standard input, and writes the filled image as npy to standard output.
"""

import io
import sys

import numpy as np


def main() -> None:
    import patchmatch

    given = np.load(io.BytesIO(sys.stdin.buffer.read()))
    patchmatch.set_random_seed(int(given["seed"]))
    filled = patchmatch.inpaint(
        given["image"], given["hole"], global_mask=given["far"], patch_size=int(given["radius"])
    )
    np.save(sys.stdout.buffer, filled)


if __name__ == "__main__":
    main()
