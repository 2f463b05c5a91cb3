"""Generate service_pb2.py and its types from service.proto: `make proto`."""

import importlib.resources
import re
import tempfile
from pathlib import Path

from nightjar.paths import ROOT

PROTO = Path(__file__).with_name("service.proto")


def generate_code() -> dict[Path, str]:
    """Return protoc's output by path, without the lines that require protoc's own runtime version.

    Boards have older runtimes; the descriptor is plain proto3, which every runtime since protobuf 4 reads.
    """
    from grpc_tools import protoc  # a tool of `.[service]`, not needed to serve

    with tempfile.TemporaryDirectory() as folder:
        included = importlib.resources.files("grpc_tools") / "_proto"
        name = PROTO.relative_to(ROOT).as_posix()
        outs = [f"--python_out={folder}", f"--pyi_out={folder}"]
        if protoc.main(["protoc", f"-I{ROOT}", f"-I{included}", *outs, name]):
            raise RuntimeError(f"protoc rejects {PROTO}: correct it, then `make proto`")
        generated = {
            ROOT / path.relative_to(folder): path.read_text(encoding="utf-8")
            for path in sorted(Path(folder).rglob("service_pb2.py*"))
        }
    version_check = (
        r"^(from google\.protobuf import runtime_version.*|_runtime_version\.ValidateProtobufRuntimeVersion\([^)]*\))\n"
    )
    return {path: re.sub(version_check, "", source, flags=re.MULTILINE) for path, source in generated.items()}


if __name__ == "__main__":
    for path, source in generate_code().items():
        path.write_text(source, encoding="utf-8")
