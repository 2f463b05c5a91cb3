"""A port on a board behind ssh: what is computed is what the host computes, byte for byte."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from nightjar.cli.main import main
from nightjar.errors import BoardMissing
from nightjar.plugins.board_choice import board_of
from nightjar.plugins.registry import plugin
from tests.flows.conftest import ROOT, write_speech
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
    loop: Loopback,
    tmp_path: Path,
    random_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = {f"c{number}": word for number, word in enumerate(("red", "blue", "stop"))}
    speech = [
        *("--calibration-set", write_speech(tmp_path / "calibration", words, speaker="ada")),
        *("--test-set", write_speech(tmp_path / "test", words, speaker="bob")),
    ]
    asked = [
        *map(
            str,
            [
                "port",
                "--model",
                "random",
                "--checkpoint",
                random_checkpoint,
                "--window",
                "5",
                *speech,
                "--calibration-samples",
                "3",
            ],
        )
    ]
    stores = {board: tmp_path / board for board in ("local", "loop")}
    for board, store in stores.items():
        monkeypatch.setenv("NIGHTJAR_STORE", str(store))
        asked_here = [*asked, "--board", board, "--json", str(tmp_path / f"{board}.json")]
        if board == "loop":  # only what a board takes part in runs again
            shutil.copytree(stores["local"], store)
            for stage in ("harvest", "evaluate"):
                shutil.rmtree(store / stage)
        assert main(asked_here) in (0, 1)
    for stage in ("harvest", "evaluate"):
        local, remote = (content(store, stage) for store in stores.values())
        assert local == remote
        assert local
    results = [json.loads((tmp_path / f"{board}.json").read_text()) for board in stores]
    assert results[0]["tier"] == results[1]["tier"] == "host"
    assert results[0]["wer"] == results[1]["wer"]
    ran = {stage["name"].split()[0]: stage["why"] for stage in results[1]["stages"] if not stage["cached"]}
    assert {"harvest", "evaluate"} <= ran.keys()
    assert "calibrate" not in ran, "the harvest has other bytes"
    assert not list((loop.scratch / "jobs").iterdir())
    capsys.readouterr()
    assert main([*asked, "--board", "local", "--plan"]) == 0
    assert "\n0 of " in f"\n{capsys.readouterr().out}", "the alias is no part of the key"


def test_what_a_board_lacks_is_said_before_anything_is_uploaded(
    loop: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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


def test_board_check_says_what_is_there_and_what_is_missing(
    loop: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["board", "check", "loop", "--target", "onnx"]) == 0
    table = capsys.readouterr().out
    for word in ("reached", "numpy", "onnxruntime", "free", "governor", "temperature", "clock", "lock"):
        assert word in table
    assert main(["board", "check", "loop", "--target", "rknn"]) == 3
    assert "librknnrt absent" in capsys.readouterr().out


def test_a_board_of_another_target_is_refused(
    loop: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIGHTJAR_BOARDS", str(loop.boards(tmp_path / "rknn.toml", more='target = "rknn"\n')))
    monkeypatch.setenv("NIGHTJAR_STORE", str(tmp_path / "store"))
    assert main(["port", "--board", "loop"]) == 3
    assert "is for target rknn" in capsys.readouterr().err


def test_an_old_runtime_on_the_board_is_refused_before_a_run(
    loop: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = 'def versions():\n    return {"librknnrt": "1.4.0 (x@2022)", "rknpu": "0.8.2", "onnxruntime": "1"}\n'
    monkeypatch.setattr("nightjar.plugins.board_choice.probe_of", lambda target: old)
    target = plugin("targets", "rknn")
    monkeypatch.setattr(target.load(), "RUNTIMES", ("onnxruntime",))
    with pytest.raises(BoardMissing, match=r"librknnrt\.so 1\.4\.0 .*Invalid RKNN model version 6"):
        board_of(target, "loop")


def test_a_clip_that_was_set_aside_is_in_no_score_and_in_the_report(
    tmp_path: Path, random_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import tasks.evaluate as stage

    run, why = stage.run_clips, "the session ended early: exit status -11 <b>; run the same command again"

    def failing(*given: Any, **settings: Any) -> list[dict[str, Any]]:
        return [{"id": "c1", "error": why} if line["id"] == "c1" else line for line in run(*given, **settings)]

    monkeypatch.setattr(stage, "run_clips", failing)
    monkeypatch.setenv("NIGHTJAR_STORE", str(tmp_path / "store"))
    words = {f"c{number}": word for number, word in enumerate(("red", "blue", "stop"))}
    speech = [
        *("--calibration-set", str(write_speech(tmp_path / "calibration", words, speaker="ada"))),
        *("--test-set", str(write_speech(tmp_path / "test", words, speaker="bob"))),
    ]
    model = ["--model", "aside", "--checkpoint", str(random_checkpoint), "--window", "5", "--precision", "fp"]
    assert main(["port", *model, *speech, "--json", str(tmp_path / "results.json")]) in (0, 1)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["aside"] == {"c1": why}
    assert (results["clips"], results["skipped"]) == (2, 0)
    assert "excluded c1: the session ended early: exit status -11" in " ".join(capsys.readouterr().out.split())
    page = (ROOT / results["report"]).read_text()
    assert "1 excluded" in page
    assert "exit status -11 &lt;b&gt;" in page
    (record, *_) = (tmp_path / "store" / "evaluate").glob("*/record.json")
    assert json.loads(record.read_text())["meta"]["aside"].startswith("1: the session ended early")
    shutil.rmtree((ROOT / results["report"]).parent)
