"""Transcribe clips with a streaming transducer, as a session calls it; numpy only."""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from models.zipformer import stream
from models.zipformer.stream import Model, Runner, Search, Tensors
from nightjar.device.clip_decoding import EncodedClip as EncodedClip
from nightjar.device.clip_decoding import Stopwatch, WatchedLogits

WATCHED = 8  # tokens whose logits are recorded per row: all but a thousandth of the probability


def features(wave: Any, model: Model) -> Tensors:
    """Compute a clip's chunks from float32 mono 16 kHz in [-1, 1]: x (chunks, frames, 80)."""
    return {"x": np.stack(stream.chunks_of(wave, model))}


def encode(runner: Runner, features: Tensors, model: Model, keep: Collection[str] = ()) -> Tensors:
    """Run the encoder chunk by chunk: encoder_out (1, rows, width) and chunk_s (chunks,), the seconds of each.

    keep: further outputs of the encoder, (1, chunks watched, …) each, of the chunks that `watched_chunks` names. Raises
    StreamError where the stream cannot continue.
    """
    states = stream.initial_states(model)
    first = model["parts"]["encoder"]["outputs"][0]["name"]
    others: dict[str, list[Any]] = {name: [] for name in keep if name != first}
    watched = set(stream.watched_chunks(len(features["x"])))
    rows, seconds = [], []
    for number, x in enumerate(features["x"]):
        began = time.perf_counter()
        encoded, states, outputs = stream.run_chunk(runner, x, states, model, number)
        seconds.append(time.perf_counter() - began)
        rows.append(encoded)
        for name in others if number in watched else ():
            others[name].append(outputs[name])
    kept = {name: np.stack(values)[None] for name, values in others.items()}
    return {first: np.concatenate(rows)[None], "chunk_s": np.array(seconds), **kept}


def decode_clips(
    runner: Runner,
    clips: Iterable[EncodedClip],
    model: Model,
    language: str = "en",
    tables: Tensors | None = None,
    lanes: int = 1,
    clock: Mapping[str, float] = {},
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Search clips one after the other and yield (name, result) as they end.

    A result has `tokens`, `path` (the token of each row, 0 for none), `steps` (rows), `calls` per part, `chunk_s` (of
    speech) and `chunk_ms` (that each took, encoder and search together), and on request `agree` [matching, of] and
    `watched`, as Whisper's have. Two paths agree on a token in the same row, of the rows where either has a token.
    language, tables and lanes are for Whisper.
    """
    rows_a_chunk = model["chunk"]["rows"]
    first = model["parts"]["encoder"]["outputs"][0]["name"]
    for clip in clips:
        stopwatch = Stopwatch(clock)
        rows, spent_s = np.asarray(clip.encoded[first][0], np.float32), clip.encoded["chunk_s"].copy()
        watched = WatchedLogits(clip.watch, WATCHED) if clip.watch is not None else None
        search = Search(runner, model)
        for number in range(0, len(rows), rows_a_chunk):
            start = time.perf_counter()
            for row in rows[number : number + rows_a_chunk]:
                logits = search.step(row)
                if watched and clip.forced is None:
                    watched.record(logits)
            spent_s[number // rows_a_chunk] += time.perf_counter() - start
        result: dict[str, Any] = {
            "tokens": search.tokens,
            "path": search.path,
            "steps": len(rows),
            "capped": False,
            "calls": {"encoder": len(spent_s), "decoder": len(search.tokens) + 1, "joiner": len(rows)},
            "chunk_s": stream.chunk_s(model),
            "chunk_ms": [round(1000 * seconds, 2) for seconds in spent_s.tolist()],
        }
        if clip.forced is not None:
            result["agree"] = _agreement(runner, rows, model, clip.forced, search, watched)
        if watched:
            result["watched"] = watched.rows
        yield clip.name, {**result, "seconds": stopwatch.seconds()}


def _agreement(
    runner: Runner, rows: Any, model: Model, forced: list[int], free: Search, watched: WatchedLogits | None
) -> list[int]:
    """Search along a path and count [tokens that agree, rows where either path has a token]."""
    along = Search(runner, model, forced)
    if free.path == forced and watched is None:
        along = free
    else:
        for row in rows:
            logits = along.step(row)
            if watched:
                watched.record(logits)
    pairs = list(zip(along.path, forced, strict=False))
    matching = sum(mine == theirs != 0 for mine, theirs in pairs)
    return [matching, sum(mine != 0 or theirs != 0 for mine, theirs in pairs)]


def decode(
    runner: Runner, encoded: Tensors, model: Model, language: str = "en", tables: Tensors | None = None
) -> dict[str, Any]:
    """Search one clip; return its result of `decode_clips`."""
    return next(result for _, result in decode_clips(runner, [EncodedClip("", encoded)], model))
