"""Put the results where people look: reports/ and, in a Prefect run, the UI. Never cached."""

import json
import re
import shlex
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.context import FlowRunContext

from nightjar.artifact import Artifact, storing, write_atomic
from nightjar.closure import ROOT
from nightjar.page import complete
from nightjar.request import PortRequest
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
    results["request"] = request.model_dump(mode="json")
    results["command"] = command_line(request)
    results["report"] = (folder / "report.html").relative_to(ROOT).as_posix()
    with storing():
        folder.mkdir(parents=True, exist_ok=True)
        page_text = (made / "report.html").read_text(encoding="utf-8")
        write_atomic(folder / "report.html", complete(page_text, results))
        write_atomic(folder / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    if FlowRunContext.get() is not None:
        _show_in_ui(name, results)
    return results


def command_line(request: PortRequest) -> str:
    """Return the command that asks for this request again; what was run again on purpose is left out."""
    words = ["nightjar", "evaluate" if "files" in type(request).model_fields else "port"]
    for name, value in request.model_dump(mode="json", exclude_defaults=True, exclude={"refresh"}).items():
        values = [str(each) for each in (value if isinstance(value, list) else [value])]
        if name == "files":
            words += values
        elif isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{name.replace('_', '-')}")
        else:
            words += [f"--{name.replace('_', '-')}", *values]
    return shlex.join(words)


def _show_in_ui(name: str, results: dict[str, Any]) -> None:
    low, high = results["interval"]
    gates = "\n".join(f"| {gate['outcome']} | {gate['sentence']} |" for gate in results["gates"])
    create_markdown_artifact(
        key=f"verdict-{name}",
        description=f"{results['verdict']}: {results['model']} on {results['target']}",
        markdown=f"# {results['verdict']}\n\nΔ WER **{results['delta_wer']:+.2f}** points [{low:+.2f}, {high:+.2f}], "
        f"{results['clips']} clips, tier {results['tier']}; report: `{results['report']}`\n\n"
        f"| gate | |\n|---|---|\n{gates}\n",
    )
    rows = [
        {
            "subject": score["subject"],
            "tier": score["tier"],
            "wer": score["wer"],
            "low": score["interval"][0],
            "high": score["interval"][1],
        }
        for score in results["scores"]
    ]
    create_table_artifact(key=f"scores-{name}", table=rows, description="corpus WER in percent with 95 % intervals")
