"""Call rknn-toolkit2, which reports failure in four ways: each becomes an SdkError of one line.

The host imports this module only for its names: rknn itself is imported on first use.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
ERROR = re.compile(r"^E (?!rknn-toolkit2 version|RKNN:.*Unkown op target)(?:\w+: )?(?!Traceback)(.+)$", re.MULTILINE)


class SdkError(RuntimeError):
    """The toolkit refused or failed; the message is its last error line."""


def open_toolkit(verbose: bool = False) -> Any:
    """Make a toolkit object; raises ImportError where the environment is broken."""
    from rknn.api import RKNN  # type: ignore[import-not-found]  # in the toolchain's environment only

    return RKNN(verbose=verbose)


def call_toolkit(name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call the toolkit and return its result; -1, None from inference, and any exception raise SdkError."""
    try:
        result = call(*args, **kwargs)
    except MemoryError:
        raise
    except Exception as exc:  # mostly ValueError, whose message is a whole traceback
        raise SdkError(f"{name}: {_last_line(str(exc)) or type(exc).__name__}") from exc
    if isinstance(result, int) and result != 0:
        raise SdkError(f"{name} returned {result}")
    if result is None and name == "inference":
        raise SdkError("inference gave no outputs")
    return result


def _last_line(text: str) -> str:
    """Return the message at the end of a traceback."""
    lines = [line.strip() for line in ANSI.sub("", text).splitlines() if line.strip()]
    return re.sub(r"^(\w+\.)*\w*(Error|Exception): ", "", lines[-1])[:300] if lines else ""


@contextlib.contextmanager
def capture_output() -> Iterator[None]:
    """Keep the output of the toolkit and its libraries off stdout and stderr.

    After an SdkError the output goes to stderr, and its last error line joins the message where that gives no reason.
    C code prints too, so the file descriptors themselves are redirected.
    """
    with tempfile.TemporaryFile() as output:
        _flush()
        saved = os.dup(1), os.dup(2)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        try:
            yield
        except SdkError as exc:
            _flush()
            output.seek(0)
            text = ANSI.sub("", output.read().decode(errors="replace")).replace("\r", "\n")
            os.write(saved[1], text.encode())
            errors = [line.strip() for line in ERROR.findall(text) if line.strip()]
            has_no_reason = " returned " in str(exc) or str(exc).endswith("no outputs")
            raise SdkError(f"{exc}: {errors[-1][:300]}" if errors and has_no_reason else str(exc)) from exc
        finally:
            _flush()
            for number, descriptor in enumerate(saved, 1):
                os.dup2(descriptor, number)
                os.close(descriptor)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
