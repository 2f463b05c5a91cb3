"""The trade a precision search found, as a plot and a table: how much is int8 against what it loses."""

import math
from collections.abc import Mapping
from typing import Any

import jinja2
from markupsafe import Markup

LEFT, RIGHT, TOP, BOTTOM = 64.0, 624.0, 16.0, 236.0  # of the plot inside its 640 × 280
LEAST_KL = 1e-5  # nats: below, nothing is told apart

TEMPLATE = """<h2>Precision search</h2><div class="card">
<svg viewBox="0 0 640 280" role="img" aria-label="divergence against int8 share of each rung measured"
 style="width:100%;max-width:44rem;display:block;margin:.4rem auto;font:12px system-ui,sans-serif" fill="var(--soft)">
{% for x, text in xs %}<line x1="{{ x }}" x2="{{ x }}" y1="16" y2="236" stroke="var(--line)"/>
<text x="{{ x }}" y="254" text-anchor="middle">{{ text }}</text>{% endfor %}
{% for y, text in ys %}<line x1="64" x2="624" y1="{{ y }}" y2="{{ y }}" stroke="var(--line)"/>
<text x="58" y="{{ y + 4 }}" text-anchor="end">{{ text }}</text>{% endfor %}
<text x="344" y="274" text-anchor="middle">multiply-accumulates in int8, %</text>
<text transform="translate(14 126) rotate(-90)" text-anchor="middle">divergence, nats per step</text>
<polyline points="{{ path }}" fill="none" stroke="var(--bar)" stroke-width="1.5" opacity=".6"/>
{% for p in points %}<circle cx="{{ p.x }}" cy="{{ p.y }}" r="{{ 7 if p.taken else 5 }}"
 fill="{{ "var(--good)" if p.taken else "var(--bar)" }}"{% if p.dominated %} opacity=".35"{% endif %}>
<title>{{ p.said }}</title></circle>{% endfor %}</svg>
<table><tr><th>int8 MACs</th>{% for part in parts %}<th>{{ part }}</th>{% endfor %}<th>weights</th><th>nats per step</th>
<th>same token</th><th>SNR</th><th>Δ WER</th><th>new bad</th></tr>
{% for p in points %}<tr{% if p.taken %} class="PASS"{% endif %}><td><b>{{ "%.1f"|format(p.share * 100) }} %</b>
{% if p.taken %}<span class="tag">taken</span>{% endif %}</td>
{% for part in parts %}<td>{{ "%.1f"|format(p.shares[part] * 100) if part in p.shares else "–" }}</td>{% endfor %}
<td>{{ "%.1f"|format(p.bytes / 1e6) }} MB</td><td>{{ "%.4f"|format(p.kl) }}</td>
<td>{{ p.agree }} of {{ p.tokens }}</td>
<td>{% for part, snr in p.snr_db.items() %}{{ "%.1f"|format(snr) }} dB {% endfor %}</td>
<td>{{ "%+.2f"|format(p.delta_wer) if p.delta_wer is not none else "–" }}</td><td>{{ p.new_bad }}</td></tr>{% endfor %}
</table></div>
<p class="soft">Each row is a rung that was built and heard on calibration speech, never on evaluation clips. Divergence is
taken on the float text's prefix; SNR is that of the logits of its likeliest tokens. The vocabulary head counts apart.</p>
"""


def search_section(search: Mapping[str, Any]) -> Markup:
    """Return the report's section on a search; `search` as in pareto.json."""
    points = [_point(point, search["taken"]) for point in search["points"]]
    floor = math.floor(math.log10(min(point["level"] for point in points)))
    ceiling = max(floor + 1, math.ceil(math.log10(max(point["level"] for point in points))))
    for point in points:
        point["x"] = round(LEFT + (RIGHT - LEFT) * point["share"], 1)
        height = (math.log10(point["level"]) - floor) / (ceiling - floor)
        point["y"] = round(BOTTOM - (BOTTOM - TOP) * height, 1)
    best = sorted((p for p in points if not p["dominated"]), key=lambda p: p["share"])
    grid = {
        "xs": [(LEFT + (RIGHT - LEFT) * share / 100, share) for share in range(0, 101, 20)],
        "ys": [
            (round(BOTTOM - (BOTTOM - TOP) * (power - floor) / (ceiling - floor), 1), f"1e{power}")
            for power in range(floor, ceiling + 1)
        ],
    }
    parts = dict.fromkeys(part for point in points for part in point["shares"] if part != "total")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    path = " ".join(f"{point['x']},{point['y']}" for point in best)
    return Markup(environment.from_string(TEMPLATE).render(points=points, parts=parts, path=path, **grid))


def _point(point: Mapping[str, Any], taken: Mapping[str, float]) -> dict[str, Any]:
    shares = point["int8_mac_share"]
    delta = "" if point["delta_wer"] is None else f", Δ WER {point['delta_wer']:+.2f}"
    return {
        **point,
        "shares": shares,
        "share": shares["total"],
        "bytes": sum(point["size_bytes"].values()),
        "level": max(point["kl"], LEAST_KL),
        "taken": shares == taken,
        "said": f"{shares['total']:.1%} int8, {point['kl']:.4f} nats{delta}",
    }
