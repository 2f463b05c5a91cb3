"""The difference of two nights of a cell: figures, what else differs, and the texts of the clips in colour."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from nightjar.nightly.history import Cell
from nightjar.report.site.history_view import StoredResults, cell_differences
from nightjar.report.site.layout import site_environment
from nightjar.report.site.urls import cell_url, night_url
from nightjar.report.style import clips_that_fit, differing_clips
from nightjar.scoring.score import Score, errors_and_words
from nightjar.scoring.wer import paired_bootstrap

TEMPLATES = {
    "pair": """{% extends "frame" %}{% from "parts" import wer, outcome, tags %}{% from "pieces" import heard %}
{% block title %}{{ a.cell }}: {{ a.night|day }} against {{ b.night|day }}{% endblock %}
{% block nav %}{{ super() }} / <a href="{{ root }}{{ cell }}">{{ a.cell }}</a> / difference{% endblock %}
{% block body %}<h1>{{ a.model }} → {{ a.target }} {{ tags(a) }}</h1>
<p class="lead"><a href="{{ root }}{{ a_href }}"><b>{{ a.night|when }}</b></a> against <a href="{{ root }}{{ b_href }}">{{ b.night|when }}</a></p>
{% if c.low is not none %}<p class="lead">WER of the binary <b>{{ "%+.2f"|format(c.change) }}</b> points, paired 95 % interval [{{ "%+.2f"|format(c.low) }}, {{ "%+.2f"|format(c.high) }}]
on the {{ c.clips }} clips that both heard: {{ c.said }}.</p>{% endif %}
{% if lost %}<p class="note">The store no longer has {{ lost|join(" and ") }}, so the texts cannot be compared clip by clip. The figures below are the history's.</p>{% endif %}
{% if a.tier == "stand-in" or b.tier == "stand-in" %}<p class="note">A stand-in took part: this says nothing of the NPU.</p>{% endif %}
<div class="card tight"><table><tr><th></th><th>{{ b.night|day }}</th><th>{{ a.night|day }}</th><th>change</th></tr>
<tr><td>verdict</td><td>{{ outcome(b) }}</td><td>{{ outcome(a) }}</td><td></td></tr><tr><td>tier</td><td>{{ b.tier or "–" }}</td><td>{{ a.tier or "–" }}</td><td></td></tr>
{% for row in figures %}<tr><td>{{ row[0] }}</td><td>{{ row[1] }}</td><td>{{ row[2] }}</td><td>{{ row[3] }}</td></tr>{% endfor %}</table></div>
{% if a.error or b.error %}<ul class="why">{% for row in (b, a) if row.error %}<li>{{ row.night|day }}: {{ row.error }}</li>{% endfor %}</ul>{% endif %}

<h2>What else differs</h2>{% if differs %}<ul>{% for said in differs %}<li>{{ said }}</li>{% endfor %}</ul>
{% else %}<p class="soft">Nothing that the history knows of: checkpoint, speech, versions, code and board are the same.</p>{% endif %}
{% if c.clips %}<h2>Clips that were heard differently ({{ c.differing }} of {{ c.clips }})</h2><div class="card">{{ heard(c.shown, b.night|day, a.night|day) }}</div>
{% if c.left_out %}<p class="soft">{{ count(c.left_out, "more differing clip") }} left out of this page: <code>judge/{{ b.judge }}</code> and
<code>judge/{{ a.judge }}</code> in the store have all.</p>{% endif %}
{% if c.alone %}<p class="soft">{{ count(c.alone, "clip was", "clips were") }} heard in one of the two nights only.</p>{% endif %}{% endif %}
{% endblock %}""",
}


class Compared(NamedTuple):
    """What two verdicts say of each other, on the clips that both heard."""

    clips: int = 0
    alone: int = 0
    change: float | None = None
    low: float | None = None
    high: float | None = None
    differing: int = 0
    shown: Sequence[Any] = ()
    left_out: int = 0

    @property
    def said(self) -> str:
        """Say what the interval says."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "no difference that these clips could tell from chance"
        return "worse" if self.low > 0 else "better"


def has_differences(after: Cell, before: Cell) -> bool:
    """Tell whether anything of two nights differs; of equal ones there is nothing to see."""
    same = ("judge", "outcome", "size_bytes", "wer", "tier", "error")
    return any(getattr(after, name) != getattr(before, name) for name in same) or bool(cell_differences(before, after))


def render_diff(kept: StoredResults, after: Cell, before: Cell) -> tuple[str, bool]:
    """Return the page, and whether both verdicts were still there."""
    lost = [
        f"the verdict of {cell.night} (judge/{cell.judge})"
        for cell in (before, after)
        if cell.judge and kept.verdict(cell.judge) is None
    ]
    compared = compare(kept, after.judge, before.judge) if not lost else Compared()
    rendered: str = _templates.get_template("pair").render(
        root="../../",
        a=after,
        b=before,
        cell=cell_url(after.cell),
        a_href=night_url(after.night),
        b_href=night_url(before.night),
        c=compared,
        lost=lost,
        figures=_figures(after, before),
        differs=cell_differences(before, after),
    )
    return rendered, not lost


def compare(kept: StoredResults, after: str, before: str) -> Compared:
    """Compare what two verdicts heard, by their keys; nothing where either never came to be."""
    old, new = kept.verdict(before) if before else None, kept.verdict(after) if after else None
    if old is None or new is None:
        return Compared()
    old_clips, new_clips = (
        {clip.id: clip for clip in Score.model_validate(verdict["scores"]["binary"]).clips} for verdict in (old, new)
    )
    both = [i for i in new_clips if i in old_clips and old_clips[i].reference == new_clips[i].reference]
    alone = len(old_clips.keys() | new_clips.keys()) - len(both)
    a, b = [new_clips[i] for i in both], [old_clips[i] for i in both]
    errors_a, words = errors_and_words(a)
    errors_b, _ = errors_and_words(b)
    if not sum(words):
        return Compared(clips=len(both), alone=alone)
    low, high = paired_bootstrap(errors_a, errors_b, words)
    differing = differing_clips(b, a, new["scores"]["binary"]["language"])
    shown = clips_that_fit(differing)
    change = 100.0 * (sum(errors_a) - sum(errors_b)) / sum(words)
    return Compared(len(both), alone, change, low, high, len(differing), shown, len(differing) - len(shown))


def _figures(after: Cell, before: Cell) -> list[tuple[str, str, str, str]]:
    """Write the figures of both nights and their change; what neither has is left out."""
    rows = []
    for said, name, form, scale in (
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
    ):
        old, new = (getattr(cell, name) for cell in (before, after))
        if old is None and new is None:
            continue
        old_said, new_said = ("–" if value is None else format(value * scale, form) for value in (old, new))
        moved = "" if old is None or new is None else format((new - old) * scale, f"+{form.lstrip('+')}")
        rows.append((said, old_said, new_said, "" if old_said == new_said else moved))
    return rows


_templates = site_environment(TEMPLATES)
