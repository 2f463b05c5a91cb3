"""Markdown for the Prefect UI: the verdict of a port, and the summary of a night."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nightjar.report.rendering import fixed
from nightjar.report.site.formatting import megabytes
from nightjar.report.site.urls import INDEX, cell_url, night_url, report_url
from nightjar.scoring.verdict import STAND_IN_NOTE, headline

if TYPE_CHECKING:  # it imports pandas, half a second that a port does not need
    from nightjar.nightly.history import Cell, Finding, Night

MARKS = {True: "▼", False: "•"}


def escape_markdown(text: str) -> str:
    """Escape what Markdown would interpret."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(text.split()))


def verdict_markdown(results: Mapping[str, Any]) -> str:
    """Write a port's verdict: the outcome, the figures, links, every gate, the versions."""
    low, high = results["interval"]
    unit = "CER" if results["unit"] == "character" else "WER"
    model, target, precision = (escape_markdown(str(results[name])) for name in ("model", "target", "precision"))
    lines = [
        f"# {headline(results['tier'], results['verdict'])} · {model} on {target}, {precision}",
        "",
        f"Δ {unit} **{results['delta_wer']:+.2f}** points [{low:+.2f}, {high:+.2f}] · tier **{results['tier']}** · "
        f"{results['clips']} clips, {results['words']:,} {results['unit']}s"
        + (f", {len(results['aside'])} excluded" if results["aside"] else ""),
        "",
    ]
    if results["tier"] == "stand-in":
        lines += [f"{STAND_IN_NOTE[0].upper()}{STAND_IN_NOTE[1:]}.", ""]
    lines += [_where(results), "", f"| | {unit} % | 95 % | empty | looping | capped | RTF p50 |"]
    lines += ["|---|---:|---|---:|---:|---:|---:|"]
    for score in results["scores"]:
        low, high = score["interval"]
        counts = f"{score['empty']} | {score['looping']} | {score['capped']} | {fixed(score['rtf_p50'], 3)}"
        name = f"{score['subject']} ({score['tier']})"
        lines.append(f"| {name} | **{score['wer']:.2f}** | {low:.2f} – {high:.2f} | {counts} |")
    lines += ["", "| gate | |", "|---|---|"]
    worst = sorted(results["gates"], key=lambda gate: ("FAIL", "UNDECIDED", "PASS").index(gate["outcome"]))
    lines += [f"| **{gate['outcome']}** | {escape_markdown(gate['sentence'])} |" for gate in worst]
    size = ", ".join(f"{escape_markdown(part)} {count / 1e6:.1f} MB" for part, count in results["size_bytes"].items())
    lines += ["", f"Size: {size}.", "", f"Versions: {escape_markdown(_versions(results))}.", ""]
    return "\n".join([*lines, "To run it again:", "", "```", results["command"].replace("```", "'''"), "```", ""])


def _where(results: Mapping[str, Any]) -> str:
    """Link to the report and the site if NIGHTJAR_SITE_URL is set; else name the file."""
    file = f"Report: `{results['report'].replace('`', '')}`"
    if not (base := site_url()):
        return file
    names = (results["model"], results["target"], results["precision"], results["request"].get("board"))
    cell = cell_url("/".join(filter(None, names)))
    return (
        f"[Scoreboard]({base}/{INDEX}) · [all nights of this cell]({base}/{cell}) · "
        f"[report]({base}/{report_url(results['report_key'])})\n\n{file}"
    )


def _versions(results: Mapping[str, Any]) -> str:
    made = results["made_from"].values()
    found = {name: version for each in made for kind in ("sdk", "libraries") for name, version in each[kind].items()}
    facts = {name: value for each in made for name, value in each["board"].items()}
    return ", ".join(f"{name} {version}" for name, version in [*sorted(found.items()), *sorted(facts.items())])


def night_markdown(night: "Night", cells: Sequence["Cell"], findings: Sequence["Finding"]) -> str:
    """Write a night: what failed, the findings and their causes, every cell."""
    lines = [f"# {night.outcome} · the night of {night.night}", ""]
    base = site_url()
    if base:
        lines += [f"[Scoreboard]({base}/{INDEX}) · [this night]({base}/{night_url(night.night)})", ""]
    lines += [escape_markdown(night.failed) or "No gate failed.", ""]
    if findings:
        lines += ["## What changed", ""]
        ordered = sorted(findings, key=lambda finding: not finding.regression)
        lines += [f"- {MARKS[finding.regression]} {escape_markdown(finding.sentence)}" for finding in ordered]
        lines.append("")
    lines += ["| cell | | tier | WER % | Δ [95 %] | size | RTF p50 |", "|---|---|---|---:|---|---:|---:|"]
    for cell in cells:
        named = escape_markdown(cell.cell)
        if base:
            named = f"[{named}]({base}/{cell_url(cell.cell)})"
        word = headline(cell.tier, cell.outcome) if cell.tier == "stand-in" else f"**{cell.outcome}**"
        whole = cell.delta_wer is not None and cell.low is not None and cell.high is not None
        delta = f"{cell.delta_wer:+.2f} [{cell.low:+.2f}, {cell.high:+.2f}]" if whole else "–"
        figures = (cell.tier or "–", fixed(cell.wer, 2), delta, megabytes(cell.size_bytes), fixed(cell.rtf, 4))
        lines.append(f"| {named} | {word} | {' | '.join(figures)} |")
    if unscored := [cell for cell in cells if cell.wer is None and cell.error]:
        lines += ["", *(f"- {escape_markdown(cell.cell)}: {escape_markdown(cell.error)}" for cell in unscored)]
    return "\n".join([*lines, ""])


def site_url() -> str:
    """Return the address of the site, NIGHTJAR_SITE_URL; empty where it is not set."""
    return os.environ.get("NIGHTJAR_SITE_URL", "").rstrip("/")
