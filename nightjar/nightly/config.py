"""The config of a night: models × targets × precisions, which make named cells (docs/nightly.md).

A cell's name is model/target/precision, with /board where one is given; it is the same every night.
"""

import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nightjar.errors import BadInput, BadOptions, NightjarError
from nightjar.paths import ROOT
from nightjar.plugins.board_choice import address_of
from nightjar.plugins.resolve import model_family, shipped_models
from nightjar.plugins.target import make_options, target_of, tier_of
from nightjar.request import ModelName, PortOptions, PortRequest

TABLES = ("checkpoints", "defaults", "cells")
AXES = {"models": '"whisper-nano"', "targets": '"rknn"', "precisions": '"int8", "auto"'}  # with examples
OPTIONS = [name for name in PortRequest.model_fields if name not in ("model", "target", "precision", "checkpoint")]
PATHS = ("calibration_set", "test_set")
LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,100}")


class NightRequest(BaseModel):
    """Port every cell of a config, record the results, and report what changed since earlier nights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: Path = Field(
        Path("deployments/nightly.toml"),
        description="config of the cells: models × targets × precisions; a relative path is from the checkout",
    )
    hand_out: bool = Field(
        False,
        description="send the cells to the work queues of their targets (`nightjar flows deploy`), many at a time; "
        "otherwise they run here, one after another",
    )
    patience_h: float = Field(12, gt=0, description="hours that all cells on work queues may take together")
    site: bool = Field(False, description="write the pages of all nights (reports/site) at the end")
    night: str | None = Field(
        None,
        pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$",
        description="when the night was due, UTC, as 2026-11-20T02:00:00Z; a night of this name is replaced; "
        "default: its scheduled start",
    )

    def file(self) -> Path:
        """Return the path of the config."""
        return ROOT / self.config


class BisectRequest(PortOptions, ModelName):
    """Run one cell under two checkpoints or two toolchains, and list what differs."""

    checkpoint: tuple[Path, ...] = Field((), max_length=2, description="as --checkpoint of port; two are compared")
    toolchain: tuple[Path, ...] = Field((), max_length=2, description="folders of the target's SDK; two are compared")


class CellRequest(BaseModel, frozen=True):
    """One cell of a config: its name, its request, and the tier of its board."""

    cell: str
    request: PortRequest
    tier: str


def read_config(path: Path) -> list[CellRequest]:
    """Return the cells of a config, in its order; raises BadInput, in one line, for an invalid config."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(
            f"cannot read the night's config {path} ({error.strerror}): give one with --config, see docs/nightly.md"
        ) from error
    except ValueError as error:  # not UTF-8, not TOML
        raise _refused(path, "the file", f"is not TOML: {' '.join(str(error).split())[:200]}") from error
    if unknown := next((key for key in tables if key not in TABLES), None):
        raise _refused(path, f"[{unknown}]", f"unknown key; have {', '.join(TABLES)}")
    labels, options, cells = (tables.get(name, {}) for name in TABLES)
    for name, table in (("checkpoints", labels), ("defaults", options)):
        if not isinstance(table, dict):
            raise _refused(path, f"[{name}]", "is not a table")
    checkpoints = {label: _checkpoint(path, label, at) for label, at in labels.items()}
    defaults = _options(path, "[defaults]", options)
    if not isinstance(cells, list) or not cells or not all(isinstance(each, dict) for each in cells):
        raise _refused(path, "[[cells]]", "has no cell: give models, targets and precisions")
    found: dict[str, CellRequest] = {}
    for number, table in enumerate(cells, 1):
        for cell_request in _expanded(path, f"[[cells]] {number}", table, checkpoints, defaults):
            if cell_request.cell in found:
                raise _refused(path, f"[[cells]] {number}", f"cell {cell_request.cell} occurs twice")
            found[cell_request.cell] = cell_request
    if unused := sorted(checkpoints.keys() - {cell_request.request.model for cell_request in found.values()}):
        raise _refused(path, f"[checkpoints] {unused[0]}", "no cell uses it")
    return list(found.values())


def cell_name(request: PortRequest) -> str:
    """Return the name of a request's cell."""
    return "/".join(filter(None, (request.model, request.target, request.precision, request.board)))


def _expanded(
    path: Path, entry: str, table: Mapping[str, Any], checkpoints: Mapping[str, Path], defaults: Mapping[str, Any]
) -> Iterator[CellRequest]:
    options = {**defaults, **_options(path, entry, {k: v for k, v in table.items() if k not in AXES})}
    axes: list[Any] = [table.get(axis) for axis in AXES]
    for axis, names in zip(AXES, axes, strict=True):
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise _refused(path, entry, f"{axis} must be a list of names, such as {axis} = [{AXES[axis]}]")
    for model, target, precision in itertools.product(*axes):
        at = f"{entry}, {model}/{target}/{precision}"
        axis_values = {"model": model, "checkpoint": checkpoints.get(model), "target": target, "precision": precision}
        try:
            request = PortRequest(**axis_values, **options)
            yield CellRequest(cell=cell_name(request), request=request, tier=_checked(request))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise _refused(path, at, f"{where} = {str(first['input'])[:100]}: {first['msg']}") from error
        except NightjarError as error:
            raise _refused(path, at, str(error)) from error


def _checked(request: PortRequest) -> str:
    """Check names, without looking for files, toolchains or boards; return the tier of the request's board."""
    if request.checkpoint is None:  # the file of a checkpoint may appear during the day
        model_family(request)
    missing = [name for name in PATHS if getattr(request, name) is None]
    if missing and request.model not in shipped_models():
        raise BadOptions(
            f"{request.model} ships no speech: give {missing[0]} a NeMo manifest, LibriSpeech tree or folder"
        )
    target = target_of(request.target, request.board)
    make_options(target, request.precision, request.float_nodes, request.target_options)
    if request.board is not None and request.board not in target.load().TIERS:
        for alias in request.board.split(","):
            if alias != "env":  # BOARD_IP decides where the cell runs
                address_of(target, alias)
    return tier_of(request.target, request.board)


def _checkpoint(path: Path, label: str, at: Any) -> Path:
    if not LABEL.fullmatch(label):
        raise _refused(path, f"[checkpoints] {label[:100]!r}", "a label may have letters, digits and . _ -")
    if not isinstance(at, str) or not at:
        raise _refused(path, f"[checkpoints] {label}", "is not a path")
    return (path.resolve().parent / Path(at).expanduser()).resolve()


def _options(path: Path, entry: str, table: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := next((key for key in table if key not in OPTIONS), None):
        known = OPTIONS if entry == "[defaults]" else (*AXES, *OPTIONS)
        raise _refused(path, entry, f"unknown key {unknown[:100]!r}; have {', '.join(known)}")
    folder = path.resolve().parent
    return {
        key: folder / Path(value).expanduser() if key in PATHS and isinstance(value, str) else value
        for key, value in table.items()
    }


def _refused(path: Path, entry: str, reason: str) -> BadInput:
    return BadInput(f"{path}, {entry}: {reason}; see docs/nightly.md")
