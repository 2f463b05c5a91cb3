"""The commands, one module per group; each has `add(commands)`. They import what they need when they are called."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nightjar.cli.flags import add_options

EXIT_CODES = """exit codes: 0 pass; 1 fail or undecided; 2 bad input; 3 a toolchain, board or server is missing;
4 a tool or board broke on the way (can be run again); 130 interrupted"""

Command = Callable[[argparse.Namespace], int]


def add_group(commands: Any, name: str, said: str) -> Any:
    """Add a command that has commands of its own; return what takes those."""
    return commands.add_parser(name, help=said).add_subparsers(title="commands", required=True, metavar="COMMAND")


def add_request(commands: Any, name: str, said: str, request: type[Any], command: Command) -> argparse.ArgumentParser:
    """Add a command whose flags are a request's."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=said, epilog=EXIT_CODES)
    add_options(parser, request, getattr(request, "FLAGS", ()))
    add_json(parser, command)
    return parser


def add_json(parser: argparse.ArgumentParser, command: Command) -> None:
    """Let a command write its results to a file too."""
    parser.add_argument("--json", type=Path, metavar="F", help="write the results here too")
    parser.set_defaults(command=command)


def write_json(arguments: argparse.Namespace, results: Any) -> None:
    """Write the results where --json says."""
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def show_findings(findings: Sequence[Any]) -> int:
    """Print what was looked at; return the exit code."""
    from nightjar.cli.console import show_doctor

    show_doctor(findings)
    return 3 if any(finding.outcome == "missing" for finding in findings) else 0
