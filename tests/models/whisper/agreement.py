"""How far a runner agrees with given tokens, of one clip."""

from models.whisper.decode import EncodedClip, decode_clips
from models.whisper.protocols import Model, Runner, Tensors


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
