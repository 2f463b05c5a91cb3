"""Outcomes of a night: a row per cell, and whether the night failed and why."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel

from nightjar import errors
from nightjar.files import digest
from nightjar.nightly.config import CellRequest
from nightjar.nightly.history import Cell, CellOutcome, Finding, Night
from nightjar.request import command_line
from nightjar.scoring.verdict import deciding_gates

RAISED = re.compile(r"(?:exception:\s+|^)([A-Z]\w+): (.*)", re.DOTALL)  # Prefect's message of a failed run
MOST_CHARACTERS = 500  # of a message in the history
COUNTED_TIERS = ("vendor-simulator", "device", "host")  # their gates are gates of the night; a stand-in's are not

# The classes of errors by what caused them.
ORIGINS = {
    "board": ("BoardMissing", "BoardBusy", "SessionFailed", "RunnerFailed"),
    "toolchain": ("ToolchainMissing", "ToolchainBroken", "ToolchainFailed"),
    "checkpoint": ("BadCheckpoint",),
    "speech": ("BadManifest", "BadAudio", "SpeakersOverlap"),
    "disk": ("StoreBroken",),
    "network": ("DownloadFailed",),
    "server": ("ServerMissing",),
}


class Failure(BaseModel, frozen=True):
    """Why a cell has no verdict: the class of the error, its exit code and its line."""

    kind: str
    exit_code: int
    message: str

    @property
    def outcome(self) -> CellOutcome:
        """Return the outcome of the cell: MISSING where running again changes nothing."""
        return "MISSING" if self.exit_code in (2, 3) else "BROKEN"

    @property
    def origin(self) -> str:
        """Return what caused it, empty where the class does not show it."""
        return next((origin for origin, kinds in ORIGINS.items() if self.kind in kinds), "")


class CellResult(BaseModel, frozen=True):
    """The result of a cell: the results of `port`, or a failure."""

    cell_request: CellRequest
    seconds: float = 0
    results: dict[str, Any] | None = None
    failure: Failure | None = None


def failure_from_exception(error: BaseException) -> Failure:
    """Make a failure of an exception, with the message and exit code of the command line; 4 for an unexpected one."""
    if isinstance(error, errors.NightjarError):
        return _failure(type(error).__name__, error.exit_code, str(error))
    return _failure(type(error).__name__, 4, f"{type(error).__name__}: {error}")


def failure_from_message(message: str) -> Failure:
    """Make a failure of the message of a Prefect run that failed on another machine."""
    found = RAISED.search(message.strip())
    kind = getattr(errors, found[1], None) if found else None
    if found and isinstance(kind, type) and issubclass(kind, errors.NightjarError):
        return _failure(found[1], kind.exit_code, found[2])
    return _failure(found[1] if found else "", 4, message or "ended without a message")


def _failure(kind: str, exit_code: int, text: str) -> Failure:
    return Failure(kind=kind, exit_code=exit_code, message=" ".join(text.split())[:MOST_CHARACTERS])


def cell_row(night: str, done: CellResult) -> Cell:
    """Make a cell's row: of a verdict with its figures and keys, of a failure with its message."""
    request, results = done.cell_request.request, done.results
    row = partial(
        Cell,
        night=night,
        cell=done.cell_request.cell,
        model=request.model,
        target=request.target,
        precision=request.precision,
        board=request.board or "",
        seconds=round(done.seconds, 1),
        command=command_line(request),
    )
    if results is None:
        failure = done.failure or _failure("", 4, "ended without results")
        counts = done.cell_request.tier in COUNTED_TIERS
        return row(outcome=failure.outcome, counts=counts, error=failure.message)
    made: Mapping[str, Any] = results["made_from"]
    return row(
        **{name: results[name] for name in ("tier", "wer", "wer_float", "wer_stock", "delta_wer", "clips", "words")},
        **{name: results["hypotheses"][name] for name in ("empty", "looping", "capped")},
        outcome=results["verdict"],
        counts=results["tier"] in COUNTED_TIERS,
        error="; ".join(deciding_gates(results)),
        low=results["interval"][0],
        high=results["interval"][1],
        size_bytes=sum(results["size_bytes"].values()),
        rtf=results["rtf"]["total"]["p50"] if results["rtf"] and "total" in results["rtf"] else None,
        int8_mac_share=results["int8_mac_share"].get("encoder"),
        executed=sum(not stage["cached"] for stage in results["stages"]),
        checkpoint=made["graphs"]["inputs"].get("checkpoint", ""),
        speech=made["hypotheses"]["inputs"].get("speech", ""),
        code=digest({name: each["code_sha256"] for name, each in made.items()}),
        versions=versions_text(made),
        board_facts=board_text(made),
        judge=made["verdict"]["key"],
        report=results.get("report_key", ""),
    )


def versions_text(made_from: Mapping[str, Any]) -> str:
    """List the libraries and SDK packages that made a result; where both have a package, the SDK's is marked."""
    libraries: dict[str, str] = {}
    sdk: dict[str, str] = {}
    for each in made_from.values():
        libraries |= each["libraries"]
        sdk |= each["sdk"]
    both = {f"{name} (SDK)": version for name, version in sdk.items() if libraries.get(name, version) != version}
    alone = {name: version for name, version in sdk.items() if f"{name} (SDK)" not in both}
    return "; ".join(f"{name} {version}" for name, version in sorted((libraries | alone | both).items()))


def board_text(made_from: Mapping[str, Any]) -> str:
    """List the facts of the board; of a simulator only the machine, because its packages are the SDK's."""
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
    """Decide whether a night failed: by a gate, or by a cell that broke or is missing.

    failures: by cell, where there was one; known: cells that had a verdict in an earlier night. A missing toolchain or
    board that no night has had yet does not fail the night, and neither do UNDECIDED and stand-ins.
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
    verbs = {"FAIL": "fails", "BROKEN": "broke"}
    if known or (failure is not None and failure.exit_code == 2):
        verbs["MISSING"] = "is missing"
    return f"{cell.cell} {verbs[cell.outcome]}: {cell.error}" if cell.outcome in verbs else ""


def night_summary(night: Night, cells: Sequence[Cell], findings: Sequence[Finding]) -> str:
    """Summarise a night in a sentence: what failed, then the regressions, then the rest."""
    count = Counter[str](cell.outcome for cell in cells)
    parts = [f"{night.outcome}: {night.failed}" if night.failed else f"{night.outcome}: no gate failed"]
    worse = [
        f"{f.cell} {f.kind} {f.before} → {f.after}" + (f" ({f.causes})" if f.causes else "")
        for f in findings
        if f.regression
    ]
    if worse:
        parts.append(f"{len(worse)} regression{'s' * (len(worse) > 1)}: {'; '.join(worse)}")
    rest = f"{count['PASS']} of {night.cells} cells pass"
    for outcome, text in (("UNDECIDED", "undecided (neither pass nor failure)"), ("MISSING", "missing")):
        if count[outcome]:
            rest += f", {count[outcome]} {'is' if count[outcome] == 1 else 'are'} {text}"
    return ". ".join(part.rstrip(".") for part in (*parts, rest))
