"""Make service_pb2.py anew from service.proto: `make proto`."""

import importlib.resources
import re
import tempfile
from pathlib import Path

from nightjar.closure import ROOT

PROTO = Path(__file__).with_name("service.proto")
MADE = PROTO.with_name("service_pb2.py")


def regenerated() -> str:
    """Return the source of service_pb2.py as protoc writes it now, without the lines that tie it to protoc's own day.

    These refuse any older runtime, and boards have what their vendor pins; the descriptor itself is plain proto3, which
    every runtime since protobuf 4 reads.
    """
    from grpc_tools import protoc  # a tool of `.[service]`, not needed to serve

    with tempfile.TemporaryDirectory() as folder:
        included = importlib.resources.files("grpc_tools") / "_proto"
        command = ["protoc", f"-I{ROOT}", f"-I{included}", f"--python_out={folder}", PROTO.relative_to(ROOT).as_posix()]
        if protoc.main(command):
            raise RuntimeError(f"protoc does not take {PROTO}: mend it, then `make proto`")
        source = Path(folder, MADE.relative_to(ROOT)).read_text(encoding="utf-8")
    source = re.sub(r"^from google\.protobuf import runtime_version.*\n", "", source, flags=re.MULTILINE)
    return re.sub(r"^_runtime_version\.ValidateProtobufRuntimeVersion\([^)]*\)\n", "", source, flags=re.MULTILINE)


if __name__ == "__main__":
    MADE.write_text(regenerated(), encoding="utf-8")
