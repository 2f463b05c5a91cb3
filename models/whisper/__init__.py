"""OpenAI Whisper: export to graphs and the decode loop that runs them anywhere.

This package imports nothing else: it travels to the board inside the session's zipapp.
"""

from pathlib import Path

FAMILY = "whisper"
STOCK = "openai-whisper"
STREAMS = False
# Divergence per decoder step for each percent of WER: on the RK3588's simulator, 216 clips, plans of tiny.en of 0.0024,
# 0.0029 and 0.0141 nats cost 0.33, 0.11 and 0.86 points; this is cautious.
NATS_PER_PERCENT = 0.0075
FILES = ("*",)  # of a checkpoint folder: all

# Options of a stream that a Whisper does not have, and why.
UNSUPPORTED_OPTIONS = {
    "calibration_states": "its encoder keeps no states, and its decoder is calibrated at real steps",
    "calibration_features": "its log-mels are fixed",
    "drift": "each window starts anew, and nothing drifts",
}

# The models that openai-whisper's loader downloads: a copy, so that `nightjar models` needs no torch (tested).
NAMES = (
    *("tiny.en", "tiny", "base.en", "base", "small.en", "small", "medium.en", "medium"),
    *("large-v1", "large-v2", "large-v3", "large", "large-v3-turbo", "turbo"),
)


def recognises(checkpoint: Path) -> bool:
    """Return whether a path may be a Whisper checkpoint; export opens it and decides."""
    return checkpoint.is_file() or any((checkpoint / f"{name}config.json").is_file() for name in ("", "adapter_"))
