"""Which parts run on the NPU and which on the CPU, and which layers are a16_w16: for the DFC and its stand-in."""

import fnmatch
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nightjar.errors import BadInput, BadOptions
from nightjar.graphs.fusion import Group
from targets.hailo.options import Placed

Entry = dict[str, Any]


def read_model(graphs: Path, options: Placed) -> dict[str, Any]:
    """Read model.json; raises BadOptions for graphs whose parts cannot run where the options put them."""
    model: dict[str, Any] = json.loads((graphs / "model.json").read_text(encoding="utf-8"))
    recipe = model["recipe"]
    if recipe["graph_format"] != "onnx":
        raise BadOptions("target hailo compiles ONNX graphs, these are TorchScript: export with graph_format onnx")
    if unknown := [part for part in options.npu if part not in model["parts"]]:
        raise BadOptions(
            f"--target-options npu= names {unknown[0]}, and these graphs have {', '.join(model['parts'])}: "
            "leave it out, or take another --decoder"
        )
    if "decoder" in options.npu and recipe["decoder"] == "cached":
        raise BadOptions(
            "the decoder on the NPU sees its whole prefix at every step, these graphs keep a KV cache: pass --decoder "
            "static --decoder-length 32, or leave the decoder out of --target-options npu="
        )
    return model


def cpu_part(graphs: Path, name: str, part: Mapping[str, Any], cached: bool, out: Path) -> Entry:
    """Write a part that runs on the board's CPU, in float, as the reference target does; return its entry."""
    from targets.onnx.build import fuse_part, open_lanes

    entry = {"runner": "onnx", "file": part["file"], **fuse_part(graphs / part["file"], out / part["file"])}
    if cached and name == "decoder":
        entry |= open_lanes(out / part["file"], part)
    return entry


def wide_tensors(part: str, groups: Sequence[Group], options: Placed, plan: Path | None) -> set[str]:
    """Name the tensors of the groups that are to be a16_w16: a plan's, or residual sums, and those of `float_nodes`.

    Attention is left out unless `attention_16bit` lets it. Raises BadOptions for a pattern that fits nothing.
    """
    if plan is not None:
        wide = _planned(plan, part, groups)
    else:
        wide = {group.tensor for group in groups if group.kind == "add" and options.residuals_16bit}
    by_name = {name: group.tensor for group in groups for name in (*group.nodes, group.tensor)}
    for entry in options.float_nodes:
        owner, _, pattern = entry.partition(":")
        if owner not in ("encoder", "cross", "decoder"):
            raise BadOptions(f"float_nodes '{entry}' is not PART:GLOB with a PART of encoder, cross, decoder")
        if owner != part:
            continue
        matching = fnmatch.filter(by_name, pattern)
        if not matching:
            own = ", ".join(sorted(group.tensor for group in groups))
            raise BadOptions(f"float_nodes '{entry}' fits no layer of the NPU; {part} has {own}")
        wide |= {by_name[name] for name in matching}
    attention = {group.tensor for group in groups if group.kind == "attention"}
    return wide if options.attention_16bit else wide - attention


def write_binary(
    graphs: Path, model: dict[str, Any], entries: Mapping[str, Entry], target: str, precision: str, out: Path
) -> None:
    """Write model.json, the tables and binary.json of parts that lie in `out`."""
    for path in sorted(graphs.glob("*embedding*")):
        shutil.copyfile(path, out / path.name)
    for name, entry in entries.items():
        model["parts"][name]["file"] = entry["file"]
    (out / "model.json").write_text(json.dumps(model, indent=1) + "\n", encoding="utf-8")
    description = {
        "target": target,
        "precision": precision,
        "host_position_add": model["host_position_add"],
        "parts": entries,
    }
    (out / "binary.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def _planned(plan: Path, part: str, groups: Sequence[Group]) -> set[str]:
    """Read plan.json: the tensors of a part that a search keeps from int8."""
    try:
        content: dict[str, Any] = json.loads(plan.read_text(encoding="utf-8"))
        kept = set(content["float"].get(part, ()))
        whole = part in content.get("whole", ())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise BadInput(
            f"{plan} is no plan ({exc}): it is {{'float': {{part: [tensor, …]}}}}; "
            "run the same command with --refresh rank"
        ) from exc
    known = {group.tensor for group in groups}
    if unknown := sorted(kept - known):
        raise BadOptions(
            f"the plan names tensor {unknown[0]!r}, which no group of the {part} puts out: "
            "run the same command with --refresh rank"
        )
    return known if whole else kept
