"""`nightjar …`: the command line. Commands import flows only when they run one."""

import argparse
import gc
import os
import signal
import sys
from collections.abc import Sequence

from nightjar.cli import artifacts, boards, flows, nightly, port, speech, stack, tools
from nightjar.cli.command import EXIT_CODES
from nightjar.errors import NightjarError, StoreBroken

GROUPS = (port, nightly, speech, boards, flows, artifacts, stack, tools)  # the order of `nightjar --help`


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the process's exit code; a NightjarError is one line on stderr."""
    gc.disable()  # importing Prefect makes a million objects that stay; run_flow enables it again
    arguments = _parser().parse_args(argv)
    # Logs of these packages appear with a flow run in the Prefect UI; Prefect reads this when it is imported.
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "nightjar,models,targets,tasks")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped worker ends its session cleanly too
    try:
        return arguments.command(arguments) or 0
    except KeyboardInterrupt:
        print("nightjar: interrupted; the same command continues from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except NightjarError as error:
        if arguments.debug:
            raise
        print(f"nightjar: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if arguments.debug:
            raise
        print(f"nightjar: {error}; fix it and run the same command again", file=sys.stderr)
        return StoreBroken.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nightjar",
        description="Port speech recognisers to edge NPUs, and measure whether they still recognise speech.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks instead of one line")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for group in GROUPS:
        group.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
