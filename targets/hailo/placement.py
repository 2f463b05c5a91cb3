"""Where parts run, NPU or CPU, and which layers have 16 bits: for the DFC and its stand-in."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from nightjar.errors import BadOptions
from nightjar.graphs.fusion import Group
from nightjar.plugins import target_build
from nightjar.plugins.target_build import Entry, Plan, float_node_globs, match_float_nodes, write_binary
from targets.hailo.options import PlacementOptions

PARTS = ("encoder", "cross", "decoder")


def read_model(graphs: Path, options: PlacementOptions) -> dict[str, Any]:
    """Read model.json; raises BadOptions for graphs whose parts cannot run where the options put them."""
    model = target_build.read_model(graphs, "hailo")
    if unknown := [part for part in options.npu if part not in model["parts"]]:
        raise BadOptions(
            f"--target-options npu= names {unknown[0]}, and these graphs have {', '.join(model['parts'])}: "
            "leave it out, or pass another --decoder"
        )
    if "decoder" in options.npu and model["recipe"]["decoder"] == "cached":
        raise BadOptions(
            "the decoder on the NPU takes its whole prefix at every step, these graphs keep a KV cache: pass --decoder "
            "static --decoder-length 32, or leave the decoder out of --target-options npu="
        )
    return model


def build_parts(
    graphs: Path, model: dict[str, Any], npu: Collection[str], out: Path, npu_part: Callable[[str], Entry], **made: Any
) -> None:
    """Write a binary: parts of `npu` by `npu_part`, the others as target onnx builds them; made: target, precision."""
    from targets.onnx.build import fuse_part, open_lanes

    out.mkdir(parents=True, exist_ok=True)
    entries: dict[str, Entry] = {}
    for name, part in model["parts"].items():
        if name in npu:
            entries[name] = npu_part(name)
            continue
        file = part["file"]
        entries[name] = {"runner": "onnx", **fuse_part(graphs / file, out / file)}
        if name == "decoder" and model["recipe"]["decoder"] == "cached":
            entries[name] |= open_lanes(out / file, part)
    write_binary(graphs, model, entries, out, **made, host_position_add=model["host_position_add"])


def tensors_16bit(part: str, groups: Sequence[Group], options: PlacementOptions, plan: Plan | None) -> set[str]:
    """Name the tensors of the groups in 16 bits: the plan's, or residual sums, and those of `float_nodes`.

    Attention is left out unless `attention_16bit` is set. Raises BadOptions for a glob that matches nothing and for a
    tensor of the plan that no group computes.
    """
    own = {group.tensor for group in groups}
    if plan is None:
        chosen = {group.tensor for group in groups if group.kind == "add" and options.residuals_16bit}
    elif unknown := sorted(set(plan.float_tensors[part]) - own):
        raise BadOptions(
            f"the plan names tensor {unknown[0]!r}, which no group of the {part} computes: "
            "run the same command with --refresh rank"
        )
    else:
        chosen = own if part in plan.whole_parts else set(plan.float_tensors[part])
    group_of = {name: group.tensor for group in groups for name in (*group.nodes, group.tensor)}
    globs = float_node_globs(options.float_nodes, PARTS)[part]
    chosen |= set(match_float_nodes(part, globs, group_of, sorted(own)))
    attention = {group.tensor for group in groups if group.kind == "attention"}
    return chosen if options.attention_16bit else chosen - attention
