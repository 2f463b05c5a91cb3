"""What all pages share: the style sheet, the frame of a template, and texts compared word by word in colour."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jinja2
from markupsafe import Markup, escape

from nightjar.scoring.normalize import normalise
from nightjar.scoring.score import ClipScore
from nightjar.scoring.wer import align

STYLE = """
:root{color-scheme:light dark;--ink:#1d2126;--soft:#626b76;--paper:#fbfaf8;--card:#fff;--line:#e3e0da;--good:#1a7f4b;
--bad:#c0362c;--open:#a86a00;--mark:#f6e7b8;--bar:#4a74b5}
@media(prefers-color-scheme:dark){:root{--ink:#e6e4df;--soft:#9aa2ad;--paper:#15181c;--card:#1d2126;--line:#333a42;
--good:#5cc98f;--bad:#ff8177;--open:#f0b557;--mark:#4d4220;--bar:#7aa2e3}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:62rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.15rem;font-weight:600;margin:0;color:var(--soft)}h2{font-size:1.05rem;margin:2.4rem 0 .6rem}
h1,p,li,summary{overflow-wrap:anywhere}
.verdict{font-size:2.6rem;font-weight:750;letter-spacing:.01em;line-height:1.15;margin:.3rem 0}
.PASS{color:var(--good)}.FAIL{color:var(--bad)}.UNDECIDED{color:var(--open)}.NOT{color:var(--soft)}
.lead{font-size:1.05rem;margin:.2rem 0 1rem}.soft{color:var(--soft)}
.card{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.4rem .9rem;overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .6rem .35rem 0;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
tr:last-child td{border-bottom:0}th{font-weight:500;color:var(--soft);font-size:.85rem}
th:first-child,td:first-child,.l{text-align:left}.wrap{white-space:normal;overflow-wrap:anywhere}
.tag{display:inline-block;white-space:nowrap;font-weight:400;line-height:1.35;font-size:.75rem;border:1px solid var(--line);border-radius:1rem;padding:.05rem .5rem;color:var(--soft)}
.range{position:relative;height:.55rem;background:var(--line);border-radius:.3rem;min-width:9rem}
.range i{position:absolute;top:0;height:100%;background:var(--bar);border-radius:.3rem;opacity:.55}
.range b{position:absolute;top:-.15rem;width:.16rem;height:.85rem;background:var(--ink)}
details{border-top:1px solid var(--line);padding:.45rem 0}details:first-child{border-top:0}summary{cursor:pointer}
del{color:var(--bad);text-decoration-thickness:.1em}ins{color:var(--good);text-decoration:none;font-weight:600}
mark{background:var(--mark);color:inherit;border-radius:.2rem;padding:0 .15rem}
code,pre{font:13px/1.45 ui-monospace,SFMono-Regular,Menlo,monospace}pre{overflow-x:auto;margin:.6rem 0}
.text{margin:.15rem 0;display:flex;gap:.6rem}.text>:last-child{min-width:0;overflow-wrap:anywhere}.who{flex:none;width:3.4rem;padding-top:.1rem;color:var(--soft);font-size:.85rem}
"""

# heard: clips whose texts differ, `before` and `after` being the words for the two who heard them
PIECES = """{% macro heard(clips, before, after) %}
{% for clip in clips %}<details{% if loop.index <= 5 %} open{% endif %}><summary>{{ clip.id }}
<span class="soft">{{ clip.speaker or "" }} {{ "%.1f"|format(clip.duration_s) }} s, {{ clip.errors_before }} → {{ clip.errors_after }} errors</span>
{% for flag in clip.flags %}<span class="tag">{{ flag }}</span> {% endfor %}</summary>
<p class="text"><span class="who">said</span><span>{{ clip.reference }}</span></p>
<p class="text"><span class="who">{{ before }}</span><span>{{ clip.before }}</span></p>
<p class="text"><span class="who">{{ after }}</span><span>{{ clip.after }}</span></p></details>{% else %}<p>none</p>{% endfor %}
{% endmacro %}
"""

MOST_CLIPS = 400  # keep a page …
MOST_BYTES = 700_000  # … under a megabyte, however much is said in a clip
MOST_WORDS = 200  # of a text


class DifferingClip(NamedTuple):
    """One clip that two heard differently, ready for a page."""

    id: str
    speaker: str | None
    duration_s: float
    errors_before: int
    errors_after: int
    flags: list[str]
    reference: str
    before: Markup
    after: Markup


def environment(templates: dict[str, str] | None = None) -> jinja2.Environment:
    """Make the one kind of template environment: everything is escaped, and a name that is missing is an error."""
    return jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.DictLoader({"pieces": PIECES, **(templates or {})}),
    )


def differing_clips(before: Iterable[ClipScore], after: Iterable[ClipScore], language: str) -> list[DifferingClip]:
    """Compare two who heard the same clips, in the same order; what became worst comes first."""
    differing = [
        _heard(one, other, language)
        for one, other in zip(before, after, strict=True)
        if one.hypothesis != other.hypothesis
        and normalise(one.hypothesis, language) != normalise(other.hypothesis, language)
    ]
    return sorted(differing, key=lambda clip: (clip.errors_before - clip.errors_after, clip.id))


def clips_that_fit(clips: Sequence[DifferingClip]) -> Sequence[DifferingClip]:
    """Return as many of the first clips as a page of a megabyte holds."""
    held = 0
    for number, clip in enumerate(clips[:MOST_CLIPS]):
        held += 600 + sum(len(text.encode()) for text in (clip.id, clip.reference, clip.before, clip.after))
        if held > MOST_BYTES:
            return clips[:number]
    return clips[:MOST_CLIPS]


def _heard(before: ClipScore, after: ClipScore, language: str) -> DifferingClip:
    return DifferingClip(
        id=after.id,
        speaker=after.speaker,
        duration_s=after.duration_s,
        errors_before=before.counts.errors,
        errors_after=after.counts.errors,
        flags=[kind for kind in ("empty", "looping", "capped") if getattr(after, kind)],
        reference=_cut(normalise(after.reference, language)),
        before=coloured_diff(before.reference, before.hypothesis, language),
        after=coloured_diff(after.reference, after.hypothesis, language),
    )


def coloured_diff(reference: str, hypothesis: str, language: str) -> Markup:
    """Mark a hypothesis against its reference: substituted, deleted and inserted words."""
    words: list[Markup] = []
    for edit in align(normalise(reference, language).split(), normalise(hypothesis, language).split()):
        if edit.op == "=":
            words.append(escape(edit.hypothesis))
        elif edit.op == "S":
            words.append(Markup('<mark title="said: {}">{}</mark>').format(edit.reference, edit.hypothesis))
        elif edit.op == "D":
            words.append(Markup("<del>{}</del>").format(edit.reference))
        else:
            words.append(Markup("<ins>{}</ins>").format(edit.hypothesis))
    if len(words) > MOST_WORDS:
        words[MOST_WORDS:] = [Markup("…")]
    return Markup(" ").join(words) or Markup('<span class="soft">(empty)</span>')


def _cut(text: str) -> str:
    """Shorten a text to as many words as its coloured ones have."""
    words = text.split()
    return text if len(words) <= MOST_WORDS else " ".join(words[:MOST_WORDS]) + " …"
