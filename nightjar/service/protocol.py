"""Names, sizes and credentials of the board service, for both ends; grpc is imported only when it is needed."""

from __future__ import annotations  # boards have older Pythons

import hashlib
import ipaddress
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from nightjar.errors import BadOptions, Missing

SERVICE = "nightjar.Session"
TOKEN_KEY = "nightjar-token"
SLACK_BYTES = 1 << 16  # of a message, beside its wave or tensors
DEADLINE_S = 300.0  # a clip that takes longer than this is a hung runtime
KEEPALIVE = [
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_http_proxy", 0),  # a company's proxy does not lead to a board
]


def grpc_module() -> Any:
    """Import grpc; raises Missing with the command that installs it."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its messages come as exceptions too
    try:
        import google.protobuf  # noqa: F401
        import grpc
    except ImportError as error:
        raise Missing(
            f"the board service cannot be used here ({error}): `{sys.executable} -m pip install grpcio protobuf`, "
            "then the same command again"
        ) from error
    return grpc


def split_address(address: str) -> tuple[str, int]:
    """Split `HOST:PORT`, `[::1]:PORT` for IPv6; raises BadOptions."""
    host, _, port = address.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not port.isdigit() or int(port) > 65535 or not host.isprintable() or "/" in host:
        raise BadOptions(f"{address!r} is not an address of a board service: give HOST:PORT, such as localhost:50051")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Tell whether an address stays on this machine; a name other than localhost may not."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_token(path: Path) -> str:
    """Read a token file; raises BadOptions, which never shows its content."""
    token = read_secret(path, "token").decode("ascii", "replace").strip()
    low, high = 16, 1000
    if not low <= len(token) <= high or not token.isascii() or not token.isprintable() or " " in token:
        raise BadOptions(
            f"{path} is not a token file: write one line of {low} to {high} letters and digits, "
            "as `openssl rand -hex 32` prints"
        )
    return token


def read_secret(path: Path, what: str) -> bytes:
    """Read a key or token; raises BadOptions where others may read it."""
    if read_file(path, what) and path.stat().st_mode & 0o077:
        raise BadOptions(f"{path} can be read by others: `chmod 600` it, a {what} is for its owner only")
    return read_file(path, what)


def read_file(path: Path, what: str) -> bytes:
    """Read a small file of credentials; raises BadOptions."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadOptions(f"cannot read the {what} {path} ({error.strerror}): give the path of a file") from error


def binary_digest(folder: Path) -> str:
    """Return the sha256 of a binary folder: names and bytes of its files, without its path and record."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != "record.json" and not path.name.startswith("."):
            inner = hashlib.sha256()
            with path.open("rb") as file:
                for block in iter(lambda: file.read(1 << 20), b""):
                    inner.update(block)
            digest.update(f"{path.name} {inner.hexdigest()}\n".encode())
    return digest.hexdigest()


class Endpoint(NamedTuple):
    """Where the service listens, and which clients it accepts."""

    address: str  # as grpc writes it
    credentials: Any | None  # of grpc's server; None for no TLS
    token: str | None
