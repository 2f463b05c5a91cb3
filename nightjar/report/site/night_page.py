"""The page of one night: its verdict, what failed, what was found, every cell beside the night before."""

from typing import Any

from nightjar.report.site.formatting import short_dates, split_failures
from nightjar.report.site.history_view import NightHistory, StoredResults, cell_differences
from nightjar.report.site.index_page import night_findings, night_lead
from nightjar.report.site.layout import site_environment
from nightjar.report.site.urls import cell_url, night_url, report_url

FOUND = 200  # findings on a page

TEMPLATES = {
    "night": """{% extends "frame" %}{% from "parts" import delta, wer, outcome, findings %}
{% block title %}{{ n.outcome }} · the night of {{ n.night|day }}{% endblock %}{% block width %}wide{% endblock %}
{% block nav %}{{ super() }} / <a href="../nights.html">nights</a> / {{ n.night|day }}{% endblock %}
{% block body %}<h1>The night of {{ n.night|when }}</h1>
<p class="verdict {{ n.outcome }}">{{ n.outcome }}</p><p class="lead">{{ lead }}</p>
{% if failed %}<ul class="why">{% for said in failed %}<li>{{ said }}</li>{% endfor %}</ul>{% endif %}
{% if open %}<h2>Open, or not counted</h2><div class="card"><ul class="found">{% for f in open %}<li><div><a href="../{{ f.href }}"><b>{{ f.cell }}</b></a> {% if f.standin %}<span class="tag">stand-in</span>{% endif %}
{% for said in f.gates %}<br>{{ said }}{% endfor %}</div></li>{% endfor %}</ul></div>{% endif %}
{% if lost %}<p class="note">The store no longer has the verdict of {{ lost|join(", ") }}; the figures are the history's.</p>{% endif %}

<h2>Findings</h2>{% if found %}<div class="card">{{ findings(found, "../") }}</div>{% if found_more %}
<p class="soft">{{ count(found_more, "more finding") }}: <a href="../findings.csv">findings.csv</a> has all.</p>{% endif %}
{% else %}<p class="soft">None.</p>{% endif %}

<h2>Cells{% if before %} <span class="soft">against {{ before.night|day }}</span>{% endif %}</h2><div class="card"><table>
<tr><th>cell</th><th class="l">verdict</th><th class="l">tier</th><th>WER %</th><th>before</th><th>Δ [95 %]</th><th>size</th><th>RTF p50</th><th class="l">report</th><th class="l">what is new</th></tr>
{% for r in rows %}<tr{% if r.c.tier == "stand-in" %} class="standin"{% endif %}><td><a href="../{{ r.href }}">{{ r.c.cell|short(60) }}</a></td><td class="l">{{ outcome(r.c) }}</td><td class="l">{{ r.c.tier or "–" }}</td>
<td><b>{{ wer(r.c.wer) }}</b></td><td>{{ wer(r.before.wer) if r.before else "–" }}</td><td>{{ delta(r.c) }}</td><td>{{ r.c.size_bytes|megabytes }}</td>
<td>{{ "%.4f"|format(r.c.rtf) if r.c.rtf is not none else "–" }}</td>
<td class="l">{% if r.report %}<a href="../{{ r.report }}">report</a>{% else %}–{% endif %}</td>
<td class="l new">{% if r.pair %}<a href="../{{ r.pair }}">{{ ((r.c.error if r.c.wer is none) or r.new)|short(90) or "difference" }}</a>{% else %}{{ r.c.error|short(90) or r.new|short(90) or "–" }}{% endif %}</td></tr>{% endfor %}
</table></div>

<h2>Versions</h2><div class="card">{% for said, cells in versions %}<p>{{ said or "not said" }}<br><span class="soft">{{ cells|join(", ") }}</span></p>{% endfor %}</div>
<p class="soft">Began {{ n.started }}, ended {{ n.finished }}.{% if n.flow_run %} Prefect flow run <code>{{ n.flow_run }}</code>.{% endif %}</p>
<div class="page"><span>{% if before %}<a href="../{{ before.href }}">← {{ before.night|day }}</a>{% endif %}</span><span>{% if after %}<a href="../{{ after.href }}">{{ after.night|day }} →</a>{% endif %}</span></div>
{% endblock %}""",
}


def render_night(
    past: NightHistory, kept: StoredResults, number: int, pairs: dict[tuple[str, str, str], str], copied: set[str]
) -> tuple[str, bool]:
    """Return the page of the `number`th night, and whether the store still had all of it.

    copied: the keys of the reports that the site has a copy of.
    """
    night = past.nights[number]
    cells = past.by_night.get(night.night, ())
    befores = [past.before(cell) for cell in cells]
    unpassed = [cell for cell in cells if cell.outcome in ("FAIL", "UNDECIDED")]
    lost = [cell.cell for cell in unpassed if cell.judge and kept.verdict(cell.judge) is None]
    found = night_findings(past, night.night, pairs)
    versions: dict[str, list[str]] = {}
    for cell in cells:
        versions.setdefault(cell.versions, []).append(cell.cell)
    rendered: str = _templates.get_template("night").render(
        root="../",
        n=night,
        lead=night_lead(night, cells),
        failed=[short_dates(said) for said in split_failures(night.failed, [cell.cell for cell in cells])],
        open=[
            {
                "cell": cell.cell,
                "href": cell_url(cell.cell),
                "standin": cell.tier == "stand-in",
                "gates": [gate["sentence"] for gate in kept.gates(cell.judge)] or [cell.error],
            }
            for cell in unpassed
            if cell.outcome == "UNDECIDED" or not cell.counts
        ],
        lost=lost,
        found=found[:FOUND],
        found_more=max(0, len(found) - FOUND),
        rows=[
            {
                "c": cell,
                "before": before,
                "href": cell_url(cell.cell),
                "report": report_url(cell.report) if cell.report in copied else "",
                "pair": pairs.get((cell.cell, night.night, before.night), "") if before else "",
                "new": ", ".join(cell_differences(before, cell)) if before else "new in the history",
            }
            for cell, before in zip(cells, befores, strict=True)
        ],
        versions=list(versions.items()),
        before=_neighbour(past, number - 1),
        after=_neighbour(past, number + 1),
    )
    return rendered, not lost


def _neighbour(past: NightHistory, number: int) -> dict[str, Any] | None:
    if not 0 <= number < len(past.nights):
        return None
    name = past.nights[number].night
    return {"night": name, "href": night_url(name)}


_templates = site_environment(TEMPLATES)
