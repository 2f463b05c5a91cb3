"""The page of one cell: all its nights."""

from collections.abc import Sequence
from typing import Any

from nightjar.nightly.history import Cell
from nightjar.report.site.charts import SHOWN, Line, chart
from nightjar.report.site.formatting import day
from nightjar.report.site.history_view import NightHistory, StoredResults, cell_differences
from nightjar.report.site.index_page import night_findings
from nightjar.report.site.layout import site_environment
from nightjar.report.site.urls import night_url, report_url

FOUND = 40  # findings on a page

TEMPLATES = {
    "cell": """{% extends "frame" %}{% from "parts" import delta, interval, wer, outcome, tags, findings %}
{% block title %}{{ c.outcome }} · {{ c.cell }}{% endblock %}{% block width %}wide{% endblock %}
{% block nav %}{{ super() }} / {{ c.cell }}{% endblock %}
{% block body %}<h1>{{ c.model }} → {{ c.target }} {{ tags(c) }}</h1>
{% if c.tier == "stand-in" %}<p class="verdict standin">stand-in</p><p class="note">{{ c.outcome }} on a public runtime in place of the vendor's:
no score of this NPU, and it counts for nothing.</p>{% else %}<p class="verdict {{ c.outcome }}">{{ c.outcome }}</p>{% endif %}
{% if c.wer is not none %}<p class="lead">WER <b>{{ wer(c.wer) }} %</b>, float graphs {{ wer(c.wer_float) }} %, stock {{ wer(c.wer_stock) }} %.
Δ <b>{{ "%+.2f"|format(c.delta_wer) if c.delta_wer is not none else "–" }}</b> {{ interval(c) }} points on {{ c.clips }} clips and {{ c.words }} words, tier {{ c.tier }}, {{ c.night|when }}.</p>
{% else %}<p class="lead">{{ c.error or "It did not run, and nobody said why." }}<br><span class="soft">{{ c.night|when }}
{% if last %}; last score {{ wer(last.wer) }} % on {{ last.night|day }}, tier {{ last.tier }}{% endif %}</span></p>{% endif %}
{% if gates %}<ul class="why">{% for gate in gates %}<li><b class="{{ "soft" if c.tier == "stand-in" else gate.outcome }}">{{ gate.outcome }}</b> {{ gate.sentence }}</li>{% endfor %}</ul>{% endif %}
<p>{% for href, said in links %}<a class="go" href="../{{ href }}">{{ said }}</a>{{ " · " if not loop.last }}{% endfor %}</p>
{% if lost %}<p class="note">{{ lost }}</p>{% endif %}

<h2>Over the nights{% if left_out %} <span class="soft">the last {{ rows|length }} of {{ rows|length + left_out }}</span>{% endif %}</h2>
<div class="charts">{% for drawn in charts if drawn %}{{ drawn }}{% endfor %}</div>
<p class="key"><span><svg viewBox="0 0 14 12" width="14" height="12" aria-hidden="true"><path class="change" d="M7 0v12"/></svg>versions, checkpoint or code changed</span>
<span><svg viewBox="0 0 14 12" width="14" height="12" aria-hidden="true"><path class="lost" d="M4 3l6 6m0 -6l-6 6"/></svg>no score that night</span></p>

<h2>Findings</h2>{% if found %}<div class="card">{{ findings(found, "../") }}</div>
{% if found_more %}<p class="soft">{{ count(found_more, "earlier finding") }}: <a href="../findings.csv">findings.csv</a> has all.</p>{% endif %}
{% else %}<p class="soft">None: no night differs from the one before.</p>{% endif %}

<h2>Nights</h2><div class="card"><table><tr><th>night</th><th class="l">verdict</th><th>WER %</th><th>Δ [95 %]</th><th class="l">tier</th><th>size</th><th>RTF p50</th>
<th>int8</th><th>ran</th><th class="l">report</th><th class="l">what is new</th></tr>
{% for r in rows %}<tr{% if r.c.tier == "stand-in" %} class="standin"{% endif %}><td><a href="../{{ r.night }}">{{ r.c.night|day }}</a></td><td class="l">{{ outcome(r.c) }}</td><td><b>{{ wer(r.c.wer) }}</b></td>
<td>{{ delta(r.c) }}</td><td class="l">{{ r.c.tier or "–" }}</td><td>{{ r.c.size_bytes|megabytes }}</td><td>{{ "%.4f"|format(r.c.rtf) if r.c.rtf is not none else "–" }}</td>
<td>{{ "%.0f %%"|format(r.c.int8_mac_share * 100) if r.c.int8_mac_share is not none else "–" }}</td><td title="stages that ran, not taken from the store">{{ r.c.executed }} in {{ "%.0f"|format(r.c.seconds) }} s</td>
<td class="l">{% if r.report %}<a href="../{{ r.report }}">report</a>{% else %}–{% endif %}</td>
<td class="l new">{% if r.pair %}<a href="../{{ r.pair }}">{{ ((r.c.error if r.c.wer is none) or r.new)|short(90) or "difference" }}</a>{% else %}{{ (r.c.error or r.new)|short(90) }}{% endif %}</td></tr>{% endfor %}
</table></div>{% if left_out %}<p class="soft">{{ count(left_out, "earlier night") }} left out of this page: <a href="../cells.csv">cells.csv</a> has all.</p>{% endif %}

<h2>Made from</h2><div class="card"><table>
{% for name, said in made %}<tr><td>{{ name }}</td><td class="l wrap">{% if name in ("versions", "board") %}{{ said }}{% else %}<code>{{ said }}</code>{% endif %}</td></tr>{% endfor %}</table></div>
{% endblock %}""",
}


def render_cell(
    past: NightHistory, kept: StoredResults, cell: str, pairs: dict[tuple[str, str, str], str], copied: set[str]
) -> str:
    """Return a cell's page; `copied` are the keys of the reports that the site has a copy of."""
    every = past.by_cell[cell]
    rows, left_out = every[-SHOWN:], max(0, len(every) - SHOWN)
    befores = [
        every[len(every) - len(rows) + number - 1] if left_out or number else None for number in range(len(rows))
    ]
    changes = [
        ", ".join(cell_differences(before, row)) if before else "" for before, row in zip(befores, rows, strict=True)
    ]
    tonight = rows[-1]
    scored = [row for row in every if row.wer is not None]
    found = [
        finding
        for night in reversed([row.night for row in every])
        for finding in night_findings(past, night, pairs)
        if finding["cell"] == cell
    ]
    rendered: str = _templates.get_template("cell").render(
        root="../",
        c=tonight,
        last=scored[-1] if scored else None,
        gates=kept.gates(tonight.judge),
        links=_links(past, tonight, pairs, copied),
        lost=_lost(kept, tonight, copied),
        rows=[
            {
                "c": row,
                "night": night_url(row.night),
                "report": report_url(row.report) if row.report in copied else "",
                "pair": pairs.get((cell, row.night, before.night), "") if before else "",
                "new": new,
            }
            for row, before, new in reversed(list(zip(rows, befores, changes, strict=True)))
        ],
        charts=_charts(rows, changes),
        left_out=left_out,
        found=[
            {**finding, "href": night_url(finding["night"]), "cell": day(finding["night"])} for finding in found[:FOUND]
        ],
        found_more=max(0, len(found) - FOUND),
        made=[
            (name, said)
            for name, said in (
                ("checkpoint", tonight.checkpoint),
                ("speech", tonight.speech),
                ("code", tonight.code),
                ("versions", tonight.versions),
                ("board", tonight.board_facts),
                ("again", tonight.command),
            )
            if said
        ],
    )
    return rendered


def _links(
    past: NightHistory, tonight: Cell, pairs: dict[tuple[str, str, str], str], copied: set[str]
) -> list[tuple[str, str]]:
    """List where to go from a cell: its full report, tonight against the best night, against the last."""
    links = [(report_url(tonight.report), "the full report")] if tonight.report in copied else []
    for other, said in ((past.best(tonight), "the best"), (past.before(tonight), "the night before")):
        if other is not None and (page := pairs.get((tonight.cell, tonight.night, other.night))):
            links.append((page, f"tonight against {said}"))
    return [*links, (night_url(tonight.night), "the whole night")]


def _lost(kept: StoredResults, tonight: Cell, copied: set[str]) -> str:
    """Say what of tonight the store does not have any more."""
    gone = [f"report/{tonight.report}"] if tonight.report and tonight.report not in copied else []
    gone += [f"judge/{tonight.judge}"] if tonight.judge and kept.verdict(tonight.judge) is None else []
    return (
        f"No longer in the store, so not shown here: {', '.join(gone)}. The figures are the history's." if gone else ""
    )


def _charts(rows: Sequence[Cell], changes: Sequence[str]) -> list[Any]:
    whole = [row.low is not None and row.high is not None for row in rows]
    delta = Line(
        "Δ WER",
        [row.delta_wer for row in rows],
        "main",
        [row.low if both else None for row, both in zip(rows, whole, strict=True)],
        [row.high if both else None for row, both in zip(rows, whole, strict=True)],
    )
    rates = [
        Line("binary", [row.wer for row in rows]),
        Line("float graphs", [row.wer_float for row in rows], "soft"),
        Line("stock", [row.wer_stock for row in rows], "dash"),
    ]
    size = Line("size", [row.size_bytes / 1e6 if row.size_bytes else None for row in rows])
    speed = Line("RTF", [row.rtf for row in rows])
    return [
        chart("Δ WER against float, points", rows, changes, [delta], zero=True),
        chart("WER, %", rows, changes, rates),
        chart("Size of all parts, MB", rows, changes, [size]),
        chart("Real-time factor, p50", rows, changes, [speed]),
    ]


_templates = site_environment(TEMPLATES)
