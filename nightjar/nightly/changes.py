"""Differences between two nights of a cell, and those that can be the cause of a change."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from nightjar.nightly.evidence import Evidence
from nightjar.nightly.history import Cell

STAGES = ("graphs", "calibration", "frontier", "binary", "hypotheses", "verdict")  # in the order they run
LIKELIEST = ("checkpoint", "toolchain", "options", "code", "board", "speech", "calibration speech", "library")
CONTENT = ("checkpoint", "test-set", "calibration-set")  # flags that name files: their content is compared instead


def cell_changes(tonight: Evidence, other: Evidence) -> list[str]:
    """List all differences in what two nights of a cell were made from, likeliest cause first."""
    found = list(_options(tonight.cell, other.cell))
    for name in STAGES:
        if name in tonight.made_from and name in other.made_from:
            found += _differing(name, tonight.made_from[name], other.made_from[name])
    if not (tonight.made_from and other.made_from):
        found += _columns(tonight.cell, other.cell)
    return _ordered(found)


def likely_causes(tonight: Evidence, other: Evidence) -> list[str]:
    """List the differences of the stages whose bytes differ; differences of their input artifacts are left out.

    An export whose code was edited and that gives the same bytes as before is no cause.
    """
    if not (tonight.made_from and other.made_from):
        return cell_changes(tonight, other)
    found = list(_options(tonight.cell, other.cell))
    for name in STAGES:
        new, old = tonight.made_from.get(name), other.made_from.get(name)
        if new is not None and old is not None and new["sha256"] != old["sha256"]:
            found += _differing(name, new, old)
    return _ordered(found)


def parse_versions(text: str) -> dict[str, str]:
    """Split 'rknn-toolkit2 2.5.0; torch 2.13.0' into names and versions."""
    parts = (part.strip().rpartition(" ") for part in text.split(";") if part.strip())
    return {name or version: version for name, _, version in parts}


def _differing(name: str, new: Mapping[str, Any], old: Mapping[str, Any]) -> Iterator[str]:
    """Yield the differences of one stage, without the inputs that other stages made."""
    for source, called in (("checkpoint", "checkpoint"), ("speech", "speech")):
        before, after = old["inputs"].get(source), new["inputs"].get(source)
        if before != after:
            called = "calibration speech" if source == "speech" and name == "calibration" else called
            yield f"{called} {_short(before)} → {_short(after)}"
    yield from _versions("toolchain", old["sdk"], new["sdk"])
    simulated = "vendor-simulator" in (old["board"].get("tier"), new["board"].get("tier"))
    for fact in sorted(old["board"].keys() | new["board"].keys()):
        before, after = old["board"].get(fact, "none"), new["board"].get(fact, "none")
        if before != after:
            package = fact.startswith("runtimes.") or fact == "python"
            kind = "toolchain" if simulated and package else "board"
            yield f"{kind} {fact.removeprefix('runtimes.')} {before} → {after}"
    yield from _versions("library", old["libraries"], new["libraries"])
    if old["code_sha256"] != new["code_sha256"]:
        yield f"code of {new['stage']}"


def _versions(kind: str, old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield f"{kind} {name} {old.get(name, 'none')} → {new.get(name, 'none')}"


def _columns(tonight: Cell, other: Cell) -> Iterator[str]:
    """Yield the differences of the rows alone, where the reports are gone."""
    for kind in ("checkpoint", "speech"):
        before, after = getattr(other, kind), getattr(tonight, kind)
        if before != after:
            yield f"{kind} {_short(before)} → {_short(after)}"
    for kind, before, after in (
        ("library", other.versions, tonight.versions),
        ("board", other.board_facts, tonight.board_facts),
    ):
        yield from _versions(kind, parse_versions(before), parse_versions(after))
    if tonight.code != other.code:
        yield "code"


def _options(tonight: Cell, other: Cell) -> Iterator[str]:
    """Yield the options that differ."""
    new, old = _flags(tonight.command), _flags(other.command)
    for flag in sorted(new.keys() | old.keys()):
        if flag not in CONTENT and new.get(flag) != old.get(flag):
            yield f"options --{flag} {old.get(flag, 'none')} → {new.get(flag, 'none')}"


def _flags(command: str) -> dict[str, str]:
    found: dict[str, str] = {}
    flag = ""
    for word in shlex.split(command):
        if word.startswith("--"):
            flag = word.removeprefix("--")
            found[flag] = ""
        elif flag:
            found[flag] = f"{found[flag]} {word}".strip()
    return found


def _short(sha256: str | None) -> str:
    return (sha256 or "none")[:8]


def _ordered(found: list[str]) -> list[str]:
    ranks = {kind: rank for rank, kind in enumerate(LIKELIEST)}

    def rank(text: str) -> int:
        return min((r for kind, r in ranks.items() if text == kind or text.startswith(f"{kind} ")), default=len(ranks))

    return sorted(dict.fromkeys(found), key=rank)
