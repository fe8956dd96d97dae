"""The command `artmancer`: parses the arguments and runs one of artmancer.commands.

Exit codes: 0 done, 1 refused or failed (one sentence says why), 2 wrong usage, 130 interrupted.
"""

import argparse
import json
import logging
import sys

from . import __version__
from .commands import batch, doctor, edit, models, serve
from .commands.arguments import CommandParser, Parser
from .errors import ArtMancerError


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code; `arguments` default to the process's own."""
    return run(make_parser().parse_args(arguments))


def run(options: argparse.Namespace) -> int:
    """Run the command of parsed arguments and return its exit code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        code: int = options.run(options)
    except ArtMancerError as error:
        if options.json:
            sys.stdout.write(json.dumps({"detail": str(error), "error_type": error.code}) + "\n")
        else:
            sys.stderr.write(f"artmancer: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("artmancer: interrupted; nothing was written.\n")
        return 130
    return code


def make_parser() -> argparse.ArgumentParser:
    """Make the argument parser with all commands."""
    parser = Parser(
        prog="artmancer",
        description="Insert an object into a photo, remove one, or correct the white balance; "
        "every other pixel stays as it is.",
        epilog="Exit codes: 0 done, 1 refused or failed (one sentence says why), 2 wrong usage, "
        "130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"artmancer {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=CommandParser)
    for command in (edit, batch, models, serve, doctor):
        command.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
