"""Findings of a night: what changed in a cell since its last night and its best one, and the likely cause.

WER is compared clip by clip on the same speech, by a paired bootstrap; size by its bytes; the real-time factor beyond
its own spread, that of earlier nights and the load of the machine. A night that made nothing new has no finding.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

from nightjar.nightly.changes import cell_changes
from nightjar.nightly.evidence import Evidence
from nightjar.nightly.history import Cell, Finding
from nightjar.scoring.normalize import RATES
from nightjar.scoring.paired import compare_paired
from nightjar.scoring.score import TIMED_TIERS

RANKS = {"PASS": 4, "UNDECIDED": 3, "FAIL": 2, "BROKEN": 1, "MISSING": 1}
SIZE_CHANGE = 0.01  # a smaller share is metadata and padding
RTF_CHANGE = {"device": 1.15, "host": 1.5}  # a host runs other programs too
SAME_LOAD = 1.1  # of a host: the float graphs, which cost the same every night, took as long within this factor
RTF_CLIPS = 20  # the median of fewer clips is not reliable


def best_night(rows: Sequence[Cell], speech: str) -> Cell | None:
    """Return the best night on this speech: best verdict, then lowest WER, then smallest; the first of equals."""
    scored = [row for row in rows if row.wer is not None and row.speech == speech]
    return max(scored, key=lambda row: (RANKS[row.outcome], -(row.wer or 0), -(row.size_bytes or 0)), default=None)


class _Comparison:
    """Tonight and the night it is compared with."""

    def __init__(self, tonight: Evidence, other: Evidence, against: Literal["last", "best"]) -> None:
        self.tonight, self.other, self.against = tonight, other, against
        self.now, self.then = tonight.cell, other.cell
        self.night = f"{'the previous run' if against == 'last' else 'the best night'} ({self.then.night})"

    def finding(
        self,
        kind: Literal["wer", "outcome", "size", "rtf", "versions"],
        regression: bool,
        values: tuple[str, str],
        text: str,
        causes: Sequence[str] | None = None,
        innocent: str = "",
        **interval: float,
    ) -> Finding:
        """Make a finding; values: before and after; causes: by default the likely ones, which end the sentence.

        innocent: a kind of change that cannot be the cause.
        """
        if causes is None:
            changes = cell_changes(self.tonight, self.other, causes_only=True)
            causes = [each for each in changes if not innocent or not each.startswith(innocent)]
            likely = f"likely cause: {', '.join(causes)}"
            text += f"; {likely if causes else 'no recorded cause: chance, or something that is not recorded'}"
        return Finding(
            night=self.now.night,
            cell=self.now.cell,
            kind=kind,
            regression=regression,
            against=self.against,
            other=self.then.night,
            before=values[0],
            after=values[1],
            causes="; ".join(causes),
            sentence=f"{self.now.cell}: {text}.",
            **interval,
        )


def cell_findings(
    tonight: Evidence, last: Evidence | None, best: Evidence | None, before: Sequence[Cell], origin: str = ""
) -> list[Finding]:
    """List what changed in one cell.

    before: its rows of earlier nights, oldest first; last: of the newest of them that has a verdict; best: of its best
    night, as `best_night` says; origin: of a failure of tonight.
    """
    if not before:
        return []
    previous = last if last is not None and last.cell.night == before[-1].night else Evidence(cell=before[-1])
    found = list(_outcome(_Comparison(tonight, previous, "last"), origin))
    if last is None or tonight.cell.wer is None:
        return found
    if tonight.cell.judge and (tonight.cell.judge, tonight.cell.report) == (last.cell.judge, last.cell.report):
        return found  # it made nothing new
    with_last = _Comparison(tonight, last, "last")
    found += [*_wer(with_last), *_size(with_last), *_rtf(with_last, before)]
    if not any(each.causes for each in found) or tonight.cell.speech != last.cell.speech:
        found += _versions(with_last)
    if best is not None and best.cell.night != last.cell.night:
        with_best = _Comparison(tonight, best, "best")
        known = {finding.kind for finding in found if finding.regression}
        of_best = [*_outcome(with_best, origin), *_wer(with_best), *_size(with_best), *_rtf(with_best, before)]
        found += [finding for finding in of_best if finding.regression and finding.kind not in known]
    return found


def _outcome(pair: _Comparison, origin: str) -> Iterator[Finding]:
    now, then = pair.now, pair.then
    if now.outcome == then.outcome:
        return
    text = f"outcome is {now.outcome}, was {then.outcome} in {pair.night}" + (f": {now.error}" if now.error else "")
    causes = list(filter(None, [origin])) if now.wer is None or then.wer is None else None
    yield pair.finding("outcome", RANKS[now.outcome] < RANKS[then.outcome], (then.outcome, now.outcome), text, causes)


def _wer(pair: _Comparison) -> Iterator[Finding]:
    after, before = pair.tonight.scores.get("binary"), pair.other.scores.get("binary")
    if after is None or before is None or pair.now.speech != pair.then.speech:
        return
    change = compare_paired(after, before)
    if change is None or change.low <= 0 <= change.high:
        return
    worse, rate = change.low > 0, RATES[after.unit]
    text = (
        f"{rate} is {'worse' if worse else 'better'} than in {pair.night}: {change.before:.2f} → {change.after:.2f} %, "
        f"{change.points:+.2f} points [{change.low:+.2f}, {change.high:+.2f}] on the same {change.clips} clips"
        f"{_change_of_stock(pair, change.points)}"
    )
    values = (f"{change.before:.2f} %", f"{change.after:.2f} %")
    yield pair.finding("wer", worse, values, text, low=round(change.low, 3), high=round(change.high, 3))


def _change_of_stock(pair: _Comparison, points: float) -> str:
    """Note where stock changed in the same direction: what of the change it explains, and what the port adds."""
    after, before = pair.tonight.scores.get("stock"), pair.other.scores.get("stock")
    change = compare_paired(after, before) if after is not None and before is not None else None
    if change is None or (change.low <= 0 if points > 0 else change.high >= 0):
        return ""
    explained = round(change.points, 2)
    return f"; stock changed too, by {explained:+.2f}, and the port adds {round(points, 2) - explained:+.2f}"


def _size(pair: _Comparison) -> Iterator[Finding]:
    after, before = pair.now.size_bytes, pair.then.size_bytes
    if not after or not before or abs(after / before - 1) <= SIZE_CHANGE:
        return
    sizes, earlier = pair.tonight.size_bytes, pair.other.size_bytes
    parts = {part: sizes.get(part, 0) - earlier.get(part, 0) for part in sizes.keys() | earlier.keys()}
    most = max(parts, key=lambda part: (abs(parts[part]), part), default="")
    of = f", most of it in {most} ({parts[most] / 1e6:+.2f} MB)" if most and earlier else ""
    values = (f"{before / 1e6:.2f} MB", f"{after / 1e6:.2f} MB")
    text = f"size is {'larger' if after > before else 'smaller'} than in {pair.night}: {values[0]} → {values[1]}{of}"
    yield pair.finding("size", after > before, values, text)


def _rtf(pair: _Comparison, earlier: Sequence[Cell]) -> Iterator[Finding]:
    now, then = pair.now, pair.then
    if now.tier != then.tier or now.tier not in TIMED_TIERS or not now.rtf or not then.rtf or now.rtf == then.rtf:
        return
    if min(now.clips or 0, then.clips or 0) < RTF_CLIPS:
        return
    ratio, error = _log_ratio(pair, "binary")
    noise = max(1.96 * error, _earlier_spread(earlier, then))
    if now.tier == "host":
        load, _ = _log_ratio(pair, "float")
        if not load or abs(load) > math.log(SAME_LOAD):  # not measured again, or another load: the times say nothing
            return
    if abs(ratio) - noise <= math.log(RTF_CHANGE[now.tier]):
        return
    values = (f"{then.rtf:.4f}", f"{now.rtf:.4f}")
    text = (
        f"RTF is {'slower' if ratio > 0 else 'faster'} than in {pair.night}: {values[0]} → {values[1]}, beyond a "
        f"spread of {math.expm1(noise):.0%}"
    )
    same_shapes = pair.tonight.size_bytes == pair.other.size_bytes
    yield pair.finding("rtf", ratio > 0, values, text, innocent="checkpoint" if same_shapes else "")


def _log_ratio(pair: _Comparison, subject: str) -> tuple[float, float]:
    """Return the log of how many times slower a subject is, end to end, and the standard error of that."""
    scores = [each.scores.get(subject) for each in (pair.tonight, pair.other)]
    timed = [(score.rtf["total"], len(score.clips)) for score in scores if score and score.rtf and "total" in score.rtf]
    if len(timed) < 2 or min(total.p50 for total, _ in timed) <= 0:
        return 0.0, 0.0
    # the spread of a clip from median to 95th percentile is 1.645 sigma, and a median's error 1.25 sigma / sqrt(n)
    errors = [1.25 * math.log(max(total.p95 / total.p50, 1.0)) / 1.645 / math.sqrt(clips) for total, clips in timed]
    return math.log(timed[0][0].p50 / timed[1][0].p50), math.hypot(*errors)


def _earlier_spread(before: Sequence[Cell], like: Cell) -> float:
    """Return how far apart, as a log, the RTFs of earlier nights with the same artifacts and board are."""
    alike = ("tier", "checkpoint", "versions", "board_facts", "size_bytes", "speech")
    same = [row for row in before if all(getattr(row, name) == getattr(like, name) for name in alike)]
    timed = {row.rtf for row in same if row.rtf}
    return math.log(max(timed) / min(timed)) if timed else 0.0


def _versions(pair: _Comparison) -> Iterator[Finding]:
    """Find what a night was made from that the last was not, where no figure shows it."""
    changed = cell_changes(pair.tonight, pair.other)
    if not changed:
        return
    if pair.now.speech != pair.then.speech:
        end = "the speech differs, so the scores are not compared"
    elif not pair.other.scores:
        end = "the clips of that night are no longer in the store, so the scores are not compared"
    else:
        end = "no score shows a difference"
    before, after = (f"{cell.checkpoint[:8]}, code {cell.code[:8]}" for cell in (pair.then, pair.now))
    text = f"made from other inputs than {pair.night}: {'; '.join(changed)}; {end}"
    yield pair.finding("versions", False, (before, after), text, changed)
