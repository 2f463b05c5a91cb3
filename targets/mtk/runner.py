"""Run compiled parts on the NPU: numpy and MediaTek's Neuron runtime, through its C library or its program.

The library (NeuronRuntimeV2, headers RuntimeV2.h and Types.h of the Neuron SDK) loads a part once and runs it many
times. Without it, `neuronrt` starts for every call, which costs a start and a load each time and cannot return stale
results. `inference_ms` lists the NPU's own time of each call, `load_s` the load time of each part.
"""

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

from nightjar.device.part_io import PartRunner, Parts, Tensor, require_file

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


class Network:
    """One part in the runtime; its buffers are allocated once and filled at every run."""

    def __init__(self, library: Any, file: Path, part: Mapping[str, Any]) -> None:
        self.runtime, self.handle = library, ctypes.c_void_p()
        self.name = file.name
        self._call("create", str(file).encode(), THREADS, ctypes.byref(self.handle), BACKLOG)
        try:
            padded = "Padded" if part.get("bridge") == "disallowed" else ""
            self.inputs = self._memory("Input", part["inputs"], "")
            self.outputs = self._memory("Output", part["outputs"], padded)
        except RuntimeError:
            self.release()
            raise
        self._request = Request(self._descriptors(self.inputs), self._descriptors(self.outputs))

    def run(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Run once, always in the same buffers: the runtime may not read a new one."""
        for buffer, array in zip(self.inputs, arrays, strict=True):
            np.copyto(buffer, array, casting="same_kind")
        self._call("run", self.handle, self._request)
        return [np.array(buffer) for buffer in self.outputs]

    def release(self) -> None:
        if self.handle:
            self.runtime.NeuronRuntimeV2_release(self.handle)
            self.handle = ctypes.c_void_p()

    def _memory(self, kind: str, tensors: Sequence[Tensor], padded: str) -> list[NDArray[Any]]:
        count = ctypes.c_size_t()
        self._call(f"get{kind}Number", self.handle, ctypes.byref(count))
        if count.value != len(tensors):
            raise RuntimeError(f"{self.name} has {count.value} {kind.lower()}s where {len(tensors)} are expected")
        buffers = []
        for number, tensor in enumerate(tensors):
            size = ctypes.c_size_t()
            self._call(f"get{kind}{padded}Size", self.handle, ctypes.c_uint64(number), ctypes.byref(size))
            buffers.append(allocate(self.name, tensor, size.value, bool(padded)))
        return buffers

    def _descriptors(self, buffers: Sequence[NDArray[Any]]) -> Any:
        descriptors = (IOBuffer * len(buffers))()
        for entry, buffer in zip(descriptors, buffers, strict=True):
            base = buffer if buffer.base is None else buffer.base
            entry.buffer, entry.length, entry.fd, entry.offset = base.ctypes.data, base.nbytes, -1, 0
        return descriptors

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


class TimedRunner(PartRunner):
    """What both ways of running share: the times of loading and of each run."""

    runtime = "the Neuron runtime"

    def __init__(self, parts: Parts) -> None:
        super().__init__({}, parts)
        self.load_s: dict[str, float] = {}
        self.inference_ms: dict[str, list[float]] = {name: [] for name in parts}


class NeuronRunner(TimedRunner):
    """Hold one network per part in the C library."""

    def __init__(self, library: Any, folder: Path, parts: Parts) -> None:
        super().__init__(parts)
        for name, part in parts.items():
            start = time.perf_counter()
            self.handles[name] = Network(library, folder / part["file"], part)
            self.load_s[name] = time.perf_counter() - start
            try:
                require_fresh(name, part["inputs"], self.handles[name].run)
            except RuntimeError:
                self.close()
                raise

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
        self.program, self.folder = program, folder
        self.files = {name: folder / part["file"] for name, part in parts.items()}
        self.padded = {name: part.get("bridge") == "disallowed" for name, part in parts.items()}
        for name, file in self.files.items():
            start = time.perf_counter()
            description = self._start([self.program, "-a", self.remote_path(file), "-d"], file)
            check_description(description, name, self.inputs[name], self.outputs[name])
            self.load_s[name] = time.perf_counter() - start

    def infer(self, part: str, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        file = self.files[part]
        with tempfile.TemporaryDirectory(prefix="nightjar-neuron-") as scratch:
            inputs = [Path(scratch) / f"in{number}.bin" for number in range(len(arrays))]
            outputs = [Path(scratch) / f"out{number}.bin" for number in range(len(self.outputs[part]))]
            for path, array in zip(inputs, arrays, strict=True):
                np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tofile(path)
            self.send(inputs)
            command = [self.program, "-m", "hw", "-a", self.remote_path(file)]
            command += [word for path in inputs for word in ("-i", self.remote_path(path))]
            command += [word for path in outputs for word in ("-o", self.remote_path(path))]
            output = self._start([*command, "-c", "1", "-b", "100"], file)
            milliseconds = TOTAL.search(output)
            if milliseconds is None:
                raise RuntimeError(f"neuronrt ran {file.name} and says no total inference time: {_last_line(output)}")
            self.inference_ms[part].append(float(milliseconds[1]))
            self.fetch(outputs)
            pairs = zip(outputs, self.outputs[part], strict=True)
            return [np.asarray(read_raw(path, entry, self.padded[part]), np.float32) for path, entry in pairs]

    def remote_path(self, path: Path) -> str:
        """Return a file's path for the program; adb.py runs it on another machine."""
        return str(path)

    def send(self, files: Sequence[Path]) -> None:
        """Copy inputs to where the program reads them."""

    def fetch(self, files: Sequence[Path]) -> None:
        """Copy outputs from where the program wrote them."""

    def _start(self, command: Sequence[str], file: Path) -> str:
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=CALL_S, check=False, errors="replace"
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise RuntimeError(f"neuronrt cannot run {file.name}: {str(exc)[:200]}") from exc
        output = done.stdout + done.stderr
        if done.returncode:
            raise RuntimeError(f"neuronrt cannot run {file.name} ({done.returncode}): {_last_line(output)}")
        return output


def check_description(description: str, part: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Compare the output of `neuronrt -d` for a file with its part; raises RuntimeError where it differs."""
    before, _, after = description.partition("Output")
    for kind, text, tensors in (("inputs", before, inputs), ("outputs", after, outputs)):
        found = sorted((int(h), [int(n) for n in shape.split("x")]) for h, shape in HANDLE.findall(text))
        if [number for number, _ in found] != list(range(len(tensors))):
            raise RuntimeError(f"neuronrt describes {len(found)} {kind} of {part} where {len(tensors)} are expected")
        for (number, shape), tensor in zip(found, tensors, strict=True):
            own = [size for size in tensor["shape"] if size != 1]
            if [size for size in shape if size != 1] != own:
                raise RuntimeError(
                    f"{part} has handle {number} of its {kind} as {shape}, and {tensor['name']} is {tensor['shape']}"
                )


def read_raw(path: Path, tensor: Tensor, padded: bool) -> NDArray[Any]:
    """Read a raw output file, little-endian; its length says whether it is float16 or float32."""
    if not path.is_file():
        raise RuntimeError(f"neuronrt wrote no {tensor['name']}")
    array = allocate("neuronrt", tensor, path.stat().st_size, padded)
    base: NDArray[Any] = array if array.base is None else array.base
    base[...] = np.fromfile(path, array.dtype.newbyteorder("<")).reshape(base.shape)
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
    """Open the first library that exists and declare its functions; None where none has the interface."""
    for name in names:
        try:
            library = ctypes.CDLL(name)
            pointer, size = ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t)
            library.NeuronRuntimeV2_create.argtypes = (
                *(ctypes.c_char_p, ctypes.c_size_t, ctypes.POINTER(pointer), ctypes.c_size_t),
            )
            for kind in ("Input", "Output"):
                getattr(library, f"NeuronRuntimeV2_get{kind}Number").argtypes = (pointer, size)
                for padded in ("", "Padded"):
                    function = getattr(library, f"NeuronRuntimeV2_get{kind}{padded}Size")
                    function.argtypes = (pointer, ctypes.c_uint64, size)
            library.NeuronRuntimeV2_run.argtypes = (pointer, Request)
            library.NeuronRuntimeV2_release.argtypes = (pointer,)
            library.NeuronRuntimeV2_release.restype = None
            return library
        except (OSError, AttributeError):
            continue
    return None


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"
