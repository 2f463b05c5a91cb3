"""The report: one HTML page that works from a file, in light and dark, on a phone, with nothing fetched."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from nightjar.report.search_section import search_section
from nightjar.report.stream_section import stream_section
from nightjar.report.style import STYLE, clips_that_fit, differing_clips, environment
from nightjar.scoring.score import Score
from nightjar.scoring.verdict import STAND_IN_NOTE, Verdict, headline

TEMPLATE = """{% from "pieces" import heard %}<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{{ headline }} · {{ r.model }} on {{ r.target }}, {{ r.precision }}</title><style>{{ style }}</style></head><body><main>
<h1>{{ r.model }} → {{ r.target }} <span class="tag">{{ r.precision }}</span> <span class="tag">tier {{ r.tier }}</span></h1>
<p class="verdict {{ "soft" if r.tier == "stand-in" else r.verdict }}">{{ headline }}</p>
{% if r.tier == "stand-in" %}<p class="soft">{{ note }}.</p>{% endif %}
<p class="lead">Δ {{ unit }} <b>{{ "%+.2f"|format(r.delta_wer) }}</b> points against the float graphs,
95 % interval [{{ "%+.2f"|format(r.interval[0]) }}, {{ "%+.2f"|format(r.interval[1]) }}], on {{ r.clips }} clips
and {{ r.words }} {{ r.unit }}s{% if r.skipped %}; {{ r.skipped }} clips skipped{% endif -%}
{% if r.aside %}; {{ r.aside | length }} set aside, which the runner crashed or hung on twice{% endif %}.</p>
{% if r.aside %}<p class="soft">Set aside: {% for clip, why in r.aside.items() %}{{ clip }} ({{ why }}){{ ", " if not
loop.last }}{% endfor %}</p>{% endif %}

<h2>Gates</h2><div class="card"><table>
{% for g in r.gates %}<tr><td class="{{ g.outcome }}"><b>{{ g.outcome }}</b></td>
<td class="l wrap">{{ g.sentence }}</td></tr>{% endfor %}
</table></div>

<h2>Scores on the same clips</h2><div class="card"><table>
<tr><th></th><th>{{ unit }} %</th><th class="l">95 % interval</th><th>S</th><th>D</th><th>I</th><th>empty</th><th>looping</th>
<th>capped</th><th>RTF p50</th></tr>
{% for s in r.scores %}<tr><td>{{ s.subject }} <span class="tag">{{ s.tier }}</span></td><td><b>{{ "%.2f"|format(s.wer) }}</b></td>
<td class="l"><div class="range" title="{{ "%.2f"|format(s.interval[0]) }} to {{ "%.2f"|format(s.interval[1]) }}">
<i style="left:{{ s.interval[0] / top * 100 }}%;width:{{ (s.interval[1] - s.interval[0]) / top * 100 }}%"></i>
<b style="left:{{ s.wer / top * 100 }}%"></b></div></td>
<td>{{ s.counts.substitutions }}</td><td>{{ s.counts.deletions }}</td><td>{{ s.counts.insertions }}</td>
<td>{{ s.empty }}</td><td>{{ s.looping }}</td><td>{{ s.capped }}</td>
<td>{{ "%.3f"|format(s.rtf_p50) if s.rtf_p50 is not none else "–" }}</td></tr>{% endfor %}
</table></div>
<p class="soft">stock: {{ r.get("stock", "openai-whisper") }} itself{{ "" if r.get("stream") else " in its own window" }}. float: this recipe's graphs, run as they are.
binary: what the target compiled, where it ran.</p>

<h2>Parts</h2><div class="card"><table>
<tr><th></th><th>size</th><th>MACs in int8</th><th>RTF p50</th><th>RTF p95</th></tr>
{% for name, size in r.size_bytes.items() %}<tr><td>{{ name }}</td><td>{{ "%.1f"|format(size / 1e6) }} MB</td>
<td>{{ "%.0f"|format(r.int8_mac_share[name] * 100) }} %</td>
{% set rtf = (r.rtf or {}).get(name) %}<td>{{ "%.4f"|format(rtf.p50) if rtf else "–" }}</td>
<td>{{ "%.4f"|format(rtf.p95) if rtf else "–" }}</td></tr>{% endfor %}
{% set rtf = (r.rtf or {}).get("total") %}{% if rtf %}<tr><td>end to end</td>
<td>{{ "%.1f"|format(r.size_bytes.values()|sum / 1e6) }} MB</td><td></td><td>{{ "%.4f"|format(rtf.p50) }}</td>
<td>{{ "%.4f"|format(rtf.p95) }}</td></tr>{% endif %}
</table></div>
{% for name, said in r.get("notes", {}).items() %}<p class="soft">{{ name }}: {{ said | join("; ") }}.</p>{% endfor %}
{% for why, clips in r.throttled.items() %}<p class="FAIL">The board was throttled on {{ clips }} of {{ r.clips }} clips:
{{ why }}. Its RTF is that of a board held back; cool it and run again with --refresh evaluate.</p>{% endfor %}

{{ stream }}
{{ search }}
{% for title, groups in (("By speaker", v.by_speaker), ("By duration", v.by_duration)) %}
<h2>{{ title }}</h2><div class="card"><table>
<tr><th></th><th>clips</th><th>{{ r.unit }}s</th><th>stock %</th><th>float %</th><th>binary %</th></tr>
{% for g in groups %}<tr><td>{{ g.name }}</td><td>{{ g.clips }}</td><td>{{ g.words }}</td>
{% for value in (g.wer_stock, g.wer_float, g.wer) %}<td>{{ "%.2f"|format(value) if value is not none else "–" }}</td>{% endfor %}
</tr>{% endfor %}</table></div>{% endfor %}

{% if coverage %}<h2>Calibration</h2><div class="card"><table>
<tr><th></th><th>samples</th><th class="l">coverage</th></tr>
{% for name, said in coverage %}<tr><td>{{ name }}</td><td>{{ said.samples }}</td><td class="l wrap">{{ said.sentence }}</td></tr>
{% endfor %}</table></div>{% endif %}

<h2>Clips where binary and float differ ({{ differing|length + left_out }} of {{ r.clips }})</h2><div class="card">
{{ heard(differing, "float", "binary") }}</div>
{% if left_out %}<p class="soft">{{ left_out }} more differing clips are left out of this page; the artifact's verdict.json has all.</p>{% endif %}

{{ this_run }}
<h2>Made from</h2><div class="card">
{% for name, made in r.made_from.items() %}<details><summary>{{ name }} <code>{{ made.stage }}/{{ made.key[:12] }}</code>
<span class="soft">{{ made.seconds }} s, {{ made.finished }}</span></summary><table>
<tr><td>content</td><td class="l"><code>{{ made.sha256 }}</code></td></tr>
<tr><td>code</td><td class="l"><code>{{ made.code_sha256 }}</code></td></tr>
{% for input, sha256 in made.inputs.items() %}<tr><td>{{ input }}</td><td class="l"><code>{{ sha256 }}</code></td></tr>{% endfor %}
{% if made.board %}<tr><td>board</td><td class="l wrap">{% for fact, value in made.board.items() %}{{ fact }} {{ value }}{{ ", " if not loop.last }}{% endfor %}</td></tr>{% endif %}
{% if made.sdk %}<tr><td>SDK</td><td class="l wrap">{% for name, value in made.sdk.items() %}{{ name }} {{ value }}{{ ", " if not loop.last }}{% endfor %}</td></tr>{% endif %}
<tr><td>libraries</td><td class="l wrap">{% for library, version in made.libraries.items() %}{{ library }} {{ version }}{{ ", " if not loop.last }}{% endfor %}</td></tr>
</table></details>{% endfor %}
<details><summary>recipe</summary><table>
{% for field, value in r.recipe.items() %}<tr><td>{{ field }}</td><td class="l">{{ value }}</td></tr>{% endfor %}</table></details></div>
</main></body></html>
"""

RUN = """<h2>This run</h2><div class="card"><table>
<tr><th>stage</th><th>seconds</th><th class="l">why it ran</th></tr>
{% for s in stages %}<tr><td>{{ s.name }}</td><td>{{ "cached" if s.cached else "%.1f"|format(s.seconds) }}</td>
<td class="l wrap soft">{{ s.why }}</td></tr>{% endfor %}</table>
<p>Again, here or elsewhere: <code>nightjar reproduce report.html</code>, which runs</p><pre>{{ command }}</pre></div>
<script type="application/json" id="results">{{ results }}</script>
"""

THIS_RUN = "<!-- this run -->"  # where `complete` puts what a cached page cannot know


def render_report(
    results: Mapping[str, Any],
    verdict: Verdict,
    scores: Mapping[str, Score],
    coverage: Mapping[str, Any] | None,
) -> str:
    """Return the page for one port; `results` as report writes them, `coverage` from the calibration if there was one."""
    differing = differing_clips(scores["float"].clips, scores["binary"].clips, scores["binary"].language)
    shown = clips_that_fit(differing)
    return (
        environment()
        .from_string(TEMPLATE)
        .render(
            r=results,
            v=verdict,
            headline=headline(results["tier"], results["verdict"]),
            note=STAND_IN_NOTE[0].upper() + STAND_IN_NOTE[1:],
            style=Markup(STYLE),
            unit="CER" if verdict.unit == "character" else "WER",
            top=max(1.0, *(score.interval[1] for score in scores.values())) * 1.05,
            coverage=_covered(coverage),
            differing=shown,
            left_out=len(differing) - len(shown),
            stream=stream_section(results["stream"]) if "stream" in results else "",
            search=search_section(results["search"]) if "search" in results else "",
            this_run=Markup(THIS_RUN),
        )
    )


def add_run(page: str, results: Mapping[str, Any]) -> str:
    """Add to a page the stages of a run, the command that repeats it, and the results themselves for `embedded`."""
    # "<" may not end the script element early; JSON reads \\u003c as the same character
    text = json.dumps(results, ensure_ascii=False).replace("<", "\\u003c")
    run = (
        environment()
        .from_string(RUN)
        .render(stages=results["stages"], command=results["command"], results=Markup(text))
    )
    return page.replace(THIS_RUN, run, 1)


def embedded_results(page: str) -> dict[str, Any]:
    """Read the results that `complete` put into a page; raises ValueError when there are none."""
    _, found, rest = page.partition('<script type="application/json" id="results">')
    if not found:
        raise ValueError("no results in this page")
    loaded: dict[str, Any] = json.loads(rest.partition("</script>")[0])
    return loaded


def _covered(coverage: Mapping[str, Any] | None) -> Sequence[tuple[str, dict[str, Any]]]:
    if not coverage:
        return []
    said = f"{coverage['clips']} clips of {coverage['speakers']} speakers"
    rows = []
    for part, samples in coverage["samples"].items():
        sentence = coverage.get("sentences", {}).get(part, said)  # a family may have more to say
        if part == "decoder" and "decoder" in coverage:
            covered = coverage["decoder"]["steps_covered"]
            sentence = (
                f"real decode steps of {coverage['decoder']['clips']} clips; "
                f"{sum(map(bool, covered))} of {len(covered)} positions that occur are covered"
            )
        rows.append((part, {"samples": samples, "sentence": sentence}))
    return rows
