"""What parts are held against: openai-whisper in a shorter window, and given tokens."""

from dataclasses import replace

from whisper.model import Whisper

from models.whisper.checkpoint import Checkpoint, stock
from models.whisper.decode import EncodedClip, decode_clips
from models.whisper.protocols import Model, Runner, Tensors


def stock_in_window(checkpoint: Checkpoint, n_audio_ctx: int, positional: str = "first") -> Whisper:
    """Build openai-whisper with so many encoder rows, 50 a second: the first or the last of its positional table."""
    table = checkpoint.state["encoder.positional_embedding"]
    rows = table[:n_audio_ctx] if positional == "first" else table[-n_audio_ctx:]
    dims = {**checkpoint.dims, "n_audio_ctx": n_audio_ctx}
    return stock(replace(checkpoint, dims=dims, state={**checkpoint.state, "encoder.positional_embedding": rows}))


def agree(
    runner: Runner,
    encoded: Tensors,
    model: Model,
    tokens: list[int],
    language: str = "en",
    tables: Tensors | None = None,
) -> int:
    """Count how many of `tokens` + [eot] the argmax predicts after the true prefix.

    Tokens beyond the graph's length count as missed. Raises ValueError as `decode` does.
    """
    _, result = next(decode_clips(runner, [EncodedClip("", encoded, tokens)], model, language, tables))
    return int(result["agree"][0])
