"""Hostile URLs for images, one a row: the answer, and the connections that reached their aim.

The addresses that the gateway connects to are answered by two sites of this process: one at the
public address of the listed host, which is hostile itself, and one at every other address, which
no request may reach.

Usage: python benchmarks/fetch.py [--json]
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from report import Row, finish, machine
from support.hostile_urls import HOSTILE, outcome
from support.site import Site


def main() -> int:
    """Print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    public, private = Site(), Site()
    lines, expected, slowest = [], 0, 0.0
    for hostile in HOSTILE:
        before, start = private.connections, time.perf_counter()
        code = outcome(hostile, public, private)
        slowest = max(slowest, time.perf_counter() - start)
        expected += code == hostile.code
        lines.append(f"{hostile.name:60}  {code:16}  {private.connections - before:>7}")
    rows = [
        Row("hostile URLs, at least", len(HOSTILE), "", 30),
        Row("connections that reached their aim", private.connections, "", 0),
        Row("answered as expected, at least", expected, "", len(HOSTILE)),
        Row("slowest answer, with a timeout of 1 s", slowest, "s", 2),
    ]
    if not arguments.json:
        sys.stdout.write(f"{machine()}\n\n{'':60}  {'answer':16}  reached\n")
        sys.stdout.write("\n".join(lines) + "\n\n")
    return finish(rows, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
