"""The first page, read in five seconds: tonight's verdict, what changed, every cell; and the page of all nights."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from nightjar.nightly.history import Cell, Finding, Night
from nightjar.report.site.charts import sparkline
from nightjar.report.site.formatting import count, join_words, main_versions, short_dates, split_failures
from nightjar.report.site.history_view import NightHistory, versions
from nightjar.report.site.layout import site_environment
from nightjar.report.site.pareto import pareto_sections
from nightjar.report.site.urls import NIGHTS, TABLES, cell_url, night_url

STRIP = 60  # nights in the strip
RECENT = 14  # nights in the table below it
CHANGES = 8  # findings on the first page
MOST_NIGHTS = 2000  # on the page of all nights

TEMPLATES = {
    "index": """{% extends "frame" %}{% from "parts" import interval, findings %}
{% block title %}{{ n.outcome }} · Nightjar, {{ n.night|day }}{% endblock %}{% block width %}wide{% endblock %}
{% block body %}<h1>The night of {{ n.night|when }}</h1>
<p class="verdict {{ n.outcome }}">{{ n.outcome }}</p>
<div class="lead">{{ lead }}{% if failed %}<ul class="why">{% for said in failed %}<li>{{ said }}</li>{% endfor %}</ul>{% endif %}</div>
<div class="strip" aria-label="the last nights">{% for s in strip %}<a class="{{ s.night.outcome }}{{ " worse" if s.worse }}" href="{{ s.href }}" title="{{ s.said }}" aria-label="{{ s.said }}"></a>{% endfor %}</div>

<h2>What changed last night</h2>
{% if changes %}<div class="card">{{ findings(changes, "") }}</div>
{% if more %}<p class="soft">{{ count(more, "more change") }}: <a href="{{ here }}">the whole night</a></p>{% endif %}
{% else %}<p class="soft">{{ "No finding, neither against the night before nor against the best." if nights > 1 else "This is the first night: there is nothing to hold it against." }}</p>{% endif %}

<h2>Scoreboard</h2>
<div class="board {{ "matrix" if columns|length < 5 else "flow" }}" style="--n:{{ columns|length }}">
{% if columns|length < 5 %}<span class="col"></span>{% for target in columns %}<span class="col">{{ target }}</span>{% endfor %}{% endif %}
{% for row in board %}<h3>{{ row.model }}</h3>
{% for slot in row.slots %}<div class="slot{{ " empty" if not slot }}">{% for t in slot %}{{ tile(t) }}{% endfor %}</div>{% endfor %}{% endfor %}</div>
{% if gone %}<p class="soft">Not in the last night: {% for g in gone %}<a href="{{ g.href }}">{{ g.cell.cell }}</a> (last {{ g.cell.night|day }}){{ ", " if not loop.last }}{% endfor %}.</p>{% endif %}

{% for heard, plots in pareto %}<h2>What accuracy costs <span class="soft">{{ heard }}</span></h2>{{ plots }}{% endfor %}

<h2>Nights</h2><div class="card">{{ table(recent) }}</div>
{% if nights > recent|length %}<p><a href="{{ all }}">All {{ nights }} nights</a></p>{% endif %}
<p class="soft">The tables: {% for name in tables %}<a href="{{ name }}">{{ name }}</a>{{ ", " if not loop.last }}{% endfor %}</p>
{% endblock %}""",
    "tile": """{% from "parts" import interval %}<a class="tile {{ "standin" if c.tier == "stand-in" else c.outcome }}" href="{{ href }}">
<span class="top"><span class="word">{{ "stand-in" if c.tier == "stand-in" else c.outcome }}</span><span class="tag"><span class="t">{{ c.target }} </span>{{ c.precision }}</span>
{% if c.board %}<span class="tag">{{ c.board }}</span>{% endif %}{% if c.tier %}<span class="tag">{{ c.tier }}</span>{% endif %}</span>
{% if c.tier == "stand-in" %}<p class="foot">{{ c.outcome }} on a public runtime, not on the NPU; counts for nothing</p>{% endif %}
{% if c.wer is not none %}<p><span class="wer">{{ "%.2f"|format(c.wer) }}</span> <small>WER %</small>
{% if c.delta_wer is not none %} <span class="d">Δ {{ "%+.2f"|format(c.delta_wer) }}</span> <small class="d">{{ interval(c) }}</small>{% endif %}</p>
{% else %}<p class="clamp">{{ (c.error or "no score")|short(240) }}</p>{% if last %}<p class="foot">last score {{ "%.2f"|format(last.wer) }} % on {{ last.night|day }}, tier {{ last.tier }}</p>{% endif %}{% endif %}
{{ spark }}<p class="foot">{% if c.size_bytes %}{{ c.size_bytes|megabytes }}{% endif %}{% if c.rtf is not none %} · RTF {{ "%.3f"|format(c.rtf) }}{% endif %}
{% if c.clips is not none %} · {{ count(c.clips, "clip") }}{% endif %}{% if streak %} · {{ streak }}{% endif %}</p>
<p class="foot clamp" title="{{ c.versions }}">{{ versions }}</p></a>""",
    "table": """<table><tr><th>night</th><th class="l">outcome</th><th>worse</th><th class="l">what failed</th></tr>
{% for s in rows %}<tr><td><a href="{{ s.href }}">{{ s.night.night|when }}</a></td><td class="l"><b class="{{ s.night.outcome }}">{{ s.night.outcome }}</b></td>
<td>{{ s.worse or "–" }}</td><td class="l">{{ s.night.failed|short(120) }}</td></tr>{% endfor %}</table>""",
    "nights": """{% extends "frame" %}{% block title %}All nights · Nightjar{% endblock %}
{% block nav %}{{ super() }} / all nights{% endblock %}
{% block body %}<h1>All nights</h1><div class="card">{{ table(rows) }}</div>
{% if left_out %}<p class="soft">{{ count(left_out, "earlier night") }} left out of this page: <a href="nights.csv">nights.csv</a> has all.</p>{% endif %}{% endblock %}""",
    "empty": """{% extends "frame" %}{% block title %}Nightjar{% endblock %}{% block body %}<h1>The history of nights</h1>
<p class="verdict NOT">No night yet</p><p class="lead">The history in <code>{{ folder }}</code> is empty. The first <code>nightjar nightly</code>
fills it, and this page after <code>nightjar report --site</code>.</p>{% endblock %}""",
}


def render_index(past: NightHistory, pairs: dict[tuple[str, str, str], str]) -> str:
    """Return the first page; `pairs` are the difference pages there are, by cell, night and the other night."""
    night = past.nights[-1]
    cells = past.by_night.get(night.night, ())
    changes = night_findings(past, night.night, pairs)
    columns = sorted({cell.target for cell in cells})
    board = [
        {
            "model": model,
            "slots": [
                [cell for cell in cells if (cell.model, cell.target) == (model, target)]
                for target in columns
                if len(columns) < 5 or any((cell.model, cell.target) == (model, target) for cell in cells)
            ],
        }
        for model in sorted({cell.model for cell in cells})
    ]
    gone = [rows[-1] for name, rows in past.by_cell.items() if name not in {cell.cell for cell in cells}]
    pareto = pareto_sections(cells)
    rendered: str = _templates.get_template("index").render(
        root="",
        n=night,
        lead=night_lead(night, cells),
        failed=[short_dates(said) for said in split_failures(night.failed, [cell.cell for cell in cells])],
        strip=_summaries(past, past.nights[-STRIP:]),
        changes=changes[:CHANGES],
        more=max(0, len(changes) - CHANGES),
        here=night_url(night.night),
        nights=len(past.nights),
        columns=columns,
        board=board,
        tile=lambda cell: _tile(past, cell),
        gone=[{"cell": cell, "href": cell_url(cell.cell)} for cell in gone],
        pareto=pareto,
        table=_table,
        recent=_summaries(past, past.nights[: -RECENT - 1 : -1]),
        all=NIGHTS,
        tables=TABLES,
    )
    return rendered


def render_nights(past: NightHistory) -> str:
    """Return the page of all nights, newest first."""
    rows = _summaries(past, past.nights[: -MOST_NIGHTS - 1 : -1])
    left_out = max(0, len(past.nights) - MOST_NIGHTS)
    rendered: str = _templates.get_template("nights").render(root="", rows=rows, left_out=left_out, table=_table)
    return rendered


def render_empty(folder: str) -> str:
    """Return the first page of a history without a night."""
    rendered: str = _templates.get_template("empty").render(root="", folder=folder)
    return rendered


def night_lead(night: Night, cells: Sequence[Cell]) -> str:
    """Say in one sentence how the cells of a night came out."""
    real = [cell for cell in cells if cell.counts]
    said = [
        f"{number} {word}"
        for outcome, word in (
            ("PASS", "passed"),
            ("FAIL", "failed"),
            ("UNDECIDED", "undecided"),
            ("BROKEN", "broke"),
            ("MISSING", "could not run"),
        )
        if (number := sum(cell.outcome == outcome for cell in real))
    ]
    of = f"Of {count(len(real), 'cell')}" if len(real) != 1 else "Of one cell"
    standins = sum(cell.tier == "stand-in" for cell in cells)
    aside = [count(standins, "stand-in")] if standins else []
    if others := len(cells) - len(real) - standins:
        aside.append(count(others, "other"))
    not_counted = f"; {join_words(aside)} not counted" if aside else ""
    if len(said) == 1 and len(real) > 1:
        return f"All {len(real)} cells {said[0].partition(' ')[2]}{not_counted}."
    return f"{of}, {join_words(said)}{not_counted}." if said else f"No cell that counts{not_counted}."


def night_findings(past: NightHistory, night: str, pairs: dict[tuple[str, str, str], str]) -> list[dict[str, Any]]:
    """List a night's findings for a page: regressions first, then what got better, then what merely differs."""
    known = {cell.cell for cell in past.by_night.get(night, ())}
    found = [
        {
            **finding.model_dump(),
            "said": short_dates(_told(finding)),
            "better": _better(finding),
            "href": cell_url(finding.cell) if finding.cell in known else "",
            "pair": pairs.get((finding.cell, night, finding.other), ""),
        }
        for finding in past.findings.get(night, ())
    ]
    return sorted(found, key=lambda f: (not f["regression"], not f["better"], f["against"] == "best", f["cell"]))


def _told(finding: Finding) -> str:
    """Return a finding's sentence without the cell and the causes, which stand beside it."""
    said, _, _ = finding.sentence.removeprefix(f"{finding.cell} ").partition("; likely cause: ")
    return said.rstrip(".") + "."


def _better(finding: Finding) -> bool:
    """Tell an improvement from a mere difference: of versions there is none, of sizes and rates the figure says it."""
    if finding.regression or finding.kind == "versions":
        return False
    if finding.kind == "outcome":
        return finding.after == "PASS"
    if finding.kind == "wer" and finding.high is not None:
        return finding.high < 0
    return False


def _tile(past: NightHistory, cell: Cell) -> Any:
    rows = past.by_cell[cell.cell]
    scored = [row for row in rows if row.wer is not None]
    same = 0
    for row in reversed(rows):
        if row.outcome != cell.outcome:
            break
        same += 1
    streak = f"{cell.outcome} for {count(same, 'night')}" if 1 < same < len(rows) else ""
    return Markup(
        _templates.get_template("tile").render(
            c=cell,
            href=cell_url(cell.cell),
            spark=sparkline(rows),
            last=scored[-1] if scored else None,
            streak=streak,
            versions=main_versions(versions(cell.versions), cell.target),
        )
    )


def _summaries(past: NightHistory, nights: Sequence[Night]) -> list[dict[str, Any]]:
    found = []
    for night in nights:
        worse = sum(finding.regression for finding in past.findings.get(night.night, ()))
        said = f"{night.night}: {night.outcome}" + (f", {count(worse, 'regression')}" if worse else "")
        found.append({"night": night, "href": night_url(night.night), "worse": worse, "said": said})
    return found


def _table(rows: Sequence[dict[str, Any]]) -> Any:
    return Markup(_templates.get_template("table").render(rows=rows))


_templates = site_environment(TEMPLATES)
