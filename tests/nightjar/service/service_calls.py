"""What tests of the board service ask of it, as hosts and as strangers."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from nightjar.request import HarvestRequest
from nightjar.service import service_pb2 as pb
from nightjar.service.protocol import SERVICE

SHAPES = {"hidden": (250, 32)}
ZEROS = bytes(16000)
GOOD = pb.Result(
    id="w0000",
    tensors=[pb.Tensor(name="hidden", shape=[250, 32], data=ZEROS, sha256=hashlib.sha256(ZEROS).digest())],
)
TOKEN = "correct-horse-battery-staple"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def asked(binary: Path, speech: Path, out: Path, **more: Any) -> HarvestRequest:
    return HarvestRequest(**{"binary": binary, "speech": speech, "board": "svc", "out": out, "shard_mib": 1, **more})


def waves(count: int, seconds: float = 0.3) -> Iterator[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    for number in range(count):
        yield f"w{number:04d}", (rng.standard_normal(int(16000 * seconds)) * 900).astype(np.int16)


def clip_of(name: str, wave: np.ndarray, **more: Any) -> pb.Clip:
    data = wave.astype("<i2").tobytes()
    return pb.Clip(**{"id": name, "wave": data, "sha256": hashlib.sha256(data).digest(), **more})


def stream(port: int, clips: Iterator[pb.Clip], **call: Any) -> Any:
    """Speak to a service as no client of ours would."""
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)])
    encode = channel.stream_stream(f"/{SERVICE}/Encode", pb.Clip.SerializeToString, pb.Result.FromString)
    return encode(clips, **call)
