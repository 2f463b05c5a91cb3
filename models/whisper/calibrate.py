"""Choose and store what the quantizer of each Whisper part sees; numpy only.

The decoder is calibrated on real decode steps of every position over harvested hidden states: its ranges at the first
token, in mid-sentence and at the end differ, and a set that knows one of them only quantizes the others wrongly.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from models.whisper.decode import EncodedClip, decode, decode_clips, features
from models.whisper.protocols import MASKED, Runner, Tensors
from nightjar.errors import BadInput
from nightjar.graphs.tensor_spec import TensorSpec
from nightjar.progress import tick
from nightjar.quantization.calibration_set import ArrayRef, CalibrationWriter
from nightjar.speech.audio import load_audio
from nightjar.speech.manifest import Clip

log = logging.getLogger(__name__)

AGAIN = "run the same command with --refresh harvest"
REQUIRES_HARVEST = True  # a clip needs its hidden states
FEW = 100  # samples below which ranges depend on which clips were drawn
SHARE = 0.1  # of the decoder's samples that one clip may give beyond the steps nobody else has


class CalibrationOptions(BaseModel, frozen=True):
    """How much calibration data, and which."""

    samples: int = Field(200, ge=1, description="samples per part; below 100 warns")
    decoder_clips: int = Field(
        64, ge=1, description="clips the decoder's samples come from; each costs its cross-attention inputs on disk"
    )
    language: str = Field("en", description="language of the decoder's prompt")
    seed: int = Field(0, description="which clips and steps are drawn")


class Recorder:
    """Pass calls on to a runner, count the decoder's, and keep its inputs at the steps wanted."""

    def __init__(self, runner: Runner, wanted: Collection[int] = ()) -> None:
        self.steps = 0
        self.kept: dict[int, Tensors] = {}  # what differs from step to step
        self.shared: Tensors = {}  # one copy: KV caches as of the last step kept, and what is constant
        self._runner = runner
        self._wanted = frozenset(wanted)

    def run(self, part: str, inputs: Tensors, constant: Mapping[str, Any] = {}, **into: Tensors) -> Tensors:
        """Run one part."""
        if part == "decoder":
            if self.steps in self._wanted:
                # The loop goes on writing into its cache, so copy; rows once written stay as they are.
                copied = {name: np.array(value) for name, value in inputs.items()}
                self.shared.update(constant)
                self.shared.update({name: copied.pop(name) for name in inputs if name.startswith("self_")})
                self.kept[self.steps] = copied
            self.steps += 1
        return self._runner.run(part, inputs, constant, **into)


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

    hidden: a harvest's folder, `<clip id>.hidden.npy` (n_audio_ctx, d) float16 for each clip; runner: the float
    graphs on the host, whose decoder takes `lanes` clips at once. So many clips are in memory at a time, and the order
    of `clips` does not matter. Raises BadInput for no clips and for a clip that was not harvested.
    """
    model = json.loads((graphs / "model.json").read_text(encoding="utf-8"))
    tables = {p.stem: np.load(p, mmap_mode="r", allow_pickle=False) for p in sorted(graphs.glob("*_embedding.npy"))}
    parts = {name: [TensorSpec(**entry) for entry in part["inputs"]] for name, part in model["parts"].items()}
    order = shuffled(clips, options.seed)[: options.samples]
    if not order:
        raise BadInput(
            "no clip of the calibration set fits the window; give 100 or more that do with --calibration-set"
        )
    writer = CalibrationWriter(out, parts, options.seed)

    def jobs() -> Iterator[EncodedClip]:
        for number, clip in enumerate(order):
            wave = load_audio(clip.audio).astype(np.float32) / 32768.0
            _store_whole(writer, "encoder", number, features(wave, model))
            encoded = {"hidden": load_hidden(hidden, clip.id, model)}
            if "cross" in parts:
                _store_whole(writer, "cross", number, encoded)
            yield EncodedClip(clip.id, encoded)

    results: dict[str, tuple[int, bool]] = {}
    for name, heard in decode_clips(runner, jobs(), model, options.language, tables, lanes):
        results[name] = (heard["steps"], heard["capped"])
        tick(len(results), 2 * len(order))
    results = {clip.id: results[clip.id] for clip in order}
    steps = decoder_steps(results, options.decoder_clips)
    chosen = choose_steps(steps, options.samples, options.seed)
    for number, clip in enumerate(order):
        if clip.id in chosen:
            recorder = Recorder(runner, chosen[clip.id])
            decode(recorder, {"hidden": load_hidden(hidden, clip.id, model)}, model, options.language, tables)
            _store_steps(writer, number, parts["decoder"], recorder)
        tick(len(order) + number + 1, 2 * len(order))
    speakers = {clip.speaker for clip in order} - {None}
    coverage = {
        "clips": len(order),
        "speakers": len(speakers),
        "never_ended": sum(capped for _, capped in results.values()),
        "decoder": {"clips": len(chosen), **_step_counts(results, chosen)},
    }
    counts = {part: len(order) for part in parts} | {"decoder": sum(map(len, chosen.values()))}
    writer.close({**coverage, "samples": counts}, _warnings(counts, coverage))


def shuffled(clips: Sequence[Clip], seed: int) -> list[Clip]:
    """Return the clips in an order that depends on the seed and their ids, and on nothing else."""
    return sorted(clips, key=lambda clip: (_rank(seed, clip.id), clip.id))


def load_hidden(folder: Path, clip_id: str, model: Mapping[str, Any]) -> np.ndarray:
    """Read a clip's harvested hidden states as `(1, n_audio_ctx, d) float32`; BadInput where there are none."""
    path = folder / f"{clip_id}.hidden.npy"
    shape = (1, model["n_audio_ctx"], model["dims"]["n_audio_state"])
    try:
        array: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as exc:
        raise BadInput(f"no hidden states of clip '{clip_id}': {exc}; {AGAIN}") from exc
    if array.shape not in (shape, shape[1:]):
        raise BadInput(f"{path}: shape {array.shape}, but these graphs have {shape}; {AGAIN}")
    return array.astype(np.float32).reshape(shape)


def decoder_steps(results: Mapping[str, tuple[int, bool]], most: int) -> dict[str, int]:
    """Say how many decoder steps each of at most `most` clips has to offer.

    results: (steps, never ended) by clip id, in drawing order. The longest clip is always in, since it alone has every
    step that occurs. A decode that never ended is a loop, which no later run should be tuned for: it is left out unless
    there is nothing else.
    """
    ended = {name: steps for name, (steps, capped) in results.items() if not capped}
    pool = ended or {name: steps for name, (steps, _) in results.items()}
    longest = max(pool, key=lambda name: pool[name])
    names = [longest, *(name for name in pool if name != longest)][:most]
    return {name: pool[name] for name in names}


def choose_steps(steps: Mapping[str, int], samples: int, seed: int) -> dict[str, list[int]]:
    """Choose (clip, step) pairs so that every step that occurs is taken once before any is taken twice.

    Each time the clip that gave least so far gives the step. Where there are more steps than samples left, those
    taken lie evenly spread from first to last. Repeats stop at SHARE per clip, so fewer than `samples` may come back.
    """
    most = max(int(samples * SHARE), -(-samples // len(steps)))
    chosen: dict[str, list[int]] = {}
    left, first = samples, True
    while left:
        offers = _offers(steps, chosen, most if not first else None)
        if not offers:
            break
        keys = sorted(offers)
        for index in np.unique(np.linspace(0, len(keys) - 1, min(left, len(keys))).round().astype(int)):
            step = keys[index]
            open_to = [n for n in offers[step] if first or len(chosen.get(n, ())) < most]
            if open_to:
                taker = min(open_to, key=lambda n: (len(chosen.get(n, ())), _rank(seed, f"{n}/{step}")))
                chosen.setdefault(taker, []).append(step)
                left -= 1
        first = False
    return {name: sorted(taken) for name, taken in chosen.items()}


def _offers(steps: Mapping[str, int], chosen: Mapping[str, list[int]], most: int | None) -> dict[int, list[str]]:
    """List, per step, the clips that have it, did not give it yet, and may give more."""
    offers: dict[int, list[str]] = {}
    for name in sorted(steps):
        taken = chosen.get(name, [])
        if most is None or len(taken) < most:
            for step in set(range(steps[name])) - set(taken):
                offers.setdefault(step, []).append(name)
    return offers


def _store_whole(writer: CalibrationWriter, part: str, number: int, tensors: Tensors) -> None:
    writer.add(part, {name: writer.store(part, name, _file(name, number), value) for name, value in tensors.items()})


def _store_steps(writer: CalibrationWriter, number: int, inputs: Sequence[TensorSpec], recorder: Recorder) -> None:
    """Store a clip's kept steps: what is constant and the KV caches once, the rest per step."""
    refs: dict[str, ArrayRef] = {}
    rows = {step: _rows(tensors) for step, tensors in recorder.kept.items()}
    for spec in inputs:
        if spec.name not in recorder.shared:
            continue
        array, cache = np.asarray(recorder.shared[spec.name]), spec.name.startswith("self_")
        if cache:
            array = array[:, : max(rows.values())]
        refs[spec.name] = writer.store("decoder", spec.name, _file(spec.name, number), array, rows=cache)
    for step, tensors in recorder.kept.items():
        sample = {}
        for spec in inputs:
            if spec.name not in refs:
                file = _file(spec.name, writer.count("decoder"))
                sample[spec.name] = writer.store("decoder", spec.name, file, tensors[spec.name])
            elif spec.name.startswith("self_"):
                sample[spec.name] = ArrayRef(file=refs[spec.name].file, rows=rows[step])
            else:
                sample[spec.name] = refs[spec.name]
        writer.add("decoder", sample)


def _rows(tensors: Tensors) -> int:
    """Count the cache rows a `cached` step may see; its own new row is the mask's last entry."""
    return int((tensors["mask"].reshape(-1)[:-1] > MASKED / 2).sum()) if "mask" in tensors else 0


def _file(name: str, number: int) -> str:
    """Name an array: tokens_%06d.npy and audio_%06d.npy as calibration sets have always called them."""
    if name.startswith(("self_", "cross_")):
        return f"clip_{number:06d}.{name}.npy"
    return f"{({'token': 'tokens', 'hidden': 'audio'}).get(name, name)}_{number:06d}.npy"


def _step_counts(results: Mapping[str, tuple[int, bool]], chosen: Mapping[str, list[int]]) -> dict[str, Any]:
    """Count, per decoder step, the clips where it occurs and the samples that cover it."""
    pool = [n for n, capped in results.values() if not capped] or [n for n, _ in results.values()]
    covered = Counter(step for taken in chosen.values() for step in taken)
    every = range(max(pool))
    return {
        "steps_occurring": [sum(n > step for n in pool) for step in every],
        "steps_covered": [covered[step] for step in every],
    }


def _warnings(counts: Mapping[str, int], coverage: Mapping[str, Any]) -> list[str]:
    warnings = []
    few = {part: count for part, count in counts.items() if count < FEW}
    if few:
        listed = ", ".join(f"{part} {count}" for part, count in few.items())
        warnings.append(
            f"few calibration samples ({listed}; {FEW} or more are wanted): the int8 ranges may miss what other speech"
            " needs; give more clips or a higher --calibration-samples"
        )
    if coverage["never_ended"]:
        warnings.append(
            f"{coverage['never_ended']} of {coverage['clips']} calibration clips never end in the float decoder;"
            " loops give no decoder samples unless every clip loops"
        )
    covered = coverage["decoder"]["steps_covered"]
    if 0 in covered:
        warnings.append(
            f"only {np.count_nonzero(covered)} of {len(covered)} decoder steps are covered; raise --calibration-samples"
        )
    for warning in warnings:
        log.warning("%s", warning)
    return warnings


def _rank(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()
