"""Verdict on a port: three scores on the same clips, gates against budgets, one outcome."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from nightjar.errors import BadInput
from nightjar.scoring.drift import Drift
from nightjar.scoring.normalize import RATES, Unit
from nightjar.scoring.score import RERUN_HINT, ClipScore, Score, Silence, Tier, errors_and_words
from nightjar.scoring.wer import MOST_CLIPS, Counts, clips_to_decide, corpus_wer, paired_bootstrap

Outcome = Literal["PASS", "FAIL", "UNDECIDED"]
DURATIONS_S = (2, 5, 10, 20, 30)
STAND_IN_NOTE = "a public runtime in place of the vendor's: not a score of this NPU, and not counted"
ROUNDING = 1e-9  # a value equal to its limit must not fail by a rounding error


class Budgets(BaseModel, frozen=True):
    """The losses that a port may have and still pass."""

    max_delta_wer: float = Field(
        default=1.0, description="points of WER the binary may lose to this recipe's float graphs"
    )
    max_recipe_loss: float = Field(
        default=0.5, description="points of WER the recipe's float graphs may lose to stock Whisper"
    )
    max_new_empty: int = Field(default=0, ge=0, description="clips empty in the binary and not in float")
    max_new_looping: int = Field(default=0, ge=0, description="clips looping in the binary and not in float")
    max_new_capped: int = Field(default=0, ge=0, description="clips at the token limit in the binary and not in float")
    max_silence_words: int = Field(
        default=0, ge=0, description="words that the binary hallucinates in silence beyond those of float"
    )
    min_agreement: float = Field(
        default=0.95,
        ge=0,
        le=1,
        description="share of the float graphs' tokens that the binary predicts, teacher-forced: a decoder that "
        "is wrong on one token in twenty is damaged, whatever its WER on a small test set; 0 turns the gate off",
    )
    max_drift_db: float = Field(
        default=3.0, ge=0, description="streams: dB by which the error of the searched output may grow"
    )
    max_aside: int = Field(default=0, ge=0, description="excluded clips of a board's own program")
    min_clips: int = Field(default=2, ge=1, description="fewer decide no WER gate: one clip has no spread")


class Gate(BaseModel, frozen=True):
    """One measured value against its limit; `clips_needed` is set where more clips would decide."""

    name: str
    value: float | None
    limit: float
    outcome: Outcome
    sentence: str
    interval: tuple[float, float] | None = None
    clips_needed: int | None = None


class Group(BaseModel, frozen=True):
    """The three WERs of a group of clips, in percent; None without reference words."""

    name: str
    clips: int
    seconds: float
    words: int
    wer_stock: float | None
    wer_float: float | None
    wer: float | None


class Verdict(BaseModel, frozen=True):
    """Whether the port passes, by which gates, and where it loses; rates are in percent."""

    outcome: Outcome
    tier: Tier
    unit: Unit
    clips: int
    words: int
    wer: float
    wer_float: float
    wer_stock: float
    delta_wer: float
    interval: tuple[float, float]
    recipe_loss: float
    recipe_interval: tuple[float, float]
    hypotheses: dict[str, int] = Field(description="empty, looping and capped in the binary")
    gates: tuple[Gate, ...]
    by_speaker: tuple[Group, ...]
    by_duration: tuple[Group, ...]


def headline(tier: str, outcome: str) -> str:
    """Write a verdict; a stand-in's differs from that of an NPU."""
    return f"stand-in ({outcome})" if tier == "stand-in" else outcome


def deciding_gates(results: Mapping[str, Any]) -> list[str]:
    """List the sentences of the gates in results.json that decided a verdict other than PASS."""
    return [gate["sentence"] for gate in results["gates"] if gate["outcome"] == results["verdict"] != "PASS"]


def judge(
    stock: Score,
    float_: Score,
    binary: Score,
    budgets: Budgets | None = None,
    silence: Silence | None = None,
    aside: Mapping[str, str] | None = None,
    drift: Drift | None = None,
) -> Verdict:
    """Compare the binary with its float graphs, and those with stock, gate by gate.

    One failed gate fails the port; else one undecided gate leaves it undecided. A gate that was not measured is
    undecided. aside: the excluded clips with their reasons, where a board's own program was run; drift: of one long
    stream, where the model streams.
    """
    budgets = budgets or Budgets()
    _same_clips(stock, float_, binary)
    errors, words = errors_and_words(binary.clips)
    errors_float, _ = errors_and_words(float_.clips)
    errors_stock, _ = errors_and_words(stock.clips)
    delta, loss = binary.wer - float_.wer, float_.wer - stock.wer
    interval = paired_bootstrap(errors, errors_float, words)
    recipe_interval = paired_bootstrap(errors_float, errors_stock, words)
    rate = RATES[binary.unit]
    sizes = len(words), budgets.min_clips
    gates = (
        _wer_gate("delta_wer", f"{rate} of binary − float", delta, interval, budgets.max_delta_wer, *sizes),
        _wer_gate("recipe_loss", f"{rate} of float − stock", loss, recipe_interval, budgets.max_recipe_loss, *sizes),
        _new_gate("empty", float_, binary, budgets.max_new_empty),
        _new_gate("looping", float_, binary, budgets.max_new_looping),
        _new_gate("capped", float_, binary, budgets.max_new_capped),
        _silence_gate(float_, binary, silence, budgets.max_silence_words),
        _agreement_gate(binary, budgets.min_agreement),
        *([] if aside is None else [_excluded_gate(aside, budgets.max_aside)]),
        *([] if drift is None else [_drift_gate(drift, budgets.max_drift_db)]),
    )
    outcomes = [gate.outcome for gate in gates]
    return Verdict(
        outcome="FAIL" if "FAIL" in outcomes else "UNDECIDED" if "UNDECIDED" in outcomes else "PASS",
        tier=binary.tier,
        unit=binary.unit,
        clips=len(words),
        words=sum(words),
        wer=binary.wer,
        wer_float=float_.wer,
        wer_stock=stock.wer,
        delta_wer=delta,
        interval=interval,
        recipe_loss=loss,
        recipe_interval=recipe_interval,
        hypotheses={"empty": binary.empty, "looping": binary.looping, "capped": binary.capped},
        gates=gates,
        by_speaker=_groups(stock, float_, binary, lambda clip: clip.speaker or "unknown"),
        by_duration=_groups(stock, float_, binary, lambda clip: _duration_range(clip.duration_s)),
    )


def _same_clips(stock: Score, float_: Score, binary: Score) -> None:
    for other in (stock, float_):
        theirs = {clip.id: clip.reference for clip in other.clips}
        ours = {clip.id: clip.reference for clip in binary.clips}
        odd = sorted(i for i in theirs.keys() | ours.keys() if theirs.get(i) != ours.get(i))
        if odd or other.language != binary.language:
            what = f"clip {odd[0]}" if odd else f"language {binary.language} and {other.language}"
            raise BadInput(
                f"the scores of {other.subject} and {binary.subject} differ in {what}; a verdict "
                f"needs all three on the same clips: {RERUN_HINT}"
            )


def _wer_gate(
    name: str, text: str, value: float, interval: tuple[float, float], limit: float, clips: int, min_clips: int
) -> Gate:
    """Judge a loss by its interval: wholly within the budget, wholly beyond it, or neither."""
    low, high = interval
    text += f" {value:+.2f} points [{low:+.2f}, {high:+.2f}], budget {limit:.2f}"
    outcome: Outcome = "UNDECIDED"
    needed = None
    if clips < min_clips:
        needed = min_clips
        text += f": {clips} clip(s) give no interval, at least {min_clips} are needed"
    elif high <= limit + ROUNDING:
        outcome = "PASS"
    elif low > limit + ROUNDING:
        outcome = "FAIL"
    else:
        needed = clips_to_decide(value, interval, limit, clips)
        about = f"about {needed}" if needed < MOST_CLIPS else "a million or more"
        text += f": {clips} clips leave it open, {about} would decide"
    return Gate(
        name=name, value=value, limit=limit, outcome=outcome, sentence=text, interval=interval, clips_needed=needed
    )


def _limit_gate(name: str, value: float, limit: float, text: str) -> Gate:
    """Pass a value that is at most its limit."""
    outcome: Outcome = "PASS" if value <= limit + ROUNDING else "FAIL"
    return Gate(name=name, value=value, limit=limit, outcome=outcome, sentence=text)


def _new_gate(what: str, float_: Score, binary: Score, limit: int) -> Gate:
    """Count the clips that are `what` in the binary and not in float."""
    pairs = zip(float_.clips, binary.clips, strict=True)
    new = [b.id for f, b in pairs if getattr(b, what) and not getattr(f, what)]
    named = f" ({', '.join(new[:5])}{' …' if len(new) > 5 else ''})" if new else ""
    text = f"{len(new)} clips are {what} in the binary and not in float{named}, limit {limit}"
    return _limit_gate(f"new_{what}", len(new), limit, text)


def _silence_gate(float_: Score, binary: Score, silence: Silence | None, limit: int) -> Gate:
    """Count hallucinated words on silent probes and on the test set's own silent clips."""
    both = zip(float_.clips, binary.clips, strict=True)
    words = [(f.counts.insertions, b.counts.insertions) for f, b in both if b.silent]
    if silence is not None:
        words += [(silence.float_words[i], n) for i, n in silence.binary_words.items()]
    if not words:
        text = "hallucination on silence was not measured: use silent probes, or add a clip with an empty text"
        return Gate(name="silence", value=None, limit=limit, outcome="UNDECIDED", sentence=text)
    # per clip, so that a clip on which the binary is better does not excuse one on which it is worse
    new = sum(max(0, b - f) for f, b in words)
    text = f"{new} words hallucinated in {len(words)} silent clips by the binary and not by float, limit {limit}"
    return _limit_gate("silence", new, limit, text)


def _drift_gate(drift: Drift, limit: float) -> Gate:
    curve, grown = drift.courses[drift.output], drift.grown_db
    text = (
        f"over {drift.seconds:g} s in one stream, the SNR of {drift.output} against float goes from "
        f"{curve.first_db:.1f} to {curve.last_db:.1f} dB: its error grows by {grown:.1f} dB, limit {limit:.1f}"
    )
    return _limit_gate("drift", grown, limit, text)


def _agreement_gate(binary: Score, limit: float) -> Gate:
    matching, of = binary.agree or (0, 0)
    if of:
        share = matching / of
        outcome: Outcome = "PASS" if share >= limit else "FAIL"
        text = f"teacher-forced, {matching} of {of} tokens agree ({share:.1%}), limit {limit:.1%}"
        return Gate(name="agreement", value=share, limit=limit, outcome=outcome, sentence=text)
    outcome = "UNDECIDED" if limit else "PASS"
    text = f"teacher-forced agreement was not measured, limit {limit:.1%}"
    return Gate(name="agreement", value=None, limit=limit, outcome=outcome, sentence=text)


def _excluded_gate(aside: Mapping[str, str], limit: int) -> Gate:
    """Count the excluded clips: without this gate, a program that crashes on clips would score better than it is."""
    first = "; ".join(f"{clip}: {why}" for clip, why in list(aside.items())[:5])
    text = f"{len(aside)} clips were excluded, limit {limit}" + (f": {first}" if first else "")
    return _limit_gate("aside", len(aside), limit, text + (" …" if len(aside) > 5 else ""))


def _duration_range(duration_s: float) -> str:
    """Write the range of a clip's duration so that ranges sort by duration: "02-05 s"."""
    for start, stop in zip((0, *DURATIONS_S), DURATIONS_S, strict=False):
        if duration_s < stop:
            return f"{start:02d}-{stop:02d} s"
    return f"{DURATIONS_S[-1]:02d} s and more"


def _groups(stock: Score, float_: Score, binary: Score, name_of: Callable[[ClipScore], str]) -> tuple[Group, ...]:
    groups = []
    for name in sorted({name_of(clip) for clip in binary.clips}):
        inside = [[clip for clip in score.clips if name_of(clip) == name] for score in (stock, float_, binary)]
        totals = [sum((clip.counts for clip in clips), Counts()) for clips in inside]
        wer_stock, wer_float, wer = (corpus_wer([total]) if total.reference else None for total in totals)
        groups.append(
            Group(
                name=name,
                clips=len(inside[-1]),
                seconds=sum(clip.duration_s for clip in inside[-1]),
                words=totals[-1].reference,
                wer_stock=wer_stock,
                wer_float=wer_float,
                wer=wer,
            )
        )
    return tuple(groups)
