"""Clips whose texts differ between two subjects, compared word by word in colour."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from nightjar.scoring.normalize import normalise
from nightjar.scoring.score import ClipScore
from nightjar.scoring.wer import align

MOST_CLIPS, MOST_BYTES = 400, 700_000  # keep a page under a megabyte, however long the texts are
MOST_WORDS = 200  # of a text
MARKS = {
    "=": Markup("{hypothesis}"),
    "S": Markup('<mark title="reference: {reference}">{hypothesis}</mark>'),
    "D": Markup("<del>{reference}</del>"),
    "I": Markup("<ins>{hypothesis}</ins>"),
}


class DifferingClip(NamedTuple):
    """One clip that two subjects transcribe differently, ready for a page."""

    id: str
    speaker: str | None
    duration_s: float
    errors_before: int
    errors_after: int
    flags: list[str]
    reference: str
    before: Markup
    after: Markup


def differing_clips(before: Iterable[ClipScore], after: Iterable[ClipScore], language: str) -> list[DifferingClip]:
    """List the clips whose normalised texts differ, those that lost most first; both sides in the same order."""
    differing = [
        _differing_clip(one, other, language)
        for one, other in zip(before, after, strict=True)
        if one.hypothesis != other.hypothesis
        and normalise(one.hypothesis, language) != normalise(other.hypothesis, language)
    ]
    return sorted(differing, key=lambda clip: (clip.errors_before - clip.errors_after, clip.id))


def clips_that_fit(clips: Sequence[DifferingClip]) -> Sequence[DifferingClip]:
    """Return as many of the first clips as fit on a page."""
    size = 0
    for number, clip in enumerate(clips[:MOST_CLIPS]):
        size += 600 + sum(len(text.encode()) for text in (clip.id, clip.reference, clip.before, clip.after))
        if size > MOST_BYTES:
            return clips[:number]
    return clips[:MOST_CLIPS]


def _differing_clip(before: ClipScore, after: ClipScore, language: str) -> DifferingClip:
    return DifferingClip(
        id=after.id,
        speaker=after.speaker,
        duration_s=after.duration_s,
        errors_before=before.counts.errors,
        errors_after=after.counts.errors,
        flags=[kind for kind in ("empty", "looping", "capped") if getattr(after, kind)],
        reference=_shortened(normalise(after.reference, language)),
        before=coloured_diff(before.reference, before.hypothesis, language),
        after=coloured_diff(after.reference, after.hypothesis, language),
    )


def coloured_diff(reference: str, hypothesis: str, language: str) -> Markup:
    """Mark a hypothesis against its reference: substituted, deleted and inserted words."""
    edits = align(normalise(reference, language).split(), normalise(hypothesis, language).split())
    words = [MARKS[edit.op].format(**edit._asdict()) for edit in edits]
    if len(words) > MOST_WORDS:
        words[MOST_WORDS:] = [Markup("…")]
    return Markup(" ").join(words) or Markup('<span class="soft">(empty)</span>')


def _shortened(text: str) -> str:
    """Cut a text after MOST_WORDS words."""
    words = text.split()
    return text if len(words) <= MOST_WORDS else " ".join(words[:MOST_WORDS]) + " …"
