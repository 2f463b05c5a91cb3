"""A pydantic model as the flags of a command."""

import argparse
import types
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from nightjar.errors import BadOptions


def add_options(parser: argparse.ArgumentParser, options: type[BaseModel], only: Sequence[str] = ()) -> None:
    """Give a parser one flag per field of a pydantic model, or per field in `only`: its name, type, choices, default.

    A field called `files` is not a flag: it is what the command takes.
    """
    parser.set_defaults(called=parser.prog)
    for name in only or options.model_fields:
        field = options.model_fields[name]
        inner, many = _plain_type(field.annotation)
        choices = typing.get_args(inner) if typing.get_origin(inner) is typing.Literal else None
        shown = "" if field.is_required() or field.default in (None, ()) else f" (default: {field.default})"
        described = f"{field.description}{shown}".replace("%", "%%")
        if name == "files":
            nargs = "+" if field.is_required() else "*"
            parser.add_argument(name, type=inner, nargs=nargs, metavar="FILE", help=described)
            continue
        if inner is bool:
            switch = argparse.BooleanOptionalAction
            parser.add_argument(
                f"--{name.replace('_', '-')}", dest=name, default=argparse.SUPPRESS, action=switch, help=described
            )
            continue
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            default=argparse.SUPPRESS,
            required=field.is_required(),
            type=str if choices else inner,
            choices=choices,
            nargs="+" if many else None,
            metavar=None if choices and not many else name.rpartition("_")[2].upper(),
            help=described,
        )


def parse_options(arguments: argparse.Namespace, options: type[BaseModel]) -> Any:
    """Make the pydantic model of what was given; raises BadOptions with the flag at fault."""
    given = {name: getattr(arguments, name) for name in options.model_fields if hasattr(arguments, name)}
    try:
        return options(**given)
    except ValidationError as error:
        first = error.errors()[0]
        flag = "--" + str(first["loc"][0]).replace("_", "-")
        raise BadOptions(f"{flag} {first['input']}: {first['msg']}; see `{arguments.called} --help`") from error


def _plain_type(annotation: Any) -> tuple[Any, bool]:
    """Strip `| None` and `tuple[…, ...]` off a field's type; the second value says that it takes many."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        annotation = next(each for each in typing.get_args(annotation) if each is not type(None))
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True
    return annotation, False
