"""Services that tests share, and certificates."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nightjar.service.service_calls import TOKEN
from tests.served import Server, certificates


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
