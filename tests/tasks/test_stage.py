"""A stage runs once per content: hits, misses and their reasons, damage, kills, concurrent runs."""

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from pydantic import BaseModel

from nightjar.errors import BadManifest
from nightjar.files import digest_file
from nightjar.store.artifact import Artifact, Source, Store
from tasks.stage import Pending, Run, running, stage


class Options(BaseModel, frozen=True):
    times: int = 2


@stage
def double(*, source: Path, options: Options, out: Path) -> None:
    """Repeat a file's text."""
    (out / "text.txt").write_text(source.read_text() * options.times)
    with (source.parent / "executions").open("a") as log:
        log.write("double\n")


@stage
def shout(*, text: Path, out: Path) -> dict[str, str]:
    """Write a text in capitals."""
    (out / "loud.txt").write_text((text / "text.txt").read_text().upper())
    return {"loud": "yes"}


@stage
def refuse(*, out: Path) -> None:
    """Write half and fail."""
    (out / "half.txt").write_text("half")
    raise BadManifest("nothing here")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "artifacts")


@pytest.fixture
def source(tmp_path: Path) -> Source:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.txt"
    path.write_text("ab")
    return Source(path=path, sha256=digest_file(path))


def run_graph(store: Store, source: Source, times: int = 2, **settings: object) -> list[tuple[str, bool, str]]:
    with running(Run(store, **settings)) as run:  # type: ignore[arg-type]
        shout(text=double(source=source, options=Options(times=times)))
    return [(outcome.name, outcome.cached, outcome.why) for outcome in run.outcomes]


def executions(source: Source) -> int:
    log = source.path.parent / "executions"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_a_second_run_executes_nothing(store: Store, source: Source) -> None:
    assert run_graph(store, source) == [("double", False, "first run"), ("shout", False, "first run")]
    assert run_graph(store, source) == [("double", True, ""), ("shout", True, "")]
    assert executions(source) == 1


def test_the_same_content_elsewhere_hits(store: Store, source: Source, tmp_path: Path) -> None:
    run_graph(store, source)
    shutil.copytree(source.path.parent, tmp_path / "elsewhere")
    path = tmp_path / "elsewhere" / "a.txt"
    assert all(cached for _, cached, _ in run_graph(store, Source(path=path, sha256=digest_file(path))))


def test_a_moved_store_hits(store: Store, source: Source, tmp_path: Path) -> None:
    run_graph(store, source)
    shutil.move(store.root, tmp_path / "moved")
    assert all(cached for _, cached, _ in run_graph(Store(tmp_path / "moved"), source))


def test_an_option_changes_its_stage_and_the_reason_names_it(store: Store, source: Source) -> None:
    run_graph(store, source)
    assert run_graph(store, source, times=3)[0] == ("double", False, "options.times 2 → 3")


def test_a_first_model_is_not_explained_by_another_one(store: Store, source: Source, tmp_path: Path) -> None:
    def run(model: str, text: str, times: int = 2) -> str:
        (tmp_path / f"{text}.txt").write_text(text)
        own = Source(path=tmp_path / f"{text}.txt", sha256=digest_file(tmp_path / f"{text}.txt"))
        made = Run(store)
        made.model = model
        with running(made):
            double(source=own, options=Options(times=times))
        return made.outcomes[0].why

    assert run("tiny.en", "ab") == "first run of tiny.en"
    assert run("base", "cd") == "first run of base"
    assert run("base", "ef") == "input source changed"
    assert run("tiny.en", "ab", times=3) == "options.times 2 → 3"


def test_a_stage_whose_input_bytes_are_equal_does_not_run_again(store: Store, source: Source) -> None:
    run_graph(store, source)
    shutil.rmtree(store.root / "double")
    assert run_graph(store, source) == [("double", False, "first run"), ("shout", True, "")]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "text.txt").unlink(), "text.txt was deleted"),
        (lambda folder: (folder / "text.txt").write_text("abax"), "text.txt was altered"),
        (lambda folder: (folder / "text.txt").write_text("a"), "text.txt has the wrong size"),
        (lambda folder: os.truncate(folder / "record.json", 30), "record.json is damaged"),
        (lambda folder: (folder / "record.json").unlink(), "record.json is missing"),
    ],
)
def test_damage_is_detected_named_and_repaired(store: Store, source: Source, damage: object, reason: str) -> None:
    run_graph(store, source)
    folder = next((store.root / "double").iterdir())
    damage(folder)  # type: ignore[operator]
    assert run_graph(store, source) == [("double", False, reason), ("shout", True, "")]
    assert (folder / "text.txt").read_text() == "abab"


def test_a_flipped_byte_is_detected_although_size_and_mtime_are_restored(store: Store, source: Source) -> None:
    run_graph(store, source)
    path = next((store.root / "double").iterdir()) / "text.txt"
    stat = path.stat()
    path.write_text("abaX")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert run_graph(store, source)[0] == ("double", False, "text.txt was altered")


def test_refresh_runs_a_stage_again_and_only_that_one(store: Store, source: Source) -> None:
    run_graph(store, source)
    again = run_graph(store, source, refresh=frozenset({"double"}))
    assert again == [("double", False, "refresh was requested"), ("shout", True, "")]


def test_a_plan_predicts_and_writes_nothing(store: Store, source: Source) -> None:
    planned = run_graph(store, source, plan=True)
    assert planned == [("double", False, "first run"), ("shout", False, "depends on double")]
    assert not store.root.exists()
    run_graph(store, source)
    assert run_graph(store, source, times=3, plan=True) == [
        ("double", False, "options.times 2 → 3"),
        ("shout", False, "depends on double"),
    ]
    assert executions(source) == 1


def test_a_plan_returns_what_is_there_and_pending_for_what_is_not(store: Store, source: Source) -> None:
    run_graph(store, source)
    with running(Run(store, plan=True)):
        assert isinstance(double(source=source, options=Options()), Artifact)
        assert isinstance(double(source=source, options=Options(times=9)), Pending)


def list_paths(folder: Path) -> None:
    (folder / "dataset.txt").write_text(str(folder / "loud.txt"))


@stage(view=list_paths)
def point(*, text: Path, out: Path) -> None:
    """Write a file that a list with absolute paths names."""
    (out / "loud.txt").write_text((text / "text.txt").read_text())


def test_a_view_follows_the_store_and_is_no_content(store: Store, source: Source, tmp_path: Path) -> None:
    for root in (store.root, tmp_path / "moved"):
        if root != store.root:
            shutil.move(store.root, root)
        with running(Run(Store(root))) as run:
            made = point(text=double(source=source, options=Options()))
        listed = run.store.path(made) / "dataset.txt"
        assert Path(listed.read_text()).read_text() == "abab"
        assert Path(listed.read_text()).is_relative_to(root)
    assert [outcome.cached for outcome in run.outcomes] == [True, True]


def test_a_failing_stage_leaves_no_artifact(store: Store) -> None:
    with running(Run(store)), pytest.raises(BadManifest, match="nothing here"):
        refuse()
    assert not (store.root / "refuse").exists()


def test_a_wrong_argument_is_refused_before_anything_runs(store: Store) -> None:
    with running(Run(store)), pytest.raises(TypeError, match="missing"):
        shout()


@stage
def slow(*, source: Path, out: Path, work: Path) -> None:
    """Take a while, keeping what is finished."""
    with (source.parent / "executions").open("a") as log:
        log.write(f"begun {len(list(work.iterdir()))}\n")
    for step in range(5):
        (work / f"{step}").write_text("done")
        time.sleep(0.1)
    (out / "result.txt").write_text("whole")


def run_slow(root: Path, source: Source) -> None:
    with running(Run(Store(root))):
        slow(source=source)


def test_three_runs_of_one_key_execute_it_once(store: Store, source: Source) -> None:
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=run_slow, args=(store.root, source)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert executions(source) == 1


def test_a_killed_stage_leaves_no_artifact_and_continues_from_its_work_folder(store: Store, source: Source) -> None:
    worker = multiprocessing.get_context("fork").Process(target=run_slow, args=(store.root, source))
    worker.start()
    log = source.path.parent / "executions"
    deadline = time.monotonic() + 20
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.25)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert not (store.root / "slow").exists()
    run_slow(store.root, source)
    begun = log.read_text().splitlines()
    assert len(begun) == 2
    assert int(begun[1].split()[1]) > 0
    assert next((store.root / "slow").iterdir()).joinpath("result.txt").read_text() == "whole"
