"""What commands are made of: flags from a request's fields, one row per command that runs a flow, JSON output.

Each group of commands is a module with `add(commands)`. What imports slowly (flows, pandas, ssh) is imported when a
command runs.
"""

import argparse
import json
import pkgutil
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from nightjar.cli.console import Screen, show_plan
from nightjar.errors import BadOptions

EXIT_CODES = """exit codes: 0 pass; 1 fail or undecided; 2 bad input; 3 a toolchain, board or server is missing;
4 a tool or board failed (can be run again); 130 interrupted"""

Command = Callable[[argparse.Namespace], int | None]  # the exit code, None for 0


class FlowCommand(NamedTuple):
    """A command that runs one flow on one request and prints its results."""

    name: str
    help: str
    request: type[BaseModel]
    flow: str  # module:name, imported when the title is on the screen: Prefect takes a second
    title: Callable[[Any], str]
    show: Callable[[Screen, dict[str, Any]], None]
    exit_code: Callable[[dict[str, Any]], int] = lambda results: 0


def add_group(commands: Any, name: str, description: str) -> Any:
    """Add a command that has commands of its own; return what takes those."""
    group = commands.add_parser(name, help=description)
    return group.add_subparsers(title="commands", required=True, metavar="COMMAND")


def add_command(commands: Any, name: str, description: str, command: Command) -> argparse.ArgumentParser:
    """Add a command and return its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=description, epilog=EXIT_CODES)
    parser.set_defaults(command=command)
    return parser


def add_flow(commands: Any, row: FlowCommand, command: Command | None = None) -> argparse.ArgumentParser:
    """Add a command of a row; `command` runs it in place of run_flow_command."""
    command = command or (lambda arguments: run_flow_command(row, arguments))
    parser = add_command(commands, row.name, row.help, command)
    add_options(parser, row.request)
    add_json(parser)
    return parser


def run_flow_command(row: FlowCommand, arguments: argparse.Namespace) -> int:
    """Run the flow of a command, or with --plan print what would run; return the exit code."""
    request = parse_options(arguments, row.request)
    screen = Screen(stderr=getattr(request, "format", None) is not None)
    screen.say(f"[bold]{row.name}[/bold] {row.title(request)}")
    flow = pkgutil.resolve_name(row.flow)
    from flows.start import run_flow

    plan = getattr(arguments, "plan", False)
    results, run = run_flow(flow, request, screen, plan=plan)
    if plan:
        from flows.prepare import expected_sizes

        show_plan(screen, run.outcomes, expected_sizes(request))
        return 0
    row.show(screen, results)
    write_json(arguments, results)
    return row.exit_code(results)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Let a command write its results to a file too."""
    parser.add_argument("--json", type=Path, metavar="F", help="also write the results to this file")


def write_json(arguments: argparse.Namespace, results: Any) -> None:
    """Write the results where --json says."""
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def add_options(parser: argparse.ArgumentParser, options: type[BaseModel]) -> None:
    """Give a parser one flag per field of a pydantic model: its name, type, choices, default.

    A field called `files` becomes the positional arguments.
    """
    parser.set_defaults(called=parser.prog)
    for name, field in options.model_fields.items():
        inner, many = _plain_type(field.annotation)
        choices = typing.get_args(inner) if typing.get_origin(inner) is typing.Literal else None
        required = field.is_required()
        default = "" if required or field.default in (None, ()) else f" (default: {field.default})"
        settings: dict[str, Any] = {"help": f"{field.description}{default}".replace("%", "%%")}
        if name == "files":
            parser.add_argument(name, type=inner, nargs="+" if required else "*", metavar="FILE", **settings)
            continue
        if inner is bool:
            settings["action"] = argparse.BooleanOptionalAction
        else:
            settings |= {"type": str if choices else inner, "choices": choices, "nargs": "+" if many else None}
            settings["metavar"] = None if choices and not many else name.rpartition("_")[2].upper()
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, default=argparse.SUPPRESS, required=required, **settings)


def parse_options(arguments: argparse.Namespace, options: type[BaseModel]) -> Any:
    """Make the pydantic model of the given flags; raises BadOptions with the wrong flag."""
    given = {name: getattr(arguments, name) for name in options.model_fields if hasattr(arguments, name)}
    try:
        return options(**given)
    except ValidationError as error:
        first = error.errors()[0]
        flag = "--" + str(first["loc"][0]).replace("_", "-")
        raise BadOptions(f"{flag} {first['input']}: {first['msg']}; see `{arguments.called} --help`") from error


def _plain_type(annotation: Any) -> tuple[Any, bool]:
    """Strip `| None` and `tuple[…, ...]` off a field's type; the second value tells whether it takes many."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        annotation = next(each for each in typing.get_args(annotation) if each is not type(None))
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True
    return annotation, False
