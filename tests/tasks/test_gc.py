"""gc keeps what is needed and removes the rest, beside running runs and when it is killed; verify finds damage."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nightjar.files import digest_file
from nightjar.nightly.history import Cell, Finding, History, Night
from nightjar.nightly.retention import retention_entries
from nightjar.store.artifact import Artifact, Source, Store
from nightjar.store.gc import DAY_S, collect, verify
from tasks.stage import Run, running, separate_run, stage

ROOT = Path(__file__).resolve().parents[2]


@stage
def export(*, source: Path, out: Path) -> None:
    """Write a large file that a score is made from."""
    (out / "graph.bin").write_bytes(source.read_bytes() * 1000)


@stage
def build(*, graphs: Path, out: Path) -> None:
    """Write a reversed copy."""
    (out / "binary.bin").write_bytes((graphs / "graph.bin").read_bytes()[::-1])


@stage
def judge(*, binary: Path, out: Path) -> None:
    """Write a small result."""
    (out / "verdict.json").write_text(digest_file(binary / "binary.bin"))


@stage
def report(*, verdict: Path, binary: Path, out: Path) -> None:
    """Write a page."""
    (out / "report.html").write_text((verdict / "verdict.json").read_text())


def graph(source: Source) -> dict[str, Artifact]:
    graphs = export(source=source)
    binary = build(graphs=graphs)
    verdict = judge(binary=binary)
    return {
        "export": graphs,
        "build": binary,
        "judge": verdict,
        "report": report(verdict=verdict, binary=binary),
    }


def run(store: Store, source: Source) -> dict[str, Artifact]:
    with running(Run(store)):
        return graph(source)


def write_source(folder: Path, text: str) -> Source:
    path = folder / f"{text}.txt"
    path.write_text(text)
    return Source(path=path, sha256=digest_file(path))


def append(history: History, number: int, made: dict[str, Artifact], wer: float, findings: list[Finding]) -> None:
    night = f"2026-11-{number:02d}T02:00:00Z"
    row = Night(night=night, started=night, finished=night, outcome="PASS", cells=1)
    cell = Cell(
        night=night,
        cell="nano/onnx/int8",
        model="nano",
        target="onnx",
        precision="int8",
        outcome="PASS",
        counts=True,
        wer=wer,
        judge=made["judge"].key,
        report=made["report"].key,
    )
    history.append(row, [cell], findings)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "artifacts")


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "history")


def test_gc_keeps_what_scores_need_and_nothing_else(store: Store, history: History, tmp_path: Path) -> None:
    sources = [write_source(tmp_path, f"night{number}") for number in range(1, 6)]
    made = [run(store, source) for source in sources]
    for number, (artifacts, wer) in enumerate(zip(made[:4], (5.0, 3.0, 4.0, 4.5), strict=True), 1):
        append(history, number, artifacts, wer, [])
    reports = tmp_path / "reports"
    (reports / "nano").mkdir(parents=True)
    said = {
        name: {"stage": made[0][stage].kind, "key": made[0][stage].key, "sha256": made[0][stage].sha256}
        for name, stage in (("binary", "build"), ("verdict", "judge"))
    }
    (reports / "nano" / "results.json").write_text(json.dumps({"made_from": said}))
    settings = {"keep_nights": 1, "older_than_s": 0.0, "reports": reports}

    would = collect(store, retention_entries(store, history, **settings), dry_run=True)  # type: ignore[arg-type]
    assert len(list(store.refs())) == 20
    done = collect(store, retention_entries(store, history, **settings))  # type: ignore[arg-type]
    assert {entry.ref for entry in done.removed} == {entry.ref for entry in would.removed}

    def kept(number: int) -> set[str]:
        return {name for name, artifact in made[number - 1].items() if store.path(artifact).exists()}

    everything = {"export", "build", "judge", "report"}
    assert kept(1) == everything  # the report that lies in reports/
    assert kept(2) == everything  # the best night
    assert kept(3) == {"judge", "report"}  # a score, and older than the last night
    assert kept(4) == everything  # the last night
    assert kept(5) == set()  # used only by a run that has ended
    assert done.freed_bytes == would.freed_bytes > 0
    assert done.kept == 14
    assert verify(store) == (14, [])
    why = {entry.ref: entry.why for entry in retention_entries(store, history, **settings)}  # type: ignore[arg-type]
    assert why["build", made[3]["build"].key] == ("made the last 1 nights",)
    assert why["judge", made[2]["judge"].key] == ("a score in the history",)
    with running(Run(store)) as again:
        graph(sources[3])
    assert all(outcome.cached for outcome in again.outcomes)
    # Recently used artifacts stay by default.
    run(store, sources[4])
    assert collect(store, retention_entries(store, history, reports=reports)).removed == ()


def test_of_two_artifacts_with_equal_bytes_the_one_used_last_is_kept(
    store: Store, history: History, tmp_path: Path
) -> None:
    old, new = (write_source(tmp_path / name, "same") for name in _folders(tmp_path, "a", "b"))
    with running(Run(store)):
        first = export(source=old)
        (store.root / "export" / first.key).rename(tmp_path / "aside")
    made = run(store, new)
    assert made["export"].key == first.key  # the same content is the same key, so make another of the same bytes
    folder = store.root / "export" / ("0" * 24)
    (tmp_path / "aside").rename(folder)
    record = folder / "record.json"
    record.write_text(record.read_text().replace(first.key, folder.name))
    os.utime(record, (time.time() - 100, time.time() - 100))
    append(history, 1, made, 3.0, [])
    done = collect(store, retention_entries(store, history, older_than_s=0, reports=tmp_path))
    assert [entry.ref for entry in done.removed] == [("export", folder.name)]


def _folders(tmp_path: Path, *names: str) -> list[str]:
    for name in names:
        (tmp_path / name).mkdir()
    return list(names)


def test_artifacts_of_a_live_run_stay_and_those_of_a_dead_run_go(
    store: Store, history: History, tmp_path: Path
) -> None:
    source = write_source(tmp_path, "a")
    run(store, source)
    with running(Run(store)):
        graph(source)
        assert collect(store, retention_entries(store, history, older_than_s=0, reports=tmp_path)).removed == ()

    with running(Run(store)):  # a night, whose cells are runs inside it
        with separate_run(()):
            graph(source)
        assert collect(store, retention_entries(store, history, older_than_s=0, reports=tmp_path)).removed == ()

    fork = multiprocessing.get_context("fork")
    ready = fork.Event()

    def hang() -> None:
        with running(Run(store)):
            graph(source)
            ready.set()
            time.sleep(600)

    worker = fork.Process(target=hang)
    worker.start()
    assert ready.wait(60)
    assert collect(store, retention_entries(store, history, older_than_s=0, reports=tmp_path)).removed == ()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert len(collect(store, retention_entries(store, history, older_than_s=0, reports=tmp_path)).removed) == 4
    left = {path.relative_to(store.root).as_posix() for path in store.root.rglob("*") if path.is_file()}
    assert left == {".gate"} | {name for name in left if name.startswith(".memo/")}


def test_runs_and_gcs_side_by_side_never_lose_what_a_run_uses(store: Store, history: History, tmp_path: Path) -> None:
    """Every run reads its artifacts at its end, as a flow does; gc removes whatever is unused in between."""
    sources = [write_source(tmp_path, name) for name in "abcdef"]
    (tmp_path / "failed").mkdir()
    fork = multiprocessing.get_context("fork")
    over = fork.Event()

    def work(number: int) -> None:
        try:
            chance = random.Random(number)
            while not over.is_set():
                with running(Run(store)):
                    made = graph(chance.choice(sources))
                    for artifact in made.values():
                        record, why = store.find(artifact.kind, artifact.key)
                        assert record is not None, why
        except BaseException as error:
            (tmp_path / "failed" / str(number)).write_text(repr(error))
            raise

    workers = [fork.Process(target=work, args=(number,)) for number in range(3)]
    for worker in workers:
        worker.start()
    removed, end = 0, time.monotonic() + 300
    while removed < 200 and all(worker.is_alive() for worker in workers) and time.monotonic() < end:
        removed += len(collect(store, retention_entries(store, history, older_than_s=0, reports=tmp_path)).removed)
    over.set()
    for worker in workers:
        worker.join(timeout=60)
    assert [path.read_text() for path in (tmp_path / "failed").iterdir()] == []
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert removed >= 200


def test_a_killed_gc_leaves_no_incomplete_artifact_with_a_record(
    store: Store, history: History, tmp_path: Path
) -> None:
    chance, fork = random.Random(20261120), multiprocessing.get_context("fork")
    sources = [write_source(tmp_path, f"{name}") for name in range(12)]
    for _ in range(6):
        for source in sources:
            run(store, source)
        worker = fork.Process(target=collect, args=(store, history), kwargs={"older_than_s": 0.0, "reports": tmp_path})
        worker.start()
        time.sleep(chance.uniform(0.0, 0.05))
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        assert {damage.what for damage in verify(store)[1]} <= {"incomplete: record.json is missing"}
    for source in sources:
        run(store, source)
    assert verify(store) == (48, [])


def test_unfinished_work_goes_a_day_after_its_run_died(store: Store, history: History, tmp_path: Path) -> None:
    old, young, held = (store.work("harvest", key * 24) for key in "abc")
    for folder in (old, young, held):
        (folder / "kept").mkdir(parents=True)
        (folder / "kept" / "finished.jsonl").write_text("line\n")
    long_ago = time.time() - 2 * DAY_S
    for folder in (old, held):
        for path in (folder / "kept" / "finished.jsonl", folder / "kept", folder):
            os.utime(path, (long_ago, long_ago))
    with store.lock("harvest", held.name.removeprefix("harvest-"), on_wait=lambda: None):
        done = collect(store, retention_entries(store, history, reports=tmp_path))
    assert (done.loose, done.freed_bytes) == ((old.name,), 5)
    assert [folder.exists() for folder in (old, young, held)] == [False, True, True]


def test_the_command_line_lists_kept_removed_and_damaged_artifacts(
    store: Store, history: History, tmp_path: Path
) -> None:
    first, second = (run(store, write_source(tmp_path, name)) for name in ("first", "second"))
    append(history, 1, first, 3.0, [])

    def nightjar(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nightjar.cli.main", "artifacts", *arguments],
            cwd=ROOT,
            env=os.environ | {"NIGHTJAR_STORE": str(store.root), "NIGHTJAR_HISTORY": str(history.folder)},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    listed = nightjar("ls", "--older-than", "0h", "--json", str(tmp_path / "ls.json"))
    assert listed.returncode == 0, listed.stderr
    assert "made the last 7 nights" in listed.stdout
    assert "nothing needs it" in listed.stdout
    whys = {(a["stage"], a["key"]): a["why"] for a in json.loads((tmp_path / "ls.json").read_text())["artifacts"]}
    assert whys["export", second["export"].key] == []
    assert len(whys) == 8

    wrong = nightjar("gc", "--older-than", "week")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    dry = nightjar("gc", "--dry-run", "--older-than", "0h")
    assert "would be removed: 4 artifacts" in dry.stdout
    assert nightjar("verify").returncode == 0
    done = nightjar("gc", "--older-than", "0h")
    assert done.returncode == 0, done.stderr
    assert "removed: 4 artifacts" in done.stdout
    assert "kept: 4 artifacts" in done.stdout

    binary = store.path(first["build"]) / "binary.bin"
    stat = binary.stat()
    binary.write_bytes(binary.read_bytes()[:-1] + b"X")
    os.utime(binary, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (store.path(first["report"]) / "record.json").unlink()
    before = sorted(store.root.rglob("*"))
    seen = nightjar("verify")
    assert seen.returncode == 4
    assert f"build/{first['build'].key}: binary.bin was altered" in seen.stdout
    assert f"report/{first['report'].key}: incomplete" in seen.stdout
    assert sorted(path for path in store.root.rglob("*") if path.parent.name != ".locks") == [
        path for path in before if path.parent.name != ".locks"
    ]
