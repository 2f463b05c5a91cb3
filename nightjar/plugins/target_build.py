"""What the builds of targets share: check the request, read graphs and plan, choose float nodes, write the binary."""

import fnmatch
import json
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator

from nightjar.errors import BadInput, BadOptions, Broken
from nightjar.files import read_json
from nightjar.graphs.onnx_file import graph_files
from nightjar.process import Progress
from nightjar.progress import tick

Entry = dict[str, Any]  # of a part in binary.json


class Plan(NamedTuple):
    """A precision plan by part: the tensors whose groups stay out of int8, and the parts that stay float as a whole."""

    float_tensors: dict[str, list[str]]
    whole_parts: tuple[str, ...] = ()


def _require_pattern(entry: str) -> str:
    if not all(entry.partition(":")[::2]):
        raise ValueError(f"{entry!r} is not PART:GLOB")
    return entry


FloatNodes = tuple[Annotated[str, AfterValidator(_require_pattern)], ...]  # `part:glob`, the option float_nodes


def read_model(graphs: Path, target: str, hint: str = "", graph_format: str = "onnx") -> dict[str, Any]:
    """Read model.json; raises BadOptions for graphs of another format."""
    model: dict[str, Any] = read_json(graphs / "model.json")
    found = model["recipe"]["graph_format"]
    if found != graph_format:
        labels = {"onnx": "ONNX", "torchscript": "TorchScript"}
        raise BadOptions(
            f"target {target} takes {labels[graph_format]} graphs, these are {labels[found]}: "
            f"{hint}export with graph_format {graph_format}"
        )
    return model


def check_request(precision: str, calibration: Path | None, plan: Path | None, quantized: Path | None = None) -> None:
    """Raise BadOptions for `auto` without a plan and for an integer precision without calibration data."""
    if precision == "auto" and plan is None:
        raise BadOptions(
            "--precision auto needs the plan of a precision search; build with --precision int8 or fp instead"
        )
    if precision != "fp" and calibration is None and quantized is None:
        raise BadOptions("int8 needs calibration data: pass a calibration set, or build with --precision fp")


def read_plan(path: Path, parts: Collection[str]) -> Plan:
    """Read plan.json for these parts; raises BadInput for another file and BadOptions for a part that is not there."""
    try:
        content: dict[str, Any] = read_json(path)
        named = {part: list(tensors) for part, tensors in content["float"].items()}
        whole = tuple(content.get("whole", ()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise BadInput(
            f"{path} is no plan ({exc}): it is {{'float': {{part: [tensor, …]}}}}; "
            "run the same command with --refresh rank"
        ) from exc
    if unknown := sorted(named.keys() - set(parts)):
        raise BadOptions(
            f"the plan names part {unknown[0]!r}; these graphs have {', '.join(parts)}: "
            "run the same command with --refresh rank"
        )
    return Plan({part: named.get(part, []) for part in parts}, whole)


def float_node_globs(entries: Sequence[str], parts: Collection[str]) -> dict[str, list[str]]:
    """Split the option `float_nodes` by part; raises BadOptions for an entry of another form or part."""
    globs: dict[str, list[str]] = {part: [] for part in parts}
    for entry in entries:
        part, _, glob = entry.partition(":")
        if part not in globs or not glob:
            raise BadOptions(f"float_nodes '{entry}' is not PART:GLOB with a PART of {', '.join(parts)}")
        globs[part].append(glob)
    return globs


def match_float_nodes(part: str, globs: Iterable[str], layer_of: Mapping[str, str], shown: Iterable[str]) -> list[str]:
    """Return the layers whose names match, in order; layer_of: a node's or tensor's name to its layer.

    shown: the names that the message lists. Raises BadOptions for a glob that matches nothing.
    """
    found = []
    for glob in globs:
        matching = fnmatch.filter(layer_of, glob)
        if not matching:
            raise BadOptions(
                f"float_nodes '{part}:{glob}' fits no layer that could be int8; {part} has {', '.join(shown)}"
            )
        found += [layer_of[name] for name in matching]
    return found


def require_products(part: str, precision: str, share: float) -> None:
    """Raise Broken for a part built as int8 or w8a16 that multiplies nothing in that precision."""
    if not share:
        raise Broken(
            f"part '{part}' came out without one {precision} product; "
            "keep fewer nodes float or build with --precision fp"
        )


def part_progress(number: int, parts: int, bar: str = "") -> Progress:
    """Return a listener for the SDK call of part `number` (from 0) of `parts`; bar: its bar to follow, else any."""

    def report(name: str, done: int, total: int) -> None:
        if bar in ("", name):
            tick(100 * number + 100 * done // total, 100 * parts)

    return report


def write_layers(out: Path, part: str, layers: Iterable[Mapping[str, Any]]) -> str:
    """Write a part's layers, one a line; return the name of the file."""
    lines = ",\n".join(json.dumps(layer) for layer in layers)
    (out / f"{part}.layers.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    return f"{part}.layers.json"


def write_binary(
    graphs: Path, model: dict[str, Any], entries: Mapping[str, Entry], out: Path, *, target: str, **described: object
) -> None:
    """Write the embedding tables, model.json and binary.json of parts whose files lie in `out`.

    entries: by part; `runner` is the target where an entry has none, `size_bytes` is that of `file`. described: fields
    of binary.json before `parts`.
    """
    for table in sorted(graphs.glob("*embedding*")):
        shutil.copyfile(table, out / table.name)
    parts = {}
    for name, entry in entries.items():
        size_bytes = sum(path.stat().st_size for path in graph_files(out / entry["file"]))
        parts[name] = {"runner": target, "file": entry["file"], "size_bytes": size_bytes, **entry}
        model["parts"][name]["file"] = entry["file"]
    binary = {"target": target, **described, "parts": parts}
    for file, content in (("model.json", model), ("binary.json", binary)):
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (out / file).write_text(f"{text}\n", encoding="utf-8")
