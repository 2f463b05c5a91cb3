"""Who may come in to a board's service, and what stays out."""

import ast
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nightjar.boards.config import find_board
from nightjar.errors import BadOptions, BoardMissing, NightjarError, SessionFailed
from nightjar.service.client import ServiceBoard
from nightjar.sessions.bulk_harvest import harvest_speech
from nightjar.store.fingerprint import closure
from tests.loopback import Loopback
from tests.nightjar.service.service_calls import SHAPES, TOKEN, asked, content, waves
from tests.served import ROOT, Server, boards, ran, with_runner

# -- what is on the board


def test_regenerating_gives_the_code_in_the_tree(tmp_path: Path) -> None:
    command = ["make", "-o", "setup", "proto", f"BIN={Path(sys.executable).parent}", f"PROTO_OUT={tmp_path}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    generated = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.name for path in generated} == {"service_pb2.py", "service_pb2.pyi"}
    for path, source in generated.items():
        assert (ROOT / path).read_text() == source, f"`make proto` changes {path}"


def test_the_board_needs_numpy_grpc_and_protobuf_only() -> None:
    needed = closure(["nightjar.service.main", "nightjar.service.server"])
    assert set(needed.libraries) <= {"numpy", "grpc", "google"}
    for name in needed.files:
        if name != "nightjar/device/session.py" and not name.endswith("_pb2.py"):
            ast.parse((ROOT / name).read_text(), feature_version=(3, 8))


def test_without_grpc_one_line_says_what_to_install(small_binary: Path, tmp_path: Path, noises: Path) -> None:
    block = "import sys; sys.modules['grpc'] = None; "
    serving = (
        block
        + f"sys.argv[1:] = ['--binary', {str(small_binary)!r}]; from nightjar.service.main import main; exit(main())"
    )
    boards(tmp_path, 9)
    words = [
        "harvest",
        "--binary",
        str(small_binary),
        "--speech",
        str(noises),
        "--board",
        "svc",
        "--out",
        str(tmp_path),
    ]
    harvesting = block + f"from nightjar.cli.main import main; exit(main({words!r}))"
    for code in (serving, harvesting):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 3, done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert "pip install grpcio protobuf" in done.stderr


# -- who may come in


@pytest.mark.parametrize("way", ["plain", "token", "certificate"])
def test_tensors_are_those_of_a_local_session(
    way: str, small_binary: Path, noises: Path, local_dataset: Path, pems: Path, tmp_path: Path
) -> None:
    tls = ["--tls-cert", pems / "server.pem", "--tls-key", pems / "server.key"]
    flags, lines = {
        "plain": ([], []),
        "token": ([*tls, "--token-file", pems / "token"], [f'service_token = "{pems}/token"']),
        "certificate": (
            [*tls, "--client-ca", pems / "ca.pem"],
            [f'service_cert = "{pems}/client.pem"', f'service_key = "{pems}/client.key"'],
        ),
    }[way]
    listen = "localhost:0" if way == "plain" else "0.0.0.0:0"
    with Server(small_binary, *flags, listen=listen, cli=way == "plain") as server:
        boards(tmp_path, server.port, [*lines, *([f'service_ca = "{pems}/ca.pem"'] if way != "plain" else [])])
        harvested = harvest_speech(asked(small_binary, noises, tmp_path / "out"))
        assert TOKEN not in server.line
    assert harvested.new_clips == 150
    assert content(tmp_path / "out") == content(local_dataset)
    assert TOKEN not in "".join(server.errors)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--listen", "0.0.0.0:0"], "can be reached from other machines"),
        (["--listen", "board.example:0", "--token-file", "token"], "can be reached from other machines"),
        (["--tls-cert", "server.pem"], "go together"),
        (["--tls-cert", "server.pem", "--tls-key", "server.key"], "accepts every client"),
        (["--tls-cert", "server.pem", "--tls-key", "client.key", "--token-file", "token"], "of one pair"),
        (["--client-ca", "ca.pem"], "needs TLS"),
        (["--token-file", "short"], "is not a token file"),
        (["--token-file", "open"], "can be read by others"),
        (["--token-file", "absent"], "cannot read the token"),
        (["--listen", "50051"], "is not an address"),
        (["--workers", "0"], "at least one of --workers"),
        (["--binary", "/tmp"], "is not a binary"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_would_let_others_in_is_refused(
    flags: list[str], said: str, small_binary: Path, pems: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from nightjar.service import main as serve

    (pems / "short").write_text("secret\n")
    (pems / "short").chmod(0o600)
    (pems / "open").write_text(TOKEN)
    given = [str(pems / flag) if flag.isidentifier() or flag.endswith((".pem", ".key")) else flag for flag in flags]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["serve", "--binary", str(small_binary), *given])
        previous = signal.getsignal(signal.SIGTERM)
        try:
            assert serve.main() == 2
        finally:
            signal.signal(signal.SIGTERM, previous)
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert "secret" not in error
    assert TOKEN not in error


def test_a_process_beyond_loopback_without_tls_ends_with_2(small_binary: Path, tmp_path: Path) -> None:
    server = Server(small_binary, listen="0.0.0.0:0")
    assert server.process.returncode == 2
    assert "can be reached from other machines" in server.errors[-1]
    server.kill()


def test_a_stopped_service_ends_in_order_and_a_bad_lock_is_said(small_binary: Path, tmp_path: Path) -> None:
    with Server(small_binary, "--lock", "/nowhere/at/all") as server:
        boards(tmp_path, server.port)
        refused = pytest.raises(SessionFailed, match=r"refused: cannot open the lock /nowhere/at/all")
        with ServiceBoard(find_board("svc"), SHAPES) as board, refused:
            list(board.encode(waves(1)))
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 130
    assert not server.errors


def test_an_encoder_that_does_not_load_is_one_line(small_binary: Path, tmp_path: Path) -> None:
    binary = with_runner(small_binary, tmp_path)
    (binary / "encoder.onnx").write_bytes(b"no graph")
    server = Server(binary)
    assert server.process.returncode == 4
    assert [line for line in server.errors if "does not load" not in line] == []
    assert "onnxruntime cannot load" in server.errors[0]
    server.kill()


def test_a_taken_port_is_one_line(small_binary: Path, shared: Server) -> None:
    second = Server(small_binary, listen=f"localhost:{shared.port}")
    assert second.process.returncode == 4
    assert "cannot listen on" in second.errors[-1]
    second.kill()


@pytest.mark.parametrize(
    ("lines", "kind", "said"),
    [
        (["service_token = '{pems}/wrong'", "service_ca = '{pems}/ca.pem'"], BoardMissing, "rejects the token"),
        (["service_ca = '{pems}/ca.pem'"], BoardMissing, "rejects the token"),
        (["service_token = '{pems}/token'", "service_ca = '{pems}/other.pem'"], BoardMissing, "no service of board"),
        (["service_token = '{pems}/token'"], BoardMissing, "no service of board"),
        (["service_cert = '{pems}/client.pem'"], BadOptions, "all three"),
    ],
)
def test_who_has_the_wrong_key_stays_out(
    lines: list[str], kind: type[NightjarError], said: str, guarded: Server, pems: Path, tmp_path: Path
) -> None:
    boards(tmp_path, guarded.port, [line.format(pems=pems) for line in lines])
    with pytest.raises(kind, match=said) as refused, ServiceBoard(find_board("svc"), SHAPES) as board:
        list(board.encode(waves(1)))
    assert TOKEN not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_stranger_with_a_certificate_of_another_authority_stays_out(
    small_binary: Path, pems: Path, tmp_path: Path
) -> None:
    tls = ["--tls-cert", pems / "server.pem", "--tls-key", pems / "server.key", "--client-ca", pems / "ca.pem"]
    known = [f"service_ca = '{pems}/ca.pem'"]
    with Server(small_binary, *tls) as server:
        for mine in ([], [f"service_cert = '{pems}/stranger.pem'", f"service_key = '{pems}/stranger.key'"]):
            boards(tmp_path, server.port, [*known, *mine])
            with pytest.raises(BoardMissing, match="no service"), ServiceBoard(find_board("svc"), SHAPES) as board:
                board.describe()


def test_the_host_sends_nothing_beyond_loopback_without_tls(tmp_path: Path) -> None:
    boards(tmp_path, 50051, host="192.0.2.1")
    with pytest.raises(BadOptions, match="is on another machine"):
        ServiceBoard(find_board("svc"), SHAPES)


def test_another_binary_is_refused_before_a_clip_is_sent(small_binary: Path, noises: Path, tmp_path: Path) -> None:
    other = with_runner(small_binary, tmp_path)
    with Server(other) as server:
        boards(tmp_path, server.port)
        with pytest.raises(BoardMissing, match="serves another binary"):
            harvest_speech(asked(small_binary, noises, tmp_path / "out"))
    assert not ran(other)


def test_a_port_forward_by_ssh_leads_there(
    small_binary: Path, noises: Path, tmp_path: Path, loop: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTJAR_BOARDS", str(tmp_path / "boards.toml"))
    with Server(small_binary) as server:
        here = server.port + 1 if server.port < 65535 else server.port - 1
        way = ["ssh", "-F", loop.folder / "ssh_config", "-N", "-L", f"{here}:localhost:{server.port}", "loop"]
        forward = subprocess.Popen(list(map(str, way)), stderr=subprocess.DEVNULL)
        try:
            boards(tmp_path, here)
            end = time.monotonic() + 10
            with ServiceBoard(find_board("svc"), SHAPES) as board:
                while True:
                    try:
                        board.describe()
                        break
                    except BoardMissing:
                        assert time.monotonic() < end
                        time.sleep(0.2)
                assert len(list(board.encode(waves(5)))) == 5
        finally:
            forward.kill()
            forward.wait()
