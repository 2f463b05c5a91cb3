"""Find the wheels and programs of an SDK that only its vendor distributes, in a folder that a person names.

`targets/<t>/toolchain/sdk.toml` (SdkSpec) lists what must be there; no code here knows a vendor.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import NamedTuple

from packaging.metadata import parse_email
from packaging.specifiers import SpecifierSet
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, canonicalize_version, parse_wheel_filename
from packaging.version import Version
from pydantic import BaseModel, Field

from nightjar.errors import ToolchainMissing

NUMBER = re.compile(r"\d+(?:\.\d+)+[\w.+-]*")
ANSWER_S = 30.0


class WheelSpec(BaseModel, frozen=True, extra="forbid"):
    """A wheel that only the vendor distributes."""

    name: str
    versions: str = Field("", description="allowed versions, `>=8.13,<9`: 8.14.0rc1 is allowed, 8.13.0rc1 is not")
    optional: bool = Field(False, description="installed where it is there, not reported where it is not")


class ProgramSpec(BaseModel, frozen=True, extra="forbid"):
    """A program of the vendor's that stays in its folder."""

    name: str
    path: str = Field(description="place of the program, anywhere below the folder")
    libraries: str = Field("", description="folder of its libraries, for LD_LIBRARY_PATH")
    version: tuple[str, ...] = Field(("--version",), description="arguments that make it print its version")


class SdkSpec(BaseModel, frozen=True, extra="forbid"):
    """The content of sdk.toml."""

    name: str
    source: str
    python: tuple[str, ...] = Field(description="Python versions of the vendor's wheels, the best first")
    wheels: tuple[WheelSpec, ...] = ()
    programs: tuple[ProgramSpec, ...] = ()


class Program(BaseModel, frozen=True):
    """A vendor's program in a folder."""

    path: Path
    libraries: Path | None
    version: str

    def environment(self) -> dict[str, str]:
        """Return the environment variables for it: its own libraries, none of the caller's settings."""
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        libraries = {"LD_LIBRARY_PATH": str(self.libraries)} if self.libraries else {}
        return {**inherited, **libraries, "LC_ALL": "C.UTF-8"}


class Sdk(NamedTuple):
    """The SDK in a folder: a Python interpreter for the wheels, the wheels, the programs by name."""

    python: str
    wheels: tuple[Path, ...]
    programs: dict[str, Program]


class _Wheel(NamedTuple):
    path: Path
    version: Version
    pythons: tuple[str, ...]  # of the versions in sdk.toml, those that install it on this machine
    problem: str  # empty for a wheel that some of them install


def read_sdk_spec(path: Path) -> SdkSpec:
    """Read sdk.toml, a file of this repository: errors in it are raised as they are."""
    return SdkSpec.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))


def find_sdk(target: str, spec: SdkSpec, folder: Path) -> Sdk:
    """Find an SDK's wheels and programs below a folder, and a Python interpreter for them.

    Raises ToolchainMissing that names everything that is missing, damaged, or of the wrong version.
    """
    install = f"`nightjar toolchain install {target} --sdk"
    if not folder.is_dir():
        raise ToolchainMissing(
            f"no folder {folder}: give the one with {spec.name} in it, {install} FOLDER`; {spec.source}"
        )
    missing, pythons = [], " or ".join(spec.python)
    wheels = _find_wheels(spec, folder)
    for wheel, named in wheels.items():
        if not named and not wheel.optional:
            missing.append(f"no wheel of {wheel.name} {wheel.versions}".strip() + f" for Python {pythons}")
        elif all(each.problem for each in named):
            missing += [each.problem for each in named]
    found = {program.name: _find_program(program, folder) for program in spec.programs}
    missing += [problem for problem in found.values() if isinstance(problem, str)]
    if missing:
        raise ToolchainMissing(
            f"{folder} is not the whole of {spec.name}: {'; '.join(missing)} ({spec.source}): "
            f"put it there, then run {install} {folder}` again"
        )
    programs = {name: program for name, program in found.items() if isinstance(program, Program)}
    for version in spec.python:
        fitting = {wheel: [each for each in named if version in each.pythons] for wheel, named in wheels.items()}
        if all(fitting[wheel] or wheel.optional for wheel in wheels):
            if (python := _find_python(version)) is None:
                raise ToolchainMissing(
                    f"the vendor's wheels need python{version} (with venv), and none on PATH answers: install it, "
                    f"then run {install} {folder}` again"
                )
            newest = (max(named, key=lambda each: each.version) for named in fitting.values() if named)
            return Sdk(python, tuple(wheel.path for wheel in newest), programs)
    names = ", ".join(wheel.name for wheel in spec.wheels if not wheel.optional)
    raise ToolchainMissing(
        f"the wheels in {folder} are for different Pythons: {names} must be for one of {pythons}; "
        f"put them there together, then run {install} {folder}` again"
    )


def _find_wheels(spec: SdkSpec, folder: Path) -> dict[WheelSpec, list[_Wheel]]:
    """Find the wheels of each name, those that do not fit with the reason."""
    specs = {canonicalize_name(wheel.name): wheel for wheel in spec.wheels}
    accepted: dict[str, set[Tag]] = {}  # on this machine (PEP 425)
    for python in spec.python:
        numbers = tuple(map(int, python.split(".")))
        accepted[python] = {*cpython_tags(numbers), *compatible_tags(numbers, f"cp{python.replace('.', '')}")}
    found: dict[WheelSpec, list[_Wheel]] = {wheel: [] for wheel in spec.wheels}
    for path in sorted(folder.rglob("*.whl")):
        try:
            name, version, _, tags = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        if name in specs:
            wheel = specs[name]
            pythons = [python for python in spec.python if tags & accepted[python]]
            problem = ""
            if damage := _damage(path, name, version):
                problem = f"{path.name} is damaged ({damage})"
            elif not SpecifierSet(wheel.versions).contains(version, prereleases=True):
                problem = f"{path.name} is {version}, wanted is {wheel.name} {wheel.versions}"
            elif not pythons:
                own = "-".join(path.stem.split("-")[-3:])
                problem = f"{path.name} is for {own}, wanted is Python {' or '.join(spec.python)} on this machine"
            found[wheel].append(_Wheel(path, version, () if problem else tuple(pythons), problem))
    return found


def _find_python(version: str) -> str | None:
    """Return this interpreter or a pythonX.Y on PATH that starts; the shim of a version manager may not."""
    if version == ".".join(map(str, sys.version_info[:2])):
        return sys.executable
    code = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
    for place in os.environ.get("PATH", "").split(os.pathsep):
        path = shutil.which(f"python{version}", path=place)
        if path and _output([path, "-c", code]) == version:
            return path
    return None


def _damage(path: Path, name: str, version: Version) -> str:
    """Return what is wrong with a wheel's file, empty for nothing: half a download, or a renamed file."""
    try:
        with zipfile.ZipFile(path) as archive:
            file = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            fields, _ = parse_email(archive.read(file))
    except (OSError, zipfile.BadZipFile, StopIteration) as error:
        return str(error) or "it has no metadata"
    own_name, own_version = fields.get("name", "nothing"), fields.get("version", "")
    if (canonicalize_name(own_name), canonicalize_version(own_version)) != (name, canonicalize_version(version)):
        return f"its metadata says {own_name} {own_version}".strip()
    return ""


def _find_program(spec: ProgramSpec, folder: Path) -> Program | str:
    """Find a program that answers; return the problem as text where there is none."""
    tail = Path(spec.path)
    found = [path for path in sorted(folder.rglob(tail.name)) if path.parts[-len(tail.parts) :] == tail.parts]
    if not found:
        return f"no {spec.path}"
    path = found[0].resolve()
    if not os.access(path, os.X_OK):
        return f"{path} is not executable (`chmod +x`)"
    base = found[0].parents[len(tail.parts) - 1]
    libraries = (base / spec.libraries).resolve() if spec.libraries else None
    if libraries is not None and not libraries.is_dir():
        return f"no {spec.libraries} beside {spec.path}"
    program = Program(path=path, libraries=libraries, version="")
    output = _output([str(path), *spec.version], program.environment())
    if output is None:
        return f"{path} does not answer {' '.join(spec.version)}"
    number = NUMBER.search(output)
    version = number[0] if number else " ".join(output.split())[:80] or "unknown"
    return program.model_copy(update={"version": version})


def _output(command: list[str], environment: dict[str, str] | None = None) -> str | None:
    """Run a short command; return its output, None where it fails."""
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=ANSWER_S, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.strip() or done.stderr.strip()) if done.returncode == 0 else None
