"""An evaluation and a harvest in shards on dask workers come to the same as without, though a worker is lost."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nightjar.errors import BoardMissing
from nightjar.plugins.board_choice import board_of
from nightjar.plugins.registry import plugin
from tasks.dask import run_clips
from tests.conftest import need
from tests.flows.conftest import ROOT, Cli, write_speech
from tests.s3 import free_port

pytestmark = pytest.mark.slow

CLIPS = 24


class Cluster:
    """A dask scheduler and two workers, processes of their own on one store."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.environment = os.environ | {"NIGHTJAR_STORE": str(store), "PYTHONPATH": str(ROOT)}
        self.folder = folder
        folder.mkdir()
        self.processes = [self._start("scheduler", "--host", "127.0.0.1", "--port", self.address.rpartition(":")[2])]
        worker = ("worker", self.address, "--no-nanny", "--nthreads", "1", "--no-dashboard")
        self.processes += [self._start(*worker, "--local-directory", str(folder / f"w{n}")) for n in range(2)]

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            command = [sys.executable, "-m", "distributed.cli.dask_" + arguments[0], *arguments[1:]]
            if arguments[0] == "scheduler":
                command += ["--no-dashboard"]
            return subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=log, stderr=log)

    def wait(self) -> None:
        import distributed

        with distributed.Client(self.address, timeout=120, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=120)

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    need("dask", importlib.util.find_spec("prefect_dask") is not None, "pip install 'nightjar[dask]'")
    made = Cluster(tmp_path / "cluster", tmp_path / "sharded")
    try:
        made.wait()
        yield made
    finally:
        made.stop()


def hypotheses(store: Path) -> dict[str, list[dict[str, Any]]]:
    """Read what was heard, by key, without the seconds it took; the float graphs' first."""
    found = {}
    for path in store.glob("evaluate/*/hypotheses.jsonl"):
        lines = [json.loads(text) for text in path.read_text().splitlines()]
        found[path.parent.name] = [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
    return dict(sorted(found.items(), key=lambda item: item[1][0]["agree"] is not None))


def harvested(store: Path) -> dict[str, bytes]:
    return {f"{p.parent.name}/{p.name}": p.read_bytes() for p in store.glob("harvest/*/*") if p.name != "record.json"}


def test_shards_on_dask_workers_come_to_the_same_though_one_is_lost(
    cli: Cli,
    server: str,
    cluster: Cluster,
    tmp_path: Path,
    random_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = {f"c{number:02d}": ("red", "blue", "stop")[number % 3] for number in range(CLIPS)}
    port = [
        *("port", "--model", "dask", "--checkpoint", str(random_checkpoint), "--window", "5", "--precision", "int8"),
        *("--calibration-set", str(write_speech(tmp_path / "calibration", words, speaker="ada"))),
        *("--test-set", str(write_speech(tmp_path / "test", words, speaker="bob"))),
    ]
    alone = cli(*port, store=tmp_path / "alone")
    assert alone.returncode in (0, 1), alone.stderr

    sharded = tmp_path / "sharded"
    for made in ("export", "build", "stock", "calibrate"):  # what no worker does need not be done twice
        shutil.copytree(tmp_path / "alone" / made, sharded / made)
    run = subprocess.Popen(
        [sys.executable, "-m", "nightjar.cli.main", *port],
        cwd=ROOT,
        env=os.environ | {"NIGHTJAR_STORE": str(sharded), "NIGHTJAR_DASK": cluster.address, "PREFECT_API_URL": server},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end = time.monotonic() + 400
    while len(list((sharded / ".work").glob("shard-*"))) < 2 and run.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    assert run.poll() is None, run.stdout.read() if run.stdout else ""
    cluster.processes[-1].send_signal(signal.SIGKILL)  # both are at a shard
    said, _ = run.communicate(timeout=400)
    assert run.returncode == alone.returncode, said

    expected, obtained = hypotheses(tmp_path / "alone"), hypotheses(sharded)
    assert len(expected) == 2
    assert [*obtained.values()] == [*expected.values()]
    # How it was shared is in no key; that of the second is made of the first's bytes, seconds among them.
    assert len(obtained.keys() & expected.keys()) == 1
    assert harvested(sharded) == harvested(tmp_path / "alone")
    assert len(harvested(sharded)) == CLIPS + 1

    # And without a server, on the worker that is left.
    again = cli(*port, "--refresh", "evaluate", store=sharded, NIGHTJAR_DASK=cluster.address)
    assert again.returncode == alone.returncode, again.stderr
    assert all(heard in expected.values() for heard in hypotheses(sharded).values())
    monkeypatch.setenv("NIGHTJAR_DASK", "tcp://127.0.0.1:9")
    binary = next((sharded / "build").iterdir())
    with pytest.raises(BoardMissing, match="no dask scheduler answers"):
        run_clips(board_of(plugin("targets", "onnx"), None), binary, (), tmp_path / "work", decode=True)
