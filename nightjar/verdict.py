"""Whether a port is still a speech recogniser: scores on the same clips, gates, one verdict."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from nightjar.data import Clip
from nightjar.errors import BadInput, SessionFailed
from nightjar.wer import (
    MANY,
    Counts,
    align,
    bootstrap,
    clips_to_decide,
    corpus,
    count,
    looping,
    normalise,
    paired_bootstrap,
    unit,
)

Tier = Literal["device", "vendor-simulator", "host", "stand-in"]
Outcome = Literal["PASS", "FAIL", "UNDECIDED"]
TIMED_TIERS = ("device", "host")  # a simulator's or a stand-in's seconds say nothing of the port
DURATIONS_S = (2, 5, 10, 20, 30)
DUST = 1e-9  # a WER of exactly the budget must not fail by its last binary digit


class Hypothesis(BaseModel, frozen=True):
    """One line of hypotheses.jsonl, as docs/files.md has it; stock Whisper leaves most out."""

    id: str
    text: str
    tokens: tuple[int, ...] = ()
    capped: bool = False
    agree: tuple[int, int] | None = None
    seconds: dict[str, float] = {}
    audio_s: float | None = None


class ClipScore(BaseModel, frozen=True):
    """Score one clip: its errors, and whether the hypothesis is empty, looping or capped."""

    id: str
    speaker: str | None
    duration_s: float
    reference: str
    hypothesis: str
    counts: Counts
    tokens: int
    empty: bool
    looping: bool
    capped: bool
    agree: tuple[int, int] | None

    @property
    def silent(self) -> bool:
        """Tell whether nothing is said in the clip, so that every word heard is invented."""
        return self.counts.reference == 0


class Percentiles(BaseModel, frozen=True):
    """Real-time factors over clips: seconds of work per second of audio."""

    p50: float
    p95: float


class Score(BaseModel, frozen=True):
    """Score one subject ("stock", "float", "binary") on a test set; rates are in percent."""

    subject: str
    tier: Tier
    language: str
    unit: Literal["word", "character"]
    counts: Counts
    wer: float
    interval: tuple[float, float]
    empty: int
    looping: int
    capped: int
    agree: tuple[int, int] | None = Field(description="teacher-forced tokens: matching, of")
    rtf: dict[str, Percentiles] | None = Field(
        description="per part and in total (features and decode loop included); device or host only"
    )
    clips: tuple[ClipScore, ...]


class Silence(BaseModel, frozen=True):
    """Count words heard on silent probe clips by the float graphs and by the binary, per clip."""

    float_words: dict[str, int]
    binary_words: dict[str, int]


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


# -- scores ------------------------------------------------------------------------------------


def score(
    subject: str, tier: Tier, clips: Sequence[Clip], hypotheses: Iterable[Mapping[str, Any]], language: str = "en"
) -> Score:
    """Score hypotheses (lines of hypotheses.jsonl) on the clips; lines of other clips are ignored.

    Raises SessionFailed if a clip has no hypothesis: leaving it out would score a different test.
    """
    if not clips:
        raise BadInput(f"{subject}: no clips to score; give a test set with clips in the window")
    heard = _by_id(subject, hypotheses)
    missing = [clip.id for clip in clips if clip.id not in heard]
    if missing:
        raise SessionFailed(
            f"{subject}: no hypothesis for {len(missing)} of {len(clips)} clips "
            f"({', '.join(missing[:5])}); every clip is scored or none: run it again"
        )
    ordered = sorted(clips, key=lambda clip: clip.id)
    scores = tuple(_clip_score(clip, heard[clip.id], language) for clip in ordered)
    agrees = [clip.agree for clip in scores if clip.agree]
    return Score(
        subject=subject,
        tier=tier,
        language=language,
        unit=unit(language),
        counts=sum((clip.counts for clip in scores), Counts()),
        wer=corpus(clip.counts for clip in scores),
        interval=bootstrap(*_errors_and_words(scores)),
        empty=sum(clip.empty for clip in scores),
        looping=sum(clip.looping for clip in scores),
        capped=sum(clip.capped for clip in scores),
        agree=(sum(a for a, _ in agrees), sum(of for _, of in agrees)) if agrees else None,
        rtf=_rtf([heard[clip.id] for clip in ordered]) if tier in TIMED_TIERS else None,
        clips=scores,
    )


def hear_silence(
    float_lines: Iterable[Mapping[str, Any]], binary_lines: Iterable[Mapping[str, Any]], language: str = "en"
) -> Silence:
    """Count the words in hypotheses of silent probe clips; both must have heard the same clips."""
    words = []
    for subject, lines in (("float", float_lines), ("binary", binary_lines)):
        heard = _by_id(f"silence, {subject}", lines)
        words.append({i: len(normalise(line.text, language).split()) for i, line in heard.items()})
    if words[0].keys() != words[1].keys():
        odd = sorted(words[0].keys() ^ words[1].keys())
        raise SessionFailed(f"silence: only one of float and binary heard {odd[0]}; run it again")
    return Silence(float_words=words[0], binary_words=words[1])


def _by_id(subject: str, lines: Iterable[Mapping[str, Any]]) -> dict[str, Hypothesis]:
    heard: dict[str, Hypothesis] = {}
    for number, line in enumerate(lines, 1):
        try:
            one = Hypothesis.model_validate(dict(line))
        except ValidationError as exc:
            first = exc.errors()[0]
            raise SessionFailed(
                f"{subject}: hypothesis {number}: {first['loc']}: {first['msg']}; a line has id, "
                "text, tokens, capped, agree, seconds and audio_s: run it again"
            ) from exc
        if heard.setdefault(one.id, one).text != one.text:
            raise SessionFailed(f"{subject}: two different hypotheses for {one.id}; run it again")
    return heard


def _clip_score(clip: Clip, heard: Hypothesis, language: str) -> ClipScore:
    reference = normalise(clip.text, language).split()
    words = normalise(heard.text, language).split()
    return ClipScore(
        id=clip.id,
        speaker=clip.speaker,
        duration_s=clip.duration_s,
        reference=clip.text,
        hypothesis=heard.text,
        counts=count(align(reference, words)),
        tokens=len(heard.tokens),
        empty=bool(reference) and not words,
        # the raw words too: the English normaliser makes one number of "one one one one"
        looping=looping(heard.tokens) or looping(words) or looping(heard.text.lower().split()),
        capped=heard.capped,
        agree=heard.agree,
    )


def _rtf(heard: Sequence[Hypothesis]) -> dict[str, Percentiles] | None:
    timed = [line for line in heard if line.audio_s and line.seconds]
    rtf = {}
    for part in dict.fromkeys(part for line in timed for part in line.seconds):
        rates = [line.seconds[part] / (line.audio_s or 1) for line in timed if part in line.seconds]
        p50, p95 = np.percentile(rates, [50, 95])
        rtf[part] = Percentiles(p50=float(p50), p95=float(p95))
    return rtf or None


def _errors_and_words(clips: Sequence[ClipScore]) -> tuple[list[int], list[int]]:
    return [clip.counts.errors for clip in clips], [clip.counts.reference for clip in clips]


# -- verdict -----------------------------------------------------------------------------------


def judge(
    stock: Score, float_: Score, binary: Score, budgets: Budgets | None = None, silence: Silence | None = None
) -> Verdict:
    """Hold the binary against its float graphs, and those against stock Whisper, gate by gate.

    One failed gate fails the port; else one undecided gate leaves it undecided. A gate that was not
    measured is undecided: what nobody looked at has not passed.
    """
    budgets = budgets or Budgets()
    _same_clips(stock, float_, binary)
    errors, words = _errors_and_words(binary.clips)
    errors_float, _ = _errors_and_words(float_.clips)
    errors_stock, _ = _errors_and_words(stock.clips)
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
                "needs all three on the same clips: score them in one run"
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
    elif hi <= limit + DUST:
        outcome = "PASS"
    elif lo > limit + DUST:
        outcome = "FAIL"
    else:
        needed = clips_to_decide(value, interval, limit, clips)
        often = f"about {needed}" if needed < MANY else "a million or more"
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


def _agreement_gate(binary: Score, limit: float) -> Gate:
    if binary.agree is None or not binary.agree[1]:
        said = f"teacher-forced agreement was not measured, limit {limit:.1%}: evaluate with it"
        outcome: Outcome = "UNDECIDED" if limit else "PASS"
        return Gate(name="agreement", value=None, limit=limit, outcome=outcome, sentence=said)
    matching, of = binary.agree
    said = f"teacher-forced, {matching} of {of} tokens agree ({matching / of:.1%}), limit {limit:.1%}"
    outcome = _outcome(matching / of >= limit)
    return Gate(name="agreement", value=matching / of, limit=limit, outcome=outcome, sentence=said)


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
        wer_stock, wer_float, wer = (corpus([total]) if total.reference else None for total in totals)
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
