"""A run resolves its request once, and names its stages and its report so that nothing is lost."""

import importlib
import inspect
import json
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

import tasks
from flows import evaluation, precision_search
from flows.prepare import Prepared
from nightjar.boards.ref import BoardRef
from nightjar.boards.ssh import SshBoard
from nightjar.cli.main import main
from nightjar.errors import BadOptions
from nightjar.plugins.board_choice import board_of
from nightjar.plugins.registry import plugin
from nightjar.request import PortRequest, stage_names
from nightjar.store.artifact import Source
from tasks.publish import board_suffix
from tasks.stage import Pending
from tests.flows.conftest import write_speech
from tests.loopback import Loopback


def test_a_port_asks_its_board_and_warns_of_it_once(
    loop: Loopback,
    random_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[SshBoard] = []
    facts = SshBoard.facts
    monkeypatch.setattr(SshBoard, "facts", lambda board, *asked: calls.append(board) or facts(board, *asked))
    monkeypatch.setattr("nightjar.plugins.board_choice.preflight_findings", lambda *_: [("warn", "old driver")])
    monkeypatch.setenv("NIGHTJAR_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("NIGHTJAR_REPORTS", str(tmp_path / "reports"))
    speech = [
        *("--calibration-set", str(write_speech(tmp_path / "calibration", {"c0": "red"}))),
        *("--test-set", str(write_speech(tmp_path / "test", {"t0": "stop"}, speaker="bob"))),
    ]
    model = ["--model", "random", "--checkpoint", str(random_checkpoint), "--window", "5", *speech]
    assert main(["port", *model, "--board", "loop", "--json", str(tmp_path / "r.json")]) in (0, 1)
    assert len(calls) == 1
    assert capsys.readouterr().out.count("board loop: old driver") == 1
    results = json.loads((tmp_path / "r.json").read_text())
    assert Path(results["report"]).parent.name == "random-onnx-int8-loop"
    assert {stage["name"].split()[0] for stage in results["stages"]} <= set(stage_names())


def test_a_report_is_named_by_its_board_unless_that_is_the_default() -> None:
    default = plugin("targets", "rknn").load().DEFAULT_BOARD
    assert board_suffix("rknn", None) == board_suffix("rknn", default) == ""
    assert {board_suffix("rknn", board) for board in ("rk1", "rk2")} == {"-rk1", "-rk2"}


def _is_stage(function: Any) -> bool:
    return list(inspect.signature(function, follow_wrapped=False).parameters) == ["label", "arguments"]


def test_every_stage_there_is_may_be_refreshed() -> None:
    stages = {
        name
        for module in pkgutil.iter_modules(tasks.__path__, "tasks.")
        for name, value in vars(importlib.import_module(module.name)).items()
        if inspect.isfunction(value) and value.__module__ == module.name and _is_stage(value)
    }
    assert {"drift", "read_printed", "build"} <= stages
    assert set(stage_names()) == stages
    assert PortRequest(refresh=tuple(sorted(stages))).refresh


def test_a_stage_that_is_none_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["port", "--refresh", "everything"])
    assert stopped.value.code == BadOptions.exit_code
    assert re.search(r"--refresh: invalid choice: 'everything' .*'drift'", capsys.readouterr().err)


def test_a_search_evaluates_the_reference_on_the_host_it_was_built_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluations: list[dict[str, Any]] = []

    def record(**given: Any) -> Pending:
        evaluations.append(given)
        return Pending("evaluate")

    monkeypatch.setattr(evaluation, "evaluate", record)
    for name in ("rank", "rewrite", "quantize"):
        monkeypatch.setattr(precision_search, name, lambda **_: Pending("rank"))
    speech = write_speech(tmp_path / "calibration", {"c0": "red"})
    host, target = plugin("targets", "torchscript"), plugin("targets", "hailo")
    prepared = Prepared(
        family="whisper",
        target=target,
        board=BoardRef(alias="local", tier="device", facts=board_of(host, "local").facts),
        host=host,
        host_board=board_of(host, "local"),
        checkpoint=Source(path=tmp_path, sha256=""),
        calibration_speech=Source(path=speech, sha256=""),
        test_speech=None,
        graphs=Pending("export"),
        reference=Pending("build reference"),
    )
    found = precision_search.search_precision(PortRequest(precision="auto"), prepared, Pending("calibrate"))
    assert isinstance(found.settings["plan"], Pending)
    (reference,) = evaluations
    assert "targets.torchscript.runner" in [each.module for each in reference["session"]]
