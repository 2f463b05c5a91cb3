"""What the import contracts of pyproject.toml cannot say: a wrong import fails them, and no flow names a target."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import importlinter
import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("nightjar", "models", "targets", "tasks", "flows")


def lint(checkout: Path) -> subprocess.CompletedProcess[str]:
    """Run the contracts on a copy; -S leaves out .pth files, by which an installed checkout joins targets/."""
    packages = Path(importlinter.__file__).parents[1]
    there = {**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), str(packages)])}
    code = "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"
    return subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=checkout, env=there, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("checkout")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "tests").mkdir()
    for name in ("pyproject.toml", "tests/contracts.py"):
        shutil.copyfile(ROOT / name, copy / name)
    return copy


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("nightjar/errors.py", "from nightjar.scoring import wer", "eight floors"),
        ("nightjar/boards/lock.py", "import nightjar.speech.audio", "eight floors"),
        ("nightjar/device/session.py", "import pydantic", "what travels to a board"),
        ("models/whisper/decode.py", "import torch", "decode loops"),
        ("models/whisper/tokens.py", "from models.zipformer import decode", "no model imports another"),
        ("targets/rknn/build.py", "import prefect", "import prefect"),
        ("targets/rknn/build.py", "from rknn.api import RKNN", "vendor's SDK"),
        ("tasks/judge.py", "import flows.port", "flows -> tasks"),
    ],
)
def test_a_wrong_import_fails_its_contract(checkout: Path, file: str, line: str, broken: str) -> None:
    path = checkout / file
    before = path.read_text(encoding="utf-8")
    path.write_text(f"{before}\n\ndef wrong() -> None:\n    {line}\n", encoding="utf-8")
    try:
        done = lint(checkout)
    finally:
        path.write_text(before, encoding="utf-8")
    assert done.returncode == 1
    failed = [row for row in " ".join(done.stdout.split()).split("KEPT") if "BROKEN" in row]
    assert any(broken in row for row in failed), done.stdout


def test_flows_never_name_a_target() -> None:
    names = {path.parent.name for path in (ROOT / "targets").glob("*/__init__.py")} - {"onnx", "torchscript"}
    for path in (ROOT / "flows").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not names & texts, path.name
