"""Differences between two nights of a cell, and those that can be the cause of a change."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from nightjar.nightly.evidence import Evidence
from nightjar.nightly.history import Cell

STAGES = ("graphs", "calibration", "frontier", "binary", "hypotheses", "verdict")  # in the order they run
LIKELIEST = ("checkpoint", "toolchain", "options", "code", "board", "speech", "calibration speech", "library")
CONTENT = ("--checkpoint", "--test-set", "--calibration-set")  # name files: their content is compared instead


def cell_changes(tonight: Evidence, other: Evidence, causes_only: bool = False) -> list[str]:
    """List the differences in what two nights of a cell were made from, likeliest cause first.

    causes_only: only those of stages whose bytes differ; an export whose code was edited and that gives the same bytes
    is no cause.
    """
    found = list(_differences("options", _flags(other.cell.command), _flags(tonight.cell.command)))
    for name in STAGES:
        new, old = tonight.made_from.get(name), other.made_from.get(name)
        if new is not None and old is not None and not (causes_only and new["sha256"] == old["sha256"]):
            found += _stage_differences(name, new, old)
    if not (tonight.made_from and other.made_from):
        found += _column_differences(tonight.cell, other.cell)
    return sorted(dict.fromkeys(found), key=_rank)


def parse_versions(text: str) -> dict[str, str]:
    """Split 'rknn-toolkit2 2.5.0; torch 2.13.0' into names and versions."""
    parts = (part.strip().rpartition(" ") for part in text.split(";") if part.strip())
    return {name or version: version for name, _, version in parts}


def _stage_differences(name: str, new: Mapping[str, Any], old: Mapping[str, Any]) -> Iterator[str]:
    """Yield the differences of one stage, without the inputs that other stages made."""
    speech = "calibration speech" if name == "calibration" else "speech"
    for source, kind in (("checkpoint", "checkpoint"), ("speech", speech)):
        yield from _content_difference(kind, old["inputs"].get(source), new["inputs"].get(source))
    yield from _differences("toolchain", old["sdk"], new["sdk"])
    simulated = "vendor-simulator" in (old["board"].get("tier"), new["board"].get("tier"))
    for fact in sorted(old["board"].keys() | new["board"].keys()):
        before, after = old["board"].get(fact, "none"), new["board"].get(fact, "none")
        if before != after:
            package = fact.startswith("runtimes.") or fact == "python"
            kind = "toolchain" if simulated and package else "board"
            yield f"{kind} {fact.removeprefix('runtimes.')} {before} → {after}"
    yield from _differences("library", old["libraries"], new["libraries"])
    if old["code_sha256"] != new["code_sha256"]:
        yield f"code of {new['stage']}"


def _column_differences(tonight: Cell, other: Cell) -> Iterator[str]:
    """Yield the differences of the rows alone, where the reports are gone."""
    yield from _content_difference("checkpoint", other.checkpoint, tonight.checkpoint)
    yield from _content_difference("speech", other.speech, tonight.speech)
    yield from _differences("library", parse_versions(other.versions), parse_versions(tonight.versions))
    yield from _differences("board", parse_versions(other.board_facts), parse_versions(tonight.board_facts))
    if tonight.code != other.code:
        yield "code"


def _differences(kind: str, old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield f"{kind} {name} {old.get(name, 'none')} → {new.get(name, 'none')}"


def _content_difference(kind: str, old: str | None, new: str | None) -> Iterator[str]:
    if old != new:
        yield f"{kind} {(old or 'none')[:8]} → {(new or 'none')[:8]}"


def _flags(command: str) -> dict[str, str]:
    found: dict[str, str] = {}
    flag = ""
    for word in shlex.split(command):
        if word.startswith("--"):
            flag = word
            found[flag] = ""
        elif flag:
            found[flag] = f"{found[flag]} {word}".strip()
    return {flag: values for flag, values in found.items() if flag not in CONTENT}


def _rank(difference: str) -> int:
    ranks = (rank for rank, kind in enumerate(LIKELIEST) if f"{difference} ".startswith(f"{kind} "))
    return min(ranks, default=len(LIKELIEST))
