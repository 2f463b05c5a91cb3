"""The frame of every page of the site: its style beside that of the report, its way back, and pieces that pages share."""

from typing import Any

from markupsafe import Markup

from nightjar.report.site.charts import TEMPLATES as PLOTS
from nightjar.report.site.formatting import count, date_time, day, megabytes, short, short_dates
from nightjar.report.style import STYLE, environment

SITE_STYLE = """
a{color:inherit;text-decoration-color:var(--line);text-underline-offset:.18em}a:hover{text-decoration-color:currentColor}
a:focus-visible{outline:2px solid var(--bar);outline-offset:2px;border-radius:.2rem}
main.wide{max-width:74rem}nav{display:flex;flex-wrap:wrap;gap:.2rem .5rem;color:var(--soft);font-size:.85rem;margin-bottom:1.1rem}
nav a{text-decoration:none}nav a:hover{text-decoration:underline}nav b{color:var(--ink)}nav .on{margin-left:auto}
.BROKEN{color:var(--bad)}.MISSING{color:var(--soft)}.lead ul,.why{margin:.3rem 0;padding-left:1.2rem}
.tally{display:flex;flex-wrap:wrap;gap:.35rem;margin:.6rem 0 0;padding:0;list-style:none}
.strip{display:flex;flex-wrap:wrap;gap:3px;margin:1rem 0 0}
.strip a{width:1.15rem;height:1.15rem;border-radius:.25rem;background:currentColor;position:relative;text-decoration:none}
.strip a.worse::after{content:"▾"}.strip a.FAIL::after{content:"×"}
.strip a::after{position:absolute;inset:0;color:var(--paper);font:700 .95rem/1.1rem system-ui;text-align:center}
.strip a:last-of-type{margin-left:3px;outline:2px solid currentColor;outline-offset:2px}
.found{list-style:none;margin:0;padding:0}.found li{display:flex;gap:.7rem;padding:.55rem 0;border-top:1px solid var(--line)}
.found li:first-child{border-top:0}.found li>div{min-width:0;overflow-wrap:anywhere}
.found i{font-style:normal;width:1rem;text-align:center;flex:none}
.board{display:grid;gap:.6rem;align-items:stretch}.board h3{margin:.6rem 0 -.1rem;font-size:1rem;overflow-wrap:anywhere}
.board .col{display:none}.slot{display:grid;gap:.6rem;min-width:0;align-content:start;grid-template-columns:repeat(auto-fill,minmax(min(100%,16rem),1fr))}.slot.empty{display:none}
@media(min-width:56rem){.board.matrix{grid-template-columns:minmax(6rem,10rem) repeat(var(--n),minmax(0,1fr))}
.board.matrix h3{margin:.8rem 0 0}.board.matrix .col{display:block;color:var(--soft);font-size:.85rem;overflow-wrap:anywhere}
.board.matrix .slot.empty{display:block;color:var(--soft);font-size:.85rem;padding:.8rem 0}.slot.empty::before{content:"–"}.board.matrix .t{display:none}}
@media(min-width:40rem){.board.flow{grid-template-columns:repeat(auto-fill,minmax(17rem,1fr))}.board.flow h3{grid-column:1/-1}}
.tile{display:block;text-decoration:none;background:var(--card);border:1px solid var(--line);border-left:.3rem solid var(--tone);
border-radius:.6rem;padding:.55rem .8rem .5rem;--tone:var(--soft);min-width:0}
.tile:hover{border-color:var(--soft);border-left-color:var(--tone)}
.tile.PASS{--tone:var(--good)}.tile.FAIL,.tile.BROKEN{--tone:var(--bad)}.tile.UNDECIDED{--tone:var(--open)}
.tile,.tile.PASS,.tile.FAIL,.tile.BROKEN,.tile.UNDECIDED,.tile.MISSING{color:var(--ink)}
.tile.FAIL,.tile.BROKEN{background:color-mix(in srgb,var(--bad) 7%,var(--card))}
.tile.standin{--tone:var(--line);border-style:dashed;background:transparent;color:var(--soft)}
.tile .top{display:flex;flex-wrap:wrap;gap:.3rem;align-items:center;font-size:.8rem}.tile .word{font-weight:700;font-size:1rem;
color:var(--tone);margin-right:auto}.tile.standin .word{color:var(--soft);font-weight:500}
.tile .wer{font-size:1.7rem;font-weight:650;line-height:1.2;font-variant-numeric:tabular-nums}.tile small{font-size:.8rem;color:var(--soft);font-weight:400}
.tile .d{white-space:nowrap}.tile p{margin:.1rem 0;overflow-wrap:anywhere}.tile .foot{font-size:.78rem;color:var(--soft)}
.clamp{display:-webkit-box;-webkit-line-clamp:2;-webkit-box-orient:vertical;overflow:hidden}
.spark{width:100%;height:auto;max-height:4.2rem;display:block;margin:.25rem 0}.line{fill:none;stroke:var(--bar);stroke-width:1.8;stroke-linejoin:round}
.line.soft{stroke:var(--soft);stroke-width:1.2}.line.dash{stroke:var(--soft);stroke-width:1.2;stroke-dasharray:3 3}
.area,.band{fill:var(--bar);opacity:.14}.bar{stroke:var(--bar);stroke-width:2;opacity:.4}.grid{stroke:var(--line)}.zero{stroke:var(--soft)}
.change{stroke:var(--open);stroke-dasharray:2 3}.lost{stroke:var(--bad);stroke-width:1.6;fill:none}
.fPASS{fill:var(--good)}.fFAIL,.fBROKEN{fill:var(--bad)}.fUNDECIDED{fill:var(--open)}.fMISSING,.fnone{fill:var(--soft)}
.fstandin{fill:none;stroke:var(--soft);stroke-width:1.6}.front{fill:none;stroke:var(--bar);stroke-width:1.4;opacity:.7}
.shape{stroke:var(--card);stroke-width:1}.shape.fstandin{stroke:var(--soft);stroke-width:1.8}.lead-line{stroke:var(--soft);stroke-width:.6}
.chart{margin:0;background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.6rem .5rem .3rem;min-width:0}
.chart svg{width:100%;height:auto;display:block;font:10.5px system-ui,sans-serif;fill:var(--soft)}.chart a{text-decoration:none}
.chart .label{font-size:.95em;fill:var(--ink);paint-order:stroke;stroke:var(--card);stroke-width:3px;stroke-linejoin:round}
@media(min-width:48rem){.chart svg{font-size:8.4px}}.chart figcaption{font-weight:600;font-size:.9rem;padding-left:.4rem}
.charts{display:grid;gap:.6rem}@media(min-width:48rem){.charts{grid-template-columns:1fr 1fr}}
.key{display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.82rem;color:var(--soft);margin:.4rem 0;align-items:center}
.key span{display:inline-flex;gap:.35rem;align-items:center}.key i{width:1.2rem;border-top:2px solid var(--bar)}
.key i.soft{border-color:var(--soft)}.key i.dash{border-top:2px dashed var(--soft)}.key svg{overflow:visible}
.tight th,.tight td{white-space:normal}.new{white-space:normal;min-width:9rem;overflow-wrap:anywhere}.go{color:var(--bar)}tr.standin td{color:var(--soft)}tr.standin b{font-weight:400}
.page{display:flex;justify-content:space-between;gap:1rem;margin-top:2rem}
footer{margin-top:3rem;padding-top:.8rem;border-top:1px solid var(--line);color:var(--soft);font-size:.82rem}
.note{border-left:.25rem solid var(--open);padding:.3rem .8rem;margin:1rem 0}
.verdict.standin{color:var(--soft);font-weight:500}
"""

GENERATOR = '<meta name="generator" content="nightjar">'  # says that a page may be written over

FRAME = (
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
"""
    + GENERATOR
    + """<link rel="icon" href="data:,"><title>{% block title %}{% endblock %}</title><style>{{ style }}</style></head><body>
<main class="{% block width %}{% endblock %}">
<nav>{% block nav %}<a href="{{ root }}index.html"><b>Nightjar</b></a>{% endblock %}</nav>
{% block body %}{% endblock %}
<footer>{% block foot %}Scores are WER in percent on the same clips; Δ is that of the binary less that of its float graphs, with a paired
95 % interval. A stand-in is a public runtime in place of a vendor's: no score of an NPU.{% endblock %}</footer>
</main></body></html>
"""
)

PARTS = """{% macro interval(c) %}{% if c.low is not none and c.high is not none %}[{{ "%+.2f"|format(c.low) }}, {{ "%+.2f"|format(c.high) }}]{% endif %}{% endmacro %}
{% macro delta(c) %}{% if c.delta_wer is not none %}{{ "%+.2f"|format(c.delta_wer) }} <span class="soft">{{ interval(c) }}</span>{% else %}–{% endif %}{% endmacro %}
{% macro wer(value) %}{{ "%.2f"|format(value) if value is not none else "–" }}{% endmacro %}
{% macro outcome(c) %}{% if c.tier == "stand-in" %}<span class="soft">stand-in {{ c.outcome }}</span>{% else %}<b class="{{ c.outcome }}">{{ c.outcome }}</b>{% endif %}{% endmacro %}
{% macro tags(c) %}<span class="tag">{{ c.precision }}</span>{% if c.board %} <span class="tag">{{ c.board }}</span>{% endif %}{% if c.tier %} <span class="tag">{{ c.tier }}</span>{% endif %}{% endmacro %}
{% macro findings(items, root) %}<ul class="found">
{% for f in items %}<li><i class="{{ "FAIL" if f.regression else "PASS" if f.better else "soft" }}" title="{{ "regression" if f.regression else "better" if f.better else "different" }}">{{ "▼" if f.regression else "▲" if f.better else "•" }}</i>
<div>{% if f.href %}<a href="{{ root }}{{ f.href }}"><b>{{ f.cell }}</b></a>{% else %}<b>{{ f.cell }}</b>{% endif %}&ensp;<span class="tag">{{ f.kind|upper if f.kind in ("wer", "rtf") else f.kind }}, against {{ "the best, " if f.against == "best" }}{{ f.other|day }}</span><br>{{ f.said }}
{% if f.causes and f.kind != "versions" %}<br><span class="soft">Likely cause: {{ f.causes|dated }}</span>{% endif %}
{% if f.pair %}<br><a class="go" href="{{ root }}{{ f.pair }}">{{ "what differs, clip by clip" if f.kind == "wer" else "the two nights side by side" }} →</a>{% endif %}</div></li>{% endfor %}</ul>{% endmacro %}
"""


def site_environment(templates: dict[str, str]) -> Any:
    """Make the environment of the site's pages, with their frame, parts and filters."""
    made = environment({"frame": FRAME, "parts": PARTS, **PLOTS, **templates})
    made.filters |= {"dated": short_dates, "day": day, "when": date_time, "short": short, "megabytes": megabytes}
    made.globals |= {"style": Markup(STYLE + SITE_STYLE), "count": count}
    return made
