"""Two scores compared on the same clips."""

from typing import Any, NamedTuple

from nightjar.scoring.score import ClipScore, Score, errors_and_words
from nightjar.scoring.wer import paired_bootstrap


class PairedComparison(NamedTuple):
    """Two WERs on the same clips, in percent, and the 95 % interval of their difference in points."""

    before: float
    after: float
    low: float
    high: float
    clips: int

    @property
    def points(self) -> float:
        """Return the change of WER."""
        return self.after - self.before


def shared_clips(after: Score, before: Score) -> list[tuple[ClipScore, ClipScore]]:
    """Pair the clips that both scores have with the same reference text: (after, before)."""
    earlier = {clip.id: clip for clip in before.clips}
    pairs = [(clip, earlier[clip.id]) for clip in after.clips if clip.id in earlier]
    return [(clip, other) for clip, other in pairs if clip.reference == other.reference]


def compare_paired(after: Score, before: Score) -> PairedComparison | None:
    """Compare two scores on their shared clips; None where these have no reference words."""
    pairs = shared_clips(after, before)
    errors_after, words = errors_and_words([clip for clip, _ in pairs])
    errors_before, _ = errors_and_words([clip for _, clip in pairs])
    if not sum(words):
        return None
    low, high = paired_bootstrap(errors_after, errors_before, words)
    now, then = (100 * sum(errors) / sum(words) for errors in (errors_after, errors_before))
    return PairedComparison(then, now, low, high, len(pairs))


def changed_clips(after: Score, before: Score) -> list[dict[str, Any]]:
    """List the shared clips whose hypotheses differ, with both texts; those that lost most come first."""
    rows = [
        {
            "id": clip.id,
            "said": clip.reference,
            "before": other.hypothesis,
            "after": clip.hypothesis,
            "errors_before": other.counts.errors,
            "errors_after": clip.counts.errors,
        }
        for clip, other in shared_clips(after, before)
        if clip.hypothesis != other.hypothesis
    ]
    return sorted(rows, key=lambda row: (row["errors_before"] - row["errors_after"], row["id"]))
