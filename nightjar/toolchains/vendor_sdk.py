"""A vendor's SDK that only the vendor gives: what must lie in the folder that a person names, and what lies there.

`targets/<t>/toolchain/sdk.toml` says what is wanted; no code here knows a vendor:

    name = "NeuroPilot SDK 8"
    source = "the vendor's portal, after registration: …"
    python = ["3.10", "3.11"]

    [[wheels]]
    name = "mtk_converter"
    at_least = "8.13"
    below = "9"
    optional = false

    [[programs]]
    name = "ncc-tflite"
    path = "neuron_sdk/host/bin/ncc-tflite"    # anywhere below the folder
    libraries = "neuron_sdk/host/lib"
    version = ["--version"]                    # what it is asked for its version

Wheels are installed from these very files, with --no-index: a public package of the same name is not theirs.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from nightjar.errors import ToolchainMissing

FILE = "sdk.toml"
WHEEL = re.compile(
    r"(?P<name>[^-]+)-(?P<version>[^-]+)(-\d[^-]*)?-(?P<python>[^-]+)-(?P<abi>[^-]+)-(?P<platform>[^-]+)"
)
NUMBER = re.compile(r"\d+(?:\.\d+)+[\w.+-]*")
ANSWER_S = 30.0
SEARCH_DEPTH = 6  # folders below the one that is named: vendors' archives nest


class WheelSpec(BaseModel):
    """A wheel that only the vendor gives."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    at_least: str = ""
    below: str = ""
    optional: bool = Field(False, description="taken where it lies there, not missed where it does not")


class ProgramSpec(BaseModel):
    """A program of the vendor's that stays where it lies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    path: str
    libraries: str = Field("", description="folder of its libraries, for LD_LIBRARY_PATH")
    version: tuple[str, ...] = ("--version",)


class SdkSpec(BaseModel):
    """The content of sdk.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: str
    python: tuple[str, ...] = Field(description="versions that the vendor's wheels are made for, the best first")
    wheels: tuple[WheelSpec, ...] = ()
    programs: tuple[ProgramSpec, ...] = ()


class Program(BaseModel, frozen=True):
    """A vendor's program as found."""

    path: Path
    libraries: Path | None
    version: str

    def environment(self) -> dict[str, str]:
        """Return the variables it runs with: its own libraries, and nothing of the caller's settings."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        libraries = {"LD_LIBRARY_PATH": str(self.libraries)} if self.libraries else {}
        return {**kept, **libraries, "LC_ALL": "C.UTF-8"}


class Sdk(NamedTuple):
    """What lies in a folder: an interpreter that takes the wheels, the wheels, the programs by name."""

    python: str
    wheels: tuple[Path, ...]
    programs: dict[str, Program]


class _Wheel(NamedTuple):
    path: Path
    name: str
    version: str
    pythons: tuple[str, ...]  # of the versions asked for, those that it is made for
    says: str  # its tags


def read_sdk_spec(path: Path) -> SdkSpec:
    """Read sdk.toml, which is ours: what is wrong in it raises as it is."""
    return SdkSpec.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))


def find_sdk(target: str, wanted: SdkSpec, folder: Path) -> Sdk:
    """Find an SDK's wheels and programs below a folder, and a Python that takes them.

    Raises ToolchainMissing that names everything that is missing, damaged, or of the wrong version.
    """
    if not folder.is_dir():
        raise ToolchainMissing(
            f"no folder {folder}: give the one with {wanted.name} in it, "
            f"`nightjar toolchain install {target} --sdk FOLDER`; {wanted.source}"
        )
    lying = list(_find_wheels(folder, wanted.python))
    missing: list[str] = []
    for wheel in wanted.wheels:
        said = _wheel_problem(wheel, lying, wanted.python)
        if said and not (wheel.optional and not any(_same(one.name, wheel.name) for one in lying)):
            missing.append(said)
    programs = {}
    for program in wanted.programs:
        found = _find_program(program, folder)
        if isinstance(found, str):
            missing.append(found)
        else:
            programs[program.name] = found
    if missing:
        raise ToolchainMissing(
            f"{folder} is not the whole of {wanted.name}: {'; '.join(missing)} ({wanted.source}): "
            f"put it there, then run `nightjar toolchain install {target} --sdk {folder}` again"
        )
    version, wheels = _choose_wheels(target, wanted, folder, lying)
    return Sdk(_find_python(target, version, folder), wheels, programs)


def _wheel_problem(wheel: WheelSpec, lying: Iterable[_Wheel], pythons: tuple[str, ...]) -> str:
    """Say what is wrong with all wheels of a name, empty where one will do."""
    of_name = [one for one in lying if _same(one.name, wheel.name)]
    wheels = f"{wheel.name} {_span(wheel)}".strip()
    if not of_name:
        return f"no wheel of {wheels} for Python {' or '.join(pythons)}"
    if any(one.pythons and _fits(wheel, one.version) and not _damage(one) for one in of_name):
        return ""
    said = []
    for one in of_name:
        if damage := _damage(one):
            said.append(f"{one.path.name} is damaged ({damage})")
        elif not _fits(wheel, one.version):
            said.append(f"{one.path.name} is {one.version}, wanted is {wheels}")
        else:
            said.append(f"{one.path.name} is for {one.says}, wanted is Python {' or '.join(pythons)} on this machine")
    return ", ".join(said)


def _choose_wheels(target: str, wanted: SdkSpec, folder: Path, lying: list[_Wheel]) -> tuple[str, tuple[Path, ...]]:
    """Choose one wheel of each name that all fit one Python; the newest of each."""
    usable = [one for one in lying if not _damage(one)]
    for version in wanted.python:
        chosen: list[Path] = []
        for wheel in wanted.wheels:
            fitting = [one for one in usable if _same(one.name, wheel.name) and version in one.pythons]
            fitting = sorted((one for one in fitting if _fits(wheel, one.version)), key=lambda one: _key(one.version))
            if fitting:
                chosen.append(fitting[-1].path)
            elif not wheel.optional:
                break
        else:
            return version, tuple(chosen)
    names = ", ".join(wheel.name for wheel in wanted.wheels if not wheel.optional)
    raise ToolchainMissing(
        f"the wheels in {folder} are for different Pythons: {names} must be of one, {' or '.join(wanted.python)}; "
        f"put them there together, then run `nightjar toolchain install {target} --sdk {folder}` again"
    )


def _find_python(target: str, version: str, folder: Path) -> str:
    """Find a Python of a version: this one, or pythonX.Y on PATH that answers (a version manager's shim may not)."""
    if version == ".".join(map(str, sys.version_info[:2])):
        return sys.executable
    ask = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
    for place in os.environ.get("PATH", "").split(os.pathsep):
        path = shutil.which(f"python{version}", path=place)
        if path and _output([path, "-c", ask]) == version:
            return path
    raise ToolchainMissing(
        f"the vendor's wheels need python{version} (with venv), and none on PATH answers: install it, "
        f"then run `nightjar toolchain install {target} --sdk {folder}` again"
    )


def _find_wheels(folder: Path, pythons: tuple[str, ...]) -> Iterable[_Wheel]:
    for path in sorted(folder.rglob("*.whl")):
        if len(path.relative_to(folder).parts) > SEARCH_DEPTH or not (named := WHEEL.fullmatch(path.stem)):
            continue
        on_linux = any(tag in named["platform"] for tag in ("any", "linux_x86_64")) or "x86_64" in named["platform"]
        fitting = tuple(v for v in pythons if on_linux and _takes(named["python"], named["abi"], v))
        says = f"{named['python']}-{named['abi']}-{named['platform']}"
        yield _Wheel(path, named["name"], named["version"], fitting, says)


def _takes(tags: str, abi: str, version: str) -> bool:
    """Say whether a Python of this version takes a wheel of these tags (PEP 425)."""
    major, minor = version.split(".")
    for tag in tags.split("."):
        if tag in (f"cp{major}{minor}", f"py{major}{minor}", f"py{major}"):
            return True
        if abi == "abi3" and (of := re.fullmatch(rf"cp{major}(\d+)", tag)) and int(of[1]) <= int(minor):
            return True
    return False


def _damage(wheel: _Wheel) -> str:
    """Say what is wrong with a wheel's file, empty for nothing: half a download, or a file renamed."""
    try:
        with zipfile.ZipFile(wheel.path) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            said = archive.read(name).decode("utf-8", "replace")
    except (OSError, zipfile.BadZipFile, StopIteration) as error:
        return str(error) or "it has no metadata"
    fields = dict(re.findall(r"^(Name|Version): *(\S+)", said, re.MULTILINE))
    if not _same(fields.get("Name", ""), wheel.name) or _key(fields.get("Version", "")) != _key(wheel.version):
        return f"it says it is {fields.get('Name', 'nothing')} {fields.get('Version', '')}".strip()
    return ""


def _find_program(wanted: ProgramSpec, folder: Path) -> Program | str:
    """Find a program that answers; say in words where there is none."""
    tail = Path(wanted.path)
    found = [path for path in sorted(folder.rglob(tail.name)) if path.parts[-len(tail.parts) :] == tail.parts]
    if not found:
        return f"no {wanted.path}"
    path = found[0].resolve()
    if not os.access(path, os.X_OK):
        return f"{path} is not executable (`chmod +x`)"
    libraries = Path(*found[0].parts[: -len(tail.parts)], wanted.libraries).resolve() if wanted.libraries else None
    if libraries is not None and not libraries.is_dir():
        return f"no {wanted.libraries} beside {wanted.path}"
    program = Program(path=path, libraries=libraries, version="")
    said = _output([str(path), *wanted.version], program.environment())
    if said is None:
        return f"{path} does not answer {' '.join(wanted.version)}"
    numbers = NUMBER.search(said)
    return program.model_copy(update={"version": numbers[0] if numbers else " ".join(said.split())[:80] or "unknown"})


def _output(command: list[str], environment: dict[str, str] | None = None) -> str | None:
    """Run a command that answers at once; return what it prints, None where it fails."""
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=ANSWER_S,
            check=False,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.strip() or done.stderr.strip()) if done.returncode == 0 else None


def _fits(wheel: WheelSpec, version: str) -> bool:
    have = _key(version)
    return (not wheel.at_least or have >= _key(wheel.at_least)) and (not wheel.below or have < _key(wheel.below))


def _span(wheel: WheelSpec) -> str:
    from_, to = f">={wheel.at_least}" if wheel.at_least else "", f"<{wheel.below}" if wheel.below else ""
    return ",".join(filter(None, (from_, to)))


def _key(version: str) -> tuple[int, ...]:
    """Read the numbers a version begins with: `8.13.0+public` is (8, 13, 0)."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def _same(one: str, other: str) -> bool:
    return re.sub(r"[-_.]+", "-", one).lower() == re.sub(r"[-_.]+", "-", other).lower()
