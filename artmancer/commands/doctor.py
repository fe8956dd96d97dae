"""`artmancer doctor`: list what is installed and which editors run here."""

import argparse
import json

from ..doctor import examine
from .arguments import Subparsers, write_line


def add_parser(commands: Subparsers) -> None:
    """Add `artmancer doctor` to the parser."""
    parser = commands.add_parser(
        "doctor",
        help="list what is installed, which editors run here, and how to get what is missing",
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Print the findings. Return 1 where something that is always needed is missing."""
    findings = examine()
    if options.json:
        write_line(json.dumps([finding.as_dict() for finding in findings]))
    else:
        for finding in findings:
            advice = f"\n{'':34}{finding.advice}" if finding.advice else ""
            write_line(f"{finding.status:<10}{finding.name:<24}{finding.found}{advice}")
    return 1 if any(finding.status == "missing" for finding in findings) else 0
