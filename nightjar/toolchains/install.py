"""Make a vendor SDK's environment: all of it or nothing.

A lock is installed without resolving anything (`--no-deps`): the vendors' own version ranges contradict what works. An
environment counts as installed when its probe has run, and only then takes its place, so a killed install leaves
nothing half made.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from nightjar.errors import BadOptions, ToolchainBroken, ToolchainFailed, ToolchainMissing
from nightjar.locks import locked
from nightjar.process import last_line, run_logged
from nightjar.toolchains.environment import (
    MARKER,
    Toolchain,
    install_command,
    installed_versions,
    pinned_versions,
    probe,
    requirements_file,
    sdk_spec,
    toolchain_folder,
)
from nightjar.toolchains.vendor_sdk import Sdk, find_sdk

log = logging.getLogger(__name__)

INSTALL_TIMEOUT_S = 3600.0


def install(target: str, say: Callable[[str], None] = log.info, sdk: Path | None = None) -> Toolchain:
    """Make an environment, probe it and put it in place, unless the one there is as pinned and passes its probe.

    sdk: the folder of what only the vendor gives; without it, an environment that is there and works stays.
    Raises ToolchainMissing where the vendor's part is not there or not whole, ToolchainBroken when pip fails and what
    `Toolchain.call` raises when the probe does.
    """
    requirements, folder = requirements_file(target), toolchain_folder(target)
    vendor = sdk_spec(target)
    if vendor is None and sdk is not None:
        raise BadOptions(f"the toolchain of {target} comes from the package index: leave out --sdk")
    found = find_sdk(target, vendor, sdk.resolve()) if vendor is not None and sdk is not None else None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_suffix(".lock")):
        if _is_current(folder, requirements) and found is None:
            try:
                probe(Toolchain(target, folder))
                return Toolchain(target, folder)
            except (ToolchainBroken, ToolchainFailed) as exc:
                say(f"{exc}; making it anew")
        if vendor is not None and found is None:
            raise ToolchainMissing(f"the toolchain of {target} is not installed: {install_command(target)}")
        for stale in folder.parent.glob(f".{target}.*"):
            shutil.rmtree(stale, ignore_errors=True)
        place = Path(tempfile.mkdtemp(prefix=f".{target}.", dir=folder.parent))
        try:
            place.chmod(0o755)
            _build_environment(Toolchain(target, place), requirements, say, found)
            if folder.exists():
                folder.rename(place.with_name(f".{target}.old"))
            place.rename(folder)
        finally:
            for stale in folder.parent.glob(f".{target}.*"):
                shutil.rmtree(stale, ignore_errors=True)
    return Toolchain(target, folder)


def _build_environment(found: Toolchain, requirements: Path, say: Callable[[str], None], sdk: Sdk | None) -> None:
    """Make the environment at its temporary place, probe it, and write the marker last."""
    wheels = [path.name for path in sdk.wheels] if sdk else []
    listed = [*(f"{n} {v}" for n, v in pinned_versions(requirements).items()), *wheels]
    say(f"making an environment for {found.target}: {', '.join(listed)}")
    log_file = found.folder / "install.txt"
    outside = dict(os.environ)  # pip's own configuration says where packages come from
    python = sdk.python if sdk else sys.executable
    pip = [*(sys.executable, "-m", "pip", "--python", str(found.python), "install", "--no-deps", "--no-input")]
    pip += ["--progress-bar", "off", "--disable-pip-version-check"]
    commands = [[python, "-m", "venv", "--without-pip", str(found.folder)], [*pip, "-r", str(requirements)]]
    if sdk and sdk.wheels:  # these files and no others: a public package of the same name is not the vendor's
        commands.append([*pip, "--no-index", *map(str, sdk.wheels)])
    for command in commands:
        status = run_logged(command, outside, found.folder, log_file, INSTALL_TIMEOUT_S, None)
        if status != 0:
            reason = last_line(log_file.read_text(encoding="utf-8", errors="replace"))
            kept = found.folder.parent / "logs" / f"{found.target}.install.txt"
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(log_file, kept)
            raise ToolchainBroken(
                f"the toolchain of {found.target} cannot be installed: {reason or 'time limit'}; log in {kept}: "
                f"go online or configure pip, then run `nightjar toolchain install {found.target}` again"
            )
    say(f"probing {found.target}: an import and a build of two ops")
    programs = {name: program.model_dump(mode="json") for name, program in (sdk.programs if sdk else {}).items()}
    marker = {"requirements": _sha256(requirements), "programs": programs}
    (found.folder / MARKER).write_text(json.dumps(marker), encoding="utf-8")  # a probe may run the programs
    marker |= {"versions": found.versions(), "probe": probe(found)}
    (found.folder / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")


def _is_current(folder: Path, requirements: Path) -> bool:
    """Say whether an environment was made of these requirements, and still has what they name."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    have = installed_versions(folder)
    return marker.get("requirements") == _sha256(requirements) and pinned_versions(requirements).items() <= have.items()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
