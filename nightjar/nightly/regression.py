"""What changed in a cell since its last night and its best one, and what likely did it.

WER is compared clip by clip on the same speech, by a paired bootstrap; size by its bytes; the real-time factor beyond
what its own spread, earlier nights and the machine's mood explain. A night that made nothing anew has no finding.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from nightjar.nightly.changes import cell_changes, likely_causes
from nightjar.nightly.evidence import Evidence
from nightjar.nightly.history import Cell, Finding
from nightjar.scoring.score import TIMED_TIERS, ClipScore, Score
from nightjar.scoring.wer import paired_bootstrap

RANKS = {"PASS": 4, "UNDECIDED": 3, "FAIL": 2, "BROKEN": 1, "MISSING": 1}
SIZE_CHANGE = 0.01  # below, it is metadata and padding
RTF_CHANGE = {"device": 1.15, "host": 1.5}  # a host does other work beside
RTF_CLIPS = 20  # fewer have no median worth comparing
SAYS_NOTHING = "nothing that is recorded differs, so chance or something that is not recorded"

Against = Literal["last", "best"]


class Paired(NamedTuple):
    """Two WERs on the same clips, in percent, and the 95 % interval of their difference in points."""

    before: float
    after: float
    low: float
    high: float
    clips: int


def paired(after: Score, before: Score) -> Paired | None:
    """Compare two scores on the clips that both heard; None where they share none with words in it."""
    earlier = {clip.id: clip for clip in before.clips}
    both = [(clip, earlier[clip.id]) for clip in after.clips if _same(clip, earlier.get(clip.id))]
    words = [clip.counts.reference for clip, _ in both]
    if not sum(words):
        return None
    errors = [[clip.counts.errors for clip in side] for side in zip(*both, strict=True)]
    low, high = paired_bootstrap(errors[0], errors[1], words)
    now, then = (100 * sum(side) / sum(words) for side in errors)
    return Paired(then, now, low, high, len(both))


def best_night(rows: Sequence[Cell], speech: str) -> Cell | None:
    """Return the best known night on this speech: best verdict, then lowest WER, then smallest; the first of equals."""
    scored = [row for row in rows if row.wer is not None and row.speech == speech]
    return max(scored, key=lambda row: (RANKS[row.outcome], -(row.wer or 0), -(row.size_bytes or 0)), default=None)


def cell_findings(
    tonight: Evidence, last: Evidence | None, best: Evidence | None, before: Sequence[Cell], behind: str = ""
) -> list[Finding]:
    """List what changed in one cell.

    before: its rows of earlier nights, oldest first; last: of the newest of them that has a verdict; best: of its best
    night, as `best_night` says; behind: what a failure of tonight comes from.
    """
    if not before:
        return []
    found = list(_outcome(tonight, Evidence(cell=before[-1]), last, "last", behind))
    if last is None or tonight.cell.wer is None or _unchanged(tonight.cell, last.cell):
        return found
    found += [*_wer(tonight, last, "last"), *_size(tonight, last, "last"), *_rtf(tonight, last, "last", before)]
    if not any(each.causes for each in found) or tonight.cell.speech != last.cell.speech:
        found += _versions(tonight, last)
    if best is not None and best.cell.night != last.cell.night:
        said = {finding.kind for finding in found if finding.regression}
        of_best = [
            *_outcome(tonight, best, best, "best", behind),
            *_wer(tonight, best, "best"),
            *_size(tonight, best, "best"),
            *_rtf(tonight, best, "best", before),
        ]
        found += [finding for finding in of_best if finding.regression and finding.kind not in said]
    return found


def changed_clips(after: Score, before: Score) -> list[dict[str, Any]]:
    """List the clips that two subjects hear otherwise, those that got worse first, with both texts."""
    earlier = {clip.id: clip for clip in before.clips}
    both = [(clip, earlier[clip.id]) for clip in after.clips if _same(clip, earlier.get(clip.id))]
    rows = [
        {
            "id": clip.id,
            "said": clip.reference,
            "before": then.hypothesis,
            "after": clip.hypothesis,
            "errors_before": then.counts.errors,
            "errors_after": clip.counts.errors,
        }
        for clip, then in both
        if clip.hypothesis != then.hypothesis
    ]
    return sorted(rows, key=lambda row: (row["errors_before"] - row["errors_after"], row["id"]))


def _same(clip: ClipScore, other: ClipScore | None) -> bool:
    return other is not None and clip.reference == other.reference


def _unchanged(tonight: Cell, last: Cell) -> bool:
    return (tonight.judge, tonight.report) == (last.judge, last.report) and bool(tonight.judge)


def _outcome(
    tonight: Evidence, other: Evidence, scored: Evidence | None, against: Against, behind: str
) -> Iterator[Finding]:
    now, then = tonight.cell, other.cell
    if now.outcome == then.outcome:
        return
    why = [behind] if behind else []
    said = f": {now.error}" if now.error else ""
    if now.wer is not None and then.wer is not None and scored is not None:
        why = likely_causes(tonight, scored if scored.cell.night == then.night else other)
        said += _likely(why)
    yield _finding(
        now,
        then,
        against,
        "outcome",
        RANKS[now.outcome] < RANKS[then.outcome],
        (then.outcome, now.outcome),
        why,
        f"is {now.outcome} and was {then.outcome} {_when(then, against)}{said}",
    )


def _wer(tonight: Evidence, other: Evidence, against: Against) -> Iterator[Finding]:
    now, then = tonight.cell, other.cell
    mine, theirs = tonight.scores.get("binary"), other.scores.get("binary")
    if mine is None or theirs is None or now.speech != then.speech:
        return
    both = paired(mine, theirs)
    if both is None or both.low <= 0 <= both.high:
        return
    why = likely_causes(tonight, other)
    worse = both.low > 0
    rate = "WER" if mine.unit == "word" else "CER"
    yield _finding(
        now,
        then,
        against,
        "wer",
        worse,
        (f"{both.before:.2f} %", f"{both.after:.2f} %"),
        why,
        f"hears {'worse' if worse else 'better'} than {_when(then, against)}: {rate} {both.before:.2f} → "
        f"{both.after:.2f} %, {both.after - both.before:+.2f} points [{both.low:+.2f}, {both.high:+.2f}] on the same "
        f"{both.clips} clips{_stock_too(tonight, other, worse)}{_likely(why)}",
        (round(both.low, 3), round(both.high, 3)),
    )


def _stock_too(tonight: Evidence, other: Evidence, worse: bool) -> str:
    """Say where openai-whisper itself changed as the port did: then it is not the port."""
    mine, theirs = tonight.scores.get("stock"), other.scores.get("stock")
    both = paired(mine, theirs) if mine is not None and theirs is not None else None
    if both is None or (both.low <= 0 if worse else both.high >= 0):
        return ""
    return f"; so does openai-whisper itself ({both.after - both.before:+.2f}), so it is no loss of the port"


def _size(tonight: Evidence, other: Evidence, against: Against) -> Iterator[Finding]:
    now, then = tonight.cell, other.cell
    if not now.size_bytes or not then.size_bytes or abs(now.size_bytes / then.size_bytes - 1) <= SIZE_CHANGE:
        return
    larger = now.size_bytes > then.size_bytes
    parts = {
        part: tonight.size_bytes.get(part, 0) - other.size_bytes.get(part, 0)
        for part in tonight.size_bytes.keys() | other.size_bytes.keys()
    }
    most = max(parts, key=lambda part: (abs(parts[part]), part), default="")
    of = f", most of it in {most} ({parts[most] / 1e6:+.2f} MB)" if most and other.size_bytes else ""
    why = likely_causes(tonight, other)
    before, after = f"{then.size_bytes / 1e6:.2f} MB", f"{now.size_bytes / 1e6:.2f} MB"
    said = f"is {'larger' if larger else 'smaller'} than {_when(then, against)}: {before} → {after}{of}{_likely(why)}"
    yield _finding(now, then, against, "size", larger, (before, after), why, said)


def _rtf(tonight: Evidence, other: Evidence, against: Against, before: Sequence[Cell]) -> Iterator[Finding]:
    now, then = tonight.cell, other.cell
    if now.tier != then.tier or now.tier not in TIMED_TIERS or not now.rtf or not then.rtf or now.rtf == then.rtf:
        return
    if min(now.clips or 0, then.clips or 0) < RTF_CLIPS:
        return
    ratio, error = _log_ratio(tonight, other, "binary")
    noise = max(1.96 * error, _earlier_spread(before, then))
    if now.tier == "host":
        mood, _ = _log_ratio(tonight, other, "float")
        if not mood:  # the float graphs were not measured anew, so nobody knows what else the machine did
            return
        noise = max(noise, abs(mood))  # they cost the same every night: what they moved is the machine
    if abs(ratio) - noise <= math.log(RTF_CHANGE[now.tier]):
        return
    slower = ratio > 0
    why = likely_causes(tonight, other)
    said = f"is {'slower' if slower else 'faster'} than {_when(then, against)}: RTF {then.rtf:.4f} → {now.rtf:.4f}"
    yield _finding(
        now,
        then,
        against,
        "rtf",
        slower,
        (f"{then.rtf:.4f}", f"{now.rtf:.4f}"),
        why,
        f"{said}, more than a spread of {math.expm1(noise):.0%} explains{_likely(why)}",
    )


def _log_ratio(tonight: Evidence, other: Evidence, subject: str) -> tuple[float, float]:
    """Return the log of how many times slower a subject is, end to end, and the standard error of that."""
    scores = [each.scores.get(subject) for each in (tonight, other)]
    totals = [(score.rtf or {}).get("total") for score in scores if score is not None]
    if len(totals) < 2 or totals[0] is None or totals[1] is None or min(totals[0].p50, totals[1].p50) <= 0:
        return 0.0, 0.0
    # the spread of a clip from median to 95th percentile is 1.645 sigma, and a median's error 1.25 sigma / sqrt(n)
    errors = [
        1.25 * math.log(max(total.p95 / total.p50, 1.0)) / 1.645 / math.sqrt(len(score.clips))
        for total, score in zip(totals, scores, strict=True)
        if total is not None and score is not None
    ]
    return math.log(totals[0].p50 / totals[1].p50), math.hypot(*errors)


def _earlier_spread(before: Sequence[Cell], like: Cell) -> float:
    """Return how far apart, as a log, earlier nights timed what was the same thing on the same board."""
    alike = ("tier", "checkpoint", "versions", "board_facts", "size_bytes", "speech")
    same = [row for row in before if all(getattr(row, name) == getattr(like, name) for name in alike)]
    timed = {row.rtf for row in same if row.rtf}
    return math.log(max(timed) / min(timed)) if timed else 0.0


def _versions(tonight: Evidence, last: Evidence) -> Iterator[Finding]:
    """Say what a night was made from that the last was not, where no figure tells."""
    now, then = tonight.cell, last.cell
    what = cell_changes(tonight, last)
    if not what:
        return
    if now.speech != then.speech:
        end = "; the speech differs, so the scores are not compared"
    elif not last.scores:
        end = "; the clips of that night cannot be read from the store any more, so the scores are not compared"
    else:
        end = "; no score tells"
    said = f"is made from something else than {_when(then, 'last')}: {'; '.join(what)}{end}"
    before, after = (_figures(cell) for cell in (then, now))
    yield _finding(now, then, "last", "versions", False, (before, after), what, said)


def _figures(cell: Cell) -> str:
    return f"{cell.checkpoint[:8]}, code {cell.code[:8]}"


def _when(other: Cell, against: Against) -> str:
    return f"last time ({other.night})" if against == "last" else f"in its best night ({other.night})"


def _likely(why: Sequence[str]) -> str:
    return f"; likely cause: {', '.join(why)}" if why else f"; {SAYS_NOTHING}"


def _finding(
    now: Cell,
    then: Cell,
    against: Against,
    kind: Literal["wer", "outcome", "size", "rtf", "versions"],
    regression: bool,
    values: tuple[str, str],
    why: Sequence[str],
    said: str,
    interval: tuple[float, float] | None = None,
) -> Finding:
    return Finding(
        night=now.night,
        cell=now.cell,
        kind=kind,
        regression=regression,
        against=against,
        other=then.night,
        before=values[0],
        after=values[1],
        low=interval[0] if interval else None,
        high=interval[1] if interval else None,
        causes="; ".join(why),
        sentence=f"{now.cell} {said}.",
    )
