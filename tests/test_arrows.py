"""The import arrows of docs/design.md: flows → tasks → {targets, models} → nightjar."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(p for top in ("nightjar", "models", "targets", "tasks", "flows") for p in (ROOT / top).rglob("*.py"))
VENDOR_SDKS = {
    "rknn",
    "rknnlite",
    "mtk_converter",
    "mtk_quantization",
    "mtk_neuron",
    "hailo_sdk_client",
    "hailo_platform",
}
ON_THE_BOARD = {"session.py", "features.py", "decode.py", "stream.py", "runner.py"}
BOARD_RUNTIMES = {"numpy", "onnxruntime", "torch", "rknnlite", "hailo_platform", "ai_edge_litert"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module or "")
    return found


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_follow_the_arrows(path: Path) -> None:
    name, tops = name_of(path), {module.partition(".")[0] for module in imports(path)}
    layer = name.partition("/")[0]
    if name == "nightjar/cli.py" or name.startswith("nightjar/commands/"):
        allowed = {"nightjar", "flows"}
    elif name in ("nightjar/session.py",):
        allowed = {"nightjar"}
    else:
        allowed = {
            "nightjar": {"nightjar"},
            "models": {"nightjar", "models"},
            "targets": {"nightjar", "targets"},
            "tasks": {"nightjar", "models", "targets", "tasks"},
            "flows": {"nightjar", "models", "targets", "tasks", "flows"},
        }[layer]
    ours = tops & {"nightjar", "models", "targets", "tasks", "flows"}
    assert ours <= allowed, f"{name} reaches {sorted(ours - allowed)}"
    if "prefect" in tops:
        assert layer in ("tasks", "flows") or name.endswith("/tasks.py") or name == "nightjar/doctor.py"
    if tops & VENDOR_SDKS:
        assert "/toolchain/" in name or path.name == "runner.py"


@pytest.mark.parametrize("path", [p for p in MODULES if p.name in ON_THE_BOARD], ids=name_of)
def test_what_travels_to_the_board_needs_numpy_and_a_runtime_only(path: Path) -> None:
    foreign = {module.partition(".")[0] for module in imports(path)} - set(sys.stdlib_module_names)
    allowed = {"numpy", "nightjar", "models"} | (BOARD_RUNTIMES if path.name == "runner.py" else set())
    assert foreign <= allowed


def test_nightjar_package_imports_nothing() -> None:
    assert imports(ROOT / "nightjar" / "__init__.py") == set()


def test_no_model_imports_another_nor_any_target() -> None:
    for path in (ROOT / "models").rglob("*.py"):
        family = path.relative_to(ROOT).parts[1]
        others = {module for module in imports(path) if module.startswith("models.")}
        assert all(module.split(".")[1] == family for module in others), name_of(path)


def test_flows_never_name_a_target() -> None:
    names = {path.parent.name for path in (ROOT / "targets").glob("*/__init__.py")} - {"onnx", "torchscript"}
    for path in (ROOT / "flows").glob("*.py"):
        texts = [
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant)
        ]
        assert not names & {text for text in texts if isinstance(text, str)}, name_of(path)
