"""The board service as a real process on loopback: equal tensors, bounded memory, refusals, deadlines, restarts."""

import ast
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from nightjar import service_pb2 as pb
from nightjar.boards import find_board
from nightjar.bulk import harvest_speech
from nightjar.client import ServiceBoard
from nightjar.closure import closure
from nightjar.data import load_speech
from nightjar.errors import BadOptions, BoardMissing, NightjarError, SessionFailed
from nightjar.regenerate import regenerated
from nightjar.request import HarvestRequest
from nightjar.wire import SERVICE
from tests.loopback import Loopback
from tests.served import ROOT, Server, boards, certificates, ran, rss, with_runner

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


@pytest.fixture(autouse=True)
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the boards of this process be those of this test."""
    monkeypatch.setenv("NIGHTJAR_BOARDS", str(tmp_path / "boards.toml"))


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pems")
    certificates(folder)
    for name, text in (("token", TOKEN), ("wrong", "another-" + TOKEN)):
        (folder / name).write_text(text + "\n")
        (folder / name).chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def shared(small_binary: Path) -> Iterator[Server]:
    with Server(small_binary) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(small_binary: Path, pems: Path) -> Iterator[Server]:
    tls = ["--tls-cert", pems / "server.pem", "--tls-key", pems / "server.key", "--token-file", pems / "token"]
    with Server(small_binary, *tls) as server:
        yield server


# -- what is on the board


def test_regenerating_gives_the_code_in_the_tree() -> None:
    made = regenerated()
    assert {path.name for path in made} == {"service_pb2.py", "service_pb2.pyi"}
    for path, source in made.items():
        assert path.read_text() == source, f"`make proto` changes {path}"


def test_the_board_needs_numpy_grpc_and_protobuf_only() -> None:
    needed = closure(["nightjar.serve", "nightjar.serving"])
    assert set(needed.libraries) <= {"numpy", "grpc", "google"}
    for name in needed.files:
        if name != "nightjar/session.py" and not name.endswith("_pb2.py"):
            ast.parse((ROOT / name).read_text(), feature_version=(3, 8))


def test_without_grpc_one_line_says_what_to_install(small_binary: Path, tmp_path: Path, noises: Path) -> None:
    block = "import sys; sys.modules['grpc'] = None; "
    serving = (
        block + f"sys.argv[1:] = ['--binary', {str(small_binary)!r}]; from nightjar.serve import main; exit(main())"
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
    harvesting = block + f"from nightjar.cli import main; exit(main({words!r}))"
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
    assert harvested.made == 150
    assert content(tmp_path / "out") == content(local_dataset)
    assert TOKEN not in "".join(server.errors)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--listen", "0.0.0.0:0"], "can be reached from other machines"),
        (["--listen", "board.example:0", "--token-file", "token"], "can be reached from other machines"),
        (["--tls-cert", "server.pem"], "go together"),
        (["--tls-cert", "server.pem", "--tls-key", "server.key"], "lets everybody in"),
        (["--tls-cert", "server.pem", "--tls-key", "client.key", "--token-file", "token"], "of one pair"),
        (["--client-ca", "ca.pem"], "needs TLS"),
        (["--token-file", "short"], "holds no token"),
        (["--token-file", "open"], "can be read by others"),
        (["--token-file", "absent"], "cannot read the token"),
        (["--listen", "50051"], "is no address"),
        (["--workers", "0"], "at least one of --workers"),
        (["--binary", "/tmp"], "is no binary"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_would_let_others_in_is_refused(
    flags: list[str], said: str, small_binary: Path, pems: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from nightjar import serve

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
        (["service_token = '{pems}/wrong'", "service_ca = '{pems}/ca.pem'"], BoardMissing, "does not take our token"),
        (["service_ca = '{pems}/ca.pem'"], BoardMissing, "does not take our token"),
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


# -- memory, order, deadlines, limits


def fat(binary: Path, folder: Path) -> Path:
    """Make an encoder that gives 1.5 MB of float16 a clip."""
    made = with_runner(binary, folder, after="outputs = {'hidden': np.zeros((1, 1500, 512), np.float32)}")
    described = (made / "model.json").read_text()
    (made / "model.json").write_text(described.replace('"shape": [1, 250, 32]', '"shape": [1, 1500, 512]'))
    return made


def test_a_host_that_does_not_read_stops_the_board(small_binary: Path, tmp_path: Path) -> None:
    binary, pulled = fat(small_binary, tmp_path), []

    def flood() -> Iterator[pb.Clip]:
        for name, wave in waves(150, 4.9):  # 157 KB each
            pulled.append(name)
            yield clip_of(name, wave)

    with Server(binary, "--in-flight", "4") as server:
        before, counted = server.rss(), -1
        call = stream(server.port, flood(), timeout=60)
        while not counted or counted != len(ran(binary)):
            counted = len(ran(binary))
            time.sleep(0.7)
        assert counted < 20, "the board goes on although nobody reads"
        assert len(pulled) < 80
        assert server.rss() - before < 60 << 20
        names = []
        for result in call:
            names.append(result.id)
            if len(names) == 60:
                time.sleep(0.5)
                assert len(ran(binary)) < 80
        assert server.rss() - before < 60 << 20, "225 MB of tensors went through"
    assert sorted(names) == [name for name, _ in waves(150)]
    assert len(ran(binary)) == 150


def test_a_harvest_holds_few_clips_in_memory(small_binary: Path, tmp_path: Path) -> None:
    binary, loaded = fat(small_binary, tmp_path), []

    def loading() -> Iterator[tuple[str, np.ndarray]]:
        for name, wave in waves(80):
            loaded.append(name)
            yield name, wave

    with Server(binary, "--in-flight", "4") as server:
        boards(tmp_path, server.port)
        with ServiceBoard(find_board("svc"), {"hidden": (1500, 512)}) as board:
            results = board.encode(loading())
            next(results)
            before = rss(os.getpid())
            time.sleep(1)
            assert rss(os.getpid()) - before < 40 << 20
            assert len(loaded) < 20, "speech is read before there is room for it"
            assert len(ran(binary)) < 20
            assert len(list(results)) == 79


def test_clips_are_in_flight_together_and_come_as_they_end(small_binary: Path, tmp_path: Path) -> None:
    binary = with_runner(small_binary, tmp_path, before="time.sleep(1.0 if once(self.folder) else 0)")
    with Server(binary, "--workers", "2") as server:
        boards(tmp_path, server.port)
        with ServiceBoard(find_board("svc"), SHAPES) as board:
            came = [result.id for result in board.encode(waves(6))]
    assert sorted(came) == [name for name, _ in waves(6)]
    assert came != sorted(came), "a slow clip held up all that came after it"
    assert came[-1] in ("w0000", "w0001")


def test_a_hung_runtime_is_named_by_its_clip_in_time(small_binary: Path, tmp_path: Path) -> None:
    binary = with_runner(small_binary, tmp_path, before="time.sleep(600 if once(self.folder) else 0)")
    with Server(binary) as server:
        boards(tmp_path, server.port)
        began = time.monotonic()
        with ServiceBoard(find_board("svc"), SHAPES) as board:
            with pytest.raises(SessionFailed, match=r"longer than 1 s .*clip w00\d\d was not done") as failed:
                list(board.encode(waves(20), deadline_s=1.0))
            assert time.monotonic() - began < 60
            assert "\n" not in str(failed.value)
            assert len(list(board.encode(waves(5), deadline_s=30.0))) == 5, "its other worker is as it was"


def test_a_call_beyond_its_own_deadline_ends_and_leaves_the_board_free(small_binary: Path, tmp_path: Path) -> None:
    binary = with_runner(small_binary, tmp_path, before="time.sleep(0.3)")
    with Server(binary) as server:
        call = stream(server.port, (clip_of(*each) for each in waves(100)), timeout=0.7)
        with pytest.raises(grpc.RpcError) as ended:
            list(call)
        assert ended.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        time.sleep(1)
        counted = len(ran(binary))
        time.sleep(0.7)
        assert len(ran(binary)) == counted < 20, "the board works on for nobody"
        assert len(list(stream(server.port, iter([clip_of(*next(waves(1)))]), timeout=10))) == 1


def test_a_board_that_is_frozen_is_given_up(
    small_binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nightjar.client.GRACE_S", 0.5)
    with Server(small_binary) as server:
        boards(tmp_path, server.port)
        with ServiceBoard(find_board("svc"), SHAPES) as board:
            results = board.encode(waves(500), deadline_s=2.0)
            next(results)
            server.process.send_signal(signal.SIGSTOP)
            with pytest.raises(SessionFailed, match="said nothing for"):
                list(results)


@pytest.mark.parametrize(
    ("clip", "code", "said"),
    [
        (clip_of("long", np.ones(200_000, np.int16)), "RESOURCE_EXHAUSTED", "larger than max"),
        (clip_of("longer", np.ones(81_000, np.int16)), "INVALID_ARGUMENT", "clip longer: a wave has at most 160000"),
        (pb.Clip(id="odd", wave=b"abc"), "INVALID_ARGUMENT", "clip odd: a wave is int16"),
        (clip_of("none", np.ones(0, np.int16)), "INVALID_ARGUMENT", "clip none: a wave is int16"),
        (clip_of("", np.ones(10, np.int16)), "INVALID_ARGUMENT", "an id of 1 to 200"),
        (clip_of("x", np.ones(10, np.int16), sha256=b"0" * 32), "INVALID_ARGUMENT", "changed on the way"),
    ],
    ids=lambda value: value.id if isinstance(value, pb.Clip) else None,
)
def test_what_is_no_clip_is_refused(clip: pb.Clip, code: str, said: str, shared: Server) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        list(stream(shared.port, iter([clip]), timeout=10))
    assert refused.value.code().name == code
    assert said in refused.value.details().lower()
    assert len(list(stream(shared.port, iter([clip_of(*next(waves(1)))]), timeout=10))) == 1


def test_a_wave_too_long_ends_the_harvest_in_one_line(shared: Server, tmp_path: Path) -> None:
    boards(tmp_path, shared.port)
    with ServiceBoard(find_board("svc"), SHAPES) as board:
        for samples in (200_000, 81_000):
            with pytest.raises(SessionFailed, match="refused: ") as refused:
                list(board.encode(iter([("long", np.ones(samples, np.int16))])))
            assert "\n" not in str(refused.value)


def test_an_encoder_of_another_shape_is_refused_on_the_board(small_binary: Path, tmp_path: Path) -> None:
    binary = with_runner(small_binary, tmp_path, after="outputs = {'hidden': outputs['hidden'][:, :100]}")
    with Server(binary) as server:
        boards(tmp_path, server.port)
        with (
            ServiceBoard(find_board("svc"), SHAPES) as board,
            pytest.raises(SessionFailed, match=r"hidden \(100, 32\)"),
        ):
            list(board.encode(waves(1)))


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (pb.Result(id="w0000"), "gave nothing for w0000"),
        (pb.Result(id="../../etc/passwd"), "a result of no clip of ours"),
        (pb.Result(id="w0000", tensors=[pb.Tensor(name="hidden", shape=[2, 2], data=b"12345678")]), "model.json has"),
        (pb.Result(id="w0000", tensors=[pb.Tensor(name="hidden", shape=[250, 32], data=b"1")]), "model.json has"),
        (pb.Result(id="w0000", tensors=[pb.Tensor(name="x", shape=[250, 32], data=bytes(16000))]), "model.json has"),
        (
            pb.Result(id="w0000", tensors=[pb.Tensor(name="hidden", shape=[250, 32], data=bytes(16000))]),
            "changed on the way",
        ),
        (None, "gave no result for w0000"),
        ([GOOD, GOOD], "a result of no clip of ours, 'w0000'"),
    ],
)
def test_a_board_that_says_what_cannot_be_is_refused(
    result: pb.Result | list[pb.Result] | None, said: str, tmp_path: Path
) -> None:
    results = result if isinstance(result, list) else [result] if result else []
    described = pb.Description(facts='{"soc": "x", "python": "3.11", "runtimes": {}}', in_flight=4, wave_bytes=10**6)
    answers = {
        "Describe": grpc.unary_unary_rpc_method_handler(
            lambda question, context: described, pb.Question.FromString, pb.Description.SerializeToString
        ),
        "Encode": grpc.stream_stream_rpc_method_handler(
            lambda clips, context: iter(results),
            pb.Clip.FromString,
            pb.Result.SerializeToString,
        ),
    }
    liar = grpc.server(ThreadPoolExecutor(4))
    liar.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, answers),))
    boards(tmp_path, liar.add_insecure_port("127.0.0.1:0"))
    liar.start()
    try:
        with ServiceBoard(find_board("svc"), SHAPES) as board, pytest.raises(SessionFailed, match=said):
            list(board.encode(waves(2)))
    finally:
        liar.stop(0).wait()


def test_nobody_there_is_one_line_with_the_command(tmp_path: Path) -> None:
    boards(tmp_path, 9)
    with ServiceBoard(find_board("svc"), SHAPES) as board, pytest.raises(BoardMissing, match="nightjar board serve"):
        board.describe()


# -- one run per board; a service that is killed


def test_who_holds_the_board_is_waited_for(
    small_binary: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    binary = with_runner(small_binary, tmp_path)
    with Server(binary) as server, (tmp_path / "lock").open("w") as lock:
        boards(tmp_path, server.port)
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("ada@lab, process 4711")
        lock.flush()
        threading.Timer(0.8, lambda: fcntl.flock(lock, fcntl.LOCK_UN)).start()
        with ServiceBoard(find_board("svc"), SHAPES) as board:
            began = time.monotonic()
            assert len(list(board.encode(waves(3), patience_s=0.1))) == 3
            assert time.monotonic() - began > 0.7
    assert [record.message for record in caplog.records] == ["board svc is held by ada@lab, process 4711; waiting"]


def test_a_service_killed_and_started_again_loses_and_doubles_nothing(
    small_binary: Path, noises: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from models.whisper.decode import features
    from nightjar.audio import load_audio

    binary = with_runner(small_binary, tmp_path, before="time.sleep(0.02)")
    server, out = Server(binary), tmp_path / "out"
    boards(tmp_path, server.port)
    with ThreadPoolExecutor(1) as pool:
        harvesting = pool.submit(harvest_speech, asked(binary, noises, out))
        while len(ran(binary)) < 90:
            time.sleep(0.02)
        server.kill()
        while not any("went away; waiting" in record.message for record in caplog.records):
            time.sleep(0.02)  # until then what had come may still be written
        first = ran(binary)
        (binary / ".ran").unlink()
        kept = {line.split('"')[3] for path in out.glob("*.jsonl") for line in path.read_text().splitlines()[1:]}
        kept |= {entry["id"] for path in out.glob("shard-*.json") for entry in read(path)["clips"]}
        time.sleep(1)
        with Server(binary, listen=f"localhost:{server.port}"):
            harvested = harvesting.result(60)
            second = ran(binary)
    assert harvested.made == 150
    assert 60 < len(kept) < 150
    model = read(binary / "model.json")
    clips = {clip.id: load_audio(clip.audio).astype(np.float32) / 32768.0 for clip in load_speech(noises, False)}
    shas = {name: hashlib.sha256(features(wave, model)["mel"].tobytes()).hexdigest() for name, wave in clips.items()}
    assert not {shas[name] for name in kept} & set(second), "a clip that was kept was run again"
    assert set(first) | set(second) == set(shas.values())
    assert len(second) == len(set(second)) == 150 - len(kept)


def test_a_service_that_stays_away_ends_the_run_and_the_same_command_goes_on(
    small_binary: Path, noises: Path, local_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nightjar.client.ServiceBoard.encode.__defaults__", (300.0, 1.0))
    out = tmp_path / "out"
    server = Server(small_binary)
    boards(tmp_path, server.port)
    monkeypatch.setattr("nightjar.bulk.tick", lambda done, of: server.kill() if done == 40 else None)
    with pytest.raises(SessionFailed, match="did not come back"):
        harvest_speech(asked(small_binary, noises, out))
    monkeypatch.undo()
    monkeypatch.setenv("NIGHTJAR_BOARDS", str(tmp_path / "boards.toml"))
    with Server(small_binary) as again:
        boards(tmp_path, again.port)
        harvested = harvest_speech(asked(small_binary, noises, out))
    assert 0 < harvested.made <= 110
    assert content(out) == content(local_dataset)
