"""What a target will refuse in a graph, or run badly, said before hours of compiling.

A target that can tell has `lint.py` in its folder: `lint(graphs) -> list[Finding]` for a folder that export wrote.
Where it sees more with an environment that may be absent, `TOOLCHAIN` names that environment (`mtk.stand_in`).
"""

import re
from typing import Literal

from pydantic import BaseModel, Field

# What Whisper's and Zipformer's modules are called, in words.
WORDS = {
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
    """One thing found in one place of one part's graph."""

    level: Literal["refuse", "warn"] = Field(
        description="refuse: it does not compile; warn: slow, inexact or on the CPU"
    )
    part: str = Field(description="encoder, decoder, …")
    node: str = Field(description="the node's name in the graph")
    op: str = Field(description="its operator, as the graph has it")
    place: str = Field(description="where that is in the model's own words, such as `block 3, attention`")
    why: str = Field(description="what the compiler or the NPU has against it")
    remedy: str = Field(description="what the target's recipe does about it, or what to do")


def place_of(node: str) -> str:
    """Say where in the model a node is, by the modules in its name.

    `/blocks.3/attn/query/MatMul` (ONNX) and `…Encoder/…EncoderBlock_3/…Attention_attn;` (litert-torch) are both
    `block 3, attention`.
    """
    said = []
    for module in re.split(r"[/;]+", node):
        name = module.rpartition(".")[2] if re.search(r"[a-z]\.[A-Za-z]", module) else module
        block = re.fullmatch(r"(?:blocks\.|[A-Za-z]*Block_)(\d+)", name)
        name = re.sub(r"^[A-Z][A-Za-z0-9]*?_", "", name)
        word = f"block {block[1]}" if block else WORDS.get(name)
        if word and word not in said:
            said.append(word)
    return ", ".join(said) or "the graph itself"


def refusals(findings: list[Finding]) -> list[Finding]:
    """Keep what does not compile."""
    return [finding for finding in findings if finding.level == "refuse"]
