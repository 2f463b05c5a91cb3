"""`nightjar board serve`: offer a binary's encoder to hosts over gRPC, on this machine alone or over TLS.

On a board that has a copy of this repository and of Python's packages only numpy, grpcio, protobuf and the vendor's
runtime, it is

    python3 -m nightjar.service.main --binary FOLDER
"""

from __future__ import annotations  # boards have older Pythons

import argparse
import contextlib
import os
import signal
import ssl
import sys
from pathlib import Path

from nightjar.errors import BadOptions, NightjarError
from nightjar.service.protocol import (
    DEADLINE_S,
    Endpoint,
    grpc_module,
    is_loopback,
    read_file,
    read_secret,
    read_token,
    split_address,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the flags of the service."""
    parser.add_argument("--binary", type=Path, required=True, help="folder that build wrote (docs/files.md)")
    parser.add_argument(
        "--listen", default="localhost:50051", help="HOST:PORT; port 0 for any that is free (default: localhost:50051)"
    )
    parser.add_argument("--tls-cert", type=Path, help="server certificate, PEM; needed beyond localhost")
    parser.add_argument("--tls-key", type=Path, help="its private key, PEM")
    parser.add_argument("--client-ca", type=Path, help="let in who has a certificate of this authority, PEM")
    parser.add_argument("--token-file", type=Path, help="let in who has this token, a line of 16 characters or more")
    parser.add_argument(
        "--workers",
        type=int,
        default=2,
        help="runners, each with the encoder loaded: one hears while another computes features (default: 2)",
    )
    parser.add_argument("--in-flight", type=int, default=8, help="clips held in memory at most (default: 8)")
    parser.add_argument(
        "--deadline", type=float, default=DEADLINE_S, metavar="S", help="seconds for a clip (default: 300)"
    )
    parser.add_argument(
        "--lock", type=Path, default=Path("/tmp/nightjar.lock"), help="file that the board's only user holds locked"
    )


def parse_endpoint(asked: argparse.Namespace) -> Endpoint:
    """Check where to listen and who may come in; raises BadOptions for what would let everybody in."""
    host, port = split_address(asked.listen)
    if (asked.tls_cert is None) != (asked.tls_key is None):
        raise BadOptions("--tls-cert and --tls-key go together: give both, or neither and listen on localhost")
    if asked.tls_cert is None and not is_loopback(host):
        raise BadOptions(
            f"{asked.listen} can be reached from other machines: give --tls-cert and --tls-key, or listen on "
            f"localhost:{port} and come by `ssh -L {port}:localhost:{port}`"
        )
    if asked.tls_cert is None and asked.client_ca is not None:
        raise BadOptions("--client-ca needs TLS: give --tls-cert and --tls-key")
    if asked.tls_cert is not None and asked.client_ca is None and asked.token_file is None:
        raise BadOptions("TLS alone lets everybody in: give --client-ca or --token-file")
    tls = None
    if asked.tls_cert is not None:
        tls = (read_secret(asked.tls_key, "key"), read_file(asked.tls_cert, "certificate"))
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(asked.tls_cert, asked.tls_key, password="")
        except (ssl.SSLError, ValueError) as error:
            raise BadOptions(
                f"{asked.tls_cert} and {asked.tls_key} are no certificate and its key, in PEM and without passphrase "
                f"({type(error).__name__}): give both of one pair"
            ) from error
    host = {"localhost": "127.0.0.1"}.get(host, host)  # which localhost may also be, is nobody's guess
    return Endpoint(
        address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        tls=tls,
        client_ca=read_file(asked.client_ca, "authority") if asked.client_ca else None,
        token=read_token(asked.token_file) if asked.token_file else None,
    )


def serve(asked: argparse.Namespace) -> int:
    """Serve until interrupted; the first line on stdout says where."""
    if asked.workers < 1 or asked.in_flight < asked.workers or not asked.deadline > 0:
        raise BadOptions("at least one of --workers, as many --in-flight, and a --deadline above 0 are wanted")
    door = parse_endpoint(asked)
    grpc_module()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is imported, as nightjar/device/session.py says
    from nightjar.service.server import EncoderPool, started  # grpc, numpy and the runtime, only to serve

    encoders = EncoderPool(asked.binary, asked.workers)
    server, port = started(encoders, door, asked.in_flight, asked.deadline, str(asked.lock))
    way = f"{door.address.rpartition(':')[0]}:{port}"
    secured = "TLS" if door.tls else "no TLS, this machine alone"
    print(f"serving {asked.binary} ({encoders.binary[:12]}) on {way}, {secured}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.wait_for_termination()
    server.stop(1).wait()
    return 130


def replaced(asked: argparse.Namespace) -> int:
    """Become the process that a board would run: without the rest of Nightjar, and numpy's threads set in time."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = {action.dest: getattr(asked, action.dest, None) for action in parser._actions if action.dest != "help"}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
    os.execv(sys.executable, [sys.executable, "-m", "nightjar.service.main", *words])


def main() -> int:
    """Serve without the rest of Nightjar; a failure is one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python3 -m nightjar.service.main", description="a binary's encoder over gRPC"
    )
    add_arguments(parser)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return serve(parser.parse_args())
    except KeyboardInterrupt:
        return 130
    except NightjarError as error:
        print(f"nightjar: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
