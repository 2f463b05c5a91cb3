"""A strict double of neuronrt 8.2: handles described by -d, raw files in their order, a total time.

It runs what the double of mtk_converter put behind the .tflite in a .dla. What fails on purpose is in
NIGHTJAR_DOUBLE_NEURONRT: status, silent, nothing, handles.
"""

import os
import sys
from pathlib import Path

import numpy as np

INJECT = os.environ.get("NIGHTJAR_DOUBLE_NEURONRT", "")


def main(arguments: list[str]) -> int:
    if arguments == ["-v"]:
        print("NeuronRT\nVersion: 8.2.16")
        return 0
    import io

    import torch

    words = {"-i": [], "-o": []}
    single = {}
    it = iter(arguments)
    for word in it:
        if word in words:
            words[word].append(next(it))
        elif word in ("-m", "-a", "-c", "-b"):
            single[word] = next(it)
        elif word == "-d":
            single["-d"] = ""
        else:
            print(f"neuronrt: unknown option {word}", file=sys.stderr)
            return 2
    content = Path(single["-a"]).read_bytes()
    if content[:4] != b"DLA8":
        print("ERROR: Cannot load network", file=sys.stderr)
        return 1
    source = content.rpartition(b"TORCHSCRIPT")[2]
    extra = {"shapes.json": ""}
    module = torch.jit.load(io.BytesIO(source), _extra_files=extra)
    shapes = shapes_of(content)
    if "-d" in single:
        for title, group in zip(("Input", "Output"), shapes, strict=True):
            print(title)
            for handle, shape in enumerate(group[: 1 if INJECT == "handles" else None]):
                print(f"Handle = {handle}, <{' x '.join(map(str, shape))}>, size = {4 * int(np.prod(shape))}")
        return 0
    if INJECT == "status":
        print("ERROR: /dev/apusys: Permission denied", file=sys.stderr)
        return 255
    if single.get("-m") != "hw" or len(words["-i"]) != len(shapes[0]) or len(words["-o"]) != len(shapes[1]):
        print("ERROR: wrong number of inputs or outputs", file=sys.stderr)
        return 3
    given = []
    for path, shape in zip(words["-i"], shapes[0], strict=True):
        array = np.fromfile(path, "<f4")
        if array.size != int(np.prod(shape)):
            print(f"ERROR: size of {path}", file=sys.stderr)
            return 4
        given.append(torch.from_numpy(array.reshape(shape)))
    with torch.inference_mode():
        found = module(*given)
    for path, tensor in zip(words["-o"], found if isinstance(found, tuple) else (found,), strict=True):
        if INJECT != "nothing":
            tensor.numpy().astype("<f4").tofile(path)
    if INJECT != "silent":
        print(f"Total inference time = {7 * int(single.get('-c', '1'))} ms")
    return 0


def shapes_of(content: bytes) -> tuple[list[list[int]], list[list[int]]]:
    import tempfile

    from targets.mtk.tflite import read

    with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
        file.write(content[4:])
        file.flush()
        model = read(Path(file.name))
    return tuple([list(model.tensors[i].shape) for i in group] for group in (model.inputs, model.outputs))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
