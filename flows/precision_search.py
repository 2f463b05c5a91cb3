"""Find which tensors may be int8: a ranking made on the host, and its rungs measured where the target runs.

graphs + calibration ─rank─▶ ranking ─rewrite─▶ graphs ─quantize─▶ parameters
ranking ─plan─▶ rung ─build─▶ binary ─evaluate─▶ hypotheses ─measure─▶ loss, again for the next rung

Only calibration speech is heard here. Every rung is a stage of its own, so a search for another budget starts from what
is measured already.
"""

from typing import Any, NamedTuple

from flows.evaluation import hear, hear_here
from nightjar.plugins.board_choice import board_of
from nightjar.plugins.registry import plugin
from nightjar.plugins.target import make_options, target_of
from nightjar.quantization.mixed_precision import Budget, Measurement, Rung, ladder, search
from nightjar.quantization.sensitivity import RankingSettings, read_ranking
from nightjar.request import PortRequest
from nightjar.speech.manifest import load_speech
from nightjar.store.artifact import Artifact, Source
from tasks.build import build
from tasks.hypotheses import EvaluateOptions, read_hypotheses
from tasks.measure import measure, read_measurement
from tasks.plan import SearchRecord, frontier, plan
from tasks.quantize import quantize
from tasks.rank import rank
from tasks.rewrite import rewrite
from tasks.stage import Pending, current_run

HEARD_S = 150.0  # of calibration speech that a rung is measured on
CLIPS = (16, 64)  # at least, at most


class Searched(NamedTuple):
    """What a search found: the graphs to build from, with what, and what it measured on the way."""

    graphs: Any
    settings: dict[str, Any]  # plan, and quantized where the target has it
    frontier: Any


def searched(
    request: PortRequest, *, family: str, graphs: Any, reference: Any, calibration: Any, speech: Source
) -> Searched:
    """Find the plan of the largest int8 share within the request's budget; raises BadInput where none is."""
    target = target_of(request.target, request.board)
    known = plugin("models", family).load()
    follow = plugin("models", family, "chain") if known.STREAMS else None
    ranking = rank(graphs=graphs, calibration=calibration, settings=RankingSettings(), follow=follow)
    rewritten = rewrite(graphs=graphs, ranking=ranking)
    quantized = parameters(request, rewritten, calibration)
    board = board_of(target, request.board)
    options = EvaluateOptions(language=request.language, limit=_enough(speech), watch=True, agree_clips=CLIPS[1])
    asked: dict[str, Any] = {"speech": speech, "options": options}
    expected = hear_here(family, plugin("targets", "onnx"), binary=reference, label="rungs float", **asked)
    if isinstance(ranking, Pending) or isinstance(expected, Pending):
        return Searched(rewritten, {"plan": Pending("search"), **quantized}, Pending("search"))
    plans, calls = _ladder(ranking, expected)
    by_key = {rung.key(): number for number, rung in enumerate(plans)}
    tried: dict[str, Measurement] = {}

    def planned(rung: Rung) -> Any:
        number = by_key[rung.key()]
        return plan(ranking=ranking, calls=calls, rung=number, label=f"rung {number}")

    def measured(rung: Rung) -> Measurement:
        name = f"rung {by_key[rung.key()]}"
        binary = build(
            graphs=rewritten,
            calibration=calibration,
            target=target,
            options=make_options(target, "auto", chosen=request.target_options),
            plan=planned(rung),
            **quantized,
            label=name,
        )
        obtained = hear(family, target, board, binary=binary, reference=expected, label=name, **asked)
        found = measure(expected=expected, obtained=obtained, language=request.language, label=name)
        if isinstance(found, Pending):
            raise _Unknown
        return read_measurement(current_run().store.path(found))

    try:
        budget = Budget(delta_wer=request.search_delta_wer, kl_per_percent=known.NATS_PER_PERCENT)
        found, _ = search(plans, measured, budget, tried)
    except _Unknown:  # a plan cannot see beyond what is measured
        return Searched(rewritten, {"plan": Pending("search"), **quantized}, Pending("search"))
    so_far = SearchRecord(calls=calls, measured={by_key[key]: result for key, result in tried.items()})
    made = frontier(ranking=ranking, tried=so_far, found=by_key[found.key()])
    return Searched(rewritten, {"plan": planned(found), **quantized}, made)


def _enough(speech: Source) -> int:
    """Say how many clips hold HEARD_S of speech."""
    clips = load_speech(speech.path)
    mean_s = sum(clip.duration_s for clip in clips) / len(clips)
    return min(max(round(HEARD_S / mean_s), CLIPS[0]), CLIPS[1])


def parameters(request: PortRequest, graphs: Any, calibration: Any) -> dict[str, Any]:
    """Collect quantization parameters, for a target that builds from them: {"quantized": artifact}, else nothing."""
    target = target_of(request.target, request.board)
    if not hasattr(target.load(), "quantization"):
        return {}
    options = make_options(target, "int8", chosen=request.target_options)  # what is kept float does not enter them
    return {"quantized": quantize(graphs=graphs, calibration=calibration, target=target, options=options)}


class _Unknown(Exception):
    """A rung is not measured, and this run only plans."""


def _ladder(ranking: Artifact, expected: Artifact) -> tuple[list[Rung], dict[str, float]]:
    """Make the ladder for hypotheses as long as these."""
    store = current_run().store
    lines = [line for line in read_hypotheses(store.path(expected)) if not line["probe"]]
    made = [line.get("calls", {"decoder": line["steps"]}) for line in lines]  # a stream says; Whisper's steps are calls
    calls = {part: round(sum(each[part] for each in made) / len(made), 1) for part in made[0]}
    return ladder(read_ranking(store.path(ranking) / "ranking.json"), calls), calls
