"""OpenAI Whisper: export to graphs and the decode loop that runs them anywhere.

Importing this package pulls in nothing: it travels to the board inside the session's zipapp.
"""

from pathlib import Path

FAMILY = "whisper"
STOCK = "openai-whisper"
STREAMS = False
# Of divergence per decoder step for each percent of WER: tiny.en-refit, 216 clips, 0.0009 nats cost 1.1 points and one
# clip that loops.
NATS_PER_PERCENT = 0.0008
FILES = ("*",)  # of a checkpoint that is a folder: all of it

# What a person may ask of a stream and not of a Whisper, and why.
UNSUPPORTED_OPTIONS = {
    "calibration_states": "its encoder keeps no states, and its decoder is calibrated at real steps",
    "calibration_features": "it hears log-mels of its own kind alone",
    "drift": "it hears each window anew, and nothing drifts",
}

# What openai-whisper's own loader fetches; a copy, so that `nightjar models` needs no torch (a test holds them equal).
NAMES = (
    *("tiny.en", "tiny", "base.en", "base", "small.en", "small", "medium.en", "medium"),
    *("large-v1", "large-v2", "large-v3", "large", "large-v3-turbo", "turbo"),
)


def recognises(checkpoint: Path) -> bool:
    """Say whether a path may be a Whisper checkpoint; export opens it and decides."""
    return checkpoint.is_file() or (checkpoint / "config.json").is_file()
