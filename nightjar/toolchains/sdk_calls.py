"""Calls of an SDK whose versions differ; runs inside a vendor's environment: standard library only, Python 3.10."""

import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def supports(function: Callable[..., Any], argument: str) -> bool:
    """Return whether a function has an argument, takes any keyword, or is compiled and does not declare its own."""
    try:
        known = inspect.signature(function).parameters
    except (TypeError, ValueError):  # compiled code without a signature
        return True
    return argument in known or any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values())


def supported(sdk: str, wanted: Mapping[str, Any], is_supported: Callable[[str], bool]) -> dict[str, Any]:
    """Return the settings that this version of an SDK has; print the name of each other one to stderr."""
    for name in wanted:
        if not is_supported(name):
            print(f"this {sdk} has no {name}: left out", file=sys.stderr)
    return {name: value for name, value in wanted.items() if is_supported(name)}


def require_output(sdk: str, file: str | Path) -> None:
    """Raise RuntimeError where a call that reports success wrote no file or an empty one."""
    path = Path(file)
    if not path.is_file() or not path.stat().st_size:
        raise RuntimeError(f"{sdk} reports success and wrote no {path.name}")
