"""A streaming transducer of the second generation's contract, with noise for weights: 6 states per layer, and 2.

What it computes is no Zipformer: every state goes into every row and every row into every state, so that a state handed
over wrongly is heard. Names, shapes, open axes and metadata are those of icefall's export-onnx-streaming.py.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LAYERS, DIMS, HEADS, QUERY, VALUE, KERNELS, LEFT = (1, 2), (16, 24), (2, 2), (4, 4), (3, 3), (5, 3), (8, 4)
FRAMES, SHIFT, ROWS, JOINER, VOCABULARY = 45, 32, 8, 32, 40


class _Graph:
    """Nodes and weights of a graph being written."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._noise = np.random.default_rng(seed)

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        name = f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def noise(self, *shape: int, scale: float = 1.0) -> str:
        return self.constant(self._noise.normal(size=shape) * scale / shape[0] ** 0.5, np.float32)

    def put_out(self, name: str, called: str) -> None:
        self.nodes.append(helper.make_node("Identity", [name], [called], name=f"out_{called}"))

    def save(self, path: Path, inputs: Any, outputs: Any, metadata: dict[str, str]) -> None:
        values = [[helper.make_tensor_value_info(*entry) for entry in entries] for entries in (inputs, outputs)]
        graph = helper.make_graph(self.nodes, path.stem, *values, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model)
        onnx.save(model, path)


def states() -> dict[str, tuple[tuple[Any, ...], int]]:
    """Return the states' shapes, "N" for the batch, and the axis along which the newest comes last."""
    found: dict[str, tuple[tuple[Any, ...], int]] = {}
    layer = 0
    for stack, count in enumerate(LAYERS):
        keys, values = QUERY[stack] * HEADS[stack], VALUE[stack] * HEADS[stack]
        for _ in range(count):
            found |= {
                f"cached_key_{layer}": ((LEFT[stack], "N", keys), 0),
                f"cached_nonlin_attn_{layer}": ((1, "N", LEFT[stack], 3 * DIMS[stack] // 4), 2),
                f"cached_val1_{layer}": ((LEFT[stack], "N", values), 0),
                f"cached_val2_{layer}": ((LEFT[stack], "N", values), 0),
                f"cached_conv1_{layer}": (("N", DIMS[stack], KERNELS[stack] // 2), 2),
                f"cached_conv2_{layer}": (("N", DIMS[stack], KERNELS[stack] // 2), 2),
            }
            layer += 1
    return {**found, "embed_states": (("N", 128, 3, 19), 2)}


def write_encoder(path: Path) -> None:
    """Write the encoder."""
    graph = _Graph(1)
    every_fourth = [graph.constant([value]) for value in (0, 4 * ROWS, 1, 4)]
    rows = graph.add("Slice", graph.add("Add", "x", graph.constant(8.0, np.float32)), *every_fourth)
    rows = graph.add("MatMul", rows, graph.noise(80, JOINER, scale=0.4))
    mean = graph.add("ReduceMean", rows, axes=[1], keepdims=0)  # (N, JOINER)
    heard = []
    for name, (shape, axis) in states().items():
        batch = shape.index("N")
        others = [number for number in range(len(shape)) if number != batch]
        felt = graph.add("ReduceMean", name, axes=others, keepdims=0)  # (N,)
        felt = graph.add("Unsqueeze", felt, graph.constant([1, 2]))
        heard.append(graph.add("Mul", felt, graph.noise(JOINER, scale=3.0)))
        # the newest: a function of this chunk and of the state's own mean
        size = [d for number, d in enumerate(shape) if number not in (batch, axis)]
        new = graph.add("MatMul", mean, graph.noise(JOINER, int(np.prod(size))))
        new = graph.add("Tanh", graph.add("Add", new, graph.add("Squeeze", felt, graph.constant([2]))))
        turned = [1 if number == axis else (-1 if number == batch else d) for number, d in enumerate(shape)]
        if batch:  # (N, …) -> the batch where it belongs
            order = [-1 if number == batch else number for number in range(len(shape))]
            flat = graph.add("Transpose", new, perm=[1, 0])
            new = graph.add("Reshape", flat, graph.constant([d if d != -1 else -1 for d in _behind(shape, axis)]))
            new = graph.add("Transpose", new, perm=_places(order))
        else:
            new = graph.add("Reshape", new, graph.constant(turned))
        older = [graph.constant([value]) for value in (1, 2**31 - 1, axis, 1)]
        graph.put_out(graph.add("Concat", graph.add("Slice", name, *older), new, axis=axis), f"new_{name}")
    length = graph.add("Cast", "processed_lens", to=TensorProto.FLOAT)
    length = graph.add("Reciprocal", graph.add("Add", length, graph.constant(1.0, np.float32)))
    heard.append(graph.add("Unsqueeze", length, graph.constant([1, 2])))
    graph.put_out(graph.add("Add", "processed_lens", graph.constant([SHIFT // 2])), "new_processed_lens")
    for each in heard:
        rows = graph.add("Add", rows, each)
    graph.put_out(graph.add("Tanh", rows), "encoder_out")
    floats = [(name, TensorProto.FLOAT, shape) for name, (shape, _) in states().items()]
    lists = {
        "num_encoder_layers": LAYERS,
        "encoder_dims": DIMS,
        "num_heads": HEADS,
        "query_head_dims": QUERY,
        "value_head_dims": VALUE,
        "cnn_module_kernels": KERNELS,
        "left_context_len": LEFT,
    }
    graph.save(
        path,
        [("x", TensorProto.FLOAT, ("N", FRAMES, 80)), *floats, ("processed_lens", TensorProto.INT64, ("N",))],
        [
            ("encoder_out", TensorProto.FLOAT, ("N", ROWS, JOINER)),
            *((f"new_{name}", *rest) for name, *rest in floats),
            ("new_processed_lens", TensorProto.INT64, ("N",)),
        ],
        {
            "model_type": "zipformer2",
            "version": "1",
            "model_author": "k2-fsa",
            "T": str(FRAMES),
            "decode_chunk_len": str(SHIFT),
            **{name: ",".join(map(str, values)) for name, values in lists.items()},
        },
    )


def _behind(shape: tuple[Any, ...], axis: int) -> list[int]:
    """Return a state's sizes with one step along `axis` and the batch last."""
    return [1 if number == axis else d for number, d in enumerate(shape) if d != "N"] + [-1]


def _places(order: list[int]) -> list[int]:
    """Return the permutation that brings the last axis to where -1 is."""
    places, following = [], 0
    for entry in order:
        if entry == -1:
            places.append(len(order) - 1)
        else:
            places.append(following)
            following += 1
    return places


def write_search(folder: Path) -> None:
    """Write decoder and joiner."""
    graph = _Graph(2)
    zero = graph.constant(0)
    known = graph.add("Unsqueeze", graph.add("GreaterOrEqual", "y", zero), graph.constant([2]))
    known = graph.add("Cast", known, to=TensorProto.FLOAT)
    table = graph.noise(VOCABULARY, JOINER, scale=6.0)
    rows = graph.add("Mul", graph.add("Gather", table, graph.add("Max", "y", zero)), known)
    scaled = graph.add("Mul", rows, graph.constant([[[0.3], [1.0]]], np.float32))
    graph.put_out(graph.add("ReduceMean", scaled, axes=[1], keepdims=0), "decoder_out")
    graph.save(
        folder / "decoder.onnx",
        [("y", TensorProto.INT64, ("N", 2))],
        [("decoder_out", TensorProto.FLOAT, ("N", JOINER))],
        {"context_size": "2", "vocab_size": str(VOCABULARY)},
    )
    graph = _Graph(3)
    both = graph.add("Tanh", graph.add("Add", "encoder_out", "decoder_out"))
    logits = graph.add("MatMul", both, graph.noise(JOINER, VOCABULARY, scale=8.0))
    blank = np.zeros(VOCABULARY)
    blank[0] = 1.0
    graph.put_out(graph.add("Add", logits, graph.constant(blank, np.float32)), "logit")
    graph.save(
        folder / "joiner.onnx",
        [(name, TensorProto.FLOAT, ("N", JOINER)) for name in ("encoder_out", "decoder_out")],
        [("logit", TensorProto.FLOAT, ("N", VOCABULARY))],
        {"joiner_dim": str(JOINER)},
    )


def write_checkpoint(folder: Path) -> Path:
    """Write a folder as sherpa-onnx ships one."""
    folder.mkdir(parents=True, exist_ok=True)
    write_encoder(folder / "encoder-epoch-1.onnx")
    write_search(folder)
    symbols = ["<blk>", "<sos/eos>", "<unk>", *(f"▁w{number}" for number in range(3, VOCABULARY))]
    (folder / "tokens.txt").write_text("".join(f"{s} {n}\n" for n, s in enumerate(symbols)), encoding="utf-8")
    return folder
