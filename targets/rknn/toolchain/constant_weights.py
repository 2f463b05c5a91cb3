"""Pass weights to the simulator's one-op sessions once instead of at every run.

rknn-toolkit2 2.5.0 simulates op by op. Each op is an onnxruntime session that gets its weights as an input at every
run, and onnxruntime packs them again each time: 100 of the 140 ms of a decoder step of tiny.en are the vocabulary head.
Weights that are initializers are packed once. The order of additions changes, which is one float16 step at most.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

MINIMUM_BYTES = 2**16  # below, packing costs less than it saves


@contextmanager
def constant_weights(weights: Collection[str]) -> Iterator[None]:
    """Make onnxruntime sessions that are opened inside keep the named tensors after their first run."""
    import onnxruntime

    original = onnxruntime.InferenceSession  # type: ignore[attr-defined]

    class Session:
        """An InferenceSession that takes each weight once."""

        def __init__(self, model: Any, *arguments: Any, **settings: Any) -> None:
            self._open: Callable[[Any], Any] = lambda graph: original(graph, *arguments, **settings)
            self._session = self._open(model)
            self._first_model = model if isinstance(model, bytes) else None
            self._constants: set[str] = set()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._session, name)

        def run(self, outputs: Any, feed: Mapping[str, Any], *arguments: Any) -> Any:
            if self._first_model is not None:
                large = {n: a for n, a in feed.items() if n in weights and np.asarray(a).nbytes >= MINIMUM_BYTES}
                if large:
                    self._session = self._open(with_initializers(self._first_model, large))
                self._first_model, self._constants = None, set(large)
            varying = {name: array for name, array in feed.items() if name not in self._constants}
            return self._session.run(outputs, varying, *arguments)

    onnxruntime.InferenceSession = Session  # type: ignore[attr-defined, assignment]
    try:
        yield
    finally:
        onnxruntime.InferenceSession = original  # type: ignore[attr-defined]


def with_initializers(model: bytes, arrays: Mapping[str, Any]) -> bytes:
    """Turn inputs of a serialized graph into initializers."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(model)
    inputs = [value for value in graph.graph.input if value.name not in arrays]
    del graph.graph.input[:]
    graph.graph.input.extend(inputs)
    graph.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items())
    return bytes(graph.SerializeToString())
