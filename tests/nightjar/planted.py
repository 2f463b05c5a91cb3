"""A small encoder and decoder with planted sensitivities, and calibration samples for them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nightjar.graphs.tensor_spec import TensorSpec
from nightjar.quantization.calibration_set import CalibrationSet, CalibrationWriter

T, D, H, VOCAB = 24, 16, 128, 256
HUGE = 7  # the hidden neuron that reaches far beyond the others


class Writer:
    """Collect nodes and weights of one graph."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.rng = np.random.default_rng(seed)

    def const(self, name: str, value: Any) -> str:
        """Store a weight."""
        self.weights.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def op(self, op: str, inputs: list[str], out: str, **attributes: Any) -> str:
        """Add a node that is named as its output."""
        self.nodes.append(helper.make_node(op, inputs, [out], name=out, **attributes))
        return out

    def linear(self, x: str, name: str, shape: tuple[int, int], weight: Any = None, bias: Any = None) -> str:
        """Add MatMul and bias."""
        values = self.rng.normal(0, shape[0] ** -0.5, shape) if weight is None else weight
        product = self.op("MatMul", [x, self.const(f"{name}.w", values)], f"{name}.product")
        return self.op("Add", [self.const(f"{name}.b", np.zeros(shape[1]) if bias is None else bias), product], name)

    def norm(self, x: str, name: str) -> str:
        """Add a LayerNormalization with uneven channels."""
        gain = self.const(f"{name}.g", self.rng.uniform(0.2, 3, D))
        return self.op("LayerNormalization", [x, gain, self.const(f"{name}.s", self.rng.normal(0, 0.2, D))], name)

    def gelu(self, x: str, name: str) -> str:
        """Add the five nodes that torch exports."""
        self.op("Div", [x, self.const(f"{name}.c2", 2**0.5)], f"{name}.div")
        self.op("Erf", [f"{name}.div"], f"{name}.erf")
        self.op("Add", [f"{name}.erf", self.const(f"{name}.c1", 1)], f"{name}.one")
        self.op("Mul", [x, f"{name}.one"], f"{name}.mul")
        return self.op("Mul", [f"{name}.mul", self.const(f"{name}.ch", 0.5)], name)

    def heads(self, x: str, name: str, order: list[int]) -> str:
        """Split into two heads and move axes."""
        shape = numpy_helper.from_array(np.array([1, -1, 2, D // 2], np.int64), f"{name}.shape")
        self.weights.append(shape)
        return self.op("Transpose", [self.op("Reshape", [x, f"{name}.shape"], f"{name}.split")], name, perm=order)

    def model(self, inputs: dict[str, tuple[int, ...]], outputs: dict[str, tuple[int, ...]]) -> Any:
        """Close the graph."""
        values = [
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in group.items()]
            for group in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, "planted", *values, initializer=self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model


def encoder(outlier: float = 1.0, loud: float = 1.0) -> Any:
    """x (1, T, D) → attention → feed-forward → hidden (1, T, D).

    The neuron HUGE is `outlier` times the others, and what it adds to the residual `loud` times.
    """
    w = Writer(0)
    y = w.norm("x", "ln1")
    q = w.heads(w.linear(y, "query", (D, D)), "q", [0, 2, 1, 3])
    k = w.heads(w.linear(y, "key", (D, D)), "k", [0, 2, 3, 1])
    v = w.heads(w.linear(y, "value", (D, D)), "v", [0, 2, 1, 3])
    w.op("Softmax", [w.op("MatMul", [q, k], "scores")], "weights", axis=-1)
    w.op("Transpose", [w.op("MatMul", ["weights", v], "mixed")], "back", perm=[0, 2, 1, 3])
    w.weights.append(numpy_helper.from_array(np.array([1, -1, D], np.int64), "flat"))
    out = w.linear(w.op("Reshape", ["back", "flat"], "joined"), "out", (D, D))
    x = w.op("Add", ["x", out], "res1")
    first, second = w.rng.normal(0, D**-0.5, (D, H)), w.rng.normal(0, H**-0.5, (H, D))
    first[:, HUGE] *= outlier
    second[HUGE] *= loud
    hidden = w.gelu(w.linear(w.norm(x, "ln2"), "fc1", (D, H), first), "gelu")
    x = w.op("Add", [x, w.linear(hidden, "fc2", (H, D), second)], "res2")
    w.norm(x, "hidden")
    return w.model({"x": (1, T, D)}, {"hidden": (1, T, D)})


def decoder() -> Any:
    """audio (1, T, D), pick (1, 1, T) → logits (1, 1, VOCAB)."""
    w = Writer(1)
    x = w.op("MatMul", ["pick", "audio"], "picked")
    x = w.linear(w.norm(x, "ln"), "dense", (D, D))
    w.linear(x, "logits", (D, VOCAB), w.rng.normal(0, 1, (D, VOCAB)))
    return w.model({"audio": (1, T, D), "pick": (1, 1, T)}, {"logits": (1, 1, VOCAB)})


def calibration(folder: Path, models: dict[str, Any], clips: int = 4, steps: int = 3) -> CalibrationSet:
    """Write samples whose file names carry the clip's number, as models/whisper/calibrate.py does."""
    parts = {
        part: [
            TensorSpec(name=v.name, shape=tuple(d.dim_value for d in v.type.tensor_type.shape.dim), dtype="float32")
            for v in model.graph.input
        ]
        for part, model in models.items()
    }
    writer = CalibrationWriter(folder, parts)
    rng = np.random.default_rng(2)
    for clip in range(clips):
        x = rng.normal(0, 1, (1, T, D)).astype(np.float32)
        writer.add("encoder", {"x": writer.store("encoder", "x", f"x_{clip:06d}.npy", x)})
        audio = writer.store("decoder", "audio", f"audio_{clip:06d}.npy", x)
        for step in range(steps):
            pick = np.zeros((1, 1, T), np.float32)
            pick[..., (5 * step + clip) % T] = 1
            file = f"pick_{writer.count('decoder'):06d}.npy"
            writer.add("decoder", {"audio": audio, "pick": writer.store("decoder", "pick", file, pick)})
    writer.close({})
    return CalibrationSet.open(folder)
