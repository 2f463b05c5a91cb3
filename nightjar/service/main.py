"""`nightjar board serve`: serve a binary's encoder to hosts over gRPC, on this machine only or over TLS.

On a board with a copy of this repository, numpy, grpcio, protobuf and the vendor's runtime it is

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
    """Add the flags of the service to a parser."""
    add = parser.add_argument
    add("--binary", type=Path, required=True, help="folder that build wrote (docs/files.md)")
    add("--listen", default="localhost:50051", help="HOST:PORT; port 0 for any free port (default: localhost:50051)")
    add("--tls-cert", type=Path, help="server certificate, PEM; needed beyond localhost")
    add("--tls-key", type=Path, help="its private key, PEM")
    add("--client-ca", type=Path, help="accept clients with a certificate of this authority, PEM")
    add("--token-file", type=Path, help="accept clients with this token, a line of 16 characters or more")
    add("--workers", type=int, default=2, help="parallel runners, each with the encoder loaded (default: 2)")
    add("--in-flight", type=int, default=8, help="clips in memory at most (default: 8)")
    add("--deadline", type=float, default=DEADLINE_S, metavar="S", help="seconds for a clip (default: 300)")
    add("--lock", type=Path, default=Path("/tmp/nightjar.lock"), help="lock file of the board: one run at a time")


def parse_endpoint(arguments: argparse.Namespace) -> Endpoint:
    """Check address and credentials; raises BadOptions for a service that everybody could use."""
    cert, key, authority, token = arguments.tls_cert, arguments.tls_key, arguments.client_ca, arguments.token_file
    host, port = split_address(arguments.listen)
    if (cert is None) != (key is None):
        raise BadOptions("--tls-cert and --tls-key go together: give both, or neither and listen on localhost")
    if cert is None and not is_loopback(host):
        raise BadOptions(
            f"{arguments.listen} can be reached from other machines: give --tls-cert and --tls-key, or listen on "
            f"localhost:{port} and use `ssh -L {port}:localhost:{port}`"
        )
    if cert is None and authority is not None:
        raise BadOptions("--client-ca needs TLS: give --tls-cert and --tls-key")
    if cert is not None and authority is None and token is None:
        raise BadOptions("TLS alone accepts every client: give --client-ca or --token-file")
    credentials = None
    if cert is not None:
        pair = (read_secret(key, "key"), read_file(cert, "certificate"))
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
        except (ssl.SSLError, ValueError) as error:
            raise BadOptions(
                f"{cert} and {key} are not a certificate and its key, in PEM and without passphrase "
                f"({type(error).__name__}): give both of one pair"
            ) from error
        client_ca = read_file(authority, "authority") if authority else None
        credentials = grpc_module().ssl_server_credentials([pair], client_ca, client_ca is not None)
    host = {"localhost": "127.0.0.1"}.get(host, host)  # localhost may also be an IPv6 address
    return Endpoint(
        address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        credentials=credentials,
        token=read_token(token) if token else None,
    )


def serve(arguments: argparse.Namespace) -> int:
    """Serve until interrupted; the first line on stdout is the address."""
    if arguments.workers < 1 or arguments.in_flight < arguments.workers or not arguments.deadline > 0:
        raise BadOptions("give at least one of --workers, as many --in-flight, and a --deadline above 0")
    endpoint = parse_endpoint(arguments)
    grpc_module()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is imported, as in nightjar/device/session.py
    from nightjar.service.server import EncoderPool, start_server  # grpc, numpy and the runtime, only to serve

    encoders = EncoderPool(arguments.binary, arguments.workers)
    server, port = start_server(encoders, endpoint, arguments.in_flight, arguments.deadline, str(arguments.lock))
    address = f"{endpoint.address.rpartition(':')[0]}:{port}"
    security = "TLS" if endpoint.credentials else "no TLS, this machine only"
    print(f"serving {arguments.binary} ({encoders.binary[:12]}) on {address}, {security}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.wait_for_termination()
    server.stop(1).wait()
    return 130


def exec_service(arguments: argparse.Namespace) -> int:
    """Replace this process by the one that a board runs: without the rest of Nightjar, with numpy's threads set."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    values = {action.dest: getattr(arguments, action.dest, None) for action in parser._actions if action.dest != "help"}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None]
    os.execv(sys.executable, [sys.executable, "-m", "nightjar.service.main", *words])


def main() -> int:
    """Serve without the rest of Nightjar; an error is one line on stderr."""
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
