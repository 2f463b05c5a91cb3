"""Find which layers may be int8: rank them on the host, then measure plans where the target runs.

graphs + calibration ─rank─▶ ranking ─rewrite─▶ graphs ─quantize─▶ parameters
ranking ─plan─▶ rung ─build─▶ binary ─evaluate─▶ hypotheses ─measure─▶ loss, again for the next rung

The search sees calibration speech only. Each rung is a stage of its own, so a search with another budget reuses the
rungs that are measured.
"""

from typing import Any, NamedTuple

from flows.evaluation import evaluate_binary, evaluate_reference
from flows.prepare import Prepared
from nightjar.plugins.registry import plugin
from nightjar.plugins.target import make_options, traits_of
from nightjar.quantization.mixed_precision import Budget, Measurement, Rung, ladder, search
from nightjar.quantization.sensitivity import RankingSettings, read_ranking
from nightjar.request import PortRequest
from nightjar.speech.manifest import load_speech
from nightjar.store.artifact import Artifact, Source
from tasks.build import build, quantize
from tasks.hypotheses import EvaluateOptions, read_hypotheses
from tasks.measure import SearchRecord, frontier, measure, plan, read_measurement
from tasks.rank import rank, rewrite
from tasks.stage import Pending, current_run

SPEECH_S = 150.0  # of calibration speech that a rung is measured on
CLIPS = (16, 64)  # at least, at most


class SearchResult(NamedTuple):
    """The graphs to build from, the build's further inputs, and what the search measured."""

    graphs: Any
    settings: dict[str, Any]  # plan, and quantized where the target has it
    frontier: Any


def search_precision(request: PortRequest, prepared: Prepared, calibration: Any) -> SearchResult:
    """Find the plan of the largest int8 share within the request's budget; raises BadInput when no plan is."""
    family = plugin("models", prepared.family).load()
    chain = plugin("models", prepared.family, "chain") if family.STREAMS else None
    traits = traits_of(prepared.target)
    settings = RankingSettings(traits=traits)
    ranking = rank(graphs=prepared.graphs, calibration=calibration, settings=settings, chain=chain)
    graphs = rewrite(graphs=prepared.graphs, ranking=ranking)
    quantized = quantization_parameters(request, prepared, graphs, calibration)
    speech = prepared.calibration_speech
    options = search_options(request, prepared)
    expected = evaluate_reference(prepared, speech=speech, options=options, label="rungs float")
    unknown = SearchResult(graphs, {"plan": Pending("search"), **quantized}, Pending("search"))
    if isinstance(ranking, Pending) or isinstance(expected, Pending):
        return unknown
    rungs, calls = rungs_of(ranking, expected)
    number_of = {rung.key(): number for number, rung in enumerate(rungs)}
    losses: dict[str, Measurement] = {}

    def make_plan(rung: Rung) -> Any:
        number = number_of[rung.key()]
        return plan(ranking=ranking, calls=calls, rung=number, label=f"rung {number}")

    def measure_rung(rung: Rung) -> Measurement:
        label = f"rung {number_of[rung.key()]}"
        binary = build(
            graphs=graphs,
            calibration=calibration,
            target=prepared.target,
            options=make_options(prepared.target, "auto", target_options=request.target_options),
            plan=make_plan(rung),
            **quantized,
            label=label,
        )
        obtained = evaluate_binary(prepared, binary, speech=speech, options=options, label=label, reference=expected)
        loss = measure(reference=expected, hypotheses=obtained, language=request.text_language, label=label)
        if isinstance(loss, Pending):
            raise _NotMeasured
        return read_measurement(current_run().store.path(loss))

    try:
        budget = Budget(delta_wer=request.search_delta_wer, kl_per_percent=family.NATS_PER_PERCENT)
        best, _ = search(rungs, measure_rung, budget, losses, traits.measured_loss_share)
    except _NotMeasured:
        return unknown
    tried = SearchRecord(calls=calls, measured={number_of[key]: loss for key, loss in losses.items()})
    measured = frontier(ranking=ranking, tried=tried, found=number_of[best.key()])
    return SearchResult(graphs, {"plan": make_plan(best), **quantized}, measured)


class _NotMeasured(Exception):
    """A rung is not measured, and this run only plans."""


def search_options(request: PortRequest, prepared: Prepared) -> EvaluateOptions:
    """Evaluate as many calibration clips as hold SPEECH_S of speech, within CLIPS."""
    assert isinstance(prepared.calibration_speech, Source)
    clips = load_speech(prepared.calibration_speech.path)
    mean_s = sum(clip.duration_s for clip in clips) / len(clips)
    limit = min(max(round(SPEECH_S / mean_s), CLIPS[0]), CLIPS[1])
    return EvaluateOptions(language=request.language, limit=limit, watch=True, agree_clips=CLIPS[1])


def quantization_parameters(request: PortRequest, prepared: Prepared, graphs: Any, calibration: Any) -> dict[str, Any]:
    """Quantize, for a target that builds from quantization parameters: {"quantized": artifact}, else nothing."""
    target = prepared.target
    if not hasattr(target.load(), "quantization"):
        return {}
    options = make_options(target, "int8", target_options=request.target_options)  # float nodes do not enter them
    return {"quantized": quantize(graphs=graphs, calibration=calibration, target=target, options=options)}


def rungs_of(ranking: Artifact, expected: Artifact) -> tuple[list[Rung], dict[str, float]]:
    """Make the ladder for hypotheses as long as these; return it with the mean calls (Whisper: steps) of each part."""
    store = current_run().store
    counts = [line.get("calls", {"decoder": line["steps"]}) for line in read_hypotheses(store.path(expected))]
    calls = {part: round(sum(each[part] for each in counts) / len(counts), 1) for part in counts[0]}
    return ladder(read_ranking(store.path(ranking) / "ranking.json"), calls), calls
