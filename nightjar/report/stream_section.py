"""The report's section on a stream: errors by chunk, the time that chunks take, and drift as a plot."""

import math
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from nightjar.report.style import environment
from nightjar.scoring.drift import Drift, worst_by_kind
from nightjar.scoring.streaming import STRATA

LEFT, RIGHT, TOP, BOTTOM = 48.0, 624.0, 16.0, 236.0  # of the plot inside its 640 × 280
MOST_DB = 60.0  # what is above is drawn there: float16 alone
COLOURS = ("var(--ink)", "#4a74b5", "#c0362c", "#1a7f4b", "#a86a00", "#7a4fb0", "#2a9aa8", "#8a6d3b")

TEMPLATE = """<h2>Stream</h2>
{% if strata %}<div class="card"><table><tr><th>errors by chunk</th>{% for subject in subjects %}<th>{{ subject }}</th>
<th class="l">95 %</th>{% endfor %}<th>words</th></tr>
{% for name, row in strata %}<tr><td>{{ name }}</td>{% for subject in subjects %}{% set s = row.get(subject) %}
<td>{{ "%.2f"|format(s.wer) + " %" if s and s.wer is not none else "–" }}</td>
<td class="l soft">{{ "%.1f–%.1f"|format(s.interval[0], s.interval[1]) if s and s.interval else "" }}</td>{% endfor %}
<td>{{ row.words }}</td></tr>{% endfor %}</table></div>
<p class="soft">A word counts where the text first had it, so many chunks into its clip.</p>{% endif %}
{% if times %}<div class="card"><table><tr><th>time per chunk</th><th>p50</th><th>p95</th><th>lasts</th><th>late</th>
<th class="l">real time</th></tr>{% for subject, t in times.items() %}<tr><td>{{ subject }}</td>
<td>{{ "%.1f"|format(t.p50_ms) }} ms</td><td>{{ "%.1f"|format(t.p95_ms) }} ms</td>
<td>{{ "%.0f"|format(t.lasts_ms) }} ms</td>
<td>{{ t.late }} of {{ t.chunks }}</td><td class="l {{ "PASS" if t.real_time else "FAIL" }}">
{{ "keeps up" if t.real_time else "falls behind" }}</td></tr>{% endfor %}</table></div>{% endif %}
{% if d %}<div class="card">
<svg viewBox="0 0 640 280" role="img" aria-label="signal-to-noise ratio against the place in the stream"
 style="width:100%;max-width:44rem;display:block;margin:.4rem auto;font:12px system-ui,sans-serif" fill="var(--soft)">
{% for x, text in xs %}<line x1="{{ x }}" x2="{{ x }}" y1="16" y2="236" stroke="var(--line)"/>
<text x="{{ x }}" y="254" text-anchor="middle">{{ text }}</text>{% endfor %}
{% for y, text in ys %}<line x1="48" x2="624" y1="{{ y }}" y2="{{ y }}" stroke="var(--line)"/>
<text x="42" y="{{ y + 4 }}" text-anchor="end">{{ text }}</text>{% endfor %}
<text x="336" y="274" text-anchor="middle">seconds into the stream</text>
{% for c in curves %}<polyline points="{{ c.path }}" fill="none" stroke="{{ c.colour }}"
 stroke-width="{{ 2.2 if loop.first else 1.2 }}"><title>{{ c.name }}</title></polyline>{% endfor %}</svg>
<table><tr><th>drift over {{ "%g"|format(d.seconds) }} s</th><th>first quarter</th><th>last quarter</th>
<th>least</th></tr>
{% for c in curves %}<tr><td><span style="color:{{ c.colour }}">■</span> {{ c.name }}
{% if not loop.first %}<span class="tag">worst of {{ c.of }}</span>{% endif %}</td>
<td>{{ "%.1f"|format(c.first_db) }} dB</td><td>{{ "%.1f"|format(c.last_db) }} dB</td>
<td>{{ "%.1f"|format(c.least_db) }} dB</td></tr>{% endfor %}
<tr><td>tokens as float's, in the same row</td>{% for a in (d.agree[0], d.agree[3]) %}
<td>{{ a[0] }} of {{ a[1] }}</td>{% endfor %}<td></td></tr></table></div>
<p class="soft">SNR of the binary's tensors against the float graphs', both hearing the same {{ d.count }} chunks from
their own states. {{ "%.0f"|format(most) }} dB and more are drawn as {{ "%.0f"|format(most) }}.
</p>
{% if others %}<details class="card"><summary>every state</summary><table><tr><th></th><th>first quarter</th>
<th>last quarter</th></tr>{% for name, c in others %}<tr><td>{{ name }}</td><td>{{ "%.1f"|format(c.first_db) }} dB</td>
<td>{{ "%.1f"|format(c.last_db) }} dB</td></tr>{% endfor %}</table></details>{% endif %}{% endif %}
"""


def stream_section(stream: Mapping[str, Any]) -> Markup:
    """Return the report's section; `stream` as in results.json."""
    by_chunk = {subject: {each["name"]: each for each in rows} for subject, rows in stream["by_chunk"].items() if rows}
    strata = []
    for name in STRATA:
        row = {subject: rows[name] for subject, rows in by_chunk.items() if name in rows}
        if row:
            counts = next(reversed(row.values()))["counts"]
            strata.append((name, {**row, "words": sum(counts[k] for k in ("hits", "substitutions", "deletions"))}))
    drift = Drift.model_validate(stream["drift"]) if stream["drift"] else None
    drawn = _drawn(drift) if drift is not None else {}
    return Markup(
        environment()
        .from_string(TEMPLATE)
        .render(subjects=list(by_chunk), strata=strata, times=stream["chunk_times"], d=drift, most=MOST_DB, **drawn)
    )


def _drawn(drift: Drift) -> dict[str, Any]:
    width = max(1, drift.count - 1)
    chunk_s = drift.seconds / drift.count

    def at(chunk: int, snr: float) -> str:
        level = max(0.0, min(snr, MOST_DB)) / MOST_DB
        return f"{LEFT + (RIGHT - LEFT) * chunk / width:.1f},{BOTTOM - (BOTTOM - TOP) * level:.1f}"

    kinds = {kind: found for kind, found in worst_by_kind(drift.courses).items() if found[0] != drift.output}
    lines = [("", drift.output, drift.courses[drift.output]), *((k, name, c) for k, (name, c) in kinds.items())]
    curves = [
        {
            "of": of,
            "name": name,
            "colour": COLOURS[number % len(COLOURS)],
            "path": " ".join(at(chunk, snr) for chunk, snr in zip(drift.chunks, course.snr_db, strict=True)),
            "first_db": course.first_db,
            "last_db": course.last_db,
            "least_db": min(course.snr_db),
        }
        for number, (of, name, course) in enumerate(lines)
    ]
    step = 10 ** math.floor(math.log10(max(drift.seconds, 1.0)))
    marks = [t * step for t in range(11) if t * step <= drift.seconds]
    return {
        "curves": curves,
        "others": [item for item in drift.courses.items() if item[0] != drift.output],
        "xs": [(round(LEFT + (RIGHT - LEFT) * t / (chunk_s * drift.count), 1), f"{t:g}") for t in marks],
        "ys": [(BOTTOM - (BOTTOM - TOP) * db / MOST_DB, f"{db:.0f} dB") for db in range(0, int(MOST_DB) + 1, 20)],
    }
