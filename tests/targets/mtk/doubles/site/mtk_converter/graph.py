"""The double's converter: TorchScript, run operator by operator, becomes a .tflite that a reader can take apart."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import flatbuffers
import numpy as np
import torch

BUILTIN = {
    **{
        "linear": "FULLY_CONNECTED",
        "matmul": "BATCH_MATMUL",
        "softmax": "SOFTMAX",
        "add": "ADD",
        "mul": "MUL",
        "sub": "SUB",
    },
    **{
        "permute": "TRANSPOSE",
        "transpose": "TRANSPOSE",
        "reshape": "RESHAPE",
        "view": "RESHAPE",
        "cat": "CONCATENATION",
    },
    **{"convolution": "CONV_2D", "conv1d": "CONV_2D", "_convolution": "CONV_2D", "embedding": "GATHER", "relu": "RELU"},
    **{"layer_norm": "MEAN", "gelu": "GELU"},
}
OWN = {"layer_norm": "MTKEXT_LAYER_NORMALIZATION", "gelu": "MTKEXT_GELU"}
TYPES = {"float32": 0, "int32": 2, "int64": 4, "int16": 7, "int8": 9}
QUIET = ("to", "contiguous", "detach", "Int", "size", "NumToTensor")


class Quantizer(NamedTuple):
    """What an activation becomes, and the precision file that is written."""

    usual: str
    chosen: Mapping[str, str] = MappingProxyType({})
    writes: tuple[str, str] | None = None
    foreign: bool = False


def split(content: bytes, mark: bytes) -> tuple[bytes, bytes]:
    before, _, after = content.rpartition(mark)
    return before, after if before else b""


def convert(module: Any, inputs: list[torch.Tensor], own: bool, quantizer: Quantizer | None) -> bytes:
    frozen = torch.jit.freeze(module.eval())
    graph = frozen.graph
    torch._C._jit_pass_inline(graph)
    values: dict[str, Any] = {}
    tensors: list[tuple[str, tuple[int, ...], str, bytes]] = []
    number_of: dict[str, int] = {}
    ops: list[tuple[str, list[int], list[int]]] = []

    def tensor(name: str, value: torch.Tensor, constant: bool) -> int:
        if name not in number_of:
            number_of[name] = len(tensors)
            data = value.detach().contiguous().numpy()
            data = data.astype(np.int32) if data.dtype == np.int64 else data
            tensors.append((name, tuple(data.shape), str(data.dtype), data.tobytes() if constant else b""))
        return number_of[name]

    graph_inputs = list(graph.inputs())[1:]
    for value, given in zip(graph_inputs, inputs, strict=True):
        values[value.debugName()] = given
    entries = [tensor(value.debugName(), values[value.debugName()], False) for value in graph_inputs]
    with torch.no_grad():
        for node in graph.nodes():
            kind = node.kind()
            if kind == "prim::Constant":
                out = next(node.outputs())
                values[out.debugName()] = out.toIValue()
                continue
            given = [values[value.debugName()] for value in node.inputs()]
            if kind in ("prim::ListConstruct", "prim::TupleConstruct"):
                made: Any = list(given)
            elif kind == "prim::ListUnpack":
                for value, each in zip(node.outputs(), given[0], strict=True):
                    values[value.debugName()] = each
                continue
            elif kind == "prim::NumToTensor":
                made = torch.tensor(given[0])
            else:
                made = _called(node, given)
            out = next(node.outputs())
            values[out.debugName()] = made
            if (
                kind.startswith("aten::")
                and isinstance(made, torch.Tensor)
                and kind.removeprefix("aten::") not in QUIET
            ):
                name = kind.removeprefix("aten::")
                code = OWN.get(name, "") if own else ""
                code = code or BUILTIN[name]
                reads = []
                for value, each in zip(node.inputs(), given, strict=True):
                    flat = each if isinstance(each, list) else [each]
                    for i, one in enumerate(flat):
                        if isinstance(one, torch.Tensor) and one.ndim:
                            label = (
                                value.debugName()
                                if not isinstance(each, list)
                                else list(value.node().inputs())[i].debugName()
                            )
                            reads.append(tensor(label, one, label not in number_of and _is_constant(value, i, each)))
                ops.append((code, reads, [tensor(out.debugName(), made, False)]))
    results = [value for value in graph.outputs()]
    if results[0].node().kind() == "prim::TupleConstruct":
        results = list(results[0].node().inputs())
    exits = [number_of[value.debugName()] for value in results]
    if quantizer is not None:
        tensors, ops, entries, exits = _quantized(tensors, ops, entries, exits, quantizer)
    return write(tensors, ops, entries, exits)


def _called(node: Any, given: list[Any]) -> Any:
    """Run one aten operator as its schema wants it."""
    schema = torch._C.parse_schema(node.schema())
    packet = getattr(torch.ops.aten, schema.name.removeprefix("aten::"))
    named = {a.name: v for a, v in zip(schema.arguments, given, strict=True) if a.kwarg_only}
    plain = [v for a, v in zip(schema.arguments, given, strict=True) if not a.kwarg_only]
    return getattr(packet, schema.overload_name or "default")(*plain, **named)


def _is_constant(value: Any, number: int, each: Any) -> bool:
    source = list(value.node().inputs())[number] if isinstance(each, list) else value
    return bool(source.node().kind() == "prim::Constant")


def _quantized(tensors: Any, ops: Any, entries: Any, exits: Any, quantizer: Quantizer) -> Any:
    """Give activations and weights their integers, with a QUANTIZE at each input and a DEQUANTIZE at each output."""
    constants = {i for i, entry in enumerate(tensors) if entry[3]}
    acts = [entry[0] for i, entry in enumerate(tensors) if i not in constants and entry[2] == "float32"]
    weights = [tensors[i][0] for i in constants]
    if quantizer.writes:
        file, name = quantizer.writes
        said = [f"other.{n}" for n in acts] if quantizer.foreign else acts
        spec = {
            "act_names": said,
            "wgt_names": [] if quantizer.foreign else weights,
            "param_names": [],
            "precision_name": name,
        }
        Path(file).write_text(json.dumps({"precision_specs": [spec]}))
    kinds = {name: quantizer.chosen.get(name, quantizer.usual) for name in acts}
    if quantizer.chosen and (missing := set(acts) - quantizer.chosen.keys()):
        raise ValueError(f"the precision file has nothing of {sorted(missing)[:3]}")
    new = []
    for i, (name, shape, dtype, data) in enumerate(tensors):
        if i in constants and dtype == "float32":
            values = np.frombuffer(data, np.float32)
            step = max(float(np.abs(values).max()), 1e-9) / 127
            new.append((name, shape, "int8", np.round(values / step).astype(np.int8).tobytes()))
        else:
            new.append((name, shape, kinds.get(name, dtype), data))
    before, after = [], []
    ins, outs = [], []
    for i in entries:
        new.append((f"{tensors[i][0]}_float", tensors[i][1], tensors[i][2], b""))
        before.append(("QUANTIZE", [len(new) - 1], [i]))
        ins.append(len(new) - 1)
    for i in exits:
        new.append((f"{tensors[i][0]}_float", tensors[i][1], "float32", b""))
        after.append(("DEQUANTIZE", [i], [len(new) - 1]))
        outs.append(len(new) - 1)
    return new, [*before, *ops, *after], ins, outs


def write(tensors: Any, ops: Any, entries: list[int], exits: list[int]) -> bytes:
    """Write a .tflite: FlatBuffers from the innermost table outwards (schema.fbs, version 3)."""
    from targets.mtk.tflite import OPERATORS

    number_of = {name: number for number, name in OPERATORS.items()}

    made = flatbuffers.Builder(1 << 20)

    def ints(values: Any) -> Any:
        return made.CreateNumpyVector(np.asarray(values, np.int32))

    def offsets(values: Any) -> Any:
        made.StartVector(4, len(values), 4)
        for value in reversed(values):
            made.PrependUOffsetTRelative(value)
        return made.EndVector()

    names = list(dict.fromkeys(op for op, _, _ in ops))
    buffers = [b""]
    tables = []
    for name, shape, dtype, data in tensors:
        place = 0
        if data:
            place = len(buffers)
            buffers.append(data)
        label, dims = made.CreateString(name), ints(shape)
        made.StartObject(4)
        made.PrependUOffsetTRelativeSlot(0, dims, 0)
        made.PrependInt8Slot(1, TYPES[dtype], 0)
        made.PrependUint32Slot(2, place, 0)
        made.PrependUOffsetTRelativeSlot(3, label, 0)
        tables.append(made.EndObject())
    steps = []
    for op, reads, writes in ops:
        ins, outs = ints(reads), ints(writes)
        made.StartObject(3)
        made.PrependUint32Slot(0, names.index(op), 0)
        made.PrependUOffsetTRelativeSlot(1, ins, 0)
        made.PrependUOffsetTRelativeSlot(2, outs, 0)
        steps.append(made.EndObject())
    tables, steps, ins, outs = offsets(tables), offsets(steps), ints(entries), ints(exits)
    made.StartObject(4)
    for slot, value in enumerate((tables, ins, outs, steps)):
        made.PrependUOffsetTRelativeSlot(slot, value, 0)
    subgraphs = offsets([made.EndObject()])
    codes = []
    for name in names:
        own = made.CreateString(name) if name.startswith("MTKEXT") else None
        number = number_of["CUSTOM" if own else name]
        made.StartObject(4)
        made.PrependInt8Slot(0, min(number, 127), 0)
        if own:
            made.PrependUOffsetTRelativeSlot(1, own, 0)
        made.PrependInt32Slot(3, number, 0)
        codes.append(made.EndObject())
    codes = offsets(codes)
    stored = []
    for data in buffers:
        vector = made.CreateByteVector(data) if data else None
        made.StartObject(1)
        if vector is not None:
            made.PrependUOffsetTRelativeSlot(0, vector, 0)
        stored.append(made.EndObject())
    stored = offsets(stored)
    made.StartObject(5)
    made.PrependUint32Slot(0, 3, 0)
    for slot, value in ((1, codes), (2, subgraphs), (4, stored)):
        made.PrependUOffsetTRelativeSlot(slot, value, 0)
    made.Finish(made.EndObject(), file_identifier=b"TFL3")
    return bytes(made.Output())


if __name__ == "__main__":
    sys.exit("imported, not run")
