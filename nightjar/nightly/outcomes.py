"""What became of a night: a row per cell, and whether the night failed and by what."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from nightjar import errors
from nightjar.files import digest
from nightjar.nightly.config import CellRequest
from nightjar.nightly.history import Cell, CellOutcome, Finding, Night

RAISED = re.compile(r"(?:exception:\s+|^)([A-Z]\w+): (.*)", re.DOTALL)  # Prefect's message of a failed run
SHORT = 500  # characters of a message that is kept

# What stands behind a failure, by the class of the error.
FAILURE_ORIGIN = {
    "BoardMissing": "board",
    "BoardBusy": "board",
    "SessionFailed": "board",
    "RunnerFailed": "board",
    "ToolchainMissing": "toolchain",
    "ToolchainBroken": "toolchain",
    "ToolchainFailed": "toolchain",
    "BadCheckpoint": "checkpoint",
    "BadManifest": "speech",
    "BadAudio": "speech",
    "SpeakersOverlap": "speech",
    "StoreBroken": "disk",
    "DownloadFailed": "network",
    "ServerMissing": "server",
}


class Failure(BaseModel, frozen=True):
    """Why a cell has no verdict: the class of the error, its exit code and its line."""

    kind: str
    exit_code: int
    message: str

    @property
    def outcome(self) -> CellOutcome:
        """Say what the row says: MISSING where running again changes nothing."""
        return "MISSING" if self.exit_code in (2, 3) else "BROKEN"

    @property
    def behind(self) -> str:
        """Name what stands behind it, empty where the class does not tell."""
        return FAILURE_ORIGIN.get(self.kind, "")


class CellResult(BaseModel, frozen=True):
    """A cell that has ended: with the results of `port`, or with a failure."""

    cell_request: CellRequest
    seconds: float
    command: str
    results: dict[str, Any] | None = None
    failure: Failure | None = None


def failure_from_exception(error: BaseException) -> Failure:
    """Say of an exception what the command line would: its line and exit code; 4 for what nobody has explained."""
    if isinstance(error, errors.NightjarError):
        return _failure(type(error).__name__, error.exit_code, str(error))
    return _failure(type(error).__name__, 4, f"{type(error).__name__}: {error}")


def failure_from_message(message: str) -> Failure:
    """Read a failure off the message of a Prefect run that failed elsewhere."""
    found = RAISED.search(message.strip())
    kind = getattr(errors, found[1], None) if found else None
    if found and isinstance(kind, type) and issubclass(kind, errors.NightjarError):
        return _failure(found[1], kind.exit_code, found[2])
    return _failure(found[1] if found else "", 4, message or "ended without a word")


def _failure(kind: str, exit_code: int, text: str) -> Failure:
    return Failure(kind=kind, exit_code=exit_code, message=" ".join(text.split())[:SHORT])


def cell_row(night: str, ended: CellResult) -> Cell:
    """Make a cell's row: of a verdict with its figures and keys, of a failure with its line."""
    cell_request, failure = ended.cell_request, ended.failure
    request = cell_request.request
    same: dict[str, Any] = {
        "night": night,
        "cell": cell_request.cell,
        "model": request.model,
        "target": request.target,
        "precision": request.precision,
        "board": request.board or "",
        "seconds": round(ended.seconds, 1),
        "command": ended.command,
    }
    if ended.results is None:
        failure = failure or _failure("", 4, "ended without results")
        return Cell(**same, outcome=failure.outcome, counts=cell_request.counts, error=failure.message)
    said = ended.results
    made: Mapping[str, Any] = said["made_from"]
    held = [gate["sentence"] for gate in said["gates"] if gate["outcome"] == said["verdict"] != "PASS"]
    return Cell(
        **same,
        tier=said["tier"],
        outcome=said["verdict"],
        counts=said["tier"] in ("vendor-simulator", "device", "host"),
        error="; ".join(held),
        **{name: said[name] for name in ("wer", "wer_float", "wer_stock", "delta_wer", "clips", "words")},
        low=said["interval"][0],
        high=said["interval"][1],
        size_bytes=sum(said["size_bytes"].values()),
        rtf=said["rtf"]["total"]["p50"] if said["rtf"] and "total" in said["rtf"] else None,
        int8_mac_share=said["int8_mac_share"].get("encoder"),
        **{name: said["hypotheses"][name] for name in ("empty", "looping", "capped")},
        executed=sum(not stage["cached"] for stage in said["stages"]),
        checkpoint=made["graphs"]["inputs"].get("checkpoint", ""),
        speech=made["hypotheses"]["inputs"].get("speech", ""),
        code=digest({name: each["code_sha256"] for name, each in made.items()}),
        versions=versions_text(made),
        board_facts=board_text(made),
        judge=made["verdict"]["key"],
        report=said.get("report_key", ""),
    )


def versions_text(made_from: Mapping[str, Any]) -> str:
    """List every library and SDK package that made a result; a package of both is the SDK's where it says so."""
    libraries: dict[str, str] = {}
    sdk: dict[str, str] = {}
    for each in made_from.values():
        libraries |= each["libraries"]
        sdk |= each["sdk"]
    both = {f"{name} (SDK)": version for name, version in sdk.items() if libraries.get(name, version) != version}
    alone = {name: version for name, version in sdk.items() if f"{name} (SDK)" not in both}
    return "; ".join(f"{name} {version}" for name, version in sorted((libraries | alone | both).items()))


def board_text(made_from: Mapping[str, Any]) -> str:
    """Say what the board was; of a simulator only the machine, for its packages are the SDK's."""
    board: Mapping[str, str] = made_from["hypotheses"]["board"]
    simulated = board.get("tier") == "vendor-simulator"
    facts = {k: v for k, v in board.items() if k != "tier" and not (simulated and k.startswith("runtimes"))}
    return "; ".join(f"{name.removeprefix('runtimes.')} {value}" for name, value in sorted(facts.items()))


def night_row(
    night: str,
    started: str,
    finished: str,
    cells: Sequence[Cell],
    failures: Mapping[str, Failure],
    known: frozenset[str],
    flow_run: str = "",
) -> Night:
    """Say whether a night failed: by a gate, or by a cell that broke or is missing though it was asked for.

    failures: by cell, where there was one; known: cells that had a verdict in an earlier night. A toolchain or board
    that no night has had yet is no failure of this one, and neither is UNDECIDED; a stand-in never is.
    """
    reasons = [_reason(cell, failures.get(cell.cell), cell.cell in known) for cell in cells if cell.counts]
    failed = "; ".join(filter(None, reasons))
    return Night(
        night=night,
        started=started,
        finished=finished,
        outcome="FAIL" if failed else "PASS",
        cells=len(cells),
        failed=failed,
        flow_run=flow_run,
    )


def _reason(cell: Cell, failure: Failure | None, known: bool) -> str:
    if cell.outcome == "FAIL":
        return f"{cell.cell} fails: {cell.error}"
    if cell.outcome == "BROKEN":
        return f"{cell.cell} broke: {cell.error}"
    if cell.outcome == "MISSING" and (known or (failure is not None and failure.exit_code == 2)):
        return f"{cell.cell} is missing: {cell.error}"
    return ""


def night_summary(night: Night, cells: Sequence[Cell], findings: Sequence[Finding]) -> str:
    """Say what a person needs of a night in the morning: what failed first, then what got worse, then the rest."""
    counted = {kind: sum(cell.outcome == kind for cell in cells) for kind in ("PASS", "UNDECIDED", "MISSING")}
    parts = [f"{night.outcome}: {night.failed}" if night.failed else f"{night.outcome}: no gate failed"]
    worse = [f"{f.cell} {f.kind} {f.before} → {f.after}{_by(f)}" for f in findings if f.regression]
    if worse:
        parts.append(f"{len(worse)} regression{'s' * (len(worse) > 1)}: {'; '.join(worse)}")
    rest = f"{counted['PASS']} of {night.cells} cells pass"
    if counted["UNDECIDED"]:
        rest += f", {_are(counted['UNDECIDED'])} undecided, which is no pass and no failure"
    if counted["MISSING"]:
        rest += f", {_are(counted['MISSING'])} missing"
    return ". ".join(part.rstrip(".") for part in (*parts, rest))


def _are(count: int) -> str:
    return f"{count} {'is' if count == 1 else 'are'}"


def _by(finding: Finding) -> str:
    return f" ({finding.causes})" if finding.causes else ""
