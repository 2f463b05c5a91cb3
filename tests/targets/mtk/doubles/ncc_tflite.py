"""A strict double of ncc-tflite 8.2, by its public --help: it refuses unknown options, no model, no library path.

What fails on purpose is in `inject.json` beside it: {"status": n, "says": line, "empty": true, "edpa": "bridge" or
"always", "silent": true, "cpu": op}.
"""

import json
import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FLAGS = {
    *("--relax-fp32", "--opt-accuracy", "--opt-footprint", "--suppress-output", "--disallow-bridge"),
    *("--show-exec-plan", "--show-io-info"),
}
VALUED = {"--arch": r"mdla5\.3(,edma3\.6)?", "--l1-size-kb": "256", "--num-mdla": "1", "--platform-config": "mt8371"}


def main(arguments: list[str]) -> int:
    inject = json.loads((HERE / "inject.json").read_text()) if (HERE / "inject.json").is_file() else {}
    version = inject.get("version", "8.2.19")
    if Path(os.environ["LD_LIBRARY_PATH"]) != HERE.parent / "lib":
        return refuse("error while loading shared libraries: libneuron_host.so")
    if arguments == ["--version"]:
        print(f"ncc-tflite version: {version} (double)")
        return 0
    said, dla, model = set(), None, None
    words = iter(arguments)
    for word in words:
        name, _, value = word.partition("=")
        if word == "-d":
            dla = Path(next(words))
        elif name in VALUED and re.fullmatch(VALUED[name], value):
            said.add(name)
        elif word in FLAGS:
            said.add(word)
        elif word.startswith("-"):
            return refuse(f"ncc-tflite: unrecognized option '{word}'")
        elif model is None:
            model = Path(word)
        else:
            return refuse("ncc-tflite: more than one model")
    if model is None or dla is None or model.suffix != ".tflite" or model.read_bytes()[4:8] != b"TFL3":
        return refuse("ERROR: Cannot parse the TFLite model")
    if ("--platform-config" in said) == ("--arch" in said):
        return refuse("ERROR: --arch or --platform-config, one of the two")
    if "status" in inject:
        print(inject.get("says", ""))
        return int(inject["status"])
    plain = "--disallow-bridge" not in said
    if not inject.get("silent"):
        plan(model, inject, bridge=plain)
    dla.write_bytes(b"" if inject.get("empty") else b"DLA8" + model.read_bytes())
    return 0


def plan(model: Path, inject: dict[str, str], bridge: bool) -> None:
    sys.path.insert(0, str(Path(os.environ.get("NIGHTJAR_ROOT", inject["root"]))))
    from targets.mtk.tflite import read

    ops = read(model).ops
    print("Execution plan:")
    for number, op in enumerate(ops):
        target = (
            "CPU" if op.op == inject.get("cpu") else "EDMA_3_6" if op.op in ("RESHAPE", "TRANSPOSE") else "MDLA_5_3"
        )
        print(f"  step {number}: {op.op} -> {target}")
    if inject.get("edpa") == "always" or (inject.get("edpa") == "bridge" and bridge):
        print(f"  step {len(ops)}: BRIDGE -> EDPA_1_2")
    print(f"# of output tensors: {len(read(model).outputs)}")


def refuse(said: str) -> int:
    print(said, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
