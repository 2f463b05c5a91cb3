"""Convert tensors between a graph's layout and the channels-last layout of NPUs; numpy only.

(1, c, h, w) becomes (1, h, w, c); rows (1, n, d), (n, d) or (d) become (1, 1, n, d), d being channels.
What a compiler does not compute is left to the host as steps: `["reshape", shape]`, `["transpose", order]`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LayoutStep = Sequence[Any]


def nhwc_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a tensor's channels-last shape; `shape` has four dimensions at most."""
    if len(shape) == 4:
        n, c, h, w = shape
        return (n, h, w, c)
    return (*(1,) * (4 - len(shape)), *shape)


def to_nhwc(array: NDArray[Any]) -> NDArray[np.float32]:
    """Return a tensor channels last, contiguous float32."""
    nhwc = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array.reshape(nhwc_shape(array.shape))
    return np.ascontiguousarray(nhwc, np.float32)


def from_nhwc(array: NDArray[Any], shape: Sequence[int], steps: Sequence[LayoutStep] = ()) -> NDArray[Any]:
    """Return a tensor in the graph's layout, then apply the steps; ValueError for another number of elements.

    array: channels last, with or without the batch; shape: the graph's shape of the NPU's output.
    """
    array = np.asarray(array)
    if array.size != int(np.prod(shape)):
        raise ValueError(f"{array.shape} where the graph has {tuple(shape)}")
    array = array.reshape(nhwc_shape(shape))
    array = array.transpose(0, 3, 1, 2) if len(shape) == 4 else array.reshape(shape)
    for kind, argument in steps:
        array = array.reshape(argument) if kind == "reshape" else array.transpose(argument)
    return array
