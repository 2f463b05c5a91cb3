"""Choose and store the calibration samples of each Whisper part; numpy only.

The decoder is calibrated on real decode steps of every position over harvested hidden states: its ranges differ between
the first token, mid-sentence and the end, and a set with one of them alone quantizes the others wrongly.
"""

import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from models.whisper.decode import EncodedClip, decode, decode_clips, features
from models.whisper.protocols import MASKED, Runner, Tensors
from nightjar.errors import BadInput
from nightjar.progress import tick
from nightjar.quantization.calibration_set import ArrayRef, CalibrationWriter, evenly, few_samples, load_harvested
from nightjar.speech.audio import load_audio
from nightjar.speech.manifest import Clip, rank, shuffled

REQUIRES_HARVEST = True  # a clip needs its hidden states
CLIP_SHARE = 0.1  # of the decoder's samples that one clip may give beyond the steps of no other clip
Results = Mapping[str, tuple[int, bool]]  # clip id -> decoder steps, and whether a limit ended it (capped)


class CalibrationOptions(BaseModel, frozen=True):
    """How much calibration data, and which."""

    samples: int = Field(200, ge=1, description="samples per part; below 100 warns")
    decoder_clips: int = Field(
        64, ge=1, description="clips the decoder's samples come from; each costs its cross-attention inputs on disk"
    )
    language: str = Field("en", description="language of the decoder's prompt")
    seed: int = Field(0, description="which clips and steps are drawn")


class Recorder:
    """Pass calls on to a runner, count the decoder's, and record its inputs at the chosen steps."""

    def __init__(self, runner: Runner, chosen: Collection[int]) -> None:
        self.steps = 0
        self.recorded: dict[int, Tensors] = {}  # per step, the inputs that differ from step to step
        self.constant: Tensors = {}
        self.caches: Tensors = {}  # as of the last recorded step
        self._runner = runner
        self._chosen = frozenset(chosen)

    def run(self, part: str, inputs: Tensors, constant: Mapping[str, Any] = {}, **into: Tensors) -> Tensors:
        """Run one part."""
        if part == "decoder":
            if self.steps in self._chosen:
                # The loop writes on into its cache, so copy; rows once written do not change.
                copied = {name: np.array(value) for name, value in inputs.items()}
                self.constant = dict(constant)
                self.caches = {name: copied.pop(name) for name in inputs if name.startswith("self_")}
                self.recorded[self.steps] = copied
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
    order = shuffled(clips, options.seed)[: options.samples]
    if not order:
        raise BadInput(
            "no clip of the calibration set fits the window; give 100 or more that do with --calibration-set"
        )
    writer = CalibrationWriter(out, {name: part["inputs"] for name, part in model["parts"].items()}, options.seed)

    def encoded_clips() -> Iterator[EncodedClip]:
        for number, clip in enumerate(order):
            wave = load_audio(clip.audio).astype(np.float32) / 32768.0
            _store_whole(writer, "encoder", number, features(wave, model))
            encoded = {"hidden": load_hidden(hidden, clip.id, model)}
            if "cross" in model["parts"]:
                _store_whole(writer, "cross", number, encoded)
            yield EncodedClip(clip.id, encoded)

    decoded: dict[str, tuple[int, bool]] = {}
    for name, result in decode_clips(runner, encoded_clips(), model, options.language, tables, lanes):
        decoded[name] = (result["steps"], result["capped"])
        tick(len(decoded), 2 * len(order))
    results = {clip.id: decoded[clip.id] for clip in order}
    chosen = choose_steps(decoder_steps(results, options.decoder_clips), options.samples, options.seed)
    for number, clip in enumerate(order):
        if clip.id in chosen:
            recorder = Recorder(runner, chosen[clip.id])
            decode(recorder, {"hidden": load_hidden(hidden, clip.id, model)}, model, options.language, tables)
            _store_steps(writer, number, recorder)
        tick(len(order) + number + 1, 2 * len(order))
    counts = {part: writer.count(part) for part in model["parts"]}
    coverage = {
        "clips": len(order),
        "speakers": len({clip.speaker for clip in order} - {None}),
        "never_ended": sum(capped for _, capped in results.values()),
        "decoder": {"clips": len(chosen), **_step_counts(results, chosen)},
        "samples": counts,
    }
    writer.close(coverage, [*few_samples(counts), *_decoder_warnings(coverage)])


def load_hidden(folder: Path, clip_id: str, model: Mapping[str, Any]) -> np.ndarray:
    """Read a clip's harvested hidden states as `(1, n_audio_ctx, d) float32`; BadInput where there are none."""
    shape = (model["n_audio_ctx"], model["dims"]["n_audio_state"])
    return load_harvested(folder / f"{clip_id}.hidden.npy", clip_id, shape)[None]


def decoder_steps(results: Results, most: int) -> dict[str, int]:
    """Return the decoder steps of at most `most` clips; `results` is in drawing order.

    The longest clip is always in, since it alone has every step that occurs. A capped clip is a loop, which no later
    run should be tuned for: it is left out unless there is nothing else.
    """
    pool = {name: steps for name, (steps, capped) in results.items() if not capped}
    pool = pool or {name: steps for name, (steps, _) in results.items()}
    longest = max(pool, key=lambda name: pool[name])
    names = [longest, *(name for name in pool if name != longest)][:most]
    return {name: pool[name] for name in names}


def choose_steps(steps: Mapping[str, int], samples: int, seed: int) -> dict[str, list[int]]:
    """Choose (clip, step) pairs so that every step that occurs is taken once before any is taken twice.

    Each step comes from the clip with the fewest so far. Where there are more steps than samples left, the steps taken
    are spread evenly from first to last. Repeats stop at CLIP_SHARE per clip, so fewer than `samples` may come back.
    """
    taken: dict[str, set[int]] = {name: set() for name in sorted(steps)}
    left = limit = samples

    def givers(step: int) -> list[str]:
        return [n for n, given in taken.items() if step < steps[n] and step not in given and len(given) < limit]

    while left and (offered := [step for step in range(max(steps.values())) if givers(step)]):
        for step in evenly(offered, left):
            if names := givers(step):
                taker = min(names, key=lambda n: (len(taken[n]), rank(seed, f"{n}/{step}")))
                taken[taker].add(step)
                left -= 1
        limit = max(int(samples * CLIP_SHARE), math.ceil(samples / len(steps)))
    return {name: sorted(given) for name, given in taken.items() if given}


def _store_whole(writer: CalibrationWriter, part: str, number: int, tensors: Tensors) -> None:
    writer.add(part, {name: writer.store(part, name, _file(name, number), value) for name, value in tensors.items()})


def _store_steps(writer: CalibrationWriter, number: int, recorder: Recorder) -> None:
    """Store a clip's recorded steps: constant inputs and KV caches once, the rest per step."""
    rows = {step: _rows(tensors) for step, tensors in recorder.recorded.items()}
    most = max(rows.values())
    shared = {n: writer.store("decoder", n, _file(n, number), np.asarray(a)) for n, a in recorder.constant.items()}
    caches = {
        n: writer.store("decoder", n, _file(n, number), a[:, :most], rows=True) for n, a in recorder.caches.items()
    }
    for step, tensors in recorder.recorded.items():
        place = writer.count("decoder")
        sample = {n: writer.store("decoder", n, _file(n, place), value) for n, value in tensors.items()}
        own_rows = {n: ArrayRef(file=ref.file, rows=rows[step]) for n, ref in caches.items()}
        writer.add("decoder", {**shared, **own_rows, **sample})


def _rows(tensors: Tensors) -> int:
    """Count the cache rows that a `cached` step may see; its own new row is the mask's last entry."""
    return int((tensors["mask"].reshape(-1)[:-1] > MASKED / 2).sum()) if "mask" in tensors else 0


def _file(name: str, number: int) -> str:
    """Name an array's file; tokens_%06d.npy and audio_%06d.npy are the names that vendor tools know."""
    if name.startswith(("self_", "cross_")):
        return f"clip_{number:06d}.{name}.npy"
    return f"{({'token': 'tokens', 'hidden': 'audio'}).get(name, name)}_{number:06d}.npy"


def _step_counts(results: Results, chosen: Mapping[str, list[int]]) -> dict[str, Any]:
    """Count, per decoder step, the clips where it occurs and the samples that cover it."""
    pool = decoder_steps(results, len(results)).values()
    covered = Counter(step for taken in chosen.values() for step in taken)
    every = range(max(pool))
    return {
        "steps_occurring": [sum(n > step for n in pool) for step in every],
        "steps_covered": [covered[step] for step in every],
    }


def _decoder_warnings(coverage: Mapping[str, Any]) -> list[str]:
    warnings = []
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
    return warnings
