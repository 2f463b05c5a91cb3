"""Run one long stream through a binary and the float graphs, and measure whether they drift apart."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from nightjar.boards.ref import BoardRef
from nightjar.errors import SessionFailed
from nightjar.files import read_json
from nightjar.plugins.registry import Plugin
from nightjar.scoring.drift import Drift, agreement, compare_streams
from nightjar.sessions.run import split_excluded
from nightjar.speech.audio import SAMPLE_RATE, load_audio
from nightjar.speech.manifest import load_speech, shuffled
from tasks.dask import run_clips
from tasks.stage import stage

STREAM = "stream"


class DriftOptions(BaseModel, frozen=True):
    """Length and language of the stream."""

    seconds: float = Field(
        60.0, gt=0, description="of speech in one stream: clips one after the other, repeated as often as needed"
    )
    language: str = Field("en", description="language spoken")


@stage
def drift(
    *,
    binary: Path,
    reference: Path,
    speech: Path,
    family: Plugin,
    session: tuple[Plugin, ...],
    board: BoardRef,
    host: BoardRef,
    options: DriftOptions,
    out: Path,
    work: Path,
) -> dict[str, str]:
    """Write `drift.json`: the distance of the binary's states and outputs from those of `reference`, chunk by chunk.

    session: the modules of both sessions, which enter the key; family: the model's `stream` module.
    """
    model = read_json(reference / "model.json")
    names = [entry["name"] for entry in model["parts"]["encoder"]["outputs"]]
    wave = stream_of(speech, options.seconds)
    settings: dict[str, Any] = {"harvest": names, "waves": {STREAM: wave}, "language": options.language}
    lines = {}
    for subject, folder, where in (("float", reference, host), ("binary", binary, board)):
        results, excluded = split_excluded(run_clips(where, folder, (), work / subject, decode=True, **settings))
        if excluded:
            raise SessionFailed(
                f"{subject}: the stream of {options.seconds:g} s failed: {excluded[STREAM]}; "
                "check the board and its runtime, or pass --drift 0"
            )
        lines[subject] = results[0]
    rows = model["chunk"]["rows"]
    count = len(lines["float"]["path"]) // rows
    chunks = family.load().watched_chunks(count)
    paths = {subject: work / subject / "harvest" / STREAM for subject in lines}
    result = Drift(
        seconds=round(len(wave) / SAMPLE_RATE, 2),
        tier=board.tier,
        count=count,
        chunks=tuple(chunks),
        output=names[0],
        courses=compare_streams(paths["float"], paths["binary"], names, count=count, chunks=chunks, rows_a_chunk=rows),
        agree=agreement(lines["float"]["path"], lines["binary"]["path"]),
    )
    (out / "drift.json").write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return {"grown_db": f"{result.grown_db:.2f}", "tier": board.tier}


def stream_of(speech: Path, seconds: float) -> np.ndarray:
    """Return one int16 wave of `seconds`: clips one after the other, in an order that their ids decide."""
    clips = itertools.cycle(shuffled(load_speech(speech), seed=0))
    waves, missing = list[np.ndarray](), round(seconds * SAMPLE_RATE)
    while missing:
        waves.append(load_audio(next(clips).audio)[:missing])
        missing -= len(waves[-1])
    return np.concatenate(waves)
