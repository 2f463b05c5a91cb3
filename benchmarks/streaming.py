"""Cost of calibrating a stream, as ratios: memory and disk, speed against bare onnxruntime, size against its estimate.

    .venv/bin/python benchmarks/streaming.py [memory] [speed] [full] [--clips N] [--repeats N] [--json F]

It uses the shipped zipformer-nano and its speech, repeated until there are enough clips. Run it on an idle machine.
Exits with 1 if a ratio misses its bound.
"""

import argparse
import json
import logging
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
NANO = ROOT / "data" / "zipformer-nano"
Figures = dict[str, float | str]


def exported(folder: Path) -> Path:
    """Export the shipped model once."""
    from models.zipformer.export import export
    from targets.onnx import recipe

    graphs = folder / "graphs"
    if not graphs.exists():
        export(NANO, recipe("zipformer"), graphs)
    return graphs


def clips_of(count: int) -> list[Any]:
    """Return `count` clips: the shipped calibration list, repeated under new ids."""
    from nightjar.speech.manifest import load_speech

    speech = load_speech(NANO / "calibration.jsonl")
    rounds = -(-count // len(speech))
    named = [c.model_copy(update={"id": f"{number:03d}-{c.id}"}) for number in range(rounds) for c in speech]
    return named[:count]


def calibrated(graphs: Path, clips: list[Any], out: Path, **asked: Any) -> None:
    """Calibrate as the stage does."""
    from models.zipformer.calibrate import CalibrationOptions, calibrate
    from targets.onnx.runner import open_runner

    model = json.loads((graphs / "model.json").read_text(encoding="utf-8"))
    runner = open_runner(graphs, model["parts"], {"threads": 1})
    calibrate(graphs, out.parent / "nothing", clips, CalibrationOptions(**asked), runner, out)


def memory(arguments: argparse.Namespace, folder: Path) -> list[tuple[Figures, bool]]:
    """Compare peak memory and peak disk use of 2,000 clips and of 100, each in its own process."""
    graphs, found = exported(folder), {}
    for count in (100, arguments.clips):
        out = folder / f"set{count}"
        reading, writing = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(target=_measured, args=(graphs, count, out, writing))
        process.start()
        most = 0
        while process.is_alive():
            most = max(most, _bytes_of(out))
            time.sleep(0.2)
        process.join()
        if process.exitcode:
            raise SystemExit(f"calibration on {count} clips failed with exit code {process.exitcode}")
        found[count] = (reading.recv(), max(most, _bytes_of(out)))
        print(
            f"  {count} clips: {found[count][0] / 2**20:.0f} MiB of memory, {found[count][1] / 2**20:.1f} MiB on disk"
        )
    (small, less), (large, more) = found.values()
    return [
        (
            {"what": f"peak memory, {arguments.clips} clips / 100", "ratio": large / small},
            0.95 <= large / small <= 1.05,
        ),
        ({"what": f"most on disk, {arguments.clips} clips / 100", "ratio": more / less}, 0.95 <= more / less <= 1.05),
    ]


def _measured(graphs: Path, count: int, out: Path, answer: Any) -> None:
    calibrated(graphs, clips_of(count), out)
    answer.send(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _bytes_of(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # deleted meanwhile
            continue
    return total


def speed(arguments: argparse.Namespace, folder: Path) -> list[tuple[Figures, bool]]:
    """Compare bare onnxruntime over the same chunks with all of calibration: features, sampling, search, storing."""
    from models.zipformer.decode import features
    from models.zipformer.stream import initial_states
    from nightjar.speech.audio import load_audio
    from targets.onnx.runner import open_runner

    graphs, clips = exported(folder), clips_of(500)
    model = json.loads((graphs / "model.json").read_text(encoding="utf-8"))
    runner = open_runner(graphs, model["parts"])
    made = [features(load_audio(clip.audio).astype(np.float32) / 32768, model)["x"] for clip in clips]
    session = runner.sessions["encoder"].result()
    names = [value.name for value in session.get_outputs()]

    def bare() -> None:
        for chunks in made:
            states = initial_states(model)
            for x in chunks:
                outputs = dict(zip(names, session.run(names, {"x": x[None], **states}), strict=True))
                states = {s["input"]: outputs[s["output"]] for s in model["states"]}

    bare()
    rounds = []
    for number in range(arguments.repeats):
        bare_s = timed(bare)
        ours_s = timed(lambda number=number: calibrated(graphs, clips, folder / f"round{number}"))
        rounds.append(bare_s / ours_s)
        steps = sum(map(len, made))
        print(f"  round {number + 1}: bare {bare_s:.2f} s, calibration {ours_s:.2f} s, {steps} steps, {rounds[-1]:.2f}")
    ratio = statistics.median(rounds)
    return [({"what": "bare onnxruntime over the same chunks / calibration", "ratio": ratio}, ratio >= 0.9)]


def full(arguments: argparse.Namespace, folder: Path) -> list[tuple[Figures, bool]]:
    """Compare the size of a `full` set of a small corpus with its estimate."""
    from models.zipformer.calibrate import estimate_bytes

    graphs, clips, out = exported(folder), clips_of(10), folder / "full"
    model = json.loads((graphs / "model.json").read_text(encoding="utf-8"))
    calibrated(graphs, clips, out, states="full")
    index = json.loads((out / "calibration.json").read_text(encoding="utf-8"))
    files = {ref["file"] for sample in index["parts"]["encoder"]["samples"] for ref in sample.values()}
    written = sum((out / name).stat().st_size for name in files)
    ratio = written / estimate_bytes(clips, model)
    print(f"  {written / 2**20:.1f} MiB written")
    return [({"what": "a full set on disk / its estimate", "ratio": ratio}, 0.95 <= ratio <= 1.05)]


def timed(call: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


PARTS = {"memory": memory, "speed": speed, "full": full}


def main() -> int:
    """Measure the requested ratios; return 1 if a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--clips", type=int, default=2_000, help="clips of the larger corpus")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for part in arguments.parts or PARTS:
            print(part)
            for figures, good in PARTS[part](arguments, Path(scratch)):
                rows.append({**figures, "ok": good})
                print(f"{figures['what']}: {figures['ratio']:.3f} {'ok' if good else 'MISSED'}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
