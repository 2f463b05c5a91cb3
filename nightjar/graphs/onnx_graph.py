"""Read and edit ONNX graphs: producers, readers, constants and shapes of tensors; nodes replaced, tensors renamed.

`model` is an onnx.ModelProto and `graph` an onnx.GraphProto. onnx is imported when used: the command line loads
without it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from nightjar.errors import Broken
from nightjar.graphs.onnx_file import load_model, tensor_values
from nightjar.graphs.tensor_spec import TensorSpec

# Operators that place the same values, or some of them, elsewhere.
DATA_MOVEMENT = ("Reshape", "Transpose", "Identity", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split")


class Graph:
    """Index a model after shape inference: each tensor's producer, readers, shape and constant value."""

    def __init__(self, model: Any) -> None:
        """Infer the shapes of a copy of `model` and name its unnamed nodes."""
        self.model = model
        self.refresh()

    def refresh(self) -> None:
        """Infer shapes and build the index again."""
        self.model = infer_shapes(self.model)
        graph = self.model.graph
        self.nodes = list(graph.node)
        self.named = {node.name: node for node in self.nodes}
        self.producers = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = [value.name for value in graph.output]
        self.values = {v.name: v for v in (*graph.input, *graph.output, *graph.value_info)}
        self._constants = constant_tensors(graph)
        self.shapes = tensor_shapes(self.model)
        self.shapes |= {name: tuple(t.dims) for name, t in self._constants.items()}
        self.inputs = [value.name for value in graph.input if value.name not in self._constants]

    def is_constant(self, name: str) -> bool:
        """Return whether a tensor is an initializer or the output of a Constant."""
        return name in self._constants

    def constant(self, name: str) -> np.ndarray:
        """Return a constant's values."""
        return tensor_values(self._constants[name])

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape; Broken where it is not fixed."""
        dims = self.shapes.get(name, (0,))
        if 0 in dims and not self.is_constant(name):
            raise Broken(f"no fixed shape for tensor '{name}'; export with fixed shapes (--refresh export)")
        return dims

    def is_float(self, name: str) -> bool:
        """Return whether a tensor is a float32 activation."""
        value = self.values.get(name)
        return value is not None and value.type.tensor_type.elem_type == 1 and not self.is_constant(name)

    def root(self, name: str, through: Sequence[str] = DATA_MOVEMENT) -> str:
        """Follow a tensor back through data movement, or other operators, to the tensor that holds its values first."""
        while (node := self.producers.get(name)) is not None and node.op_type in through:
            name = node.input[0]
        return name

    def activations(self, node: Any) -> list[str]:
        """List a node's inputs that are not constant."""
        return [name for name in node.input if name and not self.is_constant(name)]

    def only_reader(self, name: str) -> Any | None:
        """Return the node that reads a tensor where there is exactly one and the tensor is no output of the graph."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None


class Editor(Graph):
    """Edit a model; the index is built again after each edit."""

    def find_constant(self, name: str) -> np.ndarray | None:
        """Return a constant's values, None for a tensor that is not constant."""
        return self.constant(name) if self.is_constant(name) else None

    def store(self, name: str, values: np.ndarray) -> str:
        """Add a constant of at least one dimension and return its name."""
        add_constants(self.model.graph, {name: np.atleast_1d(values)})
        return name

    def replace(self, op_type: str, rewrite: Callable[["Editor", Any], list[Any]]) -> int:
        """Replace each node of a type by what `rewrite` returns for it, if any; return how many were replaced."""
        rewritten = [(node, rewrite(self, node) if node.op_type == op_type else []) for node in self.model.graph.node]
        set_nodes(self.model.graph, [n for node, new in rewritten for n in new or [node]])
        del self.model.graph.value_info[:]
        self.refresh()
        return sum(bool(new) for _, new in rewritten)

    def drop_unread(self) -> None:
        """Remove the nodes and constants that nothing reads."""
        graph, nodes = self.model.graph, list[Any]()
        while len(nodes) != len(graph.node):
            nodes = list(graph.node)
            read = {name for node in nodes for name in node.input} | set(self.outputs)
            set_nodes(graph, [node for node in nodes if read & set(node.output)])
        drop_unread_initializers(graph)
        self.refresh()


def infer_shapes(model: Any) -> Any:
    """Return a copy of a model with the shape of every tensor inferred and a name for every node."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for number, node in enumerate(inferred.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    return inferred


def load_graph(path: Path) -> Any:
    """Load a model with the shape of every tensor inferred and a name for every node."""
    return infer_shapes(load_model(path))


def with_outputs(model: Any, values: Iterable[Any]) -> Any:
    """Return a copy of a model whose outputs are `values` (onnx.ValueInfoProto), to read tensors inside it."""
    probe = deepcopy(model)
    del probe.graph.output[:]
    probe.graph.output.extend(values)
    return probe


def set_nodes(graph: Any, nodes: Iterable[Any]) -> None:
    """Make `nodes` the nodes of a graph, in this order; they may be its own."""
    copies = [deepcopy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def drop_unread_initializers(graph: Any) -> None:
    """Remove the initializers that no node reads and that are no output."""
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    copies = [deepcopy(tensor) for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(copies)


def add_constants(graph: Any, values: Mapping[str, np.ndarray]) -> None:
    """Add initializers by name."""
    from onnx import numpy_helper

    for name, array in values.items():
        graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))


def constant_tensors(graph: Any) -> dict[str, Any]:
    """Return the onnx.TensorProto of each initializer and Constant node by tensor name."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    return constants


def constant_values(graph: Any) -> dict[str, np.ndarray]:
    """Return the values of each initializer and Constant node by tensor name."""
    return {name: tensor_values(tensor) for name, tensor in constant_tensors(graph).items()}


def rename_tensors(model: Any, names: Mapping[str, str]) -> Any:
    """Rename tensors everywhere in a model, in place, and return it; an inner tensor that has a new name makes room."""
    inner = {name for node in model.graph.node for name in node.output} | {t.name for t in model.graph.initializer}
    displaced = {new: f"{new}_inside" for new in names.values() if new in inner and new not in names}
    _rename(model.graph, {**names, **displaced})
    return model


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for entry in node.attribute:
            for subgraph in (*entry.graphs, *([entry.g] if entry.HasField("g") else [])):
                _rename(subgraph, names)


def attribute(node: Any, name: str, default: Any) -> Any:
    """Return an attribute of a node."""
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def tensor_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Return every tensor's shape after shape inference; an unknown dimension is 0."""
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    return {v.name: _dims(v) for v in values} | {t.name: tuple(t.dims) for t in graph.initializer}


def tensor_specs(values: Iterable[Any]) -> list[TensorSpec]:
    """Return name, shape and dtype of graph inputs or outputs with fixed shapes."""
    from onnx import helper

    dtype = helper.tensor_dtype_to_np_dtype
    return [TensorSpec(name=v.name, shape=_dims(v), dtype=dtype(v.type.tensor_type.elem_type).name) for v in values]


def _dims(value: Any) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
