"""Publish results: to reports/ and, in a Prefect run, to the UI. Never cached."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from prefect.client.schemas.actions import ArtifactCreate
from prefect.context import FlowRunContext

from nightjar.files import storage_errors, write_atomic
from nightjar.paths import reports_folder, shown
from nightjar.plugins.registry import plugin
from nightjar.progress import StageOutcome
from nightjar.report.page import add_run
from nightjar.request import EvaluateRequest, PortRequest, command_line
from nightjar.scoring.verdict import headline
from nightjar.store.artifact import Artifact
from tasks.announce import announce_verdict, results_artifact
from tasks.markdown import night_markdown, verdict_markdown
from tasks.prefect_ui import artifact_key, create_artifacts
from tasks.stage import current_run

if TYPE_CHECKING:
    from nightjar.nightly.history import Cell, Finding, Night


def publish(request: PortRequest | EvaluateRequest, page: Artifact, outcomes: list[StageOutcome]) -> dict[str, Any]:
    """Copy the report to reports/, with the stages of this run, and show both in the UI."""
    made = current_run().store.path(page)
    results: dict[str, Any] = json.loads((made / "results.json").read_text(encoding="utf-8"))
    results["stages"] = [
        {"name": outcome.name, "seconds": outcome.seconds, "cached": outcome.cached, "why": outcome.why}
        for outcome in outcomes
    ]
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
    create_artifacts([*_artifacts(name, results), results_artifact(results)])
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
    """Make the artifacts of the Prefect UI: verdict, scores, stages."""
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
    described = "corpus WER in percent with 95 % intervals"
    yield ArtifactCreate(type="table", key=f"scores-{name}", description=described, data=json.dumps(scores))
    described = "the stages of this run"
    yield ArtifactCreate(type="table", key=f"stages-{name}", description=described, data=json.dumps(results["stages"]))
