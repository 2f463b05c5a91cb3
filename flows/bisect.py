"""One cell twice: under two checkpoints, or under two versions of its target's toolchain; and what differs."""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

from prefect import flow
from prefect.context import FlowRunContext

from flows.port import port
from nightjar.errors import BadOptions
from nightjar.nightly.changes import cell_changes
from nightjar.nightly.config import BisectRequest, CellRequest, cell_name
from nightjar.nightly.evidence import Evidence, read_evidence
from nightjar.nightly.outcomes import CellResult, cell_row
from nightjar.progress import StageOutcome
from nightjar.request import PortRequest, as_port
from nightjar.scoring.paired import changed_clips, compare_paired
from nightjar.toolchains.environment import installed_versions, override_toolchain
from tasks.publish import command_line
from tasks.stage import separate_run


class Side(NamedTuple):
    """What one of the two runs is: its name, its request and the toolchain it uses, if one is chosen."""

    name: str
    request: PortRequest
    toolchain: Path | None


@flow(name="bisect", flow_run_name="bisect-{request.model}-{request.target}-{request.precision}", persist_result=False)
def bisect(request: BisectRequest) -> dict[str, Any]:
    """Port the cell on both sides, and hold them against each other on the same clips."""
    sides = _sides(request)
    done = [_run(side) for side in sides]
    before, after = (evidence for evidence, _ in done)
    binaries = [each.scores["binary"] for each in (before, after)]
    both = compare_paired(binaries[1], binaries[0])
    return {
        "cell": before.cell.cell,
        "sides": [
            {"name": side.name, **each.cell.model_dump(mode="json")}
            for side, (each, _) in zip(sides, done, strict=True)
        ],
        "differs": cell_changes(after, before),
        "wer": both._asdict() if both is not None else None,
        "unit": binaries[0].unit,
        "clips": changed_clips(binaries[1], binaries[0]),
        "sizes": [each.size_bytes for each in (before, after)],
        "stages": _stages(done[0][1], done[1][1]),
    }


def _sides(request: BisectRequest) -> tuple[Side, Side]:
    """Say what A and B are; raises BadOptions unless exactly one thing is given twice, in two versions."""
    if (len(request.checkpoint), len(request.toolchain)) not in ((2, 0), (0, 2), (1, 2)):
        raise BadOptions("bisect compares two of a kind: give --checkpoint A B, or --toolchain A B")
    one = request.checkpoint[0] if request.checkpoint else None
    if not request.toolchain:
        a, b = (Side(str(path), as_port(request, checkpoint=path), None) for path in request.checkpoint)
        return a, b
    folders = []
    for folder in request.toolchain:
        with override_toolchain(request.target, folder) as found:
            folders.append(found.folder)
    if installed_versions(folders[0]) == installed_versions(folders[1]):
        raise BadOptions(
            f"the toolchains in {request.toolchain[0]} and {request.toolchain[1]} have the same versions, which is "
            "what the store knows them by: give two that differ"
        )
    request_of_both = as_port(request, checkpoint=one)
    a, b = (Side(str(path), request_of_both, path) for path in request.toolchain)
    return a, b


def _run(side: Side) -> tuple[Evidence, list[StageOutcome]]:
    request = side.request
    environment = override_toolchain(request.target, side.toolchain) if side.toolchain else contextlib.nullcontext()
    with environment, separate_run(request.refresh, request.board_wait) as run:
        first = len(run.outcomes)
        served = FlowRunContext.get() is not None
        results: dict[str, Any] = port(request) if served else port.fn(request)
        cell_request = CellRequest(cell=cell_name(request), request=request, tier=results["tier"])
        ended = CellResult(cell_request=cell_request, seconds=0, command=command_line(request), results=results)
        return read_evidence(run.store, cell_row("", ended)), run.outcomes[first:]


def _stages(before: list[StageOutcome], after: list[StageOutcome]) -> list[dict[str, Any]]:
    """Say of every stage whether both sides share its artifact."""
    keys = [{outcome.name: outcome.key for outcome in side} for side in (before, after)]
    return [
        {"name": name, "same": keys[0].get(name) == keys[1].get(name), "before": keys[0].get(name, ""), "after": key}
        for name, key in keys[1].items()
    ]
