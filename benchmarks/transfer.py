"""Compare a ranking's plans with random plans of the same int8 share.

    .venv/bin/python benchmarks/transfer.py --target hailo [--clips 72] [--rungs 1 8] [--seeds 0]
        [--target-options attention_16bit=yes] [--json F]

It uses the stand-in and real weights. For each rung of the ladder of `port --precision auto` it takes the encoder's
plan and random plans of the same int8 share of products. A random plan keeps half of the groups without products
(sums, norms, GELUs) out of int8; a second one also keeps all that the first given rung keeps. Two more plans keep every
residual sum, and nothing. All are built from the same rewritten graphs and ranges and decode the same evaluation clips;
other parts than the encoder are as in the rung. Stages come from the artifact store (NIGHTJAR_STORE) as in a port.
Exits with 2 if weights, speech or toolchain are absent.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import onnx  # noqa: E402

from benchmarks.speed import SPEECH, WEIGHTS  # noqa: E402
from flows.evaluation import evaluate_binary, evaluate_reference  # noqa: E402
from flows.port import make_calibration  # noqa: E402
from flows.precision_search import quantization_parameters, rungs_of, search_options  # noqa: E402
from flows.prepare import prepare  # noqa: E402
from nightjar.cli.console import Screen  # noqa: E402
from nightjar.errors import NightjarError  # noqa: E402
from nightjar.files import digest_file  # noqa: E402
from nightjar.graphs.fusion import Group, quantizable_groups  # noqa: E402
from nightjar.plugins.target import make_options  # noqa: E402
from nightjar.quantization.sensitivity import RankingSettings  # noqa: E402
from nightjar.request import PortRequest  # noqa: E402
from nightjar.scoring.score import errors_and_words, score  # noqa: E402
from nightjar.scoring.wer import paired_bootstrap  # noqa: E402
from nightjar.store.artifact import Source  # noqa: E402
from nightjar.store.remote import open_store  # noqa: E402
from tasks.build import build  # noqa: E402
from tasks.hypotheses import EvaluateOptions, read_hypotheses  # noqa: E402
from tasks.judge import clips_from_lines  # noqa: E402
from tasks.measure import divergence  # noqa: E402
from tasks.rank import rank, rewrite  # noqa: E402
from tasks.stage import Run, current_or_new_run, current_run, running  # noqa: E402


def compare(request: PortRequest, rungs: list[int], seeds: list[int], folder: Path) -> list[dict[str, Any]]:
    """Build and evaluate every plan; a row has what it keeps out of int8 and its loss against the float graphs."""
    prepared = prepare(request)
    calibration = make_calibration(request, prepared)
    ranking = rank(graphs=prepared.graphs, calibration=calibration, settings=RankingSettings())
    graphs = rewrite(graphs=prepared.graphs, ranking=ranking)
    quantized = quantization_parameters(request, prepared, graphs, calibration)
    options, speech = search_options(request, prepared), prepared.calibration_speech
    reference = evaluate_reference(prepared, speech=speech, options=options, label="rungs float")
    ladder, _ = rungs_of(ranking, reference)
    groups = quantizable_groups(onnx.load(current_run().store.path(graphs) / "encoder.onnx"))
    options = EvaluateOptions(language=request.language, limit=request.limit, watch=True)
    asked: dict[str, Any] = {"speech": prepared.test_speech, "options": options}
    expected = evaluate_reference(prepared, label="float", **asked)
    rows = []
    for name, plan in plans(ladder, groups, rungs, seeds):
        path = folder / name.replace(" ", "-") / "plan.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(plan), encoding="utf-8")
        binary = build(
            graphs=graphs,
            calibration=calibration,
            target=prepared.target,
            options=make_options(prepared.target, "auto", target_options=request.target_options),
            plan=Source(path=path.parent, sha256=digest_file(path)),
            **quantized,
            label=name,
        )
        obtained = evaluate_binary(prepared, binary, reference=expected, label=name, **asked)
        part = json.loads((current_run().store.path(binary) / "binary.json").read_text())["parts"]["encoder"]
        kept = len(plan["float"]["encoder"])
        rows.append({"plan": name, "kept": kept, "int8": part["int8_mac_share"], **lost(expected, obtained, request)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def plans(
    ladder: list[Any], groups: list[Group], rungs: list[int], seeds: list[int]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield named plans; those of one rung differ only in what the encoder keeps out of int8."""
    total = sum(group.macs for group in groups)
    bare = [group.tensor for group in groups if not group.macs]
    first = ladder[rungs[0]].model_dump(by_alias=True)
    yield "all int8", first | {"float": first["float"] | {"encoder": []}}
    sums = [group.tensor for group in groups if group.kind == "add"]
    yield "residual sums outside int8", first | {"float": first["float"] | {"encoder": sums}}
    for number in rungs:
        ranked = ladder[number].model_dump(by_alias=True)
        yield f"rung {number}", ranked
        share = ladder[number].expected.int8_mac_share["encoder"]
        for seed in seeds:
            dice, kept, left = random.Random(seed), list[str](), 1.0
            for group in dice.sample(groups, len(groups)):
                if group.macs and left - group.macs / total >= share - 0.005:
                    kept.append(group.tensor)
                    left -= group.macs / total
            kept += dice.sample(bare, len(bare) // 2)
            yield f"random {seed} for rung {number}", ranked | {"float": ranked["float"] | {"encoder": sorted(kept)}}
            if number != rungs[0]:
                kept = sorted({*kept, *first["float"]["encoder"]})
                name = f"random {seed} for rung {number} plus rung {rungs[0]}"
                yield name, ranked | {"float": ranked["float"] | {"encoder": kept}}


def lost(expected: Any, obtained: Any, request: PortRequest) -> dict[str, Any]:
    """Return the loss of a binary against the float graphs on the same clips."""
    store = current_run().store
    wanted, got = read_hypotheses(store.path(expected)), read_hypotheses(store.path(obtained))
    floats, ours = (
        score(each, "host", clips_from_lines(wanted), lines, request.language)
        for each, lines in (("f", wanted), ("b", got))
    )
    (errors, words), (before, _) = errors_and_words(ours.clips), errors_and_words(floats.clips)
    low, high = paired_bootstrap(errors, before, words)[:2]
    kl, steps = divergence(wanted, got)
    return {
        "nats": float(f"{kl:.3g}"),
        "agree": sum(line["agree"][0] for line in got if line["agree"]),
        "steps": steps,
        "wer_float": round(floats.wer, 2),
        "wer": round(ours.wer, 2),
        "delta_wer": round(ours.wer - floats.wer, 2),
        "interval": [round(low, 2), round(high, 2)],
        "looping": sum(clip.looping for clip in ours.clips),
        "clips": len(ours.clips),
        "words": sum(words),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="hailo", help="target with a stand-in (default: hailo)")
    parser.add_argument("--target-options", nargs="+", default=[], help="as for port")
    parser.add_argument("--clips", type=int, default=72, help="evaluation clips")
    parser.add_argument("--rungs", type=int, nargs="+", default=[1, 8], help="rungs of the ladder; 0 has the most int8")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="random plans for each rung")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not (WEIGHTS.is_file() and SPEECH.is_dir()):
        print(f"needs {WEIGHTS} and {SPEECH}", file=sys.stderr)
        return 2
    request = PortRequest(
        model=WEIGHTS.stem,
        checkpoint=WEIGHTS,
        target=arguments.target,
        board="stand-in",
        precision="auto",
        target_options=tuple(arguments.target_options),
        calibration_set=SPEECH / "calibration.jsonl",
        test_set=SPEECH / "evaluation.jsonl",
        limit=arguments.clips,
    )
    screen, store = Screen(), open_store()
    run = Run(store, frozenset(), False, on_progress=screen.progress, on_outcome=screen.outcome)
    try:
        with running(run), screen, current_or_new_run(()):
            rows = compare(request, arguments.rungs, arguments.seeds, store.root / ".plans")
    except NightjarError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
