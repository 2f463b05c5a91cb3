"""Streaming Zipformer transducers as sherpa-onnx and icefall ship them: a folder of ONNX graphs and tokens.txt.

Importing this package pulls in nothing: it travels to the board inside the session's zipapp.
"""

from pathlib import Path

FAMILY = "zipformer"
STOCK = "sherpa-onnx"
STREAMS = True
# Of divergence per row for each percent of WER. A token said a row earlier or later costs nats and no word:
# zipformer-nano, 260 clips, 0.0080 nats, 13 of 321 tokens in another row, +0.00 points [-0.43, +0.43].
NATS_PER_PERCENT = 0.02
NAMES: tuple[str, ...] = ()  # none is fetched by name
FILES = ("*.onnx", "tokens.txt")  # of a checkpoint

# What a person may ask of a Whisper and not of a stream, and why.
UNSUPPORTED_OPTIONS = {
    "window": "a stream has no window; the length of its chunks is in the model",
    "decoder": "a transducer has one way to decode",
    "decoder_length": "its decoder sees the last tokens alone, as many as the model says",
    "positional": "a stream has no table of positions",
    "host_embedding": "its decoder takes token ids",
}


def recognises(checkpoint: Path) -> bool:
    """Say whether a path may be a folder of a streaming transducer; export opens it and decides."""
    return checkpoint.is_dir() and any(checkpoint.glob("*encoder*.onnx"))
