"""Run the command `artmancer` as `python -m artmancer`."""

import sys

from .cli import main

sys.exit(main())
