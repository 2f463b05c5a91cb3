"""ClientRunner, as strict as the real one is said to be."""

import contextlib
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from injected import fault, strike

from hailo_sdk_client.exposed_definitions import CalibrationDataType, Dims, InferenceContext, States
from hailo_sdk_client.model_translator.exceptions import MisspellNodeError, ParsingWithRecommendationException
from nightjar.graphs.fusion import fuse, quantizable_groups
from nightjar.graphs.nhwc import from_nhwc, nhwc_shape, to_nhwc
from nightjar.graphs.onnx_graph import Graph
from nightjar.graphs.onnx_session import open_session
from nightjar.quantization.fake_quantize import A16_W16, fake_quantize
from nightjar.quantization.ranges import collect_ranges

ARCHS = ("hailo8", "hailo8l", "hailo8r")
REFUSED = ("Gather", "Tile", "TopK", "Where", "LayerNormalization")
KINDS = {
    "linear": "conv",
    "conv": "conv",
    "head": "conv",
    "add": "ew_add",
    "gelu": "activation",
    "Mul": "normalization",
}
SCRIPT = (
    r"model_optimization_flavor\(optimization_level=[0-4], compression_level=[0-5]\)",
    r"model_optimization_config\(calibration, batch_size=\d+, calibset_size=\d+\)",
    r"model_optimization_config\(checker_cfg, policy=(disabled|enabled, batch_size=1(, analyze_mode=advanced)?)\)",
    r"pre_quantization_optimization\(ew_add_fusing, policy=disabled\)",
    r"pre_quantization_optimization\(matmul_correction, layers=\{matmul\*\}, correction_type=zp_comp_block\)",
    r"pre_quantization_optimization\(matmul_equalization, layers=\{matmul\*\}, matmul_bias=enabled\)",
    r"pre_quantization_optimization\(layer_norm_decomposition, bit_decomposition_mode=uniform_precision, "
    r"equalization=disabled\)",
    r"pre_quantization_optimization\(dead_layers_removal, policy=disabled\)",
    r"post_quantization_optimization\(finetune, policy=enabled, dataset_size=\d+, epochs=\d+, learning_rate=0\.\d+, "
    r"batch_size=\d+\)",
    r"performance_param\(compiler_optimization_level=max, optimize_for_batch=1\)",
)
ALLOCATION = r"resources_param\(max_utilization=0?\.\d+\)"
PRECISION = r"quantization_param\((\w+), precision_mode=(a16_w16|a8_w8)\)"


class AllocatorScriptParserException(Exception):
    pass


class InvalidStateException(Exception):
    pass


class BadInputsShape(Exception):
    pass


class AccelerasUnsupportedError(Exception):
    pass


class ClientRunner:
    def __init__(self, hw_arch: Any = None, hn: Any = None, har: Any = None, name: Any = None) -> None:
        if (har is None) == (hw_arch is None) and har is None:
            raise ValueError("give hw_arch or har")
        if hw_arch is not None and hw_arch not in ARCHS:
            raise ValueError(f"{hw_arch} is none of {', '.join(ARCHS)}")
        self._arch, self._state, self._script = hw_arch, States.UNINITIALIZED, ""
        self._entered: Any = None
        if har is not None:
            strike(fault("load"))
            if not isinstance(har, str):
                raise TypeError("har is a path as str")
            with zipfile.ZipFile(har) as archive:
                self._said = json.loads(archive.read("state.json"))
                self._model = onnx.load_from_string(archive.read("model.onnx"))
            self._state, self._arch = States(self._said["state"]), hw_arch or self._said["arch"]

    @property
    def state(self) -> States:
        return self._state

    @property
    def model_name(self) -> str:
        return str(self._said["network"]["name"])

    @property
    def model_script(self) -> str:
        return self._script

    def _must_be(self, *states: States) -> None:
        if self._state not in states:
            raise InvalidStateException(f"the model is {self._state.value}")

    def translate_onnx_model(
        self,
        model: Any = None,
        net_name: str = "model",
        start_node_names: Any = None,
        end_node_names: Any = None,
        net_input_shapes: Any = None,
        augmented_path: Any = None,
        disable_shape_inference: bool = False,
        disable_rt_metadata_extraction: bool = False,
        net_input_format: Any = None,
    ) -> tuple[Any, Any]:
        self._must_be(States.UNINITIALIZED)
        found = fault("translate")
        strike(found)
        if not isinstance(model, str) or not re.fullmatch(r"\w+", net_name):
            raise ValueError("model is a path as str, net_name has letters, digits and _ alone")
        print(f"[info] Translation started on ONNX model {net_name}")
        graph = Graph(onnx.load(model))
        nodes = {node.name: node for node in graph.nodes}
        for name in end_node_names or ():
            if name not in nodes:
                raise MisspellNodeError(f"Unable to find end node names: {name}")
        for name in start_node_names or ():
            if name not in nodes and name not in graph.inputs:
                raise MisspellNodeError(f"Unable to find start node names: {name}")
        if unknown := [node for node in graph.nodes if node.op_type in REFUSED and graph.activations(node)]:
            said = "\n".join(
                f" UnsupportedOperationError in op {n.name}: {n.op_type} operation is unsupported" for n in unknown
            )
            raise ParsingWithRecommendationException(
                f"Parsing failed. The errors found in the graph are:\n{said}\nPlease try to parse the model again, "
                "using these end node names: /conv1/Conv"
            )
        for name, shape in (net_input_shapes or {}).items():
            if list(graph.shape(name)) != list(shape):
                raise ValueError(f"{name} is {graph.shape(name)}, not {shape}")
            layout = (net_input_format or {}).get(name)
            if len(shape) == 3 and layout != [Dims.BATCH, Dims.WIDTH, Dims.CHANNELS]:
                raise ValueError(f"{name} of three dimensions needs net_input_format")
        ends = [nodes[name].output[0] for name in end_node_names] if end_node_names else graph.outputs
        self._model = onnx.utils.Extractor(graph.model).extract_model(list(start_node_names or graph.inputs), ends)
        network = _network(net_name, self._model, ends, found)
        self._said = {"network": network, "ends": ends, "arch": self._arch, "ranges": {}, "wide": []}
        self._state = States.HAILO_MODEL
        print(f"[info] Translation completed on ONNX model {net_name} (completion time: 00:00:00.05)")
        return network, {}

    def get_hn_dict(self) -> dict[str, Any]:
        return dict(self._said["network"])

    def load_model_script(self, model_script: Any = None, append: bool = False) -> str:
        self._must_be(States.HAILO_MODEL, States.FP_OPTIMIZED_MODEL, States.QUANTIZED_MODEL)
        text = Path(model_script).read_text() if model_script.endswith(".alls") else model_script
        own = {name.partition("/")[2] for name in self._said["network"]["layers"]}
        for line in filter(None, text.splitlines()):
            allocation = self._state == States.QUANTIZED_MODEL
            if allocation and not re.fullmatch(ALLOCATION, line):
                raise AllocatorScriptParserException(f"a quantized model takes no {line}")
            if named := re.fullmatch(PRECISION, line):
                if named[1] not in own:
                    raise AllocatorScriptParserException(f"The layer {named[1]} doesn't exist in the HN")
            elif not allocation and not any(re.fullmatch(pattern, line) for pattern in SCRIPT):
                raise AllocatorScriptParserException(f"Invalid command {line}")
        self._script = self._script + text if append else text
        print(f"[info] Loading model script commands to {self.model_name} from string")
        return self._script

    def optimize(
        self,
        calib_data: Any,
        data_type: CalibrationDataType = CalibrationDataType.auto,
        *,
        work_dir: Any = None,
        checkpoint: Any = None,
        memento: Any = None,
    ) -> None:
        self._must_be(States.HAILO_MODEL, States.FP_OPTIMIZED_MODEL)
        found = fault("optimize")
        strike(found)
        network = self._said["network"]
        into = {n: layer for n, layer in network["layers"].items() if layer["type"] == "input_layer"}
        if not isinstance(calib_data, dict) or set(calib_data) != set(into):
            raise BadInputsShape(f"calibration data is of {sorted(calib_data)}, not {sorted(into)}")
        count = int(re.search(r"calibset_size=(\d+)", self._script)[1])  # type: ignore[index]
        for name, array in calib_data.items():
            shape = tuple(into[name]["output_shapes"][0][1:])
            if array.dtype != np.float32 or array.shape != (count, *shape):
                raise BadInputsShape(f"Data shape {array.shape} for layer {name} doesn't match the model input {shape}")
        for number in range(count):
            print(
                f"\rCalibration: {100 * number // count:3d}%|####    | {number + 1}/{count} [00:00<00:00, 9entries/s]",
                end="",
            )
        print()
        sizes = {layer["_tensor"]: name for name, layer in into.items()}
        graph = Graph(self._model)
        samples = [{n: from_nhwc(calib_data[sizes[n]][i], graph.shape(n)) for n in graph.inputs} for i in range(count)]
        ranges = collect_ranges(self._model, quantizable_groups(self._model), samples)
        wide = [name for name, mode in re.findall(PRECISION, self._script) if mode == "a16_w16"]
        layers = network["layers"]
        if any(layers[f"{network['name']}/{name}"]["type"] in ("matmul", "softmax") for name in wide):
            raise AccelerasUnsupportedError("Unsupported layers for the provided optimization target")
        self._said |= {"ranges": ranges, "wide": wide}
        self._state = States.QUANTIZED_MODEL
        print("[info] Model Optimization is done")

    def compile(self) -> bytes:
        self._must_be(States.QUANTIZED_MODEL)
        found = fault("compile")
        strike(found)
        if "result" in found:
            return str(found["result"]).encode()
        network = self._said["network"]
        model = self._quantized()
        streams = {
            kind: [
                {"name": name if kind == "input_layer" else layer["input"][0], "shape": layer["output_shapes"][0][1:]}
                for name, layer in network["layers"].items()
                if layer["type"] == kind
            ]
            for kind in ("input_layer", "output_layer")
        }
        tensors = {name: layer["_tensor"] for name, layer in network["layers"].items()}
        order = network["net_params"]["output_layers_order"]
        content = {
            "arch": self._arch,
            "streams": streams,
            "inputs": tensors,
            "outputs": order,
            "ends": self._said["ends"],
        }
        self._state = States.COMPILED_MODEL
        head = json.dumps(content).encode()
        return b"\x01HEF" + len(head).to_bytes(8, "little") + head + model.SerializeToString()

    def save_har(self, har_path: str) -> None:
        if self._state == States.UNINITIALIZED:
            raise InvalidStateException("there is no model to save")
        if fault(f"save {Path(har_path).stem}"):
            return
        said = {**self._said, "state": self._state.value}
        with zipfile.ZipFile(har_path, "w") as archive:
            archive.writestr("state.json", json.dumps(said))
            archive.writestr("model.onnx", self._model.SerializeToString())
        print(f"[info] Saved HAR to: {har_path}")

    @contextlib.contextmanager
    def infer_context(self, inference_context: Any, *, gpu_policy: Any = None) -> Iterator[Any]:
        if not isinstance(inference_context, InferenceContext):
            raise TypeError("infer_context takes an InferenceContext")
        if inference_context == InferenceContext.SDK_QUANTIZED:
            self._must_be(States.QUANTIZED_MODEL, States.COMPILED_MODEL)
        print("[info] Using an emulator")  # to stdout, where a session's lines go
        model = self._quantized() if inference_context == InferenceContext.SDK_QUANTIZED else self._model
        self._entered = (object(), open_session(model))
        yield self._entered[0]
        self._entered = None

    def infer(
        self,
        context: Any,
        dataset: Any,
        data_type: Any = None,
        data_count: Any = None,
        batch_size: int = 1,
    ) -> Any:
        if self._entered is None or context is not self._entered[0]:
            raise InvalidStateException("infer needs the context of this runner, and inside of it")
        found = fault("infer")
        strike(found)
        if "result" in found:
            return [np.zeros(shape, np.float32) for shape in found["result"]]
        graph, network = Graph(self._model), self._said["network"]
        into = {n: layer for n, layer in network["layers"].items() if layer["type"] == "input_layer"}
        if not isinstance(dataset, dict):
            if len(into) != 1:
                raise BadInputsShape("an array is for a model of one input")
            dataset = {next(iter(into)): dataset}
        if set(dataset) != set(into):
            raise BadInputsShape(f"data is of {sorted(dataset)}, not {sorted(into)}")
        given = {}
        for name, array in dataset.items():
            tensor, shape = into[name]["_tensor"], tuple(into[name]["output_shapes"][0][1:])
            if array.dtype != np.float32 or array.shape[1:] != shape:
                raise BadInputsShape(f"Data shape {array.shape} for layer {name} doesn't match the model input {shape}")
            given[tensor] = from_nhwc(array, graph.shape(tensor))
        results = [to_nhwc(each) for each in self._entered[1].run(self._said["ends"], given)]
        return results if len(results) > 1 else results[0]

    def _quantized(self) -> Any:
        network = self._said["network"]
        nodes = {
            node
            for name in self._said["wide"]
            for node in network["layers"][f"{network['name']}/{name}"]["original_names"]
        }
        groups = quantizable_groups(self._model)
        schemes = {group.tensor: A16_W16 for group in groups if nodes.intersection(group.nodes)}
        ranges = {name: tuple(ends) for name, ends in self._said["ranges"].items()}
        return fake_quantize(self._model, groups, ranges, outputs=True, schemes=schemes)


def _network(name: str, model: Any, ends: list[str], found: dict[str, Any]) -> dict[str, Any]:
    """Make the HN of a graph: layers of the kinds that people have seen, named as they are."""
    graph, layers, counts = Graph(model), dict[str, Any](), dict[str, int]()
    dropped = found.get("drop", [])

    def add(kind: str, nodes: list[str], reads: list[str], tensor: str) -> str:
        counts[kind] = counts.get(kind, 0) + 1
        own = f"{name}/{kind}{counts[kind]}"
        shape = [-1, *nhwc_shape(graph.shape(tensor))[1:]]
        layers[own] = {
            "type": kind,
            "input": [made[graph.root(each)] for each in reads if graph.root(each) in made],
            "output": [],
            "original_names": [] if kind in dropped else nodes,
            "input_shapes": [],
            "output_shapes": [shape[::-1] if f"{kind} shape" in dropped else shape],
            "_tensor": tensor,
        }
        return own

    made: dict[str, str] = {}
    for tensor in graph.inputs:
        made[tensor] = add("input_layer", [tensor], [], tensor)
    for group in fuse(model):
        reads, nodes = list(group.inputs), list(group.nodes)
        if group.kind == "gelu" and layers.get(made.get(reads[0], ""), {}).get("type") == "conv":
            layers[made[reads[0]]]["original_names"] += nodes  # an activation of its convolution
            made[group.tensor] = made[reads[0]]
        elif group.kind == "attention":
            add("matmul", nodes[:1], reads, group.tensor)
            add("softmax", [n for n in nodes if "Softmax" in n], [], group.tensor)
            made[group.tensor] = add("matmul", nodes[-1:], reads, group.tensor)
        elif group.kind == "norm":
            add("layer_normalization", nodes[:-2], reads, group.tensor)
            made[group.tensor] = add("normalization", nodes[-2:], reads, group.tensor)
        else:
            made[group.tensor] = add(KINDS.get(group.kind, group.kind.lower()), nodes, reads, group.tensor)
    order = [made[graph.root(end)] for end in ends]
    for end, source in zip(ends, order, strict=True):
        layers[source]["output"].append(add("output_layer", ["out"], [end], end))
    if "outputs" in dropped:
        order = order[:-1]
        layers = {key: layer for key, layer in layers.items() if layer["type"] != "output_layer"}
    params = {"version": "1.0", "output_layers_order": order}
    return {"name": name, "net_params": {} if "order" in dropped else params, "layers": layers}


ort.set_default_logger_severity(3)
