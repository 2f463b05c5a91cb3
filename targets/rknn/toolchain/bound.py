"""Let the simulator's one-op sessions hold their weights.

rknn-toolkit2 2.5.0 simulates op by op, each an onnxruntime session of its own that is fed its weights as an input at
every run, and onnxruntime packs them anew each time: 100 of the 140 ms of a decoder step of tiny.en are the head's.
As initializers they are packed once; the sums run in another order, which is a step of float16 at most.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

WORTH_BYTES = 2**16  # below, packing costs less than it saves


@contextmanager
def binding(weights: Collection[str]) -> Iterator[None]:
    """Make the onnxruntime sessions opened inside take the tensors named as constants, once they have seen them."""
    import onnxruntime

    plain = onnxruntime.InferenceSession  # type: ignore[attr-defined]

    class Bound:
        """An InferenceSession that is fed each weight once."""

        def __init__(self, model: Any, *arguments: Any, **settings: Any) -> None:
            self._model, self._arguments, self._settings = model, arguments, settings
            self._session = plain(model, *arguments, **settings)
            self._held: set[str] = set()
            self._looked = not isinstance(model, bytes)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._session, name)

        def run(self, outputs: Any, feed: Mapping[str, Any], *arguments: Any) -> Any:
            if not self._looked:
                self._looked = True
                found = {n: a for n, a in feed.items() if n in weights and np.asarray(a).nbytes >= WORTH_BYTES}
                if found:
                    held = with_initializers(self._model, found)
                    self._session = plain(held, *self._arguments, **self._settings)
                    self._held = set(found)
            given = {name: array for name, array in feed.items() if name not in self._held}
            return self._session.run(outputs, given, *arguments)

    onnxruntime.InferenceSession = Bound  # type: ignore[attr-defined, assignment]
    try:
        yield
    finally:
        onnxruntime.InferenceSession = plain  # type: ignore[attr-defined]


def with_initializers(model: bytes, arrays: Mapping[str, Any]) -> bytes:
    """Turn inputs of a graph into initializers."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(model)
    kept = [value for value in graph.graph.input if value.name not in arrays]
    del graph.graph.input[:]
    graph.graph.input.extend(kept)
    graph.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items())
    content: bytes = graph.SerializeToString()
    return content
