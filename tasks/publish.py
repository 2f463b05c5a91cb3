"""Put the results where people look: reports/ and, in a Prefect run, the UI. Never cached."""

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.context import FlowRunContext

from nightjar.artifact import Artifact, storing, write_atomic
from nightjar.closure import ROOT
from nightjar.page import complete
from nightjar.request import PortRequest
from tasks.announce import announce_verdict, results_artifact
from tasks.stage import Outcome, current_run


def publish(request: PortRequest, page: Artifact, outcomes: list[Outcome]) -> dict[str, Any]:
    """Copy the report to reports/, add what became of the stages in this run, and show both in the Prefect UI."""
    made = current_run().store.path(page)
    results: dict[str, Any] = json.loads((made / "results.json").read_text(encoding="utf-8"))
    results["stages"] = [
        {"name": outcome.name, "seconds": outcome.seconds, "cached": outcome.cached, "why": outcome.why}
        for outcome in outcomes
    ]
    name = re.sub(r"[^a-z0-9]+", "-", f"{request.model}-{request.target}-{request.precision}".lower()).strip("-")
    folder = ROOT / "reports" / name
    results["request"] = request.model_dump(mode="json", exclude=_unasked(request))
    results["command"] = command_line(request)
    results["report"] = (folder / "report.html").relative_to(ROOT).as_posix()
    results["report_key"] = page.key
    with storing():
        folder.mkdir(parents=True, exist_ok=True)
        page_text = (made / "report.html").read_text(encoding="utf-8")
        write_atomic(folder / "report.html", complete(page_text, results))
        write_atomic(folder / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    if (context := FlowRunContext.get()) is not None and context.flow_run is not None:
        # One client for all: each of Prefect's create_…_artifact opens its own, a fifth of a second.
        with get_client(sync_client=True) as client:
            for artifact in (*_artifacts(name, results), results_artifact(results)):
                client.create_artifact(artifact.model_copy(update={"flow_run_id": context.flow_run.id}))
        announce_verdict(results)
    return results


def command_line(request: PortRequest) -> str:
    """Return the command that asks for this request again; what was run again on purpose is left out, and patience."""
    words = ["nightjar", "evaluate" if "files" in type(request).model_fields else "port"]
    asked = request.model_dump(
        mode="json", exclude_defaults=True, exclude={"refresh", "board_wait", *_unasked(request)}
    )
    for name, value in asked.items():
        values = [str(each) for each in (value if isinstance(value, list) else [value])]
        if name == "files":
            words += values
        elif isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{name.replace('_', '-')}")
        else:
            words += [f"--{name.replace('_', '-')}", *values]
    return shlex.join(words)


def _unasked(request: PortRequest) -> set[str]:
    """Name what a request for files made elsewhere does not ask for: their precision is as given."""
    return {"precision"} if "files" in type(request).model_fields else set()


def _artifacts(name: str, results: dict[str, Any]) -> Iterator[ArtifactCreate]:
    """Make what a person reads in the Prefect UI: the verdict first, the scores, the stages."""
    low, high = results["interval"]
    gates = "\n".join(f"| {gate['outcome']} | {gate['sentence']} |" for gate in results["gates"])
    yield ArtifactCreate(
        type="markdown",
        key=f"verdict-{name}",
        description=f"{results['verdict']}: {results['model']} on {results['target']}",
        data=f"# {results['verdict']}\n\nΔ WER **{results['delta_wer']:+.2f}** points [{low:+.2f}, {high:+.2f}], "
        f"{results['clips']} clips ({len(results['aside'])} set aside), tier {results['tier']}; "
        f"report: `{results['report']}`\n\n"
        f"| gate | |\n|---|---|\n{gates}\n",
    )
    scores = [
        {
            "subject": score["subject"],
            "tier": score["tier"],
            "wer": score["wer"],
            "low": score["interval"][0],
            "high": score["interval"][1],
        }
        for score in results["scores"]
    ]
    described = "corpus WER in percent with 95 % intervals"
    yield ArtifactCreate(type="table", key=f"scores-{name}", description=described, data=json.dumps(scores))
    described = "what became of each stage in this run"
    yield ArtifactCreate(type="table", key=f"stages-{name}", description=described, data=json.dumps(results["stages"]))
