"""Publish results to reports/, and in a Prefect run to the UI and as events for automations. Never cached."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from prefect.client.schemas.actions import ArtifactCreate
from prefect.context import FlowRunContext
from prefect.events import emit_event

from nightjar.files import storage_errors, write_atomic
from nightjar.paths import reports_folder, shown
from nightjar.plugins.registry import plugin
from nightjar.progress import StageOutcome
from nightjar.report.page import add_run
from nightjar.request import EvaluateRequest, PortRequest, command_line
from nightjar.scoring.verdict import deciding_gates, headline
from nightjar.store.artifact import Artifact
from tasks.markdown import night_markdown, verdict_markdown
from tasks.prefect_ui import artifact_key, create_artifacts
from tasks.stage import current_run

if TYPE_CHECKING:  # it imports pandas, half a second that a port does not need
    from nightjar.nightly.history import Cell, Finding, Night

MOST_CHARACTERS = 4000  # of a sentence in an event
REGRESSION = {"cell", "kind", "causes", "sentence"}  # of a finding, in an event
RESULTS = "result"  # an artifact type that Prefect's UI does not list


def publish(request: PortRequest | EvaluateRequest, page: Artifact, outcomes: list[StageOutcome]) -> dict[str, Any]:
    """Copy the report to reports/, with the stages of this run, and show both in the UI."""
    made = current_run().store.path(page)
    results: dict[str, Any] = json.loads((made / "results.json").read_text(encoding="utf-8"))
    shown_fields = ("name", "seconds", "cached", "why")
    results["stages"] = [{field: getattr(outcome, field) for field in shown_fields} for outcome in outcomes]
    name = artifact_key(f"{request.model}-{request.target}-{results['precision']}")
    folder = reports_folder() / artifact_key(f"{name}{board_suffix(request.target, request.board)}")
    results["request"] = request.model_dump(mode="json")
    results["command"] = command_line(request)
    results["report"] = shown(folder / "report.html")
    results["report_key"] = page.key
    with storage_errors():
        folder.mkdir(parents=True, exist_ok=True)
        page_text = (made / "report.html").read_text(encoding="utf-8")
        write_atomic(folder / "report.html", add_run(page_text, results))
        write_atomic(folder / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    create_artifacts(_artifacts(name, results))
    if FlowRunContext.get() is not None:
        announce_verdict(results)
    return results


def publish_night(night: "Night", cells: Sequence["Cell"], findings: Sequence["Finding"]) -> None:
    """Show a night in the UI with its flow run, if it has one: its verdict, what changed, every cell."""
    described = f"{night.outcome}: the night of {night.night}"
    text = night_markdown(night, cells, findings)
    create_artifacts([ArtifactCreate(type="markdown", key="night", description=described, data=text)])


def board_suffix(target: str, board: str | None) -> str:
    """Return `-board` for the name of a report, empty for the target's default board."""
    default = plugin("targets", target).load().DEFAULT_BOARD
    return "" if board in (None, default) else f"-{board}"


def _artifacts(name: str, results: dict[str, Any]) -> Iterator[ArtifactCreate]:
    """Make the artifacts of the Prefect UI: verdict, scores, stages; and the results for the nightly run."""
    yield ArtifactCreate(
        type="markdown",
        key=f"verdict-{name}",
        description=f"{headline(results['tier'], results['verdict'])}: {results['model']} on {results['target']}",
        data=verdict_markdown(results),
    )
    scores = [
        {name: score[name] for name in ("subject", "tier", "wer")}
        | dict(zip(("low", "high"), score["interval"], strict=True))
        for score in results["scores"]
    ]
    for kind, described, rows in (
        ("scores", "corpus WER in percent with 95 % intervals", scores),
        ("stages", "the stages of this run", results["stages"]),
    ):
        yield ArtifactCreate(type="table", key=f"{kind}-{name}", description=described, data=json.dumps(rows))
    # For the nightly run, whose port may run on another machine: JSON without a key, which is not shown.
    kept = {name: value for name, value in results.items() if name not in ("search", "recipe")}  # the report has them
    yield ArtifactCreate(type=RESULTS, description="results.json, for the night", data=json.dumps(kept))


def announce_verdict(results: dict[str, Any]) -> None:
    """Emit `nightjar.verdict` of a port; its resource is the cell, its outcome a label that triggers can match."""
    low, high = results["interval"]
    cell = "/".join((results["model"], results["target"], results["precision"]))
    sentence = (
        f"{cell} on {results['tier']}: {results['verdict']}, WER of binary − float {results['delta_wer']:+.2f} points "
        f"[{low:+.2f}, {high:+.2f}], {results['clips']} clips"
    )
    named = ("model", "target", "precision", "tier", "wer", "wer_float", "delta_wer", "interval", "clips", "report")
    emit_event(
        event="nightjar.verdict",
        resource={
            "prefect.resource.id": f"nightjar.cell.{cell}",
            "prefect.resource.name": cell,
            "nightjar.outcome": results["verdict"],
        },
        payload={
            "outcome": results["verdict"],
            "sentence": ". ".join((sentence, *deciding_gates(results)))[:MOST_CHARACTERS],
            **{name: results[name] for name in named},
        },
    )


def announce_night(night: "Night", sentence: str, findings: Sequence["Finding"]) -> None:
    """Emit `nightjar.night`: the summary of a night and its regressions."""
    regressions = [finding for finding in findings if finding.regression]
    emit_event(
        event="nightjar.night",
        resource={
            "prefect.resource.id": f"nightjar.night.{night.night}",
            "prefect.resource.name": f"night {night.night}",
            "nightjar.outcome": night.outcome,
            "nightjar.regressions": str(len(regressions)),
        },
        payload={
            **night.model_dump(include={"outcome", "night", "cells"}),
            "sentence": sentence[:MOST_CHARACTERS],
            "failed": night.failed[:MOST_CHARACTERS],
            "regressions": [each.model_dump(include=REGRESSION) for each in regressions[:50]],
        },
    )
