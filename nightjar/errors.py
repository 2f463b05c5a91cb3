"""Errors that Nightjar explains, as one tree.

    NightjarError
    ├── BadInput    exit 2: the command or its files are wrong; a retry changes nothing
    │   └── UnknownName, BadOptions, BadCheckpoint, BadManifest, BadAudio, SpeakersOverlap
    ├── Missing     exit 3: something must be installed or plugged in first
    │   └── ToolchainMissing, PackageMissing, BoardMissing, ServerMissing
    └── Broken      exit 4: a tool, board or disk failed; a retry may help
        ├── DownloadFailed, BoardBusy, ToolchainBroken, ToolchainFailed, StackBroken, StoreBroken
        └── SessionFailed
            └── RunnerFailed

A message says what happened, what is allowed, and the next command.
"""


class NightjarError(Exception):
    """A failure that Nightjar explains in one line; `exit_code` is the process's."""

    exit_code = 4


class BadInput(NightjarError):
    """The command or its files are wrong."""

    exit_code = 2


class UnknownName(BadInput):
    """No model, target, board or stage has this name."""


class BadOptions(BadInput):
    """The options contradict each other or the model."""


class BadCheckpoint(BadInput):
    """The checkpoint is missing, corrupt, unsafe or of an unknown family."""


class BadManifest(BadInput):
    """The speech list is empty, malformed or points outside its folder."""


class BadAudio(BadInput):
    """A clip is missing, truncated or empty."""


class SpeakersOverlap(BadInput):
    """Calibration and evaluation share a speaker or an utterance."""


class Missing(NightjarError):
    """Something must be installed or plugged in first."""

    exit_code = 3


class ToolchainMissing(Missing):
    """A vendor SDK is not installed."""


class PackageMissing(Missing):
    """A program of the system is not installed."""


class BoardMissing(Missing):
    """No such board, or it does not answer."""


class ServerMissing(Missing):
    """The Prefect server that is configured does not answer, or no stack runs."""


class Broken(NightjarError):
    """A tool, board or disk failed; the same command can be run again."""


class DownloadFailed(Broken):
    """A checkpoint could not be fetched."""


class SessionFailed(Broken):
    """The session on a board ended early."""


class RunnerFailed(SessionFailed):
    """The runner on a board crashed or hung, and the board still answers."""


class BoardBusy(Broken):
    """Another run held the board for longer than the request waits."""


class ToolchainBroken(Broken):
    """A vendor SDK is installed and does not work, or cannot be installed."""


class ToolchainFailed(Broken):
    """A vendor SDK refused its work, crashed, or ran out of time or memory."""


class StackBroken(Broken):
    """A service of the stack does not start or does not end."""


class StoreBroken(Broken):
    """The artifact store cannot be read or written."""


def printable(text: str) -> str:
    """Make untrusted text safe for one line of a terminal: no escapes, the last 300 characters."""
    return "".join(char if char.isprintable() else " " for char in " ".join(text.split()))[-300:]
