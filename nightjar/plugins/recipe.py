"""Recipes: how a model is exported for a target."""

from typing import Literal

from pydantic import BaseModel, Field


class Recipe(BaseModel, frozen=True):
    """How a model is split and shaped for a target; every field is part of the export's key."""

    window_s: float = Field(30.0, gt=0, description="audio window of the encoder in seconds")
    graph_format: Literal["onnx", "torchscript"] = Field("onnx", description="export's format; a target may convert it")
    decoder: Literal["window", "static", "cached", "transducer"] = Field(
        "cached",
        description="decoder protocol: 12-token window, whole padded prefix, static KV cache, or a stream's transducer",
    )
    decoder_length: int = Field(448, ge=8, description="rows of the prefix or of the KV cache, clamped to the model's")
    positional: Literal["first", "last"] = Field("first", description="positional rows that a shorter window keeps")
    host_embedding: bool = Field(False, description="look tokens and positions up on the CPU; decoder takes embeddings")
    conv2d: bool = Field(False, description="encoder: convolutions of two dimensions over mel (1, n_mels, 1, n_frames)")
    layer_norm: Literal["op", "primitives"] = Field("op", description="LayerNormalization node, or its primitives")
    logits_rows: Literal["last", "all"] = Field("last", description="static decoder: logits of row `last` or of all")
    logits_slices: int = Field(1, ge=1, le=64, description="static decoder: slices of the vocabulary, logits_0, …")
    mask_value: float = Field(-1e4, lt=0, ge=-1e9, description="window, static decoder: added to scores of masked rows")
    float_counts: bool = Field(False, description="streams: states that count frames are float32 (NPUs without int64)")
    kernel_most: int | None = Field(None, ge=1, description="streams: most taps of a convolution; longer ones split")
