"""Talk to rknn-toolkit2, whose calls say no in four ways: every one becomes SdkError with one line.

Imported in the toolchain's environment, and by the host only for its names: rknn itself is imported on first use.
"""

import contextlib
import inspect
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
ERROR = re.compile(r"^E (?!rknn-toolkit2 version|RKNN:.*Unkown op target)(?:\w+: )?(?!Traceback)(.+)$", re.MULTILINE)


class SdkError(RuntimeError):
    """The toolkit refused or failed; the message is its own last word, one line."""


def open_toolkit(verbose: bool = False) -> Any:
    """Make a toolkit object; raises ImportError where the environment is broken."""
    from rknn.api import RKNN  # type: ignore[import-not-found]  # in the toolchain's environment only

    return RKNN(verbose=verbose)


def known_arguments(function: Callable[..., Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the arguments that this version of the toolkit has, and say on stderr which it has not."""
    known = inspect.signature(function).parameters
    for name in wanted.keys() - known.keys():
        print(f"this toolkit has no {name}: left out", file=sys.stderr)
    return {name: value for name, value in wanted.items() if name in known}


def checked(name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call the toolkit and return what it gives; -1, None from inference, and any exception raise SdkError."""
    try:
        result = call(*args, **kwargs)
    except MemoryError:
        raise
    except Exception as exc:  # ValueError, mostly, whose message is a whole traceback
        raise SdkError(f"{name}: {last_word(str(exc)) or type(exc).__name__}") from exc
    if isinstance(result, int) and result != 0:
        raise SdkError(f"{name} returned {result}")
    if result is None and name == "inference":
        raise SdkError("inference gave no outputs")
    return result


def last_word(text: str) -> str:
    """Cut a traceback in a message down to what was raised."""
    lines = [line.strip() for line in ANSI.sub("", text).splitlines() if line.strip()]
    return re.sub(r"^(\w+\.)*\w*(Error|Exception): ", "", lines[-1])[:300] if lines else ""


@contextlib.contextmanager
def captured() -> Iterator[None]:
    """Keep what the toolkit and its libraries print off stdout and stderr; where it fails, its last error becomes ours.

    The printing is in C as well, so the descriptors themselves are turned.
    """
    with tempfile.TemporaryFile() as kept:
        sys.stdout.flush()
        sys.stderr.flush()
        saved = os.dup(1), os.dup(2)
        os.dup2(kept.fileno(), 1)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except SdkError as exc:
            sys.stdout.flush()
            sys.stderr.flush()
            kept.seek(0)
            said = ANSI.sub("", kept.read().decode(errors="replace")).replace("\r", "\n")
            os.write(saved[1], said.encode())
            errors = [word.strip() for word in ERROR.findall(said) if word.strip()]
            gave_no_reason = " returned " in str(exc) or str(exc).endswith("no outputs")
            raise SdkError(f"{exc}: {errors[-1][:300]}" if errors and gave_no_reason else str(exc)) from exc
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            os.close(saved[0])
            os.close(saved[1])
