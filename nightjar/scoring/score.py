"""Scores: what a subject heard on a test set, clip by clip, counted against what was said."""

from collections import Counter as CountOf
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
TIMED_TIERS = ("device", "host")  # a simulator's or a stand-in's seconds say nothing of the port


def _part_of_whole(agree: tuple[int, int]) -> tuple[int, int]:
    if not 0 <= agree[0] <= agree[1]:
        raise ValueError(f"{agree[0]} of {agree[1]} tokens cannot agree")
    return agree


class Hypothesis(BaseModel, frozen=True):
    """One line of hypotheses.jsonl, as docs/files.md has it; stock Whisper leaves most out."""

    id: str
    text: str
    tokens: tuple[int, ...] = ()
    capped: bool = False
    agree: Annotated[tuple[int, int], AfterValidator(_part_of_whole)] | None = None
    seconds: dict[str, float] = {}
    throttled: str = ""
    audio_s: float | None = None
    word_chunks: tuple[int, ...] | None = Field(None, description="streams: behind which chunk each word was there")
    chunk_ms: tuple[float, ...] = ()
    chunk_s: float | None = None


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
    by_stratum: dict[str, Counts] | None = Field(None, description="streams: counts by how far into the stream")

    @property
    def silent(self) -> bool:
        """Tell whether nothing is said in the clip, so that every word heard is invented."""
        return self.counts.reference == 0


class Percentiles(BaseModel, frozen=True):
    """Real-time factors over clips: seconds of work per second of audio."""

    p50: float
    p95: float


class Stratum(BaseModel, frozen=True):
    """Score what was heard in chunks that are as far into their streams; rates are in percent, None without words."""

    name: str
    counts: Counts
    wer: float | None
    interval: tuple[float, float] | None


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
    throttled: dict[str, int] = Field({}, description="clips heard while the board was held back, by what held it")
    by_chunk: tuple[Stratum, ...] = Field((), description="streams: by how far into the stream")
    chunk_times: ChunkTimes | None = Field(None, description="streams: seconds per chunk; device or host only")
    clips: tuple[ClipScore, ...]


class Silence(BaseModel, frozen=True):
    """Count words heard on silent probe clips by the float graphs and by the binary, per clip."""

    float_words: dict[str, int]
    binary_words: dict[str, int]


def score(
    subject: str, tier: Tier, clips: Sequence[Clip], hypotheses: Iterable[Mapping[str, Any]], language: str = "en"
) -> Score:
    """Score hypotheses (lines of hypotheses.jsonl) on the clips; lines of other clips are ignored.

    Raises SessionFailed if a clip has no hypothesis: leaving it out would score a different test.
    """
    if not clips:
        raise BadInput(f"{subject}: no clips to score; give clips in the window, or pass --long chunk")
    heard = _by_id(subject, hypotheses)
    missing = [clip.id for clip in clips if clip.id not in heard]
    if missing:
        raise SessionFailed(
            f"{subject}: no hypothesis for {len(missing)} of {len(clips)} clips "
            f"({', '.join(missing[:5])}); every clip is scored or none: {RERUN_HINT}"
        )
    ordered = sorted(clips, key=lambda clip: clip.id)
    scores = tuple(_clip_score(clip, heard[clip.id], language) for clip in ordered)
    agrees = [clip.agree for clip in scores if clip.agree]
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
        rtf=_rtf([heard[clip.id] for clip in ordered]) if tier in TIMED_TIERS else None,
        throttled=_throttled([heard[clip.id] for clip in ordered]) if tier in TIMED_TIERS else {},
        by_chunk=_strata(scores),
        chunk_times=_chunk_times([heard[clip.id] for clip in ordered]) if tier in TIMED_TIERS else None,
        clips=scores,
    )


def score_silence(
    float_lines: Iterable[Mapping[str, Any]], binary_lines: Iterable[Mapping[str, Any]], language: str = "en"
) -> Silence:
    """Count the words in hypotheses of silent probe clips; both must have heard the same clips."""
    words = []
    for subject, lines in (("float", float_lines), ("binary", binary_lines)):
        heard = _by_id(f"silence, {subject}", lines)
        words.append({i: len(normalise(line.text, language).split()) for i, line in heard.items()})
    if words[0].keys() != words[1].keys():
        odd = sorted(words[0].keys() ^ words[1].keys())
        raise SessionFailed(f"silence: only one of float and binary heard {odd[0]}; {RERUN_HINT}")
    return Silence(float_words=words[0], binary_words=words[1])


def _by_id(subject: str, lines: Iterable[Mapping[str, Any]]) -> dict[str, Hypothesis]:
    heard: dict[str, Hypothesis] = {}
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
        if heard.setdefault(one.id, one).text != one.text:
            raise SessionFailed(f"{subject}: two different hypotheses for {one.id}; {RERUN_HINT}")
    return heard


def _clip_score(clip: Clip, heard: Hypothesis, language: str) -> ClipScore:
    reference = normalise(clip.text, language).split()
    words = normalise(heard.text, language).split()
    edits = align(reference, words)
    chunks = heard.word_chunks
    return ClipScore(
        id=clip.id,
        speaker=clip.speaker,
        duration_s=clip.duration_s,
        reference=clip.text,
        hypothesis=heard.text,
        counts=count_edits(edits),
        tokens=len(heard.tokens),
        empty=bool(reference) and not words,
        # the raw words too: the English normaliser makes one number of "one one one one"
        looping=looping(heard.tokens) or looping(words) or looping(heard.text.lower().split()),
        capped=heard.capped,
        agree=heard.agree,
        by_stratum=counts_by_stratum(edits, chunks) if chunks is not None and len(chunks) == len(words) else None,
    )


def _rtf(heard: Sequence[Hypothesis]) -> dict[str, Percentiles] | None:
    timed = [line for line in heard if line.audio_s and line.seconds]
    rtf = {}
    for part in dict.fromkeys(part for line in timed for part in line.seconds):
        rates = [line.seconds[part] / (line.audio_s or 1) for line in timed if part in line.seconds]
        p50, p95 = np.percentile(rates, [50, 95])
        rtf[part] = Percentiles(p50=float(p50), p95=float(p95))
    return rtf or None


def _throttled(heard: Sequence[Hypothesis]) -> dict[str, int]:
    return dict(CountOf(line.throttled for line in heard if line.throttled).most_common())


def _strata(clips: Sequence[ClipScore]) -> tuple[Stratum, ...]:
    streams = [clip.by_stratum for clip in clips if clip.by_stratum is not None]
    found = []
    for name in STRATA:
        counts = [stream.get(name, Counts()) for stream in streams]
        total = sum(counts, Counts())
        if not total.reference and not total.errors:
            continue
        wer = corpus_wer(counts) if total.reference else None
        interval = (
            bootstrap_interval([c.errors for c in counts], [c.reference for c in counts]) if total.reference else None
        )
        found.append(Stratum(name=name, counts=total, wer=wer, interval=interval))
    return tuple(found)


def _chunk_times(heard: Sequence[Hypothesis]) -> ChunkTimes | None:
    lasts = {line.chunk_s for line in heard if line.chunk_ms} - {None}
    taken = [ms for line in heard for ms in line.chunk_ms]
    return chunk_times(taken, lasts.pop() or 0.0) if taken and lasts else None


def errors_and_words(clips: Sequence[ClipScore]) -> tuple[list[int], list[int]]:
    return [clip.counts.errors for clip in clips], [clip.counts.reference for clip in clips]


def counts_by_stratum(edits: Sequence[Edit], chunks: Sequence[int]) -> dict[str, Counts]:
    """Count an alignment's edits by how far into the stream they are; a deletion is where the word before it is."""
    kinds = {"=": "hits", "S": "substitutions", "D": "deletions", "I": "insertions"}
    found: dict[str, Counts] = {}
    at = heard = 0
    for edit in edits:
        if edit.hypothesis is not None:
            at, heard = chunks[heard], heard + 1
        name = STRATA[stratum_index(at)]
        found[name] = found.get(name, Counts()) + Counts(**{kinds[edit.op]: 1})
    return found
