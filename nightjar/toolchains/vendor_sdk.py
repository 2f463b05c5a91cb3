"""Find the wheels and programs of an SDK that only its vendor distributes, in a folder that a person names.

`targets/<t>/toolchain/sdk.toml` says what must be there; no code here knows a vendor:

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
    version = ["--version"]                    # arguments that make it print its version
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from packaging.metadata import parse_email
from packaging.specifiers import SpecifierSet
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, canonicalize_version, parse_wheel_filename
from packaging.version import Version
from pydantic import BaseModel, ConfigDict, Field

from nightjar.errors import ToolchainMissing

FILE = "sdk.toml"
NUMBER = re.compile(r"\d+(?:\.\d+)+[\w.+-]*")
ANSWER_S = 30.0
SEARCH_DEPTH = 6  # folders below the named one: vendors' archives are nested


class WheelSpec(BaseModel):
    """A wheel that only the vendor distributes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    at_least: str = ""
    below: str = ""
    optional: bool = Field(False, description="installed where it is there, not reported where it is not")

    @property
    def versions(self) -> str:
        """The allowed versions, such as `>=8.13,<9`."""
        return ",".join(op + limit for op, limit in ((">=", self.at_least), ("<", self.below)) if limit)

    def allows(self, version: Version) -> bool:
        """Return whether a version is allowed: 8.14.0rc1 is at least 8.13, 8.13.0rc1 is not."""
        return SpecifierSet(self.versions).contains(version, prereleases=True)


class ProgramSpec(BaseModel):
    """A program of the vendor's that stays in its folder."""

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
    name: str  # canonical
    version: Version
    pythons: tuple[str, ...]  # of the versions in sdk.toml, those that install it on this machine
    damage: str  # empty for a good file


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
    wheels = list(_find_wheels(folder, spec.python))
    missing = [problem for wheel in spec.wheels if (problem := _wheel_problem(wheel, wheels, spec.python))]
    programs = {}
    for program in spec.programs:
        found = _find_program(program, folder)
        if isinstance(found, str):
            missing.append(found)
        else:
            programs[program.name] = found
    if missing:
        raise ToolchainMissing(
            f"{folder} is not the whole of {spec.name}: {'; '.join(missing)} ({spec.source}): "
            f"put it there, then run {install} {folder}` again"
        )
    for version in spec.python:
        if (chosen := _choose_wheels(spec, wheels, version)) is not None:
            if (python := _find_python(version)) is None:
                raise ToolchainMissing(
                    f"the vendor's wheels need python{version} (with venv), and none on PATH answers: install it, "
                    f"then run {install} {folder}` again"
                )
            return Sdk(python, chosen, programs)
    names = ", ".join(wheel.name for wheel in spec.wheels if not wheel.optional)
    raise ToolchainMissing(
        f"the wheels in {folder} are for different Pythons: {names} must be for one of {' or '.join(spec.python)}; "
        f"put them there together, then run {install} {folder}` again"
    )


def _wheel_problem(spec: WheelSpec, wheels: Iterable[_Wheel], pythons: Sequence[str]) -> str:
    """Return why no wheel of a name fits, empty where one does."""
    named = [wheel for wheel in wheels if wheel.name == canonicalize_name(spec.name)]
    wanted = f"{spec.name} {spec.versions}".strip()
    if not named:
        return "" if spec.optional else f"no wheel of {wanted} for Python {' or '.join(pythons)}"
    problems = []
    for wheel in named:
        if wheel.damage:
            problems.append(f"{wheel.path.name} is damaged ({wheel.damage})")
        elif not spec.allows(wheel.version):
            problems.append(f"{wheel.path.name} is {wheel.version}, wanted is {wanted}")
        elif not wheel.pythons:
            tags = "-".join(wheel.path.stem.split("-")[-3:])
            problems.append(f"{wheel.path.name} is for {tags}, wanted is Python {' or '.join(pythons)} on this machine")
        else:
            return ""
    return ", ".join(problems)


def _choose_wheels(spec: SdkSpec, wheels: Iterable[_Wheel], python: str) -> tuple[Path, ...] | None:
    """Choose the newest wheel of each name for one Python version, None where a required one is missing."""
    chosen = []
    for each in spec.wheels:
        fitting = [
            wheel
            for wheel in wheels
            if wheel.name == canonicalize_name(each.name) and python in wheel.pythons and each.allows(wheel.version)
        ]
        if fitting:
            chosen.append(max(fitting, key=lambda wheel: wheel.version).path)
        elif not each.optional:
            return None
    return tuple(chosen)


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


def _find_wheels(folder: Path, pythons: Sequence[str]) -> Iterable[_Wheel]:
    supported = {python: _machine_tags(python) for python in pythons}
    for path in sorted(folder.rglob("*.whl")):
        if len(path.relative_to(folder).parts) > SEARCH_DEPTH:
            continue
        try:
            name, version, _, tags = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        damage = _damage(path, name, version)
        fitting = () if damage else tuple(python for python in pythons if tags & supported[python])
        yield _Wheel(path, name, version, fitting, damage)


def _machine_tags(python: str) -> frozenset[Tag]:
    """Return the wheel tags that a Python version accepts on this machine (PEP 425)."""
    major, minor = map(int, python.split("."))
    return frozenset([*cpython_tags((major, minor)), *compatible_tags((major, minor), f"cp{major}{minor}")])


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
    libraries = Path(*found[0].parts[: -len(tail.parts)], spec.libraries).resolve() if spec.libraries else None
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
