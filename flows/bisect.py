"""One cell under two checkpoints or two versions of its target's toolchain, and what differs."""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

from prefect import flow

from flows.dispatch import call_port
from nightjar.errors import BadOptions
from nightjar.nightly.changes import cell_changes
from nightjar.nightly.config import BisectRequest, CellRequest, cell_name
from nightjar.nightly.evidence import Evidence, read_evidence
from nightjar.nightly.outcomes import CellResult, cell_row
from nightjar.request import PortRequest, as_port
from nightjar.scoring.paired import changed_clips, compare_paired
from nightjar.toolchains.environment import installed_versions, override_toolchain
from tasks.stage import separate_run


class Side(NamedTuple):
    """One of the two runs: its name, its request and its toolchain, if the request names one."""

    name: str
    request: PortRequest
    toolchain: Path | None


@flow(name="bisect", flow_run_name="bisect-{request.model}-{request.target}-{request.precision}", persist_result=False)
def bisect(request: BisectRequest) -> dict[str, Any]:
    """Port the cell on both sides and compare them on the same clips."""
    sides = _sides(request)
    (before, stages_before), (after, stages_after) = (_run(side) for side in sides)
    old, new = before.scores["binary"], after.scores["binary"]
    difference = compare_paired(new, old)
    cells = (before.cell, after.cell)
    return {
        "cell": before.cell.cell,
        "sides": [{"name": side.name, **cell.model_dump(mode="json")} for side, cell in zip(sides, cells, strict=True)],
        "differs": cell_changes(after, before),
        "wer": difference._asdict() if difference is not None else None,
        "unit": old.unit,
        "clips": changed_clips(new, old),
        "sizes": [before.size_bytes, after.size_bytes],
        "stages": [
            {"name": name, "same": stages_before.get(name) == key, "before": stages_before.get(name, ""), "after": key}
            for name, key in stages_after.items()
        ],
    }


def _sides(request: BisectRequest) -> tuple[Side, Side]:
    """Return A and B; raises BadOptions unless exactly one of checkpoint and toolchain has two versions."""
    if (len(request.checkpoint), len(request.toolchain)) not in ((2, 0), (0, 2), (1, 2)):
        raise BadOptions("bisect compares two versions of one thing: give --checkpoint A B, or --toolchain A B")
    if not request.toolchain:
        a, b = (Side(str(path), as_port(request, checkpoint=path), None) for path in request.checkpoint)
        return a, b
    versions = []
    for folder in request.toolchain:
        with override_toolchain(request.target, folder) as found:
            versions.append(installed_versions(found.folder))
    if versions[0] == versions[1]:
        raise BadOptions(
            f"the toolchains in {request.toolchain[0]} and {request.toolchain[1]} have the same versions, so the store "
            "cannot tell them apart: give two that differ"
        )
    both = as_port(request, checkpoint=request.checkpoint[0] if request.checkpoint else None)
    a, b = (Side(str(path), both, path) for path in request.toolchain)
    return a, b


def _run(side: Side) -> tuple[Evidence, dict[str, str]]:
    """Port the cell on one side; return what it made, and the key of each stage."""
    request = side.request
    environment = override_toolchain(request.target, side.toolchain) if side.toolchain else contextlib.nullcontext()
    with environment, separate_run(request.refresh, request.board_wait) as run:
        first = len(run.outcomes)
        results = call_port(request)
        cell_request = CellRequest(cell=cell_name(request), request=request, tier=results["tier"])
        keys = {outcome.name: outcome.key for outcome in run.outcomes[first:]}
        return read_evidence(run.store, cell_row("", CellResult(cell_request=cell_request, results=results))), keys
