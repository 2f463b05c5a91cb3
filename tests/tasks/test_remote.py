"""A store by URL: machines share artifacts; interrupted or damaged ones are repaired; no secret is printed."""

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nightjar.errors import BadOptions, StoreBroken
from nightjar.files import digest_file
from nightjar.nightly.history import History
from nightjar.nightly.retention import remote_retention_entries
from nightjar.store.artifact import Artifact, Source
from nightjar.store.bucket import Bucket
from nightjar.store.remote import RemoteStore, open_store
from nightjar.store.remote_gc import collect_remote, verify_remote
from tasks.stage import Run, running, stage
from tests.s3 import S3

ROOT = Path(__file__).resolve().parents[2]


@stage
def export(*, source: Path, out: Path) -> None:
    """Write two files, one of them in a folder, and one twice."""
    (out / "part").mkdir()
    (out / "part" / "graph.bin").write_bytes(source.read_bytes() * 50_000)
    (out / "part" / "copy.bin").write_bytes(source.read_bytes() * 50_000)
    (out / "made.txt").write_text(f"{time.time_ns()}\n")  # differs between a fetched and a repeated result
    with (source.parent / "executions").open("a") as log:
        log.write(f"{os.environ.get('NIGHTJAR_STORE_CACHE', '')}\n")


@stage
def build(*, graphs: Path, out: Path) -> None:
    """Copy a file of the input."""
    shutil.copyfile(graphs / "made.txt", out / "built.txt")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    server = S3(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty store: a shared folder or a bucket of the S3 server."""
    if request.param == "file":
        return f"file://{tmp_path}/shared"
    server: S3 = request.getfixturevalue("s3")
    server.start()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{server.bucket}/{tmp_path.name}"


@pytest.fixture
def source(tmp_path: Path) -> Source:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.txt"
    path.write_text("ab")
    return Source(path=path, sha256=digest_file(path))


def run(url: str, cache: Path, source: Source, **settings: Any) -> tuple[list[bool], dict[str, Artifact]]:
    with running(Run(RemoteStore(cache, Bucket(url)), **settings)) as now:
        graphs = export(source=source)
        made = {"export": graphs, "build": build(graphs=graphs)}
    return [outcome.cached for outcome in now.outcomes], made


def files(root: Path) -> dict[str, bytes]:
    """Read all files of all artifacts, with records."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.glob("[!.]*/**/*"))
        if path.is_file()
    }


def executions(source: Source) -> int:
    log = source.path.parent / "executions"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_a_second_machine_fetches_everything_and_executes_nothing(url: str, source: Source, tmp_path: Path) -> None:
    assert run(url, tmp_path / "one", source)[0] == [False, False]
    assert run(url, tmp_path / "two", source, plan=True)[0] == [True, True]
    assert run(url, tmp_path / "two", source)[0] == [True, True]
    assert executions(source) == 1
    assert files(tmp_path / "one") == files(tmp_path / "two")
    names = [seen.name for seen in Bucket(url).list("blobs")]
    assert len(names) == 2  # graph.bin and copy.bin are one, made.txt and built.txt another
    assert list(Bucket(url).list("leases")) == []


def test_a_damaged_or_missing_remote_file_is_never_used_and_is_repaired(
    url: str, source: Source, tmp_path: Path
) -> None:
    _, made = run(url, tmp_path / "one", source)
    bucket = Bucket(url)
    record, _ = RemoteStore(tmp_path / "one", bucket).find("export", made["export"].key)
    assert record is not None
    _, sha256 = record.files["part/graph.bin"]
    blob = f"blobs/{sha256[:2]}/{sha256}"
    whole = bucket.read(blob)
    assert whole is not None
    for number, damage in enumerate((lambda: bucket.write(blob, whole[:-1] + b"X"), lambda: bucket.remove(blob))):
        damage()
        _, damages = verify_remote(bucket)
        said = ("was altered", "is missing")[number]
        assert {each.what for each in damages} == {f"part/graph.bin {said}", f"part/copy.bin {said}"}
        before = executions(source)
        cached, _ = run(url, tmp_path / f"after{number}", source)
        assert cached[0] is False
        assert executions(source) == before + 1
        assert bucket.read(blob) == whole
        assert verify_remote(bucket)[1] == []
    name = f"records/export/{made['export'].key}.json"
    bucket.write(name, (bucket.read(name) or b"")[:-40])
    assert run(url, tmp_path / "last", source)[0] == [False, False]
    assert run(url, tmp_path / "again", source)[0] == [True, True]


def test_machines_that_start_at_once_make_a_key_once(url: str, source: Source, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")  # s3fs does not survive a fork
    workers = [spawn.Process(target=run, args=(url, tmp_path / f"cache{n}", source)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=300)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert executions(source) == 1
    contents = [files(tmp_path / f"cache{n}") for n in range(2)]
    assert contents[0] == contents[1]


def test_gc_of_a_bucket_keeps_what_is_needed_recent_or_being_sent(url: str, source: Source, tmp_path: Path) -> None:
    _, made = run(url, tmp_path / "one", source)
    bucket, history = Bucket(url), History(tmp_path / "history")
    bucket.write("blobs/00/" + "0" * 64, b"on its way to a record")
    assert collect_remote(bucket, remote_retention_entries(bucket, history)).removed == ()
    assert len(list(bucket.list("blobs"))) == 3
    done = collect_remote(bucket, remote_retention_entries(bucket, history, older_than_s=0))
    assert {entry.ref for entry in done.removed} == {(kind, artifact.key) for kind, artifact in made.items()}
    assert done.loose == ()  # blobs are younger than a day
    done = collect_remote(bucket, remote_retention_entries(bucket, history, older_than_s=0), grace_s=0)
    assert len(done.loose) == 3
    assert remote_retention_entries(bucket, history) == []
    assert list(bucket.list("blobs")) == []
    # The machine that made it still has it, and does not know that the bucket lost it.
    assert run(url, tmp_path / "one", source)[0] == [True, True]
    assert run(url, tmp_path / "two", source)[0] == [False, False]


def send_much(url: str, cache: Path, source: Source) -> None:
    with running(Run(RemoteStore(cache, Bucket(url)))):
        much(source=source)


@stage
def much(*, source: Path, out: Path) -> None:
    """Make more files than are sent in parallel."""
    for number in range(40):
        (out / f"{number}.bin").write_bytes(bytes([number]) * (2 << 20))
    with (source.parent / "executions").open("a") as log:
        log.write("much\n")


def test_a_writer_that_is_killed_while_it_sends_leaves_no_record(
    s3: S3, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.start()
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    url = f"s3://{s3.bucket}/{tmp_path.name}"
    worker = multiprocessing.get_context("spawn").Process(target=send_much, args=(url, tmp_path / "one", source))
    worker.start()
    bucket, end = Bucket(url), time.monotonic() + 300
    while len(list(bucket.list("blobs"))) < 3 and worker.is_alive() and time.monotonic() < end:
        time.sleep(0.01)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    assert 3 <= len([seen for seen in bucket.list("blobs") if not seen.name.endswith(".part")]) < 40
    assert list(bucket.list("records")) == []
    send_much(url, tmp_path / "one", source)  # takes it from its cache and sends the rest
    assert executions(source) == 1
    assert verify_remote(bucket) == (1, [])
    send_much(url, tmp_path / "two", source)
    assert executions(source) == 1
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_a_server_that_is_killed_is_one_line_and_the_same_command_sends_what_is_missing(
    s3: S3, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    s3.start()
    url = f"s3://{s3.bucket}/{tmp_path.name}"

    def cut(*, source: Path, out: Path) -> None:
        """Make a large file and kill the server before it can be sent."""
        (out / "large.bin").write_bytes(os.urandom(1 << 20) * 8)
        s3.kill()

    lost = stage(cut)
    with (
        pytest.raises(StoreBroken, match="cannot be reached or used") as raised,
        running(Run(RemoteStore(tmp_path / "one", Bucket(url)))),
    ):
        lost(source=source)
    assert "\n" not in str(raised.value)
    assert s3.environment["AWS_SECRET_ACCESS_KEY"] not in str(raised.value)
    s3.start()
    assert list(Bucket(url).list("records")) == []
    with running(Run(RemoteStore(tmp_path / "one", Bucket(url)))) as again:
        lost(source=source)
    assert [outcome.cached for outcome in again.outcomes] == [True]
    assert verify_remote(Bucket(url)) == (1, [])
    s3.kill()
    with (
        pytest.raises(StoreBroken, match="cannot be reached or used"),
        running(Run(RemoteStore(tmp_path / "two", Bucket(url)))),
    ):
        lost(source=source)
    assert not (tmp_path / "two" / "cut").exists()
    s3.start()


@pytest.mark.parametrize(
    ("url", "exit_code", "said"),
    [
        ("nosuch://bucket/prefix", 2, "give a folder, file:///folder, s3://bucket/prefix"),
        ("s3://key:s3cr3t@bucket/prefix", 2, "holds a password"),
    ],
)
def test_an_invalid_url_is_rejected_in_one_line(
    url: str, exit_code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTJAR_STORE", url)
    with pytest.raises(BadOptions, match=said) as raised:
        open_store()
    assert raised.value.exit_code == exit_code
    assert "s3cr3t" not in str(raised.value)


@pytest.mark.parametrize("fault", ["no bucket", "no credentials", "no server", "no right to write"])
def test_an_unusable_store_is_reported_before_anything_runs(
    fault: str, s3: S3, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.start()
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    url = f"s3://{s3.bucket}/{tmp_path.name}"
    if fault == "no bucket":
        url = "s3://nosuch-bucket/prefix"
    elif fault == "no credentials":
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.setenv(name, "/nonexistent")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    elif fault == "no server":
        s3.kill()
    else:
        (tmp_path / "file").write_text("in the way")
        url = f"file://{tmp_path}/file/store"
    with pytest.raises(StoreBroken, match="cannot be reached or used") as raised:
        run(url, tmp_path / "cache", source)
    print(raised.value)
    assert "\n" not in str(raised.value)
    assert s3.environment["AWS_SECRET_ACCESS_KEY"] not in str(raised.value)
    assert executions(source) == 0
