"""OpenAI Whisper: export to graphs and the decode loop that runs them anywhere.

Importing this package pulls in nothing: it travels to the board inside the session's zipapp.
"""

from pathlib import Path

FAMILY = "whisper"

# What openai-whisper's own loader fetches; a copy, so that `nightjar models` needs no torch (a test holds them equal).
NAMES = (
    *("tiny.en", "tiny", "base.en", "base", "small.en", "small", "medium.en", "medium"),
    *("large-v1", "large-v2", "large-v3", "large", "large-v3-turbo", "turbo"),
)


def recognises(checkpoint: Path) -> bool:
    """Say whether a path may be a Whisper checkpoint; export opens it and decides."""
    return checkpoint.is_file() or (checkpoint / "config.json").is_file()
