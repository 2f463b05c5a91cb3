"""A transducer has the languages that it was trained on, and does not say which."""

from pathlib import Path

from nightjar.errors import BadOptions


def check_language(checkpoint: Path, language: str, task: str) -> None:
    """Raise BadOptions for "auto"."""
    if language == "auto":
        raise BadOptions("a streaming Zipformer does not detect the language: pass the one spoken with --language")
