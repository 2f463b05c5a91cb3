"""Two machines, each with a cache of its own, and one store at a URL: who is asked second executes nothing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nightjar.cli.main import main
from tests.flows.conftest import Cli, write_speech
from tests.s3 import S3

pytestmark = pytest.mark.slow


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3]:
    server = S3(tmp_path / "s3")
    server.start()
    yield server
    server.stop()


def contents(root: Path) -> dict[str, bytes]:
    found = (path for path in root.glob("[!.]*/**/*") if path.is_file() and path.name != "dataset.txt")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


def test_the_second_machine_takes_all_of_a_port_from_s3(
    cli: Cli, s3: S3, tmp_path: Path, random_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {f"c{number}": word for number, word in enumerate(("red", "blue", "stop"))}
    port = [
        *("port", "--model", "shared", "--checkpoint", random_checkpoint, "--window", "5", "--precision", "int8"),
        *("--calibration-set", write_speech(tmp_path / "calibration", words, speaker="ada")),
        *("--test-set", write_speech(tmp_path / "test", words, speaker="bob")),
    ]
    url = f"s3://{s3.bucket}/nightjar"

    def machine(name: str, *arguments: object) -> Any:
        return cli(
            *arguments,
            store=url,  # type: ignore[arg-type]
            NIGHTJAR_STORE_CACHE=str(tmp_path / name),
            **s3.environment,
        )

    first = machine("one", *port)
    assert first.returncode in (0, 1), first.stderr
    assert "none was executed" not in first.stdout
    planned = machine("two", *port, "--plan")
    assert "0 of " in planned.stdout, planned.stdout + planned.stderr
    second = machine("two", *port, "--json", tmp_path / "second.json")
    assert second.returncode == first.returncode, second.stderr
    assert "none was executed" in second.stdout
    assert all(stage["cached"] for stage in json.loads((tmp_path / "second.json").read_text())["stages"])
    assert contents(tmp_path / "one") == contents(tmp_path / "two")

    # The store's own commands look there with --remote; no secret is written anywhere.
    for name, value in {"NIGHTJAR_STORE": url, "NIGHTJAR_STORE_CACHE": str(tmp_path / "two"), **s3.environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NIGHTJAR_HISTORY", str(tmp_path / "history"))
    assert main(["artifacts", "ls", "--remote", "--json", str(tmp_path / "ls.json")]) == 0
    there = {(each["stage"], each["key"]) for each in json.loads((tmp_path / "ls.json").read_text())["artifacts"]}
    assert there == {tuple(name.split("/")[:2]) for name in contents(tmp_path / "one")}
    assert main(["artifacts", "verify", "--remote"]) == 0
    secret = s3.environment["AWS_SECRET_ACCESS_KEY"]
    assert not any(secret in text for text in (first.stdout, first.stderr, second.stdout, second.stderr))
    kept = [path for name in ("one", "two") for path in (tmp_path / name).rglob("*") if path.is_file()]
    assert not any(secret.encode() in path.read_bytes() for path in kept)
