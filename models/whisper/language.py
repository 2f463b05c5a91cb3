"""Which languages and tasks a checkpoint has; host side."""

from pathlib import Path

from models.whisper.checkpoint import load_checkpoint
from models.whisper.decode import prompt_tokens
from models.whisper.tokens import token_table
from nightjar.errors import BadOptions


def check_language(checkpoint: Path, language: str, task: str) -> None:
    """Raise BadOptions for a language or a task that the model does not have, and BadCheckpoint as loading does."""
    loaded = load_checkpoint(checkpoint)
    tokens = token_table(loaded.dims["n_vocab"], loaded.vocabulary)
    try:
        prompt_tokens({"tokens": tokens, "recipe": {"task": task}}, language)
    except ValueError as error:
        raise BadOptions(str(error)) from error
