"""A real board service in a process of its own, runners that misbehave on request, and certificates: for tests."""

import datetime
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ROOT = Path(__file__).resolve().parents[1]

# Runs the onnx encoder, and does beside it what its source says in {before} and {after}.
RUNNER = """
import hashlib, os, sys, time
from pathlib import Path
import numpy as np
from targets.onnx import runner as onnx

def once(folder):
    # Exactly one caller, of whichever thread, is the first.
    try:
        os.close(os.open(folder / ".once", os.O_CREAT | os.O_EXCL))
        return True
    except FileExistsError:
        return False

class Runner:
    def __init__(self, folder, inner):
        self.folder, self.inner = folder, inner
    def run(self, part, inputs, constant={{}}):
        with open(self.folder / ".ran", "a") as log:
            log.write(hashlib.sha256(inputs["mel"].tobytes()).hexdigest() + "\\n")
        {before}
        outputs = self.inner.run(part, inputs, constant)
        {after}
        return outputs
    def close(self):
        self.inner.close()

def open_runner(folder, parts, options=None):
    return Runner(Path(folder), onnx.open_runner(folder, parts, options))
"""


def small_binary(folder: Path, n_frames: int = 500, rows: int = 250, width: int = 32) -> Path:
    """Write a binary of one part, an encoder with a convolution, GELU and a projection in seeded noise."""
    noise = np.random.default_rng(3)
    weights = {
        "taps": noise.standard_normal((width, 80, 3)) / 15,
        "projection": noise.standard_normal((width, width)) / 6,
        "sqrt2": np.sqrt(2.0),
        "one": 1.0,
    }
    stride = n_frames // rows
    nodes = [
        onnx.helper.make_node("Conv", ["mel", "taps"], ["c"], pads=[1, 1], strides=[stride]),
        onnx.helper.make_node("Div", ["c", "sqrt2"], ["d"]),
        onnx.helper.make_node("Erf", ["d"], ["e"]),
        onnx.helper.make_node("Add", ["e", "one"], ["f"]),
        onnx.helper.make_node("Mul", ["c", "f"], ["g"]),
        onnx.helper.make_node("Transpose", ["g"], ["t"], perm=[0, 2, 1]),
        onnx.helper.make_node("MatMul", ["t", "projection"], ["hidden"]),
    ]
    shapes = {"mel": [1, 80, n_frames], "hidden": [1, rows, width]}
    mel, hidden = (onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items())
    held = [onnx.numpy_helper.from_array(np.float32(value), name) for name, value in weights.items()]
    graph = onnx.helper.make_graph(nodes, "encoder", [mel], [hidden], held)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9),
        folder / "encoder.onnx",
    )
    entry = {"runner": "onnx", "file": "encoder.onnx"}
    ends = {
        kind: [{"name": name, "shape": shapes[name], "dtype": "float32"}]
        for kind, name in (("inputs", "mel"), ("outputs", "hidden"))
    }
    model = {
        "family": "whisper",
        "dims": {"n_mels": 80, "n_audio_ctx": rows, "n_audio_state": width},
        "n_frames": n_frames,
        "recipe": {"window_s": n_frames / 100, "decoder": "cached"},
        "harvest": ["hidden"],
        "parts": {"encoder": {"file": "encoder.onnx", **ends}},
    }
    (folder / "model.json").write_text(json.dumps(model))
    binary = {"target": "onnx", "precision": "fp", "parts": {"encoder": entry}}
    (folder / "binary.json").write_text(json.dumps(binary))
    return folder


def with_runner(binary: Path, folder: Path, before: str = "pass", after: str = "pass") -> Path:
    """Copy a binary so that its encoder runs in a runner that does something more; it says in `.ran` what it ran."""
    made = folder / "targets" / "odd" / "runner.py"
    made.parent.mkdir(parents=True)
    made.write_text(RUNNER.format(before=before, after=after))
    # The server has `folder` on its PYTHONPATH; this makes its targets/ part of the package.
    (folder / "sitecustomize.py").write_text(
        f"import targets\n\ntargets.__path__.append({str(folder / 'targets')!r})\n"
    )
    copy = folder / "binary"
    shutil.copytree(binary, copy)
    described = json.loads((copy / "binary.json").read_text())
    described["parts"]["encoder"]["runner"] = "odd"
    (copy / "binary.json").write_text(json.dumps(described))
    return copy


def ran(binary: Path) -> list[str]:
    """List what a runner of `with_runner` ran, as sha256 of its input."""
    log = binary / ".ran"
    return log.read_text().splitlines() if log.exists() else []


class Server:
    """`python -m nightjar.service.main` as a board would start it."""

    def __init__(self, binary: Path, *flags: str | Path, listen: str = "localhost:0", cli: bool = False) -> None:
        lock = binary.parent / "lock"
        start = ["nightjar.cli.main", "board", "serve"] if cli else ["nightjar.service.main"]
        command = [sys.executable, "-m", *start, "--binary", binary, "--listen", listen, "--lock", lock, *flags]
        environment = os.environ | {"PYTHONPATH": f"{ROOT}:{binary.parent}"}
        self.process = subprocess.Popen(
            list(map(str, command)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline().strip()
        self.errors: list[str] = []
        self._listener = threading.Thread(target=lambda: self.errors.extend(self.process.stderr or ()), daemon=True)
        self._listener.start()
        if not self.line:
            self.process.wait()
            self._listener.join()
        self.port = int(self.line.split(" on ")[1].split(",")[0].rpartition(":")[2]) if self.line else 0

    def __enter__(self) -> "Server":
        assert self.line, self.errors
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._listener.join()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()

    def rss(self) -> int:
        """Return its resident bytes."""
        return rss(self.process.pid)


def rss(pid: int) -> int:
    """Return the resident bytes of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def boards(folder: Path, port: int, lines: Sequence[str] = (), host: str = "localhost") -> Path:
    """Write a boards.toml whose board `svc` is reached by its service."""
    path = folder / "boards.toml"
    path.write_text("\n".join(["[svc]", f'service = "{host}:{port}"', *lines]) + "\n")
    return path


def certificates(folder: Path) -> None:
    """Write PEM files: an authority `ca`, and `server`, `client` by it; and an authority `other` with `stranger`."""
    for authority, names in (("ca", ("server", "client")), ("other", ("stranger",))):
        key = _certificate(folder, authority, None)
        for name in names:
            _certificate(folder, name, (authority, key))


def _certificate(
    folder: Path, name: str, issuer: tuple[str, ec.EllipticCurvePrivateKey] | None
) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    issued_by, signing = issuer or (name, key)
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in (name, issued_by)]
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(names[0])
        .issuer_name(names[1])
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(signing, hashes.SHA256())
    )
    (folder / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    path = folder / f"{name}.key"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    path.chmod(0o600)
    return key
