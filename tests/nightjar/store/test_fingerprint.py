"""The code part of a key: which imports count."""

from pathlib import Path

import numpy
import pytest

from nightjar.store.fingerprint import closure


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files = {
        "nightjar/__init__.py": "",
        "nightjar/scoring/wer.py": "import numpy\n",
        "nightjar/speech/manifest.py": "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from nightjar.report import page\n",
        "nightjar/report/page.py": "",
        "tasks/__init__.py": "",
        "tasks/stage.py": "import prefect\n",
        "tasks/judge.py": "from nightjar.speech import manifest\nfrom tasks.stage import stage\n\n"
        "def f():\n    from nightjar.scoring.wer import align\n",
        "models/m/__init__.py": "",
        "models/m/export.py": "from . import surgery\nfrom .tokens import table\n",
        "models/m/surgery.py": "",
        "models/m/tokens.py": "",
        "models/m/decode.py": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "README.md").write_text("read me")
    return tmp_path


def test_function_level_imports_count_and_type_checking_ones_do_not(root: Path) -> None:
    found = closure(["tasks.judge"], root)
    assert set(found.files) == {
        "nightjar/__init__.py",
        "nightjar/speech/manifest.py",
        "nightjar/scoring/wer.py",
        "tasks/__init__.py",
        "tasks/judge.py",
    }


def test_libraries_count_with_their_version_and_orchestration_never_does(root: Path) -> None:
    assert closure(["tasks.judge"], root).libraries == {"numpy": numpy.__version__}


def test_relative_imports_reach_siblings_only(root: Path) -> None:
    found = closure(["models.m.export"], root).files
    assert {"models/m/export.py", "models/m/surgery.py", "models/m/tokens.py"} <= set(found)
    assert "models/m/decode.py" not in found


def test_an_edit_changes_exactly_the_closures_that_reach_it(root: Path) -> None:
    before = {module: closure([module], root) for module in ("tasks.judge", "models.m.export")}
    (root / "nightjar/scoring/wer.py").write_text("import numpy\nx = 1\n")
    (root / "README.md").write_text("read me twice")
    after = {module: closure([module], root) for module in before}
    assert before["tasks.judge"] != after["tasks.judge"]
    assert before["models.m.export"] == after["models.m.export"]


def test_templates_beside_a_module_count_and_those_of_other_packages_do_not(root: Path) -> None:
    for name in ("nightjar/speech/templates/page.html", "nightjar/speech/templates/parts/plot.svg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("<p>")
    (root / "nightjar/speech/templates/tool.py").write_text("")
    (root / "nightjar/report/templates").mkdir()
    (root / "nightjar/report/templates/page.html").write_text("<p>")
    before = closure(["tasks.judge"], root)
    assert {name for name in before.files if "templates" in name} == {
        "nightjar/speech/templates/page.html",
        "nightjar/speech/templates/parts/plot.svg",
    }
    (root / "nightjar/speech/templates/parts/plot.svg").write_text("<svg>")
    assert closure(["tasks.judge"], root) != before
    assert "nightjar/report/templates/page.html" in closure(["nightjar.report.page"], root).files


def test_the_transport_is_not_in_the_key() -> None:
    found = closure(["tasks.evaluate"])
    assert "nightjar/boards/board.py" in found.files
    assert not {"fabric", "paramiko"} & found.libraries.keys()
    assert (
        not {"nightjar/boards/ssh.py", "nightjar/boards/file_transfer.py", "nightjar/boards/config.py"}
        & found.files.keys()
    )
