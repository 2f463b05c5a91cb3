"""The report: one self-contained HTML page, in light and dark, that fits a phone."""

import json
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from nightjar.report.rendering import render
from nightjar.report.search_section import search_section
from nightjar.report.stream_section import stream_section
from nightjar.report.text_diff import clips_that_fit, differing_clips
from nightjar.scoring.normalize import RATES
from nightjar.scoring.score import Score
from nightjar.scoring.verdict import STAND_IN_NOTE, Verdict, headline

THIS_RUN = "<!-- this run -->"  # `add_run` replaces it with what a cached page cannot know


def render_report(
    results: Mapping[str, Any],
    verdict: Verdict,
    scores: Mapping[str, Score],
    coverage: Mapping[str, Any] | None,
) -> str:
    """Return the page of one port; results: as in results.json; coverage: of the calibration, if there was one."""
    differing = differing_clips(scores["float"].clips, scores["binary"].clips)
    shown = clips_that_fit(differing)
    page = render(
        "page.html",
        r=results,
        v=verdict,
        headline=headline(results["tier"], results["verdict"]),
        note=STAND_IN_NOTE[0].upper() + STAND_IN_NOTE[1:],
        unit=RATES[verdict.unit],
        top=max(1.0, *(score.interval[1] for score in scores.values())) * 1.05,
        coverage=coverage,
        differing=shown,
        left_out=len(differing) - len(shown),
        stream=stream_section(results["stream"]) if "stream" in results else "",
        search=search_section(results["search"]) if "search" in results else "",
        this_run=Markup(THIS_RUN),
    )
    return str(page)


def add_run(page: str, results: Mapping[str, Any]) -> str:
    """Add to a page the stages of a run, the command that repeats it, and the results for `embedded_results`."""
    # "<" must not end the script element; JSON reads \\u003c as the same character
    text = json.dumps(results, ensure_ascii=False).replace("<", "\\u003c")
    run = render("run.html", stages=results["stages"], command=results["command"], results=Markup(text))
    return page.replace(THIS_RUN, run, 1)


def embedded_results(page: str) -> dict[str, Any]:
    """Read the results that `add_run` put into a page; raises ValueError when there are none."""
    _, found, rest = page.partition('<script type="application/json" id="results">')
    if not found:
        raise ValueError("no results in this page")
    loaded: dict[str, Any] = json.loads(rest.partition("</script>")[0])
    return loaded
