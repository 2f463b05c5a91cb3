"""What an NPU needs of an export."""

from typing import Literal

from pydantic import BaseModel, Field


class Recipe(BaseModel, frozen=True):
    """Say how a model is cut and shaped for a target; every field is part of the export's key."""

    window_s: float = Field(30.0, gt=0, description="audio window of the encoder in seconds")
    graph_format: Literal["onnx", "torchscript"] = Field(
        "onnx", description="what is kept, scored, ranked and rewritten; a target may make its own of it"
    )
    decoder: Literal["window", "static", "cached"] = Field(
        "cached",
        description="decoder protocol: 12-token window, whole padded prefix, or static KV cache",
    )
    decoder_length: int = Field(
        448, ge=8, description="rows of the padded prefix or of the KV cache, clamped to the model's"
    )
    positional: Literal["first", "last"] = Field(
        "first", description="which encoder positional rows a shorter window keeps"
    )
    host_embedding: bool = Field(
        False, description="look tokens and positions up on the CPU; the decoder takes embeddings"
    )
