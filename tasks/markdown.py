"""Markdown for the Prefect UI: the verdict of a port, the summary of a night, a toolchain's log."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nightjar.report.rendering import environment
from nightjar.report.site.formatting import megabytes
from nightjar.report.site.urls import INDEX, cell_url, night_url, report_url
from nightjar.scoring.normalize import RATES
from nightjar.scoring.verdict import STAND_IN_NOTE, headline

if TYPE_CHECKING:  # it imports pandas, half a second that a port does not need
    from nightjar.nightly.history import Cell, Finding, Night


def escape_markdown(text: str) -> str:
    """Escape what Markdown would interpret."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(text.split()))


def verdict_markdown(results: Mapping[str, Any]) -> str:
    """Write a port's verdict: the outcome, the figures, links, every gate, the versions."""
    made = results["made_from"].values()
    found = {name: version for each in made for kind in ("sdk", "libraries") for name, version in each[kind].items()}
    facts = {name: value for each in made for name, value in each["board"].items()}
    names = (results["model"], results["target"], results["precision"], results["request"].get("board"))
    more = {
        "rate": RATES[results["unit"]],
        "cell": "/".join(filter(None, names)),
        "worst_gates": sorted(results["gates"], key=lambda gate: ("FAIL", "UNDECIDED", "PASS").index(gate["outcome"])),
        "versions": ", ".join(f"{name} {value}" for name, value in [*sorted(found.items()), *sorted(facts.items())]),
    }
    return render_markdown("verdict.md", **results, **more)


def night_markdown(night: "Night", cells: Sequence["Cell"], findings: Sequence["Finding"]) -> str:
    """Write a night: what failed, the findings and their causes, every cell."""
    ordered = sorted(findings, key=lambda finding: not finding.regression)
    return render_markdown("night.md", night=night, cells=cells, findings=ordered)


def render_markdown(name: str, **values: Any) -> str:
    """Render a template of the report, with links to the site if NIGHTJAR_SITE_URL is set."""
    templates = environment().overlay(autoescape=False)
    templates.filters |= {"md": escape_markdown, "megabytes": megabytes}
    templates.globals |= {"headline": headline, "cell_url": cell_url, "night_url": night_url, "report_url": report_url}
    site = os.environ.get("NIGHTJAR_SITE_URL", "").rstrip("/")
    return templates.get_template(name).render(**values, site=site, index=INDEX, stand_in_note=STAND_IN_NOTE)
