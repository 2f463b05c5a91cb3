"""Run compiled parts on the NPU: numpy and MediaTek's Neuron runtime, through its C library or its program.

The library (NeuronRuntimeV2, headers RuntimeV2.h and Types.h of the Neuron SDK) loads a part once and runs it many
times. Where it is absent, `neuronrt` is started for every call, which costs a start and a load each time and cannot be
stale. `inference_ms` has what the NPU itself took of each call, where that is said, and `load_s` what loading took.
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

Tensors = dict[str, NDArray[Any]]
Tensor = Mapping[str, Any]  # {"name", "shape", "dtype"}

LIBRARIES = ("libneuron_runtime.so", "libneuronusdk_runtime.mtk.so", "libneuronusdk_runtime.mtk.so.8")
SBIN = "/usr/sbin:/usr/local/sbin"  # not on every PATH that sshd gives
ERRORS = ("", "out of memory", "incomplete", "unexpected null", "bad data", "bad state", "runtime error")  # Types.h
THREADS, BACKLOG = 1, 8
ROW = 16  # elements that a row of a suppressed output is padded to
CALL_S = 120.0
TOTAL = re.compile(r"Total inference time = *([\d.]+) *ms")
HANDLE = re.compile(r"Handle *= *(\d+), *<([\d x]+)")


class IOBuffer(ctypes.Structure):
    """RuntimeV2.h; fd is -1 for plain memory, and 0 would be a file descriptor of somebody's."""

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
    """One part in the runtime: its memory is allotted once, and only its content changes from run to run."""

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
        self._given, self._made = self._descriptors(self.inputs), self._descriptors(self.outputs)

    def run(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Run once; the memory and the descriptors are the same every time (a new one may not be read at all)."""
        for place, array in zip(self.inputs, arrays):  # noqa: B905 (boards have older Pythons)
            np.copyto(place, array, casting="same_kind")
        self._call("run", self.handle, Request(self._given, self._made))
        return [np.array(place) for place in self.outputs]

    def release(self) -> None:
        if self.handle:
            self.runtime.NeuronRuntimeV2_release(self.handle)
            self.handle = ctypes.c_void_p()

    def _memory(self, kind: str, tensors: Sequence[Tensor], padded: str) -> list[NDArray[Any]]:
        count = ctypes.c_size_t()
        self._call(f"get{kind}Number", self.handle, ctypes.byref(count))
        if count.value != len(tensors):
            raise RuntimeError(f"{self.name} has {count.value} {kind.lower()}s where {len(tensors)} are expected")
        places = []
        for number, tensor in enumerate(tensors):
            size = ctypes.c_size_t()
            self._call(f"get{kind}{padded}Size", self.handle, ctypes.c_uint64(number), ctypes.byref(size))
            places.append(laid_out(self.name, tensor, size.value, bool(padded)))
        return places

    def _descriptors(self, places: Sequence[NDArray[Any]]) -> Any:
        made = (IOBuffer * len(places))()
        for entry, place in zip(made, places):  # noqa: B905
            base = place if place.base is None else place.base
            entry.buffer, entry.length, entry.fd, entry.offset = base.ctypes.data, base.nbytes, -1, 0
        return made

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self.runtime, f"NeuronRuntimeV2_{name}")(*arguments)
        if status:
            said = ERRORS[status] if 0 < status < len(ERRORS) else "unknown"
            hint = "; a .dla of another SDK version than the runtime does not load" if name == "create" else ""
            raise RuntimeError(f"the Neuron runtime cannot {name} {self.name}: error {status}, {said}{hint}")


def laid_out(name: str, tensor: Tensor, size_bytes: int, padded: bool) -> NDArray[Any]:
    """Allot memory for a tensor as the runtime wants it: the NPU's float16 or float32, rows padded where it says so.

    Returns an array of the tensor's own shape; where rows are padded it is a view of what is allotted.
    """
    shape = tuple(tensor["shape"])
    row = -(-shape[-1] // ROW) * ROW if padded and shape else 0
    for dtype in (np.dtype(tensor["dtype"]), np.dtype(np.float32), np.dtype(np.float16)):
        if size_bytes == int(np.prod(shape)) * dtype.itemsize:
            return np.zeros(shape, dtype)
        if padded and size_bytes == int(np.prod(shape[:-1])) * row * dtype.itemsize:
            return np.zeros((*shape[:-1], row), dtype)[..., : shape[-1]]
    raise RuntimeError(f"{name} wants {size_bytes} bytes for {tensor['name']}, which is {shape}, {tensor['dtype']}")


class Parts:
    """What both ways of running have in common: names, shapes, the order of tensors."""

    def __init__(self, parts: Mapping[str, Mapping[str, Any]]) -> None:
        self.inputs: dict[str, list[Tensor]] = {name: part["inputs"] for name, part in parts.items()}
        self.outputs: dict[str, list[Tensor]] = {name: part["outputs"] for name, part in parts.items()}
        self.load_s: dict[str, float] = {}
        self.inference_ms: dict[str, list[float]] = {name: [] for name in parts}

    def run(self, part: str, inputs: Tensors, constant: Mapping[str, NDArray[Any]] = {}) -> Tensors:
        """Run one part and return its outputs by name, float32; raises RuntimeError with one line."""
        if part not in self.inputs:
            raise RuntimeError(f"no part {part!r} here: have {', '.join(sorted(self.inputs))}")
        given, wanted = {**inputs, **constant}, self.inputs[part]
        if given.keys() != {entry["name"] for entry in wanted}:
            raise RuntimeError(f"{part} takes {', '.join(e['name'] for e in wanted)}, not {', '.join(given)}")
        for entry in wanted:
            if list(given[entry["name"]].shape) != list(entry["shape"]):
                shape = given[entry["name"]].shape
                raise RuntimeError(f"{part} takes {entry['name']} as {tuple(entry['shape'])}, not {shape}")
        results = self._run(part, [given[entry["name"]] for entry in wanted])
        return {
            entry["name"]: np.asarray(result, np.float32).reshape(entry["shape"])
            for entry, result in zip(self.outputs[part], results)  # noqa: B905
        }

    def _run(self, part: str, arrays: Sequence[NDArray[Any]]) -> Sequence[NDArray[Any]]:
        raise NotImplementedError


class NeuronRunner(Parts):
    """Hold one network per part in the C library."""

    def __init__(self, library: Any, folder: Path, parts: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(parts)
        self.networks: dict[str, Network] = {}
        for name, part in parts.items():
            start = time.perf_counter()
            self.networks[name] = Network(library, folder / part["file"], part)
            self.load_s[name] = time.perf_counter() - start
            try:
                require_fresh(name, part["inputs"], self.networks[name].run)
            except RuntimeError:
                self.close()
                raise

    def _run(self, part: str, arrays: Sequence[NDArray[Any]]) -> Sequence[NDArray[Any]]:
        start = time.perf_counter()
        results = self.networks[part].run(arrays)
        self.inference_ms[part].append(1000 * (time.perf_counter() - start))
        return results

    def close(self) -> None:
        """Release the networks and their memory."""
        for network in self.networks.values():
            network.release()
        self.networks.clear()


def require_fresh(
    part: str, tensors: Sequence[Tensor], run: Callable[[Sequence[NDArray[Any]]], Sequence[NDArray[Any]]]
) -> None:
    """Raise RuntimeError where two inputs have one output: runtimes were seen that read inputs once and for all."""
    noise = np.random.default_rng(0)
    first, second = (
        [np.asarray(noise.standard_normal(tensor["shape"])).astype(tensor["dtype"]) for tensor in tensors]
        for _ in range(2)
    )
    before, after = run(first), run(second)
    if all(np.array_equal(a, b, equal_nan=True) for a, b in zip(before, after)):  # noqa: B905
        raise RuntimeError(
            f"the Neuron runtime gives {part} the same outputs for different inputs: it has latched the first; "
            "set NIGHTJAR_NEURON=neuronrt on the board to start a process for every call, or update the runtime"
        )


class NeuronrtRunner(Parts):
    """Start `neuronrt` for every call: raw files in the order of its handles."""

    def __init__(self, program: str, folder: Path, parts: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(parts)
        self.program, self.folder = program, folder
        self.files = {name: folder / part["file"] for name, part in parts.items()}
        self.padded = {name: part.get("bridge") == "disallowed" for name, part in parts.items()}
        for name, file in self.files.items():
            start = time.perf_counter()
            said = self._start([self.program, "-a", self.place(file), "-d"], file)
            described(said, name, self.inputs[name], self.outputs[name])
            self.load_s[name] = time.perf_counter() - start

    def _run(self, part: str, arrays: Sequence[NDArray[Any]]) -> Sequence[NDArray[Any]]:
        file = self.files[part]
        with tempfile.TemporaryDirectory(prefix="nightjar-neuron-") as scratch:
            given = [Path(scratch) / f"in{number}.bin" for number in range(len(arrays))]
            made = [Path(scratch) / f"out{number}.bin" for number in range(len(self.outputs[part]))]
            for path, array in zip(given, arrays):  # noqa: B905
                np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tofile(path)
            self.send(given)
            command = [self.program, "-m", "hw", "-a", self.place(file)]
            command += [word for path in given for word in ("-i", self.place(path))]
            command += [word for path in made for word in ("-o", self.place(path))]
            said = self._start([*command, "-c", "1", "-b", "100"], file)
            took = TOTAL.search(said)
            if took is None:
                raise RuntimeError(f"neuronrt ran {file.name} and says no total inference time: {_last(said)}")
            self.inference_ms[part].append(float(took[1]))
            self.fetch(made)
            return [
                read_raw(path, entry, self.padded[part])
                for path, entry in zip(made, self.outputs[part])  # noqa: B905
            ]

    def place(self, path: Path) -> str:
        """Say where the program finds a file: here, unless it runs elsewhere (adb.py)."""
        return str(path)

    def send(self, files: Sequence[Path]) -> None:
        """Put inputs where the program reads them."""

    def fetch(self, files: Sequence[Path]) -> None:
        """Get outputs from where the program wrote them."""

    def _start(self, command: Sequence[str], file: Path) -> str:
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=CALL_S, check=False, errors="replace"
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise RuntimeError(f"neuronrt cannot run {file.name}: {str(exc)[:200]}") from exc
        said = done.stdout + done.stderr
        if done.returncode:
            raise RuntimeError(f"neuronrt cannot run {file.name} ({done.returncode}): {_last(said)}")
        return said

    def close(self) -> None:
        """Nothing runs between calls."""


def described(said: str, part: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Hold what `neuronrt -d` says of a file against what it should have; raises RuntimeError where it differs."""
    before, _, after = said.partition("Output")
    for kind, text, tensors in (("inputs", before, inputs), ("outputs", after, outputs)):
        found = sorted((int(h), [int(n) for n in shape.split("x")]) for h, shape in HANDLE.findall(text))
        if [number for number, _ in found] != list(range(len(tensors))):
            raise RuntimeError(f"neuronrt describes {len(found)} {kind} of {part} where {len(tensors)} are expected")
        for (number, shape), tensor in zip(found, tensors):  # noqa: B905
            own = [size for size in tensor["shape"] if size != 1]
            if [size for size in shape if size != 1] != own:
                raise RuntimeError(
                    f"{part} has handle {number} of its {kind} as {shape}, and {tensor['name']} is {tensor['shape']}"
                )


def read_raw(path: Path, tensor: Tensor, padded: bool) -> NDArray[Any]:
    """Read a raw output file, little-endian; its length says whether it is float16 or float32."""
    if not path.is_file():
        raise RuntimeError(f"neuronrt wrote no {tensor['name']}")
    place = laid_out("neuronrt", tensor, path.stat().st_size, padded)
    base: NDArray[Any] = place if place.base is None else place.base
    base[...] = np.fromfile(path, place.dtype.newbyteorder("<")).reshape(base.shape)
    return place


def open_runner(
    folder: Path, parts: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any] | None = None
) -> Parts:
    """Open `parts` (name to {"file", "inputs", "outputs", ...}, as in binary.json) that lie in `folder`.

    NIGHTJAR_NEURON in the environment: `neuronrt` for the program, or the path of the library; by default the library
    where it is, else the program. Raises RuntimeError with one line.
    """
    for name, part in parts.items():
        if not (Path(folder) / part["file"]).is_file():
            raise RuntimeError(f"no file {Path(folder) / part['file']} for part {name!r}")
    asked = os.environ.get("NIGHTJAR_NEURON", "")
    library = None if asked == "neuronrt" else open_library((asked,) if asked else LIBRARIES)
    if library is not None:
        return NeuronRunner(library, Path(folder), parts)
    program = shutil.which("neuronrt") or shutil.which("neuronrt", path=SBIN) or ""
    if not program:
        raise RuntimeError(
            "no Neuron runtime on this board: install mediatek-libneuron and mediatek-neuron-utils, "
            "and let /dev/apusys* be read and written"
        )
    return NeuronrtRunner(program, Path(folder), parts)


def open_library(names: Sequence[str]) -> Any:
    """Open the first library there is, with its functions declared; None where there is none of that interface."""
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


def _last(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it prints nothing"
