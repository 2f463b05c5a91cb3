"""Choose and store the calibration samples of each part of a stream: true features, true states, one pass.

Every clip is streamed once through the float encoder on the host, in parallel; a fixed number of all steps is drawn
uniformly, with first and late chunks among them, independent of the clips' order. Memory and disk grow with the
samples, not with the corpus.
"""

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field
from threadpoolctl import threadpool_limits

from models.zipformer.feature_variants import Features, States, features_of
from models.zipformer.reservoir import Reservoir
from models.zipformer.steps import StepRows, Steps, strata
from models.zipformer.stream import (
    BLANK,
    Chunker,
    Model,
    Runner,
    Search,
    StreamError,
    initial_states,
    run_chunk,
    tail_samples,
)
from nightjar.errors import BadInput, BadOptions
from nightjar.graphs.tensor_spec import TensorSpec
from nightjar.progress import tick
from nightjar.quantization.calibration_set import ArrayRef, CalibrationWriter, few_samples
from nightjar.scoring.streaming import STRATA, stratum_index
from nightjar.speech.audio import load_audio
from nightjar.speech.manifest import Clip, shuffled

log = logging.getLogger(__name__)

AGAIN = "run the same command with --refresh harvest"
REQUIRES_HARVEST = False  # steps are drawn from all clips
STRATUM_SHARE = 0.05  # of the samples, at least, for each stratum of chunks
GIB = 2**30
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
    parts = {name: [TensorSpec(**entry) for entry in part["inputs"]] for name, part in model["parts"].items()}
    reservoir = None
    if options.states == "full":
        check_size(estimate_bytes(clips, model), options.full_gib)
    else:
        reservoir = Reservoir(options.samples, max(1, round(STRATUM_SHARE * options.samples)), options.seed)
    steps = Steps(out / "steps", parts["encoder"], reservoir)
    seen = _stream_all(clips, lambda clip: _stream(runner, model, hidden, clip, options, steps))
    writer = CalibrationWriter(out, parts, options.seed)
    for stream in whole_streams(clips, options, model):
        writer.add_stream(stream)
    _store_steps(writer, steps, parts, runner, options)
    shutil.rmtree(steps.folder)
    counts = {part: writer.count(part) for part in parts}
    warnings = few_samples({part: count for part, count in counts.items() if part != "decoder"})
    writer.close(_coverage(clips, seen, strata(steps.chosen()), counts), warnings)


def _stream_all(clips: Sequence[Clip], stream: Callable[[Clip], Counter[int]]) -> Counter[int]:
    """Stream clips in parallel: one alone leaves a core idle, as a chunk is too little work for two.

    numpy's own threads are off: they spin after every product, and features have many small ones.
    """
    seen = Counter[int]()
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        running = [pool.submit(stream, clip) for clip in sorted(clips, key=lambda clip: clip.id)]
        try:
            for number, future in enumerate(running, 1):
                seen.update(future.result())
                tick(number, len(running))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return seen


def _chunks(clip: Clip, kind: Features, model: Model) -> list[np.ndarray]:
    wave = load_audio(clip.audio).astype(np.float32) / 32768.0
    silence = np.zeros(tail_samples(len(wave), model), np.float32)
    frames = features_of(kind)(np.concatenate([wave, silence]))
    return [chunk.x for chunk in Chunker(model).accept(frames)]


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
    runner: Runner, model: Model, hidden: Path, clip: Clip, options: CalibrationOptions, steps: Steps
) -> Counter[int]:
    """Stream one clip; store the drawn steps with the contexts of their rows; count all steps by stratum."""
    states = zeros = initial_states(model)
    seen = Counter[int]()
    rows: list[np.ndarray] = []
    offered: list[tuple[str, int]] = []
    for number, x in enumerate(_chunks(clip, options.features, model)):
        before = zeros if options.states == "zero" else states
        if (name := steps.offer(clip.id, number, {"x": x[None], **before})) is not None:
            offered.append((name, number))
        try:
            encoded, states, _ = run_chunk(runner, x, states, model, number)
        except StreamError as exc:
            raise BadInput(f"clip '{clip.id}', {exc}: look at the clip and at the float graphs") from exc
        rows.append(encoded)
        seen[stratum_index(number)] += 1
    if drawn := [(name, number) for name, number in offered if name in steps]:
        _add_rows(runner, model, _harvested(hidden, clip.id, rows), drawn, steps)
    return seen


def _add_rows(runner: Runner, model: Model, rows: np.ndarray, drawn: list[tuple[str, int]], steps: Steps) -> None:
    """Add to each drawn step its rows, the contexts they are joined with, and their tokens."""
    search, contexts = Search(runner, model), []
    for row in rows:
        contexts.append(list(search.context))
        search.step(row)
    count = model["chunk"]["rows"]
    for name, number in drawn:
        at = slice(number * count, (number + 1) * count)
        tokens, context = np.array(search.path[at], np.int64), np.array(contexts[at], np.int64)
        steps.add_rows(name, StepRows(rows[at].copy(), context, tokens))


def _harvested(hidden: Path, clip: str, rows: list[np.ndarray]) -> np.ndarray:
    """Read a clip's rows from the harvest; those of the host where the clip was not harvested."""
    host = np.concatenate(rows)
    path = hidden / f"{clip}.encoder_out.npy"
    if not path.is_file():
        return host
    try:
        harvested: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as exc:
        raise BadInput(f"the harvested rows of clip '{clip}' cannot be read: {exc}; {AGAIN}") from exc
    if harvested.shape != host.shape:
        raise BadInput(f"{path}: shape {harvested.shape}, but these graphs give {host.shape}; {AGAIN}")
    return harvested.astype(np.float32)


def _store_steps(
    writer: CalibrationWriter,
    steps: Steps,
    parts: Mapping[str, Sequence[TensorSpec]],
    runner: Runner,
    options: CalibrationOptions,
) -> None:
    """Store the drawn steps: whole inputs of the encoder, and some of their rows for decoder and joiner.

    Half of the rows have a token, half are blank, as far as there are.
    """
    chosen = steps.chosen()
    picked = Reservoir(options.samples, max(1, options.samples // 2), options.seed)
    for step in chosen:
        for row, token in enumerate(steps.rows(step).tokens.tolist()):
            picked.offer(f"{step}/{row}", int(token != BLANK))
    rows_of: dict[str, list[int]] = {}
    for name in picked.chosen():
        step, _, place = name.rpartition("/")
        rows_of.setdefault(step, []).append(int(place))
    contexts: set[tuple[int, ...]] = set()
    zeros: dict[str, ArrayRef] = {}
    for number, step in enumerate(chosen):
        tensors, sample = steps.read(step), {}
        for spec in parts["encoder"]:
            value = tensors[spec.name]
            if spec.name != "x" and options.states == "zero":  # all samples share one file of zeros
                if spec.name not in zeros:
                    zeros[spec.name] = writer.store("encoder", spec.name, f"zero.{spec.name}.npy", value)
                sample[spec.name] = zeros[spec.name]
            else:
                sample[spec.name] = writer.store("encoder", spec.name, f"{spec.name}_{number:06d}.npy", value)
        writer.add("encoder", sample)
        for row in sorted(rows_of.get(step, ())):
            _store_row(writer, runner, f"{number:06d}.{row:03d}.npy", steps.rows(step), row, contexts)


def _store_row(
    writer: CalibrationWriter, runner: Runner, suffix: str, rows: StepRows, row: int, contexts: set[tuple[int, ...]]
) -> None:
    context = tuple(int(token) for token in rows.contexts[row])
    y = np.array([context], np.int64)
    if context not in contexts:
        contexts.add(context)
        writer.add("decoder", {"y": writer.store("decoder", "y", f"y_{len(contexts) - 1:06d}.npy", y)})
    decoded = runner.run("decoder", {"y": y})["decoder_out"]
    sample = {
        "encoder_out": writer.store("joiner", "encoder_out", f"row_{suffix}", rows.rows[row][None]),
        "decoder_out": writer.store("joiner", "decoder_out", f"context_{suffix}", decoded),
    }
    writer.add("joiner", sample)


def estimate_bytes(clips: Sequence[Clip], model: Model) -> int:
    """Return the size of a `full` set, from the clips' lengths: every input of every step."""
    inputs = model["parts"]["encoder"]["inputs"]
    step = sum(128 + int(np.prod(e["shape"])) * np.dtype(e["dtype"]).itemsize for e in inputs)
    samples = [round(clip.duration_s * 16000) for clip in clips]
    frames, shift = int(model["chunk"]["frames"]), int(model["chunk"]["shift"])
    padded = [(n + tail_samples(n, model) + 80) // 160 for n in samples]
    return int(step) * sum((each - 1 - frames) // shift + 1 for each in padded)


def check_size(size_bytes: int, limit_gib: float) -> None:
    """Warn of the size of a `full` set; raises BadOptions where it is beyond its limit."""
    size_gib = size_bytes / GIB
    log.warning("every step with its states takes %.1f GiB on disk", size_gib)
    if size_gib > limit_gib:
        raise BadOptions(
            f"every step with its states takes {size_gib:.1f} GiB, more than {limit_gib:g}: calibrate with "
            "--calibration-states sampled, which takes as much as its samples, or give fewer clips"
        )


def _coverage(clips: Sequence[Clip], seen: Counter[int], drawn: Counter[int], counts: dict[str, int]) -> dict[str, Any]:
    covered = {name: drawn[number] for number, name in enumerate(STRATA) if seen[number]}
    listed = ", ".join(f"{name} {count}" for name, count in covered.items())
    speakers = len({clip.speaker for clip in clips} - {None})
    return {
        "clips": len(clips),
        "speakers": speakers,
        "steps": seen.total(),
        "chunks_occurring": {name: seen[number] for number, name in enumerate(STRATA) if seen[number]},
        "chunks_covered": covered,
        "samples": counts,
        "sentences": {
            "encoder": f"of {seen.total()} steps of {len(clips)} clips, {speakers} speakers; chunks: {listed or 'all'}"
        },
    }
