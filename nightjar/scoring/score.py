"""Scores of one subject on a test set, clip by clip: hypotheses counted against reference texts."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, Field, ValidationError

from nightjar.errors import BadInput, SessionFailed
from nightjar.scoring.normalize import error_unit, normalise
from nightjar.scoring.streaming import STRATA, ChunkTimes, chunk_times, stratum_index
from nightjar.scoring.wer import Counts, Edit, align, bootstrap_interval, corpus_wer, count_edits, looping
from nightjar.speech.manifest import Clip

Tier = Literal["device", "vendor-simulator", "host", "stand-in"]
RERUN_HINT = "run the same command with --refresh evaluate stock"
TIMED_TIERS = ("device", "host")  # the time of a simulator or a stand-in is not that of the port


def _part_of_whole(agree: tuple[int, int]) -> tuple[int, int]:
    if not 0 <= agree[0] <= agree[1]:
        raise ValueError(f"{agree[0]} of {agree[1]} tokens cannot agree")
    return agree


class Hypothesis(BaseModel, frozen=True):
    """One line of hypotheses.jsonl, as in docs/files.md; stock Whisper leaves most fields out."""

    id: str
    text: str
    tokens: tuple[int, ...] = ()
    capped: bool = False
    agree: Annotated[tuple[int, int], AfterValidator(_part_of_whole)] | None = None
    seconds: dict[str, float] = {}
    throttled: str = ""
    audio_s: float | None = None
    word_chunks: tuple[int, ...] | None = Field(None, description="streams: the chunk after which each word is there")
    chunk_ms: tuple[float, ...] = ()
    chunk_s: float | None = None


class ClipScore(BaseModel, frozen=True):
    """The score of one clip: its errors, and whether the hypothesis is empty, looping or capped."""

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
    by_stratum: dict[str, Counts] | None = Field(None, description="streams: counts by position in the stream")

    @property
    def silent(self) -> bool:
        """Tell whether the reference text is empty, so that every word is hallucinated."""
        return self.counts.reference == 0


class Percentiles(BaseModel, frozen=True):
    """Real-time factors over clips: seconds of work per second of audio."""

    p50: float
    p95: float


class Stratum(BaseModel, frozen=True):
    """The score of one range of positions in streams; rates are in percent, None without words."""

    name: str
    counts: Counts
    wer: float | None
    interval: tuple[float, float] | None


class Score(BaseModel, frozen=True):
    """The score of one subject ("stock", "float", "binary") on a test set; rates are in percent."""

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
    throttled: dict[str, int] = Field({}, description="clips processed while the board was throttled, by cause")
    by_chunk: tuple[Stratum, ...] = Field((), description="streams: by position in the stream")
    chunk_times: ChunkTimes | None = Field(None, description="streams: seconds per chunk; device or host only")
    clips: tuple[ClipScore, ...]


class Silence(BaseModel, frozen=True):
    """Words of the float graphs and of the binary on silent probe clips, per clip."""

    float_words: dict[str, int]
    binary_words: dict[str, int]


def score(
    subject: str, tier: Tier, clips: Sequence[Clip], hypotheses: Iterable[Mapping[str, Any]], language: str = "en"
) -> Score:
    """Score hypotheses (lines of hypotheses.jsonl) on the clips; lines of other clips are ignored.

    Raises SessionFailed if a clip has no hypothesis: without it, the score is of another test set.
    """
    if not clips:
        raise BadInput(f"{subject}: no clips to score; give clips in the window, or pass --long chunk")
    by_id = _by_id(subject, hypotheses)
    missing = [clip.id for clip in clips if clip.id not in by_id]
    if missing:
        raise SessionFailed(
            f"{subject}: no hypothesis for {len(missing)} of {len(clips)} clips "
            f"({', '.join(missing[:5])}); all clips must have one: {RERUN_HINT}"
        )
    ordered = sorted(clips, key=lambda clip: clip.id)
    lines = [by_id[clip.id] for clip in ordered]
    scores = tuple(_clip_score(clip, line, language) for clip, line in zip(ordered, lines, strict=True))
    agrees = [clip.agree for clip in scores if clip.agree]
    timed = lines if tier in TIMED_TIERS else []
    return Score(
        subject=subject,
        tier=tier,
        language=language,
        unit=error_unit(language),
        counts=sum((clip.counts for clip in scores), Counts()),
        wer=corpus_wer(clip.counts for clip in scores),
        interval=bootstrap_interval(*errors_and_words(scores)),
        empty=sum(clip.empty for clip in scores),
        looping=sum(clip.looping for clip in scores),
        capped=sum(clip.capped for clip in scores),
        agree=(sum(a for a, _ in agrees), sum(of for _, of in agrees)) if agrees else None,
        rtf=_rtf(timed),
        throttled=dict(Counter(line.throttled for line in timed if line.throttled).most_common()),
        by_chunk=_strata(scores),
        chunk_times=_chunk_times(timed),
        clips=scores,
    )


def score_silence(
    float_lines: Iterable[Mapping[str, Any]], binary_lines: Iterable[Mapping[str, Any]], language: str = "en"
) -> Silence:
    """Count the words in hypotheses of silent probe clips; both sides must have the same clips."""
    words = []
    for subject, lines in (("float", float_lines), ("binary", binary_lines)):
        by_id = _by_id(f"silence, {subject}", lines)
        words.append({i: len(normalise(line.text, language).split()) for i, line in by_id.items()})
    if words[0].keys() != words[1].keys():
        odd = sorted(words[0].keys() ^ words[1].keys())
        raise SessionFailed(f"silence: only one of float and binary has clip {odd[0]}; {RERUN_HINT}")
    return Silence(float_words=words[0], binary_words=words[1])


def _by_id(subject: str, lines: Iterable[Mapping[str, Any]]) -> dict[str, Hypothesis]:
    by_id: dict[str, Hypothesis] = {}
    for number, line in enumerate(lines, 1):
        try:
            one = Hypothesis.model_validate(dict(line))
        except ValidationError as exc:
            first = exc.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise SessionFailed(
                f"{subject}: hypothesis {number}: {place}: {first['msg']}; a line has id, "
                f"text, tokens, capped, agree, seconds and audio_s: {RERUN_HINT}"
            ) from exc
        if by_id.setdefault(one.id, one).text != one.text:
            raise SessionFailed(f"{subject}: two different hypotheses for {one.id}; {RERUN_HINT}")
    return by_id


def _clip_score(clip: Clip, hypothesis: Hypothesis, language: str) -> ClipScore:
    reference = normalise(clip.text, language).split()
    words = normalise(hypothesis.text, language).split()
    edits = align(reference, words)
    chunks = hypothesis.word_chunks
    return ClipScore(
        id=clip.id,
        speaker=clip.speaker,
        duration_s=clip.duration_s,
        reference=clip.text,
        hypothesis=hypothesis.text,
        counts=count_edits(edits),
        tokens=len(hypothesis.tokens),
        empty=bool(reference) and not words,
        # the raw words too: the English normaliser joins "one one one one" to one number
        looping=looping(hypothesis.tokens) or looping(words) or looping(hypothesis.text.lower().split()),
        capped=hypothesis.capped,
        agree=hypothesis.agree,
        by_stratum=counts_by_stratum(edits, chunks) if chunks is not None and len(chunks) == len(words) else None,
    )


def _rtf(lines: Sequence[Hypothesis]) -> dict[str, Percentiles] | None:
    timed = [line for line in lines if line.audio_s and line.seconds]
    rtf = {}
    for part in dict.fromkeys(part for line in timed for part in line.seconds):
        rates = [line.seconds[part] / (line.audio_s or 1) for line in timed if part in line.seconds]
        p50, p95 = np.percentile(rates, [50, 95])
        rtf[part] = Percentiles(p50=float(p50), p95=float(p95))
    return rtf or None


def _strata(clips: Sequence[ClipScore]) -> tuple[Stratum, ...]:
    streams = [clip.by_stratum for clip in clips if clip.by_stratum is not None]
    found = []
    for name in STRATA:
        counts = [stream.get(name, Counts()) for stream in streams]
        total = sum(counts, Counts())
        if total.reference:
            interval = bootstrap_interval([c.errors for c in counts], [c.reference for c in counts])
            found.append(Stratum(name=name, counts=total, wer=corpus_wer(counts), interval=interval))
        elif total.errors:
            found.append(Stratum(name=name, counts=total, wer=None, interval=None))
    return tuple(found)


def _chunk_times(lines: Sequence[Hypothesis]) -> ChunkTimes | None:
    lasts = {line.chunk_s for line in lines if line.chunk_ms} - {None}
    taken = [ms for line in lines for ms in line.chunk_ms]
    return chunk_times(taken, lasts.pop() or 0.0) if taken and lasts else None


def errors_and_words(clips: Sequence[ClipScore]) -> tuple[list[int], list[int]]:
    """Return the number of errors and of reference words, per clip."""
    return [clip.counts.errors for clip in clips], [clip.counts.reference for clip in clips]


def counts_by_stratum(edits: Sequence[Edit], chunks: Sequence[int]) -> dict[str, Counts]:
    """Count an alignment's edits by position in the stream; a deletion counts at the word before it."""
    by_stratum: dict[str, list[Edit]] = {}
    at = word = 0
    for edit in edits:
        if edit.hypothesis is not None:
            at, word = chunks[word], word + 1
        by_stratum.setdefault(STRATA[stratum_index(at)], []).append(edit)
    return {name: count_edits(inside) for name, inside in by_stratum.items()}
