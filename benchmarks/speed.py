"""Speed as ratios, each against a named alternative in the same run: decoding, building, an idle run, memory.

    .venv/bin/python benchmarks/speed.py [hearing] [building] [rerun] [memory] [--clips N] [--repeats N] [--json F]

OpenAI's tiny.en comes from NIGHTJAR_MODELS, else from where ../shared/models/fetch puts it; speech from NIGHTJAR_DATA,
else from ../shared/data. Run it on an idle machine.
Exits with 1 if a ratio misses its bound, with 2 if weights or speech are absent.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
SPEECH = Path(os.environ.get("NIGHTJAR_DATA") or SHARED / "data") / "librispeech"
WEIGHTS = Path(os.environ.get("NIGHTJAR_MODELS") or Path.home() / ".cache" / "nightjar-models") / "tiny.en.pt"
FIXED_START_S = 5.0
Figures = dict[str, float | str]


def hearing(arguments: argparse.Namespace, folder: Path) -> list[tuple[Figures, bool]]:
    """Time a session on the float graphs, openai-whisper, and the session's graph calls alone, on the same clips."""
    from models.whisper.stock import load_stock
    from models.whisper.tokens import text
    from nightjar.boards.board import LocalBoard
    from nightjar.sessions.run import run_session
    from nightjar.speech.manifest import load_speech, shuffled, split_by_window

    binary = build_float(folder)
    clips = split_by_window(shuffled(load_speech(SPEECH / "evaluation.jsonl"), seed=0), 30.0)[0][: arguments.clips]
    model = json.loads((binary / "model.json").read_text())
    whisper = load_stock(WEIGHTS)
    bare = bare_calls(binary, clips)
    rounds = []
    for number in range(arguments.repeats):
        ours_s, lines = timed(
            lambda number=number: run_session(LocalBoard(), binary, clips, folder / f"job{number}", decode=True)
        )
        stock_s, upstream = timed(lambda: [whisper.transcribe(clip.audio, "en") for clip in clips])
        bare_s, _ = timed(bare)
        rounds.append((stock_s / ours_s, ours_s / bare_s, ours_s, stock_s, bare_s))
        print(f"  round {number + 1}: session {ours_s:.1f} s, openai-whisper {stock_s:.1f} s, bare {bare_s:.1f} s")
        differing = [
            clip.id
            for clip, line, theirs in zip(clips, lines, upstream, strict=True)
            if text(line["tokens"], model) != theirs["text"]
        ]
        if differing:
            print(f"  text differs from openai-whisper's: {', '.join(differing)}")
    faster, overhead, ours_s, stock_s, bare_s = (statistics.median(column) for column in zip(*rounds, strict=True))
    per_clip = {"session_s": ours_s / len(clips), "whisper_s": stock_s / len(clips), "bare_s": bare_s / len(clips)}
    equal = f"{len(clips) - len(differing)} of {len(clips)} texts equal"
    return [
        (
            {"what": "openai-whisper's greedy decode / evaluation session", "ratio": faster, "bound": ">= 2.5"}
            | {"note": equal, **per_clip},
            faster >= 2.5 and not differing,
        ),
        (
            {"what": "evaluation session / the same graph calls, bare onnxruntime", "ratio": overhead}
            | {"bound": "<= 1.25", "note": f"{len(clips)} clips, start of the process included"},
            overhead <= 1.25,
        ),
    ]


def bare_calls(binary: Path, clips: list[Any]) -> Callable[[], None]:
    """Record the graph calls of a decode; return a function that makes only these, in the same order."""
    import onnxruntime

    from models.whisper import decode
    from nightjar.speech.audio import load_audio
    from targets.onnx.runner import open_runner

    model = json.loads((binary / "model.json").read_text())
    parts = json.loads((binary / "binary.json").read_text())["parts"]
    runner, calls = open_runner(binary, parts), list[tuple[str, tuple[tuple[str, tuple[int, ...], str], ...]]]()

    class Noting:
        def run(self, part: str, inputs: dict[str, Any], constant: Any = {}, **into: Any) -> Any:  # noqa: B006
            given = {**inputs, **constant}
            calls.append((part, tuple((name, array.shape, array.dtype.name) for name, array in given.items())))
            return runner.run(part, inputs, constant, **into)

    def jobs() -> Iterator[decode.EncodedClip]:
        for clip in clips:
            features = decode.features(load_audio(clip.audio).astype(np.float32) / 32768, model)
            yield decode.EncodedClip(clip.id, decode.encode(Noting(), features, model))

    list(decode.decode_clips(Noting(), jobs(), model, lanes=parts["decoder"].get("lanes", 1)))
    runner.close()
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    sessions = {
        name: onnxruntime.InferenceSession(str(binary / part["file"]), settings, providers=["CPUExecutionProvider"])
        for name, part in parts.items()
    }
    rng = np.random.default_rng(0)

    def tensor(shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.zeros(shape, dtype) if dtype == "int64" else rng.standard_normal(shape).astype(dtype)

    inputs = {key: {name: tensor(shape, dtype) for name, shape, dtype in key[1]} for key in set(calls)}

    def call() -> None:
        for key in calls:
            sessions[key[0]].run(None, inputs[key])

    return call


def building(arguments: argparse.Namespace, folder: Path) -> list[tuple[Figures, bool]]:
    """Export and build int8 as the stages do, against the same torch.onnx and onnxruntime calls alone."""
    import torch

    from models.whisper.checkpoint import load_checkpoint
    from models.whisper.export import OPSET, build_parts, export
    from nightjar.graphs.onnx_graph import load_graph
    from nightjar.graphs.onnx_session import open_session
    from nightjar.plugins.recipe import Recipe
    from nightjar.quantization.calibration_set import CalibrationSet
    from targets.onnx import compile
    from targets.onnx.options import Options
    from targets.onnx.quantize import float_by_rule, linear_nodes

    calibration = calibrated(folder, arguments.clips)
    recipe = Recipe()

    def ours(out: Path) -> None:
        export(WEIGHTS, recipe, out / "graphs")
        compile(out / "graphs", calibration, Options(precision="int8"), out / "binary")

    def bare(out: Path) -> float:
        """Return the seconds of the calls alone; the work between them prepares their inputs."""
        out.mkdir()
        total_s, checkpoint = timed(lambda: load_checkpoint(WEIGHTS))
        samples = CalibrationSet.open(calibration)
        for name, part in build_parts(checkpoint, recipe).items():
            file = out / f"{name}.onnx"
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                names = {"input_names": list(part.inputs), "output_names": part.outputs, "opset_version": OPSET}
                export_s, _ = timed(
                    lambda part=part, file=file, names=names: torch.onnx.export(
                        part.module, tuple(part.inputs.values()), str(file), dynamo=False, **names
                    )
                )
            graph = load_graph(file)
            inputs = {value.name for value in graph.graph.input}
            kept = float_by_rule(graph)
            probed = sorted({node.input[0] for node in linear_nodes(graph) if node.name not in kept} - inputs)
            total_s += export_s
            if not probed:  # `cross` reads only its input, whose range needs no run
                continue
            known = {value.name: value for value in graph.graph.value_info}
            del graph.graph.output[:]
            graph.graph.output.extend(known[each] for each in probed)
            content = graph.SerializeToString()
            start_s, session = timed(lambda content=content: open_session(content, integer_kernels=True))
            total_s += start_s
            for sample in samples.samples(name):
                run_s, _ = timed(lambda sample=sample, session=session, probed=probed: session.run(probed, sample))
                total_s += run_s
        return total_s

    rounds = []
    for number in range(arguments.repeats):
        ours_s, _ = timed(lambda number=number: ours(folder / f"ours{number}"))
        bare_s = bare(folder / f"bare{number}")
        rounds.append((max(0.0, ours_s - FIXED_START_S) / bare_s, ours_s, bare_s))
        print(f"  round {number + 1}: export and build {ours_s:.1f} s, bare calls {bare_s:.1f} s")
    ratio, ours_s, bare_s = (statistics.median(column) for column in zip(*rounds, strict=True))
    what = "(export and build int8 - 5 s) / the same torch.onnx and onnxruntime calls"
    figures = {"what": what, "ratio": ratio, "bound": "<= 1.10", "ours_s": ours_s, "bare_s": bare_s}
    return [({**figures, "note": f"calibrated on {arguments.clips} clips"}, ratio <= 1.10)]


def rerun(arguments: argparse.Namespace, folder: Path) -> list[tuple[Figures, bool]]:
    """Time `nightjar port` with nothing to do against a running Prefect server, and a Python that imports prefect."""
    from tests.prefect_server import prefect_server

    environment = os.environ | {"NIGHTJAR_STORE": str(folder / "store"), "PREFECT_HOME": str(folder / "prefect")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # otherwise every run compiles this repository again
    command = [sys.executable, "-m", "nightjar.cli.main", "port", "--limit", "8", "--calibration-samples", "20"]
    with prefect_server(folder / "prefect") as url:
        environment["PREFECT_API_URL"] = url
        run = lambda: subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)  # noqa: E731
        run()
        times = [timed(run)[0] for _ in range(max(5, arguments.repeats))]
        prefect = [sys.executable, "-c", "import prefect.flows, prefect.tasks"]
        bare = [timed(lambda: subprocess.run(prefect, env=environment, check=True))[0] for _ in range(5)]
    seconds, bare_s = statistics.median(times), statistics.median(bare)
    print(f"  nothing to do {seconds:.2f} s, `import prefect` alone {bare_s:.2f} s")
    what = "nothing-changed run / `import prefect` in a new Python"
    figures = {"what": what, "ratio": seconds / bare_s, "bound": "<= 2 s", "ours_s": seconds, "bare_s": bare_s}
    return [({**figures, "note": f"median of {len(times)}"}, seconds <= 2.0)]


def memory(arguments: argparse.Namespace, folder: Path) -> list[tuple[Figures, bool]]:
    """Compare the peak memory of calibration on 50 and on 200 clips, each in its own process."""
    peaks = {}
    build_float(folder)
    for count in (50, 200):
        command = [sys.executable, __file__, "--calibrate", str(folder), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[count] = int(done.stdout.split()[-1]) / 2**20
        print(f"  {count} clips: {peaks[count]:.0f} MiB")
    ratio = peaks[200] / peaks[50]
    figures = {"what": "peak memory of calibration on 200 clips / on 50", "ratio": ratio, "bound": "0.9 to 1.1"}
    return [({**figures, "note": f"{peaks[50]:.0f} and {peaks[200]:.0f} MiB"}, 0.9 <= ratio <= 1.1)]


def build_float(folder: Path) -> Path:
    """Export and build the float binary once per folder."""
    from models.whisper.export import export
    from nightjar.plugins.recipe import Recipe
    from targets.onnx import compile
    from targets.onnx.options import Options

    if not (folder / "float").exists():
        export(WEIGHTS, Recipe(), folder / "graphs")
        compile(folder / "graphs", None, Options(), folder / "float")
    return folder / "float"


def calibrated(folder: Path, count: int) -> Path:
    """Harvest and calibrate on the first clips of the calibration list."""
    from models.whisper.calibrate import CalibrationOptions, calibrate
    from nightjar.boards.board import LocalBoard
    from nightjar.sessions.run import run_session
    from nightjar.speech.manifest import load_speech
    from targets.onnx.runner import open_runner

    binary, clips = build_float(folder), load_speech(SPEECH / "calibration.jsonl")[:count]
    job, out = folder / f"harvest{count}", folder / f"calibration{count}"
    run_session(LocalBoard(), binary, clips, job, decode=False, harvest=["hidden"])
    runner = open_runner(binary, json.loads((binary / "binary.json").read_text())["parts"])
    calibrate(binary, job / "harvest", clips, CalibrationOptions(samples=count), runner, out)
    return out


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return a call's seconds and its result."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benchmarks = {each.__name__: each for each in (hearing, building, rerun, memory)}
    parser.add_argument("which", nargs="*", help=f"of {', '.join(benchmarks)} (default: all)")
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not (WEIGHTS.exists() and SPEECH.exists()):
        print(f"no {WEIGHTS} or {SPEECH}: set NIGHTJAR_MODELS and NIGHTJAR_DATA", file=sys.stderr)
        return 2
    found = []
    for name in arguments.which or benchmarks:
        print(name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            found += benchmarks[name](arguments, Path(folder))
    for figures, good in found:
        print(
            f"{figures['ratio']:6.2f}  {figures['bound']:10}  {'ok  ' if good else 'MISS'}  {figures['what']}"
            f" ({figures['note']})"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps([{**figures, "ok": good} for figures, good in found], indent=1) + "\n")
    return 0 if all(good for _, good in found) else 1


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if sys.argv[1:2] == ["--calibrate"]:  # in its own process, so that its peak memory is the result
        calibrated(Path(sys.argv[2]), int(sys.argv[3]))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        sys.exit(0)
    sys.exit(main())
