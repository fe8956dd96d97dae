"""Argument types for argparse, and output, shared by the commands."""

import argparse
import sys
from collections.abc import Callable
from typing import TypeAlias, TypeVar

Number = TypeVar("Number", int, float)
Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def whole_number(lowest: int, highest: int) -> Callable[[str], int]:
    """Make an argparse type for a whole number in a range."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number, got '{text}'") from None
        return _in_range(value, lowest, highest)

    return parse


def number(lowest: float, highest: float) -> Callable[[str], float]:
    """Make an argparse type for a number in a range. NaN is in no range."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a number, got '{text}'") from None
        return _in_range(value, lowest, highest)

    return parse


def write_line(line: str) -> None:
    """Write a line to standard output."""
    sys.stdout.write(line + "\n")


def _in_range(value: Number, lowest: Number, highest: Number) -> Number:
    if not lowest <= value <= highest:
        raise argparse.ArgumentTypeError(f"expected {lowest} to {highest}, got {value}")
    return value
