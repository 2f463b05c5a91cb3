"""Run compiled parts on the NPU: numpy and MediaTek's Neuron runtime, through its C library or its program.

The library (NeuronRuntimeV2, headers RuntimeV2.h and Types.h of the Neuron SDK) loads a part once. Without it,
`neuronrt` starts and loads for every call, which cannot return stale results.
"""

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightjar.device.part_io import PartRunner, Parts, Tensor, errors_as, require_file

LIBRARIES = ("libneuron_runtime.so", "libneuronusdk_runtime.mtk.so", "libneuronusdk_runtime.mtk.so.8")
SBIN = "/usr/sbin:/usr/local/sbin"  # sshd does not put them on every PATH
ERRORS = ("", "out of memory", "incomplete", "unexpected null", "bad data", "bad state", "runtime error")  # Types.h
THREADS, BACKLOG = 1, 8
ROW = 16  # elements that a row of a suppressed output is padded to
CALL_S = 120.0
TOTAL = re.compile(r"Total inference time = *([\d.]+) *ms")
HANDLE = re.compile(r"Handle *= *(\d+), *<([\d x]+)")


class IOBuffer(ctypes.Structure):
    """BufferAttribute of RuntimeV2.h; fd is -1 for plain memory, because 0 is a valid file descriptor."""

    _fields_ = (
        ("buffer", ctypes.c_void_p),
        ("length", ctypes.c_size_t),
        ("fd", ctypes.c_int),
        ("offset", ctypes.c_int),
        ("reserved2", ctypes.c_uint64),
        ("reserved3", ctypes.c_uint64),
    )


class Request(ctypes.Structure):
    """SyncInferenceRequest, which `run` takes by value."""

    _fields_ = (("inputs", ctypes.POINTER(IOBuffer)), ("outputs", ctypes.POINTER(IOBuffer)))


POINTER, SIZE = ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t)
ARGUMENTS: Mapping[str, Sequence[Any]] = {  # of RuntimeV2.h's functions, all of which begin with NeuronRuntimeV2_
    "create": (ctypes.c_char_p, ctypes.c_size_t, ctypes.POINTER(POINTER), ctypes.c_size_t),
    **{f"get{kind}Number": (POINTER, SIZE) for kind in ("Input", "Output")},
    **{
        f"get{kind}Size": (POINTER, ctypes.c_uint64, SIZE)
        for kind in ("Input", "Output", "InputPadded", "OutputPadded")
    },
    "run": (POINTER, Request),
    "release": (POINTER,),
}


class Network:
    """One part in the runtime; its buffers are allocated once and filled at every run."""

    def __init__(self, library: Any, file: Path) -> None:
        self.runtime, self.handle = library, ctypes.c_void_p()
        self.name = file.name
        self._call("create", str(file).encode(), THREADS, ctypes.byref(self.handle), BACKLOG)

    def allocate(self, part: Mapping[str, Any]) -> None:
        """Allocate the buffers of a part's inputs and outputs; raises RuntimeError where the file has others."""
        self.inputs = self._allocate("Input", part["inputs"], padded=False)
        self.outputs = self._allocate("Output", part["outputs"], part.get("bridge") == "disallowed")
        self._request = Request(self._descriptors(self.inputs), self._descriptors(self.outputs))

    def run(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Run once, always in the same buffers: the runtime may not read a new one."""
        for buffer, array in zip(self.inputs, arrays, strict=True):
            np.copyto(buffer, array, casting="same_kind")
        self._call("run", self.handle, self._request)
        return [np.array(buffer) for buffer in self.outputs]

    def release(self) -> None:
        self.runtime.NeuronRuntimeV2_release(self.handle)

    def _allocate(self, kind: str, tensors: Sequence[Tensor], padded: bool) -> list[NDArray[Any]]:
        count = ctypes.c_size_t()
        self._call(f"get{kind}Number", self.handle, ctypes.byref(count))
        if count.value != len(tensors):
            raise RuntimeError(f"{self.name} has {count.value} {kind.lower()}s where {len(tensors)} are expected")
        buffers = []
        for number, tensor in enumerate(tensors):
            size = ctypes.c_size_t()
            function = f"get{kind}PaddedSize" if padded else f"get{kind}Size"
            self._call(function, self.handle, ctypes.c_uint64(number), ctypes.byref(size))
            buffers.append(allocate(self.name, tensor, size.value, padded))
        return buffers

    def _descriptors(self, buffers: Sequence[NDArray[Any]]) -> Any:
        whole = list(map(whole_buffer, buffers))
        return (IOBuffer * len(whole))(*(IOBuffer(each.ctypes.data, each.nbytes, -1, 0) for each in whole))

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self.runtime, f"NeuronRuntimeV2_{name}")(*arguments)
        if status:
            reason = ERRORS[status] if 0 < status < len(ERRORS) else "unknown"
            hint = "; a .dla of another SDK version than the runtime does not load" if name == "create" else ""
            raise RuntimeError(f"the Neuron runtime cannot {name} {self.name}: error {status}, {reason}{hint}")


def allocate(name: str, tensor: Tensor, size_bytes: int, padded: bool) -> NDArray[Any]:
    """Allocate a tensor of the size that the runtime reports: its own dtype, float32 or float16, rows maybe padded.

    Return an array of the tensor's own shape; with padded rows it is a view of the allocated array.
    """
    shape = tuple(tensor["shape"])
    row = -(-shape[-1] // ROW) * ROW if padded and shape else 0
    for dtype in (np.dtype(tensor["dtype"]), np.dtype(np.float32), np.dtype(np.float16)):
        if size_bytes == int(np.prod(shape)) * dtype.itemsize:
            return np.zeros(shape, dtype)
        if padded and size_bytes == int(np.prod(shape[:-1])) * row * dtype.itemsize:
            return np.zeros((*shape[:-1], row), dtype)[..., : shape[-1]]
    raise RuntimeError(f"{name} wants {size_bytes} bytes for {tensor['name']}, which is {shape}, {tensor['dtype']}")


def whole_buffer(array: NDArray[Any]) -> Any:
    """Return the array that `allocate` allocated, with its padded rows."""
    return array if array.base is None else array.base


class TimedRunner(PartRunner):
    """Keep the times of loading and of each run."""

    runtime = "the Neuron runtime"

    def __init__(self, parts: Parts) -> None:
        super().__init__({}, parts)
        self.load_s: dict[str, float] = {}
        self.inference_ms: dict[str, list[float]] = {name: [] for name in parts}  # of each call, the NPU's own


class NeuronRunner(TimedRunner):
    """Hold one network per part in the C library."""

    def __init__(self, library: Any, folder: Path, parts: Parts) -> None:
        super().__init__(parts)
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            for name, part in parts.items():
                start = time.perf_counter()
                self.handles[name] = Network(library, folder / part["file"])
                self.handles[name].allocate(part)
                self.load_s[name] = time.perf_counter() - start
                require_fresh(name, part["inputs"], self.handles[name].run)
            undo.pop_all()

    def infer(self, part: str, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        start = time.perf_counter()
        results = self.handles[part].run(arrays)
        self.inference_ms[part].append(1000 * (time.perf_counter() - start))
        return [np.asarray(result, np.float32) for result in results]

    def release(self, handle: Any) -> None:
        handle.release()


def require_fresh(
    part: str, tensors: Sequence[Tensor], run: Callable[[Sequence[NDArray[Any]]], Sequence[NDArray[Any]]]
) -> None:
    """Raise RuntimeError where two different inputs give the same output: some runtimes read only the first input."""
    noise = np.random.default_rng(0)
    before, after = (
        run([np.asarray(noise.standard_normal(tensor["shape"])).astype(tensor["dtype"]) for tensor in tensors])
        for _ in range(2)
    )
    if all(np.array_equal(a, b, equal_nan=True) for a, b in zip(before, after, strict=True)):
        raise RuntimeError(
            f"the Neuron runtime gives {part} the same outputs for different inputs: it has latched the first; "
            "set NIGHTJAR_NEURON=neuronrt on the board to start a process for every call, or update the runtime"
        )


class NeuronrtRunner(TimedRunner):
    """Start `neuronrt` for every call: raw files in the order of its handles."""

    def __init__(self, program: str, folder: Path, parts: Parts) -> None:
        super().__init__(parts)
        self.program, self.parts = program, parts
        self.files = {name: folder / part["file"] for name, part in parts.items()}
        for name, file in self.files.items():
            start = time.perf_counter()
            check_description(self.start(file, ["-a", file, "-d"]), name, parts[name])
            self.load_s[name] = time.perf_counter() - start

    def infer(self, part: str, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        file, padded = self.files[part], self.parts[part].get("bridge") == "disallowed"
        with tempfile.TemporaryDirectory(prefix="nightjar-neuron-") as scratch:
            inputs = [Path(scratch) / f"in{number}.bin" for number in range(len(arrays))]
            outputs = [Path(scratch) / f"out{number}.bin" for number in range(len(self.outputs[part]))]
            for path, array in zip(inputs, arrays, strict=True):
                np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tofile(path)
            tensors = [word for path in inputs for word in ("-i", path)]
            tensors += [word for path in outputs for word in ("-o", path)]
            output = self.start(file, ["-m", "hw", "-a", file, *tensors, "-c", "1", "-b", "100"], inputs, outputs)
            if (milliseconds := TOTAL.search(output)) is None:
                raise RuntimeError(f"neuronrt ran {file.name} and says no total inference time: {_last_line(output)}")
            self.inference_ms[part].append(float(milliseconds[1]))
            pairs = zip(outputs, self.outputs[part], strict=True)
            return [np.asarray(read_raw(path, entry, padded), np.float32) for path, entry in pairs]

    def start(
        self, file: Path, arguments: Sequence[str | Path], inputs: Sequence[Path] = (), outputs: Sequence[Path] = ()
    ) -> str:
        """Run the program and return what it prints; adb.py runs it on another machine, and copies these files."""
        with errors_as(f"neuronrt cannot run {file.name}"):
            done = subprocess.run(
                [self.program, *arguments],
                capture_output=True,
                text=True,
                timeout=CALL_S,
                check=False,
                errors="replace",
            )
        output = done.stdout + done.stderr
        if done.returncode:
            raise RuntimeError(f"neuronrt cannot run {file.name} ({done.returncode}): {_last_line(output)}")
        return output


def check_description(description: str, part: str, described: Mapping[str, Any]) -> None:
    """Compare the output of `neuronrt -d` for a file with its part; raises RuntimeError where it differs."""
    before, _, after = description.partition("Output")
    for kind, text in (("inputs", before), ("outputs", after)):
        found = sorted((int(h), [int(n) for n in shape.split("x")]) for h, shape in HANDLE.findall(text))
        tensors = described[kind]
        if [number for number, _ in found] != list(range(len(tensors))):
            raise RuntimeError(f"neuronrt describes {len(found)} {kind} of {part} where {len(tensors)} are expected")
        for (number, shape), tensor in zip(found, tensors, strict=True):
            if [size for size in shape if size != 1] != [size for size in tensor["shape"] if size != 1]:
                raise RuntimeError(
                    f"{part} has handle {number} of its {kind} as {shape}, and {tensor['name']} is {tensor['shape']}"
                )


def read_raw(path: Path, tensor: Tensor, padded: bool) -> NDArray[Any]:
    """Read a raw output file, little-endian; its length says whether it is float16 or float32."""
    if not path.is_file():
        raise RuntimeError(f"neuronrt wrote no {tensor['name']}")
    array = allocate("neuronrt", tensor, path.stat().st_size, padded)
    whole = whole_buffer(array)
    whole[...] = np.fromfile(path, array.dtype.newbyteorder("<")).reshape(whole.shape)
    return array


def open_runner(folder: Path, parts: Parts, options: Mapping[str, Any] | None = None) -> TimedRunner:
    """Open `parts` (name to {"file", "inputs", "outputs", ...}, as in binary.json) that lie in `folder`.

    NIGHTJAR_NEURON in the environment: `neuronrt` for the program, or the path of the library; by default the library
    where there is one, else the program. Raises RuntimeError with one line.
    """
    for name, part in parts.items():
        require_file(folder, part["file"], name)
    chosen = os.environ.get("NIGHTJAR_NEURON", "")
    library = None if chosen == "neuronrt" else open_library((chosen,) if chosen else LIBRARIES)
    if library is not None:
        return NeuronRunner(library, Path(folder), parts)
    program = shutil.which("neuronrt") or shutil.which("neuronrt", path=SBIN) or ""
    if not program:
        raise RuntimeError(
            "no Neuron runtime on this board: install mediatek-libneuron and mediatek-neuron-utils, "
            "and make /dev/apusys* readable and writable"
        )
    return NeuronrtRunner(program, Path(folder), parts)


def open_library(names: Sequence[str]) -> Any:
    """Open the first library that exists and has every function; None where none does."""
    for name in names:
        try:
            library = ctypes.CDLL(name)
            for function, arguments in ARGUMENTS.items():
                getattr(library, f"NeuronRuntimeV2_{function}").argtypes = arguments
            library.NeuronRuntimeV2_release.restype = None
            return library
        except (OSError, AttributeError):
            continue
    return None


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"
