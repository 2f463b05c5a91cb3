"""What flows through a board's service: back-pressure, deadlines, nonsense, kills."""

import fcntl
import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from nightjar.boards.config import find_board
from nightjar.errors import BoardMissing, SessionFailed
from nightjar.service import service_pb2 as pb
from nightjar.service.client import ServiceBoard
from nightjar.service.protocol import SERVICE
from nightjar.sessions.bulk_harvest import harvest_speech
from nightjar.speech.manifest import load_speech
from tests.nightjar.service.service_calls import GOOD, SHAPES, asked, clip_of, content, read, stream, waves
from tests.served import Server, boards, ran, rss, with_runner

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
    monkeypatch.setattr("nightjar.service.client.GRACE_S", 0.5)
    with Server(small_binary) as server:
        boards(tmp_path, server.port)
        with ServiceBoard(find_board("svc"), SHAPES) as board:
            results = board.encode(waves(500), deadline_s=2.0)
            next(results)
            server.process.send_signal(signal.SIGSTOP)
            with pytest.raises(SessionFailed, match="no result from the board service for"):
                list(results)


@pytest.mark.parametrize(
    ("clip", "code", "said"),
    [
        (clip_of("long", np.ones(200_000, np.int16)), "RESOURCE_EXHAUSTED", "larger than max"),
        (clip_of("longer", np.ones(81_000, np.int16)), "INVALID_ARGUMENT", "clip longer: a wave has at most 160000"),
        (pb.Clip(id="odd", wave=b"abc"), "INVALID_ARGUMENT", "clip odd: a wave is int16"),
        (clip_of("none", np.ones(0, np.int16)), "INVALID_ARGUMENT", "clip none: a wave is int16"),
        (clip_of("", np.ones(10, np.int16)), "INVALID_ARGUMENT", "an id of 1 to 200"),
        (clip_of("x", np.ones(10, np.int16), sha256=b"0" * 32), "INVALID_ARGUMENT", "changed in transit"),
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
        (pb.Result(id="../../etc/passwd"), "unknown clip id"),
        (pb.Result(id="w0000", tensors=[pb.Tensor(name="hidden", shape=[2, 2], data=b"12345678")]), "model.json has"),
        (pb.Result(id="w0000", tensors=[pb.Tensor(name="hidden", shape=[250, 32], data=b"1")]), "model.json has"),
        (pb.Result(id="w0000", tensors=[pb.Tensor(name="x", shape=[250, 32], data=bytes(16000))]), "model.json has"),
        (
            pb.Result(id="w0000", tensors=[pb.Tensor(name="hidden", shape=[250, 32], data=bytes(16000))]),
            "changed in transit",
        ),
        (None, "gave no result for w0000"),
        ([GOOD, GOOD], "unknown clip id 'w0000'"),
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
            assert len(list(board.encode(waves(3), reconnect_s=0.1))) == 3
            assert time.monotonic() - began > 0.7
    assert [record.message for record in caplog.records] == ["board svc is locked by ada@lab, process 4711; waiting"]


def test_a_service_killed_and_started_again_loses_and_doubles_nothing(
    small_binary: Path, noises: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from models.whisper.decode import features
    from nightjar.speech.audio import load_audio

    binary = with_runner(small_binary, tmp_path, before="time.sleep(0.02)")
    server, out = Server(binary), tmp_path / "out"
    boards(tmp_path, server.port)
    with ThreadPoolExecutor(1) as pool:
        harvesting = pool.submit(harvest_speech, asked(binary, noises, out))
        while len(ran(binary)) < 90:
            time.sleep(0.02)
        server.kill()
        while not any("disconnected; waiting" in record.message for record in caplog.records):
            time.sleep(0.02)  # until then what had come may still be written
        first = ran(binary)
        (binary / ".ran").unlink()
        kept = {line.split('"')[3] for path in out.glob("*.jsonl") for line in path.read_text().splitlines()[1:]}
        kept |= {entry["id"] for path in out.glob("shard-*.json") for entry in read(path)["clips"]}
        time.sleep(1)
        with Server(binary, listen=f"localhost:{server.port}"):
            harvested = harvesting.result(60)
            second = ran(binary)
    assert harvested.new_clips == 150
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
    monkeypatch.setattr("nightjar.service.client.ServiceBoard.encode.__defaults__", (300.0, 1.0))
    out = tmp_path / "out"
    server = Server(small_binary)
    boards(tmp_path, server.port)
    monkeypatch.setattr("nightjar.sessions.bulk_harvest.tick", lambda done, of: server.kill() if done == 40 else None)
    with pytest.raises(SessionFailed, match="did not come back"):
        harvest_speech(asked(small_binary, noises, out))
    monkeypatch.undo()
    monkeypatch.setenv("NIGHTJAR_BOARDS", str(tmp_path / "boards.toml"))
    with Server(small_binary) as again:
        boards(tmp_path, again.port)
        harvested = harvest_speech(asked(small_binary, noises, out))
    assert 0 < harvested.new_clips <= 110
    assert content(out) == content(local_dataset)
