"""Findings of a target's lint: what a compiler refuses in a graph, or runs badly, known before hours of compiling.

A target with a lint has `lint.py`: `lint(graphs) -> list[Finding]` for a folder that export wrote. `TOOLCHAIN` names an
environment that the lint uses where it is installed (`mtk.stand_in`). A target whose compiler takes parts up to a size
has PART_LIMIT: the most bytes of float32 weights, and why.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, Field

from nightjar.plugins.recipe import Recipe
from nightjar.plugins.registry import Plugin, plugin

SMALLEST_WEIGHT = 8  # in a checkpoint: half a byte, of four in float32
SMALLER = "pass a smaller --model, or a --target without this limit (`nightjar targets`)"

# Modules of Whisper and Zipformer by their names in a graph.
MODULE_NAMES = {
    "attn": "attention",
    "self_attn": "attention",
    "cross_attn": "cross-attention",
    "attn_ln": "norm before attention",
    "cross_attn_ln": "norm before cross-attention",
    "mlp": "feed-forward",
    "mlp_ln": "norm before the feed-forward",
    "token_embedding": "token table",
    "positional_embedding": "position table",
    "ln": "last norm",
    "ln_post": "last norm",
    "conv1": "first convolution",
    "conv2": "second convolution",
}


class Finding(BaseModel, frozen=True):
    """One finding in the graph of one part."""

    level: Literal["refuse", "warn"] = Field(description="refuse: does not compile; warn: slow, inexact or on the CPU")
    part: str = Field(description="encoder, decoder, …")
    node: str = Field(description="name of the node in the graph")
    op: str = Field(description="operator in the graph")
    place: str = Field(description="place in the model, such as `block 3, attention`")
    why: str = Field(description="why the compiler or the NPU refuses it")
    remedy: str = Field(description="change that the target's recipe makes, or that helps")


def place_of(node: str) -> str:
    """Return the place of a node in the model, by the modules in its name.

    `/blocks.3/attn/query/MatMul` (ONNX) and `…Encoder/…EncoderBlock_3/…Attention_attn;` (litert-torch) are both
    `block 3, attention`.
    """
    words: list[str] = []
    for module in re.split(r"[/;]+", node):
        name = module.rpartition(".")[2] if re.search(r"[a-z]\.[A-Za-z]", module) else module
        block = re.fullmatch(r"(?:blocks\.|[A-Za-z]*Block_)(\d+)", name)
        name = re.sub(r"^[A-Z][A-Za-z0-9]*?_", "", name)
        word = f"block {block[1]}" if block else MODULE_NAMES.get(name)
        if word and word not in words:
            words.append(word)
    return ", ".join(words) or "the graph itself"


class Problem(NamedTuple):
    """A finding before its part and place are added."""

    level: Literal["refuse", "warn"]
    node: str
    op: str
    why: str
    remedy: str


def findings_of(part: str, problems: Iterable[Problem]) -> list[Finding]:
    """Return the problems of a part as findings."""
    return [Finding(part=part, place=place_of(problem.node), **problem._asdict()) for problem in problems]


def boundary_problems(
    entry: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], npu: str, rank: int
) -> Iterator[Problem]:
    """Yield the inputs and outputs of a part of model.json that no NPU takes; shapes: of the graph, 0 for any size."""
    for tensor in (*entry["inputs"], *entry["outputs"]):
        name = tensor["name"]
        if tensor["dtype"] == "int64":
            yield int64_problem(name, "input", npu)
        if len(tensor["shape"]) > rank:
            yield rank_problem(name, "input", tensor["shape"], npu, rank)
        if 0 in shapes.get(name, ()):
            remedy = "export with fixed shapes: the recipe's window and decoder length"
            yield Problem("refuse", name, "input", "a dimension is not fixed", remedy)


def int64_problem(node: str, op: str, npu: str) -> Problem:
    """Return the problem of a tensor of 64-bit integers."""
    remedy = "the recipe looks tokens up on the CPU (host embedding): no token or position goes to the NPU"
    return Problem("refuse", node, op, f"64-bit integers; {npu} has none", remedy)


def rank_problem(node: str, op: str, shape: Sequence[int], npu: str, rank: int) -> Problem:
    """Return the problem of a tensor with too many dimensions."""
    why = f"a tensor of {len(shape)} dimensions {tuple(shape)}; {npu} takes {rank} at most"
    return Problem("refuse", node, op, why, f"reshape it to {rank}: the recipe's attention splits heads that way")


def part_bytes(family: str, checkpoint: Path, recipe: Recipe, clamp: bool) -> dict[str, int]:
    """Return the bytes of each part's weights in float32, nothing for a family that does not tell."""
    known = getattr(plugin("models", family, "export").load(), "part_bytes", None)
    return known(checkpoint, recipe, clamp) if known else {}


def large_parts(target: Plugin, family: str, checkpoint: Path, recipe: Recipe, clamp: bool) -> list[Finding]:
    """List the parts that are too large for a target's compiler."""
    most, why = getattr(target.load(), "PART_LIMIT", (None, ""))
    files = checkpoint.glob("*") if checkpoint.is_dir() else [checkpoint]
    if most is None or SMALLEST_WEIGHT * sum(path.stat().st_size for path in files) <= most:  # opens no checkpoint
        return []
    found: list[Finding] = []
    for part, size in part_bytes(family, checkpoint, recipe, clamp).items():
        if size > most:
            whole = f"{size / 1e6:,.0f} MB of float32 weights: {why}"
            found += findings_of(part, [Problem("refuse", part, "weights", whole, SMALLER)])
    return found
