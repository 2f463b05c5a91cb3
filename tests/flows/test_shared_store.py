"""Two machines, each with a cache of its own, and one store at a URL: who is asked second executes nothing."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.conftest import Cli, write_speech
from tests.s3 import S3


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
    cli: Cli, s3: S3, tmp_path: Path, random_checkpoint: Path
) -> None:
    words = {f"c{number}": word for number, word in enumerate(("red", "blue", "stop"))}
    port = [
        *("port", "--model", "shared", "--checkpoint", random_checkpoint, "--window", "5", "--precision", "int8"),
        *("--calibration-set", write_speech(tmp_path / "calibration", words, speaker="ada")),
        *("--test-set", write_speech(tmp_path / "test", words, speaker="bob")),
    ]
    url = f"s3://{s3.bucket}/nightjar"

    def machine(name: str, *arguments: object, **environment: str):  # type: ignore[no-untyped-def]
        return cli(
            *arguments,
            store=url,  # type: ignore[arg-type]
            NIGHTJAR_STORE_CACHE=str(tmp_path / name),
            NIGHTJAR_HISTORY=str(tmp_path / "history"),
            **(s3.environment | environment),
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

    # Where the store's own commands look, and what they say when it does not answer.
    assert machine("two", "artifacts", "verify", "--remote").returncode == 0
    listed = machine("two", "artifacts", "ls", "--remote", "--json", tmp_path / "ls.json")
    assert listed.returncode == 0, listed.stderr
    there = {(each["stage"], each["key"]) for each in json.loads((tmp_path / "ls.json").read_text())["artifacts"]}
    assert there == {tuple(name.split("/")[:2]) for name in contents(tmp_path / "one")}
    secret = s3.environment["AWS_SECRET_ACCESS_KEY"]
    for text in (first.stdout, first.stderr, second.stdout, second.stderr, listed.stdout):
        assert secret not in text
    assert not [
        path for path in tmp_path.glob("[ot][nw]*/**/*") if path.is_file() and secret.encode() in path.read_bytes()
    ]

    no_bucket = cli(*port, store="s3://nosuch-bucket/x", NIGHTJAR_STORE_CACHE=str(tmp_path / "three"), **s3.environment)  # type: ignore[arg-type]
    nobody = {name: "" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")} | {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    }
    no_credentials = machine("four", *port, **nobody)
    s3.kill()
    no_server = machine("five", *port)
    for failed in (no_bucket, no_credentials, no_server):
        assert failed.returncode == 4, failed.stdout + failed.stderr
        assert failed.stderr.count("\n") == 1, failed.stderr
        assert "cannot be reached or used" in failed.stderr
