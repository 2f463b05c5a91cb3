"""Choose and store the calibration samples of each part of a stream: true features, true states.

The length of a clip gives the number of its chunks, so a fixed number of all steps is drawn before any clip is
streamed: uniformly, with first and late chunks among them, independent of the clips' order. Clips with drawn steps are
then streamed through the float encoder on the host, in parallel. Memory and disk grow with the samples, not with the
corpus.
"""

import itertools
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, Field
from threadpoolctl import threadpool_limits

from models.zipformer import stream
from models.zipformer.feature_variants import FEATURES, Features, States
from models.zipformer.reservoir import draw
from models.zipformer.stream import BLANK, Array, Model, Runner
from nightjar.errors import BadInput, BadOptions
from nightjar.process import run_parallel
from nightjar.progress import tick
from nightjar.quantization.calibration_set import ArrayRef, CalibrationWriter, few_samples, load_harvested
from nightjar.scoring.streaming import STRATA, stratum_index
from nightjar.speech.audio import load_audio
from nightjar.speech.manifest import Clip, shuffled

log = logging.getLogger(__name__)

REQUIRES_HARVEST = False  # steps are drawn from all clips
STRATUM_SHARE = 0.05  # of the samples, at least, for each stratum of chunks
STREAMS, STREAM_CHUNKS = 3, 8  # whole streams in a set, and the chunks of each


class CalibrationOptions(BaseModel, frozen=True):
    """How much calibration data, and which."""

    samples: int = Field(200, ge=1, description="samples per part; below 100 warns")
    states: States = Field(
        "sampled", description="sampled: steps with their true states; zero: those steps with zeros; full: every step"
    )
    features: Features = Field(
        "kaldi", description="kaldi, as in the recogniser; librosa and waveform-dc as other ports calibrate"
    )
    full_gib: float = Field(20.0, gt=0, description="full: the largest set to write; a larger one is refused")
    seed: int = Field(0, description="which steps are drawn")


class Step(NamedTuple):
    """A drawn step: its stored inputs, the encoder's rows, and the search's context and token of each row."""

    inputs: dict[str, ArrayRef]
    rows: Array  # (rows, width) float32
    contexts: list[tuple[int, ...]]
    tokens: list[int]


def calibrate(
    graphs: Path,
    hidden: Path,
    clips: Sequence[Clip],
    options: CalibrationOptions,
    runner: Runner,
    out: Path,
    lanes: int = 1,
) -> None:
    """Write a calibration set for every part of the graphs into `out`.

    hidden: a harvest's folder, `<clip id>.encoder_out.npy` (rows, width) float16: the joiner's samples of those clips
    are the rows of the board's encoder. runner: the float graphs on the host. `clips` may have any order; lanes is for
    Whisper. Raises BadInput for no clips and for a state that no stream can continue from, BadOptions for a `full` set
    beyond its limit.
    """
    model: Model = json.loads((graphs / "model.json").read_text(encoding="utf-8"))
    if not clips:
        raise BadInput("no clip of the calibration set is left: give some with --calibration-set")
    if options.states == "full":
        check_size(estimate_bytes(clips, model), options.full_gib)
    writer = CalibrationWriter(out, {name: part["inputs"] for name, part in model["parts"].items()}, options.seed)
    for features in whole_streams(clips, options, model):
        writer.add_stream(features)
    states = stream.initial_states(model) if options.states == "zero" else {}  # a file of each for all samples
    zeros = {name: writer.store("encoder", name, f"zero.{name}.npy", state) for name, state in states.items()}
    cores = len(os.sched_getaffinity(0))
    # numpy's own threads are off: they spin after every product, and features have many small ones.
    with threadpool_limits(1, user_api="blas"):
        counts = run_parallel([partial(_count_chunks, clip, model) for clip in clips], cores)
        chunks = {clip.id: n_chunks for clip, n_chunks in zip(clips, counts, strict=True)}
        drawn = draw_steps(chunks, options)
        places: dict[str, dict[int, int]] = {}  # by clip and chunk, the place of a step in `drawn`
        for place, (clip_id, number) in enumerate(drawn):
            places.setdefault(clip_id, {})[number] = place
        finished, steps = itertools.count(1), dict[int, Step]()

        def stream_clip(clip: Clip) -> None:
            steps.update(_stream(runner, model, hidden, clip, options.features, writer, zeros, places[clip.id]))
            tick(next(finished), len(places))

        # One clip at a time leaves a core idle, as a chunk is too little work for two.
        run_parallel([partial(stream_clip, clip) for clip in clips if clip.id in places], cores)
    _store_samples(writer, drawn, steps, runner, options)
    samples = {part: writer.count(part) for part in model["parts"]}
    warnings = few_samples({part: n_samples for part, n_samples in samples.items() if part != "decoder"})
    writer.close(_coverage(clips, chunks, drawn, samples), warnings)


def _count_chunks(clip: Clip, model: Model) -> int:
    """Count the chunks of a clip from its samples: the header of an mp3 has no exact number."""
    return stream.count_chunks(len(load_audio(clip.audio)), model)


def draw_steps(chunks: Mapping[str, int], options: CalibrationOptions) -> list[tuple[str, int]]:
    """Draw (clip id, chunk) in an order that names and seed decide; `full` draws all. chunks: of each clip."""
    size = sys.maxsize if options.states == "full" else options.samples
    every = ((f"{clip}/{n}", stratum_index(n)) for clip, n_chunks in chunks.items() for n in range(n_chunks))
    drawn = draw(every, size, max(1, round(STRATUM_SHARE * options.samples)), options.seed)
    return [(clip, int(number)) for clip, _, number in (name.rpartition("/") for name in drawn)]


def _chunks(clip: Clip, kind: Features, model: Model) -> list[Array]:
    wave = load_audio(clip.audio).astype(np.float32) / 32768.0
    return stream.chunks_of(wave, model, FEATURES[kind])


def whole_streams(clips: Sequence[Clip], options: CalibrationOptions, model: Model) -> list[np.ndarray]:
    """Make STREAMS streams of STREAM_CHUNKS chunks from clips drawn by the seed, one after the other.

    An int8 error in a state shows in later steps: a precision search follows these streams (chain.py).
    """
    drawn, streams = shuffled(clips, options.seed), list[np.ndarray]()
    while drawn and len(streams) < STREAMS:
        chunks: list[np.ndarray] = []
        while drawn and len(chunks) < STREAM_CHUNKS:
            chunks += _chunks(drawn.pop(), options.features, model)
        streams.append(np.stack(chunks[:STREAM_CHUNKS]))
    return streams


def _stream(
    runner: Runner,
    model: Model,
    hidden: Path,
    clip: Clip,
    kind: Features,
    writer: CalibrationWriter,
    zeros: dict[str, ArrayRef],
    places: Mapping[int, int],
) -> dict[int, Step]:
    """Stream a clip to its last drawn step, store the inputs of the drawn steps, and return these by place.

    zeros: the stored states to use instead of the true ones. places: by chunk.
    """
    states, rows, inputs = stream.initial_states(model), list[Array](), dict[int, dict[str, ArrayRef]]()
    chunks = _chunks(clip, kind, model)
    for number, x in enumerate(chunks[: max(places) + 1]):
        if number in places:
            tensors = {name: value for name, value in {"x": x[None], **states}.items() if name not in zeros}
            files = {name: f"{name}_{places[number]:06d}.npy" for name in tensors}
            inputs[number] = {n: writer.store("encoder", n, files[n], value) for n, value in tensors.items()} | zeros
        try:
            encoded, states, _ = stream.run_chunk(runner, x, states, model, number)
        except stream.StreamError as exc:
            raise BadInput(f"clip '{clip.id}', {exc}: look at the clip and at the float graphs") from exc
        rows.append(encoded)
    joined, per_chunk = np.concatenate(rows), len(encoded)
    if (harvest := hidden / f"{clip.id}.encoder_out.npy").is_file():  # else those of the host
        shape = (len(chunks) * per_chunk, joined.shape[1])
        joined = load_harvested(harvest, clip.id, shape)[: len(joined)]
    contexts, tokens = stream.follow(runner, model, joined)
    ranges = {number: slice(number * per_chunk, (number + 1) * per_chunk) for number in places}
    return {
        places[number]: Step(inputs[number], joined[at].copy(), contexts[at], tokens[at])
        for number, at in ranges.items()
    }


def _store_samples(
    writer: CalibrationWriter,
    drawn: Sequence[tuple[str, int]],
    steps: Mapping[int, Step],
    runner: Runner,
    options: CalibrationOptions,
) -> None:
    """Add the steps as samples of the encoder, and some of their rows as those of decoder and joiner.

    Half of the rows have a token, half are blank, as far as there are.
    """
    rows = (
        (f"{clip}/{number}/{row}", int(token != BLANK))
        for place, (clip, number) in enumerate(drawn)
        for row, token in enumerate(steps[place].tokens)
    )
    chosen = set(draw(rows, options.samples, max(1, options.samples // 2), options.seed))
    decoded: dict[tuple[int, ...], Array] = {}  # by context
    for place, (clip, number) in enumerate(drawn):
        step = steps[place]
        writer.add("encoder", step.inputs)
        for row, context in enumerate(step.contexts):
            if f"{clip}/{number}/{row}" not in chosen:
                continue
            if context not in decoded:
                y = np.array([context], np.int64)
                writer.add("decoder", {"y": writer.store("decoder", "y", f"y_{len(decoded):06d}.npy", y)})
                decoded[context] = runner.run("decoder", {"y": y})["decoder_out"]
            file = f"{place:06d}.{row:03d}.npy"
            sample = {
                "encoder_out": writer.store("joiner", "encoder_out", f"row_{file}", step.rows[row][None]),
                "decoder_out": writer.store("joiner", "decoder_out", f"context_{file}", decoded[context]),
            }
            writer.add("joiner", sample)


def estimate_bytes(clips: Sequence[Clip], model: Model) -> int:
    """Return the size of a `full` set, from the clips' lengths: every input of every step."""
    inputs = model["parts"]["encoder"]["inputs"]
    step = sum(128 + int(np.prod(e["shape"])) * np.dtype(e["dtype"]).itemsize for e in inputs)
    return int(step) * sum(stream.count_chunks(round(clip.duration_s * 16000), model) for clip in clips)


def check_size(size_bytes: int, limit_gib: float) -> None:
    """Warn of the size of a `full` set; raises BadOptions where it is beyond its limit."""
    size_gib = size_bytes / 2**30
    log.warning("every step with its states takes %.1f GiB on disk", size_gib)
    if size_gib > limit_gib:
        raise BadOptions(
            f"every step with its states takes {size_gib:.1f} GiB, more than {limit_gib:g}: calibrate with "
            "--calibration-states sampled, which takes as much as its samples, or give fewer clips"
        )


def _coverage(
    clips: Sequence[Clip], chunks: Mapping[str, int], drawn: Sequence[tuple[str, int]], samples: dict[str, int]
) -> dict[str, Any]:
    occurring = Counter(stratum_index(number) for n_chunks in chunks.values() for number in range(n_chunks))
    taken = Counter(stratum_index(number) for _, number in drawn)
    covered = {name: taken[stratum] for stratum, name in enumerate(STRATA) if occurring[stratum]}
    listed = ", ".join(f"{name} {n_steps}" for name, n_steps in covered.items())
    steps, speakers = occurring.total(), len({clip.speaker for clip in clips} - {None})
    return {
        "clips": len(clips),
        "speakers": speakers,
        "steps": steps,
        "chunks_occurring": {name: occurring[stratum] for stratum, name in enumerate(STRATA) if occurring[stratum]},
        "chunks_covered": covered,
        "samples": samples,
        "sentences": {"encoder": f"of {steps} steps of {len(clips)} clips, {speakers} speakers; chunks: {listed}"},
    }
