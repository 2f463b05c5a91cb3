"""Whether a port is still a speech recogniser: scores on the same clips, gates, one verdict."""

from collections.abc import Callable, Mapping
from typing import Literal

from pydantic import BaseModel, Field

from nightjar.errors import BadInput
from nightjar.scoring.drift import Drift
from nightjar.scoring.score import ClipScore, Score, Silence, Tier, errors_and_words
from nightjar.scoring.wer import MOST_CLIPS, Counts, clips_to_decide, corpus_wer, paired_bootstrap

Outcome = Literal["PASS", "FAIL", "UNDECIDED"]
DURATIONS_S = (2, 5, 10, 20, 30)
STAND_IN_NOTE = "a public runtime in place of the vendor's: no score of this NPU, and it counts for nothing"
ROUNDING = 1e-9  # a WER of exactly the budget must not fail by its last binary digit


class Budgets(BaseModel, frozen=True):
    """Say what a port may lose before its verdict is no longer PASS."""

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
        default=0, ge=0, description="words the binary hears in silence beyond those that float hears there"
    )
    min_agreement: float = Field(
        default=0.95,
        ge=0,
        le=1,
        description="share of the float graphs' tokens the binary predicts, teacher-forced: a decoder that "
        "errs on one token in twenty is damaged, whatever the WER of a lucky test set; 0 asks for nothing",
    )
    max_drift_db: float = Field(
        default=3.0, ge=0, description="streams: dB by which the error of what is searched may grow over a stream"
    )
    max_aside: int = Field(default=0, ge=0, description="clips that a board's own program does not come through")
    min_clips: int = Field(default=2, ge=1, description="fewer decide no WER gate: one clip alone has no spread")


class Gate(BaseModel, frozen=True):
    """Hold one measured value against its limit; `clips_needed` is set where more clips would decide."""

    name: str
    value: float | None
    limit: float
    outcome: Outcome
    sentence: str
    interval: tuple[float, float] | None = None
    clips_needed: int | None = None


class Group(BaseModel, frozen=True):
    """Break the three WERs down (percent; None where a group has no reference words)."""

    name: str
    clips: int
    seconds: float
    words: int
    wer_stock: float | None
    wer_float: float | None
    wer: float | None


class Verdict(BaseModel, frozen=True):
    """Say whether the port passes, by which gates, and where it loses; rates are in percent."""

    outcome: Outcome
    tier: Tier
    unit: Literal["word", "character"]
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
    """Name a verdict; a stand-in's is never written like one of an NPU."""
    return f"stand-in ({outcome})" if tier == "stand-in" else outcome


def judge(
    stock: Score,
    float_: Score,
    binary: Score,
    budgets: Budgets | None = None,
    silence: Silence | None = None,
    aside: Mapping[str, str] | None = None,
    drift: Drift | None = None,
) -> Verdict:
    """Hold the binary against its float graphs, and those against stock Whisper, gate by gate.

    One failed gate fails the port; else one undecided gate leaves it undecided. A gate that was not
    measured is undecided: what nobody looked at has not passed. aside: why clips are not among the scores, by clip,
    where a board's own program was run; drift: what became of one long stream, where the model streams.
    """
    budgets = budgets or Budgets()
    _same_clips(stock, float_, binary)
    errors, words = errors_and_words(binary.clips)
    errors_float, _ = errors_and_words(float_.clips)
    errors_stock, _ = errors_and_words(stock.clips)
    delta, loss = binary.wer - float_.wer, float_.wer - stock.wer
    interval = paired_bootstrap(errors, errors_float, words)
    recipe_interval = paired_bootstrap(errors_float, errors_stock, words)
    rate = "WER" if binary.unit == "word" else "CER"
    sizes = len(words), budgets.min_clips
    gates = (
        _wer_gate("delta_wer", f"{rate} of binary − float", delta, interval, budgets.max_delta_wer, *sizes),
        _wer_gate("recipe_loss", f"{rate} of float − stock", loss, recipe_interval, budgets.max_recipe_loss, *sizes),
        _new_gate("empty", float_, binary, budgets.max_new_empty, lambda clip: clip.empty),
        _new_gate("looping", float_, binary, budgets.max_new_looping, lambda clip: clip.looping),
        _new_gate("capped", float_, binary, budgets.max_new_capped, lambda clip: clip.capped),
        _silence_gate(float_, binary, silence, budgets.max_silence_words),
        _agreement_gate(binary, budgets.min_agreement),
        *([] if aside is None else [_aside_gate(aside, budgets.max_aside)]),
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
        by_duration=_groups(stock, float_, binary, lambda clip: _bucket(clip.duration_s)),
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
                "needs all three on the same clips: run the same command with --refresh evaluate stock"
            )


def _wer_gate(
    name: str, said: str, value: float, interval: tuple[float, float], limit: float, clips: int, min_clips: int
) -> Gate:
    """Judge a loss by its interval: wholly within the budget, wholly beyond it, or neither."""
    lo, hi = interval
    said += f" {value:+.2f} points [{lo:+.2f}, {hi:+.2f}], budget {limit:.2f}"
    outcome: Outcome = "UNDECIDED"
    needed = None
    if clips < min_clips:
        needed = min_clips
        said += f": {clips} clip(s) give no interval, {min_clips} are the least"
    elif hi <= limit + ROUNDING:
        outcome = "PASS"
    elif lo > limit + ROUNDING:
        outcome = "FAIL"
    else:
        needed = clips_to_decide(value, interval, limit, clips)
        often = f"about {needed}" if needed < MOST_CLIPS else "a million or more"
        said += f": {clips} clips leave it open, {often} would decide"
    return Gate(
        name=name, value=value, limit=limit, outcome=outcome, sentence=said, interval=interval, clips_needed=needed
    )


def _new_gate(what: str, float_: Score, binary: Score, limit: int, is_so: Callable[[ClipScore], bool]) -> Gate:
    """Count clips of which the binary makes something bad that the float graphs do not."""
    new = [b.id for f, b in zip(float_.clips, binary.clips, strict=True) if is_so(b) and not is_so(f)]
    named = f" ({', '.join(new[:5])}{' …' if len(new) > 5 else ''})" if new else ""
    said = f"{len(new)} clips are {what} in the binary and not in float{named}, limit {limit}"
    return Gate(name=f"new_{what}", value=len(new), limit=limit, outcome=_outcome(len(new) <= limit), sentence=said)


def _silence_gate(float_: Score, binary: Score, silence: Silence | None, limit: int) -> Gate:
    """Count words invented on silent probes and on the test set's own silent clips."""
    both = zip(float_.clips, binary.clips, strict=True)
    quiet = [(f.counts.insertions, b.counts.insertions) for f, b in both if b.silent]
    if silence is not None:
        quiet += [(silence.float_words[i], n) for i, n in silence.binary_words.items()]
    if not quiet:
        said = "nobody listened to silence: probe with it, or add a clip with an empty text"
        return Gate(name="silence", value=None, limit=limit, outcome="UNDECIDED", sentence=said)
    # per clip, or a clip on which the binary is better would excuse one on which it is worse
    new = sum(max(0, b - f) for f, b in quiet)
    said = f"{new} words heard in {len(quiet)} silent clips by the binary and not by float, limit {limit}"
    return Gate(name="silence", value=new, limit=limit, outcome=_outcome(new <= limit), sentence=said)


def _drift_gate(drift: Drift, limit: float) -> Gate:
    course, grown = drift.courses[drift.output], drift.grown_db
    said = (
        f"over {drift.seconds:g} s in one stream {drift.output} goes from {course.first_db:.1f} to "
        f"{course.last_db:.1f} dB of float's: its error grows by {grown:.1f} dB, limit {limit:.1f}"
    )
    return Gate(name="drift", value=grown, limit=limit, outcome=_outcome(grown <= limit + ROUNDING), sentence=said)


def _agreement_gate(binary: Score, limit: float) -> Gate:
    if binary.agree is None or not binary.agree[1]:
        said = f"teacher-forced agreement was not measured, limit {limit:.1%}: evaluate with it"
        outcome: Outcome = "UNDECIDED" if limit else "PASS"
        return Gate(name="agreement", value=None, limit=limit, outcome=outcome, sentence=said)
    matching, of = binary.agree
    said = f"teacher-forced, {matching} of {of} tokens agree ({matching / of:.1%}), limit {limit:.1%}"
    outcome = _outcome(matching / of >= limit)
    return Gate(name="agreement", value=matching / of, limit=limit, outcome=outcome, sentence=said)


def _aside_gate(aside: Mapping[str, str], limit: int) -> Gate:
    """Count clips that a program crashed, hung or talked nonsense on: without them it would look better than it is."""
    first = "; ".join(f"{clip}: {why}" for clip, why in list(aside.items())[:5])
    said = f"{len(aside)} clips were set aside, limit {limit}" + (f": {first}" if first else "")
    said += " …" if len(aside) > 5 else ""
    return Gate(name="aside", value=len(aside), limit=limit, outcome=_outcome(len(aside) <= limit), sentence=said)


def _outcome(within: bool) -> Outcome:
    return "PASS" if within else "FAIL"


# -- breakdown ---------------------------------------------------------------------------------


def _bucket(duration_s: float) -> str:
    """Name a clip's length so that names sort by length: "02-05 s"."""
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
