"""Read a .tflite file: its operators, tensors and weights; numpy only, nothing of TensorFlow's.

The format is FlatBuffers (tensorflow/compiler/mlir/lite/schema/schema.fbs, version 3): a table is an offset to a table
of offsets, a vector a count and its items. Only the fields that are asked for here are read.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nightjar.errors import Broken

MAGIC = b"TFL3"
DTYPES = {0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16", 9: "int8", 17: "int4"}
READABLE = {"float32", "float16", "int32", "uint8", "int64", "bool", "int16", "int8"}

# enum BuiltinOperator, in its order.
_OPERATORS = """
ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE EMBEDDING_LOOKUP FLOOR
FULLY_CONNECTED HASHTABLE_LOOKUP L2_NORMALIZATION L2_POOL_2D LOCAL_RESPONSE_NORMALIZATION LOGISTIC LSH_PROJECTION
LSTM MAX_POOL_2D MUL RELU RELU_N1_TO_1 RELU6 RESHAPE RESIZE_BILINEAR RNN SOFTMAX SPACE_TO_DEPTH SVDF TANH
CONCAT_EMBEDDINGS SKIP_GRAM CALL CUSTOM EMBEDDING_LOOKUP_SPARSE PAD UNIDIRECTIONAL_SEQUENCE_RNN GATHER
BATCH_TO_SPACE_ND SPACE_TO_BATCH_ND TRANSPOSE MEAN SUB DIV SQUEEZE UNIDIRECTIONAL_SEQUENCE_LSTM STRIDED_SLICE
BIDIRECTIONAL_SEQUENCE_RNN EXP TOPK_V2 SPLIT LOG_SOFTMAX DELEGATE BIDIRECTIONAL_SEQUENCE_LSTM CAST PRELU MAXIMUM
ARG_MAX MINIMUM LESS NEG PADV2 GREATER GREATER_EQUAL LESS_EQUAL SELECT SLICE SIN TRANSPOSE_CONV SPARSE_TO_DENSE TILE
EXPAND_DIMS EQUAL NOT_EQUAL LOG SUM SQRT RSQRT SHAPE POW ARG_MIN FAKE_QUANT REDUCE_PROD REDUCE_MAX PACK LOGICAL_OR
ONE_HOT LOGICAL_AND LOGICAL_NOT UNPACK REDUCE_MIN FLOOR_DIV REDUCE_ANY SQUARE ZEROS_LIKE FILL FLOOR_MOD RANGE
RESIZE_NEAREST_NEIGHBOR LEAKY_RELU SQUARED_DIFFERENCE MIRROR_PAD ABS SPLIT_V UNIQUE CEIL REVERSE_V2 ADD_N GATHER_ND
COS WHERE RANK ELU REVERSE_SEQUENCE MATRIX_DIAG QUANTIZE MATRIX_SET_DIAG ROUND HARD_SWISH IF WHILE
NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 SCATTER_ND SELECT_V2 DENSIFY SEGMENT_SUM BATCH_MATMUL
PLACEHOLDER_FOR_GREATER_OP_CODES CUMSUM CALL_ONCE BROADCAST_TO RFFT2D CONV_3D IMAG REAL COMPLEX_ABS HASHTABLE
HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_SIZE REDUCE_ALL CONV_3D_TRANSPOSE VAR_HANDLE READ_VARIABLE ASSIGN_VARIABLE
BROADCAST_ARGS RANDOM_STANDARD_NORMAL BUCKETIZE RANDOM_UNIFORM MULTINOMIAL GELU DYNAMIC_UPDATE_SLICE RELU_0_TO_1
UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_SUM ATAN2 UNSORTED_SEGMENT_MIN SIGN BITCAST BITWISE_XOR
RIGHT_SHIFT STABLEHLO_LOGISTIC STABLEHLO_ADD STABLEHLO_DIVIDE STABLEHLO_MULTIPLY STABLEHLO_MAXIMUM STABLEHLO_RESHAPE
STABLEHLO_CLAMP STABLEHLO_CONCATENATE STABLEHLO_BROADCAST_IN_DIM STABLEHLO_CONVOLUTION STABLEHLO_SLICE
STABLEHLO_CUSTOM_CALL STABLEHLO_REDUCE STABLEHLO_ABS STABLEHLO_AND STABLEHLO_COSINE STABLEHLO_EXPONENTIAL
STABLEHLO_FLOOR STABLEHLO_LOG STABLEHLO_MINIMUM STABLEHLO_NEGATE STABLEHLO_OR STABLEHLO_POWER STABLEHLO_REMAINDER
STABLEHLO_RSQRT STABLEHLO_SELECT STABLEHLO_SUBTRACT STABLEHLO_TANH STABLEHLO_SCATTER STABLEHLO_COMPARE
STABLEHLO_CONVERT STABLEHLO_DYNAMIC_SLICE STABLEHLO_DYNAMIC_UPDATE_SLICE STABLEHLO_PAD STABLEHLO_IOTA
STABLEHLO_DOT_GENERAL STABLEHLO_REDUCE_WINDOW STABLEHLO_SORT STABLEHLO_WHILE STABLEHLO_GATHER STABLEHLO_TRANSPOSE
DILATE STABLEHLO_RNG_BIT_GENERATOR REDUCE_WINDOW STABLEHLO_COMPOSITE STABLEHLO_SHIFT_LEFT STABLEHLO_CBRT
STABLEHLO_CASE
"""
OPERATORS = tuple(_OPERATORS.split())


class Tensor(NamedTuple):
    """One tensor: `buffer` is where its constant values lie, None for an activation."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    buffer: tuple[int, int] | None  # offset and length in the file
    scale: float | None  # of the first channel, None for a float tensor


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
    subgraphs: int
    data: bytes

    def constant(self, number: int) -> np.ndarray | None:
        """Return a tensor's stored values, None for an activation and for types that numpy has not."""
        tensor = self.tensors[number]
        if tensor.buffer is None or tensor.dtype not in READABLE:
            return None
        start, length = tensor.buffer
        values = np.frombuffer(self.data, np.dtype(tensor.dtype), length // np.dtype(tensor.dtype).itemsize, start)
        return values.reshape(tensor.shape)


def read(path: Path) -> Model:
    """Read a file; raises Broken for one that is no .tflite."""
    data = path.read_bytes()
    if data[4:8] != MAGIC:
        raise Broken(f"{path} is no .tflite file: run the same command with --refresh build")
    try:
        return _read(data)
    except (struct.error, IndexError, UnicodeDecodeError, ValueError) as error:
        raise Broken(f"{path} is damaged ({error}): run the same command with --refresh build") from error


class _Table:
    """A FlatBuffers table at a place in the file."""

    def __init__(self, data: bytes, place: int) -> None:
        self.data, self.place = data, place
        vtable = place - _number("<i", data, place)
        self.fields = struct.unpack_from(f"<{(_number('<H', data, vtable) - 4) // 2}H", data, vtable + 4)

    def at(self, field: int) -> int | None:
        """Return where a field lies, None where it is left out."""
        offset = self.fields[field] if field < len(self.fields) else 0
        return self.place + offset if offset else None

    def scalar(self, field: int, kind: str, default: int = 0) -> int:
        place = self.at(field)
        return default if place is None else _number(kind, self.data, place)

    def vector(self, field: int) -> tuple[int, int]:
        """Return where a vector's items begin, and how many there are."""
        place = self.at(field)
        if place is None:
            return 0, 0
        place += _number("<I", self.data, place)
        return place + 4, _number("<I", self.data, place)

    def numbers(self, field: int, kind: str) -> tuple[int, ...]:
        start, count = self.vector(field)
        return struct.unpack_from(f"<{count}{kind}", self.data, start) if count else ()

    def text(self, field: int) -> str:
        start, count = self.vector(field)
        return self.data[start : start + count].decode()

    def tables(self, field: int) -> Iterator["_Table"]:
        start, count = self.vector(field)
        for place in range(start, start + 4 * count, 4):
            yield _Table(self.data, place + _number("<I", self.data, place))

    def table(self, field: int) -> "_Table | None":
        place = self.at(field)
        return None if place is None else _Table(self.data, place + _number("<I", self.data, place))


def _number(kind: str, data: bytes, place: int) -> int:
    found: int = struct.unpack_from(kind, data, place)[0]
    return found


def _read(data: bytes) -> Model:
    model = _Table(data, _number("<I", data, 0))
    codes = [_code(table) for table in model.tables(1)]
    buffers = [_buffer(table) for table in model.tables(4)]
    subgraphs = list(model.tables(2))
    graph = subgraphs[0]
    tensors = tuple(_tensor(table, buffers) for table in graph.tables(0))
    ops = tuple(Op(codes[op.scalar(0, "<I")], op.numbers(1, "i"), op.numbers(2, "i")) for op in graph.tables(3))
    return Model(ops, tensors, graph.numbers(1, "i"), graph.numbers(2, "i"), len(subgraphs), data)


def _code(table: _Table) -> str:
    """Name an operator: a custom one by its own name, any other by its number (an old field holds those below 127)."""
    number = max(table.scalar(0, "<b"), table.scalar(3, "<i"))
    name = OPERATORS[number] if number < len(OPERATORS) else f"BUILTIN_{number}"
    return (table.text(1) or name) if name == "CUSTOM" else name


def _buffer(table: _Table) -> tuple[int, int] | None:
    start, length = table.vector(0)
    if length:
        return start, length
    offset, size = table.scalar(1, "<Q"), table.scalar(2, "<Q")  # behind the FlatBuffer, beyond 2 GB
    return (offset, size) if offset > 1 else None


def _tensor(table: _Table, buffers: list[tuple[int, int] | None]) -> Tensor:
    quantization = table.table(4)
    start, count = quantization.vector(2) if quantization is not None else (0, 0)
    scale = struct.unpack_from("<f", table.data, start)[0] if count else None
    kind = table.scalar(1, "<b")
    dtype = DTYPES.get(kind, f"type {kind}")
    return Tensor(table.text(3), table.numbers(0, "i"), dtype, buffers[table.scalar(2, "<I")], scale)
