"""The environment of a vendor's SDK: find it, read its versions, call it with JSON.

`targets/<t>/toolchain/requirements.txt` is a complete lock (install.py). Where `sdk.toml` is beside it, the vendor's
wheels and programs come from a folder that the user names (vendor_sdk.py), and the lock has their dependencies.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from packaging.utils import canonicalize_name

from nightjar.errors import ToolchainBroken, ToolchainFailed, ToolchainMissing, UnknownName
from nightjar.files import read_json_object
from nightjar.paths import ROOT
from nightjar.process import MemoryLimitExceeded, Progress, last_line, watch
from nightjar.toolchains import fork_server
from nightjar.toolchains.vendor_sdk import Program, SdkSpec, read_sdk_spec

MARKER = "installed.json"
PROBE_TIMEOUT_S = 600.0
OUT_OF_MEMORY = re.compile(r"bad_alloc|out of memory|cannot allocate memory|can't allocate memory|MemoryError", re.I)


class Toolchain(NamedTuple):
    """An installed SDK: its environment and the target it belongs to."""

    target: str
    folder: Path

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.folder / "bin" / "python"

    def versions(self) -> dict[str, str]:
        """Return the versions of packages and of the vendor's programs as installed; starts no process."""
        return installed_versions(self.folder) | {name: found.version for name, found in self._programs().items()}

    def program(self, name: str) -> Program:
        """Return a program of the vendor's; raises ToolchainMissing where it is no longer in its place."""
        program = self._programs().get(name)
        if program is None or not program.path.is_file():
            where = f"is no longer at {program.path}" if program else "was not there when it was installed"
            raise ToolchainMissing(f"{name} of the toolchain of {self.target} {where}: {install_command(self.target)}")
        return program

    def _programs(self) -> dict[str, Program]:
        entries = read_json_object(self.folder / MARKER).get("programs", {})
        return {name: Program.model_validate(entry) for name, entry in entries.items()}

    def environment(self) -> dict[str, str]:
        """Return the environment variables of its processes: this repository importable, a thread per core."""
        inherited = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "OMP_WAIT_POLICY")
        cores = str(len(os.sched_getaffinity(0)))
        return {
            **{name: os.environ[name] for name in inherited if name in os.environ},
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), cores),
            "PYTHONPATH": str(ROOT),
            "PYTHONHASHSEED": "0",  # toolkits write their files in the order of sets
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "LC_ALL": "C.UTF-8",
            "TERM": "dumb",
        }

    def call(
        self,
        module: str,
        job: Mapping[str, Any],
        folder: Path,
        timeout_s: float,
        on_progress: Progress | None = None,
        memory_limit_bytes: int | None = None,
    ) -> dict[str, Any]:
        """Run `main(job)` of a module in the environment and return its result.

        `folder` is the call's own working folder, with job.json, result.json and log.txt. All processes of the call end
        with it. memory_limit_bytes: of all of them together. Raises ToolchainBroken where the SDK does not import, and
        ToolchainFailed where it refuses, crashes, or exceeds its time or memory.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        (folder / "result.json").unlink(missing_ok=True)
        arguments = (module, "job.json", "result.json")
        # Compilers write uninitialized memory into their files: glibc fills it with zeros.
        environment = {**self.environment(), "MALLOC_PERTURB_": "255"}
        log_file = folder / "log.txt"
        where = f"toolchain {self.target} ({module.rpartition('.')[2]})"
        try:
            process = fork_server.start(self.python, arguments, environment, folder)
            status = watch(process, log_file, timeout_s, on_progress, memory_limit_bytes)
        except MemoryLimitExceeded as exc:
            used, limit = (count / 2**30 for count in exc.args)
            raise ToolchainFailed(
                f"{where} used {used:.1f} GiB of memory where {limit:.1f} are allowed and was killed; log in "
                f"{self.save_log(module, log_file)}: run the same command on a machine with more memory"
            ) from exc
        result = read_json_object(folder / "result.json")  # or the status and the log have the reason
        if status == 0 and "result" in result:
            return dict(result["result"])
        saved_log = self.save_log(module, log_file)
        if result.get("error") == "ImportError":
            raise ToolchainBroken(
                f"{where} does not import: {result['message']}; run `nightjar toolchain install {self.target}` to "
                "install it again"
            )
        text = log_file.read_text(encoding="utf-8", errors="replace")
        problem, remedy = _describe_exit(status, result, text, timeout_s)
        raise ToolchainFailed(f"{where} {problem}; log in {saved_log}: {remedy}")

    def log_path(self, name: str) -> Path:
        """Return where a log lies that a message names."""
        path = self.folder.parent / "logs" / f"{self.target}.{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def save_log(self, module: str, log_file: Path) -> Path:
        """Copy a call's log to where a message can name it, and return that path."""
        return Path(shutil.copyfile(log_file, self.log_path(module.rpartition(".")[2])))


def _describe_exit(status: int | None, result: Mapping[str, Any], log_text: str, timeout_s: float) -> tuple[str, str]:
    """Return why a call gave no result, and the remedy."""
    again = "run the same command again"
    kind = result.get("error", "")
    if status is None:
        return f"did not end within {timeout_s:g} s and was killed", again
    if kind == "MemoryError" or (not kind and status != -signal.SIGKILL and OUT_OF_MEMORY.search(log_text)):
        return "ran out of memory", f"free memory or give fewer calibration samples, then {again}"
    if status < 0:
        cause = ", usually by the kernel for lack of memory" if status == -signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-status).name}{cause}", again
    reason = result.get("message") or last_line(log_text) or f"exit status {status}"
    return f"failed: {reason}", f"fix the cause or report it, then {again}"


_overrides: dict[str, Path | None] = {}  # of the whole process: boards use threads


@contextlib.contextmanager
def override_toolchain(target: str, folder: Path) -> Iterator[Toolchain]:
    """Use the environment in `folder`, or in `folder`/`target`, for a target in this process until the block ends.

    It may differ from the lock; its versions enter every key. Raises ToolchainMissing for a folder without one.
    """
    requirements_file(target)
    place = next((each for each in (folder / target, folder) if _is_installed(each)), None)
    if place is None:
        raise ToolchainMissing(
            f"no toolchain of {target} in {folder}: give a folder that "
            f"`NIGHTJAR_TOOLCHAINS=FOLDER nightjar toolchain install {target}` wrote"
        )
    before = _overrides.get(target)
    _overrides[target] = place.resolve()
    try:
        yield Toolchain(target, place.resolve())
    finally:
        _overrides[target] = before


def toolchain_folder(target: str) -> Path:
    """Return the folder of a target's environment, whether it exists or not."""
    return _overrides.get(target) or Path(os.environ.get("NIGHTJAR_TOOLCHAINS") or ROOT / "toolchains") / target


def requirements_file(target: str) -> Path:
    """Return a target's lock; raises UnknownName for a target without an SDK."""
    path = ROOT.joinpath("targets", *target.split("."), "toolchain", "requirements.txt")
    if not path.is_file():
        raise UnknownName(
            f"target {target!r} has no toolchain; have {', '.join(toolchain_targets())}: see `nightjar targets`"
        )
    return path


def toolchain_targets() -> list[str]:
    """List the targets and stand-ins that have their own environment: `rknn`, `mtk.stand_in`."""
    found = (ROOT / "targets").glob("**/toolchain/requirements.txt")
    return sorted(".".join(path.parent.parent.relative_to(ROOT / "targets").parts) for path in found)


def toolchain(target: str) -> Toolchain:
    """Return a target's installed SDK; raises ToolchainMissing where it is absent or differs from its lock."""
    found, lock = Toolchain(target, toolchain_folder(target)), pinned_versions(requirements_file(target))
    if _overrides.get(target):
        return found
    if not _is_installed(found.folder):
        raise ToolchainMissing(f"the toolchain of {target} is not installed: {install_command(target)}")
    have = found.versions()
    for name, version in lock.items():
        if have.get(name) != version:
            raise ToolchainMissing(
                f"the toolchain of {target} has {name} {have.get(name, 'not at all')} where {version} is pinned: "
                f"{install_command(target)}"
            )
    return found


def sdk_spec(target: str) -> SdkSpec | None:
    """Return the part of an SDK that only its vendor distributes, None where a package index has all of it."""
    path = requirements_file(target).with_name("sdk.toml")
    return read_sdk_spec(path) if path.is_file() else None


def install_command(target: str) -> str:
    """Return the command that installs a target's SDK, and the source of what only its vendor distributes."""
    vendor = sdk_spec(target)
    if vendor is None:
        return f"run `nightjar toolchain install {target}`"
    own = f"get {vendor.name} ({vendor.source}), then run `nightjar toolchain install {target} --sdk FOLDER`"
    if not (ROOT / "targets" / target / "stand_in" / "__init__.py").is_file():
        return own
    stand_in = f"{target}.stand_in"
    after = f", after `nightjar toolchain install {stand_in}`" if stand_in in toolchain_targets() else ""
    return f"{own}; or pass --board stand-in, which measures no NPU{after}"


def probe(found: Toolchain) -> dict[str, Any]:
    """Import the SDK and run its smallest job; raises what `Toolchain.call` raises."""
    with tempfile.TemporaryDirectory() as scratch:
        return found.call(f"targets.{found.target}.toolchain.probe", {}, Path(scratch), PROBE_TIMEOUT_S)


def pinned_versions(requirements: Path) -> dict[str, str]:
    """Read a lock of `name==version` lines."""
    lines = (line.partition("#")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines())
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def installed_versions(folder: Path) -> dict[str, str]:
    """Return the versions of an environment's distributions and of `python`, from the names of its metadata folders."""
    found = {"python": "absent"}
    with contextlib.suppress(OSError):
        line = re.search(r"^version\s*=\s*(\S+)", (folder / "pyvenv.cfg").read_text(encoding="utf-8"), re.MULTILINE)
        found["python"] = line[1] if line else "unknown"
    for path in sorted(folder.glob("lib/python*/site-packages/*.dist-info")):
        name, _, version = path.name.removesuffix(".dist-info").partition("-")
        found[canonicalize_name(name)] = version.partition("+")[0]  # torch 2.13.0+cpu is a build of 2.13.0
    found.pop("pip", None)
    return found


def _is_installed(folder: Path) -> bool:
    return (folder / MARKER).is_file() and (folder / "bin" / "python").exists()
