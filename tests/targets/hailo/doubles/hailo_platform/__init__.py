"""A strict double of HailoRT's Python binding, for tests alone: it runs what the other double wrote as a .hef.

Made from hailo-ai/hailort (branch hailo8, pyhailort.py): names, argument names and order, sequence
of calls, exceptions.
"""

import json
import os
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from injected import fault, strike

from nightjar.graphs.nhwc import from_nhwc, to_nhwc
from nightjar.graphs.onnx_graph import Graph
from nightjar.graphs.onnx_session import open_session

__version__ = "4.23.0"
CHIP = "HAILO8L"
TAKES = {"HAILO8L": ("hailo8l",), "HAILO8": ("hailo8", "hailo8l")}


class HailoRTException(Exception):
    pass


class HailoRTTimeout(HailoRTException):
    pass


class HailoRTInvalidHEFException(HailoRTException):
    pass


class HailoRTHEFNotCompatibleWithDevice(HailoRTException):
    pass


class HailoRTInvalidArgumentException(HailoRTException):
    pass


class HailoRTNotFoundException(HailoRTException):
    pass


class HailoRTInvalidOperationException(HailoRTException):
    pass


class FormatType(Enum):
    AUTO = 0
    UINT8 = 1
    UINT16 = 2
    FLOAT32 = 3


class HailoSchedulingAlgorithm(Enum):
    NONE = 0
    ROUND_ROBIN = 1


class _Params:
    __slots__ = ("device_count", "group_id", "multi_process_service", "scheduling_algorithm")


class VDevice:
    _held: Any = None

    def __init__(self, params: Any = None, *, device_ids: Any = None) -> None:
        os.write(1, b"[HailoRT] [info] opening\n")  # in C, past sys.stdout
        strike(fault("open"))
        if VDevice._held is not None:
            raise HailoRTException("libhailort failed with error: 74 (HAILO_OUT_OF_PHYSICAL_DEVICES)")
        if params is not None and not isinstance(params, _Params):
            raise TypeError("params come from VDevice.create_params()")
        VDevice._held = self

    @staticmethod
    def create_params() -> _Params:
        return _Params()

    def __enter__(self) -> "VDevice":
        return self

    def __exit__(self, *args: Any) -> bool:
        self.release()
        return False

    def release(self) -> None:
        VDevice._held = None

    def create_infer_model(self, hef_source: Any, network_name: str = "") -> "InferModel":
        if VDevice._held is not self:
            raise HailoRTInvalidOperationException("Invalid operation. See hailort.log for more information")
        strike(fault("load"))
        if not isinstance(hef_source, (str, bytes)):
            raise ValueError("HEF can only be created from a file path (str) or a buffer (bytes)")
        data = hef_source if isinstance(hef_source, bytes) else Path(hef_source).read_bytes()
        if not data.startswith(b"\x01HEF"):
            raise HailoRTInvalidHEFException("Invalid HEF. See hailort.log for more information")
        size = int.from_bytes(data[4:12], "little")
        said, model = json.loads(data[12 : 12 + size]), onnx.load_from_string(data[12 + size :])
        if said["arch"] not in TAKES[CHIP]:
            raise HailoRTHEFNotCompatibleWithDevice(
                "HEF file is not compatible with device. See hailort.log for more information"
            )
        return InferModel(said, model)


class InferModel:
    class InferStream:
        def __init__(self, model: "InferModel", said: dict[str, Any]) -> None:
            self._model, self._said = model, said

        @property
        def name(self) -> str:
            return str(self._said["name"])

        @property
        def shape(self) -> list[int]:
            return list(self._said["shape"])

        def set_format_type(self, type: Any) -> None:
            if not isinstance(type, FormatType):
                raise TypeError("set_format_type takes a FormatType")
            if self._model.configured:
                raise HailoRTInvalidOperationException("Invalid operation. See hailort.log for more information")
            self._said["format"] = type

    def __init__(self, said: dict[str, Any], model: Any) -> None:
        self.said, self.model, self.configured = said, model, False
        for streams in said["streams"].values():
            for stream in streams:
                stream["format"] = FormatType.UINT8

    def _stream(self, kind: str, name: str) -> "InferModel.InferStream":
        streams = self.said["streams"][kind]
        if name == "" and len(streams) == 1:
            name = streams[0]["name"]
        for stream in streams:
            if stream["name"] == name:
                return self.InferStream(self, stream)
        raise HailoRTNotFoundException("Item not found. See hailort.log for more information")

    @property
    def input_names(self) -> list[str]:
        return [stream["name"] for stream in self.said["streams"]["input_layer"]]

    @property
    def output_names(self) -> list[str]:
        return [stream["name"] for stream in self.said["streams"]["output_layer"]]

    def input(self, name: str = "") -> "InferModel.InferStream":
        return self._stream("input_layer", name)

    def output(self, name: str = "") -> "InferModel.InferStream":
        return self._stream("output_layer", name)

    def configure(self) -> "ConfiguredInferModel":
        self.configured = True
        return ConfiguredInferModel(self)


class ConfiguredInferModel:
    class Bindings:
        class InferStream:
            def __init__(self, said: dict[str, Any]) -> None:
                self._said, self._buffer = said, None

            def set_buffer(self, buffer: Any) -> None:
                size = {FormatType.FLOAT32: 4, FormatType.UINT16: 2}.get(self._said["format"], 1)
                wanted = size * int(np.prod(self._said["shape"]))
                if not buffer.flags.c_contiguous or buffer.nbytes != wanted:
                    raise HailoRTInvalidArgumentException(f"Invalid argument: {buffer.nbytes} bytes, not {wanted}")
                if list(buffer.shape) != list(self._said["shape"]):
                    raise HailoRTInvalidArgumentException("The array's shape should match the edge's shape")
                self._buffer = buffer

            def get_buffer(self, tf_format: Any = False) -> Any:
                return self._buffer

        def __init__(self, model: InferModel) -> None:
            streams = model.said["streams"]
            self.model = model
            self._inputs = {s["name"]: self.InferStream(s) for s in streams["input_layer"]}
            self._outputs = {s["name"]: self.InferStream(s) for s in streams["output_layer"]}

        def input(self, name: str = "") -> Any:
            return self._inputs[name]

        def output(self, name: str = "") -> Any:
            return self._outputs[name]

    def __init__(self, model: InferModel) -> None:
        self.model, self.entered, self.session = model, False, open_session(model.model)

    def __enter__(self) -> "ConfiguredInferModel":
        self.entered = True
        return self

    def __exit__(self, *args: Any) -> None:
        self.entered = False

    def create_bindings(self, input_buffers: Any = None, output_buffers: Any = None) -> Bindings:
        return self.Bindings(self.model)

    def run(self, bindings: Any, timeout: Any) -> None:
        os.write(1, b"[HailoRT] [info] running\n")
        strike(fault("run"))
        if not self.entered or not isinstance(bindings, list) or not isinstance(timeout, int):
            raise HailoRTInvalidOperationException("run takes a list of bindings and milliseconds, inside its context")
        for each in bindings:
            self._run(each)

    def _run(self, bindings: Any) -> None:
        said, graph = self.model.said, Graph(self.model.model)
        given = {}
        for name, stream in bindings._inputs.items():
            if stream.get_buffer() is None:
                raise HailoRTInvalidArgumentException(f"no buffer for {name}")
            tensor = said["inputs"][name]
            given[tensor] = from_nhwc(stream.get_buffer(), graph.shape(tensor))
        for name, tensor in zip(said["outputs"], said["ends"], strict=True):
            bindings._outputs[name].get_buffer()[...] = to_nhwc(self.session.run([tensor], given)[0])[0]
