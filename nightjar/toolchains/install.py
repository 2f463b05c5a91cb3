"""Install a vendor SDK's environment, completely or not at all.

A lock is installed without dependency resolution (`--no-deps`): the vendors' version ranges exclude versions that work.
An environment moves to its place after its probe has passed, so a killed install leaves no incomplete one.
"""

import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from nightjar.errors import BadOptions, ToolchainBroken, ToolchainFailed, ToolchainMissing
from nightjar.files import digest_file, read_json_object
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
    """Install an environment and probe it, unless the one in place matches its lock and passes its probe.

    sdk: the folder with the vendor's part; without it, a working environment stays. Raises ToolchainMissing where the
    vendor's part is absent or incomplete, ToolchainBroken when pip fails, and what `probe` raises.
    """
    requirements, folder = requirements_file(target), toolchain_folder(target)
    vendor = sdk_spec(target)
    if vendor is None and sdk is not None:
        raise BadOptions(f"the toolchain of {target} comes from the package index: remove --sdk")
    found = find_sdk(target, vendor, sdk.resolve()) if vendor is not None and sdk is not None else None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_suffix(".lock")):
        if _is_current(folder, requirements) and found is None:
            try:
                probe(Toolchain(target, folder))
                return Toolchain(target, folder)
            except (ToolchainBroken, ToolchainFailed) as exc:
                say(f"{exc}; installing it again")
        if vendor is not None and found is None:
            raise ToolchainMissing(f"the toolchain of {target} is not installed: {install_command(target)}")
        place = Path(tempfile.mkdtemp(prefix=f".{target}.", dir=folder.parent))
        try:
            place.chmod(0o755)
            _build_environment(Toolchain(target, place), requirements, say, found)
            if folder.exists():
                folder.rename(f"{place}.old")
            place.rename(folder)
        finally:
            for stale in folder.parent.glob(f".{target}.*"):  # those of killed installs too
                shutil.rmtree(stale, ignore_errors=True)
    return Toolchain(target, folder)


def _build_environment(found: Toolchain, requirements: Path, say: Callable[[str], None], sdk: Sdk | None) -> None:
    """Install into the environment's temporary place, probe it, and write the marker last."""
    wheels, programs = (sdk.wheels, sdk.programs) if sdk else ((), {})
    listed = [*(f"{n} {v}" for n, v in pinned_versions(requirements).items()), *(path.name for path in wheels)]
    say(f"installing the toolchain of {found.target}: {', '.join(listed)}")
    log_file = found.folder / "install.txt"
    python = sdk.python if sdk else sys.executable
    pip = [*(sys.executable, "-m", "pip", "--python", str(found.python), "install", "--no-deps", "--no-input")]
    pip += ["--progress-bar", "off", "--disable-pip-version-check"]
    commands = [[python, "-m", "venv", "--without-pip", str(found.folder)], [*pip, "-r", str(requirements)]]
    if wheels:  # no index: a public package of the same name is not the vendor's
        commands.append([*pip, "--no-index", *map(str, wheels)])
    for command in commands:  # in this environment, with pip's own configuration of indexes
        if run_logged(command, os.environ, found.folder, log_file, INSTALL_TIMEOUT_S) != 0:
            reason = last_line(log_file.read_text(encoding="utf-8", errors="replace"))
            saved_log = found.save_log("install", log_file)
            raise ToolchainBroken(
                f"the toolchain of {found.target} cannot be installed: {reason or 'time limit'}; log in {saved_log}: "
                f"go online or configure pip, then run `nightjar toolchain install {found.target}` again"
            )
    say(f"probing {found.target}: an import and a build of two ops")
    described = {name: program.model_dump(mode="json") for name, program in programs.items()}
    marker = {"requirements": digest_file(requirements), "programs": described}
    (found.folder / MARKER).write_text(json.dumps(marker), encoding="utf-8")  # for a probe that runs the programs
    marker |= {"versions": found.versions(), "probe": probe(found)}
    (found.folder / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")


def _is_current(folder: Path, requirements: Path) -> bool:
    """Return whether an environment was installed from this lock and still has its versions."""
    same_lock = read_json_object(folder / MARKER).get("requirements") == digest_file(requirements)
    return same_lock and pinned_versions(requirements).items() <= installed_versions(folder).items()
