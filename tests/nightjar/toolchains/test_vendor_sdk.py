"""What a person must bring of a vendor's SDK: everything missing is said at once, and nothing else is installed."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import nightjar.toolchains.environment as module
import nightjar.toolchains.install as making
from nightjar.cli.doctor import examine
from nightjar.cli.main import main
from nightjar.errors import BadOptions, ToolchainMissing
from nightjar.toolchains.environment import MARKER, toolchain
from nightjar.toolchains.install import install
from nightjar.toolchains.vendor_sdk import find_sdk, read_sdk_spec

HERE = f"cp{sys.version_info[0]}{sys.version_info[1]}"
SDK = """
name = "the Maker SDK 2"
source = "the maker's portal"
python = ["{here}", "3.4"]

[[wheels]]
name = "maker_converter"
versions = ">=2.0,<3"

[[wheels]]
name = "maker_extra"
optional = true

[[programs]]
name = "maker-cc"
path = "host/bin/maker-cc"
libraries = "host/lib"
"""


def wheel(folder: Path, name: str, version: str, tag: str, says: str = "") -> Path:
    """Write a wheel of one module that holds its version."""
    path = folder / f"{name}-{version}-{tag}.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", f"version = {version!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {says or name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def program(folder: Path, says: str = "Maker CC version 2.0.7 build 3", libraries: bool = True) -> Path:
    path = folder / "host" / "bin" / "maker-cc"
    path.parent.mkdir(parents=True)
    path.write_text(f'#!/bin/sh\ntest "$1" = --version && test -d "$LD_LIBRARY_PATH" && echo "{says}"\n')
    path.chmod(0o755)
    if libraries:
        (folder / "host" / "lib").mkdir()
    return path


@pytest.fixture
def wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A target called rknn whose SDK comes from a vendor, in a place of its own."""
    (tmp_path / "requirements.txt").write_text("# nothing public\n")
    (tmp_path / "sdk.toml").write_text(SDK.replace("{here}", ".".join(map(str, sys.version_info[:2]))))
    monkeypatch.setenv("NIGHTJAR_TOOLCHAINS", str(tmp_path / "place"))
    for each in (module, making):
        monkeypatch.setattr(each, "requirements_file", lambda target: tmp_path / "requirements.txt")
    monkeypatch.setattr(making, "probe", lambda found: {})
    (tmp_path / "sdk").mkdir()
    return tmp_path / "sdk"


def test_without_the_vendors_part_the_exact_command_is_said(wanted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = r"get the Maker SDK 2 \(the maker's portal\), then run `nightjar toolchain install rknn --sdk FOLDER`"
    with pytest.raises(ToolchainMissing, match=said):
        toolchain("rknn")
    with pytest.raises(ToolchainMissing, match=said):
        install("rknn")
    assert main(["toolchain", "install", "rknn"]) == 3
    assert "--sdk FOLDER" in capsys.readouterr().err


def test_everything_that_is_missing_is_said_at_once(wanted: Path) -> None:
    with pytest.raises(ToolchainMissing, match="is not the whole of the Maker SDK 2") as caught:
        install("rknn", sdk=wanted)
    said = str(caught.value)
    assert f"no wheel of maker_converter >=2.0,<3 for Python {sys.version_info[0]}.{sys.version_info[1]} or 3.4" in said
    assert "no host/bin/maker-cc" in said
    assert "maker_extra" not in said, "what is optional is not missed"
    assert "\n" not in said
    with pytest.raises(ToolchainMissing, match=r"no folder .*nowhere: give the one with the Maker SDK 2"):
        install("rknn", sdk=wanted / "nowhere")


@pytest.mark.parametrize(
    ("version", "tag", "says", "said"),
    [
        ("1.9", f"{HERE}-{HERE}-linux_x86_64", "", "is 1.9, wanted is maker_converter >=2.0,<3"),
        ("3.0", "py3-none-any", "", "is 3.0, wanted is"),
        ("2.1", "cp27-cp27m-linux_x86_64", "", "is for cp27-cp27m-linux_x86_64, wanted is Python"),
        ("2.1", f"{HERE}-{HERE}-linux_aarch64", "", "on this machine"),
        ("2.1", f"{HERE}-{HERE}-manylinux2014_aarch64", "", "is for"),
        ("2.1", f"{HERE}-{HERE}-macosx_11_0_x86_64", "", "macosx_11_0_x86_64, wanted is Python"),
        ("2.1", f"{HERE}-{HERE}-win_amd64", "", "win_amd64, wanted is Python"),
        ("2.0rc1", "py3-none-any", "", "is 2.0rc1, wanted is maker_converter >=2.0,<3"),
        ("2.1", "py3-none-any", "other", "is damaged (its metadata says other 2.1)"),
    ],
)
def test_a_wheel_that_does_not_fit_is_named(wanted: Path, version: str, tag: str, says: str, said: str) -> None:
    program(wanted)
    wheel(wanted, "maker_converter", version, tag, says)
    with pytest.raises(ToolchainMissing) as caught:
        install("rknn", sdk=wanted)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("version", "tag"),
    [
        ("2.0", f"{HERE}-{HERE}-manylinux_2_17_x86_64.manylinux2014_x86_64"),
        ("2.1rc1", "py2.py3-none-any"),
        ("2.0.0+public", "cp36-abi3-linux_x86_64"),
    ],
)
def test_a_wheel_for_this_machine_fits(wanted: Path, version: str, tag: str) -> None:
    path, spec = wheel(wanted, "maker_converter", version, tag), read_sdk_spec(wanted.parent / "sdk.toml")
    program(wanted)
    assert find_sdk("rknn", spec, wanted).wheels == (path,)


def test_half_a_wheel_and_a_program_that_does_not_run_are_named(wanted: Path) -> None:
    path = wheel(wanted, "maker_converter", "2.1", "py3-none-any")
    path.write_bytes(path.read_bytes()[:80])
    program(wanted).chmod(0o644)
    with pytest.raises(ToolchainMissing, match=r"2\.1-py3-none-any\.whl is damaged.*maker-cc is not executable"):
        install("rknn", sdk=wanted)


def test_a_program_needs_its_libraries_and_must_answer(wanted: Path) -> None:
    wheel(wanted, "maker_converter", "2.1", "py3-none-any")
    cc = program(wanted, libraries=False)
    with pytest.raises(ToolchainMissing, match="no host/lib beside host/bin/maker-cc"):
        install("rknn", sdk=wanted)
    (wanted / "host" / "lib").mkdir()
    cc.write_text("#!/bin/sh\nexit 127\n")
    with pytest.raises(ToolchainMissing, match="maker-cc does not answer --version"):
        install("rknn", sdk=wanted)


def test_a_python_of_the_wheels_own_version_must_answer(wanted: Path) -> None:
    program(wanted)
    wheel(wanted, "maker_converter", "2.1", "cp34-cp34m-linux_x86_64")
    with pytest.raises(ToolchainMissing, match=r"need python3\.4 \(with venv\), and none on PATH answers"):
        install("rknn", sdk=wanted)


def test_the_vendors_own_files_are_installed_and_their_versions_enter_the_key(
    wanted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nested = wanted / "sdk-2.0.7"
    nested.mkdir()
    cc = program(nested)
    wheel(wanted, "maker_converter", "2.0", "py3-none-any")
    wheel(wanted, "maker_converter", "2.5", "py3-none-any")
    wheel(wanted, "maker_extra", "1.0", f"{HERE}-none-any")
    monkeypatch.setenv("PIP_INDEX_URL", "http://localhost:9/simple")  # nobody may be asked
    made = install("rknn", sdk=wanted)
    versions = toolchain("rknn").versions()
    assert versions["maker-converter"] == "2.5"
    assert versions["maker-extra"] == "1.0"
    assert versions["maker-cc"] == "2.0.7"
    said = subprocess.run([made.python, "-c", "import maker_converter as m; print(m.version)"], capture_output=True)
    assert said.stdout == b"2.5\n"
    found = made.program("maker-cc")
    assert found.path == cc.resolve()
    assert found.environment()["LD_LIBRARY_PATH"] == str(nested / "host" / "lib")
    (finding,) = (each for each in examine() if each.name == "toolchain rknn")
    assert finding.detail.endswith(" packages as pinned, maker-converter 2.5, maker-extra 1.0, maker-cc 2.0.7")
    number = made.folder.stat().st_ino
    assert install("rknn").folder.stat().st_ino == number, "what is there and works stays, without --sdk too"
    cc.unlink()
    with pytest.raises(ToolchainMissing, match="maker-cc of the toolchain of rknn is no longer at"):
        toolchain("rknn").program("maker-cc")
    with pytest.raises(ToolchainMissing, match="other-cc of the toolchain of rknn was not there"):
        toolchain("rknn").program("other-cc")
    assert "programs" in json.loads((made.folder / MARKER).read_text())


def test_sdk_is_for_vendors_alone(wanted: Path) -> None:
    (wanted.parent / "sdk.toml").unlink()
    with pytest.raises(BadOptions, match="comes from the package index: remove --sdk"):
        install("rknn", sdk=wanted)


def test_every_sdk_toml_is_readable_and_no_lock_has_the_vendors_wheels() -> None:
    files = sorted((module.ROOT / "targets").glob("*/toolchain/sdk.toml"))
    assert files
    for path in files:
        wanted = read_sdk_spec(path)
        own = {wheel.name.replace("_", "-") for wheel in wanted.wheels}
        assert not own & module.pinned_versions(path.with_name("requirements.txt")).keys()
        with pytest.raises(ToolchainMissing, match="is not the whole of"):
            find_sdk(path.parent.parent.name, wanted, path.parent)
