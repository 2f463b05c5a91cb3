"""Make service_pb2.py and its types anew from service.proto: `make proto`."""

import importlib.resources
import re
import tempfile
from pathlib import Path

from nightjar.paths import ROOT

PROTO = Path(__file__).with_name("service.proto")


def generate_code() -> dict[Path, str]:
    """Return what protoc writes now, without the lines that tie it to protoc's own day.

    These refuse any older runtime, and boards have what their vendor pins; the descriptor itself is plain proto3, which
    every runtime since protobuf 4 reads.
    """
    from grpc_tools import protoc  # a tool of `.[service]`, not needed to serve

    with tempfile.TemporaryDirectory() as folder:
        included = importlib.resources.files("grpc_tools") / "_proto"
        name = PROTO.relative_to(ROOT).as_posix()
        outs = [f"--python_out={folder}", f"--pyi_out={folder}"]
        if protoc.main(["protoc", f"-I{ROOT}", f"-I{included}", *outs, name]):
            raise RuntimeError(f"protoc does not take {PROTO}: mend it, then `make proto`")
        made = {
            ROOT / path.relative_to(folder): path.read_text(encoding="utf-8")
            for path in sorted(Path(folder).rglob("service_pb2.py*"))
        }
    tied = (
        r"^(from google\.protobuf import runtime_version.*|_runtime_version\.ValidateProtobufRuntimeVersion\([^)]*\))\n"
    )
    return {path: re.sub(tied, "", source, flags=re.MULTILINE) for path, source in made.items()}


if __name__ == "__main__":
    for made_path, source_text in generate_code().items():
        made_path.write_text(source_text, encoding="utf-8")
