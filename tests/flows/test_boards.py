"""A port on a board behind ssh: what is computed is what the host computes, byte for byte."""

import json
from pathlib import Path
from typing import Any

import pytest

from nightjar.cli import main
from tests.flows.conftest import Cli, write_speech
from tests.loopback import Loopback


def content(store: Path, stage: str) -> dict[str, Any]:
    """Return the files of a stage's artifacts without the seconds in them; labels of the same stage side by side."""
    found: dict[str, Any] = {}
    for number, folder in enumerate(sorted((store / stage).iterdir(), key=lambda path: len(list(path.iterdir())))):
        for path in folder.iterdir():
            if path.name == "hypotheses.jsonl":
                lines = [json.loads(line) for line in path.read_text().splitlines()]
                heard = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
                found.setdefault("heard", []).append(sorted(map(json.dumps, heard)))
            elif path.name != "record.json":
                found[f"{path.name} {number}"] = path.read_bytes()
    found.get("heard", []).sort()
    return found


def test_a_port_by_ssh_is_the_local_one_byte_for_byte(
    cli: Cli, loop: Loopback, tmp_path: Path, random_checkpoint: Path
) -> None:
    words = {f"c{number}": word for number, word in enumerate(("red", "blue", "stop"))}
    speech = [
        *("--calibration-set", write_speech(tmp_path / "calibration", words, speaker="ada")),
        *("--test-set", write_speech(tmp_path / "test", words, speaker="bob")),
    ]
    asked = ["port", "--model", "random", "--checkpoint", random_checkpoint, "--window", "5", *speech]
    stores = {board: tmp_path / board for board in ("local", "loop")}
    for board, store in stores.items():
        done = cli(*asked, "--board", board, "--json", tmp_path / f"{board}.json", store=store)
        assert done.returncode in (0, 1), done.stderr
    for stage in ("harvest", "evaluate"):
        local, remote = (content(store, stage) for store in stores.values())
        assert local == remote
        assert local
    results = [json.loads((tmp_path / f"{board}.json").read_text()) for board in stores]
    assert results[0]["tier"] == results[1]["tier"] == "host"
    assert results[0]["wer"] == results[1]["wer"]
    assert not list((loop.scratch / "jobs").iterdir())
    again = cli(*asked, "--board", "local", "--plan", store=stores["loop"])
    assert "0 of " in again.stdout, "the alias is no part of the key"


def test_what_a_board_lacks_is_said_before_anything_is_uploaded(
    loop: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    bare = tmp_path / "python without anything"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setenv("NIGHTJAR_BOARDS", str(loop.boards(tmp_path / "bare.toml", python=str(bare))))
    monkeypatch.setenv("NIGHTJAR_STORE", str(tmp_path / "store"))
    assert main(["port", "--board", "loop"]) == 3
    error = capsys.readouterr().err.strip()
    assert error.startswith("nightjar: board loop has no numpy, onnxruntime")
    assert "\n" not in error
    assert not (loop.scratch / "cache").exists()
