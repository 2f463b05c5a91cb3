"""Edit an ONNX graph node by node; onnx is imported when used."""

from collections.abc import Callable
from typing import Any

import numpy as np


class Editor:
    """A graph in the making: its nodes by what they put out, its constants, and what replaces what."""

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self.model, self._array = model, numpy_helper.to_array
        self.refresh()

    def refresh(self) -> None:
        """Look at the graph anew."""
        import onnx

        self.model = onnx.shape_inference.infer_shapes(self.model, data_prop=True)
        graph = self.model.graph
        self.made_by = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = {value.name for value in graph.input}
        self.outputs = {value.name for value in graph.output}
        self.shapes = {
            value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
            for value in (*graph.input, *graph.output, *graph.value_info)
        } | {name: tuple(tensor.dims) for name, tensor in self.stored.items()}

    def constant(self, name: str) -> np.ndarray | None:
        """Return a constant's values, None for what is none."""
        if name in self.stored:
            return np.asarray(self._array(self.stored[name]))
        node = self.made_by.get(name)
        if node is not None and node.op_type == "Constant" and node.attribute[0].name == "value":
            return np.asarray(self._array(node.attribute[0].t))
        return None

    def store(self, name: str, values: np.ndarray) -> str:
        """Add a constant and return its name."""
        from onnx import numpy_helper

        self.model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def replace(self, rewrite: Callable[[Any], list[Any] | None]) -> int:
        """Put what `rewrite` gives in place of each node it takes; return how many it took."""
        nodes, count = [], 0
        for node in self.model.graph.node:
            new = rewrite(node)
            nodes += [node] if new is None else new
            count += new is not None
        if count:
            copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
            del self.model.graph.node[:]
            self.model.graph.node.extend(copies)
            del self.model.graph.value_info[:]
            self.refresh()
        return count

    def drop_unread(self) -> None:
        """Remove nodes and constants that nothing reads any more."""
        while True:
            read = {name for node in self.model.graph.node for name in node.input} | self.outputs
            kept = [node for node in self.model.graph.node if read & set(node.output)]
            if len(kept) == len(self.model.graph.node):
                break
            copies = [type(node).FromString(node.SerializeToString()) for node in kept]
            del self.model.graph.node[:]
            self.model.graph.node.extend(copies)
        tensors = [tensor for tensor in self.model.graph.initializer if tensor.name in read]
        copies = [type(tensor).FromString(tensor.SerializeToString()) for tensor in tensors]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(copies)
        self.refresh()


def attribute(node: Any, name: str, default: Any) -> Any:
    """Read an attribute of a node."""
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
