"""Compare encoders as the source of the decoder's calibration data: real weights, in the simulator.

    .venv/bin/python benchmarks/calibration_sources.py [--clips 60] [--search-delta-wer P] [--json F]

The same int8 decoder and cross are calibrated from three harvests: of the mixed-precision encoder that feeds them
(`--precision auto`), of the float16 binary, and of the float graphs on the host. Each decodes behind that same encoder,
as does the float16 decoder. Stages come from the artifact store (NIGHTJAR_STORE) as in a port, so an interrupted run
continues. Exits with 2 if weights, speech or toolkit are absent.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.speed import SPEECH, WEIGHTS  # noqa: E402
from flows.evaluation import evaluate_binary  # noqa: E402
from flows.port import build_binary, calibrate_on, make_calibration  # noqa: E402
from flows.precision_search import quantization_parameters  # noqa: E402
from flows.prepare import Prepared, prepare  # noqa: E402
from nightjar.cli.console import Screen  # noqa: E402
from nightjar.errors import NightjarError  # noqa: E402
from nightjar.plugins.registry import plugin  # noqa: E402
from nightjar.plugins.target import make_options, session_of  # noqa: E402
from nightjar.request import PortRequest  # noqa: E402
from nightjar.scoring.score import errors_and_words, score  # noqa: E402
from nightjar.scoring.wer import paired_bootstrap  # noqa: E402
from nightjar.store.remote import open_store  # noqa: E402
from nightjar.toolchains.environment import toolchain  # noqa: E402
from tasks.build import build  # noqa: E402
from tasks.harvest import harvest  # noqa: E402
from tasks.hypotheses import EvaluateOptions, read_hypotheses  # noqa: E402
from tasks.judge import clips_from_lines  # noqa: E402
from tasks.measure import divergence, logit_snr_db  # noqa: E402
from tasks.stage import Run, current_or_new_run, current_run, running  # noqa: E402


def compare(request: PortRequest) -> list[dict[str, Any]]:
    """Calibrate from each source, build and evaluate; a row has the loss against the float graphs."""
    prepared = prepare(request)
    usual = make_calibration(request, prepared)
    feeding, _ = build_binary(request, prepared, usual)
    sources = {
        "the encoder that feeds it": (feeding, prepared.target, prepared.board),
        "host, float": (prepared.reference, prepared.host, prepared.host_board),
    }
    sets = {"float16 binary": usual}
    for name, (binary, target, place) in sources.items():
        hidden = harvest(
            binary=binary,
            speech=prepared.calibration_speech,
            session=session_of(prepared.decode, target, place),
            board=place,
            samples=request.calibration_samples,
            seed=0,
            label=name,
        )
        sets[name] = calibrate_on(request, prepared, hidden, label=name)
    options = EvaluateOptions(language=request.language, limit=request.limit, watch=True)

    def hypotheses(binary: Any, encoder: Any, reference: Any, name: str) -> Any:
        return evaluate_binary(
            prepared,
            binary,
            speech=prepared.test_speech,
            options=options,
            label=name,
            reference=reference,
            on_host=reference is None,
            session=(plugin("targets", prepared.host.name, "runner"),),
            **({"encoder": encoder} if encoder else {}),
        )

    expected = hypotheses(prepared.reference, None, None, "float")
    rows = [
        _row("float16 decoder", expected, hypotheses(prepared.floating, feeding, expected, "float16 decoder"), request)
    ]
    for name, calibration in sets.items():
        decoder = _int8(request, prepared, calibration, name)
        rows.append(_row(name, expected, hypotheses(decoder, feeding, expected, name), request))
    return rows


def _int8(request: PortRequest, prepared: Prepared, calibration: Any, name: str) -> Any:
    return build(
        graphs=prepared.graphs,
        calibration=calibration,
        target=prepared.target,
        options=make_options(prepared.target, "int8"),
        **quantization_parameters(request, prepared, prepared.graphs, calibration),
        label=name,
    )


def _row(name: str, expected: Any, obtained: Any, request: PortRequest) -> dict[str, Any]:
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
        "calibrated_from": name,
        "kl": float(f"{kl:.4g}"),
        "agree": sum(line["agree"][0] for line in got if line["agree"]),
        "steps": steps,
        "logit_snr_db": round(logit_snr_db(wanted, got), 2),
        "wer": round(ours.wer, 2),
        "delta_wer": round(ours.wer - floats.wer, 2),
        "interval": [round(low, 2), round(high, 2)],
        "bad": sum(clip.empty or clip.looping or clip.capped for clip in ours.clips),
        "clips": len(ours.clips),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=60, help="evaluation clips")
    parser.add_argument("--search-delta-wer", type=float, default=0.5, help="the search's budget, as in a port")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    try:
        toolchain("rknn")
    except NightjarError as error:
        print(error, file=sys.stderr)
        return 2
    if not (WEIGHTS.is_file() and SPEECH.is_dir()):
        print(f"needs {WEIGHTS} and {SPEECH}", file=sys.stderr)
        return 2
    request = PortRequest(
        model=WEIGHTS.stem,
        checkpoint=WEIGHTS,
        target="rknn",
        precision="auto",
        calibration_set=SPEECH / "calibration.jsonl",
        test_set=SPEECH / "evaluation.jsonl",
        limit=arguments.clips,
        search_delta_wer=arguments.search_delta_wer,
    )
    screen = Screen()
    run = Run(open_store(), frozenset(), False, on_progress=screen.progress, on_outcome=screen.outcome)
    with running(run), screen, current_or_new_run(()):
        rows = compare(request)
    for row in rows:
        print("  ".join(f"{value}" for value in row.values()))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
