"""`doctor`: what is installed on this machine, what is absent, and how to fix what is missing."""

import os
import shutil
import sys
from typing import Literal, NamedTuple

from nightjar.errors import ToolchainMissing
from nightjar.paths import remote_url, store_folder
from nightjar.plugins.registry import names, plugin
from nightjar.plugins.resolve import shipped_models
from nightjar.store.fingerprint import version
from nightjar.toolchains.environment import pinned_versions, requirements_file, sdk_spec, toolchain, toolchain_targets

NEEDED = ("numpy", "torch", "onnx", "onnxruntime", "whisper", "prefect", "librosa", "soundfile", "pydantic")


class Finding(NamedTuple):
    """The result of one check; only `missing` keeps Nightjar from working."""

    name: str
    outcome: Literal["ok", "absent", "missing"]
    detail: str


def examine() -> list[Finding]:
    """Check Python, libraries, store, server, shipped models, targets and toolchains."""
    return [_python(), *_libraries(), _store(), _server(), *_models(), *_targets(), *_toolchains()]


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] == (3, 11):
        return Finding("python", "ok", found)
    return Finding("python", "missing", f"{found}; Nightjar is pinned for 3.11: run `make setup` with python3.11")


def _libraries() -> list[Finding]:
    found = {name: version(name) for name in NEEDED}
    absent = [name for name, installed in found.items() if not installed]
    if absent:
        return [Finding("libraries", "missing", f"{', '.join(absent)}: run `make setup`")]
    return [Finding("libraries", "ok", ", ".join(f"{name} {installed}" for name, installed in found.items()))]


def _store() -> Finding:
    folder = store_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free_gib = shutil.disk_usage(folder).free / 2**30
    except OSError as error:
        return Finding("store", "missing", f"{folder}: {error.strerror}; set NIGHTJAR_STORE to a folder of yours")
    if not os.access(folder, os.W_OK):
        return Finding("store", "missing", f"{folder} cannot be written; set NIGHTJAR_STORE to a folder of yours")
    shared = f", cache of {remote_url()}" if remote_url() else ""
    return Finding("store", "ok", f"{folder}{shared}, {free_gib:.0f} GiB free")


def _server() -> Finding:
    from flows.server import configured_server, unreachable  # imports Prefect

    url, reason = configured_server()
    if not url:
        none = "none configured, flows run without one (set PREFECT_API_URL to use one)"
        return Finding("Prefect server", "absent", none)
    if reason:
        return Finding("Prefect server", "missing", str(unreachable(url, reason)))
    return Finding("Prefect server", "ok", url)


def _models() -> list[Finding]:
    found = [Finding(f"model {name}", "ok", "shipped in data/") for name in shipped_models()]
    return found or [Finding("shipped models", "missing", "data/ holds none: run `git checkout data`")]


def _targets() -> list[Finding]:
    findings = []
    for name in names("targets"):
        versions = {runtime: version(runtime) for runtime in plugin("targets", name).load().RUNTIMES}
        if absent := [runtime for runtime in versions if not versions[runtime]]:
            findings.append(Finding(f"target {name}", "absent", f"no {', '.join(absent)} on this machine"))
        else:
            findings.append(Finding(f"target {name}", "ok", ", ".join(map(" ".join, versions.items()))))
    return findings


def _toolchains() -> list[Finding]:
    """Check versions only; `nightjar toolchain status NAME` starts the SDK."""
    findings = []
    for name in toolchain_targets():
        try:
            found = toolchain(name)
        except ToolchainMissing as error:
            findings.append(Finding(f"toolchain {name}", "absent", str(error)))
        else:
            vendor, have = sdk_spec(name), found.versions()
            own = [wheel.name.replace("_", "-") for wheel in vendor.wheels] if vendor else []
            own += [program.name for program in vendor.programs] if vendor else []
            versions = [f"{each} {have[each]}" for each in own if each in have]
            count = f"{len(pinned_versions(requirements_file(name)))} packages as pinned"
            findings.append(Finding(f"toolchain {name}", "ok", ", ".join([count, *versions])))
    return findings
