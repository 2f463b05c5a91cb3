"""A command line in a process of its own, on a store of its own."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.prefect_server import prefect_server

ROOT = Path(__file__).resolve().parents[2]
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that tests of this folder may fill for one another; what they assert does not depend on it."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefect's tables with nothing in them, made once for all workers: its migrations take longer than a server."""
    base = tmp_path_factory.getbasetemp()
    made = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "prefect.db"
    with made.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            new = made.with_suffix(".new")
            there = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{new}"}
            command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
            subprocess.run(command, env=os.environ | there, capture_output=True, check=True)
            new.rename(made)
    return made


@pytest.fixture(scope="session")
def server(tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server of its own on a free port; its API URL."""
    home = tmp_path_factory.mktemp("prefect")
    shutil.copyfile(tables, home / "prefect.db")
    with prefect_server(home) as url:
        yield url


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    def run(*arguments: object, store: Path = tmp_path / "artifacts", **environment: str) -> Any:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API")}
        return subprocess.run(
            [sys.executable, "-m", "nightjar.cli.main", *map(str, arguments)],
            cwd=ROOT,
            env={**clean, "NIGHTJAR_STORE": str(store), "COLUMNS": "200", **environment},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    return run


def shipped_speech(folder: Path, calibration: int, evaluation: int) -> list[str]:
    """Copy the first clips of the shipped speech and return the flags for them; a silent clip ends the test clips."""
    flags = []
    for name, flag, count in (
        ("calibration", "--calibration-set", calibration),
        ("evaluation", "--test-set", evaluation),
    ):
        lines = (ROOT / "data" / "whisper-nano" / f"{name}.jsonl").read_text().splitlines()[:count]
        for line in lines:
            audio = json.loads(line)["audio_filepath"]
            (folder / audio).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / "data" / "whisper-nano" / audio, folder / audio)
        if name == "evaluation":
            soundfile.write(folder / "silent.wav", np.zeros(32000, np.int16), 16000)
            lines.append(json.dumps({"audio_filepath": "silent.wav", "text": "", "speaker": "nobody", "id": "silent"}))
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
        flags += [flag, str(folder / f"{name}.jsonl")]
    return flags


def write_speech(folder: Path, clips: dict[str, str], speaker: str = "ada", seconds: float = 1.0, **extra: Any) -> Path:
    """Write noise clips and their manifest; return the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([len(clips), *speaker.encode()])
    lines = []
    for name, text in clips.items():
        samples = (rng.standard_normal(int(16000 * seconds)) * 500).astype(np.int16)
        soundfile.write(folder / f"{name}.wav", samples, 16000)
        lines.append(
            json.dumps(
                {
                    "audio_filepath": f"{name}.wav",
                    "text": text,
                    "duration": seconds,
                    "speaker": speaker,
                    "id": name,
                    **extra,
                }
            )
        )
    manifest = folder / "speech.jsonl"
    manifest.write_text("".join(f"{line}\n" for line in lines))
    return manifest


@pytest.fixture(scope="module")
def deployed(server: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The deployments of deployments/prefect.yaml on the server, no schedule active; the name of their work pool."""
    file = tmp_path_factory.mktemp("deployed") / "prefect.yaml"
    file.write_text((ROOT / "deployments" / "prefect.yaml").read_text().replace("active: true", "active: false"))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API")}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "nightjar.cli.main",
            "flows",
            "deploy",
            "--pool",
            "tested",
            "--reset",
            "--file",
            str(file),
        ],
        cwd=ROOT,
        env={**clean, "PREFECT_API_URL": server, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return "tested"
