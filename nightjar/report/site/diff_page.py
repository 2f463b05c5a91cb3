"""The page of two nights of a cell: figures, what else differs, and the texts of the clips in colour."""

from typing import Any

from nightjar.nightly.history import Cell
from nightjar.report.site.history_view import StoredResults, cell_differences
from nightjar.report.site.layout import render
from nightjar.report.text_diff import clips_that_fit, differing_clips
from nightjar.scoring.paired import compare_paired, shared_clips
from nightjar.scoring.score import Score

COMPARED = ("judge", "outcome", "size_bytes", "wer", "tier", "error")  # nights equal in these have no page
FIGURES = (
    ("WER %", "wer", ".2f", 1.0),
    ("WER of float %", "wer_float", ".2f", 1.0),
    ("WER of stock %", "wer_stock", ".2f", 1.0),
    ("Δ WER, points", "delta_wer", "+.2f", 1.0),
    ("size, MB", "size_bytes", ".2f", 1e-6),
    ("RTF p50", "rtf", ".4f", 1.0),
    ("encoder in int8, %", "int8_mac_share", ".1f", 100.0),
    ("empty", "empty", ".0f", 1.0),
    ("looping", "looping", ".0f", 1.0),
    ("capped", "capped", ".0f", 1.0),
    ("clips", "clips", ".0f", 1.0),
)


def has_differences(after: Cell, before: Cell) -> bool:
    """Tell whether anything differs between two nights."""
    return any(getattr(after, name) != getattr(before, name) for name in COMPARED) or bool(
        cell_differences(before, after)
    )


def render_diff(stored: StoredResults, after: Cell, before: Cell) -> tuple[str, bool]:
    """Return the page, and whether the store still had both verdicts."""
    lost = stored.lost_verdicts((before, after))
    page = render(
        "diff.html",
        root="../../",
        a=after,
        b=before,
        lost=[f"the verdict of {cell.night} (judge/{cell.judge})" for cell in lost],
        figures=_figures(after, before),
        differs=cell_differences(before, after),
        **_clips(stored, after.judge, before.judge),
    )
    return page, not lost


def _clips(stored: StoredResults, after: str, before: str) -> dict[str, Any]:
    """Compare the clips of two verdicts by their keys; nothing where one is missing."""
    verdicts = [stored.verdict(key) if key else {} for key in (after, before)]
    if not all(verdicts):
        return {"change": None, "shared": 0}
    new, old = (Score.model_validate(verdict["scores"]["binary"]) for verdict in verdicts)
    pairs = shared_clips(new, old)
    change = compare_paired(new, old)
    differing = differing_clips([b for _, b in pairs], [a for a, _ in pairs], new.language) if change else []
    shown = clips_that_fit(differing)
    return {
        "change": change,
        "shared": len(pairs),
        "alone": len({clip.id for score in (new, old) for clip in score.clips}) - len(pairs),
        "clips": shown,
        "left_out": len(differing) - len(shown),
    }


def _figures(after: Cell, before: Cell) -> list[tuple[str, ...]]:
    """Write the figures of both nights and their change; a figure that neither has is left out."""
    rows = []
    for title, name, form, scale in FIGURES:
        old, new = (getattr(cell, name) for cell in (before, after))
        if old is None and new is None:
            continue
        texts = ["–" if value is None else format(value * scale, form) for value in (old, new)]
        moved = "" if old is None or new is None else format((new - old) * scale, f"+{form.lstrip('+')}")
        rows.append((title, *texts, "" if texts[0] == texts[1] else moved))
    return rows
