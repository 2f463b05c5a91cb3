"""Findings of a target's lint: what a compiler refuses in a graph, or runs badly, known before hours of compiling.

A target with a lint has `lint.py`: `lint(graphs) -> list[Finding]` for a folder that export wrote. `TOOLCHAIN` names an
environment that the lint uses where it is installed (`mtk.stand_in`).
"""

import re
from typing import Literal

from pydantic import BaseModel, Field

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

    level: Literal["refuse", "warn"] = Field(
        description="refuse: it does not compile; warn: slow, inexact or on the CPU"
    )
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


def refusals(findings: list[Finding]) -> list[Finding]:
    """Return the findings that do not compile."""
    return [finding for finding in findings if finding.level == "refuse"]
