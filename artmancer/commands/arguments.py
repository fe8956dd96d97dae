"""Parsers and argument types for argparse, and output, shared by the commands."""

import argparse
import difflib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TypeAlias, TypeVar

Number = TypeVar("Number", int, float)
Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


class Parser(argparse.ArgumentParser):
    """A parser that refuses wrong usage in one sentence, without all of its options."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {sentence(message)} See `{self.prog} --help`.\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, not_a_choice(value, action.choices))


class CommandParser(Parser):
    """The parser of one command. It names the option that was probably meant."""

    def parse_known_args(  # type: ignore[override]  # the base class has overloads
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[Any, list[str]]:
        # Before argparse asks for required options, one of which may be the one that was meant.
        for argument in args or ():
            if argument == "--":
                break
            name = argument.partition("=")[0]
            # With a space it is a value, such as a prompt.
            if name.startswith("--") and " " not in name:
                self._check_option(name)
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unexpected argument '{unknown[0]}'")
        return options, unknown

    def _check_option(self, name: str) -> None:
        options = self._option_string_actions
        # argparse takes an unambiguous beginning of an option for the option.
        if not any(option.startswith(name) for option in options):
            self.error(f"there is no option {name}{_suggestion(name, options)}")


def not_a_choice(value: object, choices: Iterable[object]) -> str:
    """Return the message for a value that is none of the choices, without a full stop."""
    names = [str(choice) for choice in choices]
    return f"expected {', '.join(names)}, got '{value}'{_suggestion(str(value), names)}"


def sentence(message: str) -> str:
    """Return a message with the full stop that it may lack."""
    return message if message.endswith((".", "?")) else f"{message}."


def _suggestion(word: str, known: Iterable[str]) -> str:
    similar = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {similar[0]}?" if similar else ""


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
