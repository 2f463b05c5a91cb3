"""Whisper's timestamps: the rules by which they are sampled, and the segments that they mark; numpy only."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from models.whisper.protocols import Array

STEP_S = 0.02  # between timestamps
COUNT = 1501  # of them, <|0.00|> to <|30.00|>
LATEST_FIRST = 50  # <|1.00|>: as whisper.decode's max_initial_timestamp


def allow_timestamps(logits: Array, picked: Sequence[int], table: Mapping[str, Any]) -> Array:
    """Mask logits (n_vocab,) as ApplyTimestampRules of openai-whisper's decoding.py does.

    Timestamps come in pairs and never go back, the first is within a second, and one is sampled where all together are
    likelier than any text. picked: the tokens sampled so far; table: `tokens` of model.json.
    """
    masked, begin = logits.copy(), table["timestamp_begin"]
    # Views: what is masked here is masked there. Tokens that a fine-tune added lie behind the timestamps.
    text, stamps, added = np.split(masked, [begin, begin + COUNT])
    text[table["no_timestamps"]] = -np.inf
    earlier = [token - begin for token in picked if 0 <= token - begin < COUNT]
    is_stamp = [0 <= token - begin < COUNT for token in picked[-2:]]
    if not picked:
        text[:] = added[:] = -np.inf
        stamps[LATEST_FIRST + 1 :] = -np.inf
    elif is_stamp[-1] and all(is_stamp):  # a pair, or the first: text follows
        stamps[:] = -np.inf
    elif is_stamp[-1]:  # the end of a segment: the next one's start follows, or eot
        text[: table["eot"]] = added[:] = -np.inf
    if earlier:
        stamps[: earlier[-1] + (0 if is_stamp[-1] and not all(is_stamp) else 1)] = -np.inf
    highest = stamps.max()
    likeliest_text = max(text.max(), added.max(initial=-np.inf))
    if highest > -np.inf and highest + np.log(np.exp(stamps - highest).sum()) > likeliest_text:
        text[:] = added[:] = -np.inf
    return masked


def split_segments(
    tokens: Sequence[int], table: Mapping[str, Any], audio_s: float
) -> Iterator[tuple[float, float, list[int]]]:
    """Yield start and end in seconds, and the text's tokens, of the segments of a clip that is `audio_s` long."""
    begin, text = 0.0, list[int]()
    for token in [*tokens, None]:
        index = -1 if token is None else token - table["timestamp_begin"]
        if token is not None and not 0 <= index < COUNT:
            text.append(token)
            continue
        at = audio_s if token is None else min(index * STEP_S, audio_s)
        if text:
            yield round(begin, 2), round(max(at, begin), 2), text
        begin, text = at, []
