"""The board's runner against a stand-in of rknn-toolkit-lite2, and the stand-in against the published wheel."""

import ast
import importlib
import inspect
import os
import subprocess
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nightjar.device.health import Finding, parsed
from targets.rknn.preflight import REFUSED, fit
from tests.conftest import need

VERSION = "2.5.0"


class RKNNLite:
    """Behave as rknnlite.api.RKNNLite does: -1 and None instead of exceptions, chatter on stdout."""

    NPU_CORE_AUTO, NPU_CORE_0, NPU_CORE_1, NPU_CORE_2 = 0, 1, 2, 4
    NPU_CORE_0_1, NPU_CORE_0_1_2, NPU_CORE_ALL = 3, 7, 0xFFFF
    made: list["RKNNLite"] = []  # noqa: RUF012 (one list for the whole test, on purpose)
    loads, starts, runs = 0, 0, True

    def __init__(self, verbose: bool = False, verbose_file: str | None = None) -> None:
        self.said: dict[str, Any] = {}
        RKNNLite.made.append(self)

    def load_rknn(self, path: str, key_path: str | None = None) -> int:
        os.write(1, b"I RKNN: loading\n")  # in C, past sys.stdout
        self.said["path"] = path
        return self.loads

    def init_runtime(
        self, target: str | None = None, device_id: str | None = None, async_mode: bool = False, core_mask: int = 0
    ) -> int:
        self.said["core_mask"] = core_mask
        return self.starts

    def inference(
        self,
        inputs: list[np.ndarray],
        data_type: str | None = None,
        data_format: str | None = None,
        inputs_pass_through: list[int] | None = None,
        get_frame_id: bool = False,
        reuse_outputs: bool = False,
    ) -> list[np.ndarray] | None:
        os.write(1, b"I RKNN: running\n")
        self.said |= {"inputs": inputs, "data_format": data_format, "reuse_outputs": reuse_outputs}
        return [np.arange(6, dtype=np.float32)] if self.runs else None

    def release(self) -> None:
        self.said["released"] = True


PARTS = {
    "decoder": {
        "runner": "rknn",
        "file": "decoder.rknn",
        "inputs": [
            {"name": "embedding", "shape": [1, 1, 4], "dtype": "float32"},
            {"name": "mask", "shape": [1, 1, 1, 3], "dtype": "float32"},
        ],
        "outputs": [{"name": "logits", "shape": [1, 1, 6], "dtype": "float32"}],
    }
}
GIVEN = {"mask": np.zeros((1, 1, 1, 3), np.float32), "embedding": np.ones((1, 1, 4), np.float32)}


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """targets/rknn/runner.py with the stand-in for its runtime."""
    api = types.ModuleType("rknnlite.api")
    api.RKNNLite = RKNNLite  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rknnlite", types.ModuleType("rknnlite"))
    monkeypatch.setitem(sys.modules, "rknnlite.api", api)
    for name, value in (("made", []), ("loads", 0), ("starts", 0), ("runs", True)):
        monkeypatch.setattr(RKNNLite, name, value)
    monkeypatch.delitem(sys.modules, "targets.rknn.runner", raising=False)
    yield importlib.import_module("targets.rknn.runner")
    sys.modules.pop("targets.rknn.runner", None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "decoder.rknn").write_bytes(b"RKNN")
    return tmp_path


def test_it_runs_in_graph_order_and_nchw_and_keeps_stdout_clean(
    runner: types.ModuleType, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    opened = runner.open_runner(folder, PARTS, {"core_mask": "0_1_2"})
    found = opened.run("decoder", {"mask": GIVEN["mask"]}, {"embedding": GIVEN["embedding"]})
    assert found["logits"].shape == (1, 1, 6)
    said = RKNNLite.made[0].said
    assert (said["core_mask"], said["data_format"], said["reuse_outputs"]) == (7, "nchw", False)
    assert [array.shape for array in said["inputs"]] == [(1, 1, 4), (1, 1, 1, 3)]
    opened.close()
    assert said["released"]
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "I RKNN: loading" in captured.err
    assert "I RKNN: running" in captured.err


def test_it_says_in_one_line_what_cannot_be(
    runner: types.ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = runner.open_runner(folder, PARTS)
    assert RKNNLite.made[0].said["core_mask"] == RKNNLite.NPU_CORE_AUTO
    cases = [
        (lambda: opened.run("joiner", GIVEN), "no part 'joiner' here: have decoder"),
        (lambda: opened.run("decoder", {}), "decoder takes embedding, mask, not "),
        (
            lambda: opened.run("decoder", {**GIVEN, "mask": GIVEN["mask"][0]}),
            r"mask as \(1, 1, 1, 3\), not \(1, 1, 3\)",
        ),
        (lambda: runner.open_runner(folder, PARTS, {"core_mask": "3"}), "no NPU core mask '3': have auto, 0, 1, 2"),
        (lambda: runner.open_runner(folder / "x", PARTS), "no file .* for part 'decoder'"),
    ]
    for call, said in cases:
        with pytest.raises(RuntimeError, match=said):
            call()
    odd = {"decoder": {**PARTS["decoder"], "outputs": [{"name": "logits", "shape": [1, 7], "dtype": "float32"}]}}
    with pytest.raises(RuntimeError, match=r"gave logits as \(6,\), not \(1, 7\)"):
        runner.open_runner(folder, odd).run("decoder", GIVEN)
    monkeypatch.setattr(RKNNLite, "runs", False)
    with pytest.raises(RuntimeError, match="the NPU gave no result for decoder"):
        opened.run("decoder", GIVEN)
    monkeypatch.setattr(RKNNLite, "starts", -1)
    with pytest.raises(RuntimeError, match=r"cannot start .*decoder\.rknn \(-1\).*older librknnrt"):
        runner.open_runner(folder, PARTS)
    monkeypatch.setattr(RKNNLite, "loads", -1)
    with pytest.raises(RuntimeError, match=r"cannot read .*decoder\.rknn \(-1\)"):
        runner.open_runner(folder, PARTS)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ast.FunctionDef]:
    """The methods of RKNNLite as published: its class is Python, what it calls is compiled for aarch64."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
        *("--only-binary=:all:", "--platform", "manylinux_2_17_aarch64", "--python-version", "311"),
        *("--dest", str(folder), f"rknn-toolkit-lite2=={VERSION}"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = list(folder.glob("*.whl"))
    need("rknn-lite-wheel", bool(found), f"pip cannot fetch rknn-toolkit-lite2 {VERSION}: {done.stderr.strip()[-200:]}")
    source = zipfile.ZipFile(found[0]).read("rknnlite/api/rknn_lite.py").decode()
    (body,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "RKNNLite")
    values = {n.targets[0].id: n.value for n in body.body if isinstance(n, ast.Assign)}  # type: ignore[attr-defined]
    for name, value in values.items():
        assert getattr(RKNNLite, name) == ast.literal_eval(value), name
    return {node.name: node for node in body.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", ["__init__", "load_rknn", "init_runtime", "inference", "release"])
def test_the_stand_in_has_the_published_signatures(wheel: dict[str, ast.FunctionDef], name: str) -> None:
    published = wheel[name].args
    ours = inspect.signature(getattr(RKNNLite, name)).parameters
    assert [argument.arg for argument in published.args] == list(ours)
    defaults = [p.default for p in ours.values() if p.default is not inspect.Parameter.empty]
    wanted = [d.value if isinstance(d, ast.Constant) else getattr(RKNNLite, ast.unparse(d)) for d in published.defaults]
    assert defaults == wanted
    assert not published.kwonlyargs


def preflight(toolkit: str, runtime: str | None, driver: str | None) -> list[Finding]:
    board = {"librknnrt": runtime or "absent", "rknpu": driver or "absent"}
    return list(fit({"rknn-toolkit2": toolkit}, board))


def test_preflight_refuses_what_boards_refused() -> None:
    for runtime, driver, toolkit, _, source in REFUSED:
        assert any(found.level == "refuse" for found in preflight(toolkit, runtime, driver)), source
    assert preflight("2.5.0", "2.5.0", "0.9.8") == []
    assert preflight("2.5.0", "2.5.0 (74ea630ce@2026-09-29T14:54:20)", "v0.9.6") == []
    assert preflight("2.3.0", "2.5.0", "0.9.8") == []


@pytest.mark.parametrize(
    ("runtime", "driver", "said"),
    [
        ("2.3.2", "0.9.8", "librknnrt.so 2.3.2 is older than toolkit 2.5.0: install librknnrt.so 2.5.0"),
        ("2.5.0", "0.8.2", "NPU driver 0.8.2 is older than the 0.9 series"),
        (None, "0.9.8", "does not say which librknnrt.so"),
        ("2.5.0", None, "does not say which NPU driver"),
    ],
)
def test_preflight_warns(runtime: str | None, driver: str | None, said: str) -> None:
    (found,) = preflight("2.5.0", runtime, driver)
    assert found.level == "warn"
    assert said in found.message


def test_versions_are_read_as_boards_print_them() -> None:
    assert parsed("2.3.2 (429f97ae6b@2025-04-09T09:09:27)") == (2, 3, 2)
    assert parsed("v0.9.8") == (0, 9, 8)
    assert parsed("unknown") is None
    assert parsed(None) is None
