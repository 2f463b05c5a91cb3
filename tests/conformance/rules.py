"""What every target must keep. Each rule is a function that asserts; test_rules.py holds each against a broken copy."""

import json
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from nightjar.plugins.lint import Finding
from nightjar.plugins.recipe import Recipe
from nightjar.request import PortRequest
from tests.conformance.subjects import Subject, read

TIERS = {"device", "vendor-simulator", "host", "stand-in"}
VENDORS = {".rknn", ".dla", ".hef"}  # only the vendor's own compiler writes these
CLOSE = 0.05  # of the loudest logit: float16 and a simulator's ways are closer, a wrong order or layout is not


def contract(subject: Subject) -> None:
    """A module says what it is: name, boards with their tiers, a default board, runtimes, one line of what it is."""
    module = subject.module
    assert subject.name == module.NAME, "NAME is the folder's"
    assert set(module.TIERS.values()) <= TIERS
    assert module.DEFAULT_BOARD in module.TIERS
    assert isinstance(module.RUNTIMES, tuple)
    assert (module.__doc__ or "").strip(), "`nightjar targets` prints its first line"
    assert subject.has("runner"), "runner.py is what runs a part on the board"
    assert isinstance(module.recipe("whisper"), Recipe)


def options(subject: Subject) -> None:
    """Options are frozen, all have defaults and descriptions, and come back from JSON as they were."""
    kind = subject.module.Options
    made = kind()
    known = set(typing.get_args(PortRequest.model_fields["precision"].annotation))
    built = set(typing.get_args(kind.model_fields["precision"].annotation))
    assert "fp" in built or subject.module.NAME.startswith("hailo"), "every port begins with a float build"
    assert built <= known, f"no command line can ask for {sorted(built - known)}"
    for name, field in kind.model_fields.items():
        assert field.description, f"{name} has no description: it is the form and the documentation"
    for precision in sorted(built):
        one = kind(precision=precision)
        assert kind.model_validate_json(one.model_dump_json()) == one
        assert json.loads(one.model_dump_json())["precision"] == precision
    with pytest.raises(ValidationError):
        made.precision = "fp"
    with pytest.raises(ValidationError):
        kind(precision="nothing of the kind")


def lint(subject: Subject, plain: Path, own: Path) -> None:
    """A lint finds nothing that is refused in graphs of the target's own recipe, and says all of what it finds."""
    if not subject.has("lint"):
        return
    module = subject.part("lint")
    for graphs in (plain, own):
        found = module.lint(graphs)
        assert all(isinstance(finding, Finding) for finding in found)
        parts = read(graphs, "model.json")["parts"]
        for finding in found:
            assert finding.part in parts
            assert all((finding.node, finding.op, finding.place, finding.why, finding.remedy)), finding
    assert not any(finding.level == "refuse" for finding in found), "the recipe leaves what the compiler refuses"


def binary(subject: Subject, graphs: Path, out: Path) -> None:
    """A binary has every part, described as docs/files.md has it, and what a decode loop needs beside them."""
    model, described = read(graphs, "model.json"), read(out, "binary.json")
    assert described["target"] == subject.module.NAME
    assert described["parts"].keys() == model["parts"].keys()
    for name, part in described["parts"].items():
        assert (out / part["file"]).stat().st_size == part["size_bytes"], name
        assert 0 <= part["int8_mac_share"] <= 1
        assert part["runner"], name
    copied = read(out, "model.json")
    assert copied["tokens"] == model["tokens"]
    for name, part in copied["parts"].items():
        assert (out / part["file"]).is_file(), "model.json names the files as they are called here"
        assert part["inputs"] == model["parts"][name]["inputs"]
    for table in graphs.glob("*_embedding.npy"):
        assert (out / table.name).read_bytes() == table.read_bytes()
    said = (out / "binary.json").read_text() + (out / "model.json").read_text()
    assert str(out) not in said, "a path of this machine would be content"
    assert str(graphs) not in said, "a path of this machine would be content"


def silence(printed: str, here: Path) -> None:
    """A compile prints nothing and writes nothing into the folder it was called in."""
    assert printed == "", "stdout is the command line's"
    assert list(here.iterdir()) == []


def same_bytes(one: Path, other: Path) -> None:
    """The same inputs give the same bytes: else what depends on them would run again for nothing."""
    names = {path.name for path in one.iterdir()}
    assert names == {path.name for path in other.iterdir()}
    differing = [name for name in sorted(names) if (one / name).read_bytes() != (other / name).read_bytes()]
    assert differing == []


def key(subject: Subject, parts: dict[str, str]) -> None:
    """A build's key holds the target's code and options, and nothing of this machine or hour."""
    code = f"code {'/'.join(subject.module.__name__.split('.'))}/"
    assert any(part.startswith(code) for part in parts), "an edit of the target must build again"
    assert any(part.startswith("options.") for part in parts)
    assert not any(str(Path.cwd()) in value for value in parts.values())


def honesty(subject: Subject, out: Path | None = None) -> None:
    """What stands in for an SDK is called so, has the tier of that name alone, and writes no vendor's file."""
    tiers = set(subject.module.TIERS.values())
    if subject.is_stand_in:
        assert subject.module.TIERS == {"stand-in": "stand-in"}
    else:
        assert "stand-in" not in tiers, "a stand-in is a folder of its own, targets/<t>/stand_in"
    if out is not None:
        runners = {part["runner"] for part in read(out, "binary.json")["parts"].values()}
        stands_in = {runner for runner in runners if runner.endswith(".stand_in")}
        assert bool(stands_in) == subject.is_stand_in
        if subject.is_stand_in or tiers == {"host"}:
            assert not {path.suffix for path in out.rglob("*")} & VENDORS


def equality(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """A float binary hears what the float graphs hear: nearly the same logits, step by step of the same tokens."""
    assert [line["id"] for line in found] == [line["id"] for line in wanted]
    assert found, "nothing was heard"
    for ours, theirs in zip(found, wanted, strict=True):
        ids, logits, norms = (theirs["watched"][name] for name in ("ids", "logits", "norm"))
        assert ours["watched"]["ids"][: len(ids)] == ids
        for mine, other, norm in zip(ours["watched"]["logits"], logits, norms, strict=False):
            apart = np.abs(np.array(mine) - np.array(other)).max()
            assert apart <= CLOSE * max(np.abs(other).max(), abs(norm)), ours["id"]
