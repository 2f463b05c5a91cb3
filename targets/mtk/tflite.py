"""Read a .tflite file: its operators, tensors and weights, without TensorFlow."""

import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tflite as schema

from nightjar.errors import Broken

NUMPY_TYPES = ("float32", "float16", "int32", "uint8", "int64", "bool", "int16", "int8")


OPERATORS, TENSOR_TYPES = (
    {number: name for name, number in vars(enum).items() if isinstance(number, int)}
    for enum in (schema.BuiltinOperator, schema.TensorType)
)


class Tensor(NamedTuple):
    """One tensor; `data` has the bytes of a constant and is None for an activation."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: np.ndarray | None


class Op(NamedTuple):
    """One operator by name, and the numbers of the tensors it reads (-1 for none) and writes."""

    op: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Model(NamedTuple):
    """The first subgraph of a file."""

    ops: tuple[Op, ...]
    tensors: tuple[Tensor, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def constant(self, number: int) -> np.ndarray | None:
        """Return a tensor's constant values, None for an activation and for types that numpy lacks."""
        tensor = self.tensors[number]
        if tensor.data is None or tensor.dtype not in NUMPY_TYPES:
            return None
        dtype = np.dtype(tensor.dtype)
        whole = tensor.data.size // dtype.itemsize * dtype.itemsize
        return tensor.data[:whole].view(dtype).reshape(tensor.shape)


def read(path: Path) -> Model:
    """Read a file; raises Broken for one that is not a .tflite file."""
    data = path.read_bytes()
    if data[4:8] != b"TFL3":
        raise Broken(f"{path} is no .tflite file: run the same command with --refresh build")
    try:
        return _read(data)
    except (struct.error, IndexError, AttributeError, TypeError, UnicodeDecodeError, ValueError) as error:
        raise Broken(f"{path} is damaged ({error}): run the same command with --refresh build") from error


def _read(data: bytes) -> Model:
    model = schema.Model.GetRootAs(data)
    graph = model.Subgraphs(0)
    codes = [_op_name(model.OperatorCodes(i)) for i in range(model.OperatorCodesLength())]
    tensors = [graph.Tensors(i) for i in range(graph.TensorsLength())]
    ops = [graph.Operators(i) for i in range(graph.OperatorsLength())]
    return Model(
        tuple(Op(codes[op.OpcodeIndex()], _numbers(op.InputsAsNumpy()), _numbers(op.OutputsAsNumpy())) for op in ops),
        tuple(_tensor(tensor, _constant(model.Buffers(tensor.Buffer()), data)) for tensor in tensors),
        _numbers(graph.InputsAsNumpy()),
        _numbers(graph.OutputsAsNumpy()),
    )


def _numbers(vector: Any) -> tuple[int, ...]:
    """Return a vector as integers; a vector that is left out is read as 0."""
    return tuple(map(int, vector)) if isinstance(vector, np.ndarray) else ()


def _op_name(code: Any) -> str:
    """Return an operator's name: a custom one has its own, and an old field has the numbers below 127."""
    number = max(code.DeprecatedBuiltinCode(), code.BuiltinCode())
    name = OPERATORS.get(number, f"BUILTIN_{number}")
    return str(code.CustomCode().decode()) if name == "CUSTOM" and code.CustomCode() else name


def _constant(buffer: Any, data: bytes) -> np.ndarray | None:
    if buffer.DataLength():
        return np.asarray(buffer.DataAsNumpy())
    start, size = buffer.Offset(), buffer.Size()  # in a file beyond 2 GB, behind the FlatBuffer
    return np.frombuffer(data, np.uint8, size, start) if start > 1 else None


def _tensor(tensor: Any, data: np.ndarray | None) -> Tensor:
    dtype = TENSOR_TYPES.get(tensor.Type(), f"type {tensor.Type()}").lower()
    return Tensor((tensor.Name() or b"").decode(), _numbers(tensor.ShapeAsNumpy()), dtype, data)
