"""Streaming Zipformer transducers as sherpa-onnx and icefall ship them: a folder of ONNX graphs and tokens.txt.

This package imports nothing else: it travels to the board inside the session's zipapp.
"""

from pathlib import Path

FAMILY = "zipformer"
STOCK = "sherpa-onnx"
STREAMS = True
# Divergence per row for each percent of WER. A token one row earlier or later costs nats and no word:
# zipformer-nano, 260 clips, 0.0080 nats, 13 of 321 tokens in another row, +0.00 points [-0.43, +0.43].
NATS_PER_PERCENT = 0.02
NAMES: tuple[str, ...] = ()  # none can be downloaded by name
FILES = ("*.onnx", "tokens.txt")  # of a checkpoint

# Options of a Whisper that a stream does not have, and why.
UNSUPPORTED_OPTIONS = {
    "window": "a stream has no window; the length of its chunks is in the model",
    "decoder": "a transducer has one way to decode",
    "decoder_length": "its decoder sees only the last tokens, as many as the model says",
    "positional": "a stream has no positional table",
    "host_embedding": "its decoder takes token ids",
    "task": "it only transcribes",
    "timestamps": "it has no tokens for them",
}


def recognises(checkpoint: Path) -> bool:
    """Return whether a path may be a folder of a streaming transducer; export opens it and decides."""
    return checkpoint.is_dir() and any(checkpoint.glob("*encoder*.onnx"))
