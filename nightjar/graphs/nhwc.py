"""Tensors of a graph as NPUs hold them, channels last; numpy only.

A graph's (1, c, h, w) is (1, h, w, c) there, and its rows (1, n, d), (n, d) or (d) are (1, 1, n, d), d being channels.
What a compiler does not compute is left to the host as moves: `["reshape", shape]`, `["transpose", order]`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LayoutStep = Sequence[Any]


def nhwc_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape that a tensor of the graph has with its channels last; four dimensions at most."""
    if len(shape) == 4:
        n, c, h, w = shape
        return (n, h, w, c)
    return (*(1,) * (4 - len(shape)), *shape)


def to_nhwc(array: NDArray[Any]) -> NDArray[np.float32]:
    """Lay a tensor out with its channels last, contiguous float32."""
    laid = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array.reshape(nhwc_shape(array.shape))
    return np.ascontiguousarray(laid, np.float32)


def from_nhwc(array: NDArray[Any], shape: Sequence[int], moves: Sequence[LayoutStep] = ()) -> NDArray[Any]:
    """Lay a tensor out as the graph has it, then make the moves; ValueError where it does not have as many elements.

    array: with or without the batch, as runtimes give it; shape: the graph's, of what the NPU puts out.
    """
    found = np.asarray(array)
    if found.size != int(np.prod(shape)):
        raise ValueError(f"{found.shape} where the graph has {tuple(shape)}")
    laid = found.reshape(nhwc_shape(shape))
    moved = laid.transpose(0, 3, 1, 2) if len(shape) == 4 else laid.reshape(shape)
    for kind, how in moves:
        moved = moved.reshape(how) if kind == "reshape" else moved.transpose(how)
    return moved
