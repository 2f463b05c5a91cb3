"""Open ONNX graphs with onnxruntime on the host's CPU; onnxruntime is imported when used."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nightjar.graphs.onnx_file import external_tensors, tensor_values

Tensors = dict[str, np.ndarray]
PartFunction = Callable[[Tensors], Tensors]  # a part's inputs by name -> its outputs by name (the first at least)


def open_session(model: Any, threads: int = 0, *, integer_kernels: bool = False, optimized: Path | None = None) -> Any:
    """Open a graph: an onnx.ModelProto, its bytes or its path.

    threads: 0 for OMP_NUM_THREADS, else one per core. integer_kernels: fuse QuantizeLinear and DequantizeLinear into
    integer kernels; by default rounding is computed in float. optimized: a file that onnxruntime writes its optimised
    graph to.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()  # type: ignore[attr-defined]
    options.log_severity_level = 3  # its warnings are about its own optimiser
    options.intra_op_num_threads = threads or int(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0] or 0)
    if not integer_kernels:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    source = str(model) if isinstance(model, Path) else model
    data = source if isinstance(source, (bytes, str)) else source.SerializeToString()
    if data is not source and (outside := external_tensors(source)):
        values = [ort.OrtValue.ortvalue_from_numpy(tensor_values(tensor)) for tensor in outside]  # type: ignore[attr-defined]
        options.add_external_initializers([tensor.name for tensor in outside], values)
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])  # type: ignore[attr-defined]


def open_sessions(models: Mapping[str, Any]) -> dict[str, Any]:
    """Open a session per graph."""
    return {part: open_session(model) for part, model in models.items()}


def part_function(session: Any, outputs: Sequence[str] | None = None) -> PartFunction:
    """Make a function of an onnxruntime session."""
    names = list(outputs or [value.name for value in session.get_outputs()])
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))
