"""What a target will refuse in a graph, or run badly, said before hours of compiling.

A target that can tell has `lint.py` in its folder: `lint(graphs) -> list[Finding]` for a folder that export wrote.
"""

from typing import Literal

from pydantic import BaseModel, Field


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
