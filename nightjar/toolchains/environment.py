"""A vendor SDK in an environment of its own: find it, look at it, call it with JSON.

`targets/<t>/toolchain/requirements.txt` is a complete lock (install.py). Where `sdk.toml` lies beside it, the vendor's
wheels and programs come from a folder that the user names (vendor_sdk.py), and the lock holds what they need.
"""

import contextlib
import functools
import json
import logging
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nightjar.errors import ToolchainBroken, ToolchainFailed, ToolchainMissing, UnknownName
from nightjar.paths import ROOT
from nightjar.process import MemoryLimitExceeded, Progress, last_line, run_logged
from nightjar.toolchains.vendor_sdk import FILE as SDK_FILE
from nightjar.toolchains.vendor_sdk import Program, SdkSpec, read_sdk_spec

log = logging.getLogger(__name__)

MARKER = "installed.json"
PROBE_TIMEOUT_S = 600.0
WORKER_CODE = (  # no import from the working folder: `-P`, which Pythons before 3.11 do not know
    "import sys; sys.path[:] = [p for p in sys.path if p]; "
    "from nightjar.toolchains.worker import main; sys.exit(main(*sys.argv[1:]))"
)
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
        """List what is installed by the names of its metadata folders; starts nothing, so it may enter every key.

        Programs of the vendor's, which stay where they lie, have the version that they said when it was installed.
        """
        programs = {name: Program.model_validate(said).version for name, said in self._programs().items()}
        return installed_versions(self.folder) | programs

    def program(self, name: str) -> Program:
        """Return a program of the vendor's; raises ToolchainMissing where it lies there no more."""
        said = self._programs().get(name)
        program = Program.model_validate(said) if said is not None else None
        if program is None or not program.path.is_file():
            where = f"is no longer at {program.path}" if program else "was not there when it was installed"
            raise ToolchainMissing(f"{name} of the toolchain of {self.target} {where}: {install_command(self.target)}")
        return program

    def _programs(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.folder / MARKER).read_text(encoding="utf-8")).get("programs", {})
        except (OSError, ValueError):
            return {}
        return found

    def environment(self) -> dict[str, str]:
        """Return the variables its processes run with: this repository importable, hashing fixed, a thread per core."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
        cores = str(len(os.sched_getaffinity(0)))
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), cores)
        return {
            **kept,
            **threads,
            "PYTHONPATH": str(ROOT),
            "PYTHONHASHSEED": "0",  # toolkits order what they write by sets
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
        address_space_bytes: int | None = None,
        on_progress: Progress | None = None,
        memory_limit_bytes: int | None = None,
    ) -> dict[str, Any]:
        """Run `main(job)` of one of our modules inside and return its result.

        `folder` is the call's own: its working folder, with job.json, result.json and log.txt. The process and all it
        starts end with this call, however that ends. memory_bytes: of address space, each process; most_bytes: that all
        together may hold. Raises ToolchainBroken where the SDK does not import, and ToolchainFailed where it refuses,
        crashes, or outgrows its time or memory.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        (folder / "result.json").unlink(missing_ok=True)
        command = [str(self.python), "-c", WORKER_CODE, module, "job.json", "result.json"]
        # Compilers write memory they never set into their files: let it be zero, and the same every time (glibc).
        environment = {**self.environment(), "MALLOC_PERTURB_": "255"}
        command.append(str(address_space_bytes or 0))
        log_file = folder / "log.txt"
        try:
            status = run_logged(command, environment, folder, log_file, timeout_s, on_progress, memory_limit_bytes)
        except MemoryLimitExceeded as exc:
            kept = self.save_log(module, log_file)
            held, given = (count / 2**30 for count in exc.args)
            raise ToolchainFailed(
                f"toolchain {self.target} ({module.rpartition('.')[2]}) held {held:.1f} GiB where it was given "
                f"{given:.1f} and was ended; log in {kept}: run the same command on a machine with more memory"
            ) from exc
        result: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):  # absent or cut short: the status and the log say why
            result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        if status == 0 and "result" in result:
            found: dict[str, Any] = result["result"]
            return found
        raise self._failure(module, status, result, folder / "log.txt", timeout_s, address_space_bytes)

    def _failure(
        self,
        module: str,
        status: int | None,
        result: Mapping[str, Any],
        log_file: Path,
        timeout_s: float,
        address_space_bytes: int | None,
    ) -> ToolchainBroken | ToolchainFailed:
        """Say in one line why a call gave no result, and keep its log where the message says."""
        kind, message = result.get("error", ""), result.get("message", "")
        said = log_file.read_text(encoding="utf-8", errors="replace")
        kept = self.save_log(module, log_file)
        where = f"toolchain {self.target} ({module.rpartition('.')[2]})"
        if status is None:
            return ToolchainFailed(
                f"{where} did not end within {timeout_s:g} s and was ended; log in {kept}: run the same command again"
            )
        if kind == "ImportError":
            return ToolchainBroken(
                f"{where} does not import: {message}; run `nightjar toolchain install {self.target}` to make it anew"
            )
        if kind == "MemoryError" or (not kind and status != -signal.SIGKILL and OUT_OF_MEMORY.search(said)):
            limit = f" of {address_space_bytes / 2**30:.1f} GiB" if address_space_bytes else ""
            return ToolchainFailed(
                f"{where} ran out of memory{limit}; log in {kept}: "
                "free memory or give fewer calibration samples, then run the same command again"
            )
        if status < 0:
            why = ", which is mostly the kernel's for want of memory" if status == -signal.SIGKILL else ""
            return ToolchainFailed(
                f"{where} was killed by {signal.Signals(-status).name}{why}; log in {kept}: run the same command again"
            )
        reason = message or last_line(said) or f"exit status {status}"
        return ToolchainFailed(
            f"{where} failed: {reason}; log in {kept}: mend the cause or report it, then run the same command again"
        )

    def save_log(self, module: str, log_file: Path) -> Path:
        """Keep a call's log beyond its folder, where a message can name it."""
        kept = self.folder.parent / "logs" / f"{self.target}.{module.rpartition('.')[2]}.txt"
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log_file, kept)
        return kept


_overrides: dict[str, Path] = {}  # of the process, since boards work in threads


@contextlib.contextmanager
def override_toolchain(target: str, folder: Path) -> Iterator[Toolchain]:
    """Use the environment in `folder`, or in its `target`, for a target in this process until the block ends.

    It need not be as pinned; its versions enter every key. Raises ToolchainMissing for a folder that holds none.
    """
    requirements_file(target)
    place = next((each for each in (folder / target, folder) if _is_installed(each)), None)
    if place is None:
        raise ToolchainMissing(
            f"no toolchain of {target} in {folder}: give a folder that "
            f"`NIGHTJAR_TOOLCHAINS=FOLDER nightjar toolchain install {target}` has made"
        )
    before = _overrides.get(target)
    _overrides[target] = place.resolve()
    try:
        yield Toolchain(target, place.resolve())
    finally:
        _overrides.pop(target)
        if before is not None:
            _overrides[target] = before


def toolchain_folder(target: str) -> Path:
    """Say where a target's environment lies, or would."""
    return _overrides.get(target) or Path(os.environ.get("NIGHTJAR_TOOLCHAINS") or ROOT / "toolchains") / target


def requirements_file(target: str) -> Path:
    """Return a target's lock; raises UnknownName for a target that has no SDK."""
    path = ROOT.joinpath("targets", *target.split("."), "toolchain", "requirements.txt")
    if not path.is_file():
        raise UnknownName(
            f"target {target!r} has no toolchain; have {', '.join(toolchain_targets())}: see `nightjar targets`"
        )
    return path


def toolchain_targets() -> list[str]:
    """List the targets, and stand-ins, that have an environment of their own: `rknn`, `mtk.stand_in`."""
    found = (ROOT / "targets").glob("**/toolchain/requirements.txt")
    return sorted(".".join(path.parent.parent.relative_to(ROOT / "targets").parts) for path in found)


def toolchain(target: str) -> Toolchain:
    """Return a target's installed SDK; raises ToolchainMissing where it is absent or of other versions than pinned."""
    found, wanted = Toolchain(target, toolchain_folder(target)), pinned_versions(requirements_file(target))
    if target in _overrides:
        return found
    if not _is_installed(found.folder):
        raise ToolchainMissing(f"the toolchain of {target} is not installed: {install_command(target)}")
    have = found.versions()
    for name, version in wanted.items():
        if have.get(name) != version:
            raise ToolchainMissing(
                f"the toolchain of {target} has {name} {have.get(name, 'not at all')} where {version} is pinned: "
                f"{install_command(target)}"
            )
    return found


def sdk_spec(target: str) -> SdkSpec | None:
    """Return what a target's vendor must give, None where a package index has all of it."""
    path = requirements_file(target).with_name(SDK_FILE)
    return read_sdk_spec(path) if path.is_file() else None


def install_command(target: str) -> str:
    """Say which command installs a target's SDK, and where to get what only its vendor gives."""
    vendor = sdk_spec(target)
    if vendor is None:
        return f"run `nightjar toolchain install {target}`"
    own = f"get {vendor.name} ({vendor.source}), then run `nightjar toolchain install {target} --sdk FOLDER`"
    if not (ROOT / "targets" / target / "stand_in" / "__init__.py").is_file():
        return own
    other = f"`nightjar toolchain install {target}.stand_in`" if f"{target}.stand_in" in toolchain_targets() else ""
    return f"{own}; or pass --board stand-in, which is no NPU's" + (f", after {other}" if other else "")


def probe(found: Toolchain) -> dict[str, Any]:
    """Import the SDK for real and let it do its smallest piece of work; raises what `Toolchain.call` does."""
    with tempfile.TemporaryDirectory() as scratch:
        return found.call(f"targets.{found.target}.toolchain.probe", {}, Path(scratch), PROBE_TIMEOUT_S)


def pinned_versions(requirements: Path) -> dict[str, str]:
    """Read a lock of `name==version` lines."""
    lines = (line.partition("#")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines())
    return {_canonical(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def installed_versions(folder: Path) -> dict[str, str]:
    """List an environment's distributions by name, and `python`, from the names of its metadata folders."""
    found = {"python": _python_version(folder)}
    for path in sorted(folder.glob("lib/python*/site-packages/*.dist-info")):
        name, _, version = path.name.removesuffix(".dist-info").partition("-")
        found[_canonical(name)] = version.partition("+")[0]  # torch 2.13.0+cpu is 2.13.0 of another build
    found.pop("pip", None)
    return found


def _is_installed(folder: Path) -> bool:
    return (folder / MARKER).is_file() and (folder / "bin" / "python").exists()


def _python_version(folder: Path) -> str:
    """Read the interpreter's version off the environment's own description."""
    try:
        text = (folder / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        return "absent"
    found = re.search(r"^version\s*=\s*(\S+)", text, re.MULTILINE)
    return found[1] if found else "unknown"


@functools.cache
def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
