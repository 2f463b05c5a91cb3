"""What a session calls to hear clips with a streaming transducer; numpy only."""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from models.zipformer.stream import (
    Model,
    Runner,
    Search,
    Tensors,
    chunk_s,
    chunks_of,
    initial_states,
    run_chunk,
    stacked,
    watched_chunks,
)

WATCHED = 8  # tokens whose logits are kept per row: all but a thousandth of the probability


def features(wave: Any, model: Model) -> Tensors:
    """Compute a clip's chunks from float32 mono 16 kHz in [-1, 1]: x (chunks, frames, 80)."""
    return {"x": np.stack([chunk.x for chunk in chunks_of(wave, model)])}


def encode(runner: Runner, features: Tensors, model: Model, keep: Collection[str] = ()) -> Tensors:
    """Run the encoder chunk by chunk: encoder_out (1, rows, width) and chunk_s (chunks,), the seconds of each.

    keep: outputs of the encoder that are wanted beside the rows, of the chunks that `watched_chunks` names: (1, chunks
    watched, …) each. Raises StreamError where the stream cannot go on.
    """
    states = initial_states(model)
    first = model["parts"]["encoder"]["outputs"][0]["name"]
    others = [name for name in keep if name != first]
    watched = set(watched_chunks(len(features["x"])))
    rows, seconds = [], []
    kept: dict[str, list[Any]] = {name: [] for name in others}
    for number, x in enumerate(features["x"]):
        began = time.perf_counter()
        encoded, states, outputs = run_chunk(runner, x, states, model, number)
        seconds.append(time.perf_counter() - began)
        rows.append(encoded)
        for name in others if number in watched else ():
            kept[name].append(outputs[name])
    return {first: np.concatenate(rows)[None], "chunk_s": np.array(seconds), **stacked(kept, others)}


class EncodedClip(NamedTuple):
    """One clip to hear: what the encoder made of it, and perhaps the path to measure agreement with.

    forced: a token per row, 0 for none; watch: the ids whose logits are kept of each row along it, or along the clip's
    own path where none is forced; empty for the WATCHED highest.
    """

    name: str
    encoded: Tensors
    forced: list[int] | None = None
    watch: list[list[int]] | None = None


def decode_clips(
    runner: Runner,
    jobs: Iterable[EncodedClip],
    model: Model,
    language: str = "en",
    tables: Tensors | None = None,
    lanes: int = 1,
    clock: Mapping[str, float] = {},
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Search clips one after the other and yield them as they end.

    A result has `tokens`, `path` (the token of each row, 0 for none), `steps` (rows), `calls` per part, `chunk_s` (of
    speech) and `chunk_ms` (that each took, encoder and search together), and where they are asked for `agree`
    [matching, of] and `watched`, as Whisper's have.
    A path agrees where it says a token: of the tokens that it or the binary along it says, how many are the same and in
    the same row. language, tables and lanes are Whisper's.
    """
    rows_a_chunk = model["chunk"]["rows"]
    first = model["parts"]["encoder"]["outputs"][0]["name"]
    for job in jobs:
        began, before = time.perf_counter(), dict(clock)
        rows, spent_s = np.asarray(job.encoded[first][0], np.float32), job.encoded["chunk_s"].copy()
        watched = _Watched(job.watch) if job.watch is not None else None
        search = Search(runner, model)
        for number in range(0, len(rows), rows_a_chunk):
            start = time.perf_counter()
            for row in rows[number : number + rows_a_chunk]:
                logits = search.step(row)
                if watched and job.forced is None:
                    watched.see(logits)
            spent_s[number // rows_a_chunk] += time.perf_counter() - start
        calls = {"encoder": len(spent_s), "decoder": len(search.tokens) + 1, "joiner": len(rows)}
        result: dict[str, Any] = {
            "tokens": search.tokens,
            "path": search.path,
            "steps": len(rows),
            "capped": False,
            "calls": calls,
            "chunk_s": chunk_s(model),
            "chunk_ms": [round(1000 * seconds, 2) for seconds in spent_s.tolist()],
        }
        if job.forced is not None:
            result["agree"] = _agreement(runner, rows, model, job.forced, search, watched)
        if watched:
            result["watched"] = watched.rows
        spent = {part: seconds - before.get(part, 0.0) for part, seconds in clock.items()}
        spent = {part: seconds for part, seconds in spent.items() if seconds}
        yield job.name, {**result, "seconds": {**spent, "total": time.perf_counter() - began}}


def _agreement(
    runner: Runner, rows: Any, model: Model, forced: list[int], free: Search, watched: "_Watched | None"
) -> list[int]:
    """Search along a path and count [tokens that agree, tokens that either says]."""
    along = Search(runner, model, forced)
    if free.path == forced and watched is None:
        along = free
    else:
        for row in rows:
            logits = along.step(row)
            if watched:
                watched.see(logits)
    pairs = list(zip(along.path, forced, strict=False))
    matching = sum(mine == theirs != 0 for mine, theirs in pairs)
    return [matching, sum(mine != 0 or theirs != 0 for mine, theirs in pairs)]


def decode(
    runner: Runner, encoded: Tensors, model: Model, language: str = "en", tables: Tensors | None = None
) -> dict[str, Any]:
    """Search one clip; returns what `decode_clips` yields of it."""
    return next(heard for _, heard in decode_clips(runner, [EncodedClip("", encoded)], model))


class _Watched:
    """The logits of some tokens, row after row."""

    def __init__(self, ids: list[list[int]]) -> None:
        self.ids = ids
        self.rows: dict[str, list[Any]] = {"ids": [], "logits": [], "norm": []}

    def see(self, logits: Any) -> None:
        values = logits.astype(np.float64)
        row = len(self.rows["ids"])
        if self.ids:
            ids = self.ids[row] if row < len(self.ids) else []
        else:
            ids = np.argpartition(values, -WATCHED)[-WATCHED:].tolist()
        self.rows["ids"].append(ids)
        self.rows["logits"].append([round(float(values[i]), 5) for i in ids])
        self.rows["norm"].append(round(float(values.max() + np.log(np.exp(values - values.max()).sum())), 5))
