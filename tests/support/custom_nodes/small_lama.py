"""Make spandrel build small LaMas in this ComfyUI; see tests/support/tiny_lama.py."""

import functools
import sys

from spandrel.architectures.LaMa import LaMa

WIDTH, BLOCKS = 4, 2

module = sys.modules[LaMa.__module__]
module.FFCResNetGenerator = functools.partial(module.FFCResNetGenerator, ngf=WIDTH, n_blocks=BLOCKS)

NODE_CLASS_MAPPINGS: dict[str, type] = {}
