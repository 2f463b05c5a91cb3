"""Choose and store what the quantizer of each part of a stream sees: true features, true states, one pass.

Every clip is streamed once through the float encoder on the host, as many at once as there are cores; of all steps a
fixed number is kept, drawn uniformly and so that first and late chunks are among them, whatever order they come in.
Memory and disk follow the samples kept, not the corpus.
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
from models.zipformer.steps import Rows, Steps, strata
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
from nightjar.quantization.calibration_set import ArrayRef, CalibrationWriter
from nightjar.scoring.streaming import STRATA, stratum_index
from nightjar.speech.audio import load_audio
from nightjar.speech.manifest import Clip, shuffled

log = logging.getLogger(__name__)

AGAIN = "run the same command with --refresh harvest"
REQUIRES_HARVEST = False  # steps are drawn of all speech there is
FEW = 100  # samples below which ranges depend on which steps were drawn
LEAST = 0.05  # of the samples that each stratum of chunks is owed
GIB = 2**30
STREAMS, STREAM_CHUNKS = 3, 8  # kept whole


class CalibrationOptions(BaseModel, frozen=True):
    """How much calibration data, and which."""

    samples: int = Field(200, ge=1, description="samples per part; below 100 warns")
    states: States = Field(
        "sampled",
        description="sampled: of true states, so many steps; zero: those steps with zeros; full: every step",
    )
    features: Features = Field(
        "kaldi", description="kaldi, as the recogniser hears; librosa and waveform-dc as others have calibrated"
    )
    full_gib: float = Field(20.0, gt=0, description="full: what may be written; more is refused beforehand")
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
    are what the board's encoder gave. runner: the float graphs on the host. Any order of `clips`; lanes is
    Whisper's. Raises BadInput for no clips and for a state that no stream can go on from, BadOptions for a `full` set
    beyond its limit.
    """
    model: Model = json.loads((graphs / "model.json").read_text(encoding="utf-8"))
    if not clips:
        raise BadInput("no clip of the calibration set is left: give some with --calibration-set")
    parts = {name: [TensorSpec(**entry) for entry in part["inputs"]] for name, part in model["parts"].items()}
    if options.states == "full":
        refuse_beyond(estimate_bytes(clips, model), options.full_gib)
    least = max(1, round(LEAST * options.samples))
    reservoir = None if options.states == "full" else Reservoir(options.samples, least, options.seed)
    steps = Steps(out / "steps", parts["encoder"], reservoir)
    seen = _hear_all(clips, lambda clip: _hear(runner, model, hidden, clip, options, steps))
    writer = CalibrationWriter(out, parts, options.seed)
    for stream in whole_streams(clips, options, model):
        writer.add_stream(stream)
    store_steps(writer, steps, parts, runner, options)
    shutil.rmtree(steps.folder)
    counts = {part: writer.count(part) for part in parts}
    writer.close(_coverage(clips, seen, strata(steps.chosen()), counts), _warnings(counts))


def _hear_all(clips: Sequence[Clip], hear: Callable[[Clip], Counter[int]]) -> Counter[int]:
    """Hear clips side by side: one alone leaves a core idle, for a chunk is too little work to be shared out.

    numpy's threads would be in their way: they spin on behind every product, and features are full of small ones.
    """
    seen = Counter[int]()
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        coming = [pool.submit(hear, clip) for clip in sorted(clips, key=lambda clip: clip.id)]
        try:
            for number, heard in enumerate(coming, 1):
                seen.update(heard.result())
                tick(number, len(coming))
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
    """Make a few streams of STREAM_CHUNKS chunks, of clips drawn by the seed one behind the other.

    What int8 does to a state shows in the steps behind it: a precision search follows these (chain.py).
    """
    drawn, streams = shuffled(clips, options.seed), list[np.ndarray]()
    while drawn and len(streams) < STREAMS:
        held: list[np.ndarray] = []
        while drawn and len(held) < STREAM_CHUNKS:
            held += _chunks(drawn.pop(), options.features, model)
        streams.append(np.stack(held[:STREAM_CHUNKS]))
    return streams


def _hear(
    runner: Runner, model: Model, hidden: Path, clip: Clip, options: CalibrationOptions, steps: Steps
) -> Counter[int]:
    """Stream one clip; keep the steps that are drawn, with the contexts of their rows; count the steps by stratum."""
    states = zeros = initial_states(model)
    seen = Counter[int]()
    rows: list[np.ndarray] = []
    mine: list[tuple[str, int]] = []
    for number, x in enumerate(_chunks(clip, options.features, model)):
        before = zeros if options.states == "zero" else states
        if (name := steps.offer(clip.id, number, {"x": x[None], **before})) is not None:
            mine.append((name, number))
        try:
            encoded, states, _ = run_chunk(runner, x, states, model, number)
        except StreamError as exc:
            raise BadInput(f"clip '{clip.id}', {exc}: look at the clip and at the float graphs") from exc
        rows.append(encoded)
        seen[stratum_index(number)] += 1
    if mine := [(name, number) for name, number in mine if name in steps]:
        _add_rows(runner, model, _harvested(hidden, clip.id, rows), mine, steps)
    return seen


def _add_rows(runner: Runner, model: Model, rows: np.ndarray, mine: list[tuple[str, int]], steps: Steps) -> None:
    """Put beside each kept step its rows, the contexts they are joined with, and what is said in them."""
    search, contexts = Search(runner, model), []
    for row in rows:
        contexts.append(list(search.context))
        search.step(row)
    count = model["chunk"]["rows"]
    for name, number in mine:
        at = slice(number * count, (number + 1) * count)
        said, context = np.array(search.path[at], np.int64), np.array(contexts[at], np.int64)
        steps.add_rows(name, Rows(rows[at].copy(), context, said))


def _harvested(hidden: Path, clip: str, rows: list[np.ndarray]) -> np.ndarray:
    """Take a clip's rows from the harvest, or those of the host where it was not harvested."""
    own = np.concatenate(rows)
    path = hidden / f"{clip}.encoder_out.npy"
    if not path.is_file():
        return own
    try:
        found: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as exc:
        raise BadInput(f"the harvested rows of clip '{clip}' cannot be read: {exc}; {AGAIN}") from exc
    if found.shape != own.shape:
        raise BadInput(f"{path}: shape {found.shape}, but these graphs give {own.shape}; {AGAIN}")
    return found.astype(np.float32)


def store_steps(
    writer: CalibrationWriter,
    steps: Steps,
    parts: Mapping[str, Sequence[TensorSpec]],
    runner: Runner,
    options: CalibrationOptions,
) -> None:
    """Store the steps drawn: whole inputs of the encoder, and rows of theirs for decoder and joiner.

    Rows that say a token are as many as those that say none, as far as there are.
    """
    chosen = steps.chosen()
    picked = Reservoir(options.samples, max(1, options.samples // 2), options.seed)
    for step in chosen:
        for row, said in enumerate(steps.rows(step).said.tolist()):
            picked.offer(f"{step}/{row}", int(said != BLANK))
    wanted: dict[str, list[int]] = {}
    for name in picked.chosen():
        step, _, place = name.rpartition("/")
        wanted.setdefault(step, []).append(int(place))
    contexts: set[tuple[int, ...]] = set()
    zero: dict[str, ArrayRef] = {}
    for number, step in enumerate(chosen):
        content, sample = steps.read(step), {}
        for spec in parts["encoder"]:
            value = content[spec.name]
            if spec.name != "x" and options.states == "zero":  # one file of zeros serves all
                if spec.name not in zero:
                    zero[spec.name] = writer.store("encoder", spec.name, f"zero.{spec.name}.npy", value)
                sample[spec.name] = zero[spec.name]
            else:
                sample[spec.name] = writer.store("encoder", spec.name, f"{spec.name}_{number:06d}.npy", value)
        writer.add("encoder", sample)
        for row in sorted(wanted.get(step, ())):
            _store_row(writer, runner, number, row, steps.rows(step), contexts)


def _store_row(
    writer: CalibrationWriter,
    runner: Runner,
    number: int,
    row: int,
    made: Rows,
    contexts: set[tuple[int, ...]],
) -> None:
    context = tuple(int(token) for token in made.contexts[row])
    y = np.array([context], np.int64)
    if context not in contexts:
        contexts.add(context)
        writer.add("decoder", {"y": writer.store("decoder", "y", f"y_{len(contexts) - 1:06d}.npy", y)})
    decoded = runner.run("decoder", {"y": y})["decoder_out"]
    files = {"encoder_out": f"row_{number:06d}.{row:03d}.npy", "decoder_out": f"context_{number:06d}.{row:03d}.npy"}
    arrays = {"encoder_out": made.rows[row][None], "decoder_out": decoded}
    writer.add("joiner", {name: writer.store("joiner", name, file, arrays[name]) for name, file in files.items()})


def estimate_bytes(clips: Sequence[Clip], model: Model) -> int:
    """Say how much a `full` set takes on disk, from the clips' lengths: every input of every step."""
    inputs = model["parts"]["encoder"]["inputs"]
    step = sum(128 + int(np.prod(e["shape"])) * np.dtype(e["dtype"]).itemsize for e in inputs)
    samples = [round(clip.duration_s * 16000) for clip in clips]
    frames, shift = int(model["chunk"]["frames"]), int(model["chunk"]["shift"])
    padded = [(n + tail_samples(n, model) + 80) // 160 for n in samples]
    return int(step) * sum((each - 1 - frames) // shift + 1 for each in padded)


def refuse_beyond(needed: int, limit_gib: float) -> None:
    """Say how much a `full` set needs; raises BadOptions where that is beyond its limit."""
    log.warning("every step with its states takes %.1f GiB on disk", needed / GIB)
    if needed > limit_gib * GIB:
        raise BadOptions(
            f"every step with its states takes {needed / GIB:.1f} GiB, more than {limit_gib:g}: calibrate with "
            "--calibration-states sampled, which takes as much as its samples, or give fewer clips"
        )


def _coverage(clips: Sequence[Clip], seen: Counter[int], kept: Counter[int], counts: dict[str, int]) -> dict[str, Any]:
    occurring = {name: seen[number] for number, name in enumerate(STRATA) if seen[number]}
    covered = {name: kept[number] for number, name in enumerate(STRATA) if seen[number]}
    said = ", ".join(f"{name} {count}" for name, count in covered.items())
    speakers = len({clip.speaker for clip in clips} - {None})
    return {
        "clips": len(clips),
        "speakers": speakers,
        "steps": seen.total(),
        "chunks_occurring": occurring,
        "chunks_covered": covered,
        "samples": counts,
        "sentences": {
            "encoder": f"of {seen.total()} steps of {len(clips)} clips, {speakers} speakers; chunks: {said or 'all'}"
        },
    }


def _warnings(counts: Mapping[str, int]) -> list[str]:
    few = {part: count for part, count in counts.items() if count < FEW and part != "decoder"}
    if not few:
        return []
    listed = ", ".join(f"{part} {count}" for part, count in few.items())
    warning = (
        f"few calibration samples ({listed}; {FEW} or more are wanted): the int8 ranges may miss what other speech"
        " needs; give more clips or a higher --calibration-samples"
    )
    log.warning("%s", warning)
    return [warning]
